"""Events: what happens in the pools, told to whoever asks, in the order in which it happened.

Guarantees
- Events of one pool come in the order of its changes: each is noted under the pool's lock, in the critical section that
  makes the change. Between two pools there is no order but that of their times.
- Who subscribes hears first of each pool's numbers (`Kind.COUNTS`), then of every change of them. So the numbers of the
  pool at any moment follow from the events alone.
- An observer harms nobody: no code of its own runs under a lock or on a worker's time. A subscription has a buffer of
  limited size, which it empties itself, on its own thread. If it is too slow it loses events, and is told how many, and
  where among the others (`Kind.LOST`); nobody waits for it.
- Where nobody subscribes it costs nothing on the way of a work from `submit` to its result. There are three diversions
  on that way anyway, and a place that is observed takes them all: its `gate` sends who queues to `check_admitted`; its
  `attends` sends activation to `place`, `activate` and `attend` (`careful` keeps it on); and a worker whose `served` is
  not the place asks `execute_specially` before each item.
- The child of a fork has no subscription. When a runtime ends, what was noted before is delivered, within a limit of
  time (`subscriptions`).

What an interruption may do (F10). A note is made of a few steps, with the change in the same critical section. An
exception between the two, Ctrl-C say, leaves a note of what did not happen, or no note of what did: of one change, for
the section ends there. It is mended then, and the pool tells its numbers anew by `COUNTS`; so whoever counts goes on
from there. Of a work that was to be queued at that moment there may be a `QUEUED` although `submit` raised, and nothing
after it. A number of lost events may be told twice. The order is never wrong, and the pool never suffers.

Why a buffer for each subscription, filled by who holds the pool's lock, and not one thread that hands out: whoever is
slow then loses its own events and nobody else's, one thread less is to be kept, and a pull subscription needs none.
Why what comes last is dropped and not what is oldest: the place where events are missing is then known, and nobody but
the observer takes from the buffer.

The letters are those of `pool`. What a buffer's A stands for: one step of C, of a thread that holds some pool's lock or
of the observer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeAlias

from cmwq._core.held import holding, not_holding
from cmwq._core.naming import name_of

if TYPE_CHECKING:
    from cmwq._core.ports import Lock
    from cmwq._pool.item import Item, Source
    from cmwq._pool.pool import WorkerPool
    from cmwq._pool.worker import Worker
    from cmwq._workqueue.pwq import PoolWorkQueue
    from cmwq._workqueue.queue import WorkQueue
    from cmwq._workqueue.subscriptions import Subscription
    from cmwq._workqueue.watchdog import Stall


class Kind(StrEnum):
    """What happened. Each is also the string of its name in small letters."""

    COUNTS = "counts"
    """The pool's numbers, to go on from: when the subscription begins, and after an interruption (`Event.counts`)."""

    QUEUED = "queued"
    """A work was accepted."""
    ACTIVATED = "activated"
    """It has a place under `max_active`, and waits for a worker only."""
    DEACTIVATED = "deactivated"
    """It waits for a place again, for its queue was frozen."""
    CANCELLED = "cancelled"
    """It was taken back before it began."""
    STARTED = "started"
    """A worker is about to call its function."""
    ENDED = "ended"
    """The function has returned or raised (`Event.why`); `Event.seconds` is how long that took, by the clock, and
    `Event.cpu_seconds` how much CPU time it used. Whoever waits for the result hears of it after this was noted."""

    BLOCKED = "blocked"
    """A worker is known to be blocked, and another may run: see `Event.why` and `Event.where`.

    The time is that at which the pool learned of it. A sensor looks only while works wait that nobody is on the way to.
    And the sentinel marks what it sees; a mark is delivered when a worker comes to read it, and the time is that of the
    delivery, later than the moment at which the worker blocked."""
    RUNNING = "running"
    """It runs again, as far as is known."""
    COUNTED = "counted"
    """A worker counts as one of those that run (A2): it goes on after it created a worker, or after a work of a
    `cpu_intensive` queue. For the usual way see `WOKEN`."""
    UNCOUNTED = "uncounted"
    """It doesn't count any more (A8): it is about to go idle, to create a worker, or to execute a work of a
    `cpu_intensive` queue."""

    WOKEN = "woken"
    """An idle worker was taken, and counts as running from now on; `Event.why`: by the "pool", or by a "sensor"."""
    IDLE = "idle"
    """A worker has nothing to do. It may be told again of one that was woken for nothing."""
    CREATED = "created"
    """There is one worker more."""
    CULLED = "culled"
    """It was idle for long, or its CPU returned, and it ends (B3, D4)."""
    DIED = "died"
    """It has ended otherwise. `Event.why`: of what; empty: it was told to, for the pool closes."""
    REFUSED = "refused"
    """No worker could be created, which will be tried again (B2). `Event.why` says why."""

    MAYDAY = "mayday"
    """A queue's rescuer is called to help a pool that gets no worker (C2)."""
    RESCUED = "rescued"
    """A rescuer begins a work (C3); `STARTED` follows."""
    HOG = "hog"
    """A work has used the CPU for more than `cpu_intensive_thresh` without blocking, while works wait (A9)."""
    CPU_LEFT = "cpu_left"
    """The pool does not serve these CPUs any more (`Event.cpus`): they went, or were taken offline (D2)."""
    CPU_RETURNED = "cpu_returned"
    """The pool serves these CPUs from now on (D4)."""
    STALL = "stall"
    """Works wait, and none of them began for long, or one begins again (H3): `Event.stall`, `Event.seconds`."""

    LOST = "lost"
    """`Event.number` events of the pool are missing here: the buffer was full."""


