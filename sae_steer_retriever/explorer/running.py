"""A running explorer: its server on its own socket, in the foreground or in a thread behind a notebook."""

from __future__ import annotations

import dataclasses
import html
import logging
import secrets
import socket
import threading
import time
from typing import TYPE_CHECKING, Any, Protocol, Self

from sae_steer_retriever.errors import MissingExtraError, SAESteerError
from sae_steer_retriever.explorer.workbench_state import MOST_CANDIDATES, MOST_HITS, WorkbenchState, edits_of, rows_of
from sae_steer_retriever.retriever import SteeredRetriever
from sae_steer_retriever.search.options import SearchOptions

try:
    import uvicorn

    from sae_steer_retriever.explorer.access import is_loopback
    from sae_steer_retriever.explorer.server import create_app
except ModuleNotFoundError as error:
    if error.name not in ("fastapi", "starlette", "uvicorn"):
        raise
    raise MissingExtraError("the explorer", "explorer") from error

if TYPE_CHECKING:
    from sae_steer_retriever.explorer.python_code import StoreAddress
    from sae_steer_retriever.search.options import Space
    from sae_steer_retriever.steering.operations import Side, SteerLike
    from sae_steer_retriever.steering.policy import Steering

DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 8765
_TOKEN_BYTES = 24
# Seconds that the server may take to start or to end.
_PATIENCE = 30.0
# Whole seconds that unfinished answers get when the server ends.
_GRACE = 3


class Explorer:
    """An explorer's server: `url` is its address, `close` ends it. It binds its address at once, and serves on request.

    Args:
        retriever: The retriever to explore.
        host: The address to listen on. An address that other machines can reach requires a token.
        port: The port; 0 takes a free one.
        token: The token; a random one if it is required and not given.
        address: Where the store is, for the Python code that users copy.
        start: The workbench's first state; the retriever's default steering if not given.

    Raises:
        SAESteerError: The address cannot be bound, or the token is unusable.
        MissingExtraError: The `explorer` extra is not installed.
    """

    def __init__(
        self,
        retriever: SteeredRetriever,
        *,
        host: str = DEFAULT_HOST,
        port: int = 0,
        token: str | None = None,
        address: StoreAddress | None = None,
        start: WorkbenchState | None = None,
    ) -> None:
        if token is not None and not (token.isascii() and token.isprintable() and token.strip() == token and token):
            raise SAESteerError(
                "the token is unusable: give one or more printable ASCII characters without spaces at either end."
            )
        self.token = token or (None if is_loopback(host) else secrets.token_urlsafe(_TOKEN_BYTES))
        self.host = host
        app = create_app(retriever, token=self.token, hosts=[host], address=address, start=start)
        self._socket = _listening(host, port)
        self.port = int(self._socket.getsockname()[1])
        # Access is not logged: queries are private, and moving a slider sends hundreds.
        quiet: dict[str, Any] = {"log_level": "warning", "access_log": False, "server_header": False}
        config = uvicorn.Config(app, **quiet, lifespan="off", timeout_graceful_shutdown=_GRACE)
        self._server = uvicorn.Server(config)
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """The address to open, with the token if there is one."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.host, self.host)  # noqa: S104 - a name, not a socket
        host = f"[{host}]" if ":" in host and not host.startswith("[") else host
        return f"http://{host}:{self.port}/" + (f"?token={self.token}" if self.token else "")

    def link(self, query: str = "", steer: SteerLike | None = None, **options: object) -> str:
        """Returns the address of the workbench in a given state.

        Args:
            query: The question.
            steer: The steering, as `SteeredRetriever.search` takes it.
            options: Other fields of `WorkbenchState`.

        Raises:
            SteeringError: A strength is unusable.
        """
        state = WorkbenchState.model_validate({"query": query, "edits": tuple(edits_of(steer)), **options})
        return f"{self.url}#{state.fragment()}"

    def serve(self) -> None:
        """Serve until interrupted."""
        try:
            self._server.run(sockets=[self._socket])
        finally:
            self._socket.close()

    def start(self) -> Self:
        """Returns this explorer once it serves in a thread of its own.

        Raises:
            SAESteerError: The server does not start.
        """
        self._thread = threading.Thread(target=self.serve, name="sae-steer-explorer", daemon=True)
        self._thread.start()
        deadline = time.monotonic() + _PATIENCE
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                raise SAESteerError(f"the explorer did not start on {self.host}:{self.port}: the log says why.")
            time.sleep(0.01)
        return self

    def close(self) -> None:
        """End the server."""
        self._server.should_exit = True
        if self._thread is not None:
            self._thread.join(timeout=_PATIENCE)
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Explorer({self.url!r})"

    def _repr_html_(self) -> str:
        """A link, for a notebook."""
        url = html.escape(self.url)
        return f'<a href="{url}" target="_blank" rel="noopener">{url}</a>'


class Adapter(Protocol):
    """A framework's retriever over a core one."""

    @property
    def retriever(self) -> SteeredRetriever:
        """The core retriever."""


