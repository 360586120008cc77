"""PoolWorkQueue: a queue's place on one pool. It knows which of the queue's works are active there, which wait for a
place under `max_active`, and who waits for them to end.

Guarantees: at most `max_active` works of the queue are listed or executing on the pool, and the rest wait in order
(E1). No work waits while there is room. A flush waits for exactly what was queued before it, at O(1) cost per work
(F1). A work that was taken back is gone at once for all who wait, though its place in a list is passed over only later.

The letters are those of `pool`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cmwq._core.config import DFL_ACTIVE
from cmwq._core.held import holding, outside
from cmwq._core.records import PlaceRecord
from cmwq._pool import events, lane, lending
from cmwq._pool.figures import Figures
from cmwq._workqueue import learning
from cmwq._workqueue.learned import NEVER
from cmwq._workqueue.measured import Measured
from cmwq._workqueue.phase import Outside, Phase

if TYPE_CHECKING:
    from cmwq._core.ports import Parker
    from cmwq._pool.item import Item
    from cmwq._pool.pool import WorkerPool
    from cmwq._pool.rescuer import Rescuer
    from cmwq._pool.ring import Recorder
    from cmwq._pool.worker import Worker
    from cmwq._workqueue.learning import Learning
    from cmwq._workqueue.queue import WorkQueue


class PoolWorkQueue(PlaceRecord):
    """A queue's place on one pool (the kernel's pool_workqueue)."""

    __slots__ = (
        "__weakref__", "called", "exempt", "figures", "freezers", "learning", "left", "lends", "nr_admitted",
        "nr_thaws", "observed", "recorder", "sealed",
    )  # fmt: skip

    def __init__(self, wq: WorkQueue, pool: WorkerPool, *, frozen: bool) -> None:
        self.wq = wq  # I
        self.pool = pool  # I
        self.exempt = wq.cpu_intensive  # I
        self.lends = not wq.ordered  # I: a work that waits lends its place to another work
        self.learning: Learning | None = None  # L: how the limit is learned; None: it is a number
        self.left = NEVER  # L: so many works end, while others wait, until the law is asked
        self.max_active = DFL_ACTIVE  # L: set below
        self.nr_active = 0  # L: listed or executing, and not lent
        self.inactive: deque[Item] = deque()  # L: beyond max_active, in order
        self.nr_withdrawn = 0  # L: works in `inactive` or on the pool's worklist, to be passed over
        self.phase: Phase = learning.first_phase(self)  # L: where new works are counted
        self.outside = Outside(self, -1)  # I
        self.sealed: deque[Phase] = deque()  # L: phases that are being flushed, oldest first
        self.frozen = frozen  # L: nothing is started (E8)
        self.freezers: list[Parker] = []  # L: threads that wait until nothing runs
        self.nr_thaws = 0  # L
        self.gate = True  # L: each new work has to pass `check_admitted` and `admit`
        self.nr_admitted = 0  # L: works let through the shut gate
        self.figures = Figures()  # I: what is counted and measured of its works
        self.called = False  # L: the queue's rescuer was asked to help here and has not come yet (C2)
        self.observed = False  # L to change, read freely: its works are reported to observers (`events`)
        self.recorder: Recorder | None = None  # L to change, read freely: records its works for a trace
        self.careful = frozen  # L: frozen or observed: no work takes the fast path
        self.attends = frozen  # L: careful, or works are inactive: the end of a work needs more than a decrement
        self._adopt_limit()  # nobody knows the place yet

    def is_shut(self) -> bool:
        """Does the queue, or its pool, take no work from outside? Without the lock that may change at once."""
        return self.wq._shut or self.pool.closing

    @holding("self.pool.lock")
    def settle_gate(self) -> None:
        """Compute anew whether new works have to pass the gate. Nothing else sets `gate`: see `_pool.observed`."""
        self.gate = self.observed or self.recorder is not None or self.figures.chooses or self.is_shut()

    @holding("self.pool.lock")
    def admit(self, item: Item) -> Phase:
        """Called while the gate is shut, for an item that is let in: tell of it, and return its phase, which is one of
        its own if the item is to be measured.
        """
        events.queued(self, item)
        figures, phase = self.figures, self.phase
        if not figures.chooses or figures.passes(self.pool):
            return phase
        stands_for = figures.choose(self.pool, self.nr_queued(), self.pool.host.monotonic())
        self.settle_gate()
        return Measured(phase, stands_for)

    def check_admitted(self, item: Item) -> None:
        """Raise QueueClosed unless this item is let in."""
        if self.is_shut():  # else it only has to pass the gate because works are observed, recorded or measured
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

    @outside
    def note_failed(self) -> None:
        """One of its works raised."""
        with self.pool.lock:
            self.figures.failed += 1
            if self.learning is not None:
                self.learning.failed += 1
            if self.recorder is not None:
                self.recorder.failures += 1

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
    # `nr_active` and the two lists are changed by these methods alone, except for `insert` and `Phase.retire`, which
    # repeat their code, and for a thread that takes an item off the worklist to run it. The caller wakes the workers
    # that are then needed.

    @holding("self.pool.lock")
    def place(self, item: Item) -> None:
        """List a new item, or add it to the inactive ones if there is no room."""
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
        """`place` for each item, all or none (F10): one step makes them all inactive, then those that have room are
        listed.
        """
        self.inactive.extend(items)
        self.activate()

    @holding("self.pool.lock")
    def activate(self) -> None:
        """List inactive items while there is room."""
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
        """Update `attends`, and have the pool look for works that wait for inactive ones (`lending.watch`)."""
        self.attends = self.careful or bool(self.inactive)
        if self.frozen:
            self.wq.runtime.freezer.keep(self)
        if self.inactive and self.lends and self.pool.lending.timer is None:
            lending.watch(self.pool)
        self.tell_learning()

    @holding("self.pool.lock")
    def attend(self) -> None:
        """Called when a place became free, or a work ended while frozen."""
        self.activate()
        for parker in self.freezers:
            parker.unpark()

    @holding("self.pool.lock")
    def lend_place(self) -> None:
        """An active item gives up its place, for a while or for good; the next inactive item may have it."""
        self.nr_active -= 1
        if self.attends:
            self.activate()

    @holding("self.pool.lock")
    def take_place(self) -> None:
        """An item that lent its place goes on, even if that makes one too many: waiting for a place could take for
        ever.
        """
        self.nr_active += 1

    @holding("self.pool.lock")
    def list_first(self, item: Item) -> None:
        """List an active item that is in no list and comes before all that are: it is the next to run."""
        self.pool.worklist.appendleft(item)

    @holding("self.pool.lock")
    def pass_over(self) -> None:
        """A listed item turned out to be withdrawn."""
        self.nr_withdrawn -= 1
        self.lend_place()

    @holding("self.pool.lock")
    def take_out(self, item: Item, *, listed: bool) -> None:
        """Forget an item that has not begun. The caller owns it from now on, and has removed it from the worklist
        (listed) or from the inactive items.
        """
        if self.observed:
            events.cancelled(item)
        item.phase.leave()
        if listed:
            self.lend_place()
        else:
            self.activate()  # it may have been the last inactive item

    @holding("self.pool.lock")
    def put_back(self, item: Item) -> None:
        """An active item may not start, because the queue was frozen meanwhile. It is the next to be activated."""
        self.nr_active -= 1
        self.inactive.appendleft(item)
        self._attend_to_inactive()
        if self.observed:
            events.deactivated(self, (item,))

    @holding("self.pool.lock")
    def purge(self) -> None:
        """Remove withdrawn items once they are the larger part of the lists."""
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

    def adopt_limit(self) -> None:
        """Adopt the queue's new limit, and list the inactive items that have room now."""
        with self.pool.lock:
            self._adopt_limit()
            self.activate()
            self.pool.kick_or_settle()

    def _adopt_limit(self) -> None:
        """Take over the queue's limit, a number or the learning of one.  Context: lock held, or not known yet."""
        limit = self.wq._limit
        if limit is None:
            learning.begin(self)
        else:
            learning.end(self)
            self.max_active = limit

    @holding("self.pool.lock")
    def mend_limit(self) -> None:
        """Make the limit what the law says, after an interruption. The caller lists the items that have room."""
        if self.learning is not None:
            learning.mend(self)

    @holding("self.pool.lock")
    def tell_learning(self) -> None:
        """Works began to wait for a place, or none does any more."""
        if self.learning is not None:
            self.learning.attend(self)

    @property
    def rest_to_lend(self) -> float:
        return 0.0 if self.learning is None else self.learning.rest

    @holding("self.pool.lock")
    def has_listed(self, item: Item) -> bool:
        """Is the item in one of the lists? Costs a search."""
        return item in self.inactive or item in self.pool.listed()

    def has(self, item: Item) -> bool:
        """Is the item in one of the lists, or executing? Costs a search."""
        with self.pool.lock:
            return any(worker.item is item for worker in self.pool.workers) or self.has_listed(item)

    def begins_before(self, item: Item, other: Item) -> bool:
        """Does `item` come before `other`? Neither has begun, and the queue is ordered, so one is active, and the rest
        are inactive, in order. Costs a search.
        """
        with self.pool.lock:  # else one could be found on its way from the one to the other, and so in neither
            inactive = self.inactive
            if item.begun or item.withdrawn or other.begun:
                return False
            return item not in inactive or (other in inactive and inactive.index(item) < inactive.index(other))

    # ------------------------------------------------------------------------------- flush (F1)

    @holding("self.pool.lock")
    def seal(self) -> Phase | None:
        """Begin a new phase. Returns the phase to wait for until all works queued before have ended, or None if there
        are none.
        """
        if self.phase.count:
            sealed = self.phase
            self.sealed.append(sealed)
            self.new_phase()
            return sealed
        return self.sealed[-1] if self.sealed else None

    @holding("self.pool.lock")
    def new_phase(self) -> None:
        """Begin the phase after the current one, which was sealed."""
        self.phase = type(self.phase)(self, self.phase.number + 1)

    @holding("self.pool.lock")
    def complete_phases(self, empty: Phase | None = None) -> None:
        """Mark the oldest sealed phases as done if they are empty, and merge those that are empty further on.

        empty: the sealed phase that has just become empty; None: any of them may be.
        """
        while self.sealed and not self.sealed[0].count:
            phase = self.sealed[0]
            phase.done = True
            for parker in phase.parkers:
                self.pool.lock.wake(parker)
            del self.sealed[0]  # an interruption before this leaves it to be done again
            self.figures.ended += phase.ended
        if len(self.sealed) > 1:
            for phase in [each for each in self.sealed if not each.count] if empty is None else [empty]:
                self.merge(phase)

    @holding("self.pool.lock")
    def merge(self, phase: Phase) -> None:
        """Merge an empty sealed phase into the one before it, which is all that it still waits for. So there are never
        more sealed phases than works in them, however often a stuck queue is flushed.
        """
        if phase.done or phase not in self.sealed:
            return
        before = self.sealed[self.sealed.index(phase) - 1]
        before.parkers.extend(parker for parker in phase.parkers if parker not in before.parkers)
        phase.into = before
        self.sealed.remove(phase)
        phase.parkers = []
        self.figures.ended += phase.ended

    @holding("self.pool.lock")
    def nr_unfinished(self) -> int:
        """How many works were queued here and have neither ended nor been taken back."""
        return self.phase.count + sum(phase.count for phase in self.sealed)

    @holding("self.pool.lock")
    def nr_ended(self) -> int:
        """How many works have ended here, and were retired."""
        return self.figures.ended + self.phase.ended + sum(phase.ended for phase in self.sealed)

    @holding("self.pool.lock")
    def nr_queued(self) -> int:
        """How many works were queued here and not taken back."""
        return self.nr_ended() + self.nr_unfinished()

    def count_unfinished(self) -> int:
        """As `nr_unfinished`, for a caller without the lock."""
        with self.pool.lock:
            return self.nr_unfinished()

    def count_pending(self, last: int | None = None) -> int:
        """How many works, of the phases up to that number, have not begun."""
        with self.pool.lock:
            phases = [p for p in (*self.sealed, self.phase) if last is None or p.number <= last]
            # An item that asks a source is in none of them, and is no work yet.
            begun = [w.item for w in self.pool.workers if w.item is not None and w.item.phase.counter in phases]
            return sum(phase.count for phase in phases) - len(begun)

    @holding("self.pool.lock")
    def executing(self) -> list[Worker]:
        """The workers that execute a work of the queue here, or announce its end."""
        return [worker for worker in self.pool.workers if worker.item is not None and worker.item.pwq is self]

    # ------------------------------------------------------------------------------- freezer (E8)

    def freeze(self) -> None:
        """Start no work of the queue here until `thaw`. Listed works become inactive again, in order."""
        with self.pool.lock:
            self.frozen = self.careful = True  # all of it again where it is frozen: that may have been interrupted
            lane.merge(self.pool)
            worklist = self.pool.worklist
            listed = [item for item in worklist if item.pwq is self]
            if listed:
                kept = [item for item in worklist if item.pwq is not self]
                self.pool.relist(kept, self, [*listed, *self.inactive])
                self.nr_active -= len(listed)
                if self.observed:
                    events.deactivated(self, listed)
                self.pool.settle()
            self._attend_to_inactive()

    def thaw(self) -> None:
        """Undo `freeze`: list inactive items again, and wake the threads that wait for the freezing."""
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
        """Does a work of the queue run here, or wait within its call?"""
        with self.pool.lock:
            return bool(self.executing())
