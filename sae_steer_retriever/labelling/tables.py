"""Which features a table shows: samples by frequency, and the strongest of a text (arXiv 2411.00786, Tables 2 to 7)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sae_steer_retriever.features.catalog import FeatureCatalog
from sae_steer_retriever.features.feature import Feature
from sae_steer_retriever.labelling.gather_evidence import read_label_latents, strengths
from sae_steer_retriever.sae.codes import Array
from sae_steer_retriever.sae.topk_sae import TopKSAE

# Of the live features, ranked by frequency: the first tenth, what follows up to the half, and the second half.
_HEAD, _TORSO = 0.1, 0.5


class Region(NamedTuple):
    """Live features of like frequency.

    Attributes:
        name: "head", "torso" or "tail".
        first: Rank of the most frequent one, from 1.
        features: All of them, the most frequent first.
    """

    name: str
    first: int
    features: tuple[Feature, ...]

    @property
    def labelled(self) -> int:
        """How many have a label."""
        return sum(bool(feature.label) for feature in self.features)


class RankedFeature(NamedTuple):
    """A feature, and where it stands among those that are alive.

    Attributes:
        rank: By frequency, from 1.
        feature: The feature.
    """

    rank: int
    feature: Feature


class StrongFeature(NamedTuple):
    """A feature that a text has.

    Attributes:
        feature: The feature.
        strength: How strongly: what passages are ordered by, see `interpret.evidence.strengths`.
    """

    feature: Feature
    strength: float


def frequency_regions(catalog: FeatureCatalog) -> tuple[Region, ...]:
    """The live features by frequency: a head of the first tenth by rank, a torso up to the half, and a tail.

    The paper does not say where its regions end. Features of the same frequency keep the order of their ids. Of fewer
    than three live features some regions are empty.

    Args:
        catalog: Whose features; a feature is alive if it is active in a passage that it was calibrated on.
    """
    alive = [feature for feature in catalog.features if catalog.calibration.count[feature.id] > 0]
    alive.sort(key=lambda feature: (-feature.frequency, feature.id))
    head = min(len(alive), max(1, round(_HEAD * len(alive))))
    torso = min(len(alive), max(head + 1, round(_TORSO * len(alive))))
    bounds = (("head", 0, head), ("torso", head, torso), ("tail", torso, len(alive)))
    return tuple(Region(name, start + 1, tuple(alive[start:end])) for name, start, end in bounds)


def sample_region(region: Region, count: int, seed: int = 0) -> tuple[RankedFeature, ...]:
    """Features drawn from a region, the most frequent first.

    They are drawn from those that have a label, weak ones included; from all, where none has one.

    Args:
        region: One of `frequency_regions`.
        count: How many; all that there are if fewer.
        seed: Of the draw.
    """
    ranked = [RankedFeature(rank, feature) for rank, feature in enumerate(region.features, start=region.first)]
    candidates = [entry for entry in ranked if entry.feature.label] or ranked
    drawn = np.random.default_rng(seed).permutation(len(candidates))[:count]
    return tuple(candidates[place] for place in np.sort(drawn).tolist())


def strongest_features(
    sae: TopKSAE, catalog: FeatureCatalog, vectors: Array, limit: int = 5
) -> list[tuple[StrongFeature, ...]]:
    """The strongest features of texts, of those that name a text.

    Args:
        sae: The dictionary.
        catalog: Its features.
        vectors: (batch, d) unit embeddings of the texts.
        limit: How many at most; no text has more than `k_labels`.

    Returns:
        Of each text, strongest first.
    """
    codes = strengths(sae, vectors, read_label_latents(sae, vectors))
    found = []
    for latents, values in zip(codes.indices, codes.values, strict=True):
        order = [place for place in np.argsort(-values, kind="stable")[:limit].tolist() if values[place] > 0]
        found.append(tuple(StrongFeature(catalog[int(latents[place])], float(values[place])) for place in order))
    return found


__all__ = [
    "RankedFeature",
    "Region",
    "StrongFeature",
    "frequency_regions",
    "sample_region",
    "strongest_features",
]
