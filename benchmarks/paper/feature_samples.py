"""The features that a table shows: samples by frequency, and the strongest features of a text."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sae_steer_retriever.features.catalog import FeatureCatalog
from sae_steer_retriever.features.feature import Feature
from sae_steer_retriever.labelling.gather_evidence import read_label_latents, strengths
from sae_steer_retriever.sae.codes import Array
from sae_steer_retriever.sae.topk_sae import TopKSAE

# Shares of the live features, ranked by frequency: the head ends at a tenth, the torso at a half.
_HEAD, _TORSO = 0.1, 0.5


class Region(NamedTuple):
    """Live features of similar frequency.

    Attributes:
        name: "head", "torso" or "tail".
        first: Rank of the most frequent one, from 1.
        features: The features, the most frequent first.
    """

    name: str
    first: int
    features: tuple[Feature, ...]

    @property
    def labelled(self) -> int:
        """Returns the number of features with a label."""
        return sum(bool(feature.label) for feature in self.features)


class RankedFeature(NamedTuple):
    """A feature and its rank by frequency among the live features, from 1."""

    rank: int
    feature: Feature


class StrongFeature(NamedTuple):
    """A feature of a text.

    Attributes:
        feature: The feature.
        strength: Its strength in the text, from `labelling.gather_evidence.strengths`.
    """

    feature: Feature
    strength: float


def frequency_regions(catalog: FeatureCatalog) -> tuple[Region, ...]:
    """Returns the live features by frequency: a head of the first tenth by rank, a torso up to the half, and a tail.

    The paper does not say where its regions end. Features of the same frequency keep the order of their ids. With fewer
    than three live features some regions are empty.

    Args:
        catalog: The features; a feature is alive if it is active in a passage of the calibration.
    """
    alive = [feature for feature in catalog.features if catalog.calibration.count[feature.id] > 0]
    alive.sort(key=lambda feature: (-feature.frequency, feature.id))
    head = min(len(alive), max(1, round(_HEAD * len(alive))))
    torso = min(len(alive), max(head + 1, round(_TORSO * len(alive))))
    bounds = (("head", 0, head), ("torso", head, torso), ("tail", torso, len(alive)))
    return tuple(Region(name, start + 1, tuple(alive[start:end])) for name, start, end in bounds)


def sample_region(region: Region, count: int, seed: int = 0) -> tuple[RankedFeature, ...]:
    """Returns features drawn from a region, the most frequent first.

    They are drawn from the features with a label, weak labels included, or from all features if none has a label.

    Args:
        region: One of `frequency_regions`.
        count: Number of features; all candidates if there are fewer.
        seed: Seed of the draw.
    """
    ranked = [RankedFeature(rank, feature) for rank, feature in enumerate(region.features, start=region.first)]
    candidates = [entry for entry in ranked if entry.feature.label] or ranked
    drawn = np.random.default_rng(seed).permutation(len(candidates))[:count]
    return tuple(candidates[place] for place in np.sort(drawn).tolist())


def strongest_features(
    sae: TopKSAE, catalog: FeatureCatalog, vectors: Array, limit: int = 5
) -> list[tuple[StrongFeature, ...]]:
    """Returns the strongest label latents of each text, strongest first.

    Args:
        sae: The dictionary.
        catalog: Its features.
        vectors: (batch, d) unit embeddings of the texts.
        limit: Number of features at most; a text has `k_labels` at most.
    """
    codes = strengths(sae, vectors, read_label_latents(sae, vectors))
    found = []
    for latents, values in zip(codes.indices, codes.values, strict=True):
        order = [place for place in np.argsort(-values, kind="stable")[:limit].tolist() if values[place] > 0]
        found.append(tuple(StrongFeature(catalog[int(latents[place])], float(values[place])) for place in order))
    return found
