"""Labels of an adapted SAE: its parent's labels, scored on the corpus, and new labels for the other features."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.encoders.embedders import Embedder
from sae_steer_retriever.encoders.vector_rows import VectorRows
from sae_steer_retriever.features.calibration import Calibration
from sae_steer_retriever.features.catalog import FeatureCatalog
from sae_steer_retriever.features.feature import Feature
from sae_steer_retriever.labelling.gather_evidence import (
    frequent_features,
    gather_evidence,
    nearest_features,
    strengths,
)
from sae_steer_retriever.labelling.keyword_labels import LabelReport, label_features
from sae_steer_retriever.labelling.label_scores import score_labels
from sae_steer_retriever.sae.codes import Array, Codes
from sae_steer_retriever.sae.topk_sae import TopKSAE


def label_adapted(
    sae: TopKSAE,
    parent: FeatureCatalog,
    calibration: Calibration,
    ids: Sequence[str],
    texts: Sequence[str],
    vectors: VectorRows,
    embedder: Embedder,
    *,
    names: Codes[NDArray[Any]],
    seed: int = 0,
) -> LabelReport:
    """Returns the catalog of an adapted SAE; its `scores` are those measured on the corpus.

    Frequencies, units, examples and evidence come from the corpus. A feature with a label in the parent keeps the
    label and the family. If enough passages have the feature, the label is scored again, on all of them, because none
    was used for it; otherwise the parent's score stays. Other features are labelled as in any corpus.

    Args:
        sae: The adapted dictionary, whose first features are the parent's.
        parent: The parent's catalog.
        calibration: Of the corpus.
        ids: Passage ids.
        texts: The passages.
        vectors: (N, d) their unit embeddings.
        embedder: Embeds labels that have no embedding yet.
        names: (N, k_labels) their label latents.
        seed: Of the halves that new labels are made of and scored on, and of the negatives.
    """
    own = label_features(sae, calibration, ids, texts, vectors, embedder, names=names, seed=seed)
    kept = {feature.id: feature for feature in parent.generated if feature.label}
    embeddings = _label_embeddings(own, parent, kept, embedder)
    neighbours = nearest_features(sae, frequent_features(names, sae.config.n))
    evidence = gather_evidence(strengths(sae, vectors, names), neighbours)
    scores = {feature: score for feature, score in own.scores.items() if feature not in kept}
    scores |= score_labels(kept, embeddings, vectors, evidence, seed)
    family = {member: group.id for group in parent.families for member in group.features}
    features = []
    for found in own.catalog.features:
        named = kept.get(found.id, found)
        score = scores.get(found.id, named.score)
        measured = dataclasses.replace(named, score=score, frequency=found.frequency, unit=found.unit)
        features.append(dataclasses.replace(measured, examples=found.examples, family=family.get(found.id)))
    catalog = FeatureCatalog(features, calibration, sae.fingerprint, embeddings, parent.families, own.evidence)
    for one in parent.annotations.names.values():
        catalog.annotate(one.feature, one.label, one.note, embedding=one.embedding)
    return LabelReport(catalog, len(catalog.labelled), scores, own.evidence, parent.families)


def _label_embeddings(own: LabelReport, parent: FeatureCatalog, kept: dict[int, Feature], embedder: Embedder) -> Array:
    """(n, d) of the labels: the parent's where it has one, else the corpus' own."""
    embeddings = np.zeros((len(own.catalog), embedder.spec.dimension), dtype=np.float32)
    if own.catalog.label_embeddings is not None:
        embeddings[:] = own.catalog.label_embeddings
    # Where a person changed the label, the parent's row embeds that label and not the generated one.
    unknown = [feature for feature in kept if parent.label_embeddings is None or feature in parent.annotations.names]
    if parent.label_embeddings is not None:
        known = [feature for feature in kept if feature not in parent.annotations.names]
        embeddings[known] = parent.label_embeddings[known]
    if unknown:
        embeddings[unknown] = embedder.embed_queries([kept[feature].label for feature in unknown])
    return embeddings
