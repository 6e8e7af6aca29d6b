"""Keywords of a feature without a language model: words of its passages, not of its near misses, near it in meaning."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import CountVectorizer

from sae_steer_retriever.encoders.embedders import Embedder
from sae_steer_retriever.labelling.gather_evidence import Evidence
from sae_steer_retriever.sae.codes import Array

_TOP_PASSAGES, _NEAR_MISSES, _WORDS = 30, 60, 5
# Candidates by frequency, which meaning then ranks.
_CANDIDATES = 100
# Lower bound of the cosine: where no candidate is near the feature, frequency decides.
_LEAST_COSINE = 0.02
# Letters only, three or more: numbers and fragments make poor names. Identifiers such as run_in_executor stay whole.
_TOKEN = r"(?u)\b[^\W\d][\w-]+[^\W_]\b"


class Vocabulary:
    """The words of a corpus with their passages, rarity and meaning.

    Attributes:
        matrix: (N, words) sparse, 1 where a passage has a word.
        words: (words,) the words.
        rarity: (words,) log of the number of passages over the number that have the word.
        meanings: (words, d) unit embeddings of the single words, less their mean.
    """

    def __init__(self, texts: Sequence[str], embedder: Embedder, max_words: int = 30_000) -> None:
        """Count the words of passages, binary per passage, without English stop words, and embed them.

        The most frequent words are kept, up to `max_words`. The `embedder` is the SAE's encoder.
        """
        # In a small corpus a word may have only one passage.
        rarest = 2 if len(texts) >= 200 else 1
        commonest = 0.25 if len(texts) >= 20 else 1.0
        vectorizer = CountVectorizer(
            binary=True, stop_words="english", token_pattern=_TOKEN, dtype=np.float32,
            min_df=rarest, max_df=commonest, max_features=max_words,
        )  # fmt: skip
        try:
            self.matrix: csr_matrix = csr_matrix(vectorizer.fit_transform(texts))
            self.words: NDArray[np.str_] = vectorizer.get_feature_names_out()
        except ValueError:  # no word is left: a corpus of numbers or of stop words
            self.matrix, self.words = csr_matrix((len(texts), 0), dtype=np.float32), np.empty(0, dtype=np.str_)
        frequency = np.asarray(self.matrix.sum(axis=0)).ravel()
        self.rarity = np.log(len(texts) / np.maximum(frequency, 1.0))
        self.meanings = embedder.embed_queries(self.words.tolist())
        if len(self.words):
            centred = self.meanings - self.meanings.mean(axis=0)
            lengths = np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
            self.meanings = np.asarray(centred / lengths, dtype=np.float32)


def contrastive_keywords(feature: int, evidence: Evidence, vocabulary: Vocabulary, direction: Array) -> tuple[str, ...]:
    """Returns up to five words that tell a feature's strongest passages from its near misses and mean the feature.

    A word's weight is its share of the top passages, weighted by activation, less its share of the near misses,
    times its rarity (class-based TF-IDF with hard negatives), times the cosine of the word with the feature's
    direction, which gives little weight to names that the passages share by accident.

    Args:
        feature: Latent id.
        evidence: Of the passages that `vocabulary` was counted on, in the same order.
        vocabulary: Their words.
        direction: (d,) the feature's unit decoder row.
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
    candidates = np.argsort(-weight, kind="stable")[:_CANDIDATES]
    candidates = candidates[weight[candidates] > 0]
    meant = weight[candidates] * np.maximum(vocabulary.meanings[candidates] @ direction, _LEAST_COSINE)
    chosen: list[str] = []
    for position in candidates[np.argsort(-meant, kind="stable")]:
        word = str(vocabulary.words[position])
        if len(chosen) == _WORDS:
            break
        if not any(_same_stem(word, other) for other in chosen):
            chosen.append(word)
    return tuple(chosen)


def _same_stem(one: str, other: str) -> bool:
    shorter, longer = sorted((one, other), key=len)
    return longer.startswith(shorter[: max(4, len(shorter) - 2)]) and len(longer) - len(shorter) <= 4
