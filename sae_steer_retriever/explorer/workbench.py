"""The state that the explorer's routes share: one retriever, the queries it has embedded, and a few worker threads."""

from __future__ import annotations

import functools
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, TypeVar

import anyio
import anyio.to_thread

from sae_steer_retriever.explain.explanation import Explanation
from sae_steer_retriever.explorer.page_data import edit_data, explanation_data, hit_data
from sae_steer_retriever.explorer.python_code import StoreAddress, address_of
from sae_steer_retriever.explorer.workbench_state import WorkbenchState, rows_of
from sae_steer_retriever.features.text_reading import Concept, read_concept
from sae_steer_retriever.search.query_cosine import QueryCosine, score_loss

if TYPE_CHECKING:
    from sae_steer_retriever.explain.hits import Hit
    from sae_steer_retriever.features.feature import Feature
    from sae_steer_retriever.retriever import SteeredRetriever
    from sae_steer_retriever.sae.codes import Array
    from sae_steer_retriever.steering.policy import Steering

_P = ParamSpec("_P")
_R = TypeVar("_R")

# A search holds Python's interpreter lock most of the time: more threads would only wait for each other.
_THREADS = 4
# How many embeddings, unsteered rankings and pages are remembered.
_EMBEDDINGS, _PLAIN, _PAGES = 512, 256, 1000


class Searched(NamedTuple):
    """A search, with its explanations made on request."""

    results: dict[str, Any]  # hits with and without steering, the features that the steering means, and its score loss
    explain: Callable[[], dict[str, Any]]  # makes the explanations of both lists


class LatestRequest:
    """The newest request of each page: older ones need no answer. Safe to share between threads."""

    def __init__(self) -> None:
        self._newest: OrderedDict[str, int] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, page: str, turn: int) -> None:
        """Notes a request of a page; `turn` grows with each one, and an older one that arrives late changes nothing."""
        with self._lock:
            self._newest[page] = max(turn, self._newest.pop(page, turn))
            while len(self._newest) > _PAGES:
                self._newest.popitem(last=False)

    def is_newest(self, page: str, turn: int) -> bool:
        """Whether no newer request of the page is known."""
        with self._lock:
            return turn >= self._newest.get(page, turn)


