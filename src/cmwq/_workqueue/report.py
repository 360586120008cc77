"""Report: what the watchdog tells of a pool or a queue that stalls (H3), and what helps.

A report is short, however many workers there are: those at the same point make one entry. Why nobody comes is said by
`reasons`, as in the picture. Where most workers wait for one lock, that comes first, with who holds it and what that
one waits for in turn, as far as it can be told; what is a guess says so (`_host.awaited`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cmwq._core.held import outside
from cmwq._core.naming import counted
from cmwq._pool.reasons import limit_of, some, why_nobody_comes

if TYPE_CHECKING:
    from cmwq._core.ports import Awaited
    from cmwq._pool.item import Item, Source
    from cmwq._pool.pool import WorkerPool
    from cmwq._pool.worker import Worker
    from cmwq._workqueue.wait import Target

MAX_ENTRIES = 20
"""The most entries of one report. Workers at further points are only counted."""
MAX_LINES = 50
"""The most lines of a report in words."""
OF_WORKERS = re.compile(r"[/\\](?:threading|cmwq[/\\](?:_core|_host|_pool|_workqueue|executor)[/\\].*)\.py$|_sentinel")
"""The files of what every worker calls before it comes to a work."""
FILE = re.compile(r'\s*File "(.*?)", line \d+')
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
    """In the form of `traceback.format_stack`, from the work's function on."""
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
        waits = counted(self.pending, "work waits", "works wait")
        lines = [f"{where}: {waits}, and none began for {self.seconds:.0f} s; {self.reason}"]
        left_out = self.left_out
        for index, worker in enumerate(self.workers):
            room, left = MAX_LINES - 1 - len(lines), len(self.workers) - index
            if room:  # one line for each entry left, and more for the first ones, which stand for most workers
                lines += worker._lines(max(min(room - left + 1, max(room // left, GOOD_LINES)), 1))
            else:
                left_out += worker.alike
        if left_out:
            lines.append(f"  and {counted(left_out, 'worker')} more")
        return "\n".join(lines)


@outside
def describe(pool: WorkerPool, seconds: float, resting: set[Worker]) -> Stall:
    """The report on a pool. resting: the rescuers that used no CPU since the last look."""
    with pool.lock:
        pending = pool.nr_listed()
        reason = why_nobody_comes(pool)
        found = _executed(pool.workers)
    waiting = pool.runtime.waits.all()
    workers, left_out, culprit = _grouped(pool, found, waiting)
    reason += culprit + _words_on_rescuers(found, waiting, resting)
    return Stall(pool.name, seconds, pending, False, reason, workers, left_out=left_out)


@outside
def describe_place(pwq: Source, seconds: float, resting: set[Worker]) -> Stall:
    """The report on a queue whose works wait for their place on a pool."""
    pool = pwq.pool
    with pool.lock:
        pending = sum(not item.withdrawn for item in pwq.inactive)
        found = _executed(worker for worker in pool.workers if worker.item is not None and worker.item.pwq is pwq)
        holders = sum(worker.lender is not pwq for worker, _, _ in found)
        limit = limit_of(pwq)
    waiting = pool.runtime.waits.all()
    workers, left_out, culprit = _grouped(pool, found, waiting)
    common = Counter({entry.waits_for: entry.alike for entry in workers}).most_common(1)
    alike = not culprit and holders > 1 and bool(common) and common[0][1] == len(found) and bool(common[0][0])
    rest = (
        "the work that has a place used no CPU since" if holders == 1
        else f"none of the {holders} works that have a place used the CPU since"
    )  # fmt: skip
    reason = f"{limit}, and {rest}" + (
        f": each {common[0][0]}; give that a limit of time" if alike
        else f"{culprit}; let it release that lock before it waits" if culprit
        else f": see what {'it waits' if holders == 1 else 'they wait'} for, and give that a limit of time"
    )  # fmt: skip
    reason += _words_on_rescuers(found, waiting, resting)
    return Stall(pool.name, seconds, pending, False, reason, workers, pwq.name, left_out)


def _executed(workers: Iterable[Worker]) -> list[tuple[Worker, Item | None, int]]:
    """Each worker with what it executes and the system's identifier of its thread.  Context: lock held."""
    ordered = sorted(workers, key=lambda worker: worker.index)
    return [(worker, worker.item, worker.tid) for worker in ordered if worker.thread is not None]


def _grouped(
    pool: WorkerPool, found: list[tuple[Worker, Item | None, int]], waiting: dict[Item, Target]
) -> tuple[tuple[StalledWorker, ...], int, str]:
    """One entry for the workers at the same point, the largest first; how many workers are in no entry; and the lock
    that most of them wait for, in words.
    """
    locks = pool.host.awaited([worker.thread for worker, item, _ in found if item is not None])
    locks = with_workers(locks, [worker for worker, _, _ in found])
    entries: dict[tuple[str, str, tuple[str, ...]], StalledWorker] = {}
    for worker, item, tid in found:
        target = None if item is None else waiting.get(item)
        waits_for = pool.host.waits_in(tid) if target is None else _words(target.describe_wait)
        lock = locks.get(id(worker.thread))
        if target is None and lock is not None:
            waits_for = lock.instead_of(waits_for)
        stack = own_part(pool.host.stack_of(worker.thread)) if item is not None else ()
        point = _words(item.describe) if item is not None else "", waits_for, stack
        same = entries.get(point)
        alike = 1 if same is None else same.alike + 1
        entries[point] = replace(same or StalledWorker(worker.name, tid, *point), alike=alike)
    most_first = sorted(entries.values(), key=lambda entry: (not entry.work, -entry.alike))
    return (
        tuple(most_first[:MAX_ENTRIES]),
        sum(entry.alike for entry in most_first[MAX_ENTRIES:]),
        _culprit(pool, found, waiting, locks),
    )


def with_workers(locks: dict[int, Awaited], workers: Iterable[Worker]) -> dict[int, Awaited]:
    """The same, each holder that is one of these workers by the worker's name: its thread may have any (B5). What a
    worker does is told of itself.
    """
    names = {getattr(worker.thread, "ident", None): worker.name for worker in workers}
    return {
        key: lock._replace(holder_name=names[lock.holder], holder_does="") if lock.holder in names else lock
        for key, lock in locks.items()
    }


def _culprit(
    pool: WorkerPool,
    found: list[tuple[Worker, Item | None, int]],
    waiting: dict[Item, Target],
    locks: dict[int, Awaited],
) -> str:
    """Name the lock for which most workers that execute something wait, who holds it, and what that one waits for."""
    busy: list[tuple[Worker, Item | None, int]] = [
        (worker, item, tid) for worker, item, tid in found if item is not None
    ]
    held = Counter(
        (lock.words, lock.holder)
        for worker, item, _ in busy
        if item is not None
        and item not in waiting
        and (lock := locks.get(id(worker.thread))) is not None
        and lock.holder
    )
    if not held:
        return ""
    (words, holder), number = held.most_common(1)[0]
    same_holder = sum(count for (_, other), count in held.items() if other == holder)
    if 2 * (same_holder + 1) < len(busy):
        return ""
    one = next(lock for lock in locks.values() if lock.holder == holder)
    all_others = same_holder + 1 >= len(busy)
    who = "every other worker" if all_others and len(busy) > 2 else f"{number} of {len(busy)} workers"
    return f"; {who} waits for {words}, {_chain(pool, one, busy, waiting, locks)}"


MAX_LINKS = 5
"""So many holders of locks are named in a chain."""


def _chain(
    pool: WorkerPool,
    lock: Awaited,
    busy: list[tuple[Worker, Item | None, int]],
    waiting: dict[Item, Target],
    locks: dict[int, Awaited],
) -> str:
    """Who holds the lock, what that one waits for, and so on."""
    links: list[str] = []
    seen: set[int] = set()
    by_ident = {getattr(worker.thread, "ident", 0): (worker, item, tid) for worker, item, tid in busy}
    while len(links) < MAX_LINKS:
        worker, item, tid = by_ident.get(lock.holder, (None, None, 0))
        does = f" ({_words(item.describe)})" if item is not None else ""
        name = worker.name if worker is not None else lock.holder_name
        link = f"{'held' if lock.sure else 'probably held'} by {name}{does}"
        if lock.holder in seen:
            links.append(f"{link}: so none of them ever goes on")
            break
        seen.add(lock.holder)
        if worker is None:
            links.append(f"{link}, which {lock.holder_does or 'is no worker of this pool'}")
            break
        further = locks.get(id(worker.thread))
        if item is not None and item in waiting:
            links.append(f"{link}, which {_words(waiting[item].describe_wait)}")
            break
        if further is None or not further.holder:
            words = f"waits for {further.words}" if further is not None else pool.host.waits_in(tid) or "runs"
            links.append(f"{link}, which {words}")
            break
        links.append(f"{link}, which waits for {further.words}")
        lock = further
    return ", ".join(links)


def own_part(stack: Sequence[str]) -> tuple[str, ...]:
    """The stack without what every worker calls before it comes to a work. If nothing else is there, all of it."""
    for outer, entry in enumerate(stack):
        found = FILE.match(entry)
        if found is None or not OF_WORKERS.search(found[1]):
            return tuple(stack[outer:])
    return tuple(stack)


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
        f"; the rescuer is stuck in {some(stuck)}, which waits for something unknown here, maybe for a work that only "
        "this rescuer could begin. Let it wait by result() or flush(), which then raise ThreadLimit, or with a timeout"
    )


def _words(describe: Callable[[], str]) -> str:
    """What describe() returns. It may call the repr() of a user's callable, which may raise."""
    try:
        return describe()
    except Exception as exc:
        return f"(its repr() raised {type(exc).__name__})"
