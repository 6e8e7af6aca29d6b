"""Names for an SAE's features: keywords from one half of a corpus, scores from the other."""

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
from sae_steer_retriever.features.family import Family
from sae_steer_retriever.features.feature import Feature, LabelScore
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
from sae_steer_retriever.labelling.label_scores import score_label
from sae_steer_retriever.sae.codes import Array, Codes
from sae_steer_retriever.sae.topk_sae import TopKSAE

_EXAMPLES = 5


@dataclasses.dataclass(frozen=True)
class LabelReport:
    """A catalog, and how far its labels can be trusted.

    Attributes:
        catalog: Features with labels and scores.
        labelled: How many features have a label.
        scores: By feature id, of those whose label could be scored.
        evidence: By feature id, of those that some passage has: what is shown beside a label, of all passages. A label
            that is to be scored must not be made of it, for it holds passages that scores are measured on.
        families: Groups of features that passages have together, as the catalog has them.
    """

    catalog: FeatureCatalog
    labelled: int
    scores: Mapping[int, LabelScore]
    evidence: Mapping[int, FeatureEvidence]
    families: tuple[Family, ...]

    @property
    def scored(self) -> int:
        """How many labels could be scored."""
        return len(self.scores)

    @property
    def auroc_random(self) -> float:
        """Median AUROC of the scored labels against random passages; NaN if none was scored."""
        return float(np.median([score.random for score in self.scores.values()])) if self.scores else float("nan")

    @property
    def auroc_hard(self) -> float:
        """The same against hard negatives."""
        return float(np.median([score.hard for score in self.scores.values()])) if self.scores else float("nan")


class Halves(NamedTuple):
    """Row numbers of the two halves of a corpus, ascending.

    Attributes:
        made_of: Of the passages that labels are made of.
        unseen: Of those that they are scored on.
    """

    made_of: NDArray[np.int64]
    unseen: NDArray[np.int64]


def split_halves(passages: int, seed: int = 0) -> Halves:
    """The halves of a corpus: the same for the same number of passages and seed."""
    order = np.random.default_rng(seed).permutation(passages)
    middle = (passages + 1) // 2
    return Halves(np.sort(order[:middle]), np.sort(order[middle:]))


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
    """Name every feature that is active often enough, and score the names on passages they were not made of.

    Keywords are of one half of the passages alone and scores of the other. What is shown beside them, examples,
    evidence and families, is of all passages.

    Args:
        sae: The dictionary.
        calibration: Its statistics over the same passages.
        ids: Passage ids.
        texts: The passages.
        vectors: (N, d) their unit embeddings; only those that a score or a batch needs are in memory.
        embedder: Embeds the labels.
        names: (N, k_labels) their label latents; read here if not given.
        seed: Of the split into halves and of the negatives.
    """
    names = strengths(sae, vectors, read_label_latents(sae, vectors) if names is None else names)
    neighbours = nearest_features(sae, frequent_features(names, sae.config.n))
    halves = split_halves(len(texts), seed)
    keywords = _keywords(sae, gather_evidence(_rows(names, halves.made_of), neighbours), texts, halves, embedder)
    labels = {feature: ", ".join(words) for feature, words in keywords.items()}
    label_embeddings = np.zeros((sae.config.n, sae.config.d), dtype=np.float32)
    if labels:
        label_embeddings[list(labels)] = embedder.embed_queries(list(labels.values()))
    tested = (vectors if isinstance(vectors, VectorRows) else VectorRows(vectors)).select(halves.unseen)
    unseen = gather_evidence(_rows(names, halves.unseen), neighbours)
    scores = _scores(list(labels), label_embeddings, tested, unseen, seed)
    whole = gather_evidence(names, neighbours)
    evidence = describe_features(sae, whole, ids, vectors)
    families = find_families(whole, sae.decoder, keywords)
    features = _features(calibration, keywords, scores, evidence, families)
    catalog = FeatureCatalog(features, calibration, sae.fingerprint, label_embeddings, families, evidence)
    return LabelReport(catalog, len(labels), scores, evidence, families)


def _keywords(
    sae: TopKSAE, evidence: Evidence, texts: Sequence[str], halves: Halves, embedder: Embedder
) -> dict[int, tuple[str, ...]]:
    """By feature id, of the features that enough passages of the first half have."""
    vocabulary = Vocabulary([texts[row] for row in halves.made_of], embedder)
    frequent = np.flatnonzero(np.diff(evidence.feature_match.indptr) >= LABELLED_FROM).tolist()
    found = {feature: contrastive_keywords(feature, evidence, vocabulary, sae.decoder[feature]) for feature in frequent}
    return {feature: words for feature, words in found.items() if words}


def _scores(
    labelled: Sequence[int], label_embeddings: Array, vectors: VectorRows, evidence: Evidence, seed: int
) -> dict[int, LabelScore]:
    """By feature id, of the labels that could be scored."""
    scores: dict[int, LabelScore] = {}
    for feature in labelled:
        # A generator of its own: a score does not depend on which other labels are scored.
        generator = np.random.default_rng([seed, feature])
        score = score_label(feature, label_embeddings[feature], vectors, evidence, generator)
        if score is not None:
            scores[feature] = score
    return scores


def _features(
    calibration: Calibration,
    keywords: Mapping[int, tuple[str, ...]],
    scores: Mapping[int, LabelScore],
    evidence: Mapping[int, FeatureEvidence],
    families: Sequence[Family],
) -> list[Feature]:
    family = {feature: group.id for group in families for feature in group.features}
    shown = {feature: tuple(example.id for example in found.top[:_EXAMPLES]) for feature, found in evidence.items()}
    return [
        Feature(
            id=feature,
            label=", ".join(keywords.get(feature, ())),
            keywords=keywords.get(feature, ()),
            score=scores.get(feature),
            frequency=float(calibration.frequency[feature]),
            unit=float(calibration.unit[feature]),
            examples=shown.get(feature, ()),
            family=family.get(feature),
        )
        for feature in range(len(calibration.unit))
    ]


def _rows(codes: Codes[NDArray[Any]], rows: NDArray[np.int64]) -> Codes[NDArray[Any]]:
    return Codes(codes.indices[rows], codes.values[rows])
