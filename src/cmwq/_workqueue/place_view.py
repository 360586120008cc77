"""Place view: what a picture tells of a queue's place on a pool, and of the queue as a whole (H1, H4).

Guarantees
- What is told of one place is of one moment: it is read in one critical section, together with the workers that execute
  its works.
- However many queues there are, a section reads `AT_ONCE` places at most, which takes half a millisecond, and works of
  the pool go on between two sections. The places with works are read first, in the section in which the pool is read:
  so the numbers of a pool and of its queues add up, unless there are more than `AT_ONCE` places; then a queue may tell
  of works that began or ended after its pool was read.
- Of all places of a pool, the first section looks only whether there are works: a tenth of a microsecond each.

The letters are those of `pool`.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from cmwq._core.held import holding, not_holding
from cmwq._pool.figures import BOUNDS
from cmwq._pool.reasons import why_inactive
from cmwq._workqueue.snapshot import Histogram, QueueView

if TYPE_CHECKING:
    from cmwq._pool.figures import Figures
    from cmwq._pool.figures import Histogram as Measured
    from cmwq._pool.pool import WorkerPool
    from cmwq._workqueue.pwq import PoolWorkQueue
    from cmwq._workqueue.queue import WorkQueue

AT_ONCE = 100
"""So many places are read at most in one critical section."""
PAUSE = 5e-5
"""Seconds between two sections. A thread that waits for the lock is woken when it is released, and would mostly come
too late: the lock would be taken again within a microsecond.
"""


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
        self.functions = [(t, (t.ended, t.failed, t.seconds, t.cpu_seconds)) for t in figures.functions.values()]  # I


@holding("pool.lock")
def in_turn(pool: WorkerPool) -> list[PoolWorkQueue]:
    """The places of the pool in the order in which they are read: those with works first."""
    pwqs = list(pool.pwqs)
    if len(pwqs) <= AT_ONCE:
        return pwqs
    return list(dict.fromkeys([*[pwq for pwq in pwqs if pwq.phase.count or pwq.sealed], *pwqs]))


@not_holding("pool.lock")
def read_further(pool: WorkerPool, places: dict[PoolWorkQueue, Place], further: list[PoolWorkQueue]) -> None:
    """Add the further places, some at a time."""
    parker = pool.host.parker()
    for first in range(0, len(further), AT_ONCE):
        parker.park(PAUSE)
        with pool.lock:
            executing, announcing = _at_works(pool)
            for pwq in further[first : first + AT_ONCE]:
                places[pwq] = Place(pwq, executing[pwq.figures], announcing[pwq.figures])


@holding("pool.lock")
def _at_works(pool: WorkerPool) -> tuple[Counter[Figures], Counter[Figures]]:
    """How many workers execute a work of each place, and how many announce the end of one."""
    executing: Counter[Figures] = Counter()
    announcing: Counter[Figures] = Counter()
    for worker in pool.workers:
        item = worker.item
        if item is not None and not item.phase.asks:
            (announcing if worker.announcing else executing)[item.pwq.figures] += 1
    return executing, announcing


def _copy(measured: Measured) -> tuple[list[int], float]:
    return measured.counts.copy(), measured.sum


def view_of_queue(wq: WorkQueue, places: list[Place]) -> QueueView:
    """The queue, over all its places."""

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
        serial=wq.serial,
    )


def _histogram(parts: list[tuple[list[int], float]]) -> Histogram | None:
    counts = tuple(map(sum, zip(*(part[0] for part in parts), strict=True)))
    sampled = sum(counts)
    return Histogram(BOUNDS, counts, sum(part[1] for part in parts), sampled) if sampled else None
