"""Attribution: a score as an exact sum over named features, steering, bias and an unexplained residual."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.sae.codes import Array, Codes
from sae_steer_retriever.sae.topk_sae import TopKSAE


class Contribution(NamedTuple):
    """One feature's part of a score.

    Attributes:
        feature: Latent id.
        label: The feature's display name.
        value: The part, in score units; may be negative.

    Example:
        >>> hit = retriever.search("wait for a thread to end", k=1)[0]
        >>> [f"{part.label}: {part.value:+.3f}" for part in hit.attribution.top(1)]
        ['...: +0...']
    """

    feature: int
    label: str
    value: float


class SteeringTerm(NamedTuple):
    """One edit's part of a score.

    Attributes:
        name: The edit's name, as the user wrote it.
        side: "query" for a query shift, "document" for a document boost.
        value: The part, in score units; may be negative.
    """

    name: str
    side: str
    value: float


@dataclasses.dataclass(frozen=True)
class Attribution:
    """The exact decomposition of one hit's score: `features + steering + bias + residual == score`.

    Attributes:
        features: The query's features, largest value first. A feature adds `h_f(q) (d_f . x)`. In the latent space the
            passage's features count: with `latent_score="match"` each adds `h_f(x) (d_f . q)`, with "dot" and "damped"
            the product of the two activations. All of them are divided as the score is.
        steering: One term per edit and side.
        bias: The decoder bias' part, `b_dec . x`; 0 for scores of codes.
        residual: The part of the query that the SAE does not reconstruct, `(q - q_hat) . x`; 0 in the latent space.

    Example:
        >>> hit = retriever.search("wait for a thread to end", k=1)[0]
        >>> abs(hit.attribution.total - hit.score) < 1e-4
        True
    """

    features: tuple[Contribution, ...]
    steering: tuple[SteeringTerm, ...]
    bias: float
    residual: float

    @property
    def total(self) -> float:
        """The sum of the parts: the score."""
        named = sum(part.value for part in self.features) + sum(term.value for term in self.steering)
        return named + self.bias + self.residual

    @property
    def unexplained(self) -> float:
        """The residual's share of the score; see `share`."""
        return self.share(self.residual)

    def share(self, *values: float) -> float:
        """Returns the absolute size of some parts, divided by the absolute size of all parts; in [0, 1]."""
        parts = [part.value for part in self.features] + [term.value for term in self.steering]
        whole = sum(map(abs, [*parts, self.bias, self.residual]))
        return sum(map(abs, values)) / whole if whole else 0.0

    def top(self, limit: int = 5) -> tuple[Contribution, ...]:
        """Returns the features with the largest contributions by absolute size."""
        return tuple(sorted(self.features, key=lambda part: -abs(part.value))[:limit])

    def to_dict(self, limit: int | None = None) -> dict[str, Any]:
        """Returns the parts as JSON-serialisable values.

        Args:
            limit: How many features to list, by absolute size; `other_features` has the sum of the others. If None,
                all features are listed.
        """
        shown = self.features if limit is None else self.top(limit)
        others = float(sum(part.value for part in self.features) - sum(part.value for part in shown))
        return {
            "features": [{"id": int(one), "label": label, "contribution": float(value)} for one, label, value in shown],
            **({} if limit is None else {"other_features": others}),
            "steering": [
                {"name": name, "side": side, "contribution": float(value)} for name, side, value in self.steering
            ],
            "bias": float(self.bias),
            "residual": float(self.residual),
            "unexplained": float(self.unexplained),
        }


class Explainer:
    """Decomposes the scores of one query's hits.

    `q . x = sum_f h_f(q) (d_f . x) + b_dec . x + (q - q_hat) . x`, everything times `scale`. The parts are computed
    from the vectors, not from the score, so their sum checks the score.
    """

    def __init__(self, q: Array, h_q: Codes[NDArray[Any]], sae: TopKSAE, name: Callable[[int], str]) -> None:
        """Prepares the query's part of the sums, once for all hits.

        `q` (d,) is the query's embedding, or its reconstruction in the reconstructed space, and `h_q` (1, K) its codes;
        `name` maps a latent id to its display name.
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
        """Returns the parts of one passage's score.

        Args:
            x: (d,) the passage's vector in the space that was searched.
            steering: The steering's terms, in score units.
            scale: The factor from dot products to scores: 1, or one over norms.
            offset: A constant part of the score (squared-distance collections have one); it joins the residual.
        """
        projections = (self._directions @ x) * scale
        order = np.argsort(-projections, kind="stable").tolist()
        values: list[float] = projections.tolist()
        latents, names = self._latents, self._names
        features = tuple([Contribution(latents[place], names[place], values[place]) for place in order])
        bias = float(self._bias @ x) * scale
        residual = float(self._unexplained @ x) * scale + offset
        return Attribution(features, steering, bias, residual)


class CodeExplainer:
    """Decomposes dot products and cosines of codes: `z_q . z_d = sum_f z_q[f] z_d[f]`, times `scale`.

    Bias and residual are 0. Codes are given as they are compared: as the SAE gives them, or power-normalised.
    """

    def __init__(self, h_q: Codes[NDArray[Any]], name: Callable[[int], str]) -> None:
        """Prepares `h_q` (1, K), the query's code before it is edited; `name` as in `Explainer`."""
        self._own = dict(zip(h_q.indices[0].tolist(), h_q.values[0].tolist(), strict=True))
        self._name = name

    def explain(
        self, codes: Codes[NDArray[Any]], steering: tuple[SteeringTerm, ...] = (), *, scale: float = 1.0
    ) -> Attribution:
        """Returns the parts of one passage's score: one per latent that query and passage share.

        Args:
            codes: (1, K) the passage's code.
            steering: The steering's terms, in score units.
            scale: 1 for a dot product; one over the norms of the passage's code and of the edited query's for a cosine.
        """
        parts = zip(codes.indices[0].tolist(), codes.values[0].tolist(), strict=True)
        shared = [(latent, self._own.get(latent, 0.0) * value * scale) for latent, value in parts]
        features = [Contribution(latent, self._name(latent), value) for latent, value in shared if value]
        return Attribution(tuple(sorted(features, key=lambda part: -part.value)), steering, 0.0, 0.0)


class PassageExplainer:
    """Decomposes cosines with reconstructions by the passage's features: `q . x_hat = sum_f h_f(x) (d_f . q) + b . q`.

    Everything is multiplied by `scale`; the residual is 0.
    """

    def __init__(self, q: Array, sae: TopKSAE, name: Callable[[int], str]) -> None:
        """Prepares the query (d,); `name` as in `Explainer`."""
        self._q = q
        self._decoder = sae.decoder
        self._bias = float(sae.bias @ q)
        self._name = name

    def explain(
        self, codes: Codes[NDArray[Any]], steering: tuple[SteeringTerm, ...] = (), *, scale: float = 1.0
    ) -> Attribution:
        """Returns the parts of one passage's score: one per latent of the passage.

        Args:
            codes: (1, K) the passage's code.
            steering: The steering's terms, in score units.
            scale: One over the lengths of the reconstruction and of the shifted query.
        """
        active = codes.values[0] > 0
        latents = codes.indices[0][active]
        values = (self._decoder[latents] @ self._q) * codes.values[0][active] * scale
        order = np.argsort(-values, kind="stable").tolist()
        features = tuple(
            Contribution(int(latents[at]), self._name(int(latents[at])), float(values[at])) for at in order
        )
        return Attribution(features, steering, self._bias * scale, 0.0)
