"""Audience: who waits for one future, and how they are told.

Guarantees: everybody in it hears of the end once, after `done()` is true; whoever is interrupted while telling goes on
where it was; what a callback raises keeps nobody else from being called. A future has one only if somebody waits. The
letters are those of `pool`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures._base import CANCELLED_AND_NOTIFIED, FINISHED
from itertools import repeat
from operator import call, methodcaller
from threading import Condition
from typing import TYPE_CHECKING, Any

from cmwq._core.held import outside
from cmwq._pool.worker import current_worker

if TYPE_CHECKING:
    from cmwq._core.ports import Parker

_log = logging.getLogger("cmwq")


class Audience:
    """Who waits for one future: made when the first of them comes."""

    __slots__ = ("callbacks", "calls_back", "canceller", "condition", "parkers", "untold", "waiters")

    def __init__(self) -> None:
        self.parkers: list[Parker] = []  # L: threads in result() or exception()
        self.canceller: object = None  # L: which call of `cancel` decided, and is to announce it
        self.callbacks: list[Callable[[Any], object]] = []  # L: add_done_callback
        self.calls_back = False  # L: somebody called that
        self.condition: Condition | None = None  # L: made for concurrent.futures.wait and as_completed
        self.waiters: list[Any] | None = None  # A: who waits at its own condition; made for the first
        self.untold: list[Any] | None = None  # A: the condition's that are to be told; None: not done

    @outside
    def announce(self, future: Any) -> None:
        """The call ended: let the future be done, and tell everybody once.

        `concurrent.futures.wait` looks at the state several times while it holds the condition, and relies on its being
        the same. So where there is a condition the state changes under it. Order: condition < L.

        If it was interrupted it may be called again, and goes on where it was.
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
                    self.untold = list(self.waiters or ())  # they take themselves off theirs, later
                told = "add_cancelled" if final is CANCELLED_AND_NOTIFIED else "add_result"
                if future._exception is not None:
                    told = "add_exception"
                self._tell_waiters(methodcaller(told, future))
        for parker in self.parkers:  # it is done, so nobody changes the list any more
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
                    raise  # it was not called; whoever calls this does so again
                if is_to_be_raised(exc, future):
                    raised = exc  # when the others have been called
        if raised is not None:
            try:
                raise raised
            finally:
                raised = None  # break the cycle through the traceback

    def _tell_waiters(self, tell: Callable[[Any], object]) -> None:
        """Context: the condition held, by a `with` statement elsewhere: one does not answer for the very beginning of a
        `try` in its own body (Python 3.13).
        """
        untold = self.untold
        assert untold is not None
        telling = map(tell, _taken(untold))
        while untold:
            waiter = untold[0]
            try:
                next(telling)
            except MemoryError as exc:
                _put_back(exc, waiter, untold)
                waiter.event.set()  # in its middle: let it look, rather than wait for ever
                raise


def _taken(things: list[Any]) -> Iterator[Any]:
    """Takes the first of the things off the list at each step. For `map` to call what is taken, or something with it.

    There is no bytecode in between: wherever a step of that map is interrupted, either the thing is on the list still,
    or the call was made. Where there was no memory for the call, `_put_back` sees to that.
    """
    return map(things.pop, repeat(0))


def _put_back(exc: BaseException, thing: Any, things: list[Any]) -> None:
    """A step ended with that exception: if it could not make its call, the thing is the first of the list again.

    Context: the function that took the step.
    """
    unmade = isinstance(exc, MemoryError) and exc.__traceback__ is not None and exc.__traceback__.tb_next is None
    if unmade and not (things and things[0] is thing):
        things.insert(0, thing)


CONDITION = 0.25
"""Seconds for which who announces a result waits for its condition."""


class _Holding:
    """The condition held, if it can be had within `CONDITION`. Written twice in one `with`, see `surely`.

    `concurrent.futures.wait` holds it for microseconds. But one Ctrl-C in its loop that takes the conditions of many
    futures, and it never lets go of those it had; nobody who announces is to hang for that.
    """

    __slots__ = ("_condition", "_theirs")

    def __init__(self, condition: Condition) -> None:
        self._condition = condition  # S
        self._theirs = condition._is_owned()  # type: ignore[attr-defined]  # S: by a frame of this thread that we interrupt

    def __enter__(self) -> None:
        pass

    def take(self) -> None:
        if not self._condition._is_owned():  # type: ignore[attr-defined]
            self._condition.acquire(timeout=CONDITION)

    def __exit__(self, *exc_info: object) -> None:
        if not self._theirs and self._condition._is_owned():  # type: ignore[attr-defined]
            self._condition.notify_all()
            self._condition.release()


def is_to_be_raised(exc: BaseException, future: Any) -> bool:
    """Of what a callback raised: Ctrl-C in the main thread, say. Whatever else it is is nobody's but the log's (B4)."""
    if not isinstance(exc, Exception) and current_worker() is None:
        return True
    _log.error("exception calling callback for %r", future, exc_info=exc)
    return False
