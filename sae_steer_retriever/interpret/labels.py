"""Names for an SAE's features: keywords from one half of a corpus, scores from the other."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.calibration import Calibration
from sae_steer_retriever.embedders import Embedder
from sae_steer_retriever.features import Feature, FeatureCatalog
from sae_steer_retriever.interpret.evidence import gather_evidence, nearest_features, read_names, strengths
from sae_steer_retriever.interpret.keywords import Vocabulary, contrastive_keywords
from sae_steer_retriever.interpret.scoring import LabelScore, score_label
from sae_steer_retriever.sae import Codes, TopKSAE
from sae_steer_retriever.vector_rows import VectorRows, Vectors

logger = logging.getLogger(__name__)

# A feature is named once it is active in this many passages of the half that labels are made of.
LABELLED_FROM = 5
_EXAMPLES = 5


@dataclasses.dataclass(frozen=True)
class LabelReport:
    """A catalog, and how far its labels can be trusted.

    Attributes:
        catalog: Features with labels and scores.
        labelled: How many features have a label.
        scores: By feature id, of those whose label could be scored.
    """

    catalog: FeatureCatalog
    labelled: int
    scores: Mapping[int, LabelScore]

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

    Args:
        sae: The dictionary.
        calibration: Its statistics over the same passages.
        ids: Passage ids.
        texts: The passages.
        vectors: (N, d) their unit embeddings; only those that a score needs are in memory.
        embedder: Embeds the labels.
        names: (N, k_names) their naming reading; read here if not given.
        seed: Of the split into halves and of the negatives.
    """
    generator = np.random.default_rng(seed)
    names = strengths(sae, vectors, read_names(sae, vectors) if names is None else names)
    order = generator.permutation(len(texts))
    label_rows, test_rows = np.sort(order[: (len(texts) + 1) // 2]), np.sort(order[(len(texts) + 1) // 2 :])
    neighbours = nearest_features(sae)
    evidence = gather_evidence(_rows(names, label_rows), neighbours)
    unseen = gather_evidence(_rows(names, test_rows), neighbours)
    vocabulary = Vocabulary([texts[row] for row in label_rows])
    keywords: dict[int, tuple[str, ...]] = {}
    for feature in range(sae.config.n):
        if len(evidence.passages(feature)[0]) >= LABELLED_FROM:
            words = contrastive_keywords(feature, evidence, vocabulary)
            if words:
                keywords[feature] = words
    labels = {feature: ", ".join(words) for feature, words in keywords.items()}
    label_embeddings = np.zeros((sae.config.n, sae.config.d), dtype=np.float32)
    if labels:
        label_embeddings[list(labels)] = embedder.embed_queries(list(labels.values()))
    tested = (vectors if isinstance(vectors, VectorRows) else VectorRows(vectors)).select(test_rows)
    scores: dict[int, LabelScore] = {}
    for feature in labels:
        score = score_label(feature, label_embeddings[feature], tested, unseen, generator)
        if score is not None:
            scores[feature] = score
    features = []
    for feature in range(sae.config.n):
        rows, _ = evidence.passages(feature)
        features.append(
            Feature(
                id=feature,
                label=labels.get(feature, ""),
                keywords=keywords.get(feature, ()),
                label_score=round(scores[feature].hard, 4) if feature in scores else None,
                frequency=float(calibration.frequency[feature]),
                unit=float(calibration.unit[feature]),
                examples=tuple(ids[label_rows[row]] for row in rows[:_EXAMPLES]),
            )
        )
    catalog = FeatureCatalog(features, calibration, sae.fingerprint, label_embeddings)
    return LabelReport(catalog, len(labels), scores)


def _rows(codes: Codes[NDArray[Any]], rows: NDArray[np.int64]) -> Codes[NDArray[Any]]:
    return Codes(codes.indices[rows], codes.values[rows])
