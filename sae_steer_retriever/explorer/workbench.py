"""What the explorer's routes share: one retriever, the queries it has read, and a few threads to work in."""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, TypeVar

import anyio
import anyio.to_thread

from sae_steer_retriever.explain.explanation import Explanation
from sae_steer_retriever.explorer.latest_request import LatestRequest
from sae_steer_retriever.explorer.page_data import edit_data, explanation_data, hit_data
from sae_steer_retriever.explorer.python_code import StoreAddress, address_of
from sae_steer_retriever.explorer.query_embeddings import QueryEmbeddings
from sae_steer_retriever.explorer.workbench_state import EditState, WorkbenchState, rows_of
from sae_steer_retriever.features.text_reading import Concept, read_concept
from sae_steer_retriever.search.query_cosine import QueryCosine, score_loss

if TYPE_CHECKING:
    from sae_steer_retriever.explain.hits import Hit
    from sae_steer_retriever.features.feature import Feature
    from sae_steer_retriever.retriever import SteeredRetriever
    from sae_steer_retriever.steering.policy import Steering

_P = ParamSpec("_P")
_R = TypeVar("_R")

# Searches hold the interpreter most of their time: more threads than this would only wait for each other.
_THREADS = 4
# Unsteered rankings that are remembered.
_PLAIN = 256


class Searched(NamedTuple):
    """A search, and its reasons, which are worked out when they are asked for.

    Attributes:
        results: Hits with and without steering, what the steering means, and what it costs.
        explain: Makes the explanations of both lists.
    """

    results: dict[str, Any]
    explain: Callable[[], dict[str, Any]]


class Workbench:
    """A retriever as the explorer uses it: every figure is the Python API's for the same steering."""

    def __init__(
        self, retriever: SteeredRetriever, *, address: StoreAddress | None = None, start: WorkbenchState | None = None
    ) -> None:
        """Take a retriever.

        Args:
            retriever: What is searched.
            address: Where its store is, for code that is copied; as the store itself says if not given.
            start: What a page begins with; the retriever's default steering if not given.
        """
        default = retriever.steering
        # The rows of the bench are all there is: a default beneath them would be one that nobody sees.
        self.retriever = retriever if default is None else retriever.with_steering(None)
        self.start = start or WorkbenchState()
        if start is None and default is not None:
            self.start = WorkbenchState(edits=tuple(self.rows(default)), drift_cap=default.drift_cap)
        self.address = address_of(retriever.store) if address is None else address
        self.turns = LatestRequest()
        self.embeddings = QueryEmbeddings(retriever.embedder)
        self.naming = threading.Lock()
        self._plain_hits: OrderedDict[Hashable, list[Hit]] = OrderedDict()
        self._remembering = threading.Lock()
        self._slots: anyio.CapacityLimiter | None = None

    async def run(self, work: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """Do some work in a thread, when one is free."""
        if self._slots is None:  # belongs to the event loop that serves
            self._slots = anyio.CapacityLimiter(max(1, min(_THREADS, os.cpu_count() or 1)))
        return await anyio.to_thread.run_sync(lambda: work(*args, **kwargs), limiter=self._slots)

    # -- the query ----------------------------------------------------------------------------------------------------

    def concept(self, text: str) -> Concept:
        """A text as the SAE reads it, embedded once."""
        return read_concept(self.retriever.sae, self.embeddings.of(text))

    def query_features(self, query: str) -> list[dict[str, Any]]:
        """The features that a query is said to be about, with how many units of each it has."""
        catalog = self.retriever.catalog
        names = self.concept(query).codes.truncate(self.retriever.sae.config.k_labels)
        own = zip(names.indices[0].tolist(), names.values[0].tolist(), strict=True)
        return [
            {**feature_data(catalog[latent]), "strength": value / float(catalog.calibration.unit[latent])}
            for latent, value in own
            if value > 0
        ]

    # -- searching ----------------------------------------------------------------------------------------------------

    def search(self, state: WorkbenchState, *, before: bool) -> Searched:
        """What a bench shows.

        Args:
            state: The bench.
            before: Whether the hits without steering are wanted, too.

        Raises:
            SAESteerError: The steering is unusable, or the store does not answer.
            ValueError: The query is empty.
        """
        if not state.query.strip():
            raise ValueError("the question is empty: type what you are looking for.")
        began = time.perf_counter()
        retriever, catalog = self.retriever, self.retriever.catalog
        steering = state.steering(retriever)
        options: dict[str, Any] = {"k": state.k, "space": state.space, "fetch_k": state.fetch_k}
        options["embedding"] = self.embeddings.of(state.query)
        conditional = any(edit.condition is not None for edit in steering.edits)
        applied = (
            retriever.active_edits(steering, state.query, embedding=options["embedding"]) if conditional else steering
        )
        after = retriever.search(state.query, steer=steering, **options)
        plain = self._plain(state, options, fresh=before) if applied.edits else after
        drift = QueryCosine(1.0, 1.0)
        if applied.edits:
            drift = retriever.query_cosine(
                state.query, steer=steering, space=state.space, embedding=options["embedding"]
            )
        results = {
            "hits": [hit_data(rank, hit) for rank, hit in enumerate(after, start=1)],
            "before": [hit_data(rank, hit) for rank, hit in enumerate(plain, start=1)] if before else None,
            "edits": [edit_data(edit, catalog, applied.edits) for edit in steering.edits],
            "drift": {
                **drift._asdict(),
                "lost": score_loss([hit.base_score for hit in plain], [hit.base_score for hit in after]),
            },
            "steered": bool(applied.edits),
            "milliseconds": 1000 * (time.perf_counter() - began),
        }

        def explain() -> dict[str, Any]:
            explained = _explained(state, after, steered=bool(applied.edits))
            unsteered = _explained(state, plain, steered=False) if before else None
            return {"hits": explained, "before": unsteered}

        return Searched(results, explain)

    def _plain(self, state: WorkbenchState, options: dict[str, Any], *, fresh: bool) -> list[Hit]:
        """The hits without steering; while a knob is turned, those of its first turn."""
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

    def rows(self, steering: Steering) -> list[EditState]:
        """A resolved steering as the bench's rows."""
        return rows_of(steering, self.retriever.resolve_name)


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


__all__ = ["Workbench", "Searched", "feature_data"]
