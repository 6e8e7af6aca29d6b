"""Access control: only the explorer's own pages may send requests, and only with the token where one is needed.

A page of another site can make a browser send requests here, under its own name for this address (DNS rebinding) or
across sites. So `Host` must be a name of this server, `Origin` must be the same address, and every request that changes
or costs something must be JSON, which no HTML form can send. Starlette's `TrustedHostMiddleware` checks the first of
these, but answers in plain text, and before Starlette 1.0 it misreads IPv6 addresses and "localhost:80@evil.example".
"""

from __future__ import annotations

import ipaddress
import secrets
from collections.abc import Collection
from typing import TYPE_CHECKING
from urllib.parse import urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse, RedirectResponse, Response

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE = "sae_steer_explorer"
LARGEST_BODY = 1_000_000
_SAFE = ("GET", "HEAD")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")

_HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
_TOO_LARGE = f"the request is too large: at most {LARGEST_BODY:,} bytes are read."
_ANOTHER_SITE = "the request comes from a page of another site: this server answers its own pages only."


def is_loopback(host: str) -> bool:
    """Whether a server that listens on `host` can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class AccessGuard:
    """ASGI middleware that refuses requests of others and adds the security headers to every answer.

    Args:
        app: The app behind this middleware.
        token: The token that every request must bring; None for a server that only this machine reaches.
        hosts: Names of this server besides the loopback names. With a token, every name is accepted: a browser sends
            the cookie that holds the token only to the name that set it.
    """

    def __init__(self, app: ASGIApp, *, token: str | None = None, hosts: Collection[str] = ()) -> None:
        self._app = app
        self._token = token
        self._hosts = {*_LOOPBACK, *(host.strip("[]").casefold() for host in hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on to the app."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        if scope["type"] != "http":
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        request = HTTPConnection(scope)
        refusal = self._refusal(scope["method"], request.headers)
        if refusal is None and self._token is not None and not self._may_enter(request):
            refusal = self._ask_for_token(request)
        if refusal is None and scope["method"] not in _SAFE:
            body = await _body(receive)
            receive = _replayed(body or b"", receive)
            refusal = _refused(413, _TOO_LARGE) if body is None else None
        await (refusal or self._app)(scope, receive, guarded)

    def _refusal(self, method: str, headers: Headers) -> Response | None:
        host = headers.get("host", "")
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            name = ""
        if self._token is None and name not in self._hosts:
            return _refused(421, "this server is not known by that name: open it as http://127.0.0.1 with its port.")
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2].casefold() != host.casefold():
            return _refused(403, _ANOTHER_SITE)
        if method not in _SAFE:
            if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
                return _refused(403, _ANOTHER_SITE)
            if headers.get("content-type", "").partition(";")[0].strip().casefold() != "application/json":
                return _refused(415, "expected JSON: send the header Content-Type: application/json.")
            length = headers.get("content-length", "0")
            if not length.isdecimal() or int(length) > LARGEST_BODY:
                return _refused(413, _TOO_LARGE)
        return None

    def _may_enter(self, request: HTTPConnection) -> bool:
        given = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
        return self._is_token(given or request.cookies.get(COOKIE, ""))

    def _is_token(self, given: str) -> bool:
        return self._token is not None and secrets.compare_digest(given.encode(), self._token.encode())

    def _ask_for_token(self, request: HTTPConnection) -> Response:
        """Moves the token from the address into a cookie, so that no history and no link holds it."""
        asked = request.query_params.multi_items()
        given = dict(asked).get("token", "")
        if request.scope["method"] not in _SAFE or not self._is_token(given):
            return _refused(401, "this server needs its token: open the address that it printed, with ?token=...")
        rest = urlencode([(name, value) for name, value in asked if name != "token"])
        path = "/" + request.scope["path"].lstrip("/")  # "//other.host" would be an address
        response = RedirectResponse(path + (f"?{rest}" if rest else ""), 303)
        response.set_cookie(COOKIE, given, httponly=True, samesite="lax")
        return response


def _refused(status: int, message: str) -> Response:
    return JSONResponse({"error": message}, status)


async def _body(receive: Receive) -> bytes | None:
    """The body of a request, which may come without a length; None if it is too large."""
    body, more = bytearray(), True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > LARGEST_BODY:
            return None
    return bytes(body)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Sends a body that was read as one message, then whatever comes after it."""
    parts = [body]

    async def replayed() -> Message:
        return {"type": "http.request", "body": parts.pop(), "more_body": False} if parts else await receive()

    return replayed
