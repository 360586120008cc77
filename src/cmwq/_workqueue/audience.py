"""Audience: all that waits for one future, and how it is told.

Guarantees: everything in it is told of the end once, after `done()` is true. A call of `announce` that was interrupted
can be repeated and goes on where it was. What one callback raises does not keep the others from being called. A future
has an audience only if somebody waits. The letters are those of `pool`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures._base import CANCELLED_AND_NOTIFIED, FINISHED
from contextlib import suppress
from functools import partial
from itertools import repeat
from operator import call, methodcaller
from typing import TYPE_CHECKING, Any

from cmwq._core import log
from cmwq._core.held import outside
from cmwq._core.surely import at_any_depth, frames
from cmwq._errors import REFUSALS
from cmwq._pool.worker import current_worker
from cmwq._workqueue.readers import Readers, innermost_read, reads

if TYPE_CHECKING:
    from cmwq._core.ports import Parker


class Audience:
    """All that waits for one future: parked threads, callbacks, and waiters of `concurrent.futures`."""

    __slots__ = ("callbacks", "calls_back", "canceller", "parkers", "readers", "untold")

    def __init__(self) -> None:
        self.parkers: list[Parker] = []  # L: threads in result() or exception()
        self.canceller: object = None  # L: the call of `cancel` that decided and has to announce it
        self.callbacks: list[Callable[[Any], object]] = []  # L: from add_done_callback
        self.calls_back = False  # L: add_done_callback was called
        self.readers: Readers | None = None  # L to set, once: concurrent.futures.wait and as_completed
        self.untold: list[Any] | None = None  # A: those that wait there and are still to be told; None: not done yet

    @outside
    def announce(self, future: Any) -> None:
        """The call ended: make the future done, and tell the whole audience once.

        `concurrent.futures.wait` reads the state several times while it holds the readers' lock, and relies on its not
        changing. So if there may be readers, the state changes under their lock, which is taken before L.

        If this is interrupted, it may be called again, and goes on where it was. If it interrupts a call that reads, as
        a signal handler that cancels what is being waited for, a thread of its own does all of it, once that call does
        not read any more.
        """
        lock = future.phase.pwq.pool.lock
        final = CANCELLED_AND_NOTIFIED if future.cancelled() else FINISHED
        with lock:
            readers = self.readers
            if readers is None:
                future._state = final
        if readers is not None:
            if innermost_read(2) is not None and self._announce_apart(future):
                return
            self._tell_readers(future, readers, final)
        for parker in self.parkers:  # the future is done, so this list does not change any more
            parker.unpark()
        if not self.callbacks:
            return
        raised: BaseException | None = None
        calling = map(call, _taken(self.callbacks), repeat(future))
        while callbacks := self.callbacks[:1]:
            nr, callback = len(self.callbacks), callbacks[0]
            try:
                next(calling)
            except BaseException as exc:
                if isinstance(exc, IndexError) and not self.callbacks and _is_of_this_frame(exc):
                    break  # another thread, which gives the call up, has called the last one
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

    def _announce_apart(self, future: Any) -> bool:
        """Have another thread announce it. False: none can be had."""
        host, announce = future.phase.pwq.wq.runtime.host, partial(self.announce, future)
        with suppress(*REFUSALS):
            host.spawn("cmwq announces", announce)
            return True
        with suppress(*REFUSALS):
            host.call_later(0.0, announce)
            return True
        return False

    @reads
    def _tell_readers(self, future: Any, readers: Readers, final: str) -> None:
        holding = _Holding(readers)
        with holding, holding:
            readers.acquire()
            with future.phase.pwq.pool.lock:
                future._state = final
            if self.untold is None:
                self.untold = readers.copy()  # the waiters remove themselves from the list later
            told = "add_cancelled" if final is CANCELLED_AND_NOTIFIED else "add_result"
            if future._exception is not None:
                told = "add_exception"
            self._tell_waiters(methodcaller(told, future))

    def _tell_waiters(self, tell: Callable[[Any], object]) -> None:
        """Call `tell` with each waiter.  Context: the readers' lock held, by a `with` statement of the caller: a `with`
        does not protect the very first moment of a `try` in its own body (Python 3.13).
        """
        untold = self.untold
        assert untold is not None
        telling = map(tell, _taken(untold))
        while untold:
            waiter = untold[0]
            try:
                at_any_depth(next, telling)
            except BaseException as exc:
                _put_back(exc, waiter, untold)
                # The call was interrupted halfway: wake the thread, lest it wait for ever.
                at_any_depth(waiter.event.set)
                raise


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
    unmade = isinstance(exc, (MemoryError, RecursionError)) and _is_of_this_frame(exc)
    if unmade and not (things and things[0] is thing):
        things.insert(0, thing)


def _is_of_this_frame(exc: BaseException) -> bool:
    """Whether the function that caught it raised it itself, or something in C that it called."""
    return exc.__traceback__ is not None and exc.__traceback__.tb_next is None


class _Holding:
    """Releases the readers' lock, whatever interrupts. It is written twice in one `with`: see `surely`."""

    __slots__ = ("_readers",)

    def __init__(self, readers: Readers) -> None:
        self._readers = readers  # S

    def __enter__(self) -> None:
        frames(4)  # what `__exit__` needs

    def __exit__(self, *exc_info: object) -> None:
        if self._readers.is_mine():
            at_any_depth(self._readers.release)


def is_to_be_raised(exc: BaseException, future: Any) -> bool:
    """Must this exception of a callback be raised, as Ctrl-C in the main thread? All others are only logged (B4)."""
    if not isinstance(exc, Exception) and current_worker() is None:
        return True
    log.error("exception calling callback for %r", future, exc_info=exc)
    return False
