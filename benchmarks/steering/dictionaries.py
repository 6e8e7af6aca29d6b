"""Steering by a dictionary: the product's way, the same with untrained dictionaries, and the paper's way."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sae_steer_retriever.errors import AmbiguousFeatureError, UnknownFeatureError
from sae_steer_retriever.features.calibration import Calibration, calibrate
from sae_steer_retriever.features.catalog import FeatureCatalog
from sae_steer_retriever.features.name_resolver import Resolution
from sae_steer_retriever.features.text_reading import Concept, read_concept
from sae_steer_retriever.labelling.gather_evidence import name_matches
from sae_steer_retriever.sae.codes import Array, Codes
from sae_steer_retriever.sae.config import SAEConfig
from sae_steer_retriever.sae.directions import data_directions, random_directions, spherical_kmeans
from sae_steer_retriever.sae.topk_sae import TopKSAE
from sae_steer_retriever.steering.document_boost import FeatureMatch
from sae_steer_retriever.steering.edit import Edit
from sae_steer_retriever.steering.operations import Side
from sae_steer_retriever.steering.plan import DocumentBoost, Plan, plan
from sae_steer_retriever.steering.policy import DEFAULT_SIDE, Steering

from .curve import SteeringMethod, Values
from .methods import WORDS, Signal
from .setting import SteeringSetting

DEFAULT_NAME, RANDOM_NAME = "SAE, default", "frozen random dictionary"
# In units of the product; stronger ones lose half of the query's score.
_STRENGTHS = np.array([0.0, *np.geomspace(0.04, 4.0, 35)])
# No drift cap: the loss is measured here, and a query shift stays the same for every query.
_NO_CAP = 1e-6
# An untrained dictionary has no labels: a concept means its nearest directions.
_NEAREST = 5
_CENTRES = 1024
# Untrained directions have no encoder: at least this many refinement steps turn projections into codes.
_REFINEMENT = 8
_BATCH = 2048


class Dictionary:
    """A dictionary with its units and the codes of all passages."""

    def __init__(
        self,
        sae: TopKSAE,
        setting: SteeringSetting,
        calibration: Calibration | float,
        codes: Codes[NDArray[Any]] | None = None,
    ) -> None:
        """Encodes the passages and the queries.

        Args:
            sae: The dictionary.
            setting: Passages, queries and concepts.
            calibration: Its units, or a score spread; with a spread the units are measured on these passages.
            codes: (N, K) codes of the passages; encoded if not given.
        """
        self.sae = sae
        self.setting = setting
        self.codes = encoded(sae, setting.vectors) if codes is None else codes
        self.queries = encoded(sae, setting.queries)
        if isinstance(calibration, Calibration):
            self.calibration = calibration
        else:
            names = self.codes.truncate(sae.config.k_labels)
            matches = [name_matches(sae, setting.vectors, names)]
            self.calibration = calibrate([names], sae.config.n, calibration, matches)
        self._gains: dict[Any, Array] = {}
        self._matches: dict[Any, Array] = {}

    @cached_property
    def decoded(self) -> Array:
        """Returns (N, d) reconstructions of the passages."""
        return self.sae.decode(self.codes)

    def on(self, setting: SteeringSetting) -> Dictionary:
        """Returns the same for other queries over the same passages."""
        other = copy.copy(self)
        other.setting, other.queries, other._gains = setting, encoded(self.sae, setting.queries), {}
        return other

    def on_vectors(self) -> Dictionary:
        """Returns the same with the steering's terms read on the passages' vectors, not on their reconstructions."""
        other = copy.copy(self)
        other.decoded, other._gains, other._matches = self.setting.vectors, {}, {}
        return other

    def gains(self, query: int, edits: tuple[Edit, ...]) -> Array:
        """Returns (N,) the addition of a steering to the score of every passage, by the product's own functions."""
        steering = Steering(edits, self.sae.fingerprint, _NO_CAP)
        h_q: Codes[NDArray[Any]] = Codes(
            self.queries.indices[query : query + 1], self.queries.values[query : query + 1]
        )
        q = self.setting.queries[query]
        found = plan(steering, q, h_q, self.sae, self.calibration)
        key = _key(found)
        if key not in self._gains:
            if len(self._gains) > 64:  # the next query repeats the strengths of a concept, later ones do not
                self._gains.pop(next(iter(self._gains)))
            shift = found.total_shift(len(q))
            gains = self.decoded @ shift if shift.any() else np.zeros(len(self.decoded), dtype=np.float32)
            for boost in found.boosts:
                gains += boost.amount * self._match(boost)
            self._gains[key] = gains
        return self._gains[key]

    def _match(self, boost: DocumentBoost) -> Array:
        """Returns (N,) the passages' match with the features of a document boost."""
        key = boost.features, boost.weights
        if key not in self._matches:
            match = FeatureMatch.of_features(self.sae, self.calibration.match_unit, *key)
            self._matches[key] = match.of(self.decoded).astype(np.float32)
        return self._matches[key]

    def concept(self, number: int) -> Concept:
        """Returns a concept of the setting in terms of this dictionary."""
        return read_concept(self.sae, self.setting.concepts[number])

    def nearest(self, number: int) -> Resolution:
        """Returns the directions with the largest cosines to a concept's embedding."""
        matches = self.concept(number).matches
        order = np.argsort(-matches, kind="stable")[:_NEAREST].tolist()
        best = [latent for latent in order if matches[latent] > 0] or order[:1]
        weights = tuple(float(matches[latent] / matches[best[0]]) for latent in best)
        return Resolution(tuple(best), weights, "meaning")


