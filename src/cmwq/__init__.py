"""cmwq: concurrency-managed work queues. A thread pool nobody has to size.

    with cmwq.Executor() as pool:
        for page in pool.map(fetch, urls): ...

Importing this package starts no thread.
"""

from __future__ import annotations

import importlib as _importlib
import os as _os
from typing import TYPE_CHECKING, Unpack

from cmwq import events
from cmwq._core.config import Config
from cmwq._core.here import serve_process as _serve_process
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
from cmwq._workqueue.report import Stall, StalledWorker
from cmwq._workqueue.runtime import Runtime, default_runtime
from cmwq._workqueue.serving import Serving
from cmwq._workqueue.settings import Settings
from cmwq._workqueue.snapshot import (
    FunctionView,
    Histogram,
    MemoryView,
    PoolView,
    QueueView,
    Snapshot,
    StallView,
    WorkerView,
)
from cmwq._workqueue.twin import installed as _twin  # noqa: F401  # to import it is to install it
from cmwq._workqueue.work import DelayedWork, Work
from cmwq.executor import Executor
from cmwq.observing.trace import Trace, trace
from cmwq.observing.trace import begin_from_environment as _begin_trace

if TYPE_CHECKING:
    from cmwq import aio as aio
    from cmwq import testing as testing
    from cmwq.observing.server import Monitor

__version__ = "0.1.0"

_serve_process(default_runtime().host)

system: WorkQueue = WorkQueue("system")
"""The default queue of this process. It always exists."""
system_percpu: WorkQueue = WorkQueue("system_percpu", scope="cpu")
"""As `system`, on per-CPU pools: a work runs on the CPU on which it was queued."""
system_highpri: WorkQueue = WorkQueue("system_highpri", highpri=True)
"""For works that normal works must not delay: it has pools of its own, whose workers ask for a higher priority (E7)."""
system_long: WorkQueue = WorkQueue("system_long")
"""For works that take long, so that a flush of `system` need not wait for them."""


def configure(**settings: Unpack[Settings]) -> None:
    """Set how the default runtime works, before its first use: `cmwq.configure(exit_timeout=10, max_workers=64)`.

    max_workers: the cap on the workers of one pool; at least 2.
    sensor: "sentinel", "procfs", "hints" or a `Sensor`.
    cpus: which CPUs to use, by number.
    exit_timeout: seconds. At interpreter exit, works that have not ended by then are left behind, with a warning for
        each (G3).
    on_stall: see `Runtime.on_stall`.
    on_unfetched: see `Runtime.on_unfetched`.
    each field of `Config`, durations in seconds: `idle_worker_timeout=10` ends idle workers 10 s after a burst, for
        example.

    It may be called several times; a setting that is not given stays as it was. The children of a fork have the same
    settings. Raises RuntimeError once a work was queued or a queue with a rescuer was made; TypeError for a setting
    that does not exist, TypeError or ValueError for a value that is not allowed. If it raises, nothing is changed. It
    starts nothing. Thread-safe.
    """
    default_runtime().configure(**settings)


def freeze(timeout: float | None = None) -> None:
    """Freeze the default runtime: its freezable queues finish the works that run, and start none until `thaw()` (E8).

    Returns when none of their works runs. timeout: seconds; None waits for ever. Raises CmwqTimeout (then nothing is
    frozen), FlushDeadlock if a work of a freezable queue calls it, Reentered in a finaliser or a signal handler that
    interrupted cmwq's own code. Thread-safe.
    """
    default_runtime().freeze(timeout)


def thaw() -> None:
    """Let the freezable queues of the default runtime go on, in order. Harmless if nothing is frozen. Thread-safe."""
    default_runtime().thaw()


def cpu_offline(cpu: int) -> None:
    """Stop using this CPU in the default runtime, as if it had been taken offline: see `Runtime.cpu_offline`."""
    default_runtime().cpu_offline(cpu)


def cpu_online(cpu: int) -> None:
    """Let the default runtime use this CPU again: see `Runtime.cpu_online`."""
    default_runtime().cpu_online(cpu)


def snapshot(stacks: bool = False) -> Snapshot:
    """Return a typed picture of the default runtime's pools, queues, workers and sensor: see `Runtime.snapshot`.

    stacks: with the Python stack of each worker. Starts nothing. Thread-safe.
    """
    return default_runtime().snapshot(stacks)


def monitor(path: str | None = None) -> Monitor:
    """Let this user and root look at this process from outside, by `cmwq ps` and `cmwq dump PID` (docs/monitor.md).

    The picture of `snapshot()` can be had at a Unix socket from now on, and nothing can be changed there. path: where
    the socket is made; None: in the user's own folder, where the commands find it. Returns a handle with `path` and
    `close()`, which is also a context manager. Called again it returns another handle of the same monitor, which ends
    with the last one, or with the interpreter, after the last work. The child of a fork has a socket of its own.

    Setting CMWQ_MONITOR=1 in the environment does the same when cmwq is imported; then, what goes wrong is only logged.

    It starts one thread, which sleeps until somebody connects, and which exit does not wait for. Raises OSError if the
    socket can't be made, for example because another process listens at that path, or the folder is not safe;
    ThreadLimit if no thread can be had, and in a sub-interpreter; ValueError if there is a monitor at another path.
    Thread-safe.
    """
    from cmwq.observing import server

    return server.begin(path)


_LAZY = ("aio", "testing")
"""Modules that `import cmwq` does not import, for they import more; they are there when they are asked for."""

if not TYPE_CHECKING:  # a type checker would take this to mean that every name exists

    def __getattr__(name: str) -> object:
        if name in _LAZY:
            return _importlib.import_module(f"cmwq.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(["__version__", *__all__, *_LAZY])


if _os.environ.get("CMWQ_MONITOR", "0") not in ("", "0"):
    from cmwq.observing.server import begin_or_log as _begin

    _begin("CMWQ_MONITOR is set")

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
    "FunctionView",
    "Future",
    "Histogram",
    "InvariantError",
    "MemoryView",
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
    "StallView",
    "StalledWorker",
    "ThreadLimit",
    "Trace",
    "Work",
    "WorkDisabled",
    "WorkQueue",
    "WorkerView",
    "blocking",
    "configure",
    "cpu_offline",
    "cpu_online",
    "current_work",
    "default_runtime",
    "events",
    "freeze",
    "monitor",
    "snapshot",
    "system",
    "system_highpri",
    "system_long",
    "system_percpu",
    "thaw",
    "trace",
]

_begin_trace()
