"""Keyword labels for an SAE's features: made of one half of a corpus, scored on the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.encoders.embedders import Embedder
from sae_steer_retriever.encoders.vector_rows import VectorRows, Vectors
from sae_steer_retriever.features.calibration import Calibration
from sae_steer_retriever.features.catalog import FeatureCatalog
from sae_steer_retriever.features.evidence import FeatureEvidence
from sae_steer_retriever.features.feature import Family, Feature, LabelScore
from sae_steer_retriever.labelling.families import find_families
from sae_steer_retriever.labelling.gather_evidence import (
    LABELLED_FROM,
    Evidence,
    describe_features,
    frequent_features,
    gather_evidence,
    nearest_features,
    read_label_latents,
    strengths,
)
from sae_steer_retriever.labelling.keywords import Vocabulary, contrastive_keywords
from sae_steer_retriever.labelling.label_scores import score_label, score_labels
from sae_steer_retriever.sae.codes import Array, Codes
from sae_steer_retriever.sae.topk_sae import TopKSAE

_EXAMPLES = 5


@dataclasses.dataclass(frozen=True)
class LabelReport:
    """A catalog and the scores of its labels.

    Attributes:
        catalog: Features with labels and scores.
        labelled: Number of features that have a label.
        scores: By feature id, of the labels that could be scored.
        evidence: By feature id, of all passages. Show it beside labels; do not make labels of it, because it has
            passages that scores are measured on.
        families: Groups of features that the same passages have.
    """

    catalog: FeatureCatalog
    labelled: int
    scores: Mapping[int, LabelScore]
    evidence: Mapping[int, FeatureEvidence]
    families: tuple[Family, ...]

    @property
    def scored(self) -> int:
        """Number of labels that could be scored."""
        return len(self.scores)

    @property
    def auroc_random(self) -> float:
        """Median AUROC of the scored labels against random passages; NaN if none was scored."""
        return float(np.median([score.random for score in self.scores.values()] or [np.nan]))

    @property
    def auroc_hard(self) -> float:
        """Median AUROC of the scored labels against near misses; NaN if none was scored."""
        return float(np.median([score.hard for score in self.scores.values()] or [np.nan]))


class Halves(NamedTuple):
    """Row numbers, ascending, of the passages that labels are made of and of those that labels are scored on."""

    made_of: NDArray[np.int64]
    unseen: NDArray[np.int64]


def split_halves(passages: int, seed: int = 0) -> Halves:
    """The halves of a corpus: the same for the same number of passages and seed."""
    order = np.random.default_rng(seed).permutation(passages)
    middle = (passages + 1) // 2
    return Halves(np.sort(order[:middle]), np.sort(order[middle:]))


class LabelHalves:
    """Passages for labels by a language model, and passages to score them on: the halves of `label_features`.

    Attributes:
        texts: The passages that labels may be made of, by id.
        evidence: By feature id, of these passages alone.
    """

    def __init__(
        self, sae: TopKSAE, ids: Sequence[str], texts: Sequence[str], vectors: Vectors, *, seed: int = 0
    ) -> None:
        """Read the label latents of (N, d) unit embeddings and split the passages.

        The `seed` of the SAE's training gives the halves of its keyword labels.
        """
        self._seed = seed
        rows = _vector_rows(vectors)
        names = strengths(sae, rows, read_label_latents(sae, rows))
        halves = split_halves(len(texts), seed)
        neighbours = nearest_features(sae, frequent_features(names, sae.config.n))
        self._unseen = gather_evidence(names, neighbours, halves.unseen)
        self._tested = rows.select(halves.unseen)
        self.texts = {ids[row]: texts[row] for row in halves.made_of}
        made_of, own = gather_evidence(names, neighbours, halves.made_of), [ids[row] for row in halves.made_of]
        self.evidence = describe_features(sae, made_of, own, rows.select(halves.made_of))

    def score(self, feature: int, label: Array) -> LabelScore | None:
        """The score of a feature's label, given as its (d,) unit vector, on the unseen half; see `score_label`."""
        return score_label(feature, label, self._tested, self._unseen, self._seed)