@dataclass(frozen=True)
class DictionarySteering:
    """The product's steering.

    Attributes:
        name: Name in the table.
        dictionary: The dictionary of the features.
        resolutions: C of them; None for a name that means no feature: such a concept is not steered.
        side: The side it acts on.
        needs: The input that a user has to give.
        why_not: Concept -> reason why its name means no feature.
    """

    name: str
    dictionary: Dictionary
    resolutions: tuple[Resolution | None, ...]
    side: Side = DEFAULT_SIDE
    needs: str = WORDS
    why_not: dict[int, str] = field(default_factory=dict)

    @property
    def strengths(self) -> Values:
        """Returns strengths in the product's units."""
        return _STRENGTHS

    def scores(self, query: int, concept: int, strength: float) -> Array:
        """Returns (N,) scores that the passages are ranked by."""
        base = self.dictionary.setting.base[query]
        edits = self.edits(concept, strength)
        return np.asarray(base + self.dictionary.gains(query, edits)) if edits else base

    def on(self, setting: SteeringSetting) -> DictionarySteering:
        """Returns the same for other queries over the same passages and concepts."""
        return replace(self, dictionary=self.dictionary.on(setting))

    def edits(self, concept: int, strength: float) -> tuple[Edit, ...]:
        """Returns the edits of a concept's name at a strength; none if the name means no feature."""
        resolution = self.resolutions[concept]
        if resolution is None or strength == 0:
            return ()
        name = self.dictionary.setting.words[concept]
        return (Edit(name, resolution.features, resolution.weights, "add", strength, self.side),)


def product(catalog: FeatureCatalog, dictionary: Dictionary) -> list[DictionarySteering]:
    """Returns the product's steering by name: first on its default side, then on the others.

    Args:
        catalog: Resolves the names.
        dictionary: The catalog's SAE.
    """
    resolutions: list[Resolution | None] = []
    why_not: dict[int, str] = {}
    for number, words in enumerate(dictionary.setting.words):
        try:
            resolutions.append(catalog.resolve(words, _reader(dictionary)))
        except (UnknownFeatureError, AmbiguousFeatureError) as error:
            resolutions.append(None)
            why_not[number] = str(error)
    sides: dict[Side, str] = {DEFAULT_SIDE: DEFAULT_NAME}
    sides |= {side: f"SAE, side={side}" for side in ("query", "both", "document") if side != DEFAULT_SIDE}
    found = tuple(resolutions)
    ways = [DictionarySteering(name, dictionary, found, side, why_not=why_not) for side, name in sides.items()]
    return [*ways, replace(ways[0], name="SAE, default, read on vectors", dictionary=dictionary.on_vectors())]


