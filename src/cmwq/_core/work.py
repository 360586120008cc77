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

To find the bit taken promises no order of memory by itself (E6). There is one all the same: with a GIL by handing that
over; without one because every store into a Python object takes that object's lock, and letting go of it is a full
barrier between the store and the look at the bit.

The letters are those of `pool`; W: work._lock. Order: W < R < Q < L.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from threading import Lock
from time import sleep
from typing import TYPE_CHECKING, Any

from cmwq._core.item import name_of
from cmwq._core.queued import ItemEnd, Queued
from cmwq._core.wait import run_steps
from cmwq._errors import CmwqError

if TYPE_CHECKING:
    from contextvars import Context

    from cmwq._core import ports
    from cmwq._core.future import WorkFuture
    from cmwq._core.pool import WorkerPool
    from cmwq._core.ports import Timer
    from cmwq._core.pwq import PoolWorkQueue
    from cmwq._core.queue import WorkQueue
    from cmwq._core.runtime import Runtime
    from cmwq._core.wait import Steps

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
        item = self._hasten() or self._item
        execution = self._execution()  # after that: it may begin in between
        item = item or execution
        if item is None:
            return False
        yield ItemEnd(item, "flushes")
        if item.withdrawn and execution is not None:
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

    def _hasten(self) -> Queued | None:
        """A delay ends now. Returns the queueing that came of it: it may have ended already.  Context: no lock held."""
        return None

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

    def _hasten(self) -> Queued | None:
        with self._here():
            delay = self._delay
            if delay is None:
                return None
            self._delay = None
            delay.stop()
            try:
                return delay.insert()
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
        self._pwq = pwq  # I: where it will go, if that CPU is still there
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

    def insert(self, *, accepted: bool = True) -> Queued:
        """The bit becomes the item's. Raises QueueClosed.  Context: W held."""
        pwq = self._pwq
        if pwq.pool.disassociated:
            with suppress(CmwqError):  # D3; the old place will do where no other can be had: the queue drains, say
                pwq = self.wq.place_here()
        item = Queued(self.work, pwq.phase, self._context)
        item.accepted = accepted
        for future in self.futures:
            item.add_future(future)
        self.wq.hand_over(item, pwq)
        return item
