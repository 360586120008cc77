"""Work: a call made once and queued many times. DelayedWork: the same, with a timer.

Guarantees: queueing a pending work again is one with the earlier queueing (E4); a work never runs twice at the same
time, wherever it is queued (E3); what was done before `queue()` is visible to the execution it leads to (E6); after
`cancel_sync` the work is neither pending nor running (F5); a disabled work can't be queued (F6).

# Who owns the pending bit

`_bit` is a lock that nobody ever waits for: a test-and-set. While it is taken, `queue()` returns False. It has one
owner:

- *a queueing on its way*: it took the bit, and not yet `_lock`; or *an execution that begins*, and is about to let go;
- *a pending work*: an item on some pool (`_item`), or a timer (`_delay`). Given up just before the function runs (E4);
- *a block* (`_blocked_bit`): somebody disabled the work, or is cancelling it.

Everything but taking the bit happens under the work's own lock, W. So whoever holds W and finds the bit taken, but no
item, no timer and no block, has met the first case. It lets go of W and tries again (`_seize`), as the kernel does: who
is on its way needs nothing but W. What takes time, a pool's first thread or room in a full queue, is waited for before.

A failed try-lock alone promises no order of memory (E6). It is ordered all the same: with a GIL by handing that over;
without one because every store into a Python object takes that object's lock, and letting go of it is a full barrier
between the store and the try.

The letters are those of `pool`; W: work._lock. Order: R, W < Q < L.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextvars import copy_context
from functools import partial
from threading import Lock
from time import sleep
from typing import TYPE_CHECKING, Any

from cmwq._core.item import name_of
from cmwq._core.wait import needs_of, run_steps
from cmwq._core.worker import current_worker
from cmwq._errors import CmwqError

if TYPE_CHECKING:
    from contextvars import Context

    from cmwq._core import ports
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
        "__weakref__", "_args", "_bit", "_blocked_bit", "_born", "_cancels", "_delay", "_disables", "_fn", "_item",
        "_kwargs", "_last", "_lock",
    )  # fmt: skip

    generation = 0
    """F: bumped in the child of a fork: works born before may hold locks of threads that are not there."""
    _renewal = Lock()  # F: made anew in the child of a fork
    new_lock: Callable[[], ports.Lock] = staticmethod(Lock)
    """Where W comes from: a simulation has locks of its own."""
    pause: Callable[[], object] = staticmethod(partial(sleep, 0))
    """Let others go first, for an instant."""

    def __init__(self, fn: Callable[..., object], /, *args: Any, **kwargs: Any) -> None:
        if not callable(fn):
            raise TypeError(f"Work takes a callable, not {fn!r}")
        self._fn = fn  # I
        self._args = args  # I
        self._kwargs = kwargs  # I
        self._disables = 0  # W
        self._begin()

    def _begin(self) -> None:
        self._lock = Work.new_lock()
        self._bit = Lock()
        self._blocked_bit = False  # W: the bit is the blocks'
        self._cancels = 0  # W: cancel_sync()s in progress
        self._item: Queued | None = None  # set under W before it is listed, to None under L: where it is pending
        self._delay: Delay | None = None  # W: its timer
        self._last: WorkerPool | None = None  # L: where it ran last: only there can it still be running (E3)
        if self._disables:
            self._blocked_bit = self._bit.acquire(False)
        self._born = Work.generation  # last: until then nobody else touches it

    @classmethod
    def process_forked(cls) -> None:
        """In the child of a fork, while it has one thread: see `generation`."""
        Work.generation += 1
        Work._renewal = Lock()

    def begin_anew(self) -> None:
        """It was the parent's before a fork: here it is idle, and as disabled as it was (G2)."""
        with Work._renewal:
            if self._born != Work.generation:
                self._begin()

    def _here(self) -> ports.Lock:
        """W."""
        if self._born != Work.generation:
            self.begin_anew()
        return self._lock

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
        while True:
            with self._here():
                taken = self._take_back()
                if taken is not None:
                    self._bit.release()
                    break
                # An idle work's bit is left alone: a `queue` that came meanwhile would take it for pending.
                if self._blocked_bit or not self._bit.locked():
                    return False
            Work.pause()
        taken.drop()
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
        """From now on it can't be queued, until `enable` was called as often (F6). True: it was pending, and is no
        more.

        Does not wait for an execution. Raises OverflowError beyond 65,535.
        """
        if self._disables >= MAX_DISABLED:
            raise OverflowError(f"{self!r} is disabled {MAX_DISABLED} times already")
        return self._block("_disables")

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
        was = self._block("_cancels")
        try:
            yield from self.end_steps()
        finally:
            with self._here():
                self._cancels = max(0, self._cancels - 1)  # a fork's child forgets them
                self._unblock()
        return was

    def end_steps(self) -> Steps[None]:
        """Until it doesn't run. For a blocked work: else it may run again at once."""
        while (execution := self._execution()) is not None:
            yield ItemEnd(execution, "waits for the end of")

    def flush_steps(self) -> Steps[bool]:
        """`flush`, for whoever drives it."""
        self._hasten()
        item = self._item or self._execution()
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
        """A delay ends now.  Context: no lock held."""

    def _take_back(self) -> Queued | Delay | None:
        """What was pending: it is so no more, and the bit is the caller's.

        Context: W held. The caller drops what it got, without W: that calls callbacks and finalisers, which are user
        code.
        """
        delay = self._delay
        if delay is not None:
            self._delay = None
            delay.stop()
            return delay
        item = self._item
        if item is None:
            return None
        pool = item.pwq.pool
        with pool.lock:
            if self._item is not item:
                return None  # it began meanwhile
            self._item = None
            item.withdraw()
            woken = pool.kick_or_look_out()  # its place may have gone to another
        if woken is not None:
            woken.parker.unpark()
        return item

    def _seize(self) -> tuple[bool, Queued | Delay | None]:
        """Take the bit from whoever has it. False: a block has it. What was pending is the caller's to drop.

        Context: no lock held. On return W is held, for the caller to release.
        """
        while True:
            lock = self._here()
            lock.acquire()
            taken = self._take_back()
            if taken is not None or self._bit.acquire(False):
                return True, taken
            if self._blocked_bit:
                return False, None
            lock.release()
            Work.pause()

    def _block(self, counter: str) -> bool:
        """One more reason not to queue it. Returns whether it was pending.  Context: no lock held."""
        _, taken = self._seize()
        setattr(self, counter, getattr(self, counter) + 1)
        self._blocked_bit = True
        self._lock.release()
        if taken is not None:
            taken.drop()
        return taken is not None

    def _unblock(self) -> None:
        """One reason less.  Context: W held."""
        if self._blocked_bit and not self._disables and not self._cancels:
            self._blocked_bit = False
            self._bit.release()


