"""Why a worker that executes something does not count as running: `Blocked`, decided here and nowhere else.

Guarantees: each worker has one reason at a time, or none, and `nr_running`, `nr_blocked` and `nr_hogs` follow from the
reasons (A2, A5, A9). What a work says of itself (`blocking()`, a wait of this package) and what the pool found out (a
hog, a child that computes) override all reports of a sensor: the sensor is told not to look at such a worker, and any
report about it is ignored. A report of a sensor stands until the sensor reports the contrary, or the item ends.

    none -> SEEN, SEEN_ON_LOCK      a sensor saw the worker sleep (`worker_sleeping`)
    any but SAID -> SEEN            it used no CPU for a whole period, and lends its place (`at_rest`)
    any -> SAID                     its work says so (`step_aside`, `blocking`)
    SAID -> none                    its work takes that back (`step_back`, `blocking`)
    none -> HOG                     it used the CPU for long (`let_go`)
    HOG -> SEEN_ON_LOCK             it used no CPU since the last look (`no_hog_any_more`)
    SEEN -> CHILD                   a process that it has started computes (`children_compute`)
    CHILD -> SEEN, none             none does any more (`children_rest`)
    SEEN, SEEN_ON_LOCK -> none      a sensor saw it run (`worker_running`)
    any -> none                     its item ended (`over`)

Who runs holds its place: whatever the way to none or to HOG, `_become` takes back a place that was lent (E1). A place
that stayed lent would be given away for the next item of the worker as well, which would then lend none when it waits.

Interruptions (F10): the reason is one store, and the counts follow from it. A sensor is told to look again before that
store, and told not to look after it. So an interruption in between leaves a sensor that looks at more than it needs to,
and whose reports are ignored; it never leaves a sensor that misses a worker.

The letters are those of `pool`.
"""

from __future__ import annotations

from collections import Counter
from enum import Enum
from itertools import chain
from typing import TYPE_CHECKING

from cmwq._core.held import holding, not_holding
from cmwq._core.surely import at_any_depth
from cmwq._errors import Refused, own
from cmwq._pool import events, lane
from cmwq._pool.figures import see, woken_for_a_blocked_one
from cmwq._pool.worker import Worker, current_worker

if TYPE_CHECKING:
    from types import TracebackType

    from cmwq._pool.item import Item, Source
    from cmwq._pool.pool import WorkerPool


class Blocked(Enum):
    """Why a worker that is counted does not count as running."""

    SEEN = "asleep"
    """A sensor saw that it sleeps, and not for a lock; or it used no CPU for a whole period."""
    SEEN_ON_LOCK = "lock"
    """A sensor saw that it waits for a lock, which another thread will release soon. This gives no slack (A5)."""
    SAID = "said"
    """Its work said so."""
    HOG = "hog"
    """It does not sleep at all: it has computed for long, and is let go of (A9)."""
    CHILD = "child"
    """It sleeps while a process that it has started computes, so works of that function are held back (A10)."""

    computes: bool
    """Whether it uses a CPU all the same, itself or by a child process."""
    known: bool
    """Whether the pool knows this by itself, so the sensor is told not to look."""


SEEN, SEEN_ON_LOCK, SAID, HOG, CHILD = Blocked
for _why in Blocked:
    _why.computes = _why in (HOG, CHILD)
    _why.known = _why in (SAID, HOG, CHILD)


