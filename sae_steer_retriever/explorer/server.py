"""The explorer as an ASGI app: pages, their requests, and errors in the package's own words."""

from __future__ import annotations

import importlib.resources
import logging
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from sae_steer_retriever.errors import (
    AmbiguousFeatureError,
    ArtifactError,
    MissingExtraError,
    SAESteerError,
    StoreError,
    UnknownFeatureError,
)

try:
    from fastapi import FastAPI, HTTPException, Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse, Response
    from starlette.exceptions import HTTPException as StarletteHTTPException
except ModuleNotFoundError as error:
    if error.name not in ("fastapi", "starlette"):
        raise
    raise MissingExtraError("the explorer", "explorer") from error

from sae_steer_retriever import __version__
from sae_steer_retriever.explorer.access import AccessGuard
from sae_steer_retriever.explorer.compare_routes import compare_routes
from sae_steer_retriever.explorer.feature_routes import feature_routes
from sae_steer_retriever.explorer.map_routes import map_routes
from sae_steer_retriever.explorer.search_routes import search_routes
from sae_steer_retriever.explorer.workbench import Workbench

if TYPE_CHECKING:
    from sae_steer_retriever.explorer.python_code import StoreAddress
    from sae_steer_retriever.explorer.workbench_state import WorkbenchState
    from sae_steer_retriever.retriever import SteeredRetriever

logger = logging.getLogger(__name__)

_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
_PAGES = {"/": "bench.html", "/features": "features.html", "/map": "map.html", "/compare": "compare.html"}
_STATUS: tuple[tuple[type[Exception], int], ...] = (
    (UnknownFeatureError, 422),
    (AmbiguousFeatureError, 422),
    (StoreError, 503),
    (ArtifactError, 500),
    (SAESteerError, 422),
    (ValueError, 422),
    (TypeError, 422),
)


def create_app(
    retriever: SteeredRetriever,
    *,
    token: str | None = None,
    hosts: Collection[str] = (),
    address: StoreAddress | None = None,
    start: WorkbenchState | None = None,
) -> FastAPI:
    """The explorer of a retriever.

    Args:
        retriever: What is explored.
        token: What every request must bring; give one wherever others than this machine can reach the server.
        hosts: Names beside this machine's own that the server may be asked by.
        address: Where the store is, for code that is copied; as the store itself says if not given.
        start: What the bench begins with; the retriever's default steering if not given.

    Raises:
        MissingExtraError: The `explorer` extra is not installed.
    """
    workbench = Workbench(retriever, address=address, start=start)
    # Without the documentation pages, which load scripts from another host.
    app = FastAPI(
        title="sae-steer explorer", version=__version__, docs_url=None, redoc_url=None, openapi_url="/api/openapi.json"
    )
    app.state.workbench = workbench
    for routes in (search_routes, feature_routes, compare_routes, map_routes):
        app.include_router(routes(workbench))
    _add_files(app)
    _add_errors(app)
    app.add_middleware(AccessGuard, token=token, hosts=tuple(hosts))
    return app


def _add_files(app: FastAPI) -> None:
    """The page's files, read once: what is asked for is looked up by name, and no path is ever opened."""
    folder = importlib.resources.files("sae_steer_retriever.explorer") / "static"
    files = {
        item.name: (item.read_bytes(), _TYPES[item.name.rpartition(".")[2]])
        for item in folder.iterdir()
        if item.name.rpartition(".")[2] in _TYPES
    }

    def page(name: str) -> Response:
        content, kind = files[name]
        return Response(content, media_type=kind)

    @app.get("/static/{name}", include_in_schema=False)
    async def static(name: str) -> Response:
        if name not in files:
            raise HTTPException(404, "there is no such file.")
        return page(name)

    for path, name in _PAGES.items():
        app.add_api_route(path, _constant(page(name)), include_in_schema=False)
    app.add_api_route("/features/{feature}", _feature_page(page("feature.html")), include_in_schema=False)


def _constant(response: Response) -> Any:  # noqa: ANN401 - a route
    async def route() -> Response:
        return response

    return route


def _feature_page(response: Response) -> Any:  # noqa: ANN401 - a route
    async def route(feature: int) -> Response:
        return response

    return route


def _add_errors(app: FastAPI) -> None:
    for kind, status in _STATUS:
        app.add_exception_handler(kind, _told(status))

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part != "body")
        return JSONResponse({"error": f"{place or 'the request'}: {first['msg']}"[:500]}, 422)

    @app.exception_handler(StarletteHTTPException)
    async def refused(request: Request, error: StarletteHTTPException) -> JSONResponse:
        return JSONResponse({"error": str(error.detail)}, error.status_code)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return JSONResponse({"error": "the server failed; where it was started it says why."}, 500)


def _told(status: int) -> Any:  # noqa: ANN401 - an exception handler
    async def told(request: Request, error: Exception) -> JSONResponse:
        text = str(error).encode("utf-8", errors="replace").decode()
        return JSONResponse({"error": " ".join(text.split())}, status)

    return told


__all__ = ["create_app"]
