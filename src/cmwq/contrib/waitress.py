"""contrib.waitress: a waitress server without a number of threads.

    cmwq.contrib.waitress.serve(app, listen="127.0.0.1:8080")
    python -m cmwq.contrib.waitress --listen=127.0.0.1:8080 myproject.wsgi:app

`serve` and the command take what `waitress.serve` and `waitress-serve` take, and do what these do. `threads` has no
effect. `connection_limit` (100 by default) stays the bound on how many requests one process has at a time, since a
connection has one request at a time.

Guarantees: requests run in a lease on the process's pools. It ends with the server: as with waitress's own threads,
requests that have not begun are cancelled, and those that run have five seconds, for which shutdown waits.

Each answer wakes waitress's loop, which then looks at every connection: with 64 of them that takes several times as
long as a request that does nothing, and holds the GIL. A crowd of threads makes that rarer by chance, since all of them
compete with the loop for the GIL; two threads, which is all that two CPUs need, take turns with it, an answer a look.
So the loop, once woken, lets the requests that it has handed over begin before it looks: `Dispatcher.let_begin`.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

import waitress  # type: ignore[import-untyped,unused-ignore]
from waitress.adjustments import Adjustments  # type: ignore[import-untyped,unused-ignore]
from waitress.runner import run  # type: ignore[import-untyped,unused-ignore]
from waitress.trigger import trigger  # type: ignore[import-untyped,unused-ignore]
from waitress.utilities import logger  # type: ignore[import-untyped,unused-ignore]

import cmwq
from cmwq.contrib._routes import Routes, shape

__all__ = ("create_server", "serve")

PATIENCE = 0.002
"""Seconds for which a loop that was woken lets requests begin, at most: what its clients may lose by it."""
REST = 0.02
"""Seconds in which no loop waits again after a wait in which none began: what keeps them from it takes longer, and each
socket that a loop listens to has a trigger of its own."""

_rests_until = 0.0
"""Of `time.monotonic()`. One for all servers, since they may share a loop."""


class Task(Protocol):
    """What waitress hands over: a channel, whose first request is to be answered."""

    def service(self) -> None: ...
    def cancel(self) -> None: ...


def serve(app: Any, **options: Any) -> None:
    """Serve a WSGI application until the process is told to end. options: those of `waitress.serve`."""
    waitress.serve(app, _server=create_server, **options)


def create_server(app: Any, **options: Any) -> Any:
    """Return a server that is run by `server.run()`. options: those of `waitress.create_server`."""
    limit = int(options.get("connection_limit", Adjustments.connection_limit))
    dispatcher = Dispatcher(limit)
    watched: dict[int, Any] | None = options.pop("map", None)  # all that the loop looks at, by file descriptor
    if watched is None:
        watched = {}
    others = set(watched)
    server = waitress.create_server(app, watched, _dispatcher=dispatcher, **options)
    for descriptor, woken in list(watched.items()):
        if descriptor not in others and isinstance(woken, trigger):
            woken.handle_read = partial(_read_after, dispatcher, woken.handle_read)
    return server


class Dispatcher:
    """A task dispatcher for `waitress.create_server(app, _dispatcher=...)`, one for each server.

    max_active: how many requests may be active at a time; by default 256. Thread-safe.
    """

    def __init__(self, max_active: int | None = None) -> None:
        self._lease = cmwq.Executor("waitress", max_active=max_active)
        self._routes = Routes()
        self._waiting: set[object] = set()  # a token for each task that has not begun; each change is atomic
        # Held until all have begun: a lock, since an Event that Ctrl-C interrupts may stay locked.
        self._some_wait = threading.Lock()

    def set_thread_count(self, count: int) -> None:
        """Do nothing: the pools adjust the number of threads."""

    def add_task(self, task: Task) -> None:
        """Have the task done. After `shutdown` it is cancelled."""
        token = object()
        self._waiting.add(token)
        try:
            call = self._routes.call(self._do, _route, task)
            self._lease.submit(call, task, token).add_done_callback(partial(self._heed_end, task, token))
        except BaseException as exc:
            self._no_longer_waits(token)
            if not isinstance(exc, cmwq.QueueClosed):
                raise
            task.cancel()

    def let_begin(self) -> bool:
        """Return when no task waits to begin (True), or after `PATIENCE` (False). For one thread: the loop's."""
        global _rests_until
        self._some_wait.acquire(blocking=False)
        # The last one has begun before this look, or releases the lock after it was taken.
        waiting = len(self._waiting)
        if not waiting:
            return True
        if time.monotonic() < _rests_until:
            return False
        if self._some_wait.acquire(timeout=PATIENCE):
            return True
        if len(self._waiting) >= waiting:
            _rests_until = time.monotonic() + REST
        return False

    def _do(self, task: Task, token: object) -> None:
        self._no_longer_waits(token)
        try:
            task.service()
        except BaseException:  # as waitress: a thread serves others, whatever a request raised
            logger.exception("Exception when servicing %r", task)

    def _heed_end(self, task: Task, token: object, future: Any) -> None:
        self._no_longer_waits(token)  # it may have ended without beginning
        if future.cancelled():
            task.cancel()

    def _no_longer_waits(self, token: object) -> None:
        self._waiting.discard(token)
        if not self._waiting and self._some_wait.locked():  # if it is not, the loop has yet to look at those that wait
            with suppress(RuntimeError):  # another one has just released it
                self._some_wait.release()

    def shutdown(self, cancel_pending: bool = True, timeout: float = 5) -> bool:
        """Accept no more tasks, and wait up to `timeout` seconds for those that run.

        cancel_pending: cancel those that have not begun; if not, they are done. Returns cancel_pending. It may be
        called again.
        """
        self._lease.shutdown(wait=False, cancel_futures=cancel_pending)
        try:
            self._lease.queue.close(timeout)
        except cmwq.CmwqTimeout as exc:
            logger.warning("requests still run: %s", exc)
        return cancel_pending


def _route(task: Any) -> str | None:
    """The route of its first request. None: it has none yet, or is no channel."""
    requests = getattr(task, "requests", None)
    return shape(requests[0].path) if requests else None


def _read_after(dispatcher: Dispatcher, handle_read: Callable[[], None]) -> None:
    """In place of a trigger's `handle_read`, which the loop calls when an answer has woken it."""
    dispatcher.let_begin()
    handle_read()


if __name__ == "__main__":
    sys.exit(run(_serve=serve))
