"""The explorer as an ASGI app: pages, routes, and error answers."""

from __future__ import annotations

import importlib.resources
import logging
from collections.abc import Awaitable, Callable, Collection
from typing import TYPE_CHECKING

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException as StarletteHTTPException

from sae_steer_retriever import __version__
from sae_steer_retriever.errors import ArtifactError, SAESteerError, StoreError
from sae_steer_retriever.explorer.access import AccessGuard
from sae_steer_retriever.explorer.compare_routes import compare_routes
from sae_steer_retriever.explorer.feature_map import map_routes
from sae_steer_retriever.explorer.feature_routes import feature_routes
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
    """Returns the explorer of a retriever as an app; see `AccessGuard` and `Workbench` for the arguments."""
    workbench = Workbench(retriever, address=address, start=start)
    # FastAPI's documentation pages are off: they load scripts from another host.
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
    """Serves the page's files from memory, by name: no request ever opens a path."""
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
            raise HTTPException(404, "no such file.")
        return page(name)

    def constant(name: str) -> Callable[[], Awaitable[Response]]:
        async def show() -> Response:
            return page(name)

        return show

    for path, name in _PAGES.items():
        app.add_api_route(path, constant(name), include_in_schema=False)

    @app.get("/features/{feature}", include_in_schema=False)
    async def feature_page(feature: int) -> Response:
        return page("feature.html")


def _add_errors(app: FastAPI) -> None:
    async def told(request: Request, error: Exception) -> JSONResponse:
        status = next(status for kind, status in _STATUS if isinstance(error, kind))
        text = str(error).encode("utf-8", errors="replace").decode()
        return JSONResponse({"error": " ".join(text.split())}, status)

    for kind, _ in _STATUS:
        app.add_exception_handler(kind, told)

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
        return JSONResponse({"error": "the server failed: its log, where it was started, says why."}, 500)
