"""HintsSensor: for systems that don't tell what a thread does (macOS, Windows, gVisor).

`cmwq.blocking()` is exact here as with every sensor, because the core handles it. Beside it there are two coarse rules:

- With per-thread CPU clocks, a counted worker that used no CPU time for a whole period, with the same item, is taken to
  sleep. The period is longer than the switch interval, at which a waiter for the GIL stirs.
- When no item of the pool started or ended for `STUCK` seconds and work waits, one of its workers is taken to sleep, so
  that one more may start: progress must not depend on a sensor. With CPU clocks it must be one that used hardly any CPU
  time, as it may be polling; without (macOS, Windows) it may be any.

Unless works use `blocking()`, sleeps shorter than the period are missed, and longer ones are seen 10 to 20 ms late, so
that at most about 100 works per second and CPU are started beyond the target. Waits for a lock count like any other
sleep. Without CPU clocks long computations are taken for sleep too: one more worker per 50 ms in which no item ends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cmwq._sensor._ticking import Doing, TickingSensor, Watched

if TYPE_CHECKING:
    from cmwq._core.ports import Host
    from cmwq._pool.pool import WorkerPool
    from cmwq._pool.worker import Worker

STUCK = 50e-3
"""No item started or ended for so long."""
POLLING = 0.05
"""A worker of a stuck pool that used a smaller share of CPU time than this is taken to wait by polling."""


def usable() -> None:
    """None, because this sensor works everywhere."""


def make(host: Host, reason: str) -> HintsSensor:
    return HintsSensor(host, reason)


class HintsSensor(TickingSensor):
    """A Sensor that knows only whether a thread used CPU time, or not even that."""

    name = "hints"
    period = 10e-3

    def __init__(self, host: Host, reason: str = "") -> None:
        super().__init__(host, reason)
        self._progress: dict[WorkerPool, tuple[int, float]] = {}  # T: items started and ended, and since when no more

    def doing(self, worker: Worker, watched: Watched) -> Doing:
        if watched.clock is None:
            return self._guess(worker)
        try:
            cpu = watched.cpu_time()
        except OSError:
            return Doing.GONE
        now = self.host.monotonic()
        if watched.item is not worker.item:
            watched.item, watched.since, watched.window = worker.item, None, (now, cpu)
        if watched.since is None or watched.cpu != cpu:
            watched.cpu, watched.since = cpu, now
        if now - watched.since >= self.period:
            return Doing.SLEEPS
        began, cpu_then = watched.window
        if now - began < STUCK:
            return Doing.SLEEPS if worker.sleeping else Doing.RUNS
        watched.window = now, cpu
        return self._guess(worker) if cpu - cpu_then < POLLING * (now - began) else Doing.RUNS

    def _guess(self, worker: Worker) -> Doing:
        """Take the worker to sleep if no item of its pool began or ended for STUCK. The time then begins again, so the
        next worker follows one STUCK later.
        """
        if worker.sleeping:
            return Doing.SLEEPS
        pool, now = worker.pool, self.host.monotonic()
        count = pool.nr_wakeups + pool.nr_completed  # a worker that begins a work was woken, or ended one before
        before, since = self._progress.get(pool, (-1, now))
        if count == before and now - since >= STUCK:
            self._progress[pool] = count, now
            return Doing.SLEEPS
        if count != before:
            self._progress[pool] = count, now
        return Doing.RUNS
