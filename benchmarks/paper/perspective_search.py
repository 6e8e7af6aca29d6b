"""Search for a perspective of a question: the top 5 before and after one feature is raised."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.encoders.embedders import Embedder
from sae_steer_retriever.errors import AmbiguousFeatureError, MismatchError, UnknownFeatureError
from sae_steer_retriever.evaluate.fidelity import decode_in_batches, encode_in_batches
from sae_steer_retriever.features.catalog import FeatureCatalog
from sae_steer_retriever.features.name_resolver import Resolution
from sae_steer_retriever.features.text_reading import Concept, read_concept
from sae_steer_retriever.sae.codes import Array, Codes
from sae_steer_retriever.sae.topk_sae import TopKSAE
from sae_steer_retriever.search.ranking import Scorer, in_order
from sae_steer_retriever.steering.plan import plan
from sae_steer_retriever.steering.policy import Steering, parse, resolve

from .manipulation import ReconstructedSearch

TOP = 5
"""Depth of the counts, as in the paper."""


class Change(NamedTuple):
    """The effect of a steering on a question's top 5.

    Attributes:
        before: (5,) rows of the passages found without it.
        after: (5,) rows of the passages found with it.
        cosine_loss: Relative fall of the mean query cosine: 1 - (mean cosine of question and top 5 after) / (the same
            of the plain search).
    """

    before: NDArray[np.int64]
    after: NDArray[np.int64]
    cosine_loss: float


class PerspectiveSearch:
    """Exact search of one collection, plain and steered by the name of a perspective.

    Attributes:
        sae: The dictionary.
        catalog: Its features.
        ids: N passage ids.
        vectors: (N, d) unit embeddings of the passages.
        codes: (N, K) their codes.
    """

    def __init__(
        self, sae: TopKSAE, catalog: FeatureCatalog, embedder: Embedder, ids: Sequence[str], vectors: Array
    ) -> None:
        """Encodes the passages.

        Args:
            sae: The dictionary.
            catalog: Its features.
            embedder: Its encoder, for questions and names.
            ids: N passage ids.
            vectors: (N, d) unit embeddings of the passages.

        Raises:
            MismatchError: Ids and embeddings differ in number.
        """
        if len(ids) != len(vectors):
            raise MismatchError(f"{len(vectors)} embeddings of {len(ids)} passages: expected one each.")
        self.sae, self.catalog, self.ids, self.vectors = sae, catalog, tuple(ids), vectors
        self._embedder = embedder
        self.codes: Codes[NDArray[Any]] = encode_in_batches(sae, vectors)

    def meant(self, words: str) -> Resolution | None:
        """Returns the features that a name means; None if it means none, or several unrelated ones."""
        try:
            return self.catalog.resolve(words, self._concept)
        except (UnknownFeatureError, AmbiguousFeatureError):
            return None

    def replaced(self, question: str, feature: int, strength: float) -> Change:
        """Returns the change by the paper's decode-replace: adds to a feature of the question's code and decodes it.

        Reconstructions are searched by cosine.

        Args:
            question: The question.
            feature: A latent.
            strength: In embedding units.
        """
        q = self._embedder.embed_queries([question])
        search = ReconstructedSearch(self._reconstructions, self.sae.decode(self.sae.encode(q)), "cosine")
        before, after = search.queries_changed(self.sae.decoder[[feature]], (0.0, strength))
        return self._change(q[0], before[0][:TOP], after[0][:TOP])

    def steered(self, question: str, steering: Steering) -> Change:
        """Returns the change by `SteeredRetriever.search(question, steer=steering, read_on="vector")`.

        Args:
            question: The question.
            steering: From `steering`.
        """
        q = self._embedder.embed_queries([question])
        base = (self.vectors @ q[0]).astype(np.float64)
        plain = np.lexsort((np.arange(len(base)), -base))[:TOP]
        h_q = self.sae.encode(q)
        unit = self.catalog.calibration.unit
        plan_ = plan(
            steering.for_query(h_q.truncate(self.sae.config.k_labels), unit),
            q[0],
            h_q,
            self.sae,
            self.catalog.calibration,
        )
        scorer = Scorer(self.sae, plan_, self.catalog.calibration.match_unit, q[0])
        scored = scorer.score(self.vectors, np.zeros(len(self.vectors), dtype=np.float32))
        return self._change(q[0], plain, np.array(in_order(self._places, scored)[:TOP]))

    def steering(self, words: str, meant: Resolution, strength: float) -> Steering:
        """Returns the steering that `steer={words: strength}` means.

        Args:
            words: A name.
            meant: Its features, from `meant`.
            strength: In units.
        """
        one = resolve(parse({words: 1.0}), lambda _: meant, fingerprint=self.sae.fingerprint)
        # Resolved at 1.0, as strengths past the useful range are deliberate here and need no warning.
        edits = tuple(dataclasses.replace(edit, strength=strength) for edit in one.edits)
        return dataclasses.replace(one, edits=edits)

    def named(self, feature: int) -> NDArray[np.bool_]:
        """Returns (N,) whether a feature is a label latent of each passage."""
        names = self.codes.truncate(self.sae.config.k_labels)
        return np.asarray(((names.indices == feature) & (names.values > 0)).any(axis=1))

    def near_label(self, feature: int) -> NDArray[np.bool_] | None:
        """Returns (N,) whether a passage's cosine with the feature's label is at least the median of the `named` ones.

        It is None if the feature is a label latent of no passage here, or its label was not embedded.
        """
        embeddings, named = self.catalog.label_embeddings, self.named(feature)
        if embeddings is None or not embeddings[feature].any() or not named.any():
            return None
        cosines = self.vectors @ embeddings[feature]
        return np.asarray(cosines >= np.median(cosines[named]))

    @cached_property
    def _places(self) -> list[str]:
        # Positions as names, so that ties keep the order of the passages.
        return [f"{row:09d}" for row in range(len(self.ids))]

    @cached_property
    def _reconstructions(self) -> Array:
        return decode_in_batches(self.sae, self.codes)

    def _concept(self, text: str) -> Concept:
        embedding = self._embedder.embed_queries([text])
        return read_concept(self.sae, embedding[0])

    def _change(self, q: Array, before: NDArray[np.int64], after: NDArray[np.int64]) -> Change:
        base = self.vectors @ q
        plain = float(np.sort(base)[-TOP:].mean())
        # No passages are nearer than those of the plain search: a value below 0 is rounding.
        lost = max(0.0, 1.0 - float(base[after].mean()) / plain) if plain > 0 else 0.0
        return Change(before, after, lost)
