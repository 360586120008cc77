"""Watchdog: looks once a second, while work is unfinished, whether CPUs came or went (D1) and whether pools stall (H3).

Guarantees: a pool with works on its list of which none began for `watchdog_thresh` is reported, once until one begins;
then that is reported too. To the log, and to the runtime's `on_stall`. While everything is quiet nobody looks (G4).

Time in which the process itself was stopped is no stall: a pause between two looks counts for two periods at most.

No race at the end of work: the flag is cleared before the pools are looked at. Whoever wakes a worker after that begins
anew; what was woken before is seen. Letters as in `pool`; D: `Watchdog._lock`, a leaf.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cmwq._core.ranks import Rank
from cmwq._core.worker import bury_the_dead
from cmwq._errors import ThreadLimit

if TYPE_CHECKING:
    from cmwq._core.pool import WorkerPool
    from cmwq._core.runtime import Runtime

_log = logging.getLogger("cmwq")

SOON = 0.05
"""Seconds until the first look after a rest: CPUs may have changed meanwhile."""


@dataclass(frozen=True, slots=True)
class StalledWorker:
    """A worker of a pool that stalls."""

    name: str
    tid: int
    """The system's name for its thread."""
    work: str
    """What it executes; empty: nothing."""
    waits_for: str
    """What that waits for, as far as is known."""
    stack: tuple[str, ...]
    """As `traceback.format_stack`."""


@dataclass(frozen=True, slots=True)
class Stall:
    """A pool with pending works of which none began for long (H3)."""

    pool: str
    seconds: float
    """For how long."""
    pending: int
    over: bool
    """One began again."""
    reason: str
    """What is missing, as far as is known."""
    workers: tuple[StalledWorker, ...]

    def __str__(self) -> str:
        if self.over:
            return f"pool {self.pool} goes on, after {self.seconds:.0f} s"
        lines = [f"pool {self.pool}: {self.pending} works wait, and none began for {self.seconds:.0f} s; {self.reason}"]
        for worker in self.workers:
            doing = worker.work or "idle"
            waits = f", {worker.waits_for}" if worker.waits_for else ""
            lines.append(f"  {worker.name} (thread {worker.tid}): {doing}{waits}")
            lines.extend(f"    {line.rstrip()}".replace("\n", "\n    ") for line in worker.stack)
        return "\n".join(lines)


class Progress:
    """What was last seen of a pool. Touched by the timer alone."""

    __slots__ = ("reported", "stalled_for", "started", "waited")

    def __init__(self) -> None:
        self.started = 0
        self.waited = False
        self.stalled_for = 0.0
        self.reported = False

    def look(self, waits: bool, started: int, elapsed: float) -> None:
        """waits: works are listed. started: how many began so far. elapsed: since the last look."""
        still = waits and self.waited and started == self.started
        self.stalled_for = self.stalled_for + elapsed if still else 0.0
        self.waited, self.started = waits, started


class Watchdog:
    """One runtime's."""

    def __init__(self, runtime: Runtime) -> None:
        self.on = False  # D to change, read freely: it will look, or shall not
        self._stopped = False  # D
        self.on_stall: Callable[[Stall], object] | None = None
        self._runtime = runtime  # I
        self._period = runtime.config.watch_period  # I
        self._lock = runtime.host.lock(Rank.WATCHDOG)
        self._last = float("-inf")  # D: when it looked

    def begin(self) -> None:
        """There is work.  Context: any lock may be held."""
        if self._period <= 0:
            self.on = True  # nobody ever looks
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
        """At the end of the runtime. A look in progress begins no other: the timer thread may have ended."""
        with self._lock:
            self.on = self._stopped = True

    def forget(self) -> None:
        """In the child of a fork."""
        self._lock = self._runtime.host.lock(Rank.WATCHDOG)
        self.on = False

    def _look(self) -> None:
        """Context: the timer."""
        runtime = self._runtime
        with self._lock:
            if self._stopped:
                return
            self.on = False
            now = runtime.host.monotonic()
            elapsed = min(now - self._last, 2 * self._period)
            self._last = now
        busy = False
        # Whatever is raised here: a pool that stalls wakes nobody, so nobody else would begin the next look.
        try:
            runtime.hotplug.check()
        except Exception:
            busy = True
            _log.exception("the CPUs could not be looked at")
        for pool in list(runtime._pools.values()):
            try:
                busy |= self._look_at(pool, elapsed)
            except Exception:
                busy = True
                _log.exception("pool %s could not be looked at", pool.name)
        if busy:
            self.begin()

    def _look_at(self, pool: WorkerPool, elapsed: float) -> bool:
        """Whether it has work to do."""
        bury_the_dead(pool)
        progress, threshold = pool.progress, pool.config.watchdog_thresh
        before = progress.stalled_for
        with pool.lock:
            busy = not pool.is_quiet()
            progress.look(pool.has_work(), pool.nr_started(), elapsed)
        if progress.reported and not progress.stalled_for:
            progress.reported = False
            self._tell(Stall(pool.name, before, len(pool.worklist), True, "", ()))
        elif not progress.reported and 0 < threshold <= progress.stalled_for:
            progress.reported = True
            self._tell(_describe(pool, progress.stalled_for))
        return busy

    def _tell(self, stall: Stall) -> None:
        _log.warning("%s", stall)
        if self.on_stall is not None:
            try:
                self.on_stall(stall)
            except BaseException:
                _log.exception("on_stall raised")


def _describe(pool: WorkerPool, seconds: float) -> Stall:
    waiting = pool.runtime.waits.all()
    with pool.lock:
        pending = len(pool.worklist)
        stranded = sorted({item.queue.name for item in pool.worklist if item.queue.rescuer is None})
        if pool.refused:
            reason = f"no thread could be had {pool.nr_refusals} times in a row ({pool.refusal})"
            if stranded:
                reason += f"; without a rescuer: {', '.join(map(repr, stranded))}"
        elif pool.managing:
            reason = "a thread is being created"
        elif pool.disassociated:
            reason = f"its CPU left, and all may run; {pool.nr_running} are believed to, {pool.nr_blocked} to block"
        else:
            reason = f"{pool.nr_running} of {pool.target} that may run are believed to run, {pool.nr_blocked} to block"
        found = [
            (worker, worker.item, worker.tid)
            for worker in sorted(pool.workers, key=lambda worker: worker.index)
            if worker.thread is not None
        ]
    workers = []
    for worker, item, tid in found:
        target = None if item is None else waiting.get(item)
        waits_for = pool.host.waits_in(tid) if target is None else _words(target.describe_wait)
        stack = pool.host.stack_of(worker.thread) if item is not None else ()
        what = _words(item.describe) if item is not None else ""
        workers.append(StalledWorker(worker.name, tid, what, waits_for, stack))
    return Stall(pool.name, seconds, pending, False, reason, tuple(workers))


def _words(describe: Callable[[], str]) -> str:
    """To name a callable may mean to ask its repr(), which is the user's."""
    try:
        return describe()
    except Exception as exc:
        return f"(its repr() raised {type(exc).__name__})"