OF_WORKS = frozenset({Kind.QUEUED, Kind.ACTIVATED, Kind.DEACTIVATED, Kind.CANCELLED, Kind.STARTED, Kind.ENDED})
"""Those for which a queue's works have to take the diversions."""


@dataclass(frozen=True, slots=True)
class Counts:
    """A pool's numbers at one moment, as `PoolView` has them."""

    workers: int
    """Without rescuers that help here."""
    idle: int
    running: int
    blocked: int
    pending: int
    inactive: int
    started: int
    completed: int


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened in a pool. What does not apply to its kind is empty."""

    kind: Kind
    time: float
    """Seconds, on the monotonic clock of the runtime's host: `time.monotonic()`."""
    pool: str
    """The pool's name, with an H behind it for a pool of high priority, as in the names of its workers."""
    worker: str = ""
    queue: str = ""
    work: str = ""
    """What the work calls, by name. Empty where it has just been called, and the pool learns of something else then."""
    item: int = 0
    """Which queueing of a work, or which call. For a call it is `id(future)`. No two that have not ended have the same;
    one that comes later may."""
    why: str = ""
    """Of `BLOCKED`: "lock", it waits for a lock; "asleep", for anything else in the system; "said", the work said so,
    by `cmwq.blocking()` or by waiting for another work; "hog", it doesn't block, but is let go of (A9). Of `ENDED`: the
    name of the exception's type; empty: it returned. Of others: see their kinds."""
    where: str = ""
    """Of `BLOCKED`: what the work waits for, in words, if it waits for another work, or if the subscription asked for
    it by `where=True`."""
    seconds: float = 0.0
    cpu_seconds: float | None = None
    """Of `ENDED`: None where the host does not know."""
    number: int = 0
    cpus: tuple[int, ...] = ()
    counts: Counts | None = None
    stall: Stall | None = None


Note: TypeAlias = tuple[Any, ...]
"""The fields of an `Event`, and behind them the worker whose place is to be looked up when it is taken, or None.

An event is made of it by who takes it: to make one costs a microsecond, and notes are taken under the pool's lock.
"""


