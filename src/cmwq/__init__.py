"""cmwq: concurrency-managed work queues. A thread pool nobody has to size.

    with cmwq.Executor() as pool:
        for page in pool.map(fetch, urls): ...

Importing it starts nothing.
"""

from __future__ import annotations

from cmwq._core.config import Config
from cmwq._core.queue import WorkQueue
from cmwq._core.runtime import Runtime, default_runtime
from cmwq._core.snapshot import PoolView, QueueView, Snapshot
from cmwq._core.work import Future, Work, current_work
from cmwq._core.worker import blocking
from cmwq._errors import (
    CmwqError,
    CmwqTimeout,
    FlushDeadlock,
    ForeignProcess,
    InvariantError,
    QueueClosed,
    QueueFull,
    ThreadLimit,
    WorkDisabled,
)
from cmwq.executor import Executor

__version__ = "0.1.0"

system = WorkQueue("system")
"""The process's own queue, always there."""
system_percpu = WorkQueue("system_percpu", scope="cpu")
"""The same, on per-CPU pools: a work runs on the CPU it was queued on."""


def snapshot() -> Snapshot:
    """A typed, JSON-able picture of the default runtime: pools, queues, sensor. Starts nothing. Thread-safe."""
    return default_runtime().snapshot()


__all__ = [
    "CmwqError",
    "CmwqTimeout",
    "Config",
    "Executor",
    "FlushDeadlock",
    "ForeignProcess",
    "Future",
    "InvariantError",
    "PoolView",
    "QueueClosed",
    "QueueFull",
    "QueueView",
    "Runtime",
    "Snapshot",
    "ThreadLimit",
    "Work",
    "WorkDisabled",
    "WorkQueue",
    "blocking",
    "current_work",
    "default_runtime",
    "snapshot",
    "system",
    "system_percpu",
]
