"""The options of a search: one frozen object behind every keyword signature, documented here once."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, TypedDict

import numpy as np

from sae_steer_retriever.explain.hits import ReadOn
from sae_steer_retriever.sae.codes import Array
from sae_steer_retriever.steering.operations import Side, SteerLike
from sae_steer_retriever.steering.policy import DEFAULT_DRIFT_CAP, Steering
from sae_steer_retriever.store.batches import Metadata

Space = Literal["original", "reconstructed", "latent"]
LatentScore = Literal["match", "dot", "damped"]
SPACES: tuple[Space, ...] = ("original", "reconstructed", "latent")
READ_ON: tuple[ReadOn, ...] = ("reconstruction", "vector")
LATENT_SCORES: tuple[LatentScore, ...] = ("match", "dot", "damped")
DEFAULT_FETCH_K = 50


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """The options of `SteeredRetriever.search`, `explain` and `query_cosine`, and of the framework adapters.

    Each may be given as a keyword, or all together as `options=SearchOptions(...)`; keywords win.

    Attributes:
        k: How many hits.
        steer: Feature -> strength or operation, laid over the default steering; or a resolved `Steering`, which is used
            as it is. `{}` turns steering off; None uses the default.
        space: "original" ranks by the plain score plus the steering's terms. "reconstructed" ranks by the cosine of the
            edited code's decoded vector with the stored reconstructions, as in arXiv 2411.00786. "latent" ranks by
            features, as `latent_score` says.
        latent_score: The score of the latent space. "match": the question as it is against the stored
            reconstructions. "dot": the dot product of the edited code with the passages' codes, as in arXiv
            2411.00786. "damped": their cosine, activations raised to the power .7. "dot" and "damped" keep all codes
            in memory, and find only passages that share a latent with the edited code and have a code in the sidecar
            collection, so there may be fewer than `k`.
        where: Chroma's metadata filter.
        fetch_k: Candidates in all that the first call to the store asks for, over its few lists of neighbours;
            max(50, 4 k) if None, and more for
            several edits.
        side: The side of strengths that do not name one: "query" shifts the query, "document" rewards passages that
            have the feature, "both" does half of each. If None: "both", but "query" in the reconstructed and latent
            spaces, as in the paper.
        drift_cap: Smallest cosine between the query and the shifted query, of their codes where codes are compared
            ("dot" and "damped"), in (0, 1].
        explain: Whether hits carry their attribution.
        embedding: (d,) the query's embedding, if it is known; scaled to unit norm.
        read_on: The vectors on which steering reads passages in the original space: "reconstruction" re-ranks the best
            3 k candidates (at most 300) by the reconstructions that the sidecar stores, "vector" reads the stored
            vectors alone, which is faster.

    Raises:
        ValueError: `k`, `fetch_k`, `space`, `latent_score` or `read_on` is out of range.

    Example:
        >>> from sae_steer_retriever import SearchOptions
        >>> options = SearchOptions(k=2, steer={"thread": 0.5})
        >>> len(retriever.search("how do I wait for work in the background?", options=options))
        2
    """

    k: int = 4
    steer: SteerLike | Steering | None = None
    space: Space = "original"
    latent_score: LatentScore = "match"
    where: Metadata | None = None
    fetch_k: int | None = None
    side: Side | None = None
    drift_cap: float = DEFAULT_DRIFT_CAP
    explain: bool = True
    embedding: Sequence[float] | Array | None = None
    read_on: ReadOn = "reconstruction"

    def __post_init__(self) -> None:
        if self.space not in SPACES:
            raise ValueError(f"space is {self.space!r}, expected one of {', '.join(SPACES)}.")
        if self.read_on not in READ_ON:
            raise ValueError(f"read_on is {self.read_on!r}, expected one of {', '.join(READ_ON)}.")
        if self.latent_score not in LATENT_SCORES:
            raise ValueError(f"latent_score is {self.latent_score!r}, expected one of {', '.join(LATENT_SCORES)}.")
        object.__setattr__(self, "k", check_count("k", self.k))
        if self.fetch_k is not None:
            object.__setattr__(self, "fetch_k", check_count("fetch_k", self.fetch_k))

    @property
    def candidates(self) -> int:
        """Candidates in all that the first call asks for."""
        return max(DEFAULT_FETCH_K, 4 * self.k) if self.fetch_k is None else max(self.fetch_k, self.k)


class SearchKeywords(TypedDict, total=False):
    """The fields of `SearchOptions`, as keywords."""

    k: int
    steer: SteerLike | Steering | None
    space: Space
    latent_score: LatentScore
    where: Metadata | None
    fetch_k: int | None
    side: Side | None
    drift_cap: float
    explain: bool
    embedding: Sequence[float] | Array | None
    read_on: ReadOn


_NAMES = tuple(field.name for field in dataclasses.fields(SearchOptions))


def search_options(options: SearchOptions | None, keywords: SearchKeywords) -> SearchOptions:
    """Returns `options`, or the defaults, with some of them replaced by keywords.

    Raises:
        TypeError: A keyword is not an option.
        ValueError: A value is out of range.
    """
    for name in keywords:
        if name not in _NAMES:
            raise TypeError(f"unexpected search option {name!r}: expected one of {', '.join(_NAMES)}.")
    return dataclasses.replace(options or SearchOptions(), **keywords)


def check_query(query: Any) -> str:  # noqa: ANN401 - user input
    """Returns the query.

    Raises:
        TypeError: `query` is not a text.
    """
    if not isinstance(query, str):
        raise TypeError(f"query must be a text, got {type(query).__name__}.")
    return query


def check_count(name: str, value: Any) -> int:  # noqa: ANN401 - user input
    """Returns a whole number of at least 1.

    Raises:
        ValueError: It is not one; the error calls it `name`.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name} is {value!r}: expected a whole number of at least 1.")
    return int(value)
