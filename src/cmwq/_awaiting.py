"""How a task of an event loop waits, for `aio`: for a target, as a thread does in `wait`, or for the end of a call.

Guarantees: a task that waits ends its wait where a thread would: when the target is done, and with Abandoned when its
runtime is abandoned. A task of a loop that runs within a work is noted as a wait of that work, so the work is told if
it would wait for itself (F7), and lends its place (E11). What lives longer than a loop does not keep the loop, nor its
tasks. The state of a loop's waits is the loop's thread's; others only `unpark` and `ring`.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import ref

from cmwq._core import checks
from cmwq._errors import Abandoned, CmwqTimeout
from cmwq._pool.worker import current_worker
from cmwq._workqueue.future import Future

if TYPE_CHECKING:
    from types import TracebackType

    from cmwq._pool.item import Item
    from cmwq._workqueue.wait import Steps, Target

T = TypeVar("T")


class _Woken:
    """A parker without a thread."""

    def park(self, timeout: float = -1, spins: bool = False, /) -> bool:
        raise RuntimeError("a task waits, it does not park")


class _LoopParker(_Woken):
    """A parker on which a task of an event loop waits, instead of a thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._told = asyncio.Event()

    def unpark(self, *_: object) -> None:
        with suppress(RuntimeError):  # the loop is closed: no task waits there any more
            self._loop.call_soon_threadsafe(self._told.set)

    async def wait(self) -> None:
        await self._told.wait()
        self._told.clear()


async def drive(steps: Steps[T], timeout: float | None = None, what: str = "it did not end") -> T:
    """Wait for each target of a waiting call in turn. Raises CmwqTimeout, saying `what`, after `timeout` seconds, and
    Abandoned if the runtime is abandoned meanwhile.
    """
    timeout = checks.timeout(timeout)
    parker = _LoopParker()
    try:
        async with asyncio.timeout(timeout):
            target = next(steps)
            while True:
                await _wait_for(target, parker)
                if target.queue.runtime.abandoned and not target.done():
                    raise Abandoned(f"{what}; its runtime has ended, and nobody waits for it any more")
                target = next(steps)
    except StopIteration as stop:
        result: T = stop.value
        return result
    except TimeoutError as exc:
        raise CmwqTimeout(f"{what} after {timeout} s") from exc
    finally:
        steps.close()


async def _wait_for(target: Target, parker: _LoopParker) -> None:
    """Return when the target is done or its runtime abandoned."""
    runtime = target.queue.runtime
    knock = _Knock(parker)
    if not target.attach(parker):
        return
    try:
        # First among the waiters, then look: who abandons the runtime says so first, and then wakes the waiters.
        runtime.waiters.add(knock)
        with noted(target):
            while not (target.done() or runtime.abandoned):
                await parker.wait()
    finally:
        runtime.waiters.discard(knock)
        target.detach(parker)


class _Knock(_Woken):
    """What a runtime unparks in place of a task's parker. Runtimes live on, and must not keep the tasks of a loop that
    closed meanwhile.
    """

    def __init__(self, parker: _LoopParker) -> None:
        self._parker = ref(parker)

    def unpark(self, *_: object) -> None:
        parker = self._parker()
        if parker is not None:
            parker.unpark()


def noted(target: Target) -> AbstractContextManager[None]:
    """While this is entered, a task of this thread's loop waits for the target. Entering it raises FlushDeadlock."""
    worker = current_worker()
    item = worker.item if worker is not None else None
    if item is None or target.done() or not hasattr(target, "needs"):  # a future of others can't be followed
        return _NOT_IN_A_WORK
    return _Noted(item, target)


class _Noted:
    """The loop runs within a work, which could wait for itself (F7), and which lends its place while it waits (E11)."""

    def __init__(self, item: Item, target: Target) -> None:
        self._item = item
        self._target = target

    def __enter__(self) -> None:
        self._item.queue.runtime.waits.begin_await(self._item, self._target, self)

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._item.queue.runtime.waits.end_await(self._item, self)


_NOT_IN_A_WORK = nullcontext()
"""Stands for the note where no work waits."""


# ----------------------------------------------------------------------------------- calls that end


class _Bell:
    """Tells a loop of calls that have ended, of all at a time. Thread-safe."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = ref(loop)
        self._ended: deque[asyncio.Future[None]] = deque()
        self._rung = False
        """Whether the loop is going to look. It becomes false before the loop looks, so nothing is overlooked."""

    def ring(self, waiter: asyncio.Future[None]) -> None:
        """Wake the task that awaits this."""
        self._ended.append(waiter)
        loop = self.loop()
        if self._rung or loop is None:
            return
        self._rung = True
        try:
            loop.call_soon_threadsafe(self._answer)
        except BaseException as exc:
            self._rung = False
            if not isinstance(exc, RuntimeError):
                raise
            self._ended.clear()  # the loop is closed: no task waits there any more, and what waits keeps the loop

    def _answer(self) -> None:
        self._rung = False
        with suppress(IndexError):
            while True:
                waiter = self._ended.popleft()
                if not waiter.done():  # it was cancelled
                    waiter.set_result(None)


class _Here(threading.local):
    bell: _Bell | None = None


_here = _Here()


def end_of(future: Future[Any]) -> asyncio.Future[None]:
    """Return what a task of this thread's loop awaits until the call has ended.

    Raises ForeignProcess or Abandoned if the call will never be done.
    """
    loop = asyncio.get_running_loop()
    if isinstance(future, Future) and not future.done():
        pwq = future.pwq
        pwq.wq.runtime.check_alive(pwq.pool, future)
    bell = _here.bell
    if bell is None or bell.loop() is not loop:
        bell = _here.bell = _Bell(loop)
    waiter = loop.create_future()
    ring = bell.ring
    future.add_done_callback(lambda _: ring(waiter))
    return waiter
