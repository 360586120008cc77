"""Events: what happens in the pools, told to subscribers in the order in which it happened.

Guarantees
- Events of one pool come in the order of its changes: each is noted under the pool's lock, in the critical section that
  makes the change. Events of two pools are ordered only by their times.
- A subscriber first gets each pool's numbers (`Kind.COUNTS`), and then every change of them. So the numbers of the pool
  at any moment follow from the events alone.
- An observer slows nobody down: none of its code is called under a lock or by a worker. A subscription has a buffer
  of limited size, which it empties in its own thread. If it is too slow it loses events, and is told how many, and
  at which point of the order (`Kind.LOST`); no thread waits for it.
- Without a subscription, events cost nothing on the path of a work from `submit` to its result: `observed` says how.
- The child of a fork has no subscription. When a runtime ends, what was noted before is delivered, within a limit of
  time (`subscriptions`).

What an interruption may do (F10). A note takes a few steps, in the same critical section as the change. An exception
between the two, such as Ctrl-C, leaves a note of something that did not happen, or no note of something that did. Only
one change is affected, because the section ends there. The pool is then mended, and tells its numbers anew by `COUNTS`,
so an observer that counts goes on from there. If a work was being queued at that moment, there may be a `QUEUED`
although `submit` raised, and nothing after it. A number of lost events may be told twice. The order is never wrong, and
the pool is never harmed.

Why each subscription has a buffer that is filled under the pool's lock, and no single thread hands events out: a slow
observer then loses only its own events, one thread fewer is needed, and a pull subscription needs none. Why the newest
events are dropped and not the oldest: the point where events are missing is then known, and only the observer takes
from the buffer.

The letters are those of `pool`. In a buffer, A stands for one atomic step in C, by a thread that holds some pool's lock
or by the observer.
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
    from cmwq._pool.ring import Ring
    from cmwq._pool.worker import Worker
    from cmwq._workqueue.pwq import PoolWorkQueue
    from cmwq._workqueue.queue import WorkQueue
    from cmwq._workqueue.report import Stall
    from cmwq._workqueue.subscriptions import Subscription


class Kind(StrEnum):
    """What happened. Each kind is also a string: its name in small letters."""

    COUNTS = "counts"
    """The pool's numbers to start from (`Event.counts`): when the subscription begins, and after an interruption."""

    QUEUED = "queued"
    """A work was accepted."""
    ACTIVATED = "activated"
    """A work got a place under `max_active`, and waits for a worker only."""
    DEACTIVATED = "deactivated"
    """A work waits for a place again, because its queue was frozen."""
    CANCELLED = "cancelled"
    """A work was cancelled before it began."""
    STARTED = "started"
    """A worker is about to call its function."""
    ENDED = "ended"
    """A work's function has returned or raised (`Event.why`). `Event.seconds` is how long that took by the clock, and
    `Event.cpu_seconds` is the CPU time it used. Threads that wait for the result are told after this was noted.
    """

    BLOCKED = "blocked"
    """A worker is known to be blocked, and another may run: see `Event.why` and `Event.where`.

    The time is that at which the pool learned of it. A sensor looks only while works wait for which no worker is on its
    way. The sentinel leaves a mark for what it sees, which is delivered when a worker comes to read it; the time is
    that of the delivery, later than the moment at which the worker blocked.
    """
    RUNNING = "running"
    """A worker runs again, as far as is known."""
    COUNTED = "counted"
    """A worker counts as running (A2): it goes on after it created a worker, or after a work of a `cpu_intensive`
    queue. For the usual way see `WOKEN`.
    """
    UNCOUNTED = "uncounted"
    """A worker does not count as running any more (A8): it is about to go idle, to create a worker, or to execute a
    work of a `cpu_intensive` queue.
    """

    WOKEN = "woken"
    """An idle worker was taken for work, and counts as running from now on. `Event.why`: by the "pool" or a "sensor".
    """
    IDLE = "idle"
    """A worker has nothing to do. This may be told again of a worker that was woken for nothing."""
    CREATED = "created"
    """The pool has one worker more."""
    CULLED = "culled"
    """A worker ends because it was idle for long, or because its CPU returned (B3, D4)."""
    DIED = "died"
    """A worker has ended in another way. `Event.why` is what it died of; it is empty if the worker was told to end
    because the pool closes.
    """
    REFUSED = "refused"
    """No worker could be created, for the reason in `Event.why`. The pool tries again later (B2)."""

    MAYDAY = "mayday"
    """A queue's rescuer is called to help a pool that gets no worker (C2)."""
    RESCUED = "rescued"
    """A rescuer begins a work (C3); `STARTED` follows."""
    HOG = "hog"
    """A work has used the CPU for more than `cpu_intensive_thresh` without blocking, while works wait (A9)."""
    CPU_LEFT = "cpu_left"
    """The pool does not serve the CPUs in `Event.cpus` any more: they left, or were taken offline (D2)."""
    CPU_RETURNED = "cpu_returned"
    """The pool serves the CPUs in `Event.cpus` from now on (D4)."""
    STALL = "stall"
    """Works wait, and none has begun for long; or one begins again (H3). See `Event.stall` and `Event.seconds`."""

    LOST = "lost"
    """`Event.number` events of the pool are missing here, because the buffer was full."""


