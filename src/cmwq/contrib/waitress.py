"""contrib.waitress: a waitress server without a number of threads.

    cmwq.contrib.waitress.serve(app, listen="127.0.0.1:8080")
    python -m cmwq.contrib.waitress --listen=127.0.0.1:8080 myproject.wsgi:app

`serve` and the command take what `waitress.serve` and `waitress-serve` take, and do what these do. `threads` has no
effect. `connection_limit` (100 by default) stays the bound on how many requests one process has at a time, since a
connection has one request at a time.

Guarantees: requests run in a lease on the process's pools. It ends with the server: as with waitress's own threads,
requests that have not begun are cancelled, and those that run have five seconds, for which shutdown waits.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any, Protocol

import waitress  # type: ignore[import-untyped,unused-ignore]
from waitress.adjustments import Adjustments  # type: ignore[import-untyped,unused-ignore]
from waitress.runner import run  # type: ignore[import-untyped,unused-ignore]
from waitress.utilities import logger  # type: ignore[import-untyped,unused-ignore]

import cmwq
from cmwq.contrib._routes import Routes, shape

__all__ = ("create_server", "serve")


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
    return waitress.create_server(app, _dispatcher=Dispatcher(limit), **options)


class Dispatcher:
    """A task dispatcher for `waitress.create_server(app, _dispatcher=...)`, one for each server.

    max_active: how many requests may be active at a time; by default 256. Thread-safe.
    """

    def __init__(self, max_active: int | None = None) -> None:
        self._lease = cmwq.Executor("waitress", max_active=max_active)
        self._routes = Routes()

    def set_thread_count(self, count: int) -> None:
        """Do nothing: the pools adjust the number of threads."""

    def add_task(self, task: Task) -> None:
        """Have the task done. After `shutdown` it is cancelled."""
        call = self._routes.call(_do, _route, task)
        try:
            self._lease.submit(call, task).add_done_callback(partial(_heed_cancelling, task))
        except cmwq.QueueClosed:
            task.cancel()

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


def _do(task: Task) -> None:
    try:
        task.service()
    except BaseException:  # as waitress: a thread serves others, whatever a request raised
        logger.exception("Exception when servicing %r", task)


def _heed_cancelling(task: Task, future: Any) -> None:
    if future.cancelled():
        task.cancel()


if __name__ == "__main__":
    sys.exit(run(_serve=serve))
