"""Audience: all that waits for one future, and how it is told.

Guarantees: everything in it is told of the end once, after `done()` is true. A call of `announce` that was interrupted
can be repeated and goes on where it was. What one callback raises does not keep the others from being called. A future
has an audience only if somebody waits. The letters are those of `pool`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures._base import CANCELLED_AND_NOTIFIED, FINISHED
from contextlib import suppress
from itertools import repeat
from operator import call, methodcaller
from threading import Condition
from typing import TYPE_CHECKING, Any

from cmwq._core import log
from cmwq._core.held import outside
from cmwq._core.surely import at_any_depth, frames
from cmwq._pool.worker import current_worker

if TYPE_CHECKING:
    from cmwq._core.ports import Parker


ORPHANED = 2.0
"""Seconds: the lock of an event that nobody releases for so long is held by nobody."""


class Audience:
    """All that waits for one future: parked threads, callbacks, and waiters of `concurrent.futures`."""

    __slots__ = ("callbacks", "calls_back", "canceller", "condition", "parkers", "untold", "waiters")

    def __init__(self) -> None:
        self.parkers: list[Parker] = []  # L: threads in result() or exception()
        self.canceller: object = None  # L: the call of `cancel` that decided and has to announce it
        self.callbacks: list[Callable[[Any], object]] = []  # L: from add_done_callback
        self.calls_back = False  # L: add_done_callback was called
        self.condition: Condition | None = None  # L: made for concurrent.futures.wait and as_completed
        self.waiters: list[Any] | None = None  # A: the `_waiters` of concurrent.futures; made for the first
        self.untold: list[Any] | None = None  # A: those of the waiters still to be told; None: not done yet

    @outside
    def announce(self, future: Any) -> None:
        """The call ended: make the future done, and tell the whole audience once.

        `concurrent.futures.wait` reads the state several times while it holds the condition, and relies on its not
        changing. So if there is a condition, the state changes under it. Order of locks: the condition is taken before
        L.

        If this is interrupted, it may be called again, and goes on where it was.
        """
        lock = future.phase.pwq.pool.lock
        final = CANCELLED_AND_NOTIFIED if future.cancelled() else FINISHED
        with lock:
            condition = self.condition
            if condition is None:
                future._state = final
        if condition is not None:
            holding = _Holding(condition)
            with holding, holding:
                holding.take()
                with lock:
                    future._state = final
                if self.untold is None:
                    self.untold = list(self.waiters or ())  # a copy: the waiters remove themselves from the list later
                told = "add_cancelled" if final is CANCELLED_AND_NOTIFIED else "add_result"
                if future._exception is not None:
                    told = "add_exception"
                self._tell_waiters(methodcaller(told, future))
        for parker in self.parkers:  # the future is done, so this list does not change any more
            parker.unpark()
        if not self.callbacks:
            return
        raised: BaseException | None = None
        calling = map(call, _taken(self.callbacks), repeat(future))
        while self.callbacks:
            nr, callback = len(self.callbacks), self.callbacks[0]
            try:
                next(calling)
            except BaseException as exc:
                _put_back(exc, callback, self.callbacks)
                if len(self.callbacks) == nr:
                    raise  # the callback was not called; the caller of `announce` calls it again
                if is_to_be_raised(exc, future):
                    raised = exc  # after the others have been called
        if raised is not None:
            try:
                raise raised
            finally:
                raised = None  # break the cycle through the traceback

    def _tell_waiters(self, tell: Callable[[Any], object]) -> None:
        """Call `tell` with each waiter.  Context: the condition held, by a `with` statement of the caller: a `with`
        does not protect the very first moment of a `try` in its own body (Python 3.13).
        """
        untold = self.untold
        assert untold is not None
        telling = map(tell, _taken(untold))
        while untold:
            waiter = untold[0]
            try:
                # `threading.Condition` swallows a RecursionError, and then a thread is never woken.
                at_any_depth(next, telling)
            except BaseException as exc:
                _put_back(exc, waiter, untold)
                # The call was interrupted halfway: wake the thread, lest it wait for ever.
                at_any_depth(_set, waiter.event)
                raise


def _set(event: Any) -> None:
    """Set an event that was interrupted in its own `set`. That may have left the event's own lock held, which is held
    for moments only: who can't have it for so long is the one who has to release it.
    """
    condition = event._cond
    condition.acquire(timeout=ORPHANED)
    with suppress(RuntimeError):  # it was released just now
        condition.release()
    event.set()


def _taken(things: list[Any]) -> Iterator[Any]:
    """Take the first of the things off the list at each step, so that `map` can call it, or call something with it.

    There is no bytecode between the two: wherever a step of that map is interrupted, either the thing is still on the
    list or the call was made. If there was no memory for the call, `_put_back` corrects that.
    """
    return map(things.pop, repeat(0))


def _put_back(exc: BaseException, thing: Any, things: list[Any]) -> None:
    """A step ended with this exception: if it could not make its call, put the thing back at the front of the list.

    Context: the function that took the step.
    """
    unmade = (
        isinstance(exc, (MemoryError, RecursionError))
        and exc.__traceback__ is not None
        and exc.__traceback__.tb_next is None
    )
    if unmade and not (things and things[0] is thing):
        things.insert(0, thing)


CONDITION = 0.25
"""Seconds that `announce` waits at most for the future's condition."""


class _Holding:
    """Holds the condition, if it can be taken within `CONDITION`. It is written twice in one `with`: see `surely`.

    `concurrent.futures.wait` holds the condition for microseconds. But if a Ctrl-C hits its loop that takes the
    conditions of many futures, those it has taken are never released, and `announce` must not hang for that.
    """

    __slots__ = ("_condition", "_theirs")

    def __init__(self, condition: Condition) -> None:
        self._condition = condition  # S
        self._theirs = condition._is_owned()  # type: ignore[attr-defined]  # S: by a frame that this one interrupts

    def __enter__(self) -> None:
        frames(4)  # what `__exit__` needs

    def take(self) -> None:
        if not self._condition._is_owned():  # type: ignore[attr-defined]
            self._condition.acquire(timeout=CONDITION)

    def __exit__(self, *exc_info: object) -> None:
        at_any_depth(self._let_go)

    def _let_go(self) -> None:
        if not self._theirs and self._condition._is_owned():  # type: ignore[attr-defined]
            self._condition.notify_all()
            self._condition.release()


def is_to_be_raised(exc: BaseException, future: Any) -> bool:
    """Must this exception of a callback be raised, as Ctrl-C in the main thread? All others are only logged (B4)."""
    if not isinstance(exc, Exception) and current_worker() is None:
        return True
    log.error("exception calling callback for %r", future, exc_info=exc)
    return False
