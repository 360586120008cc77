"""Watchdog: it looks once a second, while work is unfinished, whether CPUs came or went (D1) and whether works stall
(H3).

Guarantees: a pool is reported if works are on its list and none began for `watchdog_thresh` seconds; once, until one
begins, and then that is reported too. A queue is reported likewise if its works wait for a place under `max_active` (or
in the order) while all works that hold a place rest: in that time none began or ended, and none used the CPU. Reports
go to the log and to the runtime's `on_stall`. A report is short, however many workers there are: those at the same
point make one entry. While everything is quiet the watchdog does not look (G4).

Time for which the process itself was stopped is no stall: a pause between two looks counts for at most two periods.

Every report of a stall is followed by one that it is over, also if the queue's place is gone by then: the watchdog goes
through the places that it knows, and not through those that the pool still has. It refers to them, so none vanishes
between two looks; and a look always follows one that saw works wait. In the child of a fork (G2), and after the end of
the runtime, no stall goes on, and nothing is told of that.

There is no race at the end of work: `on` is cleared before the pools are looked at. A thread that wakes a worker after
that calls `begin` anew; a worker that was woken before is seen. The letters are those of `pool`; D is `Watchdog._lock`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from cmwq._core import log
from cmwq._core.held import holding, outside
from cmwq._core.ranks import Rank
from cmwq._errors import ThreadLimit
from cmwq._pool.figures import see_all
from cmwq._pool.lending import AT_REST, Sight, sights
from cmwq._pool.recovery import bury_the_dead
from cmwq._pool.rescuer import revive_the_dead
from cmwq._workqueue.report import Stall, describe, describe_place
from cmwq._workqueue.snapshot import MAX_STALLS, StallView

if TYPE_CHECKING:
    from cmwq._pool.events import Event
    from cmwq._pool.item import Source
    from cmwq._pool.pool import WorkerPool
    from cmwq._pool.worker import Worker
    from cmwq._workqueue.runtime import Runtime


SOON = 0.05
"""Seconds until the first look after a rest: CPUs may have changed meanwhile."""


class Progress:
    """What was last seen of a pool, and of its places. Touched by the timer thread alone."""

    __slots__ = ("reported", "rescuers", "rests", "stalled_for", "started", "waited")

    def __init__(self) -> None:
        self.rests: dict[Source, Rest] = {}  # T
        self.started: int = 0  # T
        self.rescuers: dict[Worker, float | None] = {}  # T: their CPU time
        self.waited = False  # T
        self.stalled_for = 0.0  # T
        self.reported = False  # T

    def look(self, waits: bool, started: int, elapsed: float) -> None:
        """Note a look. waits: works are listed. started: how many began so far. elapsed: seconds since the last."""
        still = waits and self.waited and started == self.started
        self.stalled_for = self.stalled_for + elapsed if still else 0.0
        self.waited, self.started = waits, started


class Rest:
    """What was last seen of a queue's place where works wait inactive. Touched by the timer thread alone."""

    __slots__ = ("reported", "rested_for", "sight")

    def __init__(self, sight: Sight) -> None:
        self.sight = sight  # T
        self.rested_for = 0.0  # T
        self.reported = False  # T

    def look(self, sight: Sight, elapsed: float) -> None:
        self.rested_for = self.rested_for + elapsed if self.sight.all_rested(sight) else 0.0
        self.sight = sight


