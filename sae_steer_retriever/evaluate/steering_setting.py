"""Everything that steering methods are compared on: passages, queries and concepts as arrays."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.encoders.embedders import Embedder
from sae_steer_retriever.evaluate.steering_corpus import LabelledCorpus
from sae_steer_retriever.sae.codes import Array

DEPTH = 10
EXAMPLES = 10
"""Labelled passages of a concept that the methods which learn from examples are shown."""
_NEGATIVES = 200


@dataclass(frozen=True)
class SteeringSetting:
    """Passages that are ranked, queries that are steered, and concepts that they are steered towards.

    The examples that some methods learn from are in no ranking, whatever the method.

    Attributes:
        vectors: (N, d) unit embeddings of the passages that are ranked.
        members: (C, N) which passages carry the label of each concept.
        labels: C labels.
        words: C names, the words that a person types.
        concepts: (C, d) unit embeddings of the words.
        questions: Q texts.
        queries: (Q, d) their unit embeddings.
        positives: C arrays (10, d) of examples of each concept.
        negatives: C arrays of examples without it, of one random sample.
        embedder: For texts that a method makes.
    """

    vectors: Array
    members: NDArray[np.bool_]
    labels: tuple[str, ...]
    words: tuple[str, ...]
    concepts: Array
    questions: tuple[str, ...]
    queries: Array
    positives: tuple[Array, ...]
    negatives: tuple[Array, ...]
    embedder: Embedder

    @cached_property
    def base(self) -> Array:
        """(Q, N) unsteered scores `q . x`."""
        return np.ascontiguousarray(self.queries @ self.vectors.T)

    @cached_property
    def plain(self) -> NDArray[np.int64]:
        """(Q, 10) rows of the unsteered top 10."""
        return np.stack([top_ten(scores, scores) for scores in self.base])

    @cached_property
    def mean(self) -> Array:
        """(d,) the mean passage."""
        return np.asarray(self.vectors.mean(axis=0, dtype=np.float64), dtype=np.float32)

    @cached_property
    def level(self) -> float:
        """The mean score of an unsteered top 10: what strengths are measured by."""
        return float(np.take_along_axis(self.base, self.plain, axis=1).mean())


def top_ten(scores: Array, base: Array, start: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
    """The rows with the largest scores, best first; ties go to the larger base score, then to the earlier row.

    Args:
        scores: (N,).
        base: (N,) unsteered scores.
        start: Ten rows that are good already, such as those of a slightly smaller strength: it only saves time.
    """
    count = min(DEPTH, len(scores))
    known = start is not None and len(start) == count
    bar = scores[start].min() if known else np.partition(scores, -count)[-count]
    rows = np.flatnonzero(scores >= bar)
    return rows[np.lexsort((rows, -base[rows], -scores[rows]))[:count]]


def make_setting(
    corpus: LabelledCorpus,
    labels: tuple[str, ...],
    words: tuple[str, ...],
    questions: tuple[str, ...],
    embedder: Embedder,
    *,
    seed: int = 0,
) -> SteeringSetting:
    """Embed everything, and set the examples apart.

    Args:
        corpus: The passages.
        labels: C labels to steer towards.
        words: C names for them.
        questions: The queries.
        embedder: Of the SAE; a `CachedEmbedder`, so that no later run has to embed a passage again.
        seed: Of the draw of the examples.
    """
    return setting_of(
        embedder.embed_documents(corpus.texts),
        np.array([[label in carried for carried in corpus.labels] for label in labels]),
        labels,
        words,
        embedder.embed_queries(words),
        questions,
        embedder.embed_queries(questions),
        embedder,
        seed=seed,
    )


def setting_of(
    vectors: Array,
    members: NDArray[np.bool_],
    labels: tuple[str, ...],
    words: tuple[str, ...],
    concepts: Array,
    questions: tuple[str, ...],
    queries: Array,
    embedder: Embedder,
    *,
    seed: int = 0,
) -> SteeringSetting:
    """The same of arrays that are there; see `SteeringSetting`, whose examples are still among the passages here."""
    generator = np.random.default_rng(seed)
    held = np.zeros(len(vectors), dtype=bool)
    examples = []
    for carried in members:
        free = np.flatnonzero(carried & ~held)
        drawn = np.sort(generator.choice(free, min(EXAMPLES, len(free) // 2), replace=False))
        held[drawn] = True
        examples.append(drawn)
    free = np.flatnonzero(~held)
    others = np.sort(generator.choice(free, min(_NEGATIVES, len(free) // 10), replace=False))
    held[others] = True
    return SteeringSetting(
        vectors=np.ascontiguousarray(vectors[~held]),
        members=np.ascontiguousarray(members[:, ~held]),
        labels=labels,
        words=words,
        concepts=concepts,
        questions=questions,
        queries=queries,
        positives=tuple(vectors[drawn] for drawn in examples),
        negatives=tuple(vectors[others[~carried[others]]] for carried in members),
        embedder=embedder,
    )
