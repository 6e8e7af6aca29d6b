"""Why a passage has its score: an exact sum over named features, steering, bias and an unexplained rest."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.sae import Array, Codes, TopKSAE


class Contribution(NamedTuple):
    """A share of a score.

    Attributes:
        feature: Latent id.
        label: The feature's display name.
        value: In score units; may be negative.
    """

    feature: int
    label: str
    value: float


class SteeringTerm(NamedTuple):
    """What one edit added to a score.

    Attributes:
        name: As the user wrote it.
        side: "query" for a tilt, "document" for a gate.
        value: In score units.
    """

    name: str
    side: str
    value: float


@dataclasses.dataclass(frozen=True)
class Attribution:
    """The exact decomposition of one hit's score: `features + steering + bias + residual == score`.

    Attributes:
        features: The query's own features, largest first: `h_f(q) (d_f . x)`.
        steering: One term per edit and side.
        bias: The decoder bias' share, `b_dec . x`: what every query has in common.
        residual: What the SAE does not reconstruct of the query, `(q - q_hat) . x`: unexplained.
    """

    features: tuple[Contribution, ...]
    steering: tuple[SteeringTerm, ...]
    bias: float
    residual: float

    @property
    def total(self) -> float:
        """The score, as the sum of its parts."""
        named = sum(part.value for part in self.features) + sum(term.value for term in self.steering)
        return named + self.bias + self.residual

    @property
    def unexplained(self) -> float:
        """The residual's share of all parts by size, in [0, 1]."""
        sizes = [abs(part.value) for part in self.features] + [abs(term.value) for term in self.steering]
        whole = sum(sizes) + abs(self.bias) + abs(self.residual)
        return abs(self.residual) / whole if whole else 0.0

    def top(self, limit: int = 5) -> tuple[Contribution, ...]:
        """The features that contribute most by size."""
        return tuple(sorted(self.features, key=lambda part: -abs(part.value))[:limit])


def attribute(
    q: Array,
    h_q: Codes[NDArray[Any]],
    x: Array,
    steering: tuple[SteeringTerm, ...],
    sae: TopKSAE,
    name: Callable[[int], str],
    *,
    scale: float = 1.0,
    offset: float = 0.0,
) -> Attribution:
    """Decompose one score on the query side.

    `q . x = sum_f h_f(q) (d_f . x) + b_dec . x + (q - q_hat) . x`, everything times `scale`. The parts are computed
    from the vectors, not from the score, so their sum checks it.

    Args:
        q: (d,) the query's embedding, or its reconstruction in the reconstructed space.
        h_q: (1, K) the query's codes.
        x: (d,) the passage's vector in the space that was searched.
        steering: The steering's terms, already in score units.
        sae: The dictionary.
        name: From a latent id to its display name.
        scale: What turns dot products into scores: 1, or one over norms.
        offset: What a score has beyond the dot product (squared-distance collections); joins the residual.
    """
    active = h_q.values[0] > 0
    latents, values = h_q.indices[0][active], h_q.values[0][active]
    projections = (sae.decoder[latents] @ x) * values * scale
    order = np.argsort(-projections, kind="stable")
    features = tuple(
        Contribution(int(latents[position]), name(int(latents[position])), float(projections[position]))
        for position in order
    )
    bias = float(sae.bias @ x) * scale
    residual = float((q - sae.decode(h_q)[0]) @ x) * scale + offset
    return Attribution(features, steering, bias, residual)
