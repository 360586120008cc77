"""contrib.gunicorn: gunicorn's threaded worker, without a number of threads.

    gunicorn -k cmwq.contrib.gunicorn.Worker myproject.wsgi

It is gunicorn's `gthread` worker in every respect but one: its requests run in a lease on the process's pools instead
of `threads` threads. Graceful stop, reload, `timeout`, `keepalive`, `max_requests` and the server hooks are gunicorn's
own code and mean what they mean there. `worker_connections` (1,000 by default) stays the bound on how many connections
one process serves at a time; `threads` has no effect.

Guarantees: the lease begins in the worker process, after the fork, and starts no thread before the first request, hence
after gunicorn has changed the user. It ends where gunicorn shuts its pool down; the pools end with the process.

A request whose first bytes are there and can be read is told apart by its path (`_routes`). Otherwise, as with TLS or
HTTP/2, it is a request like any other. Nothing is taken from the connection for that.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any, TypeVar

from gunicorn.workers.gthread import ThreadWorker  # type: ignore[import-untyped,unused-ignore]

import cmwq
from cmwq.contrib._routes import Routes, shape

__all__ = ("Worker",)

T = TypeVar("T")
PEEKED = 256
"""Bytes of a request that are looked at for its path."""


class Worker(ThreadWorker):  # type: ignore[misc,unused-ignore]  # gunicorn has no types
    """gunicorn's `gthread` worker on the pools of cmwq."""

    def get_thread_pool(self) -> cmwq.Executor:
        """Return the lease in which this process's requests run. gunicorn calls it once, in the worker process."""
        return _Lease("gunicorn", max_active=max(1, self.cfg.worker_connections))


class _Lease(cmwq.Executor):
    """A lease to which gunicorn submits a function and a connection."""

    def __init__(self, name: str, *, max_active: int) -> None:
        super().__init__(name, max_active=max_active)
        self._routes = Routes()

    # Typed loosely, because a call of `Executor.submit` with these arguments is what gunicorn makes.
    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> cmwq.Future[T]:
        return super().submit(self._routes.call(fn, _route, *args), *args, **kwargs)


def _route(conn: Any = None, *_: Any) -> str | None:
    """The route that the next request on this connection asks for, if that can be seen now. Takes nothing from it."""
    try:
        data: bytes = conn.sock.recv(PEEKED, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        path = data.split(b" ", 2)[1]
    except (AttributeError, IndexError, OSError, TypeError, ValueError):  # TLS refuses to peek: ValueError
        return None
    return shape(path.decode("latin-1")) if path.startswith(b"/") else None
