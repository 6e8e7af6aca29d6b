"""Resolves what a user asks for to a steering of one SAE's features, laid over a default."""

from __future__ import annotations

from collections.abc import Iterable

from sae_steer_retriever.encoders.embedders import Embedder
from sae_steer_retriever.errors import MismatchError
from sae_steer_retriever.features.catalog import FeatureCatalog
from sae_steer_retriever.features.name_resolver import Resolution
from sae_steer_retriever.features.text_reading import Concept, read_concept
from sae_steer_retriever.sae.topk_sae import TopKSAE
from sae_steer_retriever.steering.edit import Edit
from sae_steer_retriever.steering.operations import Side, SteerLike, check_side
from sae_steer_retriever.steering.policy import DEFAULT_DRIFT_CAP, Steering, check_drift_cap, compose, parse, resolve

# How many names' features are cached.
_REMEMBERED = 4096


class SteeringResolver:
    """Reads `steer=`: names become features, and edits are laid over the default."""

    def __init__(
        self,
        sae: TopKSAE,
        embedder: Embedder,
        catalog: FeatureCatalog,
        default: SteerLike | Steering | None = None,
    ) -> None:
        """Takes the parts.

        Args:
            sae: The dictionary.
            embedder: Its encoder.
            catalog: The features' names.
            default: The steering of calls that ask for none.

        Raises:
            MismatchError: The embedder is not the SAE's encoder, or the catalog or the default is another SAE's.
            SteeringError: The default holds an unusable strength; its names can be unknown or ambiguous, too.
        """
        sae.config.encoder.require_same(embedder.spec, "the SAE", "the embedder")
        if catalog.fingerprint != sae.fingerprint:
            raise MismatchError(
                f"the catalog names the features of SAE {catalog.fingerprint}, the SAE given is {sae.fingerprint}."
            )
        self._sae = sae
        self._embedder = embedder
        self._catalog = catalog
        self._resolved: dict[str | int, Resolution] = {}
        self._resolved_at = catalog.revision
        self.default: Steering | None = None
        if default is not None:
            self.default = self.steering(default)

    def steering(
        self,
        steer: SteerLike | Steering | None,
        *,
        side: Side | None = None,
        drift_cap: float = DEFAULT_DRIFT_CAP,
    ) -> Steering:
        """Returns a steering, resolved.

        Args:
            steer: A mapping is laid over the default as `compose` does; `{}` asks for no steering at all; None means
                the default. A resolved `Steering`, of this SAE or the one it was adapted from, is used as it is.
            side: The side of strengths that do not name one.
            drift_cap: Smallest cosine between the query and the shifted query.

        Raises:
            MismatchError: `steer` is another SAE's.
            SteeringError: A strength, the side or the drift cap is unusable.
            UnknownFeatureError: A name means no feature.
            AmbiguousFeatureError: A name means unrelated features.
        """
        side, drift_cap = check_side(side), check_drift_cap(drift_cap)
        if isinstance(steer, Steering):
            return steer.rebind(self._sae.config, self._sae.fingerprint)
        if steer is None and self.default is not None:
            return self.default
        over = self.default if steer else None
        requests = parse(steer, removals=over is not None)
        asked = resolve(requests, self.features, fingerprint=self._sae.fingerprint, side=side, drift_cap=drift_cap)
        return asked if over is None else compose(over, asked)

    def edits(self, names: Iterable[str | int], side: Side | None) -> tuple[Edit, ...]:
        """Returns one unit of each of some features, without the default; for the errors see `features`."""
        steer = dict.fromkeys(names, 1.0)
        return resolve(parse(steer), self.features, fingerprint=self._sae.fingerprint, side=side).edits

    def features(self, name: str | int) -> Resolution:
        """Returns the features that a name means; answers are cached until the catalog changes.

        Raises:
            UnknownFeatureError: It means no feature.
            AmbiguousFeatureError: It means unrelated features.
        """
        revision = self._catalog.revision
        if self._resolved_at != revision:
            self._resolved, self._resolved_at = {}, revision
        resolved = self._resolved
        if name not in resolved:
            if len(resolved) >= _REMEMBERED:
                resolved.clear()
            resolved[name] = self._catalog.resolve(name, self.concept)
        return resolved[name]

    def concept(self, text: str) -> Concept:
        """Returns a text as the SAE reads it."""
        return read_concept(self._sae, self._embedder.embed_queries([text])[0])
