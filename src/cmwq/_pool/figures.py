"""Figures: what is counted and measured of a queue's works on one pool, and when a worker's work was first seen.

Nothing here is on the path of a work from `submit` to its result. What costs nothing is exact, and the rest is read at
points that are slow anyway, or measured of a sample:

- How many works were queued, ended and were taken back follows from the counts that a flush needs (`Phase`). Those that
  failed are counted where the exception is caught. All of these are exact.
- CPU time: a worker's clock is read when the worker goes on to another queue, when it ends, and when somebody looks
  at it: at some of those that execute something, and at all that went idle since the last picture.
  What it used in between is the queue's. So all CPU time of a pool's workers is somebody's, that of the pool's own code
  for these works included. Of rescuers only the time within the pool counts.
- Times and functions: a *measured* work has its times taken (`_workqueue.measured`). In each `PERIOD` one work of each
  place is chosen, if any is queued: of the works that come next one of the first `SKIP`, so that the first of a burst
  has no better chance than the others. It is chosen while it is queued, by way of the queue's gate, which is looked at
  for each work anyway. Where less than a hundred works come in a second, nearly all are measured. Works that a source
  gave (E12) are not.
- Functions: a measured work stands for all that were queued since the one before it. So `ended`, `failed`, `seconds`
  and `cpu_seconds` of a function are estimates; where works come slowly they are exact.
- Since when a worker executes its work: of a measured work that is known. Of all others it is the moment when the work
  was first seen: by a sensor as it blocked, by the look for hogs (every 10 ms while works wait), by the watchdog (every
  second while work is unfinished), or by somebody who takes a picture.

Why no clock is read for every work: two readings and a place to keep them take a tenth of the time of an empty work.
Why not the works that run at a tick: they would be those that take long, and their waiting time would be unknown.

The letters are those of `pool`.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Any
from weakref import ref

from cmwq._core.held import holding
from cmwq._core.naming import name_of
from cmwq._core.tables import lookup

if TYPE_CHECKING:
    from cmwq._pool.blocking import Blocked
    from cmwq._pool.item import Item, Source
    from cmwq._pool.pool import WorkerPool
    from cmwq._pool.worker import Worker

PERIOD = 10e-3
"""Seconds at least between two choices of a work to be measured, for each place of a queue."""
SKIP = 64
"""At most so many works pass between the moment when one may be chosen and the choice."""
BOUNDS = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
"""Seconds: the upper bounds of a histogram's classes. The last class has none."""
MAX_FUNCTIONS = 256
"""So many functions are kept for each place. A new one takes the place of that which took the least time."""
GOLDEN = 0.6180339887498949
"""Multiples of it, without their integer parts, fill the unit evenly: how many works pass until one is chosen."""


class Histogram:
    """How often a time fell into each class. Constant memory. Context of all methods: the pool's lock."""

    __slots__ = ("counts", "sum")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)  # L
        self.sum = 0.0  # L: seconds

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.sum += seconds


class Tally:
    """What the works of one function came to, as far as it was measured."""

    __slots__ = ("cpu_seconds", "ended", "failed", "figures", "name", "seconds")

    def __init__(self, figures: Figures, name: str) -> None:
        self.figures = figures  # I
        self.name = name  # I: of the function
        self.ended = self.failed = 0  # L
        self.seconds = self.cpu_seconds = 0.0  # L


