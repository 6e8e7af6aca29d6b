"""Figure 3 of arXiv 2411.00786: in how many passages words and features occur, by rank."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.errors import MismatchError
from sae_steer_retriever.evaluate.figure import Figure
from sae_steer_retriever.evaluate.frequencies import passage_counts
from sae_steer_retriever.evaluate.panel import Line, Panel
from sae_steer_retriever.evaluate.table import Cell, Column, Table
from sae_steer_retriever.sae.codes import Codes
from sae_steer_retriever.sae.topk_sae import TopKSAE

# Points of a curve that are drawn: more cannot be told apart, and a plot of every word is megabytes large.
_DRAWN_RANKS = 200
_WORD = r"(?u)\b\w+\b"
_HEAD = 10
_HEAD_SHARE = 0.01


def figure_3(sae: TopKSAE, texts: Sequence[str], codes: Codes[NDArray[Any]]) -> Figure:
    """Figure 3: in how many passages the words and the features of a corpus occur, by rank.

    Words are lower-cased unigrams, stop words included. A head of 1 % is of the types that occur at all; the slope is
    that of log frequency over log rank, between the ranks V^(1/4) and V^(3/4) of V types, where every part of the
    logarithmic axis counts alike.

    Args:
        sae: The SAE.
        texts: N passages.
        codes: (N, K) their codes, all K.

    Raises:
        MismatchError: Texts and codes differ in number.
        ValueError: No text has a word, or no passage a feature.
    """
    if len(texts) != len(codes.indices):
        raise MismatchError(f"{len(texts)} texts, {len(codes.indices)} codes: expected one code a text.")
    names = min(sae.config.k_labels, codes.indices.shape[1])
    counts = {
        "words": word_frequencies(texts),
        f"features, K = {codes.indices.shape[1]}": passage_counts(codes, sae.config.n),
    }
    if names < codes.indices.shape[1]:
        counts[f"features, the {names} strongest"] = passage_counts(codes.truncate(names), sae.config.n)
    ranked = {name: ranked_frequencies(found) for name, found in counts.items()}
    columns = (
        Column("what"),
        Column("types"),
        Column("per passage", ".1f"),
        Column("largest frequency", ".1%"),
        Column(f"in the top {_HEAD}", ".1%"),
        Column(f"in the top {_HEAD_SHARE:.0%}", ".1%"),
        Column("slope", ".2f"),
    )
    rows = tuple(_rank_row(name, found, len(texts)) for name, found in ranked.items())
    (_, words), *features = ranked.items()
    notes = (
        f"{len(texts):,} passages. In the top: the share of all occurrences that the most frequent types have; 1% of a "
        "large vocabulary is more types than 1% of a dictionary. Slope: of log frequency over log rank; Zipf's law "
        "has -1.",
        *(_compared(name, found, words) for name, found in features),
        "The paper finds features less head-heavy than words, whose head is stop words (BGE-base-en-v1.5, MS MARCO).",
    )
    table = Table("Figure 3: document frequency of words and features", columns, rows, notes, "figure-3")
    caption = (
        "In which share of the passages a word or a feature occurs, by its rank: a curve that starts lower and stays "
        "flat for longer has fewer types that are in every other passage and say nothing of it."
    )
    lines = tuple(_rank_line(name, found, len(texts)) for name, found in ranked.items())
    panel = Panel("Words and features by rank", "rank", "share of the passages", lines)
    return Figure("figure-3", table, caption, {"figure-3": (panel,)}, ranks=True)


def word_frequencies(texts: Sequence[str]) -> NDArray[np.int64]:
    """(V,) in how many texts each word occurs; words of one letter and stop words are words too.

    Raises:
        ValueError: No text has a word.
    """
    from sklearn.feature_extraction.text import CountVectorizer

    if not any(re.search(_WORD, text) for text in texts):
        raise ValueError(f"none of the {len(texts)} passages has a word: expected texts with letters or digits.")
    counted = CountVectorizer(binary=True, token_pattern=_WORD).fit_transform(texts)
    return np.asarray(counted.sum(axis=0), dtype=np.int64).reshape(-1)


def ranked_frequencies(counts: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """The counts that are not 0, largest first.

    Raises:
        ValueError: All are 0.
    """
    alive = np.sort(counts[counts > 0].astype(np.int64))[::-1]
    if not len(alive):
        raise ValueError("nothing occurs in any passage: expected counts that are not all 0.")
    return alive


def head_share(ranked: NDArray[np.int64], head: int | None = None) -> float:
    """The share of all occurrences that the most frequent types have.

    Args:
        ranked: (V,) counts, largest first.
        head: How many types; the first 1 %, at least one, if not given.
    """
    count = max(1, round(_HEAD_SHARE * len(ranked))) if head is None else head
    return float(ranked[:count].sum() / ranked.sum())


def middle_slope(ranked: NDArray[np.int64]) -> float:
    """The slope of log count over log rank between the ranks V^(1/4) and V^(3/4); -1 is Zipf's law.

    Args:
        ranked: (V,) counts, largest first. NaN where too few types are left for a slope.
    """
    ranks = np.arange(1, len(ranked) + 1)
    middle = (ranks >= len(ranked) ** 0.25) & (ranks <= len(ranked) ** 0.75)
    if middle.sum() < 3:
        return float("nan")
    x, y = np.log(ranks[middle]), np.log(ranked[middle])
    # polyfit weights residuals, not their squares: 1 / rank makes every part of the logarithmic axis count alike.
    return float(np.polyfit(x, y, 1, w=np.sqrt(1 / ranks[middle]))[0])


def _rank_row(name: str, ranked: NDArray[np.int64], passages: int) -> tuple[Cell, ...]:
    frequencies = (float(ranked.sum() / passages), float(ranked[0] / passages))
    return (name, len(ranked), *frequencies, head_share(ranked, _HEAD), head_share(ranked), middle_slope(ranked))


def _compared(name: str, features: NDArray[np.int64], words: NDArray[np.int64]) -> str:
    """Whether features are less head-heavy than words, by both measures of a head."""
    less = [head_share(features, head) < head_share(words, head) for head in (_HEAD, None)]
    if all(less) or not any(less):
        return (
            f"Here {name} are {'less' if all(less) else 'no less'} head-heavy than words, by both measures of a head."
        )
    measure = f"the top {_HEAD}" if less[0] else f"the top {_HEAD_SHARE:.0%}"
    return f"Here {name} are less head-heavy than words by {measure} only."


def _rank_line(name: str, ranked: NDArray[np.int64], passages: int) -> Line:
    ranks = np.unique(np.geomspace(1, len(ranked), _DRAWN_RANKS).round().astype(np.int64))
    shares = ranked[ranks - 1] / passages
    return Line(name, tuple(map(float, ranks)), tuple(map(float, shares)))