def explore(
    retriever: SteeredRetriever | Adapter,
    query: str = "",
    *,
    steer: SteerLike | Steering | None = None,
    k: int | None = None,
    space: Space | None = None,
    side: Side | None = None,
    fetch_k: int | None = None,
    drift_cap: float | None = None,
    port: int = 0,
    open_browser: bool = False,
) -> Explorer:
    """Opens the explorer in the background, on an address that only this machine reaches (`explorer` extra).

    The search options are the workbench's first state, and mean what they mean in `SteeredRetriever.search`. Options
    that are not given are the framework adapter's own, else the defaults.

    Args:
        retriever: A `SteeredRetriever`, or the LangChain or LlamaIndex adapter over one.
        query: The question that the workbench starts with.
        steer: The steering.
        k: How many hits; the workbench shows at most 50, and 10 by default.
        space: The space that is searched.
        side: The side of strengths that do not name one.
        fetch_k: Candidates before re-ranking; at most 5000.
        drift_cap: Smallest cosine between the query and the shifted query.
        port: The port; 0 takes a free one.
        open_browser: Whether to open a browser, too.

    Returns:
        The running server: `url` is its address, `close()` ends it, and so does leaving its `with` block.

    Raises:
        UnknownFeatureError: `steer` names no feature; see `SteeredRetriever.resolve` for its other errors.
        SAESteerError: The port is taken.
        MissingExtraError: The `explorer` extra is not installed.
        TypeError: `retriever` is neither a `SteeredRetriever` nor an adapter over one.

    Example:
        >>> from sae_steer_retriever.explorer import explore
        >>> with explore(retriever, "run a task in another thread", k=5) as explorer:
        ...     print(explorer.url)
        http://127.0.0.1:.../
    """
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    core, own = _unwrapped(retriever)
    given: dict[str, Any] = {"steer": steer, "k": k, "space": space, "side": side}
    given |= {"fetch_k": fetch_k, "drift_cap": drift_cap}
    options = dataclasses.replace(own, **{name: value for name, value in given.items() if value is not None})
    steering = core.resolve(options.steer, side=options.side, drift_cap=options.drift_cap, space=options.space)
    start = WorkbenchState(
        query=query,
        edits=tuple(rows_of(steering, core.resolve_name)),
        k=min(options.k, MOST_HITS),
        space=options.space,
        fetch_k=None if options.fetch_k is None else min(options.fetch_k, MOST_CANDIDATES),
        drift_cap=steering.drift_cap,
    )
    explorer = Explorer(core, port=port, start=start).start()
    if open_browser:
        import webbrowser

        webbrowser.open(explorer.url)
    return explorer


def _unwrapped(retriever: SteeredRetriever | Adapter) -> tuple[SteeredRetriever, SearchOptions]:
    """The core retriever, and the search options: an adapter's own, else the defaults."""
    if isinstance(retriever, SteeredRetriever):
        return retriever, SearchOptions(k=WorkbenchState().k)
    core, options = getattr(retriever, "retriever", None), getattr(retriever, "search_options", None)
    if not isinstance(core, SteeredRetriever) or not isinstance(options, SearchOptions):
        raise TypeError(
            f"cannot explore a {type(retriever).__name__}: expected a SteeredRetriever, or an SAESteeredRetriever of "
            "the LangChain or LlamaIndex integration."
        )
    return core, options


def _listening(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        made = socket.socket(family, kind, protocol)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(place)
        made.listen(128)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SAESteerError(
            f"cannot listen on {host}:{port}: {reason}. Another program may use it; --port 0 takes a free port."
        ) from error
    return made
