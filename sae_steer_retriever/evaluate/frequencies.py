"""Document frequencies of features: dead, rare and frequent ones, and their curve beside that of words."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.errors import MismatchError
from sae_steer_retriever.sae.codes import Codes
from sae_steer_retriever.sae.topk_sae import TopKSAE

_RARE, _FREQUENT = 5, 0.1
_QUANTILES = (5, 25, 50, 75, 95)
# Points of a curve that are drawn: more cannot be told apart, and a plot of every word is megabytes large.
_DRAWN_RANKS = 200
_WORD = r"(?u)\b\w+\b"


@dataclasses.dataclass(frozen=True)
class Frequencies:
    """Document frequencies of the features of a dictionary, as shares of the passages.

    Attributes:
        dead: Share of the features that are active in no passage.
        rare: Share of the features in fewer than five passages, the dead included.
        frequent: Share of the features in more than a tenth of the passages.
        maximum: Document frequency of the most frequent feature, a share of the passages.
        quantiles: Quantiles of the features' document frequency, by "q05", "q25", "q50", "q75" and "q95".
        l0: Mean number of active features per passage.
    """

    dead: float
    rare: float
    frequent: float
    maximum: float
    quantiles: dict[str, float]
    l0: float


def passage_counts(codes: Codes[NDArray[Any]], n: int) -> NDArray[np.int64]:
    """Returns (n,) the number of passages in which each of n latents is active; `codes` are the passages' (N, K)."""
    return np.bincount(codes.indices[codes.values > 0], minlength=n)


def measure_frequencies(codes: Codes[NDArray[Any]], n: int) -> Frequencies:
    """Returns the distribution of document frequency over all n features, dead ones included.

    The (N, K) codes of the passages hold all active latents, or the label latents only.
    """
    passages = len(codes.indices)
    count = passage_counts(codes, n)
    frequency = count / passages
    quantiles = np.percentile(frequency, _QUANTILES)
    return Frequencies(
        dead=float((count == 0).mean()),
        rare=float((count < _RARE).mean()),
        frequent=float((frequency > _FREQUENT).mean()),
        maximum=float(frequency.max()),
        quantiles={f"q{q:02d}": float(value) for q, value in zip(_QUANTILES, quantiles, strict=True)},
        l0=float(count.sum() / passages),
    )


def document_frequencies(
    sae: TopKSAE, texts: Sequence[str], codes: Codes[NDArray[Any]]
) -> dict[str, NDArray[np.int64]]:
    """Returns the numbers of passages with each word and with each feature, largest first, without zeros.

    Words are lower-cased unigrams, stop words included. Features are counted over all active latents, and over
    the label latents too if these are fewer.

    Args:
        sae: The dictionary.
        texts: N passages.
        codes: (N, K) their codes, all K.

    Raises:
        MismatchError: Texts and codes differ in number.
        ValueError: No text has a word, or no passage a feature.
    """
    if len(texts) != len(codes.indices):
        raise MismatchError(f"{len(texts)} texts, {len(codes.indices)} codes: expected one code a text.")
    k, names = codes.indices.shape[1], min(sae.config.k_labels, codes.indices.shape[1])
    counts = {"words": word_frequencies(texts), f"features, K = {k}": passage_counts(codes, sae.config.n)}
    if names < k:
        counts[f"features, the {names} strongest"] = passage_counts(codes.truncate(names), sae.config.n)
    return {name: ranked_frequencies(found) for name, found in counts.items()}


def word_frequencies(texts: Sequence[str]) -> NDArray[np.int64]:
    """Returns (V,) the number of texts with each word; words of one letter and stop words count.

    Raises:
        ValueError: No text has a word.
    """
    from sklearn.feature_extraction.text import CountVectorizer

    if not any(re.search(_WORD, text) for text in texts):
        raise ValueError(f"none of the {len(texts)} passages has a word: expected texts with letters or digits.")
    counted = CountVectorizer(binary=True, token_pattern=_WORD).fit_transform(texts)
    return np.asarray(counted.sum(axis=0), dtype=np.int64).reshape(-1)


def ranked_frequencies(counts: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """Returns the counts above 0, largest first.

    Raises:
        ValueError: All are 0.
    """
    alive = np.sort(counts[counts > 0].astype(np.int64))[::-1]
    if not len(alive):
        raise ValueError("nothing occurs in any passage: expected counts that are not all 0.")
    return alive


def rank_curve(ranked: NDArray[np.int64], passages: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns ranks and shares of the passages, at most 200 points of a curve; `ranked` are counts, largest first."""
    ranks = np.unique(np.geomspace(1, len(ranked), _DRAWN_RANKS).round().astype(np.int64))
    shares = ranked[ranks - 1] / passages
    return tuple(map(float, ranks)), tuple(map(float, shares))
