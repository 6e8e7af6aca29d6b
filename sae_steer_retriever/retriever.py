"""The one path from a query to hits: embed, encode, steer, collect candidates, re-rank, explain."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.attribution import Attribution, Explainer
from sae_steer_retriever.candidates import CandidateSearch
from sae_steer_retriever.embedders import Embedder, as_embedder
from sae_steer_retriever.errors import MismatchError
from sae_steer_retriever.features import Concept, FeatureCatalog
from sae_steer_retriever.plan import plan
from sae_steer_retriever.ranking import Ranker, Ranking
from sae_steer_retriever.sae import Array, Codes, TopKSAE, resolve_folder
from sae_steer_retriever.steering import (
    DEFAULT_DRIFT_CAP,
    Resolution,
    Side,
    Steering,
    SteerLike,
    check_drift_cap,
    check_side,
    parse,
    resolve,
)
from sae_steer_retriever.store import ChromaStore, Metadata

if TYPE_CHECKING:
    from chromadb.api import ClientAPI

Space = Literal["original", "reconstructed"]
SPACES: tuple[Space, ...] = ("original", "reconstructed")
DEFAULT_FETCH_K = 100
# How many names' meanings are remembered.
_REMEMBERED = 4096


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
            raise MismatchError(
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
                feature, "both" does both. If None: "document", but "query" in the reconstructed space.
            drift_cap: Smallest cosine between the query and the tilted query.
            explain: Whether hits carry their attribution.
            embedding: (d,) the query's embedding, if it was made already; scaled to unit norm if it is not.

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
        k = _check_count("k", k)
        fetch_k = max(DEFAULT_FETCH_K, 4 * k) if fetch_k is None else _check_count("fetch_k", fetch_k)
        if space not in SPACES:
            raise ValueError(f"space is {space!r}, expected one of {', '.join(SPACES)}.")
        steering = self.resolve(steer, side=side, drift_cap=drift_cap, space=space)
        q = self.embedder.embed_queries([query])[0] if embedding is None else self._given_embedding(embedding)
        h_q = self.sae.encode(q[None]) if explain or steering.edits or space == "reconstructed" else None
        reconstructed = space == "reconstructed"
        vector = self.sae.decode(h_q)[0] if reconstructed and h_q is not None else q
        plan_ = None
        if steering.edits and h_q is not None:
            plan_ = plan(steering, vector, h_q, self.sae, self.catalog.calibration)
        if plan_ is None or plan_.is_empty:
            search = self.store.nearest_reconstructed if reconstructed else self.store.nearest
            ranking = Ranking.plain(*search(vector, k, where))
        else:
            ranker = Ranker(self.sae, self.catalog.calibration.unit, plan_, vector, reconstructed)
            ranking = CandidateSearch(self.store, ranker, where).ranking(k, max(fetch_k, k))
        shift = plan_.shift(len(q)) if plan_ is not None else np.zeros_like(q)
        return self._hits(ranking, vector, h_q if explain else None, shift, reconstructed)

    def resolve(
        self,
        steer: SteerLike | Steering | None,
        *,
        side: Side | None = None,
        drift_cap: float = DEFAULT_DRIFT_CAP,
        space: Space = "original",
    ) -> Steering:
        """Check a steering and find its features, without searching.

        Args:
            steer: Feature -> strength or operation, or a resolved `Steering`.
            side: For strengths that do not say. If None: "document", but "query" in the reconstructed space, where
                editing the query's code is what the paper does.
            drift_cap: Smallest cosine between the query and the tilted query.
            space: Where it will be used.

        Raises:
            SteeringError: A strength or side is unusable.
            UnknownFeatureError: A name means no feature.
            AmbiguousFeatureError: A name means unrelated features.
        """
        side, drift_cap = check_side(side), check_drift_cap(drift_cap)
        if side is None and space == "reconstructed":
            side = "query"
        if isinstance(steer, Steering):
            steer.require(self.sae.fingerprint)
            return steer
        return resolve(
            parse(steer), self.resolve_name, fingerprint=self.sae.fingerprint, side=side, drift_cap=drift_cap
        )

    def resolve_name(self, name: str | int) -> Resolution:
        """The features a name means in this SAE; answers are remembered."""
        if name not in self._resolved:
            if len(self._resolved) >= _REMEMBERED:
                self._resolved.clear()
            self._resolved[name] = self.catalog.resolve(name, self.concept)
        return self._resolved[name]

    def concept(self, text: str) -> Concept:
        """A text as the SAE reads it."""
        embedding = self.embedder.embed_queries([text])
        return Concept(embedding[0], self.sae.encode(embedding))

    # -- inside -------------------------------------------------------------------------------------------------------

    def _given_embedding(self, embedding: Sequence[float] | Array) -> Array:
        try:
            q = np.asarray(embedding, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise ValueError(f"embedding is no list of {self.sae.config.d} numbers: {error}.") from error
        if q.shape != (self.sae.config.d,) or not np.isfinite(q).all() or not q.any():
            raise ValueError(f"embedding has shape {q.shape}, expected ({self.sae.config.d},), finite and not zero.")
        norm = float(np.linalg.norm(q))
        # Scores and their decomposition assume unit queries; rounding alone is no reason to touch what was given.
        return q if abs(norm - 1.0) < 1e-5 else np.asarray(q / norm, dtype=np.float32)

    def _hits(
        self, ranking: Ranking, vector: Array, h_q: Codes[NDArray[Any]] | None, shift: Array, reconstructed: bool
    ) -> list[Hit]:
        records = self.store.find(ranking.ids)
        codes = self.store.codes(ranking.ids) if reconstructed and h_q is not None else None
        explainer = None if h_q is None else Explainer(vector, h_q, self.sae, self.catalog.name)
        hits = []
        for row, name in enumerate(ranking.ids):
            record = records.get(name)
            if record is None:  # deleted since it was found
                continue
            attribution = None
            if explainer is not None:
                x, scale, offset = record.vector, 1.0, record.offset
                if codes is not None:
                    x = self.sae.decode(Codes(codes.indices[row : row + 1], codes.values[row : row + 1]))[0]
                    scale, offset = 1.0 / float(np.linalg.norm(x) * np.linalg.norm(vector + shift)), 0.0
                attribution = explainer.explain(x, ranking.terms[row], scale=scale, offset=offset)
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


def _check_count(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name} is {value!r}: expected a whole number of at least 1.")
    return int(value)


__all__ = ["DEFAULT_FETCH_K", "SPACES", "Hit", "Space", "SteeredRetriever", "load_sae"]
