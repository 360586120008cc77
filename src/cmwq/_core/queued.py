"""Queued: one queueing of a `Work` on one pool, from its being listed to its end.

Guarantees: the work never runs twice at the same time (E3); wherever a queueing is when it is taken back, its place
under `max_active` is given back once; whoever waits for its end hears of it. It is in exactly one of these places:

- *listed* in the pool's worklist, or *inactive* at its queue's place there;
- *behind* its running self, on the same pool (`follower`): it is what that worker runs next, and lends its place
  meanwhile;
- *parked*: its turn came while its work still ran on another pool, and it must keep its place in an ordered queue;
- *running*, or over.

The letters are those of `pool`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

from cmwq._core import events
from cmwq._core.item import lay_out, name_of
from cmwq._core.wait import needs_of
from cmwq._core.worker import current_worker

if TYPE_CHECKING:
    from contextvars import Context

    from cmwq._core.future import WorkFuture
    from cmwq._core.item import Item
    from cmwq._core.pool import WorkerPool
    from cmwq._core.ports import Parker
    from cmwq._core.pwq import Phase, PoolWorkQueue
    from cmwq._core.queue import WorkQueue
    from cmwq._core.room import Room
    from cmwq._core.wait import Target
    from cmwq._core.work import Work
    from cmwq._core.worker import Worker


class Queued:
    """One queueing of a Work."""

    # Class attributes are the state of one that nothing has happened to: creating one stores only what differs.
    work: Work | None  # L: None once taken back
    begun = False  # L: it was claimed
    _phase: Phase  # I once queued
    _context: Context | None  # dropped when taken back
    accepted = False  # I: its queue took it earlier, as a delayed work
    room: Room | None = None  # L: where it has a place, if its queue has a `max_pending`
    over = False  # L: it ended, or was taken back
    parkers: list[Parker] | None = None  # L: who waits for that
    follower: Queued | None = None  # L: the next queueing, which collided with this execution (E3)
    behind = False  # L: it hangs behind its running self, or did, and is in no list
    lent = False  # L: it hangs behind its running self, and has no place under max_active meanwhile
    hold = False  # L: an execution on another pool must end first (E3)
    parked = False  # L: its turn came while on hold; it is in no list
    futures: list[WorkFuture] | None = None  # L: who wants the result
    outcome: tuple[Any, BaseException | None] = (None, None)  # the running worker's
    raised: type[BaseException] | None = None  # the running worker's: what its function raised
    held: list[Queued] | None = None  # L of the pool where this one runs: those on hold for it

    def __init__(self, work: Work, phase: Phase, context: Context | None) -> None:
        self.work = work
        self._phase = phase
        self._context = context

    @property
    def pwq(self) -> PoolWorkQueue:
        return self._phase.pwq

    @property
    def queue(self) -> WorkQueue:
        return self._phase.pwq.wq

    @property
    def function(self) -> object:
        return self.work._fn if self.work is not None else None

    @property
    def exempt(self) -> bool:
        return self._phase.pwq.exempt

    # ------------------------------------------------------------------------------- item

    @property
    def withdrawn(self) -> bool:
        return self.work is None

    def is_pending(self) -> bool:
        """It is in some list, or will be. Costs a search: for who mends.  Context: lock not held."""
        pwq, pool = self._phase.pwq, self._phase.pwq.pool
        with pool.lock:
            running = pool.busy_works.get(self.work) if self.work is not None else None
            follows = running is not None and running.follower is self
            return not (self.begun or self.withdrawn) and (
                self in pool.worklist or self in pwq.inactive or self in pool.parked or follows
            )

    def claim(self, worker: Worker) -> bool:
        work, pwq = self.work, self._phase.pwq
        if work is None:
            if not self.behind:  # else `withdraw` saw to its place
                pwq.pass_over()
            return False
        if self.hold:
            self.parked = True  # it keeps its place under max_active, so an ordered queue stays in order
            pwq.pool.parked.add(self)
            return False
        busy = worker.pool.busy_works
        running = busy.get(work)
        if running is not None:
            # One that was taken back may still hang there; one that is pending can't: it had the bit.
            running.follower = self
            self.behind = True
            if pwq.lends:
                # It can't go on before its running self, which may wait for another work of this queue.
                self.lent = True
                pwq.nr_active -= 1
                pwq.activate()
            return False
        if self.behind:
            self.behind = False
        if self.lent:
            self.lent = False
            pwq.nr_active += 1  # even if its place is taken: as whoever waited
        if pwq.frozen:
            pwq.put_back(self)
            return False
        if self.room is not None:
            self.room.give(self)
        self.begun = True
        busy[work] = self
        work._last = pwq.pool
        work._item = None  # E4: cleared before the function runs
        return True

    def run(self) -> None:
        work = self.work
        assert work is not None
        try:
            result = self._context.run(work._fn, *work._args, **work._kwargs)  # type: ignore[union-attr]
            if self.futures is not None:
                self.outcome = (result, None)
        except BaseException as exc:
            self.raised = type(exc)
            if any(not future.done() for future in self.futures or ()):
                self.outcome = (None, exc)
            else:
                self.queue.work_failed(work, exc)
        self._context = None

    def end(self) -> Queued | None:
        # In the child of a fork within the function there is no such entry any more.
        self._phase.pwq.pool.busy_works.pop(self.work, None)  # type: ignore[arg-type]
        if self.held is not None or self.futures is not None or self.follower is not None:
            return self
        self.retire()
        return None

    def announce(self, item: Item) -> None:
        """Whoever waits hears of the result; those on hold for this execution may go.  Context: no lock held."""
        for future in self.futures or ():
            future.settle(*self.outcome)
        self.futures, self.outcome = None, (None, None)
        for held in self.held or ():
            held.let_go()
        self.held = None

    def let_go(self) -> None:
        """The execution elsewhere that it was on hold for has ended.  Context: no lock held."""
        pool = self._phase.pwq.pool
        with pool.lock:
            self.hold = False
            if self.parked:
                pool.worklist.appendleft(self)
                pool.parked.discard(self)
                self.parked = False
                pool.kick_or_look_out()

    def retire(self) -> None:
        self.be_over()
        self._phase.retire()

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

    def describe(self) -> str:
        work = self.work  # it may be taken back at any moment
        return f"work {'(taken back)' if work is None else name_of(work._fn)} of queue {self.queue.name!r}"

    # ------------------------------------------------------------------------------- taking back

    def withdraw(self) -> None:
        """Context: lock held; `drop` to be called after."""
        if self._phase.pwq.observed:
            events.cancelled(self)
        self.work = None
        self._phase.withdraw()
        if self.parked:  # it is in no list, and holds a place
            self.parked = False
            self._phase.pwq.pool.parked.discard(self)
            self._phase.pwq.pass_over()
            self._phase.pwq.pool.tell_drainers()
        elif self.lent:
            self._phase.pwq.nr_withdrawn -= 1  # nor is this, and holds none
        elif self.behind:
            self._phase.pwq.pass_over()
        self.be_over()

    def drop(self) -> None:
        """It was withdrawn: let go of what it refers to. Outside the lock: finalisers and callbacks are user code."""
        if self.room is not None:
            self.room.give(self)
        self._context = None
        for future in self.futures or ():
            future.cancel()

    def take_futures(self) -> list[WorkFuture]:
        """They are to be another's."""
        futures, self.futures = self.futures, None
        return futures or []

    def add_future(self, future: WorkFuture) -> None:
        """Context: lock held, or not queued yet."""
        future.of(self)
        self.futures = [*(self.futures or ()), future]

    def relist(self) -> None:
        """It hung behind its running self, which has ended; and that worker won't run it: whoever comes does, before
        all others.  Context: lock held. The caller wakes whom that needs.
        """
        if self.work is None:
            return  # taken back meanwhile, and its place with it
        pwq = self._phase.pwq
        self.behind = False
        if self.lent:
            self.lent = False
            pwq.nr_active += 1
        pwq.pool.worklist.appendleft(self)

    def be_over(self) -> None:
        self.over = True
        if self.parkers is not None:
            for parker in self.parkers:
                parker.unpark()
            self.parkers = None


