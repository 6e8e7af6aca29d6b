"""Labels of an adapted SAE: its parent's, scored on the corpus, and new ones for what the corpus adds."""

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
from sae_steer_retriever.features.feature import Feature, LabelScore
from sae_steer_retriever.labelling.gather_evidence import (
    frequent_features,
    gather_evidence,
    nearest_features,
    strengths,
)
from sae_steer_retriever.labelling.keyword_labels import LabelReport, label_features
from sae_steer_retriever.labelling.label_scores import score_label
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
    """The catalog of an adapted SAE: a view of its parent's on one corpus.

    Frequencies, units, examples and evidence are of the corpus. A feature that the parent has a label for keeps it,
    with the parent's family. Its score is measured again where enough passages have it, on all of them, because none
    was used for the label: what the corpus contradicts is shown as unclear. Else the parent's score stands. Features
    that the parent has no label for, the added ones among them, are labelled as in any corpus.

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

    Returns:
        The catalog and all figures of it; `scores` are of the corpus alone.
    """
    own = label_features(sae, calibration, ids, texts, vectors, embedder, names=names, seed=seed)
    kept = {feature.id: feature for feature in parent.generated if feature.label}
    embeddings = _label_embeddings(own, parent, kept, embedder)
    neighbours = nearest_features(sae, frequent_features(names, sae.config.n))
    evidence = gather_evidence(strengths(sae, vectors, names), neighbours)
    scores = {feature: score for feature, score in own.scores.items() if feature not in kept}
    for feature in kept:
        generator = np.random.default_rng([seed, feature])
        score = score_label(feature, embeddings[feature], vectors, evidence, generator)
        if score is not None:
            scores[feature] = score
    family = {member: group.id for group in parent.families for member in group.features}
    features = [
        _kept(feature, kept[feature.id], scores.get(feature.id)) if feature.id in kept else feature
        for feature in own.catalog.features
    ]
    features = [dataclasses.replace(feature, family=family.get(feature.id)) for feature in features]
    catalog = FeatureCatalog(features, calibration, sae.fingerprint, embeddings, parent.families, own.evidence)
    for one in parent.annotations.names.values():
        catalog.annotate(one.feature, one.label, one.note, embedding=one.embedding)
    return LabelReport(catalog, len(catalog.labelled), scores, own.evidence, parent.families)


def _kept(found: Feature, parent: Feature, score: LabelScore | None) -> Feature:
    """A feature as the corpus has it, under the parent's label."""
    return dataclasses.replace(
        found,
        label=parent.label,
        keywords=parent.keywords,
        label_by=parent.label_by,
        label_prompt=parent.label_prompt,
        score=parent.score if score is None else score,
    )


def _label_embeddings(own: LabelReport, parent: FeatureCatalog, kept: dict[int, Feature], embedder: Embedder) -> Array:
    """(n, d) of the corpus' own labels, with the parent's over them."""
    embeddings = np.zeros((len(own.catalog), embedder.spec.dimension), dtype=np.float32)
    if own.catalog.label_embeddings is not None:
        embeddings[:] = own.catalog.label_embeddings
    # A label that a person changed has its own embedding there.
    unknown = list(kept)
    if parent.label_embeddings is not None:
        known = [feature for feature in kept if feature not in parent.annotations.names]
        embeddings[known] = parent.label_embeddings[known]
        unknown = [feature for feature in kept if feature in parent.annotations.names]
    if unknown:
        embeddings[unknown] = embedder.embed_queries([kept[feature].label for feature in unknown])
    return embeddings


__all__ = ["label_adapted"]
