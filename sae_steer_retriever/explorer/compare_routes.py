"""The compare page's requests: "this, not that" as a steering, and judged hits as one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import Field

from sae_steer_retriever.explorer.search_routes import Asked, PassageId, answer
from sae_steer_retriever.explorer.workbench_state import LONGEST_QUERY
from sae_steer_retriever.search.feedback import Feedback
from sae_steer_retriever.steering.operations import LARGEST_STRENGTH, Side

if TYPE_CHECKING:
    from sae_steer_retriever.explorer.workbench import Workbench
    from sae_steer_retriever.steering.from_examples import Contrast

_MOST_EXAMPLES = 100
Strength = Annotated[float, Field(gt=0, le=LARGEST_STRENGTH)]
Example = Annotated[str, Field(max_length=20_000)]


class ContrastAsked(Asked):
    """Texts to be like, and texts to be unlike."""

    positive: list[Example] = Field(max_length=_MOST_EXAMPLES)
    negative: list[Example] = Field(default_factory=list, max_length=_MOST_EXAMPLES)
    strength: Strength = 1.0
    limit: int = Field(default=5, ge=1, le=20)
    side: Side | None = None


class FeedbackAsked(Asked):
    """Hits that were judged."""

    query: str = Field(default="", max_length=LONGEST_QUERY)
    positive: list[PassageId] = Field(max_length=_MOST_EXAMPLES)
    negative: list[PassageId] = Field(default_factory=list, max_length=_MOST_EXAMPLES)
    strength: Strength = 1.0
    limit: int = Field(default=5, ge=1, le=20)
    side: Side | None = None


def compare_routes(workbench: Workbench) -> APIRouter:
    """The routes.

    Args:
        workbench: What they ask.
    """
    router = APIRouter(prefix="/api")
    retriever = workbench.retriever

    @router.post("/contrast")
    async def contrast(asked: ContrastAsked) -> JSONResponse:
        """A steering towards some texts and away from others, with its reasons."""
        found = await workbench.run(
            retriever.contrast,
            asked.positive,
            asked.negative,
            strength=asked.strength,
            limit=asked.limit,
            side=asked.side,
        )
        return answer(await workbench.run(_steering_data, workbench, found))

    @router.post("/autosteer")
    async def autosteer(asked: FeedbackAsked) -> JSONResponse:
        """A steering from judged hits, tried on their query."""
        found = await workbench.run(
            retriever.autosteer,
            asked.positive,
            asked.negative,
            query=asked.query or None,
            strength=asked.strength,
            limit=asked.limit,
            side=asked.side,
        )
        return answer(await workbench.run(_steering_data, workbench, found))

    return router


def _steering_data(workbench: Workbench, found: Contrast) -> dict[str, Any]:
    data = {**found.to_dict(), "edits": [row.model_dump(mode="json") for row in workbench.rows(found)]}
    if isinstance(found, Feedback):
        data |= {"ranks_before": list(found.ranks_before), "ranks_after": list(found.ranks_after)}
    return data


__all__ = ["compare_routes"]
