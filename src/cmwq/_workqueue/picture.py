"""Picture: how a snapshot is taken, so that whoever looks costs the process little (H1, H4).

Guarantees
- Of each pool, everything that is told of it and of the queues' places there is read in one critical section (H4). In
  that section no file is read, and nothing is formatted but a few reasons.
- `/proc`, stacks and memory are read with no lock held, and afterwards. What was seen there corrects `running` and
  `blocked` of a pool, and their sum stays.
- A picture without stacks looks at `LOOKS` threads at most, which takes 10 to 30 us each. These are the workers that
  are believed to run, for no sensor looks while no work waits, and then others in turn; of all others it has the words
  of the last look at them. Likewise it reads the CPU clocks of these threads only. So a lone sleeper shows as blocked,
  and a picture of 1,000 workers stays under a millisecond.
- A picture with stacks looks at all workers that it holds. It is for somebody who reads it, and takes tens of
  milliseconds for a thousand workers. Each stack has its innermost `MAX_FRAMES` calls.
- Nothing of a user is called, no `repr` either.

The letters are those of `pool`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from heapq import nlargest
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple

from cmwq._core.held import holding, outside
from cmwq._pool.blocking import CHILD, HOG, SAID, SEEN, SEEN_ON_LOCK
from cmwq._pool.events import name_of_pool
from cmwq._pool.figures import BOUNDS, Seen, bill, see
from cmwq._pool.figures import Histogram as Measured
from cmwq._pool.reasons import why_inactive, why_no_more
from cmwq._workqueue.snapshot import (
    MAX_FUNCTIONS,
    MAX_WORKERS,
    FunctionView,
    Histogram,
    MemoryView,
    PoolView,
    QueueView,
    WorkerView,
)

if TYPE_CHECKING:
    from cmwq._pool.blocking import Blocked
    from cmwq._pool.item import Item
    from cmwq._pool.pool import WorkerPool
    from cmwq._pool.worker import Worker
    from cmwq._workqueue.pwq import PoolWorkQueue
    from cmwq._workqueue.queue import WorkQueue
    from cmwq._workqueue.runtime import Runtime
    from cmwq._workqueue.wait import Target

LOOKS = 16
"""So many threads a picture without stacks looks at."""
MAX_FRAMES = 40
"""So many calls of a stack are kept."""
REFRESH = 1.0
"""Seconds for which what is known of memory is kept."""

_WORDS = {
    SEEN: "is asleep",
    SEEN_ON_LOCK: "waits for a lock",
    SAID: "says that it blocks",
    CHILD: "waits while a child process computes",
}
"""What is known of a worker that was not looked at."""
_number = attrgetter("index")


class Sight(NamedTuple):
    """One worker, as it was in the critical section."""

    worker: Worker
    item: Item | None
    blocked: Blocked | None
    state: str
    seen: Seen | None
    used: float | None
    """Its CPU time as last read."""


class Place:
    """A queue's place on one pool, as it was in the critical section."""

    __slots__ = (
        "active", "completed", "cpu_seconds", "failed", "functions", "inactive", "running", "started", "unfinished",
        "waiting", "wakeups", "why",
    )  # fmt: skip

    @holding("pwq.pool.lock")
    def __init__(self, pwq: PoolWorkQueue, executing: int, announcing: int) -> None:
        """executing: how many workers execute one of its works. announcing: how many announce the end of one."""
        figures = pwq.figures
        self.active, self.inactive, self.unfinished = pwq.nr_active, len(pwq.inactive), pwq.nr_unfinished()  # I
        self.completed = pwq.nr_ended() + announcing  # I
        self.started = self.completed + executing  # I
        self.failed, self.wakeups, self.cpu_seconds = figures.failed, figures.wakeups, figures.cpu_seconds  # I
        self.why = why_inactive(pwq) if pwq.inactive else ""  # I
        self.waiting, self.running = _copy(figures.waiting), _copy(figures.running)  # I
        tallies = figures.functions.items()
        most = nlargest(MAX_FUNCTIONS, tallies, _seconds) if len(tallies) > MAX_FUNCTIONS else tallies
        self.functions = {name: (t.ended, t.failed, t.seconds, t.cpu_seconds) for name, t in most}  # I


