"""The web application: the page, its files, the streams and what they leave out.

| path | what |
|---|---|
| `/`, `/static/NAME` | the page and its files: a fixed list, read when the application is made |
| `/processes` | the list of processes |
| `/events?process=N` | server-sent events: `processes` when the list changed, `view` with each new picture |
| `/history?process=N&range=R` | what the pools did, at resolution R (0, 1, 2) |
| `/timeline?process=N` | what the workers did |
| `/worker?process=N&name=NAME` | one worker with its stack |

Guarantees: each stream holds one message at most: what happened while its browser was reading is left out, and the
sequence numbers say so. At most `STREAMS` streams are open; one more gets 503.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator
from importlib import resources

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from cmwq.observing.dashboard.watch import Watch
from cmwq.observing.dashboard.watches import Watches

STREAMS = 64
HEARTBEAT = 2.0  # seconds without news, after which a comment shows a browser, and a proxy, that the stream lives
TYPES = {
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "svg": "image/svg+xml",
}
PAGE = "index.html"
FILES = (
    PAGE, "icon.svg", "style.css", "main.js", "page.js", "words.js", "occupancy.js", "timeline.js", "tables.js",
    "workers.js", "details.js", "vendor/uPlot.iife.min.js", "vendor/uPlot.min.css",
)  # fmt: skip


class News:
    """Tells all streams that something is new. `ring` may be called by any thread, the rest on the event loop."""

    def __init__(self) -> None:
        self.closed = False
        self.streams = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._event: asyncio.Event | None = None
        self._lock = threading.Lock()

    def ring(self) -> None:
        """Wake all streams, soon. Does nothing while no event loop runs."""
        with self._lock:
            if self._loop is not None:
                with contextlib.suppress(RuntimeError):  # the loop has ended
                    self._loop.call_soon_threadsafe(self._wake)

    def open(self) -> None:
        """To be called on the event loop, once it runs."""
        with self._lock:
            self._loop, self._event = asyncio.get_running_loop(), asyncio.Event()

    def close(self) -> None:
        """End all streams."""
        self.closed = True
        with self._lock:
            self._loop = None
        self._wake()

    async def wait(self, timeout: float) -> bool:
        """Wait for news, for at most so many seconds; return whether there may be some."""
        if self._event is None or self.closed:
            return True
        try:
            await asyncio.wait_for(self._event.wait(), timeout)
        except TimeoutError:
            return False
        return True

    def _wake(self) -> None:
        if self._event is not None:
            self._event.set()
            self._event = asyncio.Event()


def make_app(watches: Watches, news: News) -> Starlette:
    """The application, without the gate. `watches` are the caller's to start and to close."""
    files = _Files()
    views = _Views(watches, news)

    routes = [
        Route("/", files.page, methods=["GET"]),
        Route("/static/{name:path}", files.file, methods=["GET"]),
        Route("/processes", views.processes, methods=["GET"]),
        Route("/events", views.events, methods=["GET"]),
        Route("/history", views.history, methods=["GET"]),
        Route("/timeline", views.timeline, methods=["GET"]),
        Route("/worker", views.worker, methods=["GET"]),
    ]
    return Starlette(routes=routes)


class _Files:
    def __init__(self) -> None:
        folder = resources.files("cmwq.observing.dashboard") / "static"
        self._files = {name: folder.joinpath(*name.split("/")).read_bytes() for name in FILES}

    async def page(self, request: Request) -> Response:
        return self._response(PAGE)

    async def file(self, request: Request) -> Response:
        name = request.path_params["name"]
        return self._response(name) if name in self._files else _not_found()

    def _response(self, name: str) -> Response:
        media_type = TYPES[name.rpartition(".")[2]]
        return Response(self._files[name], media_type=media_type)


class _Views:
    """What the page asks for. Functions without `async` run in a thread: they make large answers, or wait."""

    def __init__(self, watches: Watches, news: News) -> None:
        self._watches = watches
        self._news = news

    def processes(self, request: Request) -> Response:
        return _json(self._watches.overview())

    def history(self, request: Request) -> Response:
        watch = self._watch(request)
        resolution = request.query_params.get("range", "0")
        if watch is None or resolution not in ("0", "1", "2"):
            return _not_found()
        return _json(watch.history(int(resolution)))

    def timeline(self, request: Request) -> Response:
        watch = self._watch(request)
        return _not_found() if watch is None else _json(watch.timeline())

    def worker(self, request: Request) -> Response:
        watch = self._watch(request)
        if watch is None:
            return _not_found()
        picture = watch.stacks()
        name = request.query_params.get("name", "")
        for worker in (picture or {}).get("workers", []):
            if worker.get("name") == name:
                return _json({"worker": worker, "time": (picture or {}).get("time")})
        return _json({"worker": None, "time": (picture or {}).get("time")})

    async def events(self, request: Request) -> Response:
        if self._news.streams >= STREAMS or self._news.closed:
            return Response("Too many pages are open.\n", 503, media_type="text/plain")
        stream = self._stream(_number(request))
        return StreamingResponse(stream, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})

    async def _stream(self, number: int | None) -> AsyncIterator[bytes]:
        self._news.streams += 1
        try:
            overview: dict[str, object] | None = None
            sequence = -1
            yield b"retry: 2000\n\n"
            while not self._news.closed:
                told = False
                if (now := self._watches.overview()) != overview:
                    overview, told = now, True
                    yield _event("processes", _encoded(now))
                watch = None if number is None else self._watches.get(number)
                if watch is not None:
                    watch.check()
                if watch is not None and watch.sequence != sequence:
                    sequence, encoded = await asyncio.to_thread(watch.encoded)
                    told = True
                    yield _event("view", encoded)
                # If something was told there may be news already: the browser took its time to read it.
                if not told and not await self._news.wait(HEARTBEAT):
                    yield b":\n\n"  # also without news, so that `check` is called
        finally:
            self._news.streams -= 1

    def _watch(self, request: Request) -> Watch | None:
        number = _number(request)
        return None if number is None else self._watches.get(number)


def _number(request: Request) -> int | None:
    """The number of the process that is asked for."""
    number = request.query_params.get("process", "")
    return int(number) if number.isdecimal() and len(number) < 10 else None


def _event(name: str, data: bytes) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + data + b"\n\n"


def _json(content: object) -> Response:
    return Response(_encoded(content), media_type="application/json")


def _encoded(content: object) -> bytes:
    """As JSON, in ASCII: the arguments of a process may be no text, and then hold half characters."""
    return json.dumps(content, separators=(",", ":")).encode()


def _not_found() -> Response:
    return Response("There is nothing here.\n", 404, media_type="text/plain")
