"""Running the dashboard: watches, application and gate, served by uvicorn until a signal ends it.

Guarantees: the port is taken before anything is printed, so the address that is printed is the one that works. When it
ends, streams are closed, and all threads that watch are told to end. The token is in no log.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import uvicorn
from starlette.applications import Starlette

from cmwq.observing.dashboard.app import News, make_app
from cmwq.observing.dashboard.gate import Gate, new_token
from cmwq.observing.dashboard.sources import Source
from cmwq.observing.dashboard.watches import LOOK, Watches

LOOPBACK = ("localhost", "127.0.0.1", "::1")
GRACE = 2  # seconds that requests may take to end


@dataclass(frozen=True, slots=True)
class Settings:
    """How to serve. interval: seconds from one picture of a process to the next."""

    host: str = "127.0.0.1"
    port: int = 0
    token: bool = True
    interval: float = 1.0
    search: bool = True
    """Look for new processes again and again."""


class _Server(uvicorn.Server):
    """Ends the streams before it waits for them to end."""

    news: News

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.news.close()
        await super().shutdown(sockets)


def serve(source: Source, settings: Settings, say: Callable[[str], object]) -> None:
    """Serve until SIGINT or SIGTERM. `say` is called with the address once the port is taken.

    Raises OSError if the port can't be had, NoPicture if the source knows no process and never will.
    """
    token = new_token() if settings.token else None
    news = News()
    watches = Watches(source, settings.interval, news.ring, LOOK if settings.search else 0.0)
    with contextlib.closing(_listen(settings.host, settings.port)) as listening:
        port = listening.getsockname()[1]
        watches.start()
        try:
            names = {*LOOPBACK, settings.host, socket.gethostname(), socket.getfqdn()}
            app = Gate(_with_news(make_app(watches, news), news), token, names, port)
            config = uvicorn.Config(
                app, log_level="warning", access_log=False, server_header=False, lifespan="on", ws="none",
                timeout_graceful_shutdown=GRACE,
            )  # fmt: skip
            server = _Server(config)
            server.news = news
            say(address(settings.host, port, token))
            server.run([listening])
        finally:
            watches.close()


def address(host: str, port: int, token: str | None) -> str:
    """The address to open, with the token if there is one."""
    name = socket.gethostname() if host in ("0.0.0.0", "::", "") else f"[{host}]" if ":" in host else host
    return f"http://{name}:{port}/" + (f"?token={token}" if token else "")


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach that address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _listen(host: str, port: int) -> socket.socket:
    family, _, _, _, where = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(where)
        listening.listen(128)
    except BaseException:
        listening.close()
        raise
    return listening


def _with_news(app: Starlette, news: News) -> Starlette:
    """Open the news when the event loop runs."""

    @contextlib.asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        news.open()
        yield

    app.router.lifespan_context = lifespan
    return app