class Tap:
    """One pool's end of a subscription."""

    __slots__ = ("lost", "subscription", "untold")

    def __init__(self, subscription: Subscription) -> None:
        self.subscription = subscription  # I
        self.lost = 0  # L: events that found the buffer full
        self.untold = 0  # L: so many of them no event has told of yet

    def wants(self, kind: Kind, wq: WorkQueue | None) -> bool:
        subscription = self.subscription
        return kind in subscription.kinds and (subscription.queue is None or subscription.queue is wq)

    def watches(self, wq: WorkQueue) -> bool:
        """The queue's works are to take the diversions."""
        subscription = self.subscription
        return subscription.queue in (None, wq) and not OF_WORKS.isdisjoint(subscription.kinds)

    @holding("lock")
    def put(self, note: Note, lock: Lock) -> None:
        subscription = self.subscription
        buffer = subscription.buffer
        if len(buffer) >= subscription.limit:
            self.lost += 1
            self.untold += 1
            return
        if self.untold:
            self.tell_lost(note[1], note[2])
        buffer.append(note)
        if subscription.asleep:
            subscription.wake(lock)

    def tell_lost(self, time: float, pool: str) -> None:
        """Context: lock held."""
        self.subscription.buffer.append(_lost(time, pool, self.untold))
        self.untold = 0


def _lost(time: float, pool: str, number: int) -> Note:
    return (Kind.LOST, time, pool, "", "", "", 0, "", "", 0.0, None, number, (), None, None, None)


# ----------------------------------------------------------------------------------- noting


@holding("pool.lock")
def note(
    pool: WorkerPool,
    kind: Kind,
    worker: Worker | None = None,
    item: Item | None = None,
    wq: WorkQueue | None = None,
    *,
    work: str = "",
    why: str = "",
    where: str = "",
    seconds: float = 0.0,
    cpu_seconds: float | None = None,
    cpus: tuple[int, ...] = (),
    stall: Stall | None = None,
) -> Note:
    """It happens now. For whoever observes the pool, and returned for those who are told in any case."""
    if item is not None:
        wq, function = item.queue, item.function
        if function is not None:
            work = name_of(function)
    sought = worker if kind is Kind.BLOCKED and not where else None
    queue = "" if wq is None else wq.name
    noted = (
        kind, pool.host.monotonic(), name_of_pool(pool), "" if worker is None else worker.name, queue, work,
        0 if item is None else id(item), why, where, seconds, cpu_seconds, 0, cpus, None, stall, sought,
    )  # fmt: skip
    for tap in pool.taps:
        if tap.wants(kind, wq):
            tap.put(noted, pool.lock)
    return noted


def name_of_pool(pool: WorkerPool) -> str:
    return f"{pool.name}H" if pool.nice else pool.name


@holding("pool.lock")
def note_counts(pool: WorkerPool, tap: Tap) -> None:
    counts = Counts(
        workers=sum(worker.listed and not worker.is_rescuer for worker in pool.workers),
        idle=len(pool.idle_list),
        running=pool.nr_running,
        blocked=sum(worker.blocked is not None for worker in pool.workers),
        pending=len(pool.worklist),
        inactive=sum(len(pwq.inactive) for pwq in pool.pwqs),
        started=pool.nr_started(),
        completed=pool.nr_completed,
    )
    if tap.wants(Kind.COUNTS, None):
        now, name = pool.host.monotonic(), name_of_pool(pool)
        tap.put((Kind.COUNTS, now, name, "", "", "", 0, "", "", 0.0, None, 0, (), counts, None, None), pool.lock)


@holding("pool.lock")
def mended(pool: WorkerPool) -> None:
    """The pool was made whole after an interruption, which may have come in the middle of a note."""
    observe_places(pool)
    for tap in pool.taps:
        note_counts(pool, tap)
        tap.subscription.wake(pool.lock)


@holding("pwq.pool.lock")
def queued(pwq: PoolWorkQueue, item: Item) -> None:
    note(pwq.pool, Kind.QUEUED, item=item, wq=pwq.wq)


@holding("pwq.pool.lock")
def activated(pwq: PoolWorkQueue, first: int) -> None:
    """Those on the worklist from that index on."""
    for item in islice(pwq.pool.worklist, first, None):
        note(pwq.pool, Kind.ACTIVATED, item=item, wq=pwq.wq)


