"""Child processes (A10): a worker that waits for its children counts as running while one of them computes.

A sensor sees that such a worker sleeps, and would have the next one started, until as many programs compute as there
are works. So whoever was woken because others sleep first looks at these. A sleeper below which a process computes is
noted as such (`blocking.CHILD`), and so is the function that it executes (`lane.Record.parent`): from then on works of
such functions begin only while fewer of them than the target compute, by themselves or by their children. The others
wait in the lane. Works of all other functions pass them, for a program that computes for long must not hold up what is
short (A9): to them such a worker is blocked.

Guarantees
- While work waits, a sleeper is looked at before a worker that was woken for its sake takes any work, and then again
  and again, by a timer. So it holds back others only as long as its children were seen to compute, and for one pause of
  the timer after.
- Who waits for works of ours with a call of ours is not looked at (`blocking.SAID`).
- Nothing is read while the process has no children, nor while no work waits; and only of workers seen asleep.
- No file is read with the pool's lock held.

What computes is any process below the worker's thread that is runnable, or used a fair share of the CPU since the last
look. Children that an earlier work left behind are not those of the next one (`Children.strays`), if they were seen.

The race: between the look and its note the worker may have ended its item, begun another, or been found to wait for a
work. The note counts only if, under the lock, it still executes the same item and sleeps as it did. It may have started
its first child just after the look; then the timer finds out, one pause late, and one more runs until then.

The letters are those of `pool`.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from cmwq._core.held import holding, outside
from cmwq._core.tables import lookup
from cmwq._errors import ThreadLimit
from cmwq._pool import blocking, lane
from cmwq._pool.alarm import Alarm
from cmwq._pool.blocking import CHILD, SEEN

if TYPE_CHECKING:
    from cmwq._core.ports import Process
    from cmwq._pool.item import Item
    from cmwq._pool.pool import WorkerPool
    from cmwq._pool.worker import Worker

SHARE = 0.25
"""The share of the time since the last look that a process must have used the CPU for, if it is not runnable now."""
SHORTEST = 0.5e-3
"""Seconds between two looks of the timer after a change: a program has begun, and may soon rest."""
LONGEST = 10e-3
"""Seconds between two looks of the timer while nothing changes."""
NONE: frozenset[int] = frozenset()
AT_A_TIME = 16
"""How many sleepers that do not count as running one look of the timer visits."""


class Below:
    """What was seen of the processes below one worker at one moment. Immutable."""

    __slots__ = ("at", "computes", "roots", "used")

    def __init__(self, roots: tuple[int, ...], processes: Iterable[Process], now: float, before: Below | None) -> None:
        """roots: the worker's own children. now: the time on the host's clock. before: the last look; None: none."""
        self.at = now  # I
        self.roots = roots  # I
        self.used: dict[int, float] = {} if before is None else dict(before.used)  # I: CPU seconds of each process
        self.computes = self._find(processes, before)  # I: one was seen to compute

    def _find(self, processes: Iterable[Process], before: Below | None) -> bool:
        """Return whether one of the processes computes. The search ends there, so what is known of the others stays."""
        seen: dict[int, float] = {}
        for pid, used, runnable in processes:
            seen[pid] = used
            share = 0.0 if before is None else (used - self.used.get(pid, used)) / max(self.at - before.at, 1e-9)
            if runnable or share > SHARE:
                self.used.update(seen)
                return True
        self.used = seen
        return False


class Children(Alarm):
    """What is known of one pool's child processes. The alarm is set while work waits and workers have children."""

    __slots__ = ("cursor", "dozers", "known", "parents", "pause", "strays")

    def __init__(self) -> None:
        super().__init__()
        self.parents: set[Worker] = set()  # L: workers that were seen asleep while their items had child processes
        self.dozers: set[Worker] = set()  # L: workers seen asleep, and not looked at since
        self.strays: dict[Worker, frozenset[int]] = {}  # L: child processes that earlier items of it left behind
        self.known = False  # L: a child process was seen to compute
        self.cursor = 0  # L: where the next look at sleepers begins
        self.pause = SHORTEST  # L: seconds until the next look

    @holding("pool.lock")
    def must_look(self, pool: WorkerPool) -> bool:
        """Return whether the timer has to look again and again: work waits, and workers have children, or what waits in
        the lane begins when children rest.
        """
        return bool(self.parents and pool.worklist) or bool(self.known and pool.lane.items)

    @holding("worker.pool.lock")
    def forget_item(self, worker: Worker) -> None:
        """The item of a worker that had children has ended. What is left of them is not the next item's."""
        if worker.below is not None:
            self.strays[worker] = (lookup(self.strays, worker) or NONE).union(worker.below.roots)
        worker.below = None
        self.parents.discard(worker)

    @holding("worker.pool.lock")
    def forget_worker(self, worker: Worker) -> None:
        """The worker ends."""
        self.dozers.discard(worker)
        self.parents.discard(worker)
        self.strays.pop(worker, None)


