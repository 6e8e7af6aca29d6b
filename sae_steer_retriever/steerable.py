"""What can be steered: steerings by names, from examples and feedback, and for a passage that should rank higher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from sae_steer_retriever.encoders.embedders import Embedder
from sae_steer_retriever.features.catalog import FeatureCatalog
from sae_steer_retriever.features.text_reading import Concept
from sae_steer_retriever.sae.codes import Array
from sae_steer_retriever.sae.topk_sae import TopKSAE
from sae_steer_retriever.search.counterfactual import Counterfactual, CounterfactualSearch, own_edits
from sae_steer_retriever.search.feedback import Feedback, feedback, feedback_ids, tried_feedback, without_shared
from sae_steer_retriever.search.hits import Hit
from sae_steer_retriever.search.query import QuerySearch, Space, check_count, check_query
from sae_steer_retriever.steering.from_examples import (
    Contrast,
    checked_texts,
    contrast,
    names_of_passages,
    names_of_texts,
)
from sae_steer_retriever.steering.policy import (
    DEFAULT_DRIFT_CAP,
    DEFAULT_SIDE,
    Resolution,
    Side,
    Steering,
    SteerLike,
    check_side,
)
from sae_steer_retriever.steering.resolver import SteeringResolver
from sae_steer_retriever.store.batches import Metadata
from sae_steer_retriever.store.chroma_store import ChromaStore
from sae_steer_retriever.store.store_reader import StoreReader


class Steerable:
    """A store, an encoder and a catalog, and every way to a steering of them; `SteeredRetriever` searches them."""

    def __init__(
        self,
        store: StoreReader,
        embedder: Embedder,
        catalog: FeatureCatalog,
        *,
        latent_engine: str = "exact",
        steering: SteerLike | Steering | None = None,
    ) -> None:
        """Put the parts together; `open` loads them from where they are kept.

        Args:
            store: The passages.
            embedder: Embeds queries; the SAE's encoder.
            catalog: Names and units of the SAE's features.
            latent_engine: Deprecated; "exact" is the only engine.
            steering: A default, a tenant's policy for instance: what a call asks for is laid over it, see `resolve`.

        Raises:
            MismatchError: The embedder is not the SAE's encoder, or the catalog or the default is another SAE's.
            ValueError: There is no such engine.
            SteeringError: The default is unusable; its names can be unknown or ambiguous, too.
        """
        if latent_engine != "exact":
            raise ValueError(f"latent_engine is {latent_engine!r}: the exact engine is the only one; leave it out.")
        self.store = cast(ChromaStore, store)  # searches only read; a store opened for reading has no `add`
        self._queries = QuerySearch(self.store, embedder, catalog)
        self._resolver = SteeringResolver(store.sae, embedder, catalog, steering)
        self.embedder = embedder
        self.catalog = catalog

    @property
    def sae(self) -> TopKSAE:
        """The SAE."""
        return self.store.sae

    @property
    def steering(self) -> Steering | None:
        """The default steering, resolved; None if there is none."""
        return self._resolver.default

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
            steer: Feature -> strength or operation. It is laid over the default steering: it replaces the default's
                edits of the same names or features, 0 removes them, the others stay, and the stricter drift cap holds.
                `{}` asks for no steering at all; None means the default; a resolved `Steering` is taken as it is.
            side: For strengths that do not say. If None: "both", but "query" in the reconstructed and latent
                spaces, where editing the query's code is what the paper does.
            drift_cap: Smallest cosine between the query and the shifted query.
            space: Where it will be used.

        Raises:
            MismatchError: A `Steering` is another SAE's.
            SteeringError: A strength or side is unusable.
            UnknownFeatureError: A name means no feature.
            AmbiguousFeatureError: A name means unrelated features.
        """
        if side is None and space != "original":
            side = "query"
        return self._resolver.steering(steer, side=side, drift_cap=drift_cap)

    def active_edits(
        self, steering: Steering, query: str, *, embedding: Sequence[float] | Array | None = None
    ) -> Steering:
        """What a steering asks of one query: without the edits whose condition it fails.

        Raises:
            MismatchError: The steering is another SAE's.
        """
        steering = steering.rebind(self.sae.config, self.sae.fingerprint)
        return self._queries.active_edits(steering, self._queries.encode_query(query, embedding))

    def resolve_name(self, name: str | int) -> Resolution:
        """The features a name means in this SAE; answers are remembered."""
        return self._resolver.features(name)

    def concept(self, text: str) -> Concept:
        """A text as the SAE reads it."""
        return self._resolver.concept(text)

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
            strength: What the strengths sum to over what the positives have on average, in the units of `steer=`.
            limit: At most so many features towards the positives, and as many away from the negatives.
            side: Which side the steering acts on; "both" if not given.

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
        """`contrast` of passages of the store, by their ids: nothing is embedded.

        Raises:
            StoreError: An id is not in the collection; for the other errors see `contrast`.
        """
        liked, disliked = (
            names_of_passages(self.store, ids) if ids else None
            for ids in (checked_texts(positive, "positive"), checked_texts(negative, "negative"))
        )
        return contrast(self.catalog, liked, disliked, strength=strength, limit=limit, side=side)

    def autosteer(
        self,
        positive_ids: Sequence[str],
        negative_ids: Sequence[str] = (),
        *,
        query: str | None = None,
        strength: float = 1.0,
        limit: int = 5,
        side: Side | None = None,
    ) -> Feedback:
        """A steering from feedback on hits: towards those that were liked, away from those shown and not liked.

        Unlike `from_examples`, with `query` it leaves out the features that hits have because the query has them, and
        tries the steering: it is one under which the liked passages rise on average among that query's hits.

        Args:
            positive_ids: Ids of hits that were liked.
            negative_ids: Ids of hits that were shown and not liked.
            query: The question they were shown for.
            strength: See `contrast`, as for the next two; with `query` also a half, a quarter and twice are tried.
            limit: How many features.
            side: Which side the steering acts on.

        Raises:
            StoreError: An id is not in the collection.
            TypeError: Not lists of ids, or `query` is not a text.
            ValueError: Nothing was liked, something was and was not, or a number is out of range.
            SteeringError: No feature tells the passages apart, or steering by those that do does not help `query`.
        """
        ids, others = feedback_ids(positive_ids, negative_ids)
        liked = names_of_passages(self.store, ids)
        disliked = names_of_passages(self.store, others) if others else None
        options: dict[str, Any] = {"limit": limit, "side": side}
        if query is None:
            return feedback(self.catalog, liked, disliked, strength=strength, **options)
        check_query(query, "original")
        read = self._queries.encode_query(query)
        liked, disliked = without_shared(liked, disliked, read.names)
        return tried_feedback(
            lambda units: feedback(self.catalog, liked, disliked, strength=units, **options),
            lambda steering: self._queries.prepare(steering, read, "original", None),
            query,
            ids,
            strength,
        )

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
        """The smallest steering found that lifts a passage to a rank, verified by searching with it.

        Each feature is tried alone, then up to three together; a strength is exact to a hundredth of a unit. The
        default steering, if there is one, holds before and after. This takes some 50 to 200 searches.

        Args:
            query: The question.
            passage: A hit, or any passage's id.
            rank: What it should reach, or better.
            features: Names or ids to try; the passage's own if not given, those with a label.
            k: Of how many first hits the loss of plain score is told.
            space: See `search`, as for the rest.
            where: Chroma's metadata filter.
            side: Which side the steering acts on; "both" if not given, in every space.
            embedding: The query's embedding.

        Raises:
            TypeError: `query` is not a text, or `passage` neither a hit nor an id.
            ValueError: `rank`, `k` or `space` is out of range.
            StoreError: The passage is not in the collection.
            SteeringError: Nothing that was tried lifts it to that rank; it says what was tried.
            UnknownFeatureError: A name means no feature.
        """
        if not isinstance(passage, Hit | str):
            raise TypeError(f"passage must be a Hit or a passage's id, got {type(passage).__name__}.")
        check_query(query, space)
        rank, k = check_count("rank", rank), check_count("k", k)
        name = passage.id if isinstance(passage, Hit) else passage
        own = names_of_passages(self.store, [name])
        side = check_side(side) or DEFAULT_SIDE
        if features is None:
            candidates = own_edits(own, self.catalog, side)
        else:
            candidates = self._resolver.edits([features] if isinstance(features, str | int) else features, side)
        read = self._queries.encode_query(query, embedding)
        looking = CounterfactualSearch(
            lambda steering: self._queries.prepare(steering, read, space, where),
            self.resolve(None, space=space),
            query,
            name,
            passages=len(self.store),
            rank=rank,
            k=k,
        )
        return looking.find(candidates, self.catalog)


__all__ = ["Steerable"]
