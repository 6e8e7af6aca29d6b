"""Steering without a store: texts that any retriever found, put in a new order by the steering alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sae_steer_retriever.encoders.embedders import Embedder, unit_rows
from sae_steer_retriever.explain.attribution import Attribution, attribute
from sae_steer_retriever.features.catalog import FeatureCatalog
from sae_steer_retriever.sae.codes import Array
from sae_steer_retriever.sae.topk_sae import TopKSAE
from sae_steer_retriever.search.ranking import Ranker
from sae_steer_retriever.steering.plan import plan
from sae_steer_retriever.steering.policy import DEFAULT_DRIFT_CAP, Side, Steering, SteerLike
from sae_steer_retriever.steering.resolver import SteeringResolver


class Reranked(NamedTuple):
    """A text in its new place.

    Attributes:
        position: Where it was among the texts given, from 0.
        score: `q . x` plus what the steering adds; larger is better.
        base_score: `q . x`, the cosine of query and text.
        attribution: Why it has this score; None if `explain=False`.
    """

    position: int
    score: float
    base_score: float
    attribution: Attribution | None


class Reranker:
    """Orders texts by `q . x + v . x_hat + document boosts`, as `SteeredRetriever` does in its original space."""

    def __init__(
        self,
        sae: TopKSAE,
        embedder: Embedder,
        catalog: FeatureCatalog,
        *,
        steering: SteerLike | Steering | None = None,
    ) -> None:
        """Put the parts together.

        Args:
            sae: The dictionary.
            embedder: Its encoder.
            catalog: Names and units of its features.
            steering: A default: what a call asks for is laid over it, see `SteeredRetriever.resolve`.

        Raises:
            MismatchError: The embedder is not the SAE's encoder, or the catalog or the default is another SAE's.
            SteeringError: The default is unusable; its names can be unknown or ambiguous, too.
        """
        self._resolver = SteeringResolver(sae, embedder, catalog, steering)
        self.sae = sae
        self.embedder = embedder
        self.catalog = catalog

    def resolve(
        self, steer: SteerLike | Steering | None, *, side: Side | None = None, drift_cap: float = DEFAULT_DRIFT_CAP
    ) -> Steering:
        """Check a steering and find its features; see `SteeredRetriever.resolve`.

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
    ) -> list[Reranked] | None:
        """Put texts in the order the steering asks for.

        Args:
            query: The question.
            texts: The texts, as they are to be embedded.
            steer: Feature -> strength or operation, or a resolved `Steering`.
            side: For strengths that do not say; see `SteeredRetriever.search`.
            drift_cap: Smallest cosine between the query and the shifted query.
            explain: Whether to attribute the scores.
            embedding: (d,) the query's embedding, if it was made already.
            vectors: For each text its embedding (d,) if it was made already, else None.

        Returns:
            Best first, without the texts that a `Suppress` leaves out; ties stay in the order given. None if the
            steering changes nothing for this query: then the order given stands.

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
        x = self._vectors(texts, vectors)
        # Names in the order given, so that ties keep it.
        names = [f"{position:09d}" for position in range(len(texts))]
        ranker = Ranker(self.sae, self.catalog.calibration.match_unit, plan_, q, reconstructed=False)
        ranking = ranker.rank(names, (x @ q).astype(np.float64), self.sae.encode(x), names)
        reranked = []
        for name, score, base_score, terms in zip(
            ranking.ids, ranking.scores.tolist(), ranking.base_scores.tolist(), ranking.terms, strict=True
        ):
            position = int(name)
            why = attribute(q, h_q, x[position], terms, self.sae, self.catalog.name) if explain else None
            reranked.append(Reranked(position, score, base_score, why))
        return reranked

    def _vectors(self, texts: Sequence[str], vectors: Sequence[Sequence[float] | Array | None] | None) -> Array:
        known = dict(enumerate(vectors)) if vectors is not None else {}
        x = np.empty((len(texts), self.sae.config.d), dtype=np.float32)
        missing = [row for row in range(len(texts)) if known.get(row) is None]
        if missing:
            x[missing] = self.embedder.embed_documents([texts[row] for row in missing])
        given = [row for row in range(len(texts)) if known.get(row) is not None]
        if given:
            x[given] = unit_rows([known[row] for row in given], self.sae.config.d)
        return x


__all__ = ["Reranked", "Reranker"]
