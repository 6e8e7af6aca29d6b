"""The compare page's requests: a steering from texts to be like and unlike, and one from judged hits."""

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
    from collections.abc import Callable

    from sae_steer_retriever.explorer.workbench import Workbench
    from sae_steer_retriever.steering.from_examples import Contrast

_MOST_EXAMPLES = 100
Example = Annotated[str, Field(max_length=20_000)]


class ExamplesAsked(Asked):
    """The options of a steering from examples."""

    strength: float = Field(default=1.0, gt=0, le=LARGEST_STRENGTH)
    limit: int = Field(default=5, ge=1, le=20)
    side: Side | None = None


class ContrastAsked(ExamplesAsked):
    """Texts to be like, and texts to be unlike."""

    positive: list[Example] = Field(max_length=_MOST_EXAMPLES)
    negative: list[Example] = Field(default_factory=list, max_length=_MOST_EXAMPLES)


class FeedbackAsked(ExamplesAsked):
    """Judged hits of a query."""

    query: str = Field(default="", max_length=LONGEST_QUERY)
    positive: list[PassageId] = Field(max_length=_MOST_EXAMPLES)
    negative: list[PassageId] = Field(default_factory=list, max_length=_MOST_EXAMPLES)


def compare_routes(workbench: Workbench) -> APIRouter:
    """The compare page's routes."""
    router = APIRouter(prefix="/api")
    retriever = workbench.retriever

    async def found(method: Callable[..., Contrast], asked: ContrastAsked | FeedbackAsked, **more: Any) -> JSONResponse:
        def work() -> dict[str, Any]:
            options = {"strength": asked.strength, "limit": asked.limit, "side": asked.side, **more}
            steering = method(asked.positive, asked.negative, **options)
            data = {**steering.to_dict(), "edits": workbench.rows(steering)}
            if isinstance(steering, Feedback):
                data |= {"ranks_before": list(steering.ranks_before), "ranks_after": list(steering.ranks_after)}
            return data

        return answer(await workbench.run(work))

    @router.post("/contrast")
    async def contrast(asked: ContrastAsked) -> JSONResponse:
        """A steering towards some texts and away from others, with its reasons."""
        return await found(retriever.contrast, asked)

    @router.post("/autosteer")
    async def autosteer(asked: FeedbackAsked) -> JSONResponse:
        """A steering from judged hits, tried on their query."""
        return await found(retriever.autosteer, asked, query=asked.query or None)

    return router
