"""Why a passage has its score: an exact sum over named features, steering, bias and an unexplained rest."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.sae.codes import Array, Codes
from sae_steer_retriever.sae.topk_sae import TopKSAE


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
        side: "query" for a query shift, "document" for a document boost.
        value: In score units.
    """

    name: str
    side: str
    value: float


@dataclasses.dataclass(frozen=True)
class Attribution:
    """The exact decomposition of one hit's score: `features + steering + bias + residual == score`.

    Attributes:
        features: The query's own features, largest first: `h_f(q) (d_f . x)`; in the latent space those that the
            passage has too, the product of both power-normalised activations over the lengths of both power-normalised
            codes.
        steering: One term per edit and side.
        bias: The decoder bias' share, `b_dec . x`: what every query has in common. None in the latent space: 0.
        residual: What the SAE does not reconstruct of the query, `(q - q_hat) . x`: unexplained; 0 in the latent space.
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


class Explainer:
    """Decomposes the scores of one query's hits.

    `q . x = sum_f h_f(q) (d_f . x) + b_dec . x + (q - q_hat) . x`, everything times `scale`. The parts are computed
    from the vectors, not from the score, so their sum checks it.
    """

    def __init__(self, q: Array, h_q: Codes[NDArray[Any]], sae: TopKSAE, name: Callable[[int], str]) -> None:
        """Look at the query, once for all its hits.

        Args:
            q: (d,) the query's embedding, or its reconstruction in the reconstructed space.
            h_q: (1, K) the query's codes.
            sae: The dictionary.
            name: From a latent id to its display name.
        """
        active = h_q.values[0] > 0
        latents = h_q.indices[0][active]
        self._latents: list[int] = latents.tolist()
        self._names = [name(latent) for latent in self._latents]
        self._directions = sae.decoder[latents] * h_q.values[0][active][:, None]
        self._bias = sae.bias
        self._unexplained = q - self._directions.sum(axis=0) - sae.bias

    def explain(
        self, x: Array, steering: tuple[SteeringTerm, ...] = (), *, scale: float = 1.0, offset: float = 0.0
    ) -> Attribution:
        """Decompose one score on the query side.

        Args:
            x: (d,) the passage's vector in the space that was searched.
            steering: The steering's terms, already in score units.
            scale: What turns dot products into scores: 1, or one over norms.
            offset: What a score has beyond the dot product (squared-distance collections); joins the residual.
        """
        projections = (self._directions @ x) * scale
        order = np.argsort(-projections, kind="stable")
        places = order.tolist()
        features = tuple(
            map(
                Contribution,
                [self._latents[place] for place in places],
                [self._names[place] for place in places],
                projections[order].tolist(),
            )
        )
        bias = float(self._bias @ x) * scale
        residual = float(self._unexplained @ x) * scale + offset
        return Attribution(features, steering, bias, residual)


class CodeExplainer:
    """Decomposes cosines of codes: `z_q . z_d = sum_f z_q[f] z_d[f]`, times `scale`; nothing is left unexplained."""

    def __init__(self, h_q: Codes[NDArray[Any]], name: Callable[[int], str]) -> None:
        """Look at the query, once for all its hits.

        Args:
            h_q: (1, K) the query's code, before it is edited, as it is compared: power-normalised in the latent space.
            name: From a latent id to its display name.
        """
        self._own = dict(zip(h_q.indices[0].tolist(), h_q.values[0].tolist(), strict=True))
        self._name = name

    def explain(
        self, codes: Codes[NDArray[Any]], steering: tuple[SteeringTerm, ...] = (), *, scale: float = 1.0
    ) -> Attribution:
        """Decompose one score into the latents that query and passage share.

        Args:
            codes: (1, K) the passage's code, as it is compared.
            steering: The steering's terms, already in score units.
            scale: One over the lengths of the two codes, that of the query after its edits.
        """
        parts = zip(codes.indices[0].tolist(), codes.values[0].tolist(), strict=True)
        shared = [(latent, self._own.get(latent, 0.0) * value * scale) for latent, value in parts]
        features = [Contribution(latent, self._name(latent), value) for latent, value in shared if value]
        return Attribution(tuple(sorted(features, key=lambda part: -part.value)), steering, 0.0, 0.0)


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
    """Decompose one score; `Explainer` does it for several of the same query."""
    return Explainer(q, h_q, sae, name).explain(x, steering, scale=scale, offset=offset)
