"""A running explorer: the server on a socket of its own, in the foreground or behind a notebook."""

from __future__ import annotations

import html
import logging
import secrets
import socket
import threading
import time
from collections.abc import Collection
from typing import TYPE_CHECKING, Self

from sae_steer_retriever.errors import MissingExtraError, SAESteerError
from sae_steer_retriever.explorer.access import is_loopback
from sae_steer_retriever.explorer.server import create_app
from sae_steer_retriever.explorer.workbench_state import (
    DEFAULT_HITS,
    MOST_CANDIDATES,
    MOST_HITS,
    WorkbenchState,
    edits_of,
    rows_of,
)
from sae_steer_retriever.steering.policy import DEFAULT_DRIFT_CAP

try:
    import uvicorn
except ModuleNotFoundError as error:
    if error.name != "uvicorn":
        raise
    raise MissingExtraError("the explorer", "explorer") from error

if TYPE_CHECKING:
    from sae_steer_retriever.explorer.python_code import StoreAddress
    from sae_steer_retriever.retriever import SteeredRetriever
    from sae_steer_retriever.search.options import Space
    from sae_steer_retriever.steering.operations import Side, SteerLike
    from sae_steer_retriever.steering.policy import Steering

DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 8765
_TOKEN_BYTES = 24
_STARTING = 30.0
# Whole seconds that answers under way may take when the server ends.
_ENDING = 3


class Explorer:
    """An explorer's server; `url` is its address, `close` ends it."""

    def __init__(
        self,
        retriever: SteeredRetriever,
        *,
        host: str = DEFAULT_HOST,
        port: int = 0,
        token: str | None = None,
        hosts: Collection[str] = (),
        address: StoreAddress | None = None,
        start: WorkbenchState | None = None,
    ) -> None:
        """Take an address; nothing is served before `serve` or `start`.

        Args:
            retriever: What is explored.
            host: Where to listen. Anywhere but on this machine's own addresses a token is asked for.
            port: Its port; 0 takes one that is free.
            token: The token; made up where one is needed and none is given.
            hosts: Names that the server may be asked by, beside this machine's own.
            address: Where the store is, for code that is copied.
            start: What the bench begins with; the retriever's default steering if not given.

        Raises:
            SAESteerError: The address cannot be listened on.
            MissingExtraError: The `explorer` extra is not installed.
        """
        if token is not None and not (token.isascii() and token.isprintable() and token.strip() == token and token):
            raise SAESteerError("a token is of printable ASCII characters without spaces around it.")
        self.token = token or (None if is_loopback(host) else secrets.token_urlsafe(_TOKEN_BYTES))
        self.host = host
        app = create_app(retriever, token=self.token, hosts=(host, *hosts), address=address, start=start)
        self._socket = _listening(host, port)
        self.port = int(self._socket.getsockname()[1])
        # Access is not logged: queries are nobody's business, and a slider makes hundreds.
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False, lifespan="off", timeout_graceful_shutdown=3
        )
        self._server = uvicorn.Server(config)
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """The address to open, with the token where there is one."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.host, self.host)  # noqa: S104 - a name, not a socket
        host = f"[{host}]" if ":" in host and not host.startswith("[") else host
        return f"http://{host}:{self.port}/" + (f"?token={self.token}" if self.token else "")

    def link(self, query: str = "", steer: SteerLike | None = None, **options: object) -> str:
        """The address of the bench in some state.

        Args:
            query: The question.
            steer: As `SteeredRetriever.search` takes it.
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
        """Serve behind what runs here, a notebook for instance.

        Raises:
            SAESteerError: The server does not start.
        """
        self._thread = threading.Thread(target=self.serve, name="sae-steer-explorer", daemon=True)
        self._thread.start()
        deadline = time.monotonic() + _STARTING
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                raise SAESteerError(f"the explorer does not start on {self.host}:{self.port}: see the log.")
            time.sleep(0.01)
        return self

    def close(self) -> None:
        """End the server."""
        self._server.should_exit = True
        if self._thread is not None:
            self._thread.join(timeout=_STARTING)
        self._socket.close()

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the server."""
        self.close()

    def __repr__(self) -> str:
        """The address."""
        return f"Explorer({self.url!r})"

    def _repr_html_(self) -> str:
        """A link, for a notebook."""
        url = html.escape(self.url)
        return f'<a href="{url}" target="_blank" rel="noopener">{url}</a>'


def explore(
    retriever: SteeredRetriever,
    query: str = "",
    *,
    steer: SteerLike | Steering | None = None,
    k: int = DEFAULT_HITS,
    space: Space = "original",
    side: Side | None = None,
    fetch_k: int | None = None,
    drift_cap: float = DEFAULT_DRIFT_CAP,
    port: int = 0,
    open_browser: bool = False,
) -> Explorer:
    """Start an explorer on this machine, behind what runs here; see `SteeredRetriever.explore`.

    Args:
        retriever: What is explored.
        query: What the bench begins with, as `SteeredRetriever.search` takes it, and so are the following.
        steer: See `search`.
        k: See `search`; the bench shows 50 at most.
        space: See `search`.
        side: See `search`.
        fetch_k: See `search`.
        drift_cap: See `search`.
        port: Where; 0 takes a port that is free.
        open_browser: Whether to open a browser, too.

    Raises:
        UnknownFeatureError: `steer` names no feature; see `SteeredRetriever.resolve` for its other errors.
        SAESteerError: The port is taken.
        MissingExtraError: The `explorer` extra is not installed.
    """
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    steering = retriever.resolve(steer, side=side, drift_cap=drift_cap, space=space)
    start = WorkbenchState(
        query=query,
        edits=tuple(rows_of(steering, retriever.resolve_name)),
        k=min(k, MOST_HITS),
        space=space,
        fetch_k=None if fetch_k is None else min(fetch_k, MOST_CANDIDATES),
        drift_cap=steering.drift_cap,
    )
    explorer = Explorer(retriever, port=port, start=start).start()
    if open_browser:
        import webbrowser

        webbrowser.open(explorer.url)
    return explorer


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
            f"cannot listen on {host}:{port}: {reason}. Another program may have it; --port 0 takes one that is free."
        ) from error
    return made


__all__ = ["DEFAULT_HOST", "DEFAULT_PORT", "Explorer", "explore"]
