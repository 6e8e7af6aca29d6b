"""Steering of what any retriever found: re-ranks texts, with or without a store that knows them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sae_steer_retriever.encoders.embedders import Embedder, unit_rows
from sae_steer_retriever.errors import MismatchError
from sae_steer_retriever.explain.attribution import Attribution, Explainer
from sae_steer_retriever.features.catalog import FeatureCatalog
from sae_steer_retriever.sae.codes import Array
from sae_steer_retriever.sae.topk_sae import TopKSAE
from sae_steer_retriever.search.ranking import Scorer, in_order
from sae_steer_retriever.steering.operations import Side, SteerLike
from sae_steer_retriever.steering.plan import plan
from sae_steer_retriever.steering.policy import DEFAULT_DRIFT_CAP, Steering
from sae_steer_retriever.steering.resolver import SteeringResolver
from sae_steer_retriever.store.reconstructions import Reconstructed
from sae_steer_retriever.store.store_reader import StoreReader


class Reranked(NamedTuple):
    """One text of a re-ranked list.

    Attributes:
        position: The text's place in the input, from 0.
        score: `q . x` plus the steering's terms; larger is better.
        base_score: `q . x`, the cosine of query and text.
        attribution: The parts of the score; None if `explain=False`.
    """

    position: int
    score: float
    base_score: float
    attribution: Attribution | None


class Reranker:
    """Orders texts by `q . x + v . y + document boosts`, as `SteeredRetriever` does in its original space.

    The terms are read on the texts' embeddings, or on the reconstructions of those that a store knows.

    Example:
        >>> from sae_steer_retriever import Reranker
        >>> ranking = Reranker(sae, embedder, catalog).rerank("wait for work", texts[:20], {"thread": 0.5})
        >>> ranking[0].score >= ranking[1].score
        True
    """

    def __init__(
        self,
        sae: TopKSAE,
        embedder: Embedder,
        catalog: FeatureCatalog,
        *,
        steering: SteerLike | Steering | None = None,
        store: StoreReader | None = None,
    ) -> None:
        """Puts the parts together.

        Args:
            sae: The SAE.
            embedder: The SAE's encoder.
            catalog: Names and units of the SAE's features.
            steering: A default steering; the steering of a call is laid over it, see `SteeredRetriever.resolve`.
            store: A store of the same SAE. Texts with the ids of its passages are not embedded: their vectors and
                reconstructions are read there.

        Raises:
            MismatchError: The embedder is not the SAE's encoder, or the catalog, store or default is another SAE's.
            SteeringError: The default is unusable; its names can be unknown or ambiguous, too.
        """
        self._resolver = SteeringResolver(sae, embedder, catalog, steering)
        if store is not None and store.sae.fingerprint != sae.fingerprint:
            raise MismatchError(f"the store is of SAE {store.sae.fingerprint}, the re-ranker of SAE {sae.fingerprint}.")
        self.sae = sae
        self._store = store
        self.embedder = embedder
        self.catalog = catalog

    def resolve(
        self, steer: SteerLike | Steering | None, *, side: Side | None = None, drift_cap: float = DEFAULT_DRIFT_CAP
    ) -> Steering:
        """Returns a steering with its features, checked; see `SteeredRetriever.resolve`.

        Raises:
            MismatchError: A `Steering` is another SAE's.
            SteeringError: A strength or side is unusable.
            UnknownFeatureError: A name means no feature.
            AmbiguousFeatureError: A name means unrelated features.
        """
        return self._resolver.steering(steer, side=side, drift_cap=drift_cap)

    def rerank(
        self,
        query: str,
        texts: Sequence[str],
        steer: SteerLike | Steering | None,
        *,
        side: Side | None = None,
        drift_cap: float = DEFAULT_DRIFT_CAP,
        explain: bool = True,
        embedding: Sequence[float] | Array | None = None,
        vectors: Sequence[Sequence[float] | Array | None] | None = None,
        ids: Sequence[str] | None = None,
        stored_as: Sequence[str] | None = None,
    ) -> list[Reranked] | None:
        """Returns texts in the order of their steered scores.

        Args:
            query: The question.
            texts: The texts to rank, as they are embedded.
            steer: See `SearchOptions`, as for `side`, `drift_cap`, `explain` and `embedding`.
            side: The side of strengths that do not name one.
            drift_cap: Smallest cosine between the query and the shifted query.
            explain: Whether the results carry their attribution.
            embedding: (d,) the query's embedding, if it is known.
            vectors: One per text: its embedding (d,), or None if it is unknown.
            ids: One per text: its id in the store, if there is one.
            stored_as: One per text: the text that the store holds, if it is not the one that was embedded. A text that
                the store holds in another version is embedded.

        Returns:
            The best first, without the texts that a `Suppress` excludes; texts with equal scores keep their order.
            None if the steering changes nothing for this query.

        Raises:
            TypeError: `query` is not a text.
            MismatchError: An embedding is of another encoder.
            SteeringError: A strength is unusable.
            UnknownFeatureError: A name means no feature; no text was embedded.
            AmbiguousFeatureError: A name means unrelated features.
        """
        if not isinstance(query, str):
            raise TypeError(f"query must be a text, got {type(query).__name__}.")
        steering = self.resolve(steer, side=side, drift_cap=drift_cap)
        if not steering.edits or not texts:
            return None
        q: Array
        if embedding is None:
            q = self.embedder.embed_queries([query])[0]
        else:
            q = unit_rows([embedding], self.sae.config.d)[0]
        h_q = self.sae.encode(q[None])
        steering = steering.for_query(h_q.truncate(self.sae.config.k_labels), self.catalog.calibration.unit)
        plan_ = plan(steering, q, h_q, self.sae, self.catalog.calibration)
        if plan_.is_empty:
            return None
        x, reconstructed = self._vectors(texts, vectors, ids, stored_as or texts)
        match = 1.0 if self._store is None else self._store.lengths().match
        scorer = Scorer(self.sae, plan_, self.catalog.calibration.match_unit, q, reconstructions=(1.0, match))
        offsets = np.zeros(len(x), dtype=np.float32)
        scored = scorer.score(x, offsets)
        if reconstructed.known.any():
            scored = scored.where(reconstructed.known, scorer.score(x, offsets, reconstructed.x_hat))
        explainer = Explainer(q, h_q, self.sae, self.catalog.name)
        # Ties are ordered by name: these names sort in the order given.
        order = in_order([f"{position:09d}" for position in range(len(texts))], scored)
        reranked = []
        for row in order:
            why = explainer.explain(x[row], scorer.named(scored.terms[:, row])) if explain else None
            reranked.append(Reranked(row, float(scored.scores[row]), float(scored.base_scores[row]), why))
        return reranked

    def _vectors(
        self,
        texts: Sequence[str],
        vectors: Sequence[Sequence[float] | Array | None] | None,
        ids: Sequence[str] | None,
        stored_as: Sequence[str],
    ) -> tuple[Array, Reconstructed]:
        """Returns the texts' embeddings, given, stored, or else made; and the reconstructions that the store has."""
        shape = (len(texts), self.sae.config.d)
        x, known = np.zeros(shape, dtype=np.float32), np.zeros(len(texts), dtype=bool)
        found = Reconstructed(np.zeros(shape, dtype=np.float32), np.zeros(len(texts), dtype=bool))
        given = [row for row, vector in enumerate(vectors or ()) if vector is not None]
        if vectors is not None and given:
            x[given], known[given] = unit_rows([vectors[row] for row in given], self.sae.config.d), True
        if self._store is not None and ids is not None:
            records = self._store.find(ids)
            rows = [row for row, name in enumerate(ids) if name in records and records[name].text == stored_as[row]]
            if rows:
                stored = np.array([records[ids[row]].vector for row in rows])
                x[rows], known[rows] = self._store.units_of(stored), True
                found.x_hat[rows], found.known[rows] = self._store.reconstructions([ids[row] for row in rows], stored)
        if not known.all():
            missing = np.nonzero(~known)[0].tolist()
            x[missing] = self.embedder.embed_documents([texts[row] for row in missing])
        return x, found