def label_features(
    sae: TopKSAE,
    calibration: Calibration,
    ids: Sequence[str],
    texts: Sequence[str],
    vectors: Vectors,
    embedder: Embedder,
    *,
    names: Codes[NDArray[Any]] | None = None,
    seed: int = 0,
) -> LabelReport:
    """Returns a catalog with a keyword label for every frequent feature, scored on passages it was not made of.

    Keywords come from one half of the passages and scores from the other. Examples, evidence and families come from
    all passages.

    Args:
        sae: The dictionary.
        calibration: Its statistics over the same passages.
        ids: Passage ids.
        texts: The passages.
        vectors: (N, d) their unit embeddings; memory holds those that a score or a batch needs.
        embedder: Embeds the labels.
        names: (N, k_labels) their label latents; read here if not given.
        seed: Of the split into halves and of the negatives.

    Example:
        >>> ids = [str(row) for row in range(len(texts))]
        >>> report = label_features(sae, catalog.calibration, ids, texts, vectors, embedder)
        >>> report.labelled == len(report.catalog.labelled) > 0
        True
    """
    names = strengths(sae, vectors, read_label_latents(sae, vectors) if names is None else names)
    neighbours = nearest_features(sae, frequent_features(names, sae.config.n))
    halves = split_halves(len(texts), seed)
    keywords = _keywords(sae, gather_evidence(names, neighbours, halves.made_of), texts, halves, embedder)
    labels = {feature: ", ".join(words) for feature, words in keywords.items()}
    label_embeddings = np.zeros((sae.config.n, sae.config.d), dtype=np.float32)
    if labels:
        label_embeddings[list(labels)] = embedder.embed_queries(list(labels.values()))
    tested = _vector_rows(vectors).select(halves.unseen)
    unseen = gather_evidence(names, neighbours, halves.unseen)
    scores = score_labels(labels, label_embeddings, tested, unseen, seed)
    whole = gather_evidence(names, neighbours)
    evidence = describe_features(sae, whole, ids, vectors)
    families = find_families(whole, sae.decoder, keywords)
    features = _features(calibration, keywords, scores, evidence, families)
    catalog = FeatureCatalog(features, calibration, sae.fingerprint, label_embeddings, families, evidence)
    return LabelReport(catalog, len(labels), scores, evidence, families)


def _vector_rows(vectors: Vectors) -> VectorRows:
    return vectors if isinstance(vectors, VectorRows) else VectorRows(vectors)


def _keywords(
    sae: TopKSAE, evidence: Evidence, texts: Sequence[str], halves: Halves, embedder: Embedder
) -> dict[int, tuple[str, ...]]:
    """By feature id, of the features that enough passages of the first half have."""
    vocabulary = Vocabulary([texts[row] for row in halves.made_of], embedder)
    frequent = np.flatnonzero(np.diff(evidence.feature_match.indptr) >= LABELLED_FROM).tolist()
    found = {feature: contrastive_keywords(feature, evidence, vocabulary, sae.decoder[feature]) for feature in frequent}
    return {feature: words for feature, words in found.items() if words}


def _features(
    calibration: Calibration,
    keywords: Mapping[int, tuple[str, ...]],
    scores: Mapping[int, LabelScore],
    evidence: Mapping[int, FeatureEvidence],
    families: Sequence[Family],
) -> list[Feature]:
    family = {feature: group.id for group in families for feature in group.features}
    features = []
    for feature, (frequency, unit) in enumerate(zip(calibration.frequency, calibration.unit, strict=True)):
        words, score = keywords.get(feature, ()), scores.get(feature)
        top = evidence[feature].top[:_EXAMPLES] if feature in evidence else ()
        examples, own = tuple(example.id for example in top), family.get(feature)
        features.append(
            Feature(feature, ", ".join(words), words, score, float(frequency), float(unit), examples, family=own)
        )
    return features
