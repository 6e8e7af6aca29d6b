"""Keyword labels without an LLM: the words that a feature's passages have and its near misses lack."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import CountVectorizer

from sae_steer_retriever.interpret.evidence import Evidence

_TOP_PASSAGES = 15
_NEAR_MISSES = 60
_WORDS = 5
# Letters only, three or more: numbers and fragments make poor names. Identifiers such as run_in_executor stay whole.
_TOKEN = r"(?u)\b[^\W\d][\w-]+[^\W_]\b"


class Vocabulary:
    """The words of a corpus: which passage has which, and how rare each is."""

    def __init__(self, texts: Sequence[str], max_words: int = 30_000) -> None:
        """Count words, binary per passage, English stop words left out."""
        # In a small corpus one passage is all the evidence a word can have.
        rarest = 2 if len(texts) >= 200 else 1
        vectorizer = CountVectorizer(
            binary=True,
            stop_words="english",
            token_pattern=_TOKEN,
            min_df=rarest,
            max_df=0.25 if len(texts) >= 20 else 1.0,
            max_features=max_words,
            dtype=np.float32,
        )
        try:
            self.matrix: csr_matrix = csr_matrix(vectorizer.fit_transform(texts))
            self.words: NDArray[np.str_] = vectorizer.get_feature_names_out()
        except ValueError:  # scikit-learn's word for "no word is left": a corpus of numbers or of stop words
            self.matrix, self.words = csr_matrix((len(texts), 0), dtype=np.float32), np.empty(0, dtype=np.str_)
        frequency = np.asarray(self.matrix.sum(axis=0)).ravel()
        self.rarity = np.log(len(texts) / np.maximum(frequency, 1.0))


def contrastive_keywords(feature: int, evidence: Evidence, vocabulary: Vocabulary) -> tuple[str, ...]:
    """Up to five words that tell a feature's strongest passages from its near misses.

    A word's weight is its share of the top passages, weighted by activation, less its share of the near misses,
    times its rarity: class-based TF-IDF with hard negatives.

    Args:
        feature: Latent id.
        evidence: Of the passages that `vocabulary` was counted on, in the same order.
        vocabulary: Their words.
    """
    rows, values = evidence.passages(feature)
    rows, values = rows[:_TOP_PASSAGES], values[:_TOP_PASSAGES]
    if not len(rows) or not len(vocabulary.words):
        return ()
    share = np.asarray((values / values.sum()) @ vocabulary.matrix[rows]).ravel()
    misses = evidence.near_misses(feature)[:_NEAR_MISSES]
    if len(misses):
        share = share - np.asarray(vocabulary.matrix[misses].mean(axis=0)).ravel()
    weight = share * vocabulary.rarity
    chosen: list[str] = []
    for position in np.argsort(-weight, kind="stable")[: 4 * _WORDS]:
        word = str(vocabulary.words[position])
        if weight[position] <= 0 or len(chosen) == _WORDS:
            break
        if not any(_same_stem(word, other) for other in chosen):
            chosen.append(word)
    return tuple(chosen)


def _same_stem(one: str, other: str) -> bool:
    shorter, longer = sorted((one, other), key=len)
    return longer.startswith(shorter[: max(4, len(shorter) - 2)]) and len(longer) - len(shorter) <= 4
