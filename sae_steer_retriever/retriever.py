"""The one path from a query to hits: embed, encode, steer, collect candidates, re-rank, explain."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.attribution import Attribution, SteeringTerm, attribute
from sae_steer_retriever.embedders import Embedder, as_embedder
from sae_steer_retriever.errors import SteeringError
from sae_steer_retriever.features import Concept, FeatureCatalog
from sae_steer_retriever.sae import Array, Codes, TopKSAE, resolve_folder
from sae_steer_retriever.steering import (
    DEFAULT_DRIFT_CAP,
    SUPPRESSED_FROM,
    Plan,
    Resolution,
    Side,
    Steering,
    SteerLike,
    check_drift_cap,
    check_side,
    gate_presence,
    parse,
    plan,
    resolve,
)
from sae_steer_retriever.store import ChromaStore, Metadata, Neighbours

if TYPE_CHECKING:
    from chromadb.api import ClientAPI

Space = Literal["original", "reconstructed"]
SPACES: tuple[Space, ...] = ("original", "reconstructed")
DEFAULT_FETCH_K = 100
# Passages with a feature are gathered this many times over where a filter will leave some of them out.
_FILTER_MARGIN = 4
# How far the candidates of a negative gate or a suppression may be widened, in times the first pool.
_WIDEST = 16


@dataclasses.dataclass(frozen=True)
class Hit:
    """One retrieved passage.

    Attributes:
        id: The passage's id.
        text: The passage.
        metadata: The user's metadata.
        score: What it was ranked by: cosine similarity for unit embeddings, plus what the steering adds. Larger is
            better.
        base_score: Its score without steering.
        base_rank: Its rank without steering, from 1; None if it was not among the candidates of the plain search.
        attribution: Why it has this score; None if `explain=False`.
    """

    id: str
    text: str
    metadata: dict[str, Any]
    score: float
    base_score: float
    base_rank: int | None
    attribution: Attribution | None


class _Ranking(NamedTuple):
    """Candidates in their final order."""

    ids: list[str]
    scores: NDArray[np.float64]
    base_scores: NDArray[np.float64]
    base_ranks: list[int | None]
    terms: list[tuple[SteeringTerm, ...]]

    def top(self, k: int) -> _Ranking:
        return _Ranking(self.ids[:k], self.scores[:k], self.base_scores[:k], self.base_ranks[:k], self.terms[:k])


class SteeredRetriever:
    """Searches a `ChromaStore`, steers by named features, and explains every hit.

    Without steering the ids, their order and their scores are those of the plain collection.
    """

    def __init__(self, store: ChromaStore, embedder: Embedder, catalog: FeatureCatalog) -> None:
        """Put the parts together; `open` loads them from where they are kept.

        Raises:
            MismatchError: The embedder is not the SAE's encoder, or the catalog is another SAE's.
        """
        store.sae.config.encoder.require_same(embedder.spec, "the SAE", "the embedder")
        if catalog.fingerprint != store.sae.fingerprint:
            raise SteeringError(
                f"the catalog names the features of SAE {catalog.fingerprint}, the store has {store.sae.fingerprint}."
            )
        self.store = store
        self.embedder = embedder
        self.catalog = catalog
        self._resolved: dict[str | int, Resolution] = {}

    @classmethod
    def open(
        cls,
        sae: str | Path,
        *,
        embedding: Any = None,  # noqa: ANN401 - see as_embedder
        path: str | Path | None = None,
        host: str | None = None,
        port: int = 8000,
        client: ClientAPI | None = None,
        collection: str = "docs",
        create: bool = True,
    ) -> SteeredRetriever:
        """Load an SAE with its catalog and open a store.

        Args:
            sae: Folder of the SAE, or its hub id.
            embedding: Anything `as_embedder` takes; the SAE's own encoder if not given.
            path: Folder of an embedded Chroma.
            host: A Chroma server's host.
            port: Its port.
            client: A ready Chroma client.
            collection: Name of the documents collection.
            create: Whether to make it if it is absent.
        """
        loaded, catalog, embedder = load_sae(sae, embedding=embedding)
        location = str(Path(sae).resolve()) if Path(sae).is_dir() else str(sae)
        store = ChromaStore.open(
            loaded,
            path=path,
            host=host,
            port=port,
            client=client,
            collection=collection,
            create=create,
            sae_location=location,
        )
        return cls(store, embedder, catalog)

    @property
    def sae(self) -> TopKSAE:
        """The SAE."""
        return self.store.sae

    def search(
        self,
        query: str,
        *,
        k: int = 4,
        steer: SteerLike | Steering | None = None,
        space: Space = "original",
        where: Metadata | None = None,
        fetch_k: int | None = None,
        side: Side | None = None,
        drift_cap: float = DEFAULT_DRIFT_CAP,
        explain: bool = True,
        embedding: Sequence[float] | Array | None = None,
    ) -> list[Hit]:
        """The passages that answer a query, steered.

        Args:
            query: The question.
            k: How many hits.
            steer: Feature -> strength or operation, or a resolved `Steering`. None, {} and all-zero mean none.
            space: "original": the plain score plus the steering's term. "reconstructed": cosine between the edited
                code's decoded vector and the stored reconstructions, as in arXiv 2411.00786.
            where: Chroma's metadata filter.
            fetch_k: Candidates from each source before re-ranking; max(100, 4 k) if not given.
            side: For strengths that do not say: "query" tilts the query, "document" rewards passages that have the
                feature, "both" does both.
            drift_cap: Smallest cosine between the query and the tilted query.
            explain: Whether hits carry their attribution.
            embedding: (d,) the query's embedding, if it was made already.

        Returns:
            At most `k` hits, best first.

        Raises:
            TypeError: `query` is not a text.
            ValueError: `k`, `fetch_k` or `space` is out of range.
            SteeringError: A strength is unusable.
            UnknownFeatureError: A name means no feature; nothing was embedded for the search.
            AmbiguousFeatureError: A name means unrelated features.
            StoreError: The store does not answer.
        """
        if not isinstance(query, str):
            raise TypeError(f"query must be a text, got {type(query).__name__}.")
        _check_count("k", k)
        fetch_k = max(DEFAULT_FETCH_K, 4 * k) if fetch_k is None else fetch_k
        _check_count("fetch_k", fetch_k)
        if space not in SPACES:
            raise ValueError(f"space is {space!r}, expected one of {', '.join(SPACES)}.")
        steering = self.resolve(steer, side=side, drift_cap=drift_cap)
        q = self.embedder.embed_queries([query])[0] if embedding is None else self._given_embedding(embedding)
        h_q = self.sae.encode(q[None]) if explain or steering.edits or space == "reconstructed" else None
        reconstructed = space == "reconstructed"
        vector = self.sae.decode(h_q)[0] if reconstructed and h_q is not None else q
        plan_ = None
        if steering.edits and h_q is not None:
            plan_ = plan(steering, vector, h_q, self.sae, self.catalog.calibration)
        if plan_ is None or plan_.is_empty:
            ranking = self._plain(vector, k, where, reconstructed)
        else:
            ranking = self._steered(vector, plan_, k, max(fetch_k, k), where, reconstructed)
        shift = plan_.shift(len(q)) if plan_ is not None else np.zeros_like(q)
        return self._hits(ranking, vector, h_q if explain else None, shift, reconstructed)

    def resolve(
        self,
        steer: SteerLike | Steering | None,
        *,
        side: Side | None = None,
        drift_cap: float = DEFAULT_DRIFT_CAP,
    ) -> Steering:
        """Check a steering and find its features, without searching.

        Raises:
            SteeringError: A strength or side is unusable.
            UnknownFeatureError: A name means no feature.
            AmbiguousFeatureError: A name means unrelated features.
        """
        side, drift_cap = check_side(side), check_drift_cap(drift_cap)
        if isinstance(steer, Steering):
            steer.require(self.sae.fingerprint)
            return steer
        return resolve(
            parse(steer), self.resolve_name, fingerprint=self.sae.fingerprint, side=side, drift_cap=drift_cap
        )

    def resolve_name(self, name: str | int) -> Resolution:
        """The features a name means in this SAE; answers are remembered."""
        if name not in self._resolved:
            self._resolved[name] = self.catalog.resolve(name, self.concept)
        return self._resolved[name]

    def concept(self, text: str) -> Concept:
        """A text as the SAE reads it."""
        embedding = self.embedder.embed_queries([text])
        return Concept(embedding[0], self.sae.encode(embedding))

    # -- inside -------------------------------------------------------------------------------------------------------

    def _given_embedding(self, embedding: Sequence[float] | Array) -> Array:
        q = np.asarray(embedding, dtype=np.float32)
        if q.shape != (self.sae.config.d,) or not np.isfinite(q).all() or not q.any():
            raise ValueError(f"embedding has shape {q.shape}, expected ({self.sae.config.d},), finite and not zero.")
        return q

    def _plain(self, vector: Array, k: int, where: Metadata | None, reconstructed: bool) -> _Ranking:
        found = self._nearest(vector, k, where, reconstructed)
        ranks: list[int | None] = list(range(1, len(found.ids) + 1))
        return _Ranking(found.ids, found.scores, found.scores, ranks, [()] * len(found.ids))

    def _nearest(self, vector: Array, k: int, where: Metadata | None, reconstructed: bool) -> Neighbours:
        search = self.store.nearest_reconstructed if reconstructed else self.store.nearest
        return search(vector, k, where)

    def _steered(
        self, vector: Array, plan_: Plan, k: int, fetch_k: int, where: Metadata | None, reconstructed: bool
    ) -> _Ranking:
        widest = min(fetch_k * _WIDEST, max(len(self.store), 1))
        while True:
            base = self._nearest(vector, fetch_k, where, reconstructed)
            ranking = self._rank(vector, plan_, base, fetch_k, where, reconstructed)
            exhausted = len(base.ids) < fetch_k or fetch_k >= widest
            if exhausted or not _may_miss(plan_, ranking, base, k):
                return ranking.top(k)
            fetch_k = min(2 * fetch_k, widest)

    def _rank(
        self,
        vector: Array,
        plan_: Plan,
        base: Neighbours,
        fetch_k: int,
        where: Metadata | None,
        reconstructed: bool,
    ) -> _Ranking:
        shift = plan_.shift(len(vector))
        found = dict(zip(base.ids, base.scores.tolist(), strict=True))
        others: dict[str, None] = {}
        if shift.any():
            others |= dict.fromkeys(self._nearest(vector + shift, fetch_k, where, reconstructed).ids)
        others |= dict.fromkeys(self._having(vector, plan_, fetch_k * (_FILTER_MARGIN if where else 1)))
        missing = [name for name in others if name not in found]
        if reconstructed:
            base_of_missing = self._reconstructed_scores(vector, missing, where)
        else:
            base_of_missing = self.store.scores(vector, missing, where)
        found |= dict(zip(base_of_missing.ids, base_of_missing.scores.tolist(), strict=True))
        ids = list(found)
        codes = self.store.codes(ids)
        base_scores = np.array([found[name] for name in ids])
        terms, scores = self._score(vector, plan_, codes, base_scores, reconstructed)
        kept = np.ones(len(ids), dtype=bool)
        names = codes.leading(self.sae.config.k_names)
        for gate in plan_.excluded:
            kept &= gate_presence(gate, names, self.catalog.calibration.unit) < SUPPRESSED_FROM
        # Ties keep the plain order, then the id's, so that a ranking is the same on every machine.
        order = sorted(np.nonzero(kept)[0].tolist(), key=lambda row: (-scores[row], -base_scores[row], ids[row]))
        rank_of = {name: rank for rank, name in enumerate(base.ids, start=1)}
        return _Ranking(
            [ids[row] for row in order],
            scores[order],
            base_scores[order],
            [rank_of.get(ids[row]) for row in order],
            [terms[row] for row in order],
        )

    def _having(self, vector: Array, plan_: Plan, limit: int) -> list[str]:
        """The nearest passages that have a rewarded feature, by their reconstructions."""
        rewarded = [gate for gate in plan_.gates if gate.amount > 0]
        if not rewarded:
            return []
        index = self.store.index
        unit = self.catalog.calibration.unit
        features = {feature for gate in rewarded for feature in gate.features}
        rows = np.unique(np.concatenate([index.posting(feature) for feature in sorted(features)]))
        if not len(rows):
            return []
        codes = index.take(rows)
        scores = self._projections(codes, vector)
        names = codes.leading(self.sae.config.k_names)
        for gate in rewarded:
            scores = scores + gate.amount * gate_presence(gate, names, unit)
        best = np.argsort(-scores, kind="stable")[:limit]
        return [index.ids[rows[row]] for row in best]

    def _projections(self, codes: Codes[NDArray[Any]], vector: Array) -> Array:
        """(batch,) `x_hat . vector` from codes, without decoding: one dot product per latent, then K per passage."""
        along = self.sae.decoder @ vector
        return np.asarray((codes.values * along[codes.indices]).sum(axis=1) + self.sae.bias @ vector, dtype=np.float32)

    def _score(
        self,
        vector: Array,
        plan_: Plan,
        codes: Codes[NDArray[Any]],
        base_scores: NDArray[np.float64],
        reconstructed: bool,
    ) -> tuple[list[tuple[SteeringTerm, ...]], NDArray[np.float64]]:
        """Steering terms and scores of candidates.

        Original space: base + v . x_hat + gates. Reconstructed: cos(q_hat + v, x_hat) + gates.
        """
        scale = np.ones(len(base_scores))
        if reconstructed:
            lengths = np.linalg.norm(self.sae.decode(codes), axis=1)
            before, after = np.linalg.norm(vector), np.linalg.norm(vector + plan_.shift(len(vector)))
            scale = 1.0 / (lengths * after)
            scores = base_scores * (before / after)
        else:
            scores = base_scores.copy()
        columns: list[tuple[str, str, NDArray[np.float64]]] = []
        for tilt in plan_.tilts:
            if tilt.vector.any():
                columns.append((tilt.name, "query", self._projections(codes, tilt.vector) * scale))
        names = codes.leading(self.sae.config.k_names)
        for gate in plan_.gates:
            presence = gate_presence(gate, names, self.catalog.calibration.unit)
            columns.append((gate.name, "document", gate.amount * presence.astype(np.float64)))
        for _, _, values in columns:
            scores = scores + values
        terms = [
            tuple(SteeringTerm(name, side, float(values[row])) for name, side, values in columns)
            for row in range(len(scores))
        ]
        return terms, scores

    def _reconstructed_scores(self, vector: Array, ids: list[str], where: Metadata | None) -> Neighbours:
        if not ids:
            return Neighbours([], np.empty(0))
        if where is not None:
            ids = self.store.scores(vector, ids, where).ids
        found, scores = self.store.companion.nearest(vector, len(ids), ids)
        return Neighbours(found, scores.astype(np.float64))

    def _hits(
        self, ranking: _Ranking, vector: Array, h_q: Codes[NDArray[Any]] | None, shift: Array, reconstructed: bool
    ) -> list[Hit]:
        if not ranking.ids:
            return []
        records = self.store.records(ranking.ids)
        codes = self.store.codes(ranking.ids) if reconstructed and h_q is not None else None
        hits = []
        for row, (name, record) in enumerate(zip(ranking.ids, records, strict=True)):
            attribution = None
            if h_q is not None:
                x, scale, offset = record.vector, 1.0, record.offset
                if codes is not None:
                    x = self.sae.decode(Codes(codes.indices[row : row + 1], codes.values[row : row + 1]))[0]
                    scale, offset = 1.0 / float(np.linalg.norm(x) * np.linalg.norm(vector + shift)), 0.0
                attribution = attribute(
                    vector, h_q, x, ranking.terms[row], self.sae, self.catalog.name, scale=scale, offset=offset
                )
            hits.append(
                Hit(
                    id=name,
                    text=record.text,
                    metadata=record.metadata,
                    score=float(ranking.scores[row]),
                    base_score=float(ranking.base_scores[row]),
                    base_rank=ranking.base_ranks[row],
                    attribution=attribution,
                )
            )
        return hits


def load_sae(
    path: str | Path,
    *,
    embedding: Any = None,  # noqa: ANN401 - see as_embedder
) -> tuple[TopKSAE, FeatureCatalog, Embedder]:
    """An SAE, its catalog and its encoder, from the SAE's folder or hub id.

    Raises:
        ArtifactError: A file is missing or damaged.
        MismatchError: The given encoder is not the SAE's.
    """
    folder = resolve_folder(path)
    sae = TopKSAE.from_pretrained(folder)
    catalog = FeatureCatalog.load(folder, sae.fingerprint)
    embedder = as_embedder(sae.config.encoder.name if embedding is None else embedding)
    sae.config.encoder.require_same(embedder.spec, "the SAE", "the embedder")
    return sae, catalog, embedder


def _may_miss(plan_: Plan, ranking: _Ranking, base: Neighbours, k: int) -> bool:
    """Whether a passage beyond the plain candidates could outrank the last hit.

    Only for steerings that take away: what none of the candidates' sources has seen scores at most as much as the
    last plain candidate, unless something rewards it.
    """
    takes_away = bool(plan_.excluded) or any(gate.amount < 0 for gate in plan_.gates)
    if not takes_away or not base.ids:
        return False
    return len(ranking.ids) < k or bool(ranking.scores[k - 1] < base.scores[-1])


def _check_count(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r}: expected a whole number of at least 1.")


__all__ = ["DEFAULT_FETCH_K", "SPACES", "Hit", "Space", "SteeredRetriever", "load_sae"]