OF_WORKS = frozenset({Kind.QUEUED, Kind.ACTIVATED, Kind.DEACTIVATED, Kind.CANCELLED, Kind.STARTED, Kind.ENDED})
"""The kinds for which a queue's works have to take the slow branches."""
REPORTED = frozenset({Kind.HOG, Kind.STALL, Kind.STARTED})
"""The kinds of which the thread that finds out needs the note itself."""


@dataclass(frozen=True, slots=True)
class Counts:
    """A pool's numbers at one moment, as `PoolView` has them. Immutable."""

    workers: int
    """Without the rescuers that help in this pool."""
    idle: int
    running: int
    blocked: int
    pending: int
    inactive: int
    started: int
    completed: int


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened in a pool. Immutable. Fields that do not apply to its kind have their defaults."""

    kind: Kind
    time: float
    """Seconds, on the monotonic clock of the runtime's host: `time.monotonic()`."""
    pool: str
    """The pool's name, followed by an H for a pool of high priority, as in the names of its workers."""
    worker: str = ""
    queue: str = ""
    work: str = ""
    """The name of what the work calls. Empty if the function was just called and the event is about something else."""
    item: int = 0
    """Identifies one queueing of a work, or one call; for a call it is `id(future)`. No two that have not ended have
    the same number; a later one may have the number of one that has ended.
    """
    why: str = ""
    """Of `BLOCKED`: "lock": the worker waits for a lock; "asleep": it waits for anything else in the system; "said":
    the work said so, by `cmwq.blocking()` or by waiting for another work; "hog": it is not blocked, but let go of (A9).
    Of `ENDED`: the name of the exception's type, or empty if the function returned. For others see their kinds.
    """
    where: str = ""
    """Of `BLOCKED`: what the work waits for, in words, if it waits for another work, or if the subscription was made
    with `where=True`.
    """
    seconds: float = 0.0
    cpu_seconds: float | None = None
    """Of `ENDED`: seconds of CPU time; None if the host does not know."""
    number: int = 0
    cpus: tuple[int, ...] = ()
    counts: Counts | None = None
    stall: Stall | None = None


Note: TypeAlias = tuple[Any, ...]
"""The fields of an `Event`, followed by the worker whose place is to be looked up when the note is taken, or None.

The observer makes the event of it when it takes the note: to make one costs a microsecond, and notes are made under the
pool's lock.
"""


