"""Who may ask: this page's own scripts on an address that is this server's, with the token where one is needed.

A page of another site can make a browser send requests here, by its own name for this address (DNS rebinding) or
across sites. `Host` must be a name of this server, `Origin` the same address, and what changes or costs anything is
JSON, which no form can send.
"""

from __future__ import annotations

import http.cookies
import ipaddress
import json
import secrets
from collections.abc import Collection
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode, urlsplit

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


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that listens there."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class AccessGuard:
    """ASGI middleware that answers what it refuses itself, and puts the page's security headers on everything."""

    def __init__(self, app: ASGIApp, *, token: str | None = None, hosts: Collection[str] = ()) -> None:
        """Guard an app.

        Args:
            app: What is guarded.
            token: What every request must bring; None for a server that only this machine reaches.
            hosts: Names beside this machine's own that the server may be asked by. With a token any name will do: the
                cookie that holds it is sent to the name that it was given by, and to no other.
        """
        self._app = app
        self._token = token
        self._hosts = {*_LOOPBACK, *(host.strip("[]").casefold() for host in hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or hand on."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self._refusal(scope["method"], headers)
        if refusal is not None:
            await _answer(send, *refusal)
            return
        if self._token is not None and not self._may_enter(headers):
            await self._ask_for_token(scope, send)
            return
        if scope["method"] not in _SAFE:
            body = await _body(receive)
            if body is None:
                await _answer(send, 413, _TOO_LARGE)
                return
            receive = _given(body, receive)
        await self._app(scope, receive, _guarded(send))

    def _refusal(self, method: str, headers: dict[str, str]) -> tuple[int, str] | None:
        host = headers.get("host", "")
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            name = ""
        if self._token is None and name not in self._hosts:
            return 421, "this server is not known by that name: open it as http://127.0.0.1 with its port."
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2].casefold() != host.casefold():
            return 403, _ANOTHER_SITE
        if method not in _SAFE:
            if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
                return 403, _ANOTHER_SITE
            if headers.get("content-type", "").partition(";")[0].strip().casefold() != "application/json":
                return 415, "expected JSON: send the header Content-Type: application/json."
            length = headers.get("content-length", "0")
            if not length.isdecimal() or int(length) > LARGEST_BODY:
                return 413, _TOO_LARGE
        return None

    def _may_enter(self, headers: dict[str, str]) -> bool:
        given = headers.get("authorization", "").removeprefix("Bearer ").strip()
        if not given:
            cookies: http.cookies.SimpleCookie = http.cookies.SimpleCookie()
            try:
                cookies.load(headers.get("cookie", ""))
            except http.cookies.CookieError:
                return False
            given = cookies[COOKIE].value if COOKIE in cookies else ""
        return self._is_token(given)

    def _is_token(self, given: str) -> bool:
        return self._token is not None and secrets.compare_digest(given.encode(), self._token.encode())

    async def _ask_for_token(self, scope: Scope, send: Send) -> None:
        """Take the token from the address and put it into a cookie, so that it is in no history and no link."""
        asked = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        given = dict(asked).get("token", "")
        if scope["method"] not in _SAFE or not self._is_token(given):
            message = "this server asks for its token: open the address that it printed, which ends in ?token=..."
            await _answer(send, 401, message)
            return
        rest = urlencode([(name, value) for name, value in asked if name != "token"])
        path = "/" + scope["path"].lstrip("/")  # "//other.host" would be an address
        headers = [
            (b"location", (path + (f"?{rest}" if rest else "")).encode("latin-1", errors="replace")),
            (b"set-cookie", f"{COOKIE}={given}; Path=/; HttpOnly; SameSite=Lax".encode()),
            *_header_rows(),
        ]
        await send({"type": "http.response.start", "status": 303, "headers": headers})
        await send({"type": "http.response.body", "body": b""})


_TOO_LARGE = f"the request is too large: at most {LARGEST_BODY:,} bytes are read."
_ANOTHER_SITE = "a page of another site asked: this server answers its own pages only."


async def _body(receive: Receive) -> bytes | None:
    """A request's body, which may come without its length; None if it is too large."""
    parts: list[bytes] = []
    more = True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
        if sum(map(len, parts)) > LARGEST_BODY:
            return None
    return b"".join(parts)


def _given(body: bytes, receive: Receive) -> Receive:
    """A body that was read, as one message; then what comes after it."""
    parts = [body]

    async def given() -> Message:
        if parts:
            return {"type": "http.request", "body": parts.pop(), "more_body": False}
        return await receive()

    return given


def _guarded(send: Send) -> Send:
    async def guarded(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", []), *_header_rows()]}
        await send(message)

    return guarded


def _header_rows() -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode()) for name, value in _HEADERS.items()]


async def _answer(send: Send, status: int, message: str) -> None:
    body: Any = json.dumps({"error": message}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *_header_rows()]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


__all__ = ["COOKIE", "LARGEST_BODY", "AccessGuard", "is_loopback"]
