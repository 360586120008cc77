"""apscheduler: an executor for APScheduler 3 whose jobs do not wait for a free thread.

    scheduler = BackgroundScheduler(executors={"default": cmwq.contrib.apscheduler.PoolExecutor()})

Guarantees: a job begins when a CPU is free, however many others wait for something. How many runs of one job may
overlap (`max_instances`), misfires and coalescing are up to the scheduler, as before. Each run has a copy of the
scheduler thread's context, and leaves nothing in it. Its shutdown ends its own lease and nothing else. Assumes
APScheduler 3; version 4 has no executors of this kind.
"""

from __future__ import annotations

from apscheduler.executors.pool import (  # type: ignore[import-untyped,import-not-found,unused-ignore]
    BasePoolExecutor,
)

import cmwq

__all__ = ("PoolExecutor",)


class PoolExecutor(BasePoolExecutor):  # type: ignore[misc,unused-ignore]
    """An executor of APScheduler on the process's pools.

    max_active: how many runs may be active at a time; the default is 256. max_workers: the same, so that a
        configuration that says so can stay; here 1 means one thread.

    `shutdown(wait=True)` returns when the runs that it accepted have ended; they can't be cancelled.
    """

    def __init__(self, max_active: int | None = None, *, max_workers: int | None = None) -> None:
        super().__init__(cmwq.Executor("apscheduler", max_active=max_active, max_workers=max_workers))
