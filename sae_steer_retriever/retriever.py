"""The front door: a retriever that opens a store, searches it, steers by named features, and explains every hit."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack, cast

from sae_steer_retriever.encoders.embedders import Embedder
from sae_steer_retriever.explain.explanation import Explanation
from sae_steer_retriever.explain.hits import Hit, Hits
from sae_steer_retriever.features.catalog import FeatureCatalog
from sae_steer_retriever.features.name_resolver import Resolution
from sae_steer_retriever.features.text_reading import Concept
from sae_steer_retriever.sae.codes import Array
from sae_steer_retriever.sae.files import resolve_folder
from sae_steer_retriever.sae.topk_sae import TopKSAE
from sae_steer_retriever.search.counterfactual import Counterfactual, find_counterfactual
from sae_steer_retriever.search.feedback import Feedback, autosteer
from sae_steer_retriever.search.options import (
    SearchKeywords,
    SearchOptions,
    Space,
    check_query,
    search_options,
)
from sae_steer_retriever.search.query import QuerySearch
from sae_steer_retriever.search.query_cosine import QueryCosine
from sae_steer_retriever.steering.from_examples import (
    Contrast,
    ContrastKeywords,
    checked_texts,
    contrast,
    labels_of_passages,
    labels_of_texts,
)
from sae_steer_retriever.steering.operations import Side, SteerLike, check_side
from sae_steer_retriever.steering.policy import DEFAULT_DRIFT_CAP, DEFAULT_SIDE, Steering
from sae_steer_retriever.steering.resolver import SteeringResolver
from sae_steer_retriever.store.batches import Metadata
from sae_steer_retriever.store.chroma_store import ChromaStore
from sae_steer_retriever.store.connection import connect
from sae_steer_retriever.store.recorded_sae import opened_sae
from sae_steer_retriever.store.store_reader import StoreReader

if TYPE_CHECKING:
    from chromadb.api import ClientAPI


class SteeredRetriever:
    """Searches a `ChromaStore`, steers by named features, and explains every hit.

    Without steering the ids, their order and their scores are those of the plain collection.

    Example:
        >>> hits = retriever.search("how do I wait for work in the background?", steer={"thread": 0.5})
        >>> print(retriever.explain("how do I wait for work in the background?", hits[0], steer={"thread": 0.5}))
        Query: how do I wait for work in the background?
        ...
    """

    def __init__(
        self,
        store: StoreReader,
        embedder: Embedder,
        catalog: FeatureCatalog,
        *,
        steering: SteerLike | Steering | None = None,
    ) -> None:
        """Puts the parts together; `open` loads them.

        Args:
            store: The passages.
            embedder: Embeds queries; the SAE's encoder.
            catalog: Names and units of the SAE's features.
            steering: A default steering, such as a tenant's policy; the steering of a call is laid over it.

        Raises:
            MismatchError: The embedder is not the SAE's encoder, or the catalog or the default is another SAE's.
            SteeringError: The default is unusable; its names can be unknown or ambiguous, too.
        """
        self._queries = QuerySearch(store, embedder, catalog)
        self._resolver = SteeringResolver(store.sae, embedder, catalog, steering)
        self.store = cast(ChromaStore, store)  # searches only read; a store opened for reading has no writers
        self.embedder = embedder
        self.catalog = catalog

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
        steering: SteerLike | Steering | None = None,
    ) -> SteeredRetriever:
        """Loads an SAE with its catalog and opens a store.

        Args:
            sae: The SAE's folder, its hub id, or the name of a bundled one. If None: the SAE that the collection was
                indexed with, else the bundled one for the encoder.
            embedding: Anything `as_embedder` takes; the SAE's own encoder if None.
            sae_k: Active latents per embedding; if None, as the collection was indexed, else as the SAE was fitted.
            path: Folder of an embedded Chroma.
            host: A Chroma server's host.
            port: Its port.
            client: A ready Chroma client.
            collection: Name of the documents collection.
            create: Whether to create the collection if it is absent.
            steering: A default steering; the steering of a call is laid over it.

        Returns:
            The retriever.

        Raises:
            ArtifactError: The SAE is damaged, or none was given and none is bundled for the encoder.
            MismatchError: The encoder, the SAE and the collection do not belong together.
            StoreError: The store does not answer.

        Example:
            >>> from sae_steer_retriever import SteeredRetriever
            >>> SteeredRetriever.open(path="./chroma", collection="handbook").search("holidays")
            []
        """
        if sae is not None:
            resolve_folder(sae)  # before a store is created for nothing
        client = client or connect(path=path, host=host, port=port)
        opened = opened_sae(sae, client=client, collection=collection, embedding=embedding, k=sae_k)
        catalog, embedder = FeatureCatalog.load(opened.folder, opened.sae.fingerprint), opened.embedder(embedding)
        store = ChromaStore.open(
            opened.sae, client=client, collection=collection, create=create, sae_location=opened.location
        )
        return cls(store, embedder, catalog, steering=steering)

    def with_steering(self, steering: SteerLike | Steering | None) -> SteeredRetriever:
        """Returns a retriever over the same store with another default steering, another user's for instance.

        Raises:
            MismatchError: The steering is another SAE's; for the other errors see `resolve`.
        """
        return type(self)(self.store, self.embedder, self.catalog, steering=steering)

    @property
    def sae(self) -> TopKSAE:
        """The SAE."""
        return self.store.sae

    @property
    def steering(self) -> Steering | None:
        """The default steering, resolved; None if there is none."""
        return self._resolver.default

    # -- search and explain -------------------------------------------------------------------------------------------

    def search(self, query: str, *, options: SearchOptions | None = None, **keywords: Unpack[SearchKeywords]) -> Hits:
        """Returns the passages that answer a query, steered.

        Args:
            query: The question.
            options: All options as one object.
            keywords: Single options: `k`, `steer`, `space`, `latent_score`, `where`, `fetch_k`, `side`, `drift_cap`,
                `explain`, `embedding` and `read_on`; see `SearchOptions`.

        Returns:
            At most `k` hits, best first.

        Raises:
            TypeError: `query` is not a text, or a keyword is not an option.
            ValueError: `k`, `fetch_k` or `space` is out of range, or the embedding is unusable.
            SteeringError: A strength is unusable.
            UnknownFeatureError: A name means no feature; nothing was embedded for the search.
            AmbiguousFeatureError: A name means unrelated features.
            StoreError: The store does not answer.

        Example:
            >>> hits = retriever.search("wait for a thread to end", k=2, steer={"lock": 0.5})
            >>> [hit.base_rank is None or hit.base_rank >= 1 for hit in hits]
            [True, True]
        """
        checked = search_options(options, keywords)
        return self._queries.search(check_query(query), self._steering_of(checked), checked)

    def explain(
        self,
        query: str,
        hit: Hit | str,
        *,
        options: SearchOptions | None = None,
        **keywords: Unpack[SearchKeywords],
    ) -> Explanation:
        """Returns why a passage ranks where it does: a sentence, a table, bars in a notebook.

        The same search looks for the passage, down to the 10,000th hit, so that low ranks can be explained, too. A
        hit's own attribution is used as it is; its rank is left out if these options give it another score.

        Args:
            query: The question.
            hit: A hit of `search`, or any passage's id.
            options: The options of the search that found it.
            keywords: Single options; see `SearchOptions`.

        Raises:
            TypeError: `query` is not a text, or `hit` is neither a hit nor an id.
            ValueError: The passage is not among the hits; or the hit has no attribution, and these options give it
                another score. For the other errors see `search`.
        """
        checked = search_options(options, keywords)
        return self._queries.explain(check_query(query), hit, self._steering_of(checked), checked)

    def query_cosine(
        self, query: str, *, options: SearchOptions | None = None, **keywords: Unpack[SearchKeywords]
    ) -> QueryCosine:
        """Returns how far a steering turns a query, and the share of the shift that the drift cap lets through.

        Args:
            query: The question.
            options: The options of the search.
            keywords: Single options; see `SearchOptions`.

        Example:
            >>> retriever.query_cosine("wait for a thread", steer={"lock": 0.5}).cosine <= 1
            True
        """
        checked = search_options(options, keywords)
        return self._queries.query_cosine(check_query(query), self._steering_of(checked), checked)

    def drift(self, query: str, **keywords: Unpack[SearchKeywords]) -> QueryCosine:
        """Returns `query_cosine`; the former name, until the next minor version."""
        warnings.warn("SteeredRetriever.drift is now SteeredRetriever.query_cosine", DeprecationWarning, stacklevel=2)
        return self.query_cosine(query, **keywords)

    def counterfactual(
        self,
        query: str,
        passage: Hit | str,
        rank: int = 1,
        *,
        features: str | int | Sequence[str | int] | None = None,
        k: int = 10,
        space: Space = "original",
        where: Metadata | None = None,
        side: Side | None = None,
        embedding: Sequence[float] | Array | None = None,
    ) -> Counterfactual:
        """Returns the smallest steering found that lifts a passage to a rank, verified by searching with it.

        Each feature is tried alone, then up to three together; a strength is exact to a hundredth of a unit. The
        default steering holds before and after. This takes some 50 to 200 searches.

        Args:
            query: The question.
            passage: A hit, or any passage's id.
            rank: The rank to reach, or better.
            features: Names or ids to try; the passage's own labelled features if None.
            k: The number of first hits whose score loss is reported.
            space: See `SearchOptions`, as for `where` and `embedding`.
            where: Chroma's metadata filter.
            side: The side that the steering acts on; "both" if None, in every space.
            embedding: The query's embedding.

        Raises:
            TypeError: `query` is not a text, or `passage` is neither a hit nor an id.
            ValueError: `rank`, `k` or `space` is out of range.
            StoreError: The passage is not in the collection.
            SteeringError: Nothing that was tried lifts it to that rank; the message says what was tried.
            UnknownFeatureError: A name means no feature.

        Example:
            >>> last = retriever.search("wait for a thread to end", k=5)[-1]
            >>> retriever.counterfactual("wait for a thread to end", last, rank=3).rank_after <= 3
            True
        """
        check_query(query)
        options = SearchOptions(k=k, space=space, where=where, embedding=embedding)
        side = check_side(side) or DEFAULT_SIDE
        candidates = None
        if features is not None:
            candidates = self._resolver.edits([features] if isinstance(features, str | int) else features, side)
        base = self.resolve(None, space=space)
        return find_counterfactual(
            self._queries, self.store, self.catalog, base, query, passage, rank, candidates, side, options
        )

    # -- steerings ----------------------------------------------------------------------------------------------------

    def resolve(
        self,
        steer: SteerLike | Steering | None,
        *,
        side: Side | None = None,
        drift_cap: float = DEFAULT_DRIFT_CAP,
        space: Space = "original",
    ) -> Steering:
        """Returns a steering with its features, checked, without a search.

        Args:
            steer: Feature -> strength or operation. It is laid over the default steering: it replaces the default's
                edits of the same names or features, 0 removes them, the others stay, and the stricter drift cap holds.
                `{}` asks for no steering at all; None means the default; a resolved `Steering` is used as it is.
            side: See `SearchOptions`, as for `drift_cap` and `space`.
            drift_cap: Smallest cosine between the query and the shifted query.
            space: The space that it will be used in.

        Raises:
            MismatchError: A `Steering` is another SAE's.
            SteeringError: A strength or side is unusable.
            UnknownFeatureError: A name means no feature.
            AmbiguousFeatureError: A name means unrelated features.

        Example:
            >>> [edit.asked for edit in retriever.resolve({"thread": 0.5, "#12": -0.4}).edits]
            ['+0.5', '-0.4']
        """
        if side is None and space != "original":
            side = "query"
        return self._resolver.steering(steer, side=side, drift_cap=drift_cap)

    def active_edits(
        self, steering: Steering, query: str, *, embedding: Sequence[float] | Array | None = None
    ) -> Steering:
        """Returns the part of a steering that applies to one query: without the edits whose condition it fails.

        Raises:
            MismatchError: The steering is another SAE's.
        """
        steering = steering.rebind(self.sae.config, self.sae.fingerprint)
        return self._queries.active_edits(steering, self._queries.encode_query(query, embedding))

    def applied(self, steering: Steering, query: str, *, embedding: Sequence[float] | Array | None = None) -> Steering:
        """Returns `active_edits`; the former name, until the next minor version."""
        warnings.warn("SteeredRetriever.applied is now SteeredRetriever.active_edits", DeprecationWarning, stacklevel=2)
        return self.active_edits(steering, query, embedding=embedding)

    def resolve_name(self, name: str | int) -> Resolution:
        """Returns the features that a name means in this SAE; answers are cached.

        Raises:
            UnknownFeatureError: It means no feature.
            AmbiguousFeatureError: It means unrelated features.

        Example:
            >>> retriever.resolve_name("#12").features
            (12,)
        """
        return self._resolver.features(name)

    def concept(self, text: str) -> Concept:
        """Returns a text as the SAE reads it: its embedding, its codes, and its cosines with all features.

        Example:
            >>> retriever.concept("thread").matches.shape == (retriever.sae.config.n,)
            True
        """
        return self._resolver.concept(text)

    def contrast(
        self,
        positive: Sequence[str],
        negative: Sequence[str] = (),
        *,
        strength: float = 1.0,
        **options: Unpack[ContrastKeywords],
    ) -> Contrast:
        """Returns a steering towards texts like some and unlike others, with its reasons; pass it as `steer=`.

        Args:
            positive: Texts to be like, such as two or three of one topic.
            negative: Texts to be unlike; the corpus at large if there are none.
            strength: The sum of the strengths over what the positives have on average, in the units of `steer=`.
            options: `limit`, the largest number of features for the positives and against the negatives (5), and
                `side`, the side that the steering acts on ("both").

        Raises:
            TypeError: Not lists of texts.
            ValueError: No positive text, an empty one, or a number out of range.
            SteeringError: No feature tells the texts apart.

        Example:
            >>> print(retriever.contrast(["wait for a thread", "a lock between threads"], limit=1))
             +...
        """
        liked, disliked = (
            labels_of_texts(self.sae, self.embedder, texts) if texts else None
            for texts in (checked_texts(positive, "positive"), checked_texts(negative, "negative"))
        )
        return contrast(self.catalog, liked, disliked, strength=strength, **options)

    def from_examples(
        self,
        positive: Sequence[str],
        negative: Sequence[str] = (),
        *,
        strength: float = 1.0,
        **options: Unpack[ContrastKeywords],
    ) -> Contrast:
        """Returns the `contrast` of passages of the store, by their ids: nothing is embedded.

        Args:
            positive: Ids of passages to be like.
            negative: Ids of passages to be unlike.
            strength: See `contrast`.
            options: See `contrast`.

        Raises:
            StoreError: An id is not in the collection; for the other errors see `contrast`.
        """
        liked, disliked = (
            labels_of_passages(self.store, ids) if ids else None
            for ids in (checked_texts(positive, "positive"), checked_texts(negative, "negative"))
        )
        return contrast(self.catalog, liked, disliked, strength=strength, **options)

    def autosteer(
        self,
        positive_ids: Sequence[str],
        negative_ids: Sequence[str] = (),
        *,
        query: str | None = None,
        strength: float = 1.0,
        **options: Unpack[ContrastKeywords],
    ) -> Feedback:
        """Returns a steering from feedback on hits: towards liked ones, away from those shown and not liked.

        Unlike `from_examples`, with `query` it ignores the features that hits share with the query, and tries the
        steering: under it the liked passages rise on average among that query's hits.

        Args:
            positive_ids: Ids of hits that were liked.
            negative_ids: Ids of hits that were shown and not liked.
            query: The question they were shown for.
            strength: See `contrast`; with `query` a half, a quarter and twice of it are tried, too.
            options: See `contrast`.

        Raises:
            StoreError: An id is not in the collection.
            TypeError: Not lists of ids, or `query` is not a text.
            ValueError: Nothing was liked, something was liked and not liked, or a number is out of range.
            SteeringError: No feature tells the passages apart, or no strength helps `query`.
        """
        return autosteer(
            self._queries,
            self.store,
            self.catalog,
            positive_ids,
            negative_ids,
            query,
            strength=strength,
            **options,
        )

    def _steering_of(self, options: SearchOptions) -> Steering:
        return self.resolve(options.steer, side=options.side, drift_cap=options.drift_cap, space=options.space)
