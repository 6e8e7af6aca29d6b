"""The one path from a query to hits: embed, encode, steer, collect candidates, re-rank, explain."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_steer_retriever.explain.explanation import Explanation
from sae_steer_retriever.features.loading import load_sae
from sae_steer_retriever.sae.bundled import recordable
from sae_steer_retriever.sae.codes import Array
from sae_steer_retriever.sae.files import resolve_folder
from sae_steer_retriever.search.hits import Hit, hits_of
from sae_steer_retriever.search.passage_explanation import explain_passage
from sae_steer_retriever.search.query import SPACES, Space, check_count, check_query
from sae_steer_retriever.search.query_drift import Drift, query_drift
from sae_steer_retriever.steerable import Steerable
from sae_steer_retriever.steering.policy import DEFAULT_DRIFT_CAP, Side, Steering, SteerLike
from sae_steer_retriever.store.batches import Metadata
from sae_steer_retriever.store.chroma_store import ChromaStore
from sae_steer_retriever.store.connection import connect
from sae_steer_retriever.store.recorded_sae import at_recorded_k, default_sae

if TYPE_CHECKING:
    from chromadb.api import ClientAPI

    from sae_steer_retriever.explorer.running import Explorer

DEFAULT_FETCH_K = 100


class SteeredRetriever(Steerable):
    """Searches a `ChromaStore`, steers by named features, and explains every hit.

    Without steering the ids, their order and their scores are those of the plain collection.
    """

    @classmethod
    def open(
        cls,
        sae: str | Path | None = None,
        *,
        embedding: Any = None,  # noqa: ANN401 - see as_embedder
        sae_k: int | None = None,
        path: str | Path | None = None,
        host: str | None = None,
        port: int = 8000,
        client: ClientAPI | None = None,
        collection: str = "docs",
        create: bool = True,
        latent_engine: str = "exact",
        steering: SteerLike | Steering | None = None,
    ) -> SteeredRetriever:
        """Load an SAE with its catalog and open a store.

        Args:
            sae: Folder of the SAE, its hub id, or the name of one that ships; if None, the one that the collection was
                indexed with, else the bundled one for the encoder.
            embedding: Anything `as_embedder` takes; the SAE's own encoder if not given.
            sae_k: Active latents per embedding; if None, as the collection was indexed, else as the SAE was fitted.
            path: Folder of an embedded Chroma.
            host: A Chroma server's host.
            port: Its port.
            client: A ready Chroma client.
            collection: Name of the documents collection.
            create: Whether to make it if it is absent.
            latent_engine: Deprecated; "exact" is the only engine.
            steering: A default that calls are laid over.

        Raises:
            ArtifactError: The SAE is damaged, or none was given and none ships for the encoder.
            MismatchError: The encoder, the SAE and the collection do not belong together.
            StoreError: The store does not answer.
        """
        if sae is not None:
            resolve_folder(sae)  # before a store is made for nothing
        client = client or connect(path=path, host=host, port=port)
        if sae is None:
            sae = default_sae(client, collection, embedding)
        loaded, catalog, embedder = load_sae(sae, embedding=embedding, k=sae_k)
        if sae_k is None:
            loaded = at_recorded_k(loaded, client, collection)
        store = ChromaStore.open(
            loaded, client=client, collection=collection, create=create, sae_location=recordable(sae)
        )
        return cls(store, embedder, catalog, latent_engine=latent_engine, steering=steering)

    def with_steering(self, steering: SteerLike | Steering | None) -> SteeredRetriever:
        """A retriever over the same store with another default steering, another user's for instance.

        Raises:
            MismatchError: The steering is another SAE's; for the other errors see `resolve`.
        """
        return type(self)(self.store, self.embedder, self.catalog, steering=steering)

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
            steer: Feature -> strength or operation, laid over the default steering, or a resolved `Steering`, which is
                taken as it is. `{}` means none at all; None means the default, and so none if there is none.
            space: "original": the plain score plus the steering's term. "reconstructed": cosine between the edited
                code's decoded vector and the stored reconstructions, as in arXiv 2411.00786. "latent": cosine between
                the edited code and the passages' codes, all of them and the features' units power-normalised: raised
                to the
                power .7 before anything is edited. Only passages that share a latent with the edited code are found,
                so there may be fewer than `k`, and none whose codes are not in the sidecar.
            where: Chroma's metadata filter.
            fetch_k: Candidates from each source before re-ranking; max(100, 4 k) if not given.
            side: For strengths that do not say: "query" query shifts the query, "document" rewards passages that have
                the feature, "both" does both. If None: "both", but "query" in the reconstructed and latent spaces.
            drift_cap: Smallest cosine between the query and the shifted query (of power-normalised codes with
                "latent").
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
        check_query(query, space)
        k = check_count("k", k)
        fetch_k = max(DEFAULT_FETCH_K, 4 * k) if fetch_k is None else check_count("fetch_k", fetch_k)
        steering = self.resolve(steer, side=side, drift_cap=drift_cap, space=space)
        read = self._queries.encode_query(
            query, embedding, encode=explain or bool(steering.edits) or space != "original"
        )
        searching = self._queries.prepare(steering, read, space, where)
        ranking, records = searching.search(k, max(fetch_k, k), vectors=explain)
        return hits_of(ranking, records, searching.explain(ranking) if explain else None)

    def explain(
        self,
        query: str,
        hit: Hit | str,
        *,
        steer: SteerLike | Steering | None = None,
        space: Space = "original",
        where: Metadata | None = None,
        fetch_k: int | None = None,
        side: Side | None = None,
        drift_cap: float = DEFAULT_DRIFT_CAP,
        embedding: Sequence[float] | Array | None = None,
    ) -> Explanation:
        """Why a passage ranks where it does, for a person: a sentence, a table, bars in a notebook.

        The passage is looked for by the same search, as far down as the 10,000th hit, so that also what ranks low can
        be asked about. An attribution that a hit has already is used as it is; its rank is left out if these options
        give it another score.

        Args:
            query: The question.
            hit: A hit of `search`, or any passage's id.
            steer: As for the search that found it, and so are the following.
            space: See `search`.
            where: See `search`.
            fetch_k: See `search`.
            side: See `search`.
            drift_cap: See `search`.
            embedding: See `search`.

        Raises:
            TypeError: `query` is not a text, or `hit` neither a hit nor an id.
            ValueError: The passage is not among the hits; or the hit has no attribution, and these options give it
                another score. Else as `search`.
        """
        if not isinstance(hit, Hit | str):
            raise TypeError(f"hit must be a Hit or a passage's id, got {type(hit).__name__}.")
        check_query(query, space)
        fetch_k = None if fetch_k is None else check_count("fetch_k", fetch_k)
        steering = self.resolve(steer, side=side, drift_cap=drift_cap, space=space)
        read = self._queries.encode_query(query, embedding)
        steered = bool(self._queries.active_edits(steering, read).edits)
        searching = self._queries.prepare(steering, read, space, where)
        return explain_passage(searching, self.store, query, hit, space=space, steered=steered, fetch_k=fetch_k)

    def drift(
        self,
        query: str,
        *,
        steer: SteerLike | Steering | None = None,
        space: Space = "original",
        side: Side | None = None,
        drift_cap: float = DEFAULT_DRIFT_CAP,
        embedding: Sequence[float] | Array | None = None,
    ) -> Drift:
        """How far a steering turns a query, and how much of it the drift cap lets through; see `search`."""
        check_query(query, space)
        steering = self.resolve(steer, side=side, drift_cap=drift_cap, space=space)
        read = self._queries.encode_query(query, embedding)
        applied = self._queries.active_edits(steering, read)
        assert read.code is not None  # noqa: S101 - `read` encodes unless it is told not to
        return query_drift(applied, read.embedding, read.code, self.sae, self.catalog.calibration, space=space)

    def explore(
        self,
        query: str = "",
        *,
        steer: SteerLike | Steering | None = None,
        port: int = 0,
        open_browser: bool = False,
        **options: Any,
    ) -> Explorer:
        """Open the explorer of this retriever on this machine, behind a notebook for instance (`explorer` extra).

        Args:
            query: What its bench begins with.
            steer: The steering that it begins with, as for `search`.
            port: Where; 0 takes a port that is free.
            open_browser: Whether to open a browser, too.
            options: `k`, `space`, `side`, `fetch_k` and `drift_cap` of `search`.

        Returns:
            The running server: `url` is its address, `close()` ends it.

        Raises:
            MissingExtraError: The extra is not installed.
            SAESteerError: The port is taken.
        """
        from sae_steer_retriever.explorer.running import explore

        return explore(self, query, steer=steer, port=port, open_browser=open_browser, **options)


__all__ = ["DEFAULT_FETCH_K", "SPACES", "Hit", "Space", "SteeredRetriever", "load_sae"]
