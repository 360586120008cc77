"""PoolWorkQueue: a queue's place on one pool. How many of its works are active there, which wait, who waits for them.

Guarantees: at most `max_active` works of the queue are listed or executing on the pool, the rest wait in order (E1),
and nothing waits while there is room; a flush waits for exactly what was queued before it, at O(1) cost per work (F1);
a work taken back is gone at once for all who wait, though its place in a list is passed over only later.

The letters are those of `pool`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cmwq._core.held import holding
from cmwq._errors import CmwqError
from cmwq._pool import events, lending
from cmwq._workqueue.phase import Outside, Phase

if TYPE_CHECKING:
    from cmwq._core.ports import Parker
    from cmwq._pool.item import Item
    from cmwq._pool.pool import WorkerPool
    from cmwq._pool.rescuer import Rescuer
    from cmwq._pool.worker import Worker
    from cmwq._workqueue.future import Future
    from cmwq._workqueue.queue import WorkQueue
    from cmwq._workqueue.queued import Queued


class PoolWorkQueue:
    """A queue's place on one pool (the kernel's pool_workqueue)."""

    __slots__ = (
        "__weakref__", "attends", "called", "careful", "exempt", "freezers", "frozen", "gate", "inactive", "lends",
        "max_active", "nr_active", "nr_admitted", "nr_thaws", "nr_withdrawn", "observed", "outside", "phase", "pool",
        "sealed", "wq",
    )  # fmt: skip

    def __init__(self, wq: WorkQueue, pool: WorkerPool, *, frozen: bool, gate: bool) -> None:
        self.wq = wq  # I
        self.pool = pool  # I
        self.exempt = wq.cpu_intensive  # I
        self.lends = not wq.ordered  # I: a work that waits lends its place to another
        self.max_active = wq._max_active  # L: the queue's, as this pool knows it
        self.nr_active = 0  # L: listed or executing, and not lent
        self.inactive: deque[Item] = deque()  # L: beyond max_active, in order
        self.nr_withdrawn = 0  # L: in `inactive` or the pool's worklist, to be passed over
        self.phase = Phase(self, 0)  # L: where new works are counted
        self.outside = Outside(self, -1)  # I
        self.sealed: deque[Phase] = deque()  # L: phases that somebody flushes, oldest first
        self.frozen = frozen  # L: nothing is started (E8)
        self.freezers: list[Parker] = []  # L: who waits until nothing runs
        self.nr_thaws = 0  # L
        self.gate = gate  # L: whoever queues must ask `check_admitted`
        self.nr_admitted = 0  # L: works let through the shut gate
        self.called = False  # L: its queue's rescuer was asked to help here, and has not come yet (C2)
        self.observed = False  # L to change, read freely: somebody hears of its works (`events`)
        self.careful = frozen  # L: frozen or observed: no work takes the short way
        self.attends = frozen  # L: careful, or works wait inactive: something is to be done when a work ends

    @holding("self.pool.lock")
    def check_admitted(self, item: Item) -> None:
        """The gate is shut: raise QueueClosed unless this item is let through."""
        if self.wq.is_open and not self.pool.closing:
            return  # it is shut because somebody observes
        self.wq._check_admitted(self.pool, accepted=item.accepted)
        self.nr_admitted += 1

    # ------------------------------------------------------------------------------- as a `Source`

    @property
    def name(self) -> str:
        return self.wq.name

    @property
    def ordered(self) -> bool:
        return self.wq.ordered

    @property
    def rescuer(self) -> Rescuer | None:
        return self.wq.rescuer

    def thread_name(self, worker: Worker) -> str:
        return self.wq.thread_name(worker)

    @holding("self.pool.lock")
    def note_hog(self) -> None:
        self.wq.nr_hogs += 1

    @holding("self.pool.lock")
    def note_mayday(self) -> None:
        self.wq.nr_maydays += 1

    @holding("self.pool.lock")
    def note_rescued(self) -> None:
        self.wq.nr_rescued += 1

    # ------------------------------------------------------------------------------- active and inactive (E1)
    # Every change of `nr_active` and of the two lists is one of these, but for `insert` and `Phase.retire`, which spell
    # them out, and for who takes an item off the worklist to run it. Who calls them wakes whom that needs.

    @holding("self.pool.lock")
    def place(self, item: Item) -> None:
        """List a new item, or let it wait for a place."""
        if self.nr_active >= self.max_active or self.inactive or self.frozen:
            self.inactive.append(item)
            self._attend_to_inactive()
        else:
            self.nr_active += 1
            self.pool.worklist.append(item)
            if self.observed:
                events.activated(self, len(self.pool.worklist) - 1)

    @holding("self.pool.lock")
    def place_many(self, items: Sequence[Item]) -> None:
        """`place` for each, all or none (F10): in one step they wait, and those that may be active are so at once."""
        self.inactive.extend(items)
        self.activate()

    @holding("self.pool.lock")
    def activate(self) -> None:
        """List waiting works while there is room."""
        inactive, listed = self.inactive, len(self.pool.worklist)
        while inactive and self.nr_active < self.max_active and not self.frozen:
            item = inactive[0]
            if item.withdrawn:
                self.nr_withdrawn -= 1
            else:
                self.nr_active += 1
                self.pool.worklist.append(item)
            del inactive[0]
        if self.observed:
            events.activated(self, listed)
        self._attend_to_inactive()

    @holding("self.pool.lock")
    def _attend_to_inactive(self) -> None:
        self.attends = self.careful or bool(self.inactive)
        if self.inactive and self.lends and self.pool.lending.timer is None:
            lending.watch(self.pool)

    @holding("self.pool.lock")
    def attend(self) -> None:
        """A place became free, or a work ended while frozen."""
        self.activate()
        for parker in self.freezers:
            parker.unpark()

    @holding("self.pool.lock")
    def lend_place(self) -> None:
        """One that was active is not, for a while or for good: the next may have its place."""
        self.nr_active -= 1
        if self.attends:
            self.activate()

    @holding("self.pool.lock")
    def take_place(self) -> None:
        """One that lent its place goes on, even if that makes one too many: to wait for it could be for ever."""
        self.nr_active += 1

    @holding("self.pool.lock")
    def list_first(self, item: Item) -> None:
        """An active item that is in no list, and has been before all that are: it is the next to run."""
        self.pool.worklist.appendleft(item)

    @holding("self.pool.lock")
    def pass_over(self) -> None:
        """A listed item turned out to be withdrawn."""
        self.nr_withdrawn -= 1
        self.lend_place()

    @holding("self.pool.lock")
    def take_out(self, item: Item, *, listed: bool) -> None:
        """An item that has not begun is another's from now on, who took it off the worklist or off the inactive."""
        if self.observed:
            events.cancelled(item)
        item.phase.leave()
        if listed:
            self.lend_place()
        else:
            self.activate()  # it may have been the last that waits

    @holding("self.pool.lock")
    def put_back(self, item: Item) -> None:
        """An active item may not start, for the queue was frozen meanwhile: it is the next to be activated."""
        self.nr_active -= 1
        self.inactive.appendleft(item)
        self.attends = True
        if self.observed:
            events.deactivated(self, (item,))

    @holding("self.pool.lock")
    def purge(self) -> None:
        """Remove withdrawn items where they have become the larger part."""
        worklist = self.pool.worklist
        if self.nr_withdrawn * 2 <= len(self.inactive) + len(worklist):
            return
        listed = [item for item in worklist if not (item.withdrawn and item.pwq is self)]
        waiting = [item for item in self.inactive if not item.withdrawn]
        removed = len(worklist) - len(listed)
        self.nr_withdrawn -= removed + len(self.inactive) - len(waiting)
        self.nr_active -= removed
        self.pool.relist(listed, self, waiting)
        self.activate()
        self.pool.settle()

    def set_max_active(self, limit: int) -> None:
        with self.pool.lock:
            self.max_active = limit
            self.activate()
            self.pool.kick_or_settle()

    @holding("self.pool.lock")
    def has_listed(self, item: Item) -> bool:
        """It is in a list here. Costs a search."""
        return item in self.inactive or item in self.pool.worklist

    def has(self, item: Item) -> bool:
        """It is in a list here, or executes. Costs a search."""
        with self.pool.lock:
            return any(worker.item is item for worker in self.pool.workers) or self.has_listed(item)

    # ------------------------------------------------------------------------------- flush (F1)

    @holding("self.pool.lock")
    def seal(self) -> Phase | None:
        """Begin a new phase. Returns what to wait for so that all queued before has ended, or None: nothing."""
        if self.phase.count:
            sealed = self.phase
            self.sealed.append(sealed)
            self.new_phase()
            return sealed
        return self.sealed[-1] if self.sealed else None

    @holding("self.pool.lock")
    def new_phase(self) -> None:
        """The current one was sealed."""
        self.phase = Phase(self, self.phase.number + 1)

    @holding("self.pool.lock")
    def complete_phases(self, empty: Phase | None = None) -> None:
        """empty: the sealed one of which all works have ended now; None: any of them."""
        while self.sealed and not self.sealed[0].count:
            phase = self.sealed[0]
            phase.done = True
            for parker in phase.parkers:
                self.pool.lock.wake(parker)
            del self.sealed[0]  # last: whoever was to be told has been told
        if len(self.sealed) > 1:
            for phase in [each for each in self.sealed if not each.count] if empty is None else [empty]:
                self.merge(phase)

    @holding("self.pool.lock")
    def merge(self, phase: Phase) -> None:
        """Nothing of it is left to wait for but the phases before. So it is one with the last of those, and there are
        never more sealed phases than works in them, however often a stuck queue is flushed.
        """
        if phase.done or phase not in self.sealed:
            return
        before = self.sealed[self.sealed.index(phase) - 1]
        before.parkers.extend(parker for parker in phase.parkers if parker not in before.parkers)
        phase.into = before
        self.sealed.remove(phase)
        phase.parkers = []

    @holding("self.pool.lock")
    def nr_unfinished(self) -> int:
        """Works that were queued here, and have neither ended nor been taken back."""
        return self.phase.count + sum(phase.count for phase in self.sealed)

    def count_unfinished(self, *, begun: bool = True) -> int:
        """The same; begun: those that have begun are among them."""
        with self.pool.lock:
            phases = (*self.sealed, self.phase)  # one that asks a source is in none, and is no work yet
            running = 0 if begun else sum(worker.item.phase in phases for worker in self.executing())  # type: ignore
            return self.nr_unfinished() - running

    @holding("self.pool.lock")
    def executing(self) -> list[Worker]:
        """Those that execute a work of the queue here, or tell who waits for it."""
        return [worker for worker in self.pool.workers if worker.item is not None and worker.item.pwq is self]

    def has_works_waiting(self, last: int | None = None) -> bool:
        """Some, of the phases up to that number, have not begun."""
        with self.pool.lock:
            phases = [p for p in (*self.sealed, self.phase) if last is None or p.number <= last]
            begun = [w.item for w in self.pool.workers if w.item is not None and w.item.phase in phases]
            return sum(phase.count for phase in phases) > len(begun)

    # ------------------------------------------------------------------------------- freezer (E8)

    def freeze(self) -> None:
        """Nothing of the queue starts here until `thaw`. What is listed waits again, in order."""
        with self.pool.lock:
            if self.frozen:
                return
            self.frozen = self.careful = self.attends = True
            worklist = self.pool.worklist
            listed = [item for item in worklist if item.pwq is self]
            if listed:
                kept = [item for item in worklist if item.pwq is not self]
                self.pool.relist(kept, self, [*listed, *self.inactive])
                self.nr_active -= len(listed)
                if self.observed:
                    events.deactivated(self, listed)
                self.pool.settle()

    def thaw(self) -> None:
        with self.pool.lock:
            self.frozen = False
            self.careful = self.observed
            self.nr_thaws += 1
            for parker in self.freezers:
                parker.unpark()
            self.freezers.clear()
            self.activate()
            self.pool.kick_or_settle()

    def is_executing(self) -> bool:
        """A work of the queue runs here, or waits within."""
        with self.pool.lock:
            return bool(self.executing())