class Part(NamedTuple):
    """One pool, as it was in the critical section."""

    pool: WorkerPool
    view: PoolView
    places: dict[PoolWorkQueue, Place]
    sights: list[Sight]


class Photographer:
    """Takes the pictures of one runtime. Thread-safe."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime  # I
        self._turn = 0  # ~: where the looks at further workers go on
        self._memory: tuple[float, MemoryView] | None = None  # A: until when it is fresh, on the host's clock

    @outside
    def take(
        self, pools: list[WorkerPool], queues: list[WorkQueue], *, stacks: bool
    ) -> tuple[list[PoolView], list[QueueView], list[WorkerView], int, list[FunctionView]]:
        """Return pools, queues, workers, how many of these were left out, and functions."""
        budget = MAX_WORKERS if stacks else LOOKS
        parts, views, looked_at = [], [], {}
        for pool in pools:
            part, chosen = self._part_of(pool, budget)
            budget -= len(chosen)
            parts.append(part)
            looked_at.update(dict.fromkeys(chosen))
        waiting = self._runtime.waits.all()
        kept, left_out = _most_important([sight for part in parts for sight in part.sights])
        words = {sight.worker: self._look(sight, waiting) for sight in kept if sight.worker in looked_at}
        stack_of = self._runtime.host.stacks_of([s.worker.thread for s in kept], MAX_FRAMES) if stacks else {}
        for part in parts:
            views.append(_corrected(part, words))
        now = self._runtime.host.monotonic()
        workers = [_view_of_worker(sight, words.get(sight.worker), waiting, now, stack_of) for sight in kept]
        return (
            views,
            [_view_of_queue(queue, [part.places[pwq] for part in parts for pwq in part.places if pwq.wq is queue])
             for queue in queues],
            workers,
            left_out,
            _functions(parts, now),
        )  # fmt: skip

    def _part_of(self, pool: WorkerPool, budget: int) -> tuple[Part, list[Worker]]:
        """Read one pool. Returns it, and the workers that are to be looked at: `budget` at most."""
        with pool.lock:
            ordered = sorted(pool.workers, key=_number)
            chosen = self._choose(pool, ordered, budget)
            for worker in chosen:
                bill(worker, worker.billed_to)
            now = pool.host.monotonic()
            sights = [_sight(pool, worker, now) for worker in ordered]
            for worker in chosen:
                seen = worker.seen
                if seen is not None and seen.used is None and worker.item is not None:
                    seen.used = worker.billed
            executing: Counter[PoolWorkQueue] = Counter()
            announcing: Counter[PoolWorkQueue] = Counter()
            for worker in ordered:
                item = worker.item
                if item is not None and not item.phase.asks:
                    (announcing if worker.announcing else executing)[item.phase.pwq] += 1
            places = {pwq: Place(pwq, executing[pwq], announcing[pwq]) for pwq in list(pool.pwqs)}
            return Part(pool, _view_of_pool(pool), places, sights), chosen

    @holding("pool.lock")
    def _choose(self, pool: WorkerPool, ordered: list[Worker], budget: int) -> list[Worker]:
        """Choose the workers that are looked at: those believed to run, then others in turn. They execute something."""
        busy = [worker for worker in ordered if worker.item is not None and worker.tid]
        if len(busy) <= budget:
            return busy
        chosen = [worker for worker in busy if worker.blocked is None][:budget]
        others = [worker for worker in busy if worker.blocked is not None]
        first, more = self._turn % len(others) if others else 0, budget - len(chosen)
        self._turn += more
        return chosen + (others[first:] + others[:first])[:more]

    @outside
    def _look(self, sight: Sight, waiting: dict[Item, Target]) -> tuple[bool, str]:
        """Look at a worker's thread. Returns whether it sleeps, and what it waits for."""
        worker, item, seen = sight.worker, sight.item, sight.seen
        if item in waiting:
            return True, ""
        words = worker.pool.host.waits_in(worker.tid)
        asleep = bool(words)
        if words.startswith("waits for a lock") and not worker.pool.lookout.sleeps(worker):
            asleep, words = False, "waits for the GIL" if self._runtime.host.gil_enabled() else ""
        if seen is not None:
            seen.words = words
        return asleep, words

    def memory(self, pools: Iterable[WorkerPool]) -> MemoryView:
        """What is known of memory, at most `REFRESH` seconds old."""
        now, kept = self._runtime.host.monotonic(), self._memory
        if kept is None or now >= kept[0]:
            found = self._runtime.host.memory()
            view = MemoryView(False, None, None, "") if found is None else MemoryView(False, *found)
            self._memory = kept = now + REFRESH, view
        return replace(kept[1], held=True) if any(pool.memory.held for pool in pools) else kept[1]