def dictionary_methods(dictionary: Dictionary) -> Iterator[SteeringMethod]:
    """Yields a query shift by the best row of a dictionary, and the paper's decode-replace (arXiv 2411.00786)."""
    sae, setting = dictionary.sae, dictionary.setting
    best = [int(dictionary.concept(number).matches.argmax()) for number in range(len(setting.words))]
    directions = sae.decoder[best]
    yield Signal("SAE, best single decoder row", WORDS, setting, np.ascontiguousarray(directions @ setting.vectors.T))
    x_hat = dictionary.decoded
    x_hat = x_hat / np.maximum(np.linalg.norm(x_hat, axis=1, keepdims=True), 1e-12)
    start = np.ascontiguousarray(sae.decode(dictionary.queries) @ x_hat.T)
    signals = np.ascontiguousarray(directions @ x_hat.T)
    yield Signal("SAE, decode-replace (the paper's)", WORDS, setting, signals, start=start)


def untrained_methods(dictionary: Dictionary, *, seed: int = 0) -> Iterator[DictionarySteering]:
    """Yields the product's steering with untrained dictionaries.

    Args:
        dictionary: The SAE's; gives the sizes and the spread of scores.
        seed: Seed of the random directions and of the start of k-means.
    """
    setting, sae = dictionary.setting, dictionary.sae
    generator = torch.Generator().manual_seed(seed)
    centred = torch.from_numpy(setting.vectors - setting.mean)
    points = torch.nn.functional.normalize(centred, dim=1)
    axes = torch.linalg.eigh(centred.T @ centred).eigenvectors.T.flip(0).contiguous()
    count = max(2, min(_CENTRES, len(points) // 8))
    rows = {
        RANDOM_NAME: random_directions(sae.config.n, sae.config.d, generator),
        # Codes are positive, so both ends of an axis are directions.
        "PCA directions": torch.cat([axes, -axes]),
        f"k-means directions (n = {count:,})": spherical_kmeans(points, data_directions(points, count, generator)),
    }
    for name, directions in rows.items():
        untrained = Dictionary(
            _plain(directions, setting.mean, sae.config), setting, dictionary.calibration.score_spread
        )
        resolutions = tuple(untrained.nearest(number) for number in range(len(setting.words)))
        yield DictionarySteering(name, untrained, resolutions)


def _plain(rows: torch.Tensor, mean: Array, like: SAEConfig) -> TopKSAE:
    """An SAE of these rows: TopK of centred projections, refined, since projections alone reconstruct nothing."""
    n, k = len(rows), min(like.k, len(rows) - 1)
    config = SAEConfig(
        d=like.d,
        n=n,
        k=k,
        k_labels=min(like.k_labels or k, k),
        refine_steps=max(like.refine_steps, _REFINEMENT),
        refine_candidates=like.refine_candidates,
        encoder=like.encoder,
    )
    return TopKSAE(rows, torch.zeros(n), rows, torch.from_numpy(mean), config)


def _reader(dictionary: Dictionary) -> Callable[[str], Concept]:
    def read(text: str) -> Concept:
        return read_concept(dictionary.sae, dictionary.setting.embedder.embed_queries([text])[0])

    return read


def encoded(sae: TopKSAE, vectors: Array) -> Codes[NDArray[Any]]:
    """Returns (N, K) codes, batch by batch.

    Args:
        sae: The dictionary.
        vectors: (N, d).
    """
    parts = [sae.encode(vectors[start : start + _BATCH]) for start in range(0, len(vectors), _BATCH)]
    return Codes(np.concatenate([part.indices for part in parts]), np.concatenate([part.values for part in parts]))


def _key(found: Plan) -> tuple[Any, ...]:
    return found.boosts, found.excluded, tuple(shift.vector.tobytes() for shift in found.shifts)
