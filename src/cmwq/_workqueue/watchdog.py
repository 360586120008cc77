"""Watchdog: it looks once a second, while work is unfinished, whether CPUs came or went (D1) and whether works stall
(H3).

Guarantees: a pool is reported if works are on its list and none began for `watchdog_thresh` seconds; once, until one
begins, and then that is reported too. A queue is reported likewise if its works wait for a place under `max_active` (or
in the order) while all works that hold a place rest: in that time none began or ended, and none used the CPU. Reports
go to the log and to the runtime's `on_stall`. A report is short, however many workers there are: those at the same
point make one entry. While everything is quiet the watchdog does not look (G4).

Time for which the process itself was stopped is no stall: a pause between two looks counts for at most two periods.

There is no race at the end of work: `on` is cleared before the pools are looked at. A thread that wakes a worker after
that calls `begin` anew; a worker that was woken before is seen. The letters are those of `pool`; D is `Watchdog._lock`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from cmwq._core.held import holding, outside
from cmwq._core.ranks import Rank
from cmwq._errors import ThreadLimit
from cmwq._pool.lending import AT_REST, Sight, sights
from cmwq._pool.recovery import bury_the_dead
from cmwq._pool.rescuer import revive_the_dead

if TYPE_CHECKING:
    from cmwq._pool.events import Event
    from cmwq._pool.item import Item, Source
    from cmwq._pool.pool import WorkerPool
    from cmwq._pool.worker import Worker
    from cmwq._workqueue.runtime import Runtime
    from cmwq._workqueue.wait import Target

_log = logging.getLogger("cmwq")

SOON = 0.05
"""Seconds until the first look after a rest: CPUs may have changed meanwhile."""


MAX_ENTRIES = 20
"""The most entries of one report. Workers at further points are only counted."""
MAX_LINES = 50
"""The most lines of a report in words."""
GOOD_LINES = 12
"""How many lines an entry gets at least if many entries share a report, as far as there is room."""


@dataclass(frozen=True, slots=True)
class StalledWorker:
    """A worker of a pool or of a queue that stalls. It stands for all workers at the same point."""

    name: str
    tid: int
    """The system's identifier of its thread."""
    work: str
    """The work that it executes; empty: none."""
    waits_for: str
    """What that work waits for, as far as is known."""
    stack: tuple[str, ...]
    """In the form of `traceback.format_stack`."""
    alike: int = 1
    """How many workers, including this one, execute a work of the same name, wait alike and have the same stack."""

    def _lines(self, most: int) -> list[str]:
        """The entry in words, in at most so many lines: the innermost calls are kept."""
        who = f"{self.name} (thread {self.tid})"
        if self.alike > 1:
            who = f"{self.alike} workers, {who} and others"
        waits = f", {self.waits_for}" if self.waits_for else ""
        stack = [line for entry in self.stack for line in entry.rstrip().split("\n")]
        if len(stack) > most - 1:
            stack = ["  ...", *stack[len(stack) - most + 2 :]] if most > 2 else []
        return [f"  {who}: {self.work or 'idle'}{waits}", *(f"    {line}" for line in stack)]