class Tap:
    """One pool's end of a subscription."""

    __slots__ = ("lost", "ring", "subscription", "untold")

    def __init__(self, subscription: Subscription) -> None:
        self.subscription = subscription  # I
        self.lost = 0  # L: events that found the buffer full
        self.untold = 0  # L: how many of them no event has told of yet
        self.ring: Ring | None = None  # L: where the works of the pool are recorded

    def wants(self, kind: Kind, wq: WorkQueue | None) -> bool:
        """Return whether the subscription asked for events of this kind about this queue."""
        subscription = self.subscription
        return kind in subscription.kinds and (subscription.queue is None or subscription.queue is wq)

    def watches(self, wq: WorkQueue) -> bool:
        """Return whether the queue's works have to take the slow branches."""
        subscription = self.subscription
        return subscription.queue in (None, wq) and not OF_WORKS.isdisjoint(subscription.kinds)

    @holding("lock")
    def put(self, note: Note, lock: Lock) -> None:
        """Append a note to the buffer, or count it as lost if the buffer is full; wake the observer if it is asleep."""
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
        """Append a note of how many events were lost. Context: lock held."""
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
    """Note that something happens now, in the buffer of each subscription that wants it.

    Returns the note for those who are told in any case (`REPORTED`), and nothing if nobody wants it.
    """
    if item is not None:
        wq = item.queue
    taps = [tap for tap in pool.taps if tap.wants(kind, wq)]
    if not (taps or kind in REPORTED):
        return ()
    function = None if item is None else item.function
    if function is not None:
        work = name_of(function)
    sought = worker if kind is Kind.BLOCKED and not where else None
    queue = "" if wq is None else wq.name
    noted = (
        kind, pool.host.monotonic(), name_of_pool(pool), "" if worker is None else worker.name, queue, work,
        0 if item is None else id(item), why, where, seconds, cpu_seconds, 0, cpus, None, stall, sought,
    )  # fmt: skip
    for tap in taps:
        tap.put(noted, pool.lock)
    return noted


def name_of_pool(pool: WorkerPool) -> str:
    return f"{pool.name}H" if pool.nice else pool.name


@holding("pool.lock")
def note_counts(pool: WorkerPool, tap: Tap) -> None:
    """Note the pool's numbers for one subscription."""
    counts = Counts(
        workers=sum(worker.listed and not worker.is_rescuer for worker in pool.workers),
        idle=len(pool.idle_list),
        running=pool.nr_running,
        blocked=sum(worker.sleeping for worker in pool.workers),
        pending=pool.nr_listed(),
        inactive=sum(len(pwq.inactive) for pwq in pool.pwqs),
        started=pool.nr_started(),
        completed=pool.nr_completed,
    )
    if tap.wants(Kind.COUNTS, None):
        now, name = pool.host.monotonic(), name_of_pool(pool)
        tap.put((Kind.COUNTS, now, name, "", "", "", 0, "", "", 0.0, None, 0, (), counts, None, None), pool.lock)


@holding("pwq.pool.lock")
def queued(pwq: PoolWorkQueue, item: Item) -> None:
    """Tell those who want to hear of it, if anybody does."""
    if pwq.recorder is not None:
        pwq.recorder.queued(item)
    if pwq.observed:
        note(pwq.pool, Kind.QUEUED, item=item, wq=pwq.wq)


@holding("pwq.pool.lock")
def activated(pwq: PoolWorkQueue, first: int) -> None:
    """Note the activation of the items on the worklist from index `first` on."""
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
    if item.phase is not pwq.outside:  # otherwise it was not queued yet
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
    """Note the end of a worker. To be called while it is still one of the pool's workers, which a culled one is not."""
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
def hog(pool: WorkerPool, worker: Worker, function: str = "") -> Note:
    """function: the name of the item's function, if that has ended."""
    return note(pool, Kind.HOG, worker, worker.item, work=function)


@not_holding("pool.lock")
def cpus_change(pool: WorkerPool, cpus: tuple[int, ...]) -> None:
    """Note which CPUs the pool is about to lose and to get. An empty `cpus`: it is about to be disassociated."""
    with pool.lock:
        before = set() if pool.disassociated else set(pool.cpus)
        left, back = before.difference(cpus), set(cpus) - before
        if left:
            note(pool, Kind.CPU_LEFT, cpus=tuple(sorted(left)))
        if back:
            note(pool, Kind.CPU_RETURNED, cpus=tuple(sorted(back)))