class Workbench:
    """A retriever as the explorer uses it: every figure equals the Python API's for the same steering.

    Args:
        retriever: The retriever to search.
        address: Where its store is, for the Python code that users copy; the store's own answer if not given.
        start: A page's first state; the retriever's default steering if not given.
    """

    def __init__(
        self, retriever: SteeredRetriever, *, address: StoreAddress | None = None, start: WorkbenchState | None = None
    ) -> None:
        default = retriever.steering
        # The rows on the page are the whole steering: a default beneath them would be invisible.
        self.retriever = retriever if default is None else retriever.with_steering(None)
        self.start = start or WorkbenchState()
        if start is None and default is not None:
            rows = tuple(rows_of(default, retriever.resolve_name))
            self.start = WorkbenchState(edits=rows, drift_cap=default.drift_cap)
        self.address = address_of(retriever.store) if address is None else address
        self.turns = LatestRequest()
        self.embedding = functools.lru_cache(maxsize=_EMBEDDINGS)(self._embedding)
        self.naming = threading.Lock()
        self._plain_hits: OrderedDict[Hashable, list[Hit]] = OrderedDict()
        self._remembering = threading.Lock()
        self._slots: anyio.CapacityLimiter | None = None

    async def run(self, work: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """Returns the result of work that is done in a thread, once one is free."""
        if self._slots is None:  # belongs to the event loop that serves
            self._slots = anyio.CapacityLimiter(max(1, min(_THREADS, os.cpu_count() or 1)))
        return await anyio.to_thread.run_sync(lambda: work(*args, **kwargs), limiter=self._slots)

    def concept(self, text: str) -> Concept:
        """Returns a text's code and direction, embedded once."""
        return read_concept(self.retriever.sae, self.embedding(text))

    def query_features(self, query: str) -> list[dict[str, Any]]:
        """Returns the label latents of a query, each with its activation in units."""
        catalog = self.retriever.catalog
        names = self.concept(query).codes.truncate(self.retriever.sae.config.k_labels)
        own = zip(names.indices[0].tolist(), names.values[0].tolist(), strict=True)
        return [
            {**feature_data(catalog[latent]), "strength": value / float(catalog.calibration.unit[latent])}
            for latent, value in own
            if value > 0
        ]

    def search(self, state: WorkbenchState, *, before: bool) -> Searched:
        """Returns the hits of a workbench; with `before` also those without steering.

        Raises:
            SAESteerError: The steering is unusable, or the store does not answer.
            ValueError: The query is empty.
        """
        if not state.query.strip():
            raise ValueError("the question is empty: type what you are looking for.")
        began = time.perf_counter()
        retriever, catalog = self.retriever, self.retriever.catalog
        steering = state.steering(retriever)
        embedding = self.embedding(state.query)
        options: dict[str, Any] = {"k": state.k, "space": state.space, "fetch_k": state.fetch_k, "embedding": embedding}
        conditional = any(edit.condition is not None for edit in steering.edits)
        applied = retriever.active_edits(steering, state.query, embedding=embedding) if conditional else steering
        after = retriever.search(state.query, steer=steering, **options)
        plain = self._plain(state, options, fresh=before) if applied.edits else after
        drift = QueryCosine(1.0, 1.0)
        if applied.edits:
            drift = retriever.query_cosine(state.query, steer=steering, space=state.space, embedding=embedding)
        lost = score_loss([hit.base_score for hit in plain], [hit.base_score for hit in after])
        results = {
            "hits": [hit_data(rank, hit) for rank, hit in enumerate(after, start=1)],
            "before": [hit_data(rank, hit) for rank, hit in enumerate(plain, start=1)] if before else None,
            "edits": [edit_data(edit, catalog, applied.edits) for edit in steering.edits],
            "drift": {**drift._asdict(), "lost": lost},
            "steered": bool(applied.edits),
            "milliseconds": 1000 * (time.perf_counter() - began),
        }

        def explain() -> dict[str, Any]:
            explained = _explained(state, after, steered=bool(applied.edits))
            return {"hits": explained, "before": _explained(state, plain, steered=False) if before else None}

        return Searched(results, explain)

    def rows(self, steering: Steering) -> list[dict[str, Any]]:
        """A resolved steering as the workbench's rows, as JSON data."""
        return [row.model_dump(mode="json") for row in rows_of(steering, self.retriever.resolve_name)]

    # -- inside -------------------------------------------------------------------------------------------------------

    def _embedding(self, query: str) -> Array:
        """The (d,) unit vector of a query; `embedding` remembers the latest."""
        vector: Array = self.retriever.embedder.embed_queries([query])[0]
        return vector

    def _plain(self, state: WorkbenchState, options: dict[str, Any], *, fresh: bool) -> list[Hit]:
        """The hits without steering; those of an earlier search, while a slider is moved."""
        key = (state.query, state.k, state.space, state.fetch_k)
        with self._remembering:
            found = None if fresh else self._plain_hits.get(key)
        if found is None:
            found = self.retriever.search(state.query, steer={}, **options)
            with self._remembering:
                self._plain_hits[key] = found
                while len(self._plain_hits) > _PLAIN:
                    self._plain_hits.popitem(last=False)
        return found


def feature_data(feature: Feature) -> dict[str, Any]:
    """A feature in a list."""
    return {
        "id": feature.id,
        "name": feature.name,
        "label": feature.label,
        "score": feature.label_score,
        "frequency": feature.frequency,
        "family": feature.family,
        "by": feature.label_by,
    }


def _explained(state: WorkbenchState, hits: list[Hit], *, steered: bool) -> dict[str, Any]:
    return {
        hit.id: explanation_data(Explanation(state.query, hit, rank=rank, space=state.space, steered=steered))
        for rank, hit in enumerate(hits, start=1)
    }
