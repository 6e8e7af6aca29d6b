"""The setting of a comparison: passages, queries and concepts as arrays."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.encoders.embedders import Embedder
from sae_steer_retriever.sae.codes import Array

from .corpus import LabelledCorpus

DEPTH = 10
EXAMPLES = 10
"""Number of labelled passages of a concept for methods that learn from examples."""
_NEGATIVES = 200


@dataclass(frozen=True)
class SteeringSetting:
    """Ranked passages, steered queries, and the concepts to steer towards.

    The examples that some methods learn from are excluded from all rankings.

    Attributes:
        vectors: (N, d) unit embeddings of the ranked passages.
        members: (C, N) whether a passage has the label of a concept.
        labels: C labels.
        words: C names, as a person types them.
        concepts: (C, d) unit embeddings of the names.
        questions: Q texts.
        queries: (Q, d) unit embeddings of the questions.
        positives: C arrays (10, d) of examples of each concept.
        negatives: C arrays of examples without it, from one random sample.
        embedder: Embeds texts that a method writes.
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
        """Returns (Q, N) unsteered scores `q . x`."""
        return np.ascontiguousarray(self.queries @ self.vectors.T)

    @cached_property
    def plain(self) -> NDArray[np.int64]:
        """Returns (Q, 10) rows of the unsteered top 10."""
        return np.stack([top_ten(scores, scores) for scores in self.base])

    @cached_property
    def mean(self) -> Array:
        """Returns (d,) the mean passage."""
        return np.asarray(self.vectors.mean(axis=0, dtype=np.float64), dtype=np.float32)

    @cached_property
    def level(self) -> float:
        """Returns the mean score of an unsteered top 10, the measure of strengths."""
        return float(np.take_along_axis(self.base, self.plain, axis=1).mean())


def top_ten(scores: Array, base: Array, start: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
    """Returns the rows with the largest scores, best first; ties go to the larger base score, then to the earlier row.

    Args:
        scores: (N,).
        base: (N,) unsteered scores.
        start: Ten rows with large scores, for example from a slightly smaller strength; they only save time.
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
    """Returns a setting: embeds everything and sets the examples apart.

    Args:
        corpus: The passages.
        labels: C labels to steer towards.
        words: C names for them.
        questions: The queries.
        embedder: The SAE's encoder, a `CachedEmbedder`.
        seed: Seed of the draw of the examples.
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
    """Returns a setting of arrays, as in `SteeringSetting`; `vectors` and `members` still include the examples."""
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
