"""Queued: one queueing of a `Work` on one pool, from its being listed to its end.

Guarantees: the work never runs twice at the same time (E3). Wherever a queueing is when it is taken back, its place
under `max_active` is given back exactly once. Threads that wait for its end are told. `stage` alone says where a
queueing is. It changes as follows:

    LISTED ── claim ──> BEGUN ── end ──> ENDED         listed: on the pool's worklist, or inactive in its queue's place
      │ its work still runs here
      └── follow ──> BEHIND or LENT ── claim or relist ──> as LISTED

    ON_HOLD ── let_go ──> LISTED                       its work still runs on another pool
      │ its turn comes before that ends
      └── detain ──> DETAINED ── let_go ──> LISTED

    LISTED, ON_HOLD ── withdraw ──> WITHDRAWN          taken back; its place in a list is to be passed over
    BEHIND, LENT, DETAINED ── withdraw ──> GONE        taken back, and in no list

An interruption (F10) may leave a queueing where its stage does not say: on the worklist though it is BEHIND, for
example. `settle_place` decides which of the two counts. The letters are those of `pool`.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any

from cmwq._core.held import holding, not_holding, outside
from cmwq._core.naming import called, name_of
from cmwq._core.records import QueuedRecord
from cmwq._errors import REFUSALS, own
from cmwq._pool import events
from cmwq._pool.item import lay_out
from cmwq._pool.worker import current_worker
from cmwq._workqueue.inserting import insert

if TYPE_CHECKING:
    from contextvars import Context

    from cmwq._core.ports import Parker
    from cmwq._pool.item import Item
    from cmwq._pool.pool import WorkerPool
    from cmwq._pool.worker import Worker
    from cmwq._workqueue.future import Future
    from cmwq._workqueue.phase import Phase
    from cmwq._workqueue.pwq import PoolWorkQueue
    from cmwq._workqueue.queue import WorkQueue
    from cmwq._workqueue.room import Room
    from cmwq._workqueue.work import Work
    from cmwq._workqueue.work_future import WorkFuture


class Stage(Enum):
    """Where one queueing is."""

    LISTED = "in the pool's worklist, or inactive at its queue's place there; or about to be"
    ON_HOLD = "the same, but an execution on another pool must end before it begins (E3)"
    DETAINED = "its turn came while it was on hold: it is active, and in no list"
    BEHIND = "it is the follower of its work's execution on this pool, and keeps its place under max_active"
    LENT = "it is the follower, and has lent its place"
    BEGUN = "it executes"
    ENDED = "it has ended"
    WITHDRAWN = "it was taken back, and is but a place in a list to be passed over"
    GONE = "it was taken back, and is in no list"


# Looked up once: getting a member from an enumeration's class takes longer than the comparison.
LISTED, ON_HOLD, DETAINED, BEHIND, LENT = Stage.LISTED, Stage.ON_HOLD, Stage.DETAINED, Stage.BEHIND, Stage.LENT
BEGUN, ENDED, WITHDRAWN, GONE = Stage.BEGUN, Stage.ENDED, Stage.WITHDRAWN, Stage.GONE


class Queued(QueuedRecord):
    """One queueing of a Work."""

    # Class attributes hold the state of a new queueing, so that creating one stores only what differs. Those of
    # `QueuedRecord` are only declared here.
    work: Work | None  # L: None once taken back
    stage: Stage  # L to change, read freely: where it is
    phase: Phase  # I once queued
    _context: Context | None  # L: dropped when taken back
    answers: Sequence[Any] = ()  # I: it asks no source
    accepted = False  # I: its queue took it earlier, as a delayed work
    room: Room | None  # L: the room in which it has a place, if its queue has a `max_pending`
    parkers: list[Parker] | None  # L: threads that wait for its end
    follower: Queued | None  # L: the next queueing, which collided with this execution (E3)
    futures: list[WorkFuture] | None  # L: those that get the result
    outcome: tuple[Any, BaseException | None] = (None, None)  # S: the running worker's; result and exception
    raised: type[BaseException] | None  # S: the running worker's; what its function raised
    held: list[Queued] | None  # L of the pool where it runs: the queueings on hold for it

    def __init__(self, work: Work, phase: Phase, context: Context | None) -> None:
        self.work = work  # L
        self.phase = phase  # I once queued
        self._context = context  # L
        self.stage = LISTED  # L

    @property
    def pwq(self) -> PoolWorkQueue:
        return self.phase.pwq

    @property
    def queue(self) -> WorkQueue:
        return self.phase.pwq.wq

    @property
    def function(self) -> object:
        work = self.work  # read once: it may be taken back at any moment
        return None if work is None else called((work._fn, *work._args))

    # ------------------------------------------------------------------------------- where it is

    @property
    def withdrawn(self) -> bool:
        return self.stage is WITHDRAWN or self.stage is GONE

    @property
    def begun(self) -> bool:
        return self.stage is BEGUN or self.stage is ENDED

    @property
    def over(self) -> bool:
        """It has ended, or was taken back."""
        return self.stage is ENDED or self.withdrawn

    @property
    def lent(self) -> bool:
        return self.stage is LENT

    @property
    def is_awaited(self) -> bool:
        """Its work is pending with it: it has neither begun nor been taken back."""
        work = self.work
        return work is not None and work._item is self

    @not_holding("self.pwq.pool.lock")
    def is_pending(self) -> bool:
        """Is it in a list, or about to be? Costs a search; for `Work.mend`."""
        pwq, pool = self.phase.pwq, self.phase.pwq.pool
        with pool.lock:
            running = None if self.work is None else self.work._execution
            follows = running is not None and running.follower is self
            return not self.begun and not self.withdrawn and (follows or pwq.has_listed(self) or self in pool.detained)

    # ------------------------------------------------------------------------------- queueing

    @holding("self.work._lock")
    def hand_over(self, pwq: PoolWorkQueue) -> None:
        """List it, behind an execution of its work on another pool if there is one (E3). Then its work is pending.

        Only the pool where the work ran last can still run it: as the work is not pending before this, no other thread
        can have begun it since. The item goes to that pool, whose worker runs it next. An ordered queue's item stays
        here, where it has its place in the order, and is on hold. Raises QueueClosed.
        """
        work = self.work
        assert work is not None
        last = work._last
        if last is not None and last is not pwq.pool and not last.lost:
            pwq = self._go_to(last, pwq)
        work._item = self
        try:
            insert(pwq, self)
        except REFUSALS as exc:  # after any other exception `Work.mend` finds out whether it was listed
            own(exc)
            work._item = None
            raise

    def _go_to(self, last: WorkerPool, pwq: PoolWorkQueue) -> PoolWorkQueue:
        """Where to list it: its work ran last on the pool `last`, not that of `pwq`, and may still run there."""
        work = self.work
        assert work is not None
        with last.lock:
            execution = work._execution
            if execution is None:
                return pwq
            there = None if pwq.wq.ordered else pwq.wq.place_on(last)
            if there is None:
                self.stage = ON_HOLD
                execution.held = [*(execution.held or ()), self]
                return pwq
        self.phase = there.outside
        return there

    # ------------------------------------------------------------------------------- item

    @holding("self.pwq.pool.lock")
    def claim(self, worker: Worker) -> bool:
        if self.stage is not LISTED and not self._comes_back():
            return False
        work, pwq = self.work, self.phase.pwq
        running = work._execution  # type: ignore[union-attr]
        if running is not None:
            self.follow(running)
            return False
        if pwq.frozen:
            pwq.put_back(self)
            return False
        if self.room is not None:
            self.room.give(self)
        self.stage = BEGUN
        work._execution = self  # type: ignore[union-attr]
        work._last = pwq.pool  # type: ignore[union-attr]
        work._item = None  # type: ignore[union-attr]  # E4: cleared before the function runs
        return True

    @holding("self.pwq.pool.lock")
    def _comes_back(self) -> bool:
        """Its turn has come, and it is not simply listed. False: it cannot begin, and has been dealt with."""
        stage = self.stage
        if stage is ON_HOLD:
            self.detain()
        elif stage is WITHDRAWN:
            self.phase.pwq.pass_over()
        elif stage is BEHIND or stage is LENT:
            self._stop_following()
            return True
        return False

    @holding("self.pwq.pool.lock")
    def detain(self) -> None:
        """Its turn came while it is on hold. It keeps its place under max_active, and an ordered queue its order."""
        self.phase.pwq.pool.detained.add(self)  # its new place first: see `settle_place`
        self.stage = DETAINED

    @outside
    def let_go(self) -> None:
        """The execution on another pool for which it was on hold has ended. May be called more than once."""
        pwq, pool = self.phase.pwq, self.phase.pwq.pool
        with pool.lock:
            if self.stage is ON_HOLD:
                self.stage = LISTED
            elif self.stage is DETAINED:
                self.stage = LISTED
                pwq.list_first(self)
                pool.detained.discard(self)
                pool.kick_or_settle()

    @holding("self.pwq.pool.lock")
    def follow(self, running: Queued) -> None:
        """Its turn came while its work runs here: the worker that runs it runs this one next.

        (A follower that was taken back may still be noted there, but not one that is pending, because this one is.)
        """
        pwq = self.phase.pwq
        running.follower = self
        if pwq.lends:
            # It has to wait for the running one, which may itself wait for another work of this queue.
            self.stage = LENT
            pwq.lend_place()
        else:
            self.stage = BEHIND

    @holding("self.pwq.pool.lock")
    def _stop_following(self) -> None:
        """The execution that it followed has ended."""
        lent, self.stage = self.stage is LENT, LISTED
        if lent:
            self.phase.pwq.take_place()

    @holding("self.pwq.pool.lock")
    def relist(self) -> None:
        """The execution that it followed has ended, and that worker will not run it: list it before all others.

        The caller wakes the workers that are needed then.
        """
        if self.over:
            return  # taken back meanwhile, and its place with it
        self._forget_execution()  # it was claimed, and its worker was interrupted before it began
        self.phase.pwq.list_first(self)  # its new place first: see `settle_place`
        self._stop_following()

    @holding("self.pwq.pool.lock")
    def settle_place(self, *, listed: bool, follows: bool) -> bool:
        """An interruption may have come between two steps of a method that moves it: make its stage agree with the
        place where it was found. False: it follows the execution of its work, and must not be on a list as well.

        If it is on a list, its turn has not come, because the interrupted worker has put it back. If it is among the
        detained, its stage tells which method was interrupted: `detain` adds it to them before it changes the stage,
        and `let_go` changes the stage before it lists it. Context: `mend`; no worker executes it.
        """
        pwq, detained = self.phase.pwq, self.phase.pwq.pool.detained
        if self.withdrawn:
            detained.discard(self)
        elif follows:
            if not (self.begun or self.stage is BEHIND):
                self.stage = LENT if pwq.lends else BEHIND
            return not listed
        elif self in detained:
            if listed or self.stage is not DETAINED:
                detained.discard(self)
            if self.stage is DETAINED and listed:
                self.stage = ON_HOLD
            elif self.stage is LISTED and not listed:
                pwq.list_first(self)
        elif listed and (self.stage is BEHIND or self.stage is LENT):
            self.stage = LISTED
        return True

    @holding("self.pwq.pool.lock")
    def be_executing(self) -> None:
        """Note in its work that it runs here, unless another queueing has begun elsewhere since this one ended.

        Context: `mend`.
        """
        work = self.work
        if work is not None and work._execution is None and self.stage is BEGUN:
            work._execution = self

    @outside
    def run(self) -> None:
        work = self.work
        assert work is not None
        try:
            result = self._context.run(work._fn, *work._args, **work._kwargs)  # type: ignore[union-attr]
            if self.futures is not None:
                self.outcome = (result, None)
        except BaseException as exc:
            self._failed(exc)
        self._context = None

    @outside
    def _failed(self, exc: BaseException) -> None:
        """The function raised this. Context: its worker."""
        self.raised, work = type(exc), self.work
        assert work is not None
        self.phase.pwq.note_failed()
        if any(not future.done() for future in self.futures or ()):
            self.outcome = (None, exc)
        else:
            self._context.run(self.queue.work_failed, work, exc)  # type: ignore[union-attr]

    @holding("self.pwq.pool.lock")
    def end(self) -> Queued | None:
        work = self.work
        if work._execution is self:  # type: ignore[union-attr]  # else it was the parent's, before a fork
            work._execution = None  # type: ignore[union-attr]
        if self.held is not None or self.futures is not None or self.follower is not None:
            return self
        self.retire()
        return None

    @outside
    def announce(self, item: Item) -> None:
        """Hand the outcome to its futures, and let go of the queueings on hold for this execution."""
        for future in self.futures or ():
            future.settle(*self.outcome)
        self.futures, self.outcome = None, (None, None)
        for held in self.held or ():
            held.let_go()
        self.held = None

    @holding("self.pwq.pool.lock")
    def retire(self) -> None:
        self.stage = ENDED
        if self.parkers is not None:
            self._tell_end()
        self.phase.retire()

    @outside
    def abort(self, exc: BaseException) -> None:
        if self.room is not None:
            self.room.give(self)
        work = self.work
        if self._context is not None and work is not None:
            if self.futures is not None:
                self.outcome = (None, exc)
            else:
                self.queue.work_failed(work, exc)
        self.announce(self)

    @holding("self.pwq.pool.lock")
    def be_over(self) -> None:
        if not self.withdrawn:
            self.stage = ENDED
        self._forget_execution()
        if self.work is not None and self.work._item is self:  # it never began
            self.work._item = None
        self._tell_end()

    @holding("self.pwq.pool.lock")
    def _forget_execution(self) -> None:
        if self.work is not None and self.work._execution is self:
            self.work._execution = None

    @holding("self.pwq.pool.lock")
    def _tell_end(self) -> None:
        if self.parkers is not None:
            for parker in self.parkers:
                parker.unpark()
            self.parkers = None

    def describe(self) -> str:
        work = self.work  # it may be taken back at any moment
        return f"work {'(taken back)' if work is None else name_of(work._fn)} of queue {self.queue.name!r}"

    # ------------------------------------------------------------------------------- taking back

    @holding("self.pwq.pool.lock")
    def withdraw(self) -> None:
        """Take it back.  Context: it is pending; the caller calls `drop` afterwards."""
        pwq, stage = self.phase.pwq, self.stage
        if pwq.observed:
            events.cancelled(self)
        if stage is LISTED or stage is ON_HOLD:
            self.stage = WITHDRAWN
            self.work = None
            self.phase.withdraw(self)
        else:
            self.stage = GONE
            self.work = None
            pwq.pool.detained.discard(self)
            if stage is not LENT:
                pwq.lend_place()  # for good
            self.phase.leave()
        self._tell_end()

    def drop(self) -> None:
        """It was withdrawn: let go of what it refers to. No lock may be held, as finalisers and callbacks are user
        code.
        """
        if self.room is not None:
            self.room.give(self)
        self._context = None
        for future in self.futures or ():
            future.cancel()

    def take_futures(self) -> list[WorkFuture]:
        """Return its futures, which are another's from now on."""
        futures, self.futures = self.futures, None
        return futures or []

    def add_future(self, future: WorkFuture) -> None:
        """Give the future the result of this execution.  Context: lock held, or not queued yet."""
        future.of(self)
        self.futures = [*(self.futures or ()), future]


lay_out(Queued, "work", "phase", "_context", "stage")


def current_work() -> Work | Future[Any] | None:
    """What this thread executes: a `Work`, the `Future` of a submitted call, or None outside a worker. Thread-safe."""
    worker = current_worker()
    item = worker.item if worker is not None else None
    return item.work if isinstance(item, Queued) else item  # type: ignore[return-value]  # of a served call: its item
