"""Work: a call that is made once and queued many times. DelayedWork: the same, with a timer.

Guarantees: queueing a work that is pending is coalesced with the earlier queueing (E4). A work never runs twice at the
same time, wherever it is queued (E3). What was done before `queue()` is visible to the execution that it leads to (E6).
After `cancel_sync` the work is neither pending nor running (F5). A disabled work cannot be queued (F6).

# What pending means

A work is pending while it has a timer (`_delay`) or an item on some pool (`_item`); there is no separate pending bit as
in the kernel. Either is set under the work's own lock, W, by a thread that found neither of them and no block
(`_disables`, `_cancels`); or by one that moves the work from the one to the other, and notes that first (`_moving`). So
only the thread that holds W ever sees a work half queued. (A periodic work keeps its timer while it has an item:
`periodic`.)

`_item` is cleared by the worker that claims it, under L, just before the function runs (E4: `Queued.claim`, and
`queued_claim` in C). Otherwise it is cleared where the work is taken back (`_take_back`), where its queue refuses it
(`Queued.hand_over`), where it ends without having begun (`Queued.be_over`), and where an interruption is mended
(`mend`). `_delay` is only cleared under W: where its time has come, its queue refuses it or an interruption is mended
(`delay`: `come`, `start`, `settle`), where it is taken back (`_take_back_delay`), and where a periodic work stops
(`periodic`). In the child of a fork `_begin` resets both.

`queue` first looks at both without W: a work found pending was so at that moment, and its execution had not begun. What
the caller did before is visible to that execution (E6). With a GIL, handing over the GIL ensures that; without one,
every store into a Python object takes that object's lock, and releasing it is a full barrier between the store and the
look.

That fast path and `pending` are the only ones that may look without W, besides looks at one item or delay that is
known. Whatever acts on what it finds, and above all on finding nothing, holds W while it looks and while it acts. Else
it could look while the work moves, and find it in neither place; or what it found could be replaced before it acts.
`tests/test_shape.py` lists the looks without W.

If something is raised while W is held, then before any other thread has W `mend` completes what was begun (F10): an
item that is in no list is dropped; a move that was decided (`_moving`) is made; a blocked work is taken back; and what
was taken back (`_taken`) is let go of, so that threads that wait for its result are told.

The letters are those of `pool`; W: work._lock. The order of locks is in `ranks`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from cmwq._core import checks
from cmwq._core.held import holding, outside
from cmwq._core.here import host_here
from cmwq._core.naming import name_of
from cmwq._core.ranks import Rank
from cmwq._core.records import WorkRecord
from cmwq._core.surely import ask_for_depth, at_any_depth, surely
from cmwq._errors import REFUSALS, Refused, own, refused_by_us
from cmwq._pool.mend import mending
from cmwq._pool.worker import current_worker
from cmwq._workqueue.item_end import ItemEnd
from cmwq._workqueue.queued import Queued
from cmwq._workqueue.wait import run_steps

if TYPE_CHECKING:
    from cmwq._core import ports
    from cmwq._pool.pool import WorkerPool
    from cmwq._workqueue.delay import Delay
    from cmwq._workqueue.wait import Steps
    from cmwq._workqueue.work_future import WorkFuture

MAX_DISABLED = 65_535
"""F6: how often a work may be disabled without being enabled (the kernel's limit)."""


class Work(WorkRecord):
    """A call that is made once and queued many times: `wq.queue(work)`. Also a decorator: `@cmwq.Work def refresh():
    ...`.

    From queueing until just before the call the work is pending, and queueing it again does nothing (E4). It never runs
    twice at the same time, wherever it is queued (E3). Its own function may queue, cancel or drop it (E5). `fn(*args,
    **kwargs)` runs in a copy of the context of the thread that queued it; its exception is logged, or handed to the
    queue's `on_error`. A coroutine function is refused (TypeError): nobody would await it. So is a method within the
    body of its class: each object needs a work of its own, `cmwq.Work(self.refresh)`.

    Thread-safe. In the child of a fork it is idle, and disabled as often as it was in the parent (G2). Methods that
    wait take a timeout in seconds and then raise CmwqTimeout; they raise FlushDeadlock where a work would wait for
    itself (F7).
    """

    __slots__ = ("__weakref__", "_moving", "_taken")

    generation = 0
    """F: counted up in the child of a fork. Older works may hold locks of threads that do not exist there."""
    _renewal: ports.Lock  # F: held while a work of the parent is begun anew in the child

    def __init__(self, fn: Callable[..., object], /, *args: Any, **kwargs: Any) -> None:
        self._fn = checks.plain_function(f"the function of a {type(self).__name__}", fn)  # I
        self._args = args  # I
        self._kwargs = kwargs  # I
        self._disables = 0  # W
        self._begin()

    def __set_name__(self, owner: type, name: str) -> None:
        """Refuse to be the decorator of a method, which would be called without its object. Raises TypeError."""
        checks.no_method_of(owner, name, self._fn, given=len(self._args) + len(self._kwargs))

    def _begin(self) -> None:
        self._cancels: tuple[object, ...] = ()  # W: calls of cancel_sync in progress
        self._item: Queued | None = None  # W to set; L to clear for who claims or ends it, else W: its pending queueing
        self._delay: Delay | None = None  # W: its timer
        self._moving: Delay | None = None  # W: replaces what was pending, once that is taken back
        self._taken: list[Queued | Delay] = []  # W to add: taken back; to be dropped with no lock held
        self._last: WorkerPool | None = None  # L: where it ran last; it can still run only there (E3)
        self._execution: Queued | None = None  # L of that pool: the queueing that runs there
        self._lock = host_here().lock(Rank.WORK, mending(self))  # I
        self._born = Work.generation  # I: set last, when the rest is ready for other threads

    @classmethod
    def process_forked(cls) -> None:
        """In the child of a fork, while it has one thread: make all existing works old (see `generation`)."""
        Work.generation += 1
        Work._renewal = host_here().lock(Rank.WORK)

    def begin_anew(self) -> None:
        """The work was the parent's before a fork: make it idle here, and leave it as disabled as it was (G2)."""
        with Work._renewal:
            if self._born != Work.generation:
                self._begin()

    def _here(self) -> ports.Lock:
        """The lock W, of a work that belongs to this process."""
        if self._born != Work.generation:
            self.begin_anew()
        return self._lock

    # ------------------------------------------------------------------------------- to be seen

    @property
    def function(self) -> Callable[..., object]:
        """The function that it calls. Calling it here calls it at once, on this thread, and queues nothing."""
        return self._fn

    @property
    def pending(self) -> bool:
        """It was queued, or waits for its delay, and has not begun since."""
        if self._born != Work.generation:
            return False
        self.settle()
        return self._item is not None or self._delay is not None or self._is_on_its_way()

    def settle(self) -> None:
        """Complete what an interrupted call has left half done, if even its mending was interrupted. To be called
        before a look at the work without W.
        """
        if self._lock.stained:
            with suppress(Refused), self._here():
                pass

    def _is_on_its_way(self) -> bool:
        """Called when the work was found neither delayed nor queued: is it moving from one to the other?

        `_moving` is set before the work leaves the one, until it has reached the other. So if it is not moving by now,
        it has either arrived, or is not pending.
        """
        moving = self._moving
        if moving is not None:
            return not moving.has_begun()
        return self._item is not None or self._delay is not None

    @property
    def running(self) -> bool:
        """It is being executed right now."""
        return self.execution() is not None

    @property
    def is_blocked(self) -> bool:
        """It cannot be queued: it is disabled, or a `cancel_sync` is in progress."""
        return self._disables > 0 or self._cancels != ()

    def add_future(self, future: WorkFuture) -> bool:
        """Give the future the result of the execution to come. False: the work is not pending."""
        with self._here():
            item = self._item
            if item is not None:
                with item.pwq.pool.lock:
                    if self._item is item:
                        item.add_future(future)
                        return True
            if self._delay is None:
                return False
            self._delay.futures.append(future)
            return True

    @property
    def disabled(self) -> bool:
        """It cannot be queued: `disable` was called more often than `enable`."""
        return self._disables > 0

    def execution(self) -> Queued | None:
        """The queueing that runs now, or None."""
        pool = self._last
        if pool is None or pool.lost:
            return None
        try:
            with pool.lock:
                return self._execution
        except Refused as exc:  # the lock is not needed to read it
            own(exc)
            return self._execution

    def __repr__(self) -> str:
        state = " pending" * self.pending + " running" * self.running + " disabled" * self.disabled
        return f"<cmwq.{type(self).__name__} {name_of(self._fn)}{state}>"

    # ------------------------------------------------------------------------------- taking back

    def cancel(self) -> bool:
        """Take the work back if it is pending (F4). True: it was. Does not wait: an execution that has begun goes on.

        If a finaliser or a signal handler calls this in the middle of cmwq's own code on this thread, it is deferred
        until that code is done, and True means that the work was pending when asked. The same holds for `disable` and
        `enable`.
        """
        return self._take_away(0, self.cancel)

    def _take_away(self, disables: int, again: Callable[[], object]) -> bool:
        """Take the work back, and disable it so often more. again: what is deferred in cmwq's own code."""
        ask_for_depth()
        try:
            with self._here():
                self._disables += disables
                was = self._take_back() is not None
            self._drop_taken()
        except BaseException as exc:
            if not refused_by_us(exc):
                at_any_depth(self._drop_taken)
                raise
            host_here().defer(again)
            return self.pending
        return was

    def cancel_sync(self, timeout: float | None = None) -> bool:
        """Take the work back, and wait until it does not run either (F5). True: it was pending.

        Meanwhile nobody can queue it, its own function included: `queue` returns False. After a CmwqTimeout the work
        has been taken back all the same, and can be queued again. timeout: seconds.
        """
        return run_steps(self.cancel_steps(), None, timeout, lambda: f"cancel_sync: {self!r} did not end")

    def disable(self) -> bool:
        """Take the work back, and refuse to queue it until `enable` was called as often (F6). True: it was pending.

        Does not wait for an execution that has begun. Raises OverflowError beyond 65,535.
        """
        if self._disables >= MAX_DISABLED:
            raise OverflowError(f"{self!r} is disabled {MAX_DISABLED} times already")
        return self._take_away(1, self.disable)

    def disable_sync(self, timeout: float | None = None) -> bool:
        """`disable`, then wait until it does not run. After a CmwqTimeout it stays disabled. timeout: seconds."""
        timeout = checks.timeout(timeout)
        was = self.disable()
        run_steps(self.end_steps(), None, timeout, lambda: f"disable_sync: {self!r} did not end")
        return was

    def enable(self) -> bool:
        """Undo one `disable`. True: the work can be queued again. Raises ValueError if it is not disabled."""
        try:
            with self._here():
                disables = self._disables
                if disables:
                    self._disables = disables - 1
        except Refused as exc:
            own(exc)
            host_here().defer(self.enable)
            return self._disables <= 1
        if not disables:
            raise ValueError(f"{self!r} is not disabled")
        return disables == 1

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until its last queueing before this call has ended (F2). timeout: seconds.

        False: it was idle, and there was nothing to wait for.
        """
        return run_steps(self.flush_steps(), None, timeout, lambda: f"flush: {self!r} did not end")

    # ------------------------------------------------------------------------------- the same, as steps

    def cancel_steps(self) -> Steps[bool]:
        """`cancel_sync` as steps."""
        block = object()

        def unblock() -> None:
            with self._here():
                self._cancels = tuple(other for other in self._cancels if other is not block)

        with surely(unblock), surely(unblock):
            try:
                with self._here():
                    self._cancels = (*self._cancels, block)
                    was = self._take_back() is not None
                self._drop_taken()
            except BaseException:
                at_any_depth(self._drop_taken)
                raise
            yield from self.end_steps()
        return was

    def end_steps(self) -> Steps[None]:
        """Wait until it does not run. For a blocked work, as any other may run again at once."""
        while (execution := self.execution()) is not None:
            yield ItemEnd(execution, "waits for the end of")

    def flush_steps(self) -> Steps[bool]:
        """`flush` as steps."""
        worker = current_worker()
        own = None if worker is None else worker.item
        if isinstance(own, Queued) and own.work is self:
            yield ItemEnd(own, "flushes")  # refused: it would wait for itself. A delay of it goes on
        ask_for_depth()
        try:
            item, execution = self._last_queueing()
        except BaseException:
            at_any_depth(self._drop_taken)
            raise
        item = item or execution
        if item is None:
            return False
        yield ItemEnd(item, "flushes")
        if item.withdrawn and execution is not None:
            yield ItemEnd(execution, "flushes")
        return True

    # ------------------------------------------------------------------------------- inside

    @outside
    def _last_queueing(self) -> tuple[Queued | None, Queued | None]:
        """The queueing with which it is pending, and the one that runs. A delay is ended now, unless it repeats.

        All in one section: nobody can queue or move the work in between, so it can't be found in neither place while it
        moves from the one to the other. Raises QueueClosed; the caller calls `_drop_taken` then.
        """
        with self._here():
            delay = self._delay
        if delay is not None:
            delay.choose_place()  # may start a pool. A delay that replaces this one chooses its own place after this
        with self._here():
            delay = self._delay
            item = self._item if delay is None or delay.repeats else delay.end_now()
            return item, self.execution()  # read after the item, which may begin in between

    @property
    def is_idle(self) -> bool:
        """It is neither pending nor blocked, so it can be queued."""
        return self._item is None and self._delay is None and not self.is_blocked

    @holding("self._lock")
    def _take_back_delay(self) -> Delay | None:
        """Take back its delay and return it; None: there was none. The rest is as in `_take_back`."""
        delay = self._delay
        if delay is not None:
            self._taken.append(delay)
            self._delay = None
            delay.stop()
        return delay

    @holding("self._lock")
    def _take_back(self) -> Queued | Delay | None:
        """Take the work back. Returns what it was pending with, or None.

        The caller then calls `_drop_taken` without W, because that runs callbacks and finalisers, which are user code.
        """
        delay = self._take_back_delay()
        if delay is not None:
            return delay
        item = self._item
        if item is None:
            return None
        pool = item.pwq.pool
        with pool.lock:
            if self._item is not item:
                return None  # it began meanwhile
            self._taken.append(item)
            item.withdraw()
            self._item = None
            pool.kick_or_settle()  # another work may have got its place
        return item

    @holding("self._lock")
    def move_to(self, new: Delay) -> bool:
        """Let the work be pending with that delay, in place of what it was pending with. False: it was not pending.

        Raises ThreadLimit and QueueClosed: then the work is not pending any more. Context: it is not blocked. The
        caller calls `_drop_taken` without W, even if something is raised.
        """
        self._moving = new  # from here on `mend` completes the move if this is interrupted
        taken = self._take_back()
        if taken is not None:
            new.futures = taken.take_futures()
        try:
            new.go()
        except REFUSALS as exc:
            own(exc)
            self._moving = None
            self._taken.append(new)
            raise
        self._moving = None
        return taken is not None

    @outside
    def _drop_taken(self) -> None:
        """Let go of what was taken back. If this is interrupted, it may be called again."""
        taken = self._taken
        for what in tuple(taken):
            if what is not self._item and what is not self._delay:
                what.drop()
            with suppress(ValueError):  # another call was quicker, maybe of a signal handler
                taken.remove(what)

    @holding("self._lock")
    def mend(self) -> None:
        """Called after something was raised while W was held: complete what had been begun."""
        item, delay, moving = self._item, self._delay, self._moving
        if item is not None and not item.is_pending():
            self._item = item = None
        if delay is not None:
            try:
                delay.settle(item)
            except REFUSALS as exc:
                own(exc)
        if moving is not None:
            if item is None and delay is None:  # it was taken back already
                try:
                    moving.go()
                except REFUSALS as exc:
                    own(exc)
                    self._taken.append(moving)
            self._moving = None
        if self.is_blocked:
            self._take_back()
        if self._taken:
            host_here().defer(self._drop_taken)


class DelayedWork(Work):
    """A Work with a timer: `wq.queue_delayed(dwork, delay)`, `wq.mod_delayed(dwork, delay)`.

    It begins no earlier than its delay, in seconds on the monotonic clock. It is pending from queueing until it begins.
    `flush` does not wait for the delay but ends it now (as the kernel's flush_delayed_work). Otherwise it is as `Work`.
    """

    __slots__ = ()