class DelayedWork(Work):
    """A Work with a timer: `wq.queue_delayed(dwork, delay)`, `wq.mod_delayed(dwork, delay)`.

    It fires no earlier than its delay, in seconds on the monotonic clock; from queueing until it begins it is pending.
    `flush` does not wait for the delay: it ends it now (as the kernel's flush_delayed_work). Otherwise as `Work`.
    """

    __slots__ = ()

    def _hasten(self) -> None:
        with self._here():
            delay = self._delay
            if delay is None:
                return
            self._delay = None
            delay.stop()
            try:
                delay.insert()
                return
            except Exception as exc:
                self._bit.release()
                refusal = exc
        delay.drop()
        raise refusal


class Delay:
    """One wait of a DelayedWork for its time."""

    __slots__ = ("_context", "_pwq", "_seconds", "_timer", "futures", "work", "wq")

    def __init__(self, wq: WorkQueue, pwq: PoolWorkQueue, work: Work, seconds: float) -> None:
        self.wq = wq  # I
        self.work = work  # I
        self._seconds = seconds  # I
        self._pwq = pwq  # I: where it will go
        self._context: Context | None = wq.new_context()
        self._timer: Timer | None = None  # W
        self.futures: list[WorkFuture] = []  # W: who wants the result

    def start(self) -> None:
        """The bit is ours now. Raises ThreadLimit, and is not started then.  Context: W held."""
        self._timer = self.wq.runtime.host.call_later(self._seconds, self.fire)
        self.work._delay = self
        self.wq._delays.add(self)

    def stop(self) -> None:
        """It won't fire.  Context: W held, and work._delay changed already."""
        self.wq._delays.discard(self)
        if self._timer is not None:
            self._timer.cancel()

    def drop(self) -> None:
        """It was taken back: let go of what it refers to.  Context: no lock held."""
        self._context = None
        for future in self.futures:
            future.cancel()

    def take_futures(self) -> list[WorkFuture]:
        """They are to be another's."""
        futures, self.futures = self.futures, []
        return futures

    def fire(self) -> None:
        """The time has come.  Context: the timer's thread, no lock held."""
        work = self.work
        with work._lock:
            if work._delay is not self:
                return  # taken back, or moved, in this very moment
            work._delay = None
            self.wq._delays.discard(self)
            try:
                self.insert()
                return
            except CmwqError as exc:
                work._bit.release()
                refusal = exc
        _log.warning("%r is not run: %s", work, refusal)
        self.drop()

    def insert(self, *, accepted: bool = True) -> None:
        """The bit becomes the item's. Raises QueueClosed.  Context: W held."""
        item = Queued(self.work, self._pwq.phase, self._context)
        item.accepted = accepted
        for future in self.futures:
            item.add_future(future)
        self.wq.hand_over(item, self._pwq)