def _seconds(pair: tuple[str, object]) -> float:
    seconds: float = pair[1].seconds  # type: ignore[attr-defined]
    return seconds


def _copy(measured: Measured) -> tuple[list[int], float]:
    return measured.counts.copy(), measured.sum


@holding("pool.lock")
def _sight(pool: WorkerPool, worker: Worker, now: float) -> Sight:
    item, blocked = worker.item, worker.blocked
    if item is not None:
        state = "running" if blocked is None or blocked is HOG else "blocked"
        return Sight(worker, item, blocked, state, see(worker, now), worker.billed)
    state = "idle" if worker.idle else "creating" if pool.office.holder is worker else "waking"
    return Sight(worker, None, None, state, None, None)


@holding("pool.lock")
def _view_of_pool(pool: WorkerPool) -> PoolView:
    cpu_seconds = pool.stats.cpu_seconds + sum(worker.billed - worker.cpu_before for worker in pool.workers)
    known = cpu_seconds > 0 or not pool.workers or any(worker.cpu_time() is not None for worker in pool.workers)
    return PoolView(
        name=pool.name,
        cpus=pool.cpus,
        target=pool.full_target,
        held=pool.memory.held,
        disassociated=pool.disassociated,
        workers=len(pool.workers),
        idle=len(pool.idle_list),
        running=pool.nr_running,
        blocked=sum(worker.sleeping for worker in pool.workers),
        pending=pool.nr_listed(),
        inactive=sum(len(pwq.inactive) for pwq in pool.pwqs),
        created=pool.stats.created,
        culled=pool.stats.culled,
        refused=pool.office.nr_refused,
        peak_workers=pool.stats.peak_workers,
        started=pool.nr_started(),
        completed=pool.nr_completed,
        wakeups=pool.nr_wakeups,
        nice=pool.nice if pool.stats.niced else 0,
        cpu_seconds=cpu_seconds if known else None,
        why=why_no_more(pool),
    )


def _corrected(part: Part, words: dict[Worker, tuple[bool, str]]) -> PoolView:
    """Correct what the pool believes of its workers by what was seen."""
    asleep, gil_waiter = 0, ""
    for sight in part.sights:
        looked = words.get(sight.worker)
        if looked is None or sight.blocked is HOG or not sight.worker.counted:
            continue
        if sight.blocked is None:
            asleep += looked[0]
        elif sight.blocked in (SEEN, SEEN_ON_LOCK) and not looked[0]:
            asleep -= 1
        if looked[1] == "waits for the GIL":
            gil_waiter = sight.worker.name
    view, why = part.view, part.view.why
    if gil_waiter and part.view.why:
        with part.pool.lock:
            why = why_no_more(part.pool, gil_waiter) or why
    return replace(view, running=view.running - asleep, blocked=view.blocked + asleep, why=why)


