"""Work: a call made once and queued many times. DelayedWork: the same, with a timer.

Guarantees: queueing a pending work again is one with the earlier queueing (E4); a work never runs twice at the same
time, wherever it is queued (E3); what was done before `queue()` is visible to the execution it leads to (E6); after
`cancel_sync` the work is neither pending nor running (F5); a disabled work can't be queued (F6).

# Who owns the pending bit

`_bit` is a lock that nobody ever waits for: a test-and-set. While it is taken, `queue()` returns False. It has one
owner:

- *a queueing on its way*: it took the bit, and not yet `_lock`;
- *a pending work*: an item on some pool (`_item`), or a timer (`_delay`). Given up just before the function runs (E4);
- *a block* (`_blocked_bit`): somebody disabled the work, or is cancelling it.

Everything but taking the bit happens under the work's own lock, W. So whoever holds W and finds the bit taken, but no
item, no timer and no block, knows that a queueing is on its way and will look, under W, at what it is told there: that
the work is blocked (then the bit becomes the block's), or that it has become a delayed one (`_instead`).

A failed try-lock alone promises no order of memory (E6). It is ordered all the same: with a GIL by handing that over;
without one because every store into a Python object takes that object's lock, and letting go of it is a full barrier
between the store and the try.

The letters are those of `pool`; W: work._lock. Order: R, W < Q < L.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextvars import copy_context
from threading import Lock
from typing import TYPE_CHECKING, Any

from cmwq._core.item import name_of
from cmwq._core.wait import needs_of, run_steps
from cmwq._core.worker import current_worker
from cmwq._errors import CmwqError

if TYPE_CHECKING:
    from contextvars import Context

    from cmwq._core.future import WorkFuture
    from cmwq._core.item import Item
    from cmwq._core.pool import WorkerPool
    from cmwq._core.ports import Parker, Timer
    from cmwq._core.pwq import Phase, PoolWorkQueue
    from cmwq._core.queue import WorkQueue
    from cmwq._core.room import Room
    from cmwq._core.runtime import Runtime
    from cmwq._core.wait import Steps, Target
    from cmwq._core.worker import Worker

_log = logging.getLogger("cmwq")

MAX_DISABLED = 65_535
"""F6: how often a work may be disabled without being enabled (the kernel's limit)."""


class Work:
    """A call made once and queued many times: `wq.queue(work)`. Also a decorator: `@cmwq.Work def refresh(): ...`.

    From queueing until just before the call it is pending, and queueing it again is coalesced (E4). It never runs twice
    at the same time, wherever it is queued (E3). It may be requeued, cancelled or dropped by its own function (E5).
    `fn(*args, **kwargs)` runs in a copy of the context of whoever queued it; its exception is logged, or handed to the
    queue's `on_error`.

    Thread-safe. In the child of a fork it is idle, and as disabled as its owner made it (G2). Waiting methods take a
    timeout in seconds and raise CmwqTimeout after it, and FlushDeadlock where a work would wait for itself (F7).
    """

    __slots__ = (
        "__weakref__", "_args", "_bit", "_blocked_bit", "_born", "_cancels", "_delay", "_disables", "_fn", "_instead",
        "_item", "_kwargs", "_last", "_lock",
    )  # fmt: skip

    generation = 0
    """F: bumped in the child of a fork: works born before may hold locks of threads that are not there."""
    _renewal = Lock()  # F: made anew in the child of a fork

    def __init__(self, fn: Callable[..., object], /, *args: Any, **kwargs: Any) -> None:
        if not callable(fn):
            raise TypeError(f"Work takes a callable, not {fn!r}")
        self._fn = fn  # I
        self._args = args  # I
        self._kwargs = kwargs  # I
        self._disables = 0  # W
        self._begin()

    def _begin(self) -> None:
        self._lock = Lock()
        self._bit = Lock()
        self._blocked_bit = False  # W: the bit is the blocks'
        self._cancels = 0  # W: cancel_sync()s in progress
        self._item: Queued | None = None  # set under W before it is listed, to None under L: where it is pending
        self._delay: Delay | None = None  # W: its timer
        self._instead: Delay | None = None  # W: what a queueing on its way is to become
        self._last: WorkerPool | None = None  # L: where it ran last: only there can it still be running (E3)
        self._born = Work.generation

    @classmethod
    def process_forked(cls) -> None:
        """In the child of a fork, while it has one thread: see `generation`."""
        Work.generation += 1
        Work._renewal = Lock()

    def _here(self) -> Lock:
        """W; of a work that was the parent's before a fork, after making it new."""
        if self._born != Work.generation:
            self._begin_anew()
        return self._lock

    def _begin_anew(self) -> None:
        with Work._renewal:
            if self._born != Work.generation:
                self._begin()
                self._blocked_bit = bool(self._disables) and self._bit.acquire(False)

    # ------------------------------------------------------------------------------- to be seen

    @property
    def pending(self) -> bool:
        """Queued or waiting for its delay, and not begun since."""
        return self._born == Work.generation and (self._item is not None or self._delay is not None)

    @property
    def running(self) -> bool:
        """Being executed right now."""
        return self._execution() is not None

    @property
    def is_blocked(self) -> bool:
        """It can't be queued: it is disabled, or somebody is cancelling it and waits."""
        return self._disables > 0 or self._cancels > 0

    def add_future(self, future: WorkFuture) -> bool:
        """Let it have the result of the execution to come. False: it is not pending."""
        with self._here():
            if self._delay is not None:
                self._delay.futures.append(future)
                return True
            item = self._item
            if item is None:
                return False
            with item.pwq.pool.lock:
                if self._item is not item:
                    return False
                item.add_future(future)
                return True

    @property
    def disabled(self) -> bool:
        """It can't be queued: `disable` was called more often than `enable`."""
        return self._disables > 0

    def _execution(self) -> Queued | None:
        pool = self._last
        if pool is None or pool.lost:
            return None
        with pool.lock:
            return pool.busy_works.get(self)

    def __repr__(self) -> str:
        state = " pending" * self.pending + " running" * self.running + " disabled" * self.disabled
        return f"<cmwq.{type(self).__name__} {name_of(self._fn)}{state}>"

    # ------------------------------------------------------------------------------- taking back

    def cancel(self) -> bool:
        """Take it back if it is pending (F4). True: it was. Does not wait: an execution that has begun goes on."""
        with self._here():
            if not self._take_back():
                return False
            self._bit.release()
            return True

    def cancel_sync(self, timeout: float | None = None) -> bool:
        """Take it back, and wait until it doesn't run either (F5). True: it was pending.

        Meanwhile nobody can queue it, itself included: `queue` returns False. After a CmwqTimeout it is taken back all
        the same, and can be queued again.
        """
        runtime = self._runtime()
        if runtime is None:
            return self.cancel()
        return run_steps(self.cancel_steps(), runtime, timeout, lambda: f"cancel_sync: {self!r} did not end")

    def disable(self) -> bool:
        """From now on it can't be queued, until `enable` was called as often (F6). True: it was pending, and is taken
        back.

        Does not wait for an execution. Raises OverflowError beyond 65,535.
        """
        with self._here():
            if self._disables >= MAX_DISABLED:
                raise OverflowError(f"{self!r} is disabled {MAX_DISABLED} times already")
            self._disables += 1
            return self._block()

    def disable_sync(self, timeout: float | None = None) -> bool:
        """`disable`, and wait for an execution to end. After a CmwqTimeout it stays disabled."""
        was = self.disable()
        runtime = self._runtime()
        if runtime is not None:
            run_steps(self.end_steps(), runtime, timeout, lambda: f"disable_sync: {self!r} did not end")
        return was

    def enable(self) -> bool:
        """Undo one `disable`. True: it can be queued again. Raises ValueError if it is not disabled."""
        with self._here():
            if not self._disables:
                raise ValueError(f"{self!r} is not disabled")
            self._disables -= 1
            self._unblock()
            return not self._disables

    def flush(self, timeout: float | None = None) -> bool:
        """Wait for its last queueing before this call to end (F2).

        False: it was idle, there was nothing to wait for.
        """
        runtime = self._runtime()
        if runtime is None:
            return False
        return run_steps(self.flush_steps(), runtime, timeout, lambda: f"flush: {self!r} did not end")

    # ------------------------------------------------------------------------------- the same, as steps

    def cancel_steps(self) -> Steps[bool]:
        """`cancel_sync`, for whoever drives it."""
        with self._here():
            self._cancels += 1
            was = self._block()
        try:
            yield from self.end_steps()
        finally:
            with self._lock:
                self._cancels -= 1
                self._unblock()
        return was

    def end_steps(self) -> Steps[None]:
        """Until it doesn't run. For a blocked work: else it may run again at once."""
        while (execution := self._execution()) is not None:
            yield ItemEnd(execution, "waits for the end of")

    def flush_steps(self) -> Steps[bool]:
        """`flush`, for whoever drives it."""
        with self._here():
            self._hasten()
            item = self._item
        if item is None:
            item = self._execution()
        if item is None:
            return False
        yield ItemEnd(item, "flushes")
        if item.withdrawn and (execution := self._execution()) is not None:
            yield ItemEnd(execution, "flushes")
        return True

    # ------------------------------------------------------------------------------- inside

    def _runtime(self) -> Runtime | None:
        """The runtime in which it is pending or ran last. None: never queued."""
        item, delay, pool = self._item, self._delay, self._last
        if self._born != Work.generation:
            return None
        if item is not None:
            return item.queue.runtime
        if delay is not None:
            return delay.wq.runtime
        return pool.runtime if pool is not None else None

    def _hasten(self) -> None:
        """A delay ends now.  Context: W held."""

    def _take_back(self) -> bool:
        """True: it was pending, is so no more, and the bit is the caller's.  Context: W held."""
        delay = self._delay
        if delay is not None:
            self._delay = None
            delay.drop()
            delay.cancel_futures()
            return True
        item = self._item
        if item is None:
            return False
        with item.pwq.pool.lock:
            if self._item is not item:
                return False  # it began meanwhile
            self._item = None
            item.withdraw()
        item.drop()
        return True

    def _block(self) -> bool:
        """One more reason not to queue it. Returns whether it was pending.  Context: W held."""
        was = self._take_back()
        if was:
            self._blocked_bit = True
        elif not self._blocked_bit:
            # If that fails a queueing is on its way, and hands the bit over when it gets here.
            self._blocked_bit = self._bit.acquire(False)
        return was

    def _unblock(self) -> None:
        """One reason less.  Context: W held."""
        if self._blocked_bit and not self._disables and not self._cancels:
            self._blocked_bit = False
            self._bit.release()

    def _is_blocked(self) -> bool:
        """Asked by a queueing that has the bit. True: it gives the bit away.  Context: W held."""
        if self._disables or self._cancels:
            self._blocked_bit = True
            return True
        return False


class DelayedWork(Work):
    """A Work with a timer: `wq.queue_delayed(dwork, delay)`, `wq.mod_delayed(dwork, delay)`.

    It fires no earlier than its delay, in seconds on the monotonic clock; from queueing until it begins it is pending.
    `flush` does not wait for the delay: it ends it now (as the kernel's flush_delayed_work). Otherwise as `Work`.
    """

    __slots__ = ()

    def _hasten(self) -> None:
        delay = self._delay
        if delay is not None:
            self._delay = None
            delay.drop()
            delay.insert(self)


class Delay:
    """One wait of a DelayedWork for its time."""

    __slots__ = ("_context", "_pwq", "_seconds", "_timer", "futures", "work", "wq")

    def __init__(self, wq: WorkQueue, pwq: PoolWorkQueue, work: Work, seconds: float) -> None:
        self.wq = wq  # I
        self.work = work  # I
        self._seconds = seconds  # I: 0 or less: none, it goes there at once
        self._pwq = pwq  # I: where it will go
        self._context = copy_context()  # I
        self._timer: Timer | None = None  # W
        self.futures: list[WorkFuture] = []  # W

    def begin(self, future: WorkFuture | None = None) -> None:
        """The bit is ours now. Raises ThreadLimit or QueueClosed, and is not begun then.  Context: W held."""
        if future is not None:
            self.futures.append(future)
        if self._seconds <= 0:
            self.insert(self.work)
            return
        self._timer = self.wq.runtime.host.call_later(self._seconds, self.fire)
        self.work._delay = self
        self.wq._delays.add(self)

    def drop(self) -> None:
        """It won't fire.  Context: W held, and work._delay changed already."""
        self.wq._delays.discard(self)
        if self._timer is not None:
            self._timer.cancel()

    def fire(self) -> None:
        """The time has come.  Context: the timer's thread, no lock held."""
        work = self.work
        with work._lock:
            if work._delay is not self:
                return  # taken back, or moved, in this very moment
            work._delay = None
            self.wq._delays.discard(self)
            try:
                self.insert(work)
            except CmwqError as exc:
                work._bit.release()
                _log.warning("%r is not run: %s", work, exc)
                self.cancel_futures()

    def insert(self, work: Work) -> None:
        """The bit becomes the item's.  Context: W held."""
        item = Queued(work, self._pwq.phase, self._context)
        item.accepted = True
        for future in self.futures:
            item.add_future(future)
        self.wq._insert(item, self._pwq)

    def cancel_futures(self) -> None:
        for future in self.futures:
            future.cancel()


class Queued:
    """One queueing of a Work."""

    __slots__ = (
        "_context", "_phase", "accepted", "follower", "futures", "held", "hold", "outcome", "over", "parked",
        "parkers", "room", "work",
    )  # fmt: skip

    def __init__(self, work: Work, phase: Phase, context: Context | None = None) -> None:
        self.work: Work | None = work  # L: None once taken back
        self._phase = phase  # I once queued
        self._context: Context | None = context or copy_context()  # dropped when taken back
        self.accepted = False  # I: its queue took it earlier, as a delayed work
        self.room: Room | None = None  # L: where it has a place, if its queue has a `max_pending`
        self.over = False  # L: it ended, or was taken back
        self.parkers: list[Parker] | None = None  # L: who waits for that
        self.follower: Queued | None = None  # L: the next queueing, which collided with this execution (E3)
        self.hold = False  # L: an execution on another pool must end first (E3)
        self.parked = False  # L: its turn came while on hold; it is in no list
        self.futures: list[WorkFuture] | None = None  # L: who wants the result
        self.outcome: tuple[Any, BaseException | None] = (None, None)  # the running worker's
        self.held: list[Queued] | None = None  # L of the pool where this one runs: those on hold for it

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

    def claim(self, worker: Worker) -> bool:
        work, pwq = self.work, self._phase.pwq
        if work is None:
            pwq.pass_over()
            return False
        if self.hold:
            self.parked = True  # it keeps its place under max_active, so an ordered queue stays in order
            return False
        busy = worker.pool.busy_works
        running = busy.get(work)
        if running is not None:
            running.follower = self  # at most one can be waiting: the pending bit is still set
            return False
        if pwq.frozen:
            pwq.put_back(self)
            return False
        if self.room is not None:
            self.room.give()
            self.room = None
        busy[work] = self
        work._last = pwq.pool
        work._item = None
        work._bit.release()  # E4: cleared before the function runs
        return True

    def run(self) -> None:
        work = self.work
        assert work is not None
        try:
            result = self._context.run(work._fn, *work._args, **work._kwargs)  # type: ignore[union-attr]
            if self.futures is not None:
                self.outcome = (result, None)
        except BaseException as exc:
            if self.futures is not None:
                self.outcome = (None, exc)
            else:
                self.queue.work_failed(work, exc)
        self._context = None

    def end(self) -> Queued | None:
        assert self.work is not None
        del self._phase.pwq.pool.busy_works[self.work]
        self._be_over()
        if self.held is not None or self.futures is not None:
            return self
        self._phase.retire()
        return None

    def announce(self, item: Item) -> None:
        """Whoever waits hears of the result;

        those that were on hold for this execution may go.  Context: no lock held.
        """
        for future in self.futures or ():
            future.settle(*self.outcome)
        for held in self.held or ():
            pool = held._phase.pwq.pool
            with pool.lock:
                held.hold = False
                woken = None
                if held.parked:
                    held.parked = False
                    pool.worklist.appendleft(held)  # claim() sees to it if it was taken back, or frozen, meanwhile
                    woken = pool.kick_or_look_out()
            if woken is not None:
                woken.parker.unpark()
        self.held = None

    def retire(self) -> None:
        self._phase.retire()

    def describe(self) -> str:
        return (
            f"work {name_of(self.work._fn) if self.work is not None else '(taken back)'} of queue {self.queue.name!r}"
        )

    # ------------------------------------------------------------------------------- taking back

    def withdraw(self) -> None:
        """Context: lock held; `drop` to be called after."""
        self.work = None
        self._phase.withdraw()
        if self.room is not None:
            self.room.give()
            self.room = None
        self._be_over()

    def drop(self) -> None:
        """It was withdrawn: let go of what it refers to. Outside the lock: finalisers and callbacks are user code."""
        self._context = None
        for future in self.futures or ():
            future.cancel()

    def add_future(self, future: WorkFuture) -> None:
        """Context: lock held, or not queued yet."""
        future.of(self)
        self.futures = [*(self.futures or ()), future]

    def _be_over(self) -> None:
        self.over = True
        if self.parkers is not None:
            for parker in self.parkers:
                parker.unpark()
            self.parkers = None


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

    def needs(self, waiting: dict[Item, Target]) -> Iterator[Item]:
        return needs_of(self.item, waiting)

    def describe(self) -> str:
        return f"{self.verb} {self.item.describe()}"


def current_work() -> Any:
    """What this thread is executing: a `Work`, the `Future` of a submitted call, or None outside a worker."""
    worker = current_worker()
    item = worker.item if worker is not None else None
    return item.work if isinstance(item, Queued) else item
