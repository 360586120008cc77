"""The simulated sensor: it notices what works of a simulation do, at once or late, in the ways of the real ones."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from cmwq._core.held import outside
from cmwq._core.ranks import Rank
from cmwq.testing.sim_host import SimHost

if TYPE_CHECKING:
    from cmwq._pool.pool import WorkerPool
    from cmwq._pool.worker import Worker


class SimSensor:
    """A sensor that notices every `Simulation.sleep`: at once, or `late` seconds later if `miss()` says so, as a
    level-triggered sensor does.

    marks: it reports as the sentinel does. It marks what it saw, and wakes the reserve with which it was armed when no
    thread can run, as if it had the priority of an idle CPU. For simulated threads, of which one runs at a time.
    """

    name = "scripted"
    reason = "the simulation's own"

    def __init__(
        self, host: SimHost, late: float = 0.0, miss: Callable[[], bool] = lambda: False, marks: bool = False
    ) -> None:
        self._host = host
        self._late = late
        self._miss = miss
        self._marks = marks

    def lookout(self, pool: WorkerPool) -> SimLookout:
        return MarkingLookout(pool, self._host) if self._marks else SimLookout(pool, self._host, self.report)

    def cpus_changed(self) -> None:
        pass

    def stop(self) -> None:
        pass

    def sleeping(self, worker: Worker) -> None:
        """The script has this worker sleep from now on."""
        item = worker.item
        if self._miss():
            self._host.call_later(self._late, lambda: self.report(worker, item))
        else:
            self.report(worker, item)

    @outside
    def report(self, worker: Worker, item: object) -> None:
        """Report that the worker sleeps, if it still does so in that item."""
        pool = worker.pool
        if isinstance(pool.lookout, MarkingLookout):
            if worker.item is item and worker.watched:
                pool.lookout.mark(worker, True)
            return
        with pool.lock:
            if worker.item is not item or not worker.watched:
                return
            pool.worker_sleeping(worker)
            pool.kick()

    def running(self, worker: Worker) -> None:
        """The script has this worker run again."""
        if isinstance(worker.pool.lookout, MarkingLookout):
            worker.pool.lookout.mark(worker, False)
            return
        with worker.pool.lock:
            worker.pool.worker_running(worker)


class SimLookout:
    """A lookout that reports at once. report: `SimSensor.report`; None: what it sees is reported in another way."""

    def __init__(self, pool: WorkerPool, host: SimHost, report: Callable[[Worker, object], None] | None = None) -> None:
        self.armed: Worker | None = None
        self._call_later = host.call_later
        self._report = report
        self.parker = host.parker
        self.lock = partial(host.lock, Rank.POOL)

    def take_back(self, parker: Any) -> None:
        pass

    def attach(self, worker: Worker) -> None:
        worker.watched = False
        worker.ended = partial(self.ended, worker)

    def detach(self, worker: Worker) -> None:
        pass

    def arm(self, reserve: Worker | None) -> None:
        self.armed = reserve

    def deliver(self) -> None:
        pass

    def remind(self) -> None:
        pass

    def review(self, worker: Worker, enough: int) -> None:
        pass

    def sleeps(self, worker: Worker) -> bool:
        return bool(worker.watched)

    def ended(self, worker: Worker) -> None:
        worker.watched = False

    def exempt(self, worker: Worker, flag: bool) -> None:
        if worker.watched and not flag and self._report is not None:  # it sleeps: a sensor sees that again
            self._call_later(0.0, partial(self._report, worker, worker.item))

    def set_target(self, target: int) -> None:
        pass

    def set_cpus(self, cpus: tuple[int, ...]) -> None:
        pass


class MarkingLookout(SimLookout):
    """A lookout like the sentinel's: a verdict is a mark until a worker reads it."""

    def __init__(self, pool: WorkerPool, host: SimHost) -> None:
        super().__init__(pool, host)
        self._pool = pool
        self._host = host
        self._visible: set[Worker] = set()  # attached, and not exempt
        self._marks: dict[Worker, bool] = {}  # not read yet: does the worker sleep?
        self._nr_asleep = 0  # how many of those marks say so
        self._due = False  # a look is due

    def mark(self, worker: Worker, sleeps: bool) -> None:
        if worker not in self._visible:
            return  # the sentinel does not look there either
        self._forget(worker)
        if worker.sleeping != sleeps:
            self._marks[worker] = sleeps
            self._nr_asleep += sleeps
            self._look_soon()

    def arm(self, reserve: Worker | None) -> None:
        super().arm(reserve)
        self._look_soon()

    def deliver(self) -> None:
        marks, self._marks, self._nr_asleep = self._marks, {}, 0
        for worker, sleeps in marks.items():
            (self._pool.worker_sleeping if sleeps else self._pool.worker_running)(worker)

    def review(self, worker: Worker, enough: int) -> None:
        self.deliver()

    def ended(self, worker: Worker) -> None:
        super().ended(worker)
        self._forget(worker)

    def attach(self, worker: Worker) -> None:
        super().attach(worker)
        self._visible.add(worker)

    def detach(self, worker: Worker) -> None:
        self._visible.discard(worker)
        self._forget(worker)

    def exempt(self, worker: Worker, flag: bool) -> None:
        (self._visible.discard if flag else self._visible.add)(worker)
        self._forget(worker)
        if worker.watched:
            self.mark(worker, True)
        self._look_soon()

    def set_target(self, target: int) -> None:
        self._look_soon()

    def _forget(self, worker: Worker) -> None:
        self._nr_asleep -= self._marks.pop(worker, False)

    def _look_soon(self) -> None:
        if self.armed is not None and self._nr_asleep and not self._due:
            self._due = True
            self._host._at(0.0, self._look)

    def _look(self) -> None:
        """Wake the reserve if fewer workers run than may.  Context: no thread can run."""
        self._due = False
        reserve, pool = self.armed, self._pool
        if reserve is not None and pool.nr_running - self._nr_asleep < pool.target:  # children count on both sides
            self.armed = None  # one arming wakes at most one worker
            reserve.parker.ring()  # type: ignore[attr-defined]