@dataclass(frozen=True, slots=True)
class Stall:
    """A report: works wait, and none of them began for long (H3). They are those of a pool, or of one queue on it."""

    pool: str
    seconds: float
    """For how long none began."""
    pending: int
    """How many works wait: for a worker of the pool; or, for a queue, for their place."""
    over: bool
    """True: the stall is over, one began again."""
    reason: str
    """What is missing, as far as is known, and what helps."""
    workers: tuple[StalledWorker, ...]
    """The workers, one entry for those at the same point; the largest entries first."""
    queue: str = ""
    """The queue whose works wait for a place, under `max_active` or in the order. Empty: the stall is the pool's."""
    left_out: int = 0
    """How many more workers are in no entry."""

    def __str__(self) -> str:
        where = f"queue {self.queue!r} on pool {self.pool}" if self.queue else f"pool {self.pool}"
        if self.over:
            return f"{where} goes on, after {self.seconds:.0f} s"
        lines = [f"{where}: {self.pending} works wait, and none began for {self.seconds:.0f} s; {self.reason}"]
        left_out = self.left_out
        for index, worker in enumerate(self.workers):
            room, left = MAX_LINES - 1 - len(lines), len(self.workers) - index
            if room:  # one line for each entry left, and more for the first ones, which stand for most workers
                lines += worker._lines(max(min(room - left + 1, max(room // left, GOOD_LINES)), 1))
            else:
                left_out += worker.alike
        if left_out:
            lines.append(f"  and {left_out} workers more")
        return "\n".join(lines)


class Progress:
    """What was last seen of a pool. Touched by the timer thread alone."""

    __slots__ = ("reported", "rescuers", "stalled_for", "started", "waited")

    def __init__(self) -> None:
        self.started = 0  # T
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
        self._rests: WeakKeyDictionary[Source, Rest] = WeakKeyDictionary()  # T

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

    def forget(self) -> None:
        """Begin anew in the child of a fork: no look is due."""
        self._lock = self._runtime.host.lock(Rank.WATCHDOG)
        self.on = False

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
            _log.exception("the CPUs could not be looked at")
        for pool in runtime.pools():
            try:
                busy |= self._look_at(pool, elapsed)
            except Exception:
                busy = True
                _log.exception("pool %s could not be looked at", pool.name)
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
            pending = pool.nr_listed()
            progress.look(pool.has_work(), pool.nr_started(), elapsed)
            before_them, progress.rescuers = progress.rescuers, _cpu_of_rescuers(pool)
            places = sights(pool) if busy else {}
            known = [pwq for pwq in pool.pwqs if pwq in self._rests]
        resting = {w for w, cpu in progress.rescuers.items() if _rested(before_them.get(w), cpu, elapsed)}
        if progress.reported and not progress.stalled_for:
            progress.reported = False
            self._report(pool, Stall(pool.name, before, pending, True, "", ()))
        elif not progress.reported and 0 < threshold <= progress.stalled_for:
            progress.reported = True
            self._report(pool, _describe(pool, progress.stalled_for, resting))
        for pwq in known:
            if pwq not in places:
                rest = self._rests.pop(pwq)
                self._goes_on(pwq, rest, rest.rested_for)
        for pwq, sight in places.items():
            self._look_at_place(pwq, sight, elapsed, resting)
        return busy

    def _look_at_place(self, pwq: Source, sight: Sight, elapsed: float, resting: set[Worker]) -> None:
        rest = self._rests.get(pwq)
        if rest is None:
            self._rests[pwq] = Rest(sight)
            return
        before, threshold = rest.rested_for, pwq.pool.config.watchdog_thresh
        rest.look(sight, elapsed)
        if not rest.rested_for:
            self._goes_on(pwq, rest, before)
        elif not rest.reported and 0 < threshold <= rest.rested_for:
            rest.reported = True
            self._report(pwq.pool, _describe_place(pwq, rest.rested_for, resting), pwq.wq)

    def _goes_on(self, pwq: Source, rest: Rest, rested_for: float) -> None:
        if rest.reported:
            rest.reported = False
            stall = Stall(pwq.pool.name, rested_for, len(pwq.inactive), True, "", (), pwq.name)
            self._report(pwq.pool, stall, pwq.wq)

    def hear(self, event: Event) -> None:
        """Receive a stall before any subscriber: pass it to the log and to `on_stall`."""
        stall = event.stall
        assert stall is not None
        _log.warning("%s", stall)
        if self.on_stall is not None:
            try:
                self.on_stall(stall)
            except BaseException:
                _log.exception("on_stall raised")


@holding("pool.lock")
def _cpu_of_rescuers(pool: WorkerPool) -> dict[Worker, float | None]:
    """The CPU time of each rescuer that helps in this pool."""
    return {worker: worker.cpu_time() for worker in pool.workers if worker.is_rescuer}


def _rested(before: float | None, now: float | None, elapsed: float) -> bool:
    return before is not None and now is not None and now - before <= AT_REST * elapsed


def _describe(pool: WorkerPool, seconds: float, resting: set[Worker]) -> Stall:
    """The report on a pool. resting: the rescuers that used no CPU since the last look."""
    with pool.lock:
        pending = pool.nr_listed()
        stranded = sorted({repr(item.pwq.name) for item in pool.listed() if item.pwq.rescuer is None})
        if pool.office.refused:
            reason = f"no thread could be had {pool.office.nr_refusals} times in a row ({pool.office.refusal})"
            if stranded:
                reason += f"; without a rescuer: {_some(stranded)}"
        elif pool.office.taken:
            reason = "a thread is being created"
        elif pool.memory.held and pool.memory.view is not None:
            used, limit, source = pool.memory.view
            reason = f"memory is short ({used >> 20:,} of {limit >> 20:,} MiB are used, the limit of {source})"
        elif pool.disassociated:
            reason = f"its CPU left, and all may run; {pool.nr_running} are believed to, {pool.nr_blocked} to block"
        else:
            reason = f"{pool.nr_running} of {pool.target} that may run are believed to run, {pool.nr_blocked} to block"
        found = _executed(pool.workers)
    waiting = pool.runtime.waits.all()
    workers, left_out = _grouped(pool, found, waiting)
    reason += _words_on_rescuers(found, waiting, resting)
    return Stall(pool.name, seconds, pending, False, reason, workers, left_out=left_out)


def _describe_place(pwq: Source, seconds: float, resting: set[Worker]) -> Stall:
    pool = pwq.pool
    with pool.lock:
        pending = sum(not item.withdrawn for item in pwq.inactive)
        found = _executed(worker for worker in pool.workers if worker.item is not None and worker.item.pwq is pwq)
        holders = sum(worker.lender is not pwq for worker, _, _ in found)
        limit = "it is ordered" if pwq.ordered else f"max_active is {pwq.max_active}{', learned' * pwq.wq.learns}"
    reason = (
        f"{limit}, and none of the {holders} before them used the CPU since: see what they wait for, "
        "and give that a limit of time"
    )
    waiting = pool.runtime.waits.all()
    workers, left_out = _grouped(pool, found, waiting)
    reason += _words_on_rescuers(found, waiting, resting)
    return Stall(pool.name, seconds, pending, False, reason, workers, pwq.name, left_out)


def _executed(workers: Iterable[Worker]) -> list[tuple[Worker, Item | None, int]]:
    """Each worker with what it executes and the system's identifier of its thread.  Context: lock held."""
    ordered = sorted(workers, key=lambda worker: worker.index)
    return [(worker, worker.item, worker.tid) for worker in ordered if worker.thread is not None]


def _grouped(
    pool: WorkerPool, found: list[tuple[Worker, Item | None, int]], waiting: dict[Item, Target]
) -> tuple[tuple[StalledWorker, ...], int]:
    """One entry for the workers at the same point, the largest first; and how many workers are in no entry."""
    entries: dict[tuple[str, str, tuple[str, ...]], StalledWorker] = {}
    for worker, item, tid in found:
        target = None if item is None else waiting.get(item)
        waits_for = pool.host.waits_in(tid) if target is None else _words(target.describe_wait)
        stack = pool.host.stack_of(worker.thread) if item is not None else ()
        point = _words(item.describe) if item is not None else "", waits_for, stack
        same = entries.get(point)
        alike = 1 if same is None else same.alike + 1
        entries[point] = replace(same or StalledWorker(worker.name, tid, *point), alike=alike)
    most_first = sorted(entries.values(), key=lambda entry: (not entry.work, -entry.alike))
    return tuple(most_first[:MAX_ENTRIES]), sum(entry.alike for entry in most_first[MAX_ENTRIES:])


def _words_on_rescuers(
    found: list[tuple[Worker, Item | None, int]], waiting: dict[Item, Target], resting: set[Worker]
) -> str:
    """Name the works within which a rescuer rests, unless in a wait of ours, which is told: the reader must act."""
    stuck = [
        _words(item.describe)
        for worker, item, _ in found
        if worker in resting and item is not None and item not in waiting
    ]
    if not stuck:
        return ""
    return (
        f"; the rescuer is stuck in {_some(stuck)}, which waits for something unknown here, maybe for a work that only "
        "this rescuer could begin. Let it wait by result() or flush(), which then raise ThreadLimit, or with a timeout"
    )


def _some(words: list[str]) -> str:
    """The words in no more than a line."""
    more = f" and {len(words) - 5} more" if len(words) > 5 else ""
    return ", ".join(words[:5]) + more


def _words(describe: Callable[[], str]) -> str:
    """What describe() returns. It may call the repr() of a user's callable, which may raise."""
    try:
        return describe()
    except Exception as exc:
        return f"(its repr() raised {type(exc).__name__})"
