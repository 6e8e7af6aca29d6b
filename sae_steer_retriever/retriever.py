"""The one path from a query to hits: embed, encode, steer, collect candidates, re-rank, explain."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sae_steer_retriever.embedders import Embedder, as_embedder
from sae_steer_retriever.embedding_search import EmbeddingSearch
from sae_steer_retriever.errors import MismatchError
from sae_steer_retriever.features import Concept, FeatureCatalog
from sae_steer_retriever.hits import Hit, hits_of
from sae_steer_retriever.latent_index import LATENT_ENGINES, LatentEngine
from sae_steer_retriever.latent_search import LatentSearch
from sae_steer_retriever.sae import Array, TopKSAE, resolve_folder
from sae_steer_retriever.seismic_index import require_seismic
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

Space = Literal["original", "reconstructed", "latent"]
SPACES: tuple[Space, ...] = ("original", "reconstructed", "latent")
DEFAULT_FETCH_K = 100
# How many names' meanings are remembered.
_REMEMBERED = 4096


class SteeredRetriever:
    """Searches a `ChromaStore`, steers by named features, and explains every hit.

    Without steering the ids, their order and their scores are those of the plain collection.
    """

    def __init__(
        self, store: ChromaStore, embedder: Embedder, catalog: FeatureCatalog, *, latent_engine: LatentEngine = "exact"
    ) -> None:
        """Put the parts together; `open` loads them from where they are kept.

        Args:
            store: The passages.
            embedder: Embeds queries; the SAE's encoder.
            catalog: Names and units of the SAE's features.
            latent_engine: What searches in the latent space: "exact", or "seismic" for very large collections, which
                finds most of the nearest passages (`scale` extra).

        Raises:
            MismatchError: The embedder is not the SAE's encoder, or the catalog is another SAE's.
            ValueError: There is no such engine.
            MissingExtraError: The engine's package is not installed.
        """
        if latent_engine not in LATENT_ENGINES:
            raise ValueError(f"latent_engine is {latent_engine!r}, expected one of {', '.join(LATENT_ENGINES)}.")
        if latent_engine == "seismic":
            require_seismic()
        store.sae.config.encoder.require_same(embedder.spec, "the SAE", "the embedder")
        if catalog.fingerprint != store.sae.fingerprint:
            raise MismatchError(
                f"the catalog names the features of SAE {catalog.fingerprint}, the store has {store.sae.fingerprint}."
            )
        self.store = store
        self.embedder = embedder
        self.catalog = catalog
        self.latent_engine: LatentEngine = latent_engine
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
        latent_engine: LatentEngine = "exact",
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
            latent_engine: What searches in the latent space: "exact" or "seismic".
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
        return cls(store, embedder, catalog, latent_engine=latent_engine)

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
                code's decoded vector and the stored reconstructions, as in arXiv 2411.00786. "latent": cosine between
                the edited code and the passages' codes; only passages that share a latent with it are found, so there
                may be fewer than `k`, and none whose codes are not in the companion.
            where: Chroma's metadata filter.
            fetch_k: Candidates from each source before re-ranking; max(100, 4 k) if not given.
            side: For strengths that do not say: "query" tilts the query, "document" rewards passages that have the
                feature, "both" does both. If None: "document", but "query" in the reconstructed and latent spaces.
            drift_cap: Smallest cosine between the query and the tilted query (of codes in the latent space).
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
        h_q = self.sae.encode(q[None]) if explain or steering.edits or space != "original" else None
        searching: EmbeddingSearch | LatentSearch
        if space == "latent" and h_q is not None:
            searching = LatentSearch(self.store, self.catalog, steering, h_q, where, self.latent_engine)
        else:
            reconstructed = space == "reconstructed"
            searching = EmbeddingSearch(self.store, self.catalog, steering, q, h_q, where, reconstructed=reconstructed)
        ranking = searching.ranking(k, max(fetch_k, k))
        return hits_of(ranking, self.store.find(ranking.ids), searching.explain(ranking) if explain else None)

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
            side: For strengths that do not say. If None: "document", but "query" in the reconstructed and latent
                spaces, where editing the query's code is what the paper does.
            drift_cap: Smallest cosine between the query and the tilted query.
            space: Where it will be used.

        Raises:
            SteeringError: A strength or side is unusable.
            UnknownFeatureError: A name means no feature.
            AmbiguousFeatureError: A name means unrelated features.
        """
        side, drift_cap = check_side(side), check_drift_cap(drift_cap)
        if side is None and space != "original":
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
