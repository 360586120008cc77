"""contrib.grpc: a gRPC server without a number of threads.

    with cmwq.contrib.grpc.Executor() as pool:
        server = grpc.server(pool, maximum_concurrent_rpcs=1000)
        ...
        server.stop(grace=5).wait()

A stream keeps its thread from its beginning to its end. Here it keeps up nobody else: calls run beside any number of
streams, up to the pool's cap on threads (1,024 by default). `maximum_concurrent_rpcs` stays the bound on calls, and
gRPC refuses what comes beyond it.

`grpc.server(cmwq.Executor())` works too. This class adds that the pool tells the methods of a service apart, so that
those that compute for long do not hold back the others (A9).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import cmwq
from cmwq.contrib._routes import Routes

__all__ = ("Executor",)

P = ParamSpec("P")
T = TypeVar("T")
MOST_CALLS = 1000


class Executor(cmwq.Executor):
    """A lease in which the calls of a gRPC server run. It takes other calls as well.

    name: shown in snapshots and thread names. max_active: how many calls may be active at a time, those that wait
    counted. It should not be less than `maximum_concurrent_rpcs`.

    gRPC never shuts its pool down: whoever made this lease ends it, after the server has stopped. It then waits for the
    handlers that still run, which `server.stop` does not. A lease that is forgotten costs nothing, since it owns no
    threads. Thread-safe.
    """

    def __init__(self, name: str = "grpc", *, max_active: int = MOST_CALLS) -> None:
        super().__init__(name, max_active=max_active)
        self._methods = Routes()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> cmwq.Future[T]:
        """Do what `cmwq.Executor.submit` does."""
        return super().submit(self._methods.call(fn, _method, *args), *args, **kwargs)


def _method(*args: Any) -> str | None:
    """The name of the method, if these are the arguments of a call that gRPC submits; else None.

    They are a function of gRPC, the event, its state, and the behaviour: the servicer's method, or what an interceptor
    made of it.
    """
    if len(args) < 4:
        return None
    details = getattr(args[1], "call_details", None)
    method = getattr(details, "method", None)
    if isinstance(method, bytes) and method:
        return method.decode("latin-1")
    name = getattr(args[3], "__qualname__", None)
    return name if isinstance(name, str) else None
