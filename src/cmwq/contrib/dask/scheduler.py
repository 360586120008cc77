"""scheduler: what the scheduler of Dask has to know of cmwq.

Guarantees
- A task with the annotation `cmwq_once` is run once at most. Dask runs a task again whose worker died, or whose result
  was lost with a worker. Before that it goes back to "released", which is seen here, and the task is marked: the worker
  that gets it refuses it (`calls.perform`). A task that had been sent to a worker may have begun there; nobody can
  know. So it counts as begun.
- Nothing else changes, and no message is added. A task that goes the usual way costs three comparisons.

`AheadPlugin` is for clusters whose workers have `CmwqPlugin`. By default Dask sends a worker 1.1 tasks for each of its
threads, and keeps the rest. When tasks block, a worker runs out of them until the scheduler has heard of it: a round
trip for each handful of tasks. With AheadPlugin(4) it has some to go on with, and can tell whether tasks of another
kind wait. The price is that tasks are tied to a worker earlier; Dask may still steal those that have not begun.
"""

from __future__ import annotations

from math import inf
from typing import Any

from distributed.diagnostics.plugin import SchedulerPlugin

from cmwq.contrib.dask.calls import AGAIN, ONCE

_WHY = {
    "processing": "the worker that it was sent to is gone, and may have begun it",
    "memory": "its result was lost with the worker that kept it",
}


class CmwqSchedulerPlugin(SchedulerPlugin):  # type: ignore[misc,unused-ignore]
    """Mark works that may run only once. `ClusterWorkQueue` registers it; registered again it replaces nothing. Not
    thread-safe: Dask calls it on the scheduler's event loop."""

    name = "cmwq"
    idempotent = True

    def __init__(self) -> None:
        self._scheduler: Any = None

    def __reduce__(self) -> tuple[Any, ...]:
        return CmwqSchedulerPlugin, ()

    async def start(self, scheduler: Any) -> None:
        """Context: the scheduler's event loop, as for all methods."""
        self._scheduler = scheduler

    def transition(self, key: Any, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
        """Mark a task that goes back to "released" after it was sent to a worker, or had ended."""
        if finish == "released" and start in _WHY:
            task = self._scheduler.tasks.get(key)
            if task is not None and task.annotations and task.annotations.get(ONCE):
                task.annotations = {**task.annotations, AGAIN: _WHY[start]}


class AheadPlugin(SchedulerPlugin):  # type: ignore[misc,unused-ignore]
    """Keep more tasks ahead on the workers: `client.register_plugin(AheadPlugin(4))`.

    ahead: how many tasks a worker gets for each of its threads, those that are blocked not counted. It is the
        scheduler's setting `worker-saturation` from now on, also after the plugin is removed: register another one to
        change it. Raises ValueError below 1.

    Not thread-safe: Dask calls it on the scheduler's event loop.
    """

    name = "cmwq-ahead"
    idempotent = False

    def __init__(self, ahead: float = 4.0) -> None:
        if not 1 <= ahead < inf:
            raise ValueError(f"ahead is {ahead}, and must be a number from 1")
        self.ahead = ahead

    def __reduce__(self) -> tuple[Any, ...]:
        return AheadPlugin, (self.ahead,)

    async def start(self, scheduler: Any) -> None:
        """Context: the scheduler's event loop."""
        scheduler.WORKER_SATURATION = self.ahead
