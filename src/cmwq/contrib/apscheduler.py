"""apscheduler: an executor for APScheduler 3 whose jobs do not wait for a free thread.

    scheduler = BackgroundScheduler(executors={"default": cmwq.contrib.apscheduler.PoolExecutor()})

Guarantees: a job begins when a CPU is free, however many others wait for something. How many runs of one job may
overlap (`max_instances`), misfires and coalescing are up to the scheduler, as before. Each run has a copy of the
scheduler thread's context, and leaves nothing in it. Jobs are told apart by their functions, so that short ones do not
wait behind those that compute for long (A9). Its shutdown ends its own lease and nothing else. Assumes APScheduler 3;
version 4 has no executors of this kind.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from apscheduler.executors.pool import (  # type: ignore[import-untyped,import-not-found,unused-ignore]
    BasePoolExecutor,
)

import cmwq
from cmwq.contrib._routes import InsteadOf

__all__ = ("PoolExecutor",)

T = TypeVar("T")


class PoolExecutor(BasePoolExecutor):  # type: ignore[misc,unused-ignore]
    """An executor of APScheduler on the process's pools.

    max_active: how many runs may be active at a time; the default is 256. max_workers: the same, so that a
        configuration that says so can stay; here 1 means one thread. Either may be a text, as files have it ("20").

    `shutdown(wait=True)` returns when the runs that it accepted have ended; they can't be cancelled.
    """

    def __init__(self, max_active: int | str | None = None, *, max_workers: int | str | None = None) -> None:
        limit: Any = max_active if max_active == "auto" else _number(max_active)
        super().__init__(_Lease("apscheduler", max_active=limit, max_workers=_number(max_workers)))


def _number(given: int | str | None) -> int | None:
    return int(given) if isinstance(given, str) else given


class _Lease(cmwq.Executor):
    """A lease to which APScheduler submits its own function, and a job."""

    # Typed loosely, because a call of `Executor.submit` with these arguments is what APScheduler makes.
    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> cmwq.Future[T]:
        func = getattr(args[0], "func", None) if args else None
        return super().submit(InsteadOf(func, fn) if callable(func) else fn, *args, **kwargs)
