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


class Dashboard:
    """A dashboard that can be served once."""

    def __init__(self, source: Source, settings: Settings) -> None:
        self._settings = settings
        self._token = new_token() if settings.token else None
        self._news = News()
        look = LOOK if settings.search else 0.0
        self._watches = Watches(source, settings.interval, self._news.ring, look)
        self._server: _Server | None = None

    def serve(self, say: Callable[[str], object]) -> None:
        """Serve until `stop`, or until SIGINT or SIGTERM if this is the main thread. `say` is called with the address
        once the port is taken. Raises OSError if the port can't be had, NoPicture if the source knows no process.
        """
        host = self._settings.host
        with contextlib.closing(_listen(host, self._settings.port)) as listening:
            port = listening.getsockname()[1]
            self._watches.start()
            try:
                names = {*LOOPBACK, host, socket.gethostname(), socket.getfqdn()}
                app = _with_news(make_app(self._watches, self._news), self._news)
                config = uvicorn.Config(
                    Gate(app, self._token, names, port), log_level="warning", access_log=False, server_header=False,
                    lifespan="on", ws="none", timeout_graceful_shutdown=GRACE,
                )  # fmt: skip
                self._server = _Server(config)
                self._server.news = self._news
                say(address(host, port, self._token))
                self._server.run([listening])
            finally:
                self._watches.close()

    def stop(self) -> None:
        """End `serve`, soon. May be called by any thread, once the address was told."""
        if self._server is not None:
            self._server.should_exit = True


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