class Figures:
    """The figures of a queue's place on one pool. A worker may refer to them when the queue is gone."""

    __slots__ = (
        "chooses", "cpu_seconds", "due", "ended", "failed", "functions", "running", "seen", "skip", "turn", "waiting",
        "wakeups",
    )  # fmt: skip

    def __init__(self) -> None:
        self.ended = 0  # L: works that ended in phases that are over
        self.failed = 0  # L: works whose function raised
        self.wakeups = 0  # L: how often a worker was woken for one of its works because another had blocked
        self.cpu_seconds = 0.0  # L: CPU time of workers, up to their last reading
        self.waiting = Histogram()  # L: from being queued to being started, of the measured works
        self.running = Histogram()  # L: from start to end
        self.functions: dict[str, Tally] = {}  # L: by name
        self.chooses = True  # L: one of the next works is to be measured, so the gate is shut
        self.due = 0.0  # L: when the next may be chosen, on the host's clock
        self.skip = 0  # L: so many works pass before
        self.seen = 0  # L: how many works had been queued when one was chosen last
        self.turn = 0.0  # L: a fraction, for the next `skip`

    @holding("pool.lock")
    def passes(self, pool: WorkerPool) -> bool:
        """Return whether the work that is just being queued is not to be measured. Context: `chooses`."""
        if self.skip > 0:
            self.skip -= 1
            return True
        return False

    @holding("pool.lock")
    def choose(self, pool: WorkerPool, queued: int, now: float) -> int:
        """Choose the work that is just being queued. Returns for how many works it stands.

        queued: how many works were queued before it. The caller settles the gate.
        """
        stands_for, self.seen = max(1, queued + 1 - self.seen), queued + 1
        self.chooses, self.due = False, now + PERIOD
        pool.choose_at = min(pool.choose_at, self.due)
        return stands_for

    @holding("pool.lock")
    def note(
        self, pool: WorkerPool, name: str, waited: float, ran: float, used: float | None, failed: bool, stands_for: int
    ) -> None:
        """Note a measured work that has ended. Times are in seconds."""
        self.waiting.add(waited)
        self.running.add(ran)
        tally = self.tally_of(pool, name)
        tally.ended += stands_for
        tally.failed += stands_for * failed
        tally.seconds += stands_for * ran
        tally.cpu_seconds += stands_for * (used or 0.0)

    @holding("pool.lock")
    def tally_of(self, pool: WorkerPool, name: str) -> Tally:
        """Return the tally of the function of that name."""
        tally = lookup(self.functions, name)
        if tally is None:
            if len(self.functions) >= MAX_FUNCTIONS:
                self.functions.pop(min(self.functions, key=lambda name: self.functions[name].seconds))
            tally = self.functions[name] = Tally(self, name)
        return tally


@holding("pool.lock")
def choose_more(pool: WorkerPool, now: float) -> None:
    """Let each place whose time has come choose one of its next works. Context: `pool.choose_at` has come."""
    pool.choose_at = now + PERIOD
    for pwq in list(pool.pwqs):
        figures = pwq.figures
        if not figures.chooses and figures.due <= now:
            figures.turn = (figures.turn + GOLDEN) % 1.0
            figures.skip = int(figures.turn * min(SKIP, pwq.nr_queued() - figures.seen))
            figures.chooses = True
            pwq.settle_gate()


# ----------------------------------------------------------------------------------- CPU time


@holding("worker.pool.lock")
def bill(worker: Worker, figures: Figures | None) -> None:
    """Charge the CPU time that the worker used since its last reading; from now on it works for `figures`."""
    used, before = worker.cpu_time(), worker.billed_to
    if used is not None:
        more, worker.billed = max(0.0, used - worker.billed), used
        worker.pool.stats.cpu_seconds += more
        if before is not None:
            before.cpu_seconds += more
    worker.billed_to = figures


@holding("worker.pool.lock")
def bill_last(worker: Worker) -> None:
    """The worker ends, or a rescuer leaves."""
    if worker in worker.pool.workers:
        bill(worker, None)


# ----------------------------------------------------------------------------------- what is seen of a worker


class Seen:
    """What was seen of a worker while it executes one item."""

    __slots__ = ("blocked", "item", "row", "since", "tally", "used", "words", "work")

    def __init__(self, worker: Worker, item: Item, now: float) -> None:
        self.item: ref[Any] = ref(item)  # I: weak, because an item that has ended is not kept alive by this
        self.since = now  # I: when it was first seen, or when it began
        self.work = "" if item.function is None else name_of(item.function)  # I: the name of what it calls
        self.tally = item.pwq.figures.tally_of(worker.pool, self.work)  # I: that of the function
        self.used: float | None = None  # L: the worker's CPU time when that was first read
        self.words = ""  # ~: what it waits for, in words, as last looked up
        self.blocked: Blocked | None = None  # L: why it did not count as running when the row was made
        self.row: dict[str, Any] | None = None  # L: what a picture says of it but how long it has lasted; never changed

    def is_of(self, item: Item) -> bool:
        """Return whether this was seen of that item."""
        return self.item() is item


@holding("worker.pool.lock")
def see(worker: Worker, now: float) -> Seen | None:
    """Return what was seen of the worker's item, beginning now if it was not seen before. None: it executes none."""
    seen, item = worker.seen, worker.item
    if item is None:
        return None
    if seen is None or seen.item() is not item:
        seen = worker.seen = Seen(worker, item, now)
    return seen


@holding("pool.lock")
def see_all(pool: WorkerPool) -> None:
    """See every worker, so that the beginning of each work is known to within the time between two calls."""
    now = pool.host.monotonic()
    for worker in pool.workers:
        see(worker, now)


@holding("pool.lock")
def woken_for_a_blocked_one(pool: WorkerPool) -> None:
    """Note a concurrency-managed wake-up: a worker was woken for the first work that waits, as another has blocked."""
    if pool.worklist:
        first: Source = pool.worklist[0].pwq
        first.figures.wakeups += 1