@holding("pwq.pool.lock")
def deactivated(pwq: PoolWorkQueue, items: Iterable[Item]) -> None:
    for item in items:
        if not item.withdrawn:
            note(pwq.pool, Kind.DEACTIVATED, item=item, wq=pwq.wq)


@holding("item.pwq.pool.lock")
def cancelled(item: Item) -> None:
    pwq = item.phase.pwq
    if item.phase is not pwq.outside:  # else it was not queued yet
        note(pwq.pool, Kind.CANCELLED, item=item, wq=pwq.wq)


@holding("pool.lock")
def blocked(pool: WorkerPool, worker: Worker, why: str) -> None:
    item, where = worker.item, ""
    target = None if item is None else pool.runtime.waits.target_of(item)
    if target is not None:
        where = target.describe_wait()
    note(pool, Kind.BLOCKED, worker, item, why=why, where=where)


@holding("pool.lock")
def running(pool: WorkerPool, worker: Worker) -> None:
    note(pool, Kind.RUNNING, worker, worker.item)


@holding("pool.lock")
def counted(pool: WorkerPool, worker: Worker, counts: bool) -> None:
    note(pool, Kind.COUNTED if counts else Kind.UNCOUNTED, worker, worker.item)


@holding("pool.lock")
def woken(pool: WorkerPool, worker: Worker, by: str) -> None:
    note(pool, Kind.WOKEN, worker, why=by)


@holding("pool.lock")
def idle(pool: WorkerPool, worker: Worker) -> None:
    note(pool, Kind.IDLE, worker)


@holding("pool.lock")
def created(pool: WorkerPool, worker: Worker) -> None:
    note(pool, Kind.CREATED, worker)


@holding("pool.lock")
def culled(pool: WorkerPool, worker: Worker) -> None:
    note(pool, Kind.CULLED, worker)


@holding("pool.lock")
def died(pool: WorkerPool, worker: Worker) -> None:
    """To be said while it is one of the pool's workers still: one that was culled is none."""
    if worker.listed and worker in pool.workers:
        note(pool, Kind.DIED, worker, why=worker.fate)


@holding("pool.lock")
def refused(pool: WorkerPool, why: str) -> None:
    note(pool, Kind.REFUSED, why=why)


@holding("pwq.pool.lock")
def mayday(pwq: Source) -> None:
    note(pwq.pool, Kind.MAYDAY, wq=pwq.wq)


@holding("pool.lock")
def rescued(pool: WorkerPool, worker: Worker) -> None:
    note(pool, Kind.RESCUED, worker, worker.item)


@holding("pool.lock")
def hog(pool: WorkerPool, worker: Worker) -> Note:
    return note(pool, Kind.HOG, worker, worker.item)


@not_holding("pool.lock")
def cpus_change(pool: WorkerPool, cpus: tuple[int, ...]) -> None:
    """From now on it serves these; none: it is to be disassociated."""
    with pool.lock:
        before = set() if pool.disassociated else set(pool.cpus)
        left, back = before.difference(cpus), set(cpus) - before
        if left:
            note(pool, Kind.CPU_LEFT, cpus=tuple(sorted(left)))
        if back:
            note(pool, Kind.CPU_RETURNED, cpus=tuple(sorted(back)))


# ----------------------------------------------------------------------------------- places


@holding("pwq.pool.lock")
def observe(pwq: PoolWorkQueue) -> None:
    """See to it that its works take the diversions if somebody wants to hear of them, and not otherwise."""
    pool, wq = pwq.pool, pwq.wq
    pwq.observed = observed = any(tap.watches(wq) for tap in pool.taps)
    pwq.careful = observed or pwq.frozen
    pwq.attends = pwq.careful or bool(pwq.inactive)
    pwq.gate = observed or not wq.is_open or pool.closing


@holding("pool.lock")
def observe_places(pool: WorkerPool) -> None:
    """A worker that has just found a place unobserved has set its `served` before it looked; so either it sees
    `observed`, or its `served` is taken back here.
    """
    for pwq in pool.pwqs:
        observe(pwq)
    for worker in list(pool.workers):
        worker.served = None