class Queued:
    """One queueing of a Work."""

    __slots__ = (
        "__weakref__", "_context", "_phase", "accepted", "behind", "follower", "futures", "held", "hold", "lent",
        "outcome", "over", "parked", "parkers", "room", "work",
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
        self.behind = False  # L: it hangs behind its running self, or did, and is in no list
        self.lent = False  # L: it hangs behind its running self, and has no place under max_active meanwhile
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
            if not self.behind:  # else `withdraw` saw to its place
                pwq.pass_over()
            return False
        if self.hold:
            self.parked = True  # it keeps its place under max_active, so an ordered queue stays in order
            pwq.pool.nr_parked += 1
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
        self.behind = False
        if pwq.frozen:
            if self.lent:
                self.lent = False
                pwq.nr_active += 1
            pwq.put_back(self)
            return False
        if self.lent:
            self.lent = False
            pwq.nr_active += 1  # even if its place is taken: as whoever waited
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
            if any(not future.done() for future in self.futures or ()):
                self.outcome = (None, exc)
            else:
                self.queue.work_failed(work, exc)
        self._context = None

    def end(self) -> Queued | None:
        # In the child of a fork within the function there is no such entry any more.
        self._phase.pwq.pool.busy_works.pop(self.work, None)  # type: ignore[arg-type]
        if self.held is not None or self.futures is not None:
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
            woken = None
            if self.parked:
                self.parked = False
                pool.nr_parked -= 1
                pool.worklist.appendleft(self)
                woken = pool.kick_or_look_out()
        if woken is not None:
            woken.parker.unpark()

    def retire(self) -> None:
        self._be_over()
        self._phase.retire()

    def describe(self) -> str:
        work = self.work  # it may be taken back at any moment
        return f"work {'(taken back)' if work is None else name_of(work._fn)} of queue {self.queue.name!r}"

    # ------------------------------------------------------------------------------- taking back

    def withdraw(self) -> None:
        """Context: lock held; `drop` to be called after."""
        self.work = None
        self._phase.withdraw()
        if self.parked:  # it is in no list, and holds a place
            self.parked = False
            self._phase.pwq.pool.nr_parked -= 1
            self._phase.pwq.pass_over()
        elif self.lent:
            self._phase.pwq.nr_withdrawn -= 1  # nor is this, and holds none
        elif self.behind:
            self._phase.pwq.pass_over()
        if self.room is not None:
            self.room.give()
            self.room = None
        self._be_over()

    def drop(self) -> None:
        """It was withdrawn: let go of what it refers to. Outside the lock: finalisers and callbacks are user code."""
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

    def detach(self, parker: Parker) -> None:
        with self.item.pwq.pool.lock:
            if self.item.parkers is not None and parker in self.item.parkers:
                self.item.parkers.remove(parker)

    def needs(self, waiting: dict[Item, Target]) -> Iterator[Item]:
        return needs_of(self.item, waiting)

    def describe(self) -> str:
        return f"{self.verb} {self.item.describe()}"


def current_work() -> Any:
    """What this thread is executing: a `Work`, the `Future` of a submitted call, or None outside a worker."""
    worker = current_worker()
    item = worker.item if worker is not None else None
    return item.work if isinstance(item, Queued) else item
