"""Steering without a store: re-ranks the texts that any retriever found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sae_steer_retriever.encoders.embedders import Embedder, unit_rows
from sae_steer_retriever.explain.attribution import Attribution, Explainer
from sae_steer_retriever.features.catalog import FeatureCatalog
from sae_steer_retriever.sae.codes import Array
from sae_steer_retriever.sae.topk_sae import TopKSAE
from sae_steer_retriever.search.ranking import Ranker
from sae_steer_retriever.steering.operations import Side, SteerLike
from sae_steer_retriever.steering.plan import plan
from sae_steer_retriever.steering.policy import DEFAULT_DRIFT_CAP, Steering
from sae_steer_retriever.steering.resolver import SteeringResolver


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
    """Orders texts by `q . x + v . x_hat + document boosts`, as `SteeredRetriever` does in its original space.

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
    ) -> None:
        """Puts the parts together.

        Args:
            sae: The SAE.
            embedder: The SAE's encoder.
            catalog: Names and units of the SAE's features.
            steering: A default steering; the steering of a call is laid over it, see `SteeredRetriever.resolve`.

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
        x = self._vectors(texts, vectors)
        # The ranker breaks ties by name: these names sort in the order given.
        names = [f"{position:09d}" for position in range(len(texts))]
        ranker = Ranker(self.sae, self.catalog.calibration.match_unit, plan_, q, reconstructed=False)
        ranking = ranker.rank(names, (x @ q).astype(np.float64), self.sae.encode(x), names)
        explainer = Explainer(q, h_q, self.sae, self.catalog.name)
        reranked = []
        for name, score, base_score, terms in zip(
            ranking.ids, ranking.scores.tolist(), ranking.base_scores.tolist(), ranking.terms, strict=True
        ):
            position = int(name)
            why = explainer.explain(x[position], terms) if explain else None
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