def insert(pwq: PoolWorkQueue, item: Future[Any] | Queued) -> None:
    """Hand an item to the pool: listed if `max_active` allows it (E1), a worker woken if one is needed (A4).

    Raises QueueClosed, and Reentered: this thread is in the middle of a critical section.
    """
    pool = pwq.pool
    with pool.lock:
        if pwq.gate:
            pwq.check_admitted(item)
            if pwq.observed:
                events.queued(pwq, item)
        item.phase = phase = pwq.phase
        phase.count += 1
        # `place`, spelled out, for every work comes this way.
        if pwq.inactive:
            pwq.inactive.append(item)
            return
        if pwq.attends or pwq.nr_active >= pwq.max_active:
            pwq.place(item)
            if pwq.inactive:
                return
        else:
            pwq.nr_active += 1
            pool.worklist.append(item)
        if pool.armed_with is not None and pool.nr_running >= pool.target:
            return  # A3; and the sensor is armed already
        pool.kick_or_settle()


def insert_many(pwq: PoolWorkQueue, items: Sequence[Future[Any]]) -> None:
    """As `insert`, in one critical section, all or none. The wake chain (A6) wakes as many workers as are needed."""
    pool = pwq.pool
    with pool.lock:
        if pwq.gate:
            for item in items:
                pwq.check_admitted(item)
            if pwq.observed:
                for item in items:
                    events.queued(pwq, item)
        phase = pwq.phase
        for item in items:
            item.phase = phase
        phase.count += len(items)
        pwq.place_many(items)
        pool.kick_or_settle()


def insert_later(pwq: PoolWorkQueue, item: Future[Any]) -> None:
    """Insert it as soon as this thread is out of the critical section in which it was called anew (F10).

    If the queue does not take it now, QueueClosed is raised now. If it doesn't then, there is nobody to be told except
    by the future.
    """
    if pwq.gate:
        pwq.check_admitted(item)
    item.accepted = True  # should it drain or close by then

    def insert_now() -> None:
        if item.phase is not pwq.outside or item.withdrawn:
            return  # done, in a try that was interrupted; or taken back meanwhile
        try:
            insert(pwq, item)
        except CmwqError as exc:
            item.refuse(exc)

    pwq.pool.host.defer(insert_now)
