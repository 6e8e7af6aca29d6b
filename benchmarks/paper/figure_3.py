"""Figure 3 of arXiv 2411.00786: document frequency of words and of features, by rank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.evaluate.frequencies import document_frequencies, rank_curve
from sae_steer_retriever.evaluate.plots import RANKS_AXES, RANKS_CAPTION, RANKS_TITLE, draw_ranks
from sae_steer_retriever.evaluate.table import Cell, Column, Table
from sae_steer_retriever.sae.codes import Codes
from sae_steer_retriever.sae.topk_sae import TopKSAE

from .figure import Figure, Line, Panel

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

_HEAD = 10
_HEAD_SHARE = 0.01


def figure_3(sae: TopKSAE, texts: Sequence[str], codes: Codes[NDArray[Any]]) -> Figure:
    """Returns Figure 3 of arXiv 2411.00786: document frequency of words and of features, by rank.

    Words are lower-cased unigrams, stop words included. A head of 1 % refers to the types that occur at all. The slope
    is that of log frequency over log rank between the ranks V^(1/4) and V^(3/4) of V types; all parts of the
    logarithmic axis weigh the same.

    Args:
        sae: The SAE.
        texts: N passages.
        codes: (N, K) their codes, all K.

    Raises:
        MismatchError: Texts and codes differ in number.
        ValueError: No text has a word, or no passage a feature.
    """
    ranked = document_frequencies(sae, texts, codes)
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
        f"{len(texts):,} passages. In the top: share of all occurrences that belongs to the most frequent types; 1% of "
        "a large vocabulary is more types than 1% of a dictionary. Slope: log frequency over log rank; -1 is Zipf's "
        "law.",
        *(_compared(name, found, words) for name, found in features),
        "The paper finds features less head-heavy than words, whose head is stop words (BGE-base-en-v1.5, MS MARCO).",
    )
    table = Table("Figure 3: document frequency of words and features", columns, rows, notes, "figure-3")
    lines = tuple(Line(name, *rank_curve(found, len(texts))) for name, found in ranked.items())
    panels = {"figure-3": (Panel(RANKS_TITLE, *RANKS_AXES, lines),)}
    return Figure("figure-3", table, RANKS_CAPTION, panels, _draw)


def head_share(ranked: NDArray[np.int64], head: int | None = None) -> float:
    """Returns the share of all occurrences that belongs to the most frequent types.

    Args:
        ranked: (V,) counts, largest first.
        head: Number of types; the first 1 %, at least one, if not given.
    """
    count = max(1, round(_HEAD_SHARE * len(ranked))) if head is None else head
    return float(ranked[:count].sum() / ranked.sum())


def middle_slope(ranked: NDArray[np.int64]) -> float:
    """Returns the slope of log count over log rank between the ranks V^(1/4) and V^(3/4); -1 is Zipf's law.

    It is NaN where these ranks hold fewer than three types.

    Args:
        ranked: (V,) counts, largest first.
    """
    ranks = np.arange(1, len(ranked) + 1)
    middle = (ranks >= len(ranked) ** 0.25) & (ranks <= len(ranked) ** 0.75)
    if middle.sum() < 3:
        return float("nan")
    x, y = np.log(ranks[middle]), np.log(ranked[middle])
    # polyfit weights residuals, not their squares: 1 / rank gives all parts of the logarithmic axis the same weight.
    return float(np.polyfit(x, y, 1, w=np.sqrt(1 / ranks[middle]))[0])


def _rank_row(name: str, ranked: NDArray[np.int64], passages: int) -> tuple[Cell, ...]:
    frequencies = (float(ranked.sum() / passages), float(ranked[0] / passages))
    return (name, len(ranked), *frequencies, head_share(ranked, _HEAD), head_share(ranked), middle_slope(ranked))


def _compared(name: str, features: NDArray[np.int64], words: NDArray[np.int64]) -> str:
    """A sentence on whether features are less head-heavy than words."""
    less = [head_share(features, head) < head_share(words, head) for head in (_HEAD, None)]
    if less[0] == less[1]:
        return f"Here {name} are {'less' if less[0] else 'no less'} head-heavy than words, by both measures of a head."
    measure = f"the top {_HEAD}" if less[0] else f"the top {_HEAD_SHARE:.0%}"
    return f"Here {name} are less head-heavy than words by {measure} only."


def _draw(panels: Sequence[Panel]) -> Canvas:
    return draw_ranks({line.name: (line.x, line.y) for line in panels[0].lines})