@holding("pool.lock")
def look_at_sleepers(pool: WorkerPool) -> None:
    """Look at the workers that were seen asleep since the last call. The lock is released and retaken if there is
    anything to look at. Context: a worker that was woken, and counts as on its way until this returns.
    """
    sleepers = [(worker, worker.item) for worker in pool.children.dozers if worker.blocked is SEEN]
    pool.children.dozers.clear()
    if sleepers and pool.host.has_children():
        pool.lock.release()
        _look(pool, sleepers)
        pool.lock.acquire()


@outside
def check(pool: WorkerPool) -> None:
    """Look again at the workers that have children, and at some that had none. Context: the timer."""
    known = pool.children
    with pool.lock:
        known.cancel()
        if not known.must_look(pool):
            return
        begin(pool)  # the next look, before anything that could fail
        parents = [w for w in pool.workers if w.blocked is CHILD or (w.blocked is None and lane.is_parent(w))]
        asleep = [worker for worker in pool.workers if worker.blocked is SEEN]
        first = known.cursor % len(asleep) if asleep else 0
        known.cursor = first + AT_A_TIME
        some = asleep[first : first + AT_A_TIME] + asleep[: max(0, first + AT_A_TIME - len(asleep))]
        sleepers = [(worker, worker.item) for worker in dict.fromkeys(parents + some)]
    changed = _look(pool, sleepers)
    with pool.lock:
        known.pause = SHORTEST if changed else min(2 * known.pause, LONGEST)
        if changed:
            known.cancel()
        lane.look_after(pool)  # the hogs' timer does that as well, unless it is switched off
        pool.kick()
        pool.settle()


@holding("pool.lock")
def begin(pool: WorkerPool) -> None:
    """Work waits, and workers have children: look at them again and again. Context: the alarm is not set."""
    if not pool.closing:
        with suppress(ThreadLimit):  # never, once the runtime has begun
            pool.children.set(pool.host, pool.children.pause, partial(check, pool))


@outside
def _look(pool: WorkerPool, sleepers: list[tuple[Worker, Item | None]]) -> bool:
    """Look at the processes below these workers, and note what was seen. Returns whether anything changed."""
    host, seen = pool.host, []
    for worker, item in sleepers:
        left_behind = lookup(pool.children.strays, worker) or NONE
        children = host.children_of(worker.tid)
        roots = tuple(child for child in children if child not in left_behind)
        if item is not None and (roots or left_behind or worker.below is not None or worker.record is not None):
            below = Below(roots, host.processes_below(roots), host.monotonic(), worker.below)
            asleep = pool.lookout.sleeps(worker)
            seen.append((worker, item, below, asleep, left_behind.intersection(children)))
    if not seen:
        return False
    changed = False
    with pool.lock:
        for worker, item, below, asleep, left_behind in seen:
            if worker.item is item:
                changed |= _note(pool, worker, below, asleep=asleep)
                if left_behind:
                    pool.children.strays[worker] = left_behind
                else:
                    pool.children.strays.pop(worker, None)
        if changed:
            pool.children.pause = SHORTEST
            pool.kick()
            pool.settle()
    return changed


@holding("pool.lock")
def _note(pool: WorkerPool, worker: Worker, below: Below, *, asleep: bool) -> bool:
    """Note what was seen below a worker. Returns whether that changed anything."""
    before = worker.blocked
    if before is None and asleep and lane.is_parent(worker):
        blocking.worker_sleeping(worker)  # no sensor looks while all that waits is in the lane
    if worker.blocked is not SEEN and worker.blocked is not CHILD:
        return False
    was_parent = worker in pool.children.parents
    if below.roots:
        worker.below = below
        pool.children.parents.add(worker)
    else:
        worker.below = None
        pool.children.parents.discard(worker)
    if below.computes:
        if worker.item is not None:
            pool.lane.remember(worker.item).parent = pool.children.known = True
        blocking.children_compute(worker)
    elif before is CHILD:
        blocking.children_rest(worker, asleep=asleep)
    elif not asleep:
        blocking.worker_running(worker)  # a sensor would not: it was not told that the worker is believed asleep
    return (worker in pool.children.parents) is not was_parent or worker.blocked is not before
