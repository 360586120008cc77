"""The sentinel as a `Sensor`: what Python adds to the C of `_native/` is which worker sits in which slot.

Guarantees: an armed pool's blocked workers are noticed in microseconds, without the GIL; nothing wakes up while no pool
is armed (G4). Assumes that the pool calls `arm`, `deliver`, `ended`, `exempt` with its lock held.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

from cmwq._core.held import watched
from cmwq._core.ranks import Rank
from cmwq._errors import ThreadLimit

try:
    from cmwq._sensor import _sentinel
except ImportError as exc:
    _sentinel = None  # type: ignore[assignment]
    _why_not: str | None = f"its C extension was not built ({exc})"
else:
    _why_not = None

if TYPE_CHECKING:
    from cmwq._core.ports import Host, Lock, Parker
    from cmwq._pool.pool import WorkerPool
    from cmwq._pool.worker import Worker
    from cmwq._sensor._sentinel import Slot


def usable() -> str | None:
    """Why it does not work here; None: it does."""
    if _why_not is not None:
        return _why_not
    try:
        with open("/proc/self/syscall") as file:
            file.read()
    except OSError as exc:
        return f"the system does not say what a thread waits for ({exc})"
    return None


def make(host: Host, reason: str) -> SentinelSensor:
    return SentinelSensor(host, reason)


TICK = -1
"""In place of a CPU: the plain tick."""


class SentinelSensor:
    """Native threads of idle priority, and a plain 10 ms tick should all of them be starved.

    One on each CPU of a pool, but no more than may run there: under a CPU quota the others would look at what one sees
    as well. They are threads, too: each asks the caps first, and where threads are few they take no more than half of
    them. The tick comes first, for progress must not depend on the sentinels; but the pool's first worker and its
    reserve come before it, for without these there is nothing to look at.
    """

    name = "sentinel"

    def __init__(self, host: Host, reason: str = "") -> None:
        self.reason = reason
        self.host = host  # I
        self._watch = _sentinel.Watch()
        self._lock = host.lock(Rank.SENSOR)  # P
        self._posted: set[int] = set()  # P
        self._wanted: set[int] = set()  # P
        self._knows_gil: bool | None = None  # P; None: not tried yet

    def lookout(self, pool: WorkerPool) -> SentinelLookout:
        """Raises ThreadLimit: too many pools are watched."""
        with self._lock:
            try:
                native = self._watch.lookout(pool.cpus, pool.target, pool.office.max_workers + 1, Rank.POOL)
            except RuntimeError as exc:
                raise ThreadLimit(f"pool {pool.name}: it can't be watched: {exc}") from exc
        self._want(pool.cpus[: pool.target])
        return SentinelLookout(self, pool, native)

    def _want(self, cpus: tuple[int, ...]) -> None:
        limit = self.host.cpu_limit()
        with self._lock:
            self._wanted.update((TICK, *cpus[:limit]))
        self.post()

    def post(self) -> None:
        """Those that are wanted and not there yet. What is refused is tried again with the next worker: without workers
        there is nothing to watch.
        """
        with self._lock, suppress(OSError):
            if self._knows_gil is None and self.host.gil_enabled():
                self._knows_gil = self._watch.learn_gil()
            for cpu in sorted(self._wanted - self._posted):
                if not self._has_room(cpu):
                    break
                self._watch.start(cpu)
                self._posted.add(cpu)

    def _has_room(self, cpu: int) -> bool:
        """For one more, and for those who come before it or are to come after."""
        if cpu == TICK:
            return self.host.thread_headroom(needed=True) > 2
        return self.host.thread_headroom() > len(self._posted)

    def cpus_changed(self) -> None:
        self._want(self.host.cpus())  # those that are there go back to their CPUs by themselves

    def stop(self) -> None:
        self._watch.stop()

    def statistics(self) -> dict[str, int]:
        """Looks taken and workers woken so far."""
        return dict(self._watch.statistics())


class SentinelLookout:
    """One pool's slots. A worker's parker is its slot; of one that is attached, `watched` is that, too."""

    def __init__(self, sensor: SentinelSensor, pool: WorkerPool, native: Any) -> None:
        self._sensor = sensor
        self._pool = pool
        self._native = native
        self._workers: dict[int, Worker] = {}
        self.set_target, self.set_cpus = native.set_target, native.set_cpus

    def lock(self) -> Lock:
        """A lock whose waiters the sentinels know: waiting for it is no blocking."""
        return watched(self._native, self._sensor.host.inside)

    def parker(self) -> Parker:
        self._sensor.post()
        try:
            slot: Parker = self._native.slot()
        except RuntimeError as exc:
            raise ThreadLimit(f"pool {self._pool.name}: {exc}") from exc
        return slot

    def take_back(self, parker: Parker) -> None:
        cast("Slot", parker).free()

    def attach(self, worker: Worker) -> None:
        slot = worker.watched = cast("Slot", worker.parker)
        self._workers[slot.index] = worker
        slot.attach()
        worker.ended = slot.ended

    def detach(self, worker: Worker) -> None:
        with self._pool.lock:
            self._workers.pop(cast("Slot", worker.parker).index, None)
            self.take_back(worker.parker)

    def arm(self, reserve: Worker | None) -> None:
        self._native.arm(None if reserve is None else reserve.parker)

    def deliver(self) -> None:
        for index, sleeps, on_lock in self._native.deliver():
            worker = self._workers.get(index)
            if worker is None:
                continue
            if sleeps:
                self._pool.worker_sleeping(worker, on_lock=on_lock)
            else:
                self._pool.worker_running(worker)

    def remind(self) -> None:
        for worker in list(self._workers.values()):
            worker.watched.believed(worker.sleeping)
        self.deliver()

    def review(self, worker: Worker, enough: int) -> None:
        worker.watched.review(enough)
        self.deliver()

    def exempt(self, worker: Worker, flag: bool) -> None:
        worker.watched.exempt(flag)