@holding("worker.pool.lock")
def _become(worker: Worker, why: Blocked | None) -> None:
    """Change the reason; None means that the worker runs. Context: the worker is counted."""
    pool, before = worker.pool, worker.blocked
    known, was_known = why is not None and why.known, before is not None and before.known
    if was_known and not known:
        pool.lookout.exempt(worker, False)
    if why is not None:
        if before is None and not known:
            see(worker, pool.host.monotonic())  # a sensor has noticed: this is slow anyway
        worker.hog_item = None  # a work that blocks in between is not a hog
        if why is SEEN:
            pool.children.dozers.add(worker)
    if why is None or why is HOG:
        worker.reclaim_place()  # before the reason changes: no interruption leaves a worker that runs without a place
    worker.blocked = why
    pool.nr_running += (why is None) - (before is None)
    pool.nr_blocked += (why is SEEN or why is SAID) - (before is SEEN or before is SAID)
    pool.nr_hogs += (why is HOG) - (before is HOG)
    if pool.taps and (why is None) is not (before is None):
        events.blocked(pool, worker, why.value) if why else events.running(pool, worker)
    if known and not was_known:
        pool.lookout.exempt(worker, True)
    if before is not None and before.computes and pool.lane.items and lane.readmit(pool):
        pool.kick_or_settle()


@holding("pool.lock")
def recount(pool: WorkerPool) -> tuple[int, int, int]:
    """Return what `nr_running`, `nr_blocked` and `nr_hogs` have to be. Costs O(workers)."""
    reasons = [worker.blocked for worker in pool.workers if worker.counted]
    on_their_way = sum(worker.kicked for worker in pool.workers)
    return on_their_way + reasons.count(None), reasons.count(SEEN) + reasons.count(SAID), reasons.count(HOG)


@holding("pool.lock")
def recount_active(pool: WorkerPool) -> Counter[Source]:
    """Return what `nr_active` of each place has to be (E1). Costs O(workers + works listed)."""
    active: Counter[Source] = Counter(item.pwq for item in chain(pool.listed(), pool.detained))
    listed = set(pool.listed())
    for worker in pool.workers:
        item = worker.item
        if item is not None and item not in listed:
            active[item.pwq] += worker.lender is not item.pwq
            follower = item.follower
            if follower is not None and not follower.over:
                active[follower.pwq] += not follower.lent
    return active


# ----------------------------------------------------------------------------------- what sensors report


@holding("worker.pool.lock")
def worker_sleeping(worker: Worker, *, on_lock: bool = False) -> None:
    """Note a sensor's report that the worker sleeps: the kernel's wq_worker_sleeping.

    A repeated report, or one about a worker that is not counted, changes nothing.
    """
    if worker.blocked is None and worker.counted:
        _become(worker, SEEN_ON_LOCK if on_lock else SEEN)


@holding("worker.pool.lock")
def worker_running(worker: Worker) -> None:
    """Note a sensor's report that the worker runs: the kernel's wq_worker_running.

    A repeated report, or one about a worker of which the pool knows better, changes nothing.
    """
    if worker.blocked is SEEN or worker.blocked is SEEN_ON_LOCK:
        _become(worker, None)


# ----------------------------------------------------------------------------------- what the pool finds out


@holding("worker.pool.lock")
def over(worker: Worker) -> None:
    """Clear the reason, because the worker's item ended. A `blocking()` that was never left ends with the item (B4),
    a lent place is taken back, and child processes are not looked at any more.
    """
    worker.nr_hints = 0
    worker.reclaim_place()  # of one that is not counted, and has no reason
    if worker.blocked is not None:
        _become(worker, None)
    if worker.below is not None:
        worker.pool.children.forget_item(worker)


@holding("worker.pool.lock")
def at_rest(worker: Worker) -> None:
    """Note that the worker used no CPU for a whole period: it is blocked, whatever a sensor has reported."""
    if worker.counted and worker.blocked is not SAID:
        _become(worker, SEEN)


@holding("worker.pool.lock")
def let_go(worker: Worker) -> None:
    """Do not count the worker as running any more, because it is a hog (A9). Context: it is counted, and runs."""
    _become(worker, HOG)


@holding("worker.pool.lock")
def no_hog_any_more(worker: Worker) -> None:
    """Note that a hog has stopped computing. It blocks, or it waits for a CPU: a sensor will tell which."""
    _become(worker, SEEN_ON_LOCK)


@holding("worker.pool.lock")
def children_compute(worker: Worker) -> None:
    """Note that a process below a worker that was seen asleep computes (A10)."""
    if worker.blocked is SEEN:
        _become(worker, CHILD)


