"""Why a worker that executes something doesn't count as running: `Blocked`, decided here and nowhere else.

Guarantees: each worker has one reason at a time, or none, and `nr_running`, `nr_blocked` and `nr_hogs` follow from it
(A2, A5, A9). What a work says of itself (`blocking()`, a wait of ours) and what the pool found out itself (a hog) stand
against whatever a sensor reports: it is told not to look at such a worker, and what it reports all the same is ignored.
What a sensor reports stands until it reports the contrary, or the item ends.

    none -> SEEN, SEEN_ON_LOCK      a sensor saw it (`worker_sleeping`)
    any but SAID -> SEEN            it was at rest for a whole period, and lends its place (`at_rest`)
    any -> SAID                     it says so, from now on until it takes that back (`step_aside`, `blocking`)
    none -> HOG                     it used the CPU for long (`let_go`)
    HOG -> SEEN_ON_LOCK             it used none since last looked at (`no_hog_any_more`)
    SEEN, SEEN_ON_LOCK -> none      a sensor saw it run (`worker_running`)
    any -> none                     its item ended (`over`)

Nothing in the middle (F10): the reason is one store, the counts follow. A sensor is told to look again before that
store, and not to look after it. So whoever is interrupted in between leaves a sensor that sees more than it needs, and
whose reports are ignored, never one that has gone blind.

The letters are those of `pool`.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

from cmwq._core.held import holding, not_holding
from cmwq._pool import events
from cmwq._pool.worker import Worker, current_worker

if TYPE_CHECKING:
    from types import TracebackType

    from cmwq._pool.item import Item, Source
    from cmwq._pool.pool import WorkerPool


class Blocked(Enum):
    """Why a worker that is counted is not among those that run."""

    SEEN = "asleep"
    """A sensor saw that it sleeps."""
    SEEN_ON_LOCK = "lock"
    """The same, for a lock that another thread will let go of soon: no reason for slack (A5)."""
    SAID = "said"
    """Its work said so."""
    HOG = "hog"
    """It doesn't sleep at all: it computes for long, and is let go of (A9)."""


SEEN, SEEN_ON_LOCK, SAID, HOG = Blocked


@holding("worker.pool.lock")
def _become(worker: Worker, why: Blocked | None) -> None:
    """From now on that is the reason; None: it runs.  Context: it is counted."""
    pool, before = worker.pool, worker.blocked
    known, was_known = why is SAID or why is HOG, before is SAID or before is HOG
    if was_known and not known:
        pool.lookout.exempt(worker, False)
    if why is not None:
        worker.hog_item = None  # a work that blocks in between is no hog
    worker.blocked = why
    pool.nr_running += (why is None) - (before is None)
    pool.nr_blocked += (why is SEEN or why is SAID) - (before is SEEN or before is SAID)
    pool.nr_hogs += (why is HOG) - (before is HOG)
    if pool.taps and (why is None) is not (before is None):
        events.blocked(pool, worker, why.value) if why else events.running(pool, worker)
    if known and not was_known:
        pool.lookout.exempt(worker, True)


@holding("pool.lock")
def recount(pool: WorkerPool) -> tuple[int, int, int]:
    """What `nr_running`, `nr_blocked` and `nr_hogs` have to be. Costs O(workers)."""
    reasons = [worker.blocked for worker in pool.workers if worker.counted]
    on_their_way = sum(worker.kicked for worker in pool.workers)
    return on_their_way + reasons.count(None), reasons.count(SEEN) + reasons.count(SAID), reasons.count(HOG)


# ----------------------------------------------------------------------------------- what sensors report


@holding("worker.pool.lock")
def worker_sleeping(worker: Worker, *, on_lock: bool = False) -> None:
    """The kernel's wq_worker_sleeping. May be told twice, and of one that isn't counted."""
    if worker.blocked is None and worker.counted:
        _become(worker, SEEN_ON_LOCK if on_lock else SEEN)


@holding("worker.pool.lock")
def worker_running(worker: Worker) -> None:
    """The kernel's wq_worker_running. May be told twice, and of one of which the pool knows better."""
    if worker.blocked is SEEN or worker.blocked is SEEN_ON_LOCK:
        _run(worker)


# ----------------------------------------------------------------------------------- what the pool finds out


@holding("worker.pool.lock")
def _run(worker: Worker) -> None:
    worker.reclaim_place()
    _become(worker, None)


@holding("worker.pool.lock")
def over(worker: Worker) -> None:
    """Its item ended: a `blocking()` that was entered and never left is over, too (B4), and so is a lent place."""
    worker.nr_hints = 0
    worker.reclaim_place()
    if worker.blocked is not None:
        _become(worker, None)


@holding("worker.pool.lock")
def at_rest(worker: Worker) -> None:
    """It used no CPU for long, so it blocks, whatever a sensor has seen of it so far, or can see at all."""
    if worker.counted and worker.blocked is not SAID:
        _become(worker, SEEN)


@holding("worker.pool.lock")
def let_go(worker: Worker) -> None:
    """It is a hog (A9), and runs."""
    _become(worker, HOG)


@holding("worker.pool.lock")
def no_hog_any_more(worker: Worker) -> None:
    """It blocks, or waits for a CPU: which of the two is not known here, and a sensor will tell."""
    _become(worker, SEEN_ON_LOCK)


# ----------------------------------------------------------------------------------- what works say


class blocking:
    """What follows blocks: let another worker run meanwhile.

    A context manager, for code that knows it will wait: `with cmwq.blocking(): ...`. Exact, instantaneous, on every
    platform. Nests. Outside a worker it does nothing. Reusable, not to be shared between threads while entered.
    """

    __slots__ = ("_item", "_worker")

    def __init__(self) -> None:
        self._worker: Worker | None = None  # S
        self._item: Item | None = None  # S

    def __enter__(self) -> None:
        self._worker = worker = current_worker()
        if worker is None:
            return
        self._item = worker.item
        worker.nr_hints += 1
        if worker.nr_hints > 1 or not worker.counted:
            return
        pool = worker.pool
        with pool.lock:
            _say(worker)
            pool.kick()

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        worker, item, self._item = self._worker, self._item, None
        if worker is None or worker.item is not item or not worker.nr_hints:
            return  # no worker, or left only after its item had ended
        worker.nr_hints -= 1
        if not worker.nr_hints and worker.blocked is SAID:
            with worker.pool.lock:
                _run(worker)


@not_holding("worker.pool.lock")
def step_aside(worker: Worker, lender: Source | None) -> bool:
    """Its work waits for something: it is known to be blocked at once (A4), and lends its place under `max_active`.

    lender: where it has that place; None: it lends none. Returns whether it lent it now, for `step_back`.
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
        pool.kick_or_settle()
    return lends


@not_holding("worker.pool.lock")
def step_back(worker: Worker, lent: bool) -> None:
    """It goes on, even if its place is taken: to wait for one could be to wait for ever."""
    with worker.pool.lock:
        if lent:
            worker.reclaim_place()
        worker.nr_hints -= 1
        if not worker.nr_hints and worker.blocked is SAID:
            _run(worker)


@holding("worker.pool.lock")
def _say(worker: Worker) -> None:
    """It blocks, by its own word.  Context: it is counted."""
    _become(worker, SAID)
    worker.pool.lookout.deliver()
