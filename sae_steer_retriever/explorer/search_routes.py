"""The workbench's requests: a query's features, searches, passages, Python code, policies, counterfactuals."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from sae_steer_retriever import __version__
from sae_steer_retriever.errors import SAESteerError, quoted
from sae_steer_retriever.explorer.page_data import WHOLE, metadata_data, standard, text_data
from sae_steer_retriever.explorer.python_code import Framework, python_code
from sae_steer_retriever.explorer.workbench_state import LONGEST_QUERY, MOST_HITS, WorkbenchState
from sae_steer_retriever.steering.operations import LARGEST_STRENGTH
from sae_steer_retriever.steering.policy import USEFUL_STRENGTH, Steering

if TYPE_CHECKING:
    from sae_steer_retriever.explorer.workbench import Searched, Workbench

PassageId = Annotated[str, Field(min_length=1, max_length=2000)]


class Asked(BaseModel):
    """A request's body; an unknown field is an error, so that a misspelt one is not a silent default."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class QueryAsked(Asked):
    """A question."""

    query: str = Field(max_length=LONGEST_QUERY)


class StateAsked(Asked):
    """A workbench."""

    state: WorkbenchState


class SearchAsked(StateAsked):
    """A search; only the newest of a page's requests is answered."""

    before: bool = True
    page: str = Field(default="", max_length=100)
    turn: int = 0


class CodeAsked(StateAsked):
    """A workbench as Python code for a framework."""

    framework: Framework = "langchain"


class PolicyAsked(Asked):
    """The content of a policy file."""

    policy: str


class PassageAsked(Asked):
    """A passage."""

    id: PassageId


class LiftAsked(StateAsked, PassageAsked):
    """A passage that should rank higher."""

    rank: int = Field(default=1, ge=1, le=MOST_HITS)


def answer(content: Any, status: int = 200) -> JSONResponse:  # noqa: ANN401 - anything JSON can hold
    """A JSON response; NaN and infinity become null."""
    return JSONResponse(standard(content), status)


def search_routes(workbench: Workbench) -> APIRouter:
    """The workbench's routes."""
    router = APIRouter(prefix="/api")
    retriever = workbench.retriever

    @router.get("/about")
    async def about() -> JSONResponse:
        """The store, the SAE, the limits of requests, and the state to start with."""
        return answer(await workbench.run(_about, workbench))

    @router.post("/query")
    async def query(asked: QueryAsked) -> JSONResponse:
        """The label latents of a question."""
        found = await workbench.run(workbench.query_features, asked.query) if asked.query.strip() else []
        return answer({"features": found})

    @router.post("/search")
    async def search(asked: SearchAsked) -> Response:
        """Hits with and without steering as one line of JSON, then their explanations as another."""
        if asked.page:
            workbench.turns.take(asked.page, asked.turn)

        def work() -> Searched | None:
            # Checked when a thread is free, not when the request arrives.
            if asked.page and not workbench.turns.is_newest(asked.page, asked.turn):
                return None
            return workbench.search(asked.state, before=asked.before)

        searched = await workbench.run(work)
        return StreamingResponse(_lines(workbench, asked, searched), media_type="application/x-ndjson")

    @router.post("/passage")
    async def passage(asked: PassageAsked) -> JSONResponse:
        """A whole passage."""
        found = (await workbench.run(retriever.store.find, [asked.id], vectors=False)).get(asked.id)
        if found is None:
            raise SAESteerError(f"no passage {quoted(asked.id)} in the store: it was deleted since. Search again.")
        return answer({"id": asked.id, **text_data(found.text, WHOLE), "metadata": metadata_data(found.metadata)})

    @router.post("/code")
    async def code(asked: CodeAsked) -> JSONResponse:
        """The workbench's search as Python code."""
        text = await workbench.run(python_code, asked.state, retriever, workbench.address, asked.framework)
        return answer({"code": text})

    @router.post("/policy")
    async def policy(asked: StateAsked) -> JSONResponse:
        """The workbench's steering as the content of a policy file."""
        steering = await workbench.run(asked.state.steering, retriever)
        return answer({"policy": f"{steering.to_json()}\n"})

    @router.post("/policy/read")
    async def read_policy(asked: PolicyAsked) -> JSONResponse:
        """A policy file as the workbench's rows."""

        def work() -> dict[str, Any]:
            steering = Steering.from_json(asked.policy).rebind(retriever.sae.config, retriever.sae.fingerprint)
            return {"edits": workbench.rows(steering), "drift_cap": steering.drift_cap}

        return answer(await workbench.run(work))

    @router.post("/lift")
    async def lift(asked: LiftAsked) -> JSONResponse:
        """The smallest steering that lifts a passage to a rank, added to the workbench's own."""

        def work() -> dict[str, Any]:
            state = asked.state
            steered = retriever.with_steering(state.steering(retriever))
            found = steered.counterfactual(
                state.query, asked.id, asked.rank, space=state.space, embedding=workbench.embedding(state.query)
            )
            return {"sentence": str(found), "edits": workbench.rows(found.steering), "searches": found.searches}

        return answer(await workbench.run(work))

    return router


async def _lines(workbench: Workbench, asked: SearchAsked, searched: Searched | None) -> AsyncIterator[bytes]:
    if searched is None:
        yield _line({"kind": "superseded", "turn": asked.turn})
        return
    yield _line({"kind": "results", "turn": asked.turn, **searched.results})
    if asked.page and not workbench.turns.is_newest(asked.page, asked.turn):
        return
    try:
        reasons = await workbench.run(searched.explain)
    except SAESteerError as error:  # the answer has begun: its status cannot say so any more
        yield _line({"kind": "error", "turn": asked.turn, "error": str(error)})
        return
    yield _line({"kind": "reasons", "turn": asked.turn, **reasons})


def _line(content: dict[str, Any]) -> bytes:
    return json.dumps(standard(content), ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _about(workbench: Workbench) -> dict[str, Any]:
    retriever = workbench.retriever
    catalog = retriever.catalog
    return {
        "version": __version__,
        "collection": retriever.store.documents.name,
        "passages": len(retriever.store),
        "encoder": retriever.sae.config.encoder.name,
        "fingerprint": retriever.sae.fingerprint,
        "features": len(catalog),
        "labelled": len(catalog.labelled),
        "live": int((catalog.calibration.count > 0).sum()),
        "families": len(catalog.families),
        "largest_strength": LARGEST_STRENGTH,
        "useful_strength": USEFUL_STRENGTH,
        "most_hits": MOST_HITS,
        "start": workbench.start.model_dump(mode="json"),
    }