class Watchdog:
    """The watchdog of one runtime."""

    def __init__(self, runtime: Runtime) -> None:
        self.on = False  # D to change, read freely: a look is due, or none is ever to be
        self._stopped = False  # D
        self.on_stall: Callable[[Stall], object] | None = None  # A
        self._runtime = runtime  # I
        self._report = runtime.events.report_stall  # I
        self._lock = runtime.host.lock(Rank.WATCHDOG)  # F
        self._last = float("-inf")  # D: when it looked last
        self._progress: WeakKeyDictionary[WorkerPool, Progress] = WeakKeyDictionary()  # T
        self._told: list[StallView] = []  # T: what was reported: all stalls that go on, and the last that are over
        self._recent: tuple[StallView, ...] = ()  # T to change, read freely: those of them that pictures hold

    @property
    def _period(self) -> float:
        return self._runtime.config.watch_period

    def begin(self) -> None:
        """Look from now on: there is work.  Context: any lock may be held."""
        if self._period <= 0:
            self.on = True  # the watchdog is disabled: nobody need call `begin` again
            return
        with self._lock:
            if self.on:
                return
            host = self._runtime.host
            rested = host.monotonic() - self._last >= 2 * self._period
            try:
                host.call_later(SOON if rested else self._period, self._look)
            except ThreadLimit:
                return
            self.on = True

    def stop(self) -> None:
        """Stop at the end of the runtime. A look in progress begins no other: the timer thread may have ended."""
        with self._lock:
            self.on = self._stopped = True
            self._progress = WeakKeyDictionary()

    def forget(self) -> None:
        """Begin anew in the child of a fork: no look is due, and the parent's stalls are the parent's."""
        self._lock = self._runtime.host.lock(Rank.WATCHDOG)
        self.on = False
        self._progress = WeakKeyDictionary()
        self._told, self._recent = [], ()

    def recent(self) -> tuple[StallView, ...]:
        """The last reports. After the end of the runtime only those that something was over."""
        return tuple([stall for stall in self._recent if stall.over]) if self._stopped else self._recent

    def progress(self, pool: WorkerPool) -> Progress:
        """What was last seen of this pool."""
        return self._progress.setdefault(pool, Progress())

    @outside
    def _look(self) -> None:
        """Look at the CPUs and at each pool, and again later if one is busy.  Context: the timer."""
        runtime = self._runtime
        with self._lock:
            if self._stopped:
                return
            self.on = False
            now = runtime.host.monotonic()
            elapsed = min(now - self._last, 2 * self._period)
            self._last = now
        busy = False
        # Go on whatever is raised here: a pool that stalls wakes nobody, so nobody else would begin the next look.
        try:
            runtime.hotplug.check()
        except Exception:
            busy = True
            log.exception("the CPUs could not be looked at")
        for pool in runtime.pools():
            try:
                busy |= self._look_at(pool, elapsed)
            except Exception:
                busy = True
                log.exception("pool %s could not be looked at", pool.name)
        if busy:
            self.begin()

    def _look_at(self, pool: WorkerPool, elapsed: float) -> bool:
        """Look at one pool, and report what stalls or goes on. Returns whether the pool has work to do."""
        bury_the_dead(pool)
        revive_the_dead(pool)
        progress, threshold = self.progress(pool), pool.config.watchdog_thresh
        before = progress.stalled_for
        with pool.lock:
            busy = not pool.is_quiet()
            if busy:
                see_all(pool)
            pending = pool.nr_listed()
            progress.look(pool.has_work(), pool.nr_started(), elapsed)
            before_them, progress.rescuers = progress.rescuers, _cpu_of_rescuers(pool)
            places = sights(pool) if busy else {}
        resting = {w for w, cpu in progress.rescuers.items() if _rested(before_them.get(w), cpu, elapsed)}
        if progress.reported and not progress.stalled_for:
            progress.reported = False
            self._report(pool, Stall(pool.name, before, pending, True, "", ()))
        elif not progress.reported and 0 < threshold <= progress.stalled_for:
            progress.reported = True
            self._report(pool, describe(pool, progress.stalled_for, resting))
        rests = progress.rests
        for pwq in [pwq for pwq in rests if pwq not in places]:
            rest = rests.pop(pwq)
            self._goes_on(pwq, rest, rest.rested_for)
        for pwq, sight in places.items():
            if pwq in rests:
                self._look_at_place(pwq, rests[pwq], sight, elapsed, resting)
            else:
                rests[pwq] = Rest(sight)
        return busy

    def _look_at_place(self, pwq: Source, rest: Rest, sight: Sight, elapsed: float, resting: set[Worker]) -> None:
        before, threshold = rest.rested_for, pwq.pool.config.watchdog_thresh
        rest.look(sight, elapsed)
        if not rest.rested_for:
            self._goes_on(pwq, rest, before)
        elif not rest.reported and 0 < threshold <= rest.rested_for:
            rest.reported = True
            self._report(pwq.pool, describe_place(pwq, rest.rested_for, resting), pwq.wq)

    def _goes_on(self, pwq: Source, rest: Rest, rested_for: float) -> None:
        if rest.reported:
            rest.reported = False
            stall = Stall(pwq.pool.name, rested_for, len(pwq.inactive), True, "", (), pwq.name)
            self._report(pwq.pool, stall, pwq.wq)

    def hear(self, event: Event) -> None:
        """Receive a stall before any subscriber: pass it to the log and to `on_stall`."""
        stall = event.stall
        assert stall is not None
        text = str(stall)
        log.warning("%s", text)
        self._told.append(StallView(self._runtime.host.epoch(), stall.over, text, event.pool, stall.queue))
        self._told, self._recent = _bounded(self._told)
        if self.on_stall is not None:
            try:
                self.on_stall(stall)
            except BaseException:
                log.exception("on_stall raised")


def _bounded(told: list[StallView]) -> tuple[list[StallView], tuple[StallView, ...]]:
    """What of these reports is to be kept, and what of that a picture holds; both in order. What is over goes first,
    the oldest before all others: so the end of a stall never goes before its beginning, which would then seem to last.
    """
    last = {(stall.pool, stall.queue): stall for stall in told}
    standing = {id(stall) for stall in last.values() if not stall.over}
    over = [id(stall) for stall in told if id(stall) not in standing]
    dropped, hidden = set(over[:-MAX_STALLS]), set(over[: max(len(told) - MAX_STALLS, 0)])
    shown = [stall for stall in told if id(stall) not in hidden]
    return [stall for stall in told if id(stall) not in dropped], tuple(shown[-MAX_STALLS:])


@holding("pool.lock")
def _cpu_of_rescuers(pool: WorkerPool) -> dict[Worker, float | None]:
    """The CPU time of each rescuer that helps in this pool."""
    return {worker: worker.cpu_time() for worker in pool.workers if worker.is_rescuer}


def _rested(before: float | None, now: float | None, elapsed: float) -> bool:
    return before is not None and now is not None and now - before <= AT_REST * elapsed