def _most_important(sights: list[Sight]) -> tuple[list[Sight], int]:
    """Those that are shown: all, or first those that execute something. And how many are left out."""
    if len(sights) <= MAX_WORKERS:
        return sights, 0
    kept = sorted(sights, key=lambda sight: sight.item is None)[:MAX_WORKERS]  # it keeps the order otherwise
    return kept, len(sights) - MAX_WORKERS


def _view_of_worker(
    sight: Sight,
    looked: tuple[bool, str] | None,
    waiting: dict[Item, Target],
    now: float,
    stacks: dict[int, tuple[str, ...]],
) -> WorkerView:
    worker, item, blocked, state, seen, used = sight
    pool, rescuer = worker.pool, worker.index < 0
    stack = stacks.get(id(worker.thread), ()) if stacks else ()
    if item is None or seen is None:
        since = max(0.0, now - worker.last_active) if state == "idle" else 0.0
        return WorkerView(
            worker.name, name_of_pool(pool), worker.tid, state, rescuer, "", "", 0, since, None, "", stack
        )
    target = waiting.get(item) if waiting else None
    if target is not None:
        state, words = "blocked", target.describe_wait()
    elif looked is not None:
        state, words = "blocked" if looked[0] else "running", looked[1]
    elif blocked is None or blocked is HOG:
        words = ""
    else:
        words = seen.words or _WORDS[blocked]
    cost = None if used is None or seen.used is None else max(0.0, used - seen.used)
    return WorkerView(
        worker.name, name_of_pool(pool), worker.tid, state, rescuer, item.phase.pwq.wq.name, seen.work, id(item),
        max(0.0, now - seen.since), cost, words, stack,
    )  # fmt: skip


def _view_of_queue(wq: WorkQueue, places: list[Place]) -> QueueView:
    def total(name: str) -> int:
        return sum(getattr(place, name) for place in places)

    return QueueView(
        name=wq.name,
        scope=wq.scope,
        state=wq._state.value,
        max_active=wq.max_active,
        learns=wq.learns,
        active=total("active"),
        inactive=total("inactive"),
        unfinished=total("unfinished"),
        hogs=wq.nr_hogs,
        rescuer=wq.rescuer is not None,
        maydays=wq.nr_maydays,
        rescued=wq.nr_rescued,
        started=total("started"),
        completed=total("completed"),
        failed=total("failed"),
        cpu_seconds=sum((place.cpu_seconds for place in places), 0.0),
        wakeups=total("wakeups"),
        why=next((place.why for place in places if place.why), ""),
        waiting=_histogram([place.waiting for place in places]),
        running=_histogram([place.running for place in places]),
    )


def _histogram(parts: list[tuple[list[int], float]]) -> Histogram | None:
    counts = tuple(map(sum, zip(*(part[0] for part in parts), strict=True)))
    sampled = sum(counts)
    return Histogram(BOUNDS, counts, sum(part[1] for part in parts), sampled) if sampled else None


def _functions(parts: list[Part], now: float) -> list[FunctionView]:
    """The functions that took the most time, those that run now included."""
    found: dict[tuple[str, str], list[float]] = {}
    for part in parts:
        for pwq, place in part.places.items():
            for name, figures in place.functions.items():
                known = found.setdefault((pwq.name, name), [0, 0, 0.0, 0.0, 0, 0.0])
                known[:4] = [had + more for had, more in zip(known, figures, strict=False)]
        for sight in part.sights:
            if sight.item is not None and sight.seen is not None and sight.seen.work:
                known = found.setdefault((sight.item.phase.pwq.name, sight.seen.work), [0, 0, 0.0, 0.0, 0, 0.0])
                known[4] += 1
                known[5] += now - sight.seen.since
    busiest = nlargest(MAX_FUNCTIONS, found.items(), key=lambda pair: pair[1][2] + pair[1][5])
    return [
        FunctionView(name, queue, int(ended), int(failed), seconds, cpu_seconds, int(running))
        for (queue, name), (ended, failed, seconds, cpu_seconds, running, _) in busiest
    ]