lay_out(Queued, "work", "_phase", "_context", "over")


class ItemEnd:
    """One queueing of a work has ended, or was taken back."""

    __slots__ = ("item", "verb")

    def __init__(self, item: Queued, verb: str) -> None:
        self.item = item
        self.verb = verb

    def done(self) -> bool:
        return self.item.over

    def attach(self, parker: Parker) -> bool:
        with self.item.pwq.pool.lock:
            if self.item.over:
                return False
            if self.item.parkers is None:
                self.item.parkers = []
            self.item.parkers.append(parker)
            return True

    def detach(self, parker: Parker) -> None:
        with self.item.pwq.pool.lock:
            if self.item.parkers is not None and parker in self.item.parkers:
                self.item.parkers.remove(parker)

    def needs(self, waiting: dict[Item, Target]) -> Iterator[Item]:
        return needs_of(self.item, waiting)

    @property
    def queue(self) -> WorkQueue:
        return self.item.queue

    def lacks_workers(self) -> Collection[WorkerPool]:
        pool = self.item.pwq.pool
        with pool.lock:
            runs = any(worker.item is self.item for worker in pool.workers)
            return () if self.item.over or runs else (pool,)

    def describe_wait(self) -> str:
        return f"{self.verb} {self.item.describe()}"


def current_work() -> Any:
    """What this thread is executing: a `Work`, the `Future` of a submitted call, or None outside a worker."""
    worker = current_worker()
    item = worker.item if worker is not None else None
    return item.work if isinstance(item, Queued) else item
