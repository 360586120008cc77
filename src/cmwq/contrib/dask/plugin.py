"""plugin: cmwq in place of the thread pool of Dask's workers.

    dask worker tcp://scheduler:8786 --preload cmwq.contrib.dask
    client.register_plugin(CmwqPlugin())                    # on a cluster that runs already

Guarantees: tasks that run when the plugin comes go on where they are. When it is removed, the worker has its own
executor back, and the tasks that cmwq runs go on to their end. A worker that closes is shut down as by Dask: what has
not begun is cancelled, what runs is waited for. Executors that tasks choose by name, actors and coroutines are left
alone, and so is a worker that was started with an executor of its own.

The process's pools serve all its workers, and whatever else uses cmwq in it. They run as many works at a time as these
workers have threads (`nthreads`) in all, and never more than there are CPUs: several worker processes share a machine
that way.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from distributed import Worker
from distributed.core import Status
from distributed.diagnostics.plugin import WorkerPlugin
from distributed.threadpoolexecutor import ThreadPoolExecutor as DasksOwn
from distributed.utils import offload

import cmwq
from cmwq.contrib.dask.calls import Cancellations, of_workers
from cmwq.contrib.dask.executor import DaskThreadPoolExecutor

_log = logging.getLogger("cmwq")

NAME = "cmwq"
"""Of the plugin: a worker has one at most."""
MAX_BLOCKED = 256
"""So many tasks of a worker may be blocked without a slot, unless another number is given."""

_threads_of: dict[int, int] = {}
"""`nthreads` of each worker of this process that has the plugin, by its identity."""


class CmwqPlugin(WorkerPlugin):  # type: ignore[misc,unused-ignore]
    """Run a worker's tasks in the process's pools, and give the slot of a task back to Dask while it is blocked.

    max_blocked: how many tasks of one worker may be blocked without a slot at a time. Each keeps a thread, its
        arguments and its place in memory. 0: slots are never given back.
    monitor: let this user look at the worker processes, by `cmwq ps`, `cmwq dump` and `cmwq top` there.

    Raises ValueError for a negative `max_blocked`. A worker that has the plugin keeps it if another one is registered;
    `client.unregister_worker_plugin("cmwq")` removes it. Not
    thread-safe: Dask calls it on the worker's event loop.
    """

    name = NAME
    idempotent = True

    def __init__(self, *, max_blocked: int = MAX_BLOCKED, monitor: bool = False) -> None:
        if max_blocked < 0:
            raise ValueError(f"max_blocked is {max_blocked}, and must not be negative")
        self.max_blocked = max_blocked
        self.monitor = monitor
        self._executor: DaskThreadPoolExecutor | None = None  # that of this worker; never pickled
        self._before: Any = None
        self._monitor: Any = None
        self._cancellations = Cancellations()

    def __reduce__(self) -> tuple[Any, ...]:
        return _made, (self.max_blocked, self.monitor)

    # Called by Dask on the worker's event loop

    def setup(self, worker: Any) -> None:
        """Take the place of the worker's executor, unless it was started with one of its own."""
        if not isinstance(worker.executors["default"], DasksOwn):
            _log.warning("this worker of Dask was started with an executor of its own, and keeps it")
            return
        of_workers[worker] = self._cancellations
        _threads_of[id(worker)] = worker.state.nthreads
        _share_cpus()
        self._before = worker.executors["default"]
        self._executor = DaskThreadPoolExecutor(worker, self.max_blocked, self._cancellations)
        worker.executors["default"] = self._executor
        worker.metrics["cmwq_blocked"] = _blocked
        worker.metrics["cmwq_given_back"] = _given_back
        if self.monitor:
            try:
                self._monitor = cmwq.monitor()
            except (OSError, ValueError, cmwq.ThreadLimit) as exc:
                _log.warning("this worker can't be looked at by cmwq: %s", exc)

    async def teardown(self, worker: Any) -> None:
        """Give the worker its own executor back. If it closes, shut both down."""
        _threads_of.pop(id(worker), None)
        executor, self._executor = self._executor, None
        for metric in ("cmwq_blocked", "cmwq_given_back"):
            worker.metrics.pop(metric, None)
        if executor is not None and worker.executors["default"] is executor:
            worker.executors["default"] = self._before
            closing = worker.status in (Status.closing, Status.closed, Status.failed)
            if closing:
                # Off the loop: a task that runs may wait for it.
                await asyncio.to_thread(executor.shutdown, wait=True)
            else:
                executor.leave_to_end()
        if self._monitor is not None:
            await offload(self._monitor.close)
            self._monitor = None
        _share_cpus()

    def transition(self, key: Any, start: str, finish: str, **_: Any) -> None:
        """Tell a task that runs that nobody wants it any more."""
        if finish == "released" and start in ("executing", "long-running"):
            self._cancellations.cancel(key)


def _made(max_blocked: int, monitor: bool) -> CmwqPlugin:
    return CmwqPlugin(max_blocked=max_blocked, monitor=monitor)


def _share_cpus() -> None:
    """Have the process's pools run as many works at a time as its workers have threads."""
    cmwq.default_runtime().limit_cpus(sum(_threads_of.values()) or None)


def _blocked(worker: Any) -> int:
    """For the metrics that Dask's own dashboard shows of each worker."""
    executor = worker.executors["default"]
    return executor.nr_blocked() if isinstance(executor, DaskThreadPoolExecutor) else 0


def _given_back(worker: Any) -> int:
    executor = worker.executors["default"]
    return executor.given_back if isinstance(executor, DaskThreadPoolExecutor) else 0


async def dask_setup(server: Any) -> None:
    """For `--preload cmwq.contrib.dask`, of workers and of the scheduler.

    To a worker it adds `CmwqPlugin()`, to a scheduler `CmwqSchedulerPlugin()`; to others, such as a nanny, nothing.
    """
    from distributed import Scheduler

    from cmwq.contrib.dask.scheduler import CmwqSchedulerPlugin

    if isinstance(server, Worker):
        await server.plugin_add(plugin=CmwqPlugin(), name=NAME, catch_errors=False)
    elif isinstance(server, Scheduler):
        await server.register_scheduler_plugin(CmwqSchedulerPlugin(), name=CmwqSchedulerPlugin.name, idempotent=True)
