"""The one path from a query to hits: embed, encode, steer, collect candidates, re-rank, explain."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sae_steer_retriever.concept import Concept, read_concept
from sae_steer_retriever.contrast import Contrast, checked_texts, contrast, names_of_passages, names_of_texts
from sae_steer_retriever.embedders import Embedder, as_embedder
from sae_steer_retriever.embedding_search import EmbeddingSearch
from sae_steer_retriever.errors import MismatchError
from sae_steer_retriever.explanation import Explanation
from sae_steer_retriever.features import FeatureCatalog
from sae_steer_retriever.hits import Hit, hits_of
from sae_steer_retriever.latent_index import LATENT_ENGINES, LatentEngine
from sae_steer_retriever.latent_search import LatentSearch
from sae_steer_retriever.passage_rank import locate, same_score
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
        # Names that a person changes mean something else from then on.
        self._resolved_at = catalog.revision

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
                the edited code and the passages' codes, all of them and the features' units damped: raised to the
                power .7 before anything is edited. Only passages that share a latent with the edited code are found,
                so there may be fewer than `k`, and none whose codes are not in the companion.
            where: Chroma's metadata filter.
            fetch_k: Candidates from each source before re-ranking; max(100, 4 k) if not given.
            side: For strengths that do not say: "query" tilts the query, "document" rewards passages that have the
                feature, "both" does both. If None: "document", but "query" in the reconstructed and latent spaces.
            drift_cap: Smallest cosine between the query and the tilted query (of damped codes with "latent").
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
        _check_query(query, space)
        k = _check_count("k", k)
        fetch_k = max(DEFAULT_FETCH_K, 4 * k) if fetch_k is None else _check_count("fetch_k", fetch_k)
        steering = self.resolve(steer, side=side, drift_cap=drift_cap, space=space)
        searching = self._searching(query, steering, space, where, embedding, explain=explain)
        ranking = searching.ranking(k, max(fetch_k, k))
        return hits_of(ranking, self.store.find(ranking.ids), searching.explain(ranking) if explain else None)

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
        _check_query(query, space)
        fetch_k = None if fetch_k is None else _check_count("fetch_k", fetch_k)
        given = hit if isinstance(hit, Hit) else None
        name = hit.id if isinstance(hit, Hit) else hit
        steering = self.resolve(steer, side=side, drift_cap=drift_cap, space=space)
        searching = self._searching(query, steering, space, where, embedding, explain=True)
        located = locate(searching, name, len(self.store), fetch_k)
        same = located is not None and (given is None or same_score(float(located[1].scores[0]), given.score))
        if given is not None and given.attribution is not None and not same:
            steered = bool(given.attribution.steering) or given.score != given.base_score
            return Explanation(query, given, steered=steered)
        if located is None:
            if not self.store.existing([name]):
                raise ValueError(f"no passage {name!r} in collection {self.store.documents.name!r}.")
            raise ValueError(
                f"passage {name!r} is not among the hits of this query: it ranks too low, shares no feature with it, "
                "or a filter or a suppressed feature leaves it out."
            )
        rank, alone = located
        if given is not None and not same:
            raise ValueError(
                f"hit {name!r} has the score {given.score:.4f}, with these options it is {float(alone.scores[0]):.4f}: "
                "give explain the query, steer, side and space of the search that found it."
            )
        if given is None or given.attribution is None:
            (given,) = hits_of(alone, self.store.find([name]), searching.explain(alone))
        return Explanation(query, given, rank=rank, space=space, steered=bool(steering.edits))

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
        revision = self.catalog.revision
        if self._resolved_at != revision:
            self._resolved, self._resolved_at = {}, revision
        resolved = self._resolved
        if name not in resolved:
            if len(resolved) >= _REMEMBERED:
                resolved.clear()
            resolved[name] = self.catalog.resolve(name, self.concept)
        return resolved[name]

    def concept(self, text: str) -> Concept:
        """A text as the SAE reads it."""
        embedding = self.embedder.embed_queries([text])
        return read_concept(self.sae, embedding[0])

    def contrast(
        self,
        positive: Sequence[str],
        negative: Sequence[str] = (),
        *,
        strength: float = 1.0,
        limit: int = 5,
        side: Side | None = None,
    ) -> Contrast:
        """A steering towards texts like some and unlike others, with its reasons; pass it as `steer=`.

        Args:
            positive: Texts to be like, two or three of one topic for instance.
            negative: Texts to be unlike; the corpus at large if there are none.
            strength: What the positives themselves would gain on average, in the units of `steer=`.
            limit: At most so many features towards the positives, and as many away from the negatives.
            side: Which side the steering acts on; "document" if not given.

        Raises:
            TypeError: Not lists of texts.
            ValueError: No positive text, an empty one, or a number out of range.
            SteeringError: No feature tells the texts apart.
        """
        names = [
            names_of_texts(self.sae, self.embedder, texts) if texts else None
            for texts in (checked_texts(positive, "positive"), checked_texts(negative, "negative"))
        ]
        return contrast(self.catalog, names[0], names[1], strength=strength, limit=limit, side=side)

    def from_examples(
        self,
        positive: Sequence[str],
        negative: Sequence[str] = (),
        *,
        strength: float = 1.0,
        limit: int = 5,
        side: Side | None = None,
    ) -> Contrast:
        """The same from passages of the store, by their ids: nothing is embedded.

        Args:
            positive: Ids of passages to be like.
            negative: Ids of passages to be unlike.
            strength: See `contrast`.
            limit: See `contrast`.
            side: See `contrast`.

        Raises:
            StoreError: An id is not in the collection.
            TypeError: Not lists of ids.
            ValueError: No positive id, or a number out of range.
            SteeringError: No feature tells the passages apart.
        """
        names = [
            names_of_passages(self.store, ids) if ids else None
            for ids in (checked_texts(positive, "positive"), checked_texts(negative, "negative"))
        ]
        return contrast(self.catalog, names[0], names[1], strength=strength, limit=limit, side=side)

    # -- inside -------------------------------------------------------------------------------------------------------

    def _searching(
        self,
        query: str,
        steering: Steering,
        space: Space,
        where: Metadata | None,
        embedding: Sequence[float] | Array | None,
        *,
        explain: bool,
    ) -> EmbeddingSearch | LatentSearch:
        """The query, embedded and, where anything needs it, encoded, ready to rank."""
        q = self.embedder.embed_queries([query])[0] if embedding is None else self._given_embedding(embedding)
        h_q = self.sae.encode(q[None]) if explain or steering.edits or space != "original" else None
        if space == "latent" and h_q is not None:
            return LatentSearch(self.store, self.catalog, steering, h_q, where, self.latent_engine)
        reconstructed = space == "reconstructed"
        return EmbeddingSearch(self.store, self.catalog, steering, q, h_q, where, reconstructed=reconstructed)

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


def _check_query(query: str, space: Space) -> None:
    if not isinstance(query, str):
        raise TypeError(f"query must be a text, got {type(query).__name__}.")
    if space not in SPACES:
        raise ValueError(f"space is {space!r}, expected one of {', '.join(SPACES)}.")


def _check_count(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name} is {value!r}: expected a whole number of at least 1.")
    return int(value)


__all__ = ["DEFAULT_FETCH_K", "SPACES", "Hit", "Space", "SteeredRetriever", "load_sae"]
