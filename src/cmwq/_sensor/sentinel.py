"""The sentinel as a `Sensor`. The C code in `_native/` knows slots; this module knows which worker has which slot.

Guarantees: blocked workers of an armed pool are noticed within microseconds, without the GIL; no thread wakes up while
no pool is armed (G4). Assumes that the pool calls `arm`, `deliver`, `ended` and `exempt` with its lock held.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

from cmwq._core.held import watched
from cmwq._core.ranks import Rank
from cmwq._core.tables import lookup
from cmwq._errors import CmwqError, ThreadLimit

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
    """Why this sensor does not work here; None: it does."""
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
"""In place of a CPU number: the plain tick."""


class SentinelSensor:
    """A Sensor: native threads of idle priority, and a plain 10 ms tick for the case that all of them are starved.

    There is one sentinel on each CPU of a pool, but no more than workers may run: under a CPU quota more would see
    nothing else. The caps on threads are checked before each is started, and where threads are few, sentinels take no
    more than half of them. The tick is started before the sentinels, because progress must not depend on them. The
    pool's first worker and its reserve come before the tick, because without these there is nothing to look at.

    Thread-safe. After `stop` each native thread ends when it next runs. In the child of a fork there are none.
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
        """A lookout for the pool. Raises ThreadLimit if too many pools are watched."""
        with self._lock:
            try:
                native = self._watch.lookout(pool.cpus, pool.target, pool.office.max_workers + 1, Rank.POOL)
            except CmwqError:  # a signal handler let it out
                raise
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
        """Start the native threads that are wanted and not there yet. A refused one is tried again with the next
        worker, because without workers there is nothing to watch.
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
        """Whether there is room for this thread, and for those that must come before it or should come after it."""
        if cpu == TICK:
            return self.host.thread_headroom(needed=True) > 2
        return self.host.thread_headroom() > len(self._posted)

    def cpus_changed(self) -> None:
        self._want(self.host.cpus())  # existing sentinels go back to their CPUs by themselves

    def stop(self) -> None:
        self._watch.stop()

    def statistics(self) -> dict[str, int]:
        """How many looks were taken and how many workers woken so far."""
        return dict(self._watch.statistics())


class SentinelLookout:
    """A Lookout: one pool's slots. A worker's parker is its slot; once the worker is attached, so is its `watched`."""

    def __init__(self, sensor: SentinelSensor, pool: WorkerPool, native: Any) -> None:
        self._sensor = sensor
        self._pool = pool
        self._native = native
        self._workers: dict[int, Worker] = {}
        self.set_target, self.set_cpus = native.set_target, native.set_cpus

    def lock(self) -> Lock:
        """The pool's lock. The sentinels know its futex, so a worker that waits for it does not count as blocked."""
        return watched(self._native, self._sensor.host.inside)

    def parker(self) -> Parker:
        self._sensor.post()
        try:
            slot: Parker = self._native.slot()
        except CmwqError:  # a signal handler let it out
            raise
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
            index = cast("Slot", worker.parker).index
            if lookup(self._workers, index) is worker:
                del self._workers[index]
            self.take_back(worker.parker)  # once: by then the slot may be another worker's

    def arm(self, reserve: Worker | None) -> None:
        self._native.arm(None if reserve is None else reserve.parker)

    def deliver(self) -> None:
        for index, sleeps, on_lock in self._native.deliver():
            worker = lookup(self._workers, index)
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

    def sleeps(self, worker: Worker) -> bool:
        return cast("Slot", worker.parker).sleeps()

    def exempt(self, worker: Worker, flag: bool) -> None:
        worker.watched.exempt(flag)