@holding("worker.pool.lock")
def children_rest(worker: Worker, *, asleep: bool) -> None:
    """Note that no process below the worker computes any more, and whether it sleeps itself."""
    if worker.blocked is CHILD:
        _become(worker, SEEN if asleep else None)


# ----------------------------------------------------------------------------------- what works say


class blocking:
    """Declare that the code inside blocks, so that another worker may run meanwhile.

    A context manager for code that knows it will wait: `with cmwq.blocking(): ...`. It is exact, takes effect at once,
    and works on every platform. Outside a worker it does nothing. It lasts until it is left, or until the work ends.
    Calls nest, also of one object; threads must not share an object while it is entered. It never waits for anything,
    so cancellation and shutdown do not affect it. In a finaliser or signal handler that interrupts cmwq's own code it
    does nothing.
    """

    __slots__ = ("_depth", "_item", "_worker")

    def __init__(self) -> None:
        self._worker: Worker | None = None  # S
        self._item: Item | None = None  # S
        self._depth = 0  # S: so often it is entered and not left

    def __enter__(self) -> None:
        worker = current_worker()
        if worker is None:
            return
        if worker.item is not self._item:
            self._worker, self._item, self._depth = worker, worker.item, 0
        if not worker.nr_hints and worker.counted:
            try:
                at_any_depth(_begin_to_block, worker)
            except Refused as exc:
                own(exc)
                return  # a hint that was never given must not be counted: the next ones would have no effect
        worker.nr_hints += 1
        self._depth += 1

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._depth:
            return  # not a worker
        worker, item = self._worker, self._item
        self._depth -= 1
        if not self._depth:
            self._item = None  # a work is not kept alive by this
        if worker is None or worker.item is not item or not worker.nr_hints:
            return  # left only after its item had ended
        worker.nr_hints -= 1
        if not worker.nr_hints and worker.blocked is SAID:
            at_any_depth(_end_to_block, worker)


@not_holding("worker.pool.lock")
def _begin_to_block(worker: Worker) -> None:
    with worker.pool.lock:
        _say(worker)
        _go_on_without(worker.pool)


@not_holding("worker.pool.lock")
def _end_to_block(worker: Worker) -> None:
    with worker.pool.lock:
        _become(worker, None)


@not_holding("worker.pool.lock")
def step_aside(worker: Worker, lender: Source | None) -> bool:
    """Note that the worker's work begins to wait: it is known to be blocked at once (A4), and lends its place.

    lender: the source at which it has its place under `max_active`; None: it lends none. Returns whether the place was
    lent now, for `step_back`.
    """
    pool = worker.pool
    with pool.lock:
        lends = lender is not None and worker.lender is None
        if lender is not None and lends:
            worker.lender = lender
            lender.lend_place()
        worker.nr_hints += 1
        if worker.nr_hints == 1 and worker.counted:
            _say(worker)
        _go_on_without(pool)
    return lends


@not_holding("worker.pool.lock")
def step_back(worker: Worker, lent: bool) -> None:
    """Undo `step_aside` when the wait is over, even if the place is taken.

    To wait for a place could be to wait for ever.
    """
    with worker.pool.lock:
        if lent:
            worker.reclaim_place()
        worker.nr_hints -= 1
        if not worker.nr_hints and worker.blocked is SAID:
            _become(worker, None)


@holding("pool.lock")
def _go_on_without(pool: WorkerPool) -> None:
    """A work says that it blocks: wake a worker if one is needed."""
    before = pool.nr_wakeups
    pool.kick_or_settle()
    if pool.nr_wakeups != before:
        woken_for_a_blocked_one(pool)


@holding("worker.pool.lock")
def _say(worker: Worker) -> None:
    """Note that the worker's work says that it blocks. Context: the worker is counted."""
    _become(worker, SAID)
    worker.pool.lookout.deliver()
