"""cmwq: concurrency-managed work queues. A thread pool nobody has to size.

    with cmwq.Executor() as pool:
        for page in pool.map(fetch, urls): ...

Importing it starts nothing.
"""

from __future__ import annotations

from typing import Unpack

from cmwq import events
from cmwq._core.config import Config
from cmwq._core.here import serve_process
from cmwq._errors import (
    Abandoned,
    CmwqError,
    CmwqTimeout,
    FlushDeadlock,
    ForeignProcess,
    InvariantError,
    QueueClosed,
    QueueFull,
    Reentered,
    ThreadLimit,
    WorkDisabled,
)
from cmwq._pool.blocking import blocking
from cmwq._workqueue.batch import Batch
from cmwq._workqueue.future import Future
from cmwq._workqueue.periodic import PeriodicWork
from cmwq._workqueue.queue import WorkQueue
from cmwq._workqueue.queued import current_work
from cmwq._workqueue.runtime import Runtime, default_runtime
from cmwq._workqueue.serving import Serving
from cmwq._workqueue.settings import Settings
from cmwq._workqueue.snapshot import PoolView, QueueView, Snapshot
from cmwq._workqueue.watchdog import Stall, StalledWorker
from cmwq._workqueue.work import DelayedWork, Work
from cmwq.executor import Executor

__version__ = "0.1.0"

serve_process(default_runtime().host)

system = WorkQueue("system")
"""The process's own queue, always there."""
system_percpu = WorkQueue("system_percpu", scope="cpu")
"""The same, on per-CPU pools: a work runs on the CPU it was queued on."""
system_highpri = WorkQueue("system_highpri", highpri=True)
"""For what normal works must not delay: it has pools of its own (E7)."""
system_long = WorkQueue("system_long")
"""For works that take long, so that a flush of `system` need not wait for them."""


def configure(**settings: Unpack[Settings]) -> None:
    """Set how the default runtime works, before its first use: `cmwq.configure(exit_timeout=10, max_workers=64)`.

    max_workers: cap on the workers of a pool; at least 2. sensor: "sentinel", "procfs", "hints" or a `Sensor`. cpus:
    which CPUs to use, by number. exit_timeout: seconds after which the interpreter's end leaves behind the works that
    have not ended, with a warning for each (G3). on_stall: as `Runtime.on_stall`. on_unfetched: as
    `Runtime.on_unfetched`. And each field of `Config`, durations in seconds: `idle_worker_timeout=10` after a burst,
    say.

    May be called several times; what is not given stays as it was. The children of a fork have the same settings.
    Raises RuntimeError once a work was queued, or a queue with a rescuer made; TypeError or ValueError for a setting
    that doesn't exist or can't be had, and then nothing is changed. Starts nothing. Thread-safe.
    """
    default_runtime().configure(**settings)


def freeze(timeout: float | None = None) -> None:
    """Freezable queues of the default runtime finish what runs and start nothing until `thaw()` (E8).

    Returns when none of their works runs. timeout: seconds. Raises CmwqTimeout (and nothing is frozen then),
    FlushDeadlock from a freezable queue's own work. Thread-safe.
    """
    default_runtime().freeze(timeout)


def thaw() -> None:
    """Let freezable queues of the default runtime go on, in order. Harmless if nothing is frozen. Thread-safe."""
    default_runtime().thaw()


def cpu_offline(cpu: int) -> None:
    """Let the default runtime use this CPU no more, as if it had been taken offline: `Runtime.cpu_offline`."""
    default_runtime().cpu_offline(cpu)


def cpu_online(cpu: int) -> None:
    """Let the default runtime use this CPU again: `Runtime.cpu_online`."""
    default_runtime().cpu_online(cpu)


def snapshot() -> Snapshot:
    """A typed, JSON-able picture of the default runtime: pools, queues, sensor. Starts nothing. Thread-safe."""
    return default_runtime().snapshot()


__all__ = [
    "Abandoned",
    "Batch",
    "CmwqError",
    "CmwqTimeout",
    "Config",
    "DelayedWork",
    "Executor",
    "FlushDeadlock",
    "ForeignProcess",
    "Future",
    "InvariantError",
    "PeriodicWork",
    "PoolView",
    "QueueClosed",
    "QueueFull",
    "QueueView",
    "Reentered",
    "Runtime",
    "Serving",
    "Settings",
    "Snapshot",
    "Stall",
    "StalledWorker",
    "ThreadLimit",
    "Work",
    "WorkDisabled",
    "WorkQueue",
    "blocking",
    "configure",
    "cpu_offline",
    "cpu_online",
    "current_work",
    "default_runtime",
    "events",
    "freeze",
    "snapshot",
    "system",
    "system_highpri",
    "system_long",
    "system_percpu",
    "thaw",
]
