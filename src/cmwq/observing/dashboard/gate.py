"""Who may see the dashboard: those who have its token, at an address under which it was meant to be reached.

Guarantees
- Nothing is answered to a request whose Host header is not one of this server's own names or an IP address. That ends
  DNS rebinding: a page of somebody else's domain that lets its name point here.
- Nothing is answered to a request that a page of another site makes behind its reader's back.
- With a token, all but those who have it get a 401 that says nothing of what is here. The token is compared in constant
  time. It stands in the address once; then a cookie takes its place (HttpOnly, SameSite, of this port only by its
  name), so that it stays neither in the address bar nor in what is sent to others.
- Every answer forbids the browser whatever the page does not need: scripts, styles and connections from elsewhere,
  scripts within the page, frames, forms, and the address as a referrer.
- GET and HEAD only.

This is a plain ASGI middleware, so that streams pass through it as they are.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any
from urllib.parse import parse_qs

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)
NO_TOKEN = b"Not authorised. Open the address that `cmwq dashboard` printed when it was started.\n"


def new_token() -> str:
    """A token that nobody guesses: 256 bits."""
    return secrets.token_urlsafe(32)


class Gate:
    """Lets requests through to an application. token: None lets everybody in. names: those of this server."""

    def __init__(self, app: App, token: str | None, names: Iterable[str], port: int) -> None:
        self._app = app
        self._token = token
        self._names = frozenset(name.lower().rstrip(".") for name in names)
        self._cookie = f"cmwq-dashboard-{port}"
        # Not the token itself: what reads cookies cannot make an address of it.
        self._proof = "" if token is None else hmac.new(token.encode(), b"cookie", hashlib.sha256).hexdigest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = _headers(scope)
        if not self._is_ours(headers.get(b"host", "")) or _is_foreign(headers):
            await _answer(send, 403, b"Forbidden.\n")
        elif scope["method"] not in ("GET", "HEAD"):
            await _answer(send, 405, b"Only GET and HEAD.\n", (b"allow", b"GET, HEAD"))
        elif self._token is None or self._has_cookie(headers.get(b"cookie", "")):
            await self._app(scope, receive, _with_headers(send))
        elif scope["path"] == "/" and self._has_token(scope["query_string"]):
            # Lax, not Strict: with Strict a browser would not send it after a link in a mail or a chat was followed.
            cookie = f"{self._cookie}={self._proof}; HttpOnly; SameSite=Lax; Path=/"
            await _answer(send, 303, b"", (b"location", b"/"), (b"set-cookie", cookie.encode()))
        else:
            await _answer(send, 401, NO_TOKEN)

    def _is_ours(self, host: str) -> bool:
        name = _name_in(host)
        if name in self._names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True  # no domain name is involved, so nobody else's can have been

    def _has_token(self, query: bytes) -> bool:
        given = parse_qs(query.decode("latin-1")).get("token", [""])[0]
        return hmac.compare_digest(given.encode(), (self._token or "").encode())

    def _has_cookie(self, header: str) -> bool:
        """Other servers of this host have cookies here too, in whatever form: no parser may give up at theirs."""
        pairs = (pair.strip().partition("=") for pair in header.split(";"))
        given = [value for name, _, value in pairs if name == self._cookie]
        return any(hmac.compare_digest(value.encode(), self._proof.encode()) for value in given)


def _headers(scope: Scope) -> dict[bytes, str]:
    """The headers. One that is there twice is neither the one nor the other: it is what both are, joined."""
    found: dict[bytes, str] = {}
    for name, value in scope["headers"]:
        text = value.decode("latin-1")
        key = name.lower()
        found[key] = f"{found[key]}; {text}" if key in found else text
    return found


def _name_in(host: str) -> str:
    """The host's name without its port: "[::1]:80" -> "::1"."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower().rstrip(".")


def _is_foreign(headers: dict[bytes, str]) -> bool:
    """Whether a page of another site asks, other than by a link that its reader followed."""
    site, mode = headers.get(b"sec-fetch-site", "none"), headers.get(b"sec-fetch-mode", "navigate")
    return site not in ("same-origin", "none") and mode != "navigate"


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            names = {name for name, _ in HEADERS}
            kept = [(name, value) for name, value in message.get("headers", ()) if name.lower() not in names]
            message = {**message, "headers": [*kept, *HEADERS]}
        await send(message)

    return sending


async def _answer(send: Send, status: int, body: bytes, *headers: tuple[bytes, bytes]) -> None:
    told = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode()), *headers]
    await send({"type": "http.response.start", "status": status, "headers": [*told, *HEADERS]})
    await send({"type": "http.response.body", "body": body})
