"""Calls that are taken out of an executor's queue before they begin, to be run or dropped by the code that took them.

Guarantees: no worker runs a call that was taken out, and no flush or shutdown waits for it. Its future stays the same
object; the code that took the call settles it, as with a standard future.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import InvalidStateError
from concurrent.futures._base import CANCELLED, CANCELLED_AND_NOTIFIED, FINISHED, PENDING, RUNNING
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, TypeVar

from cmwq._core.held import holding
from cmwq._pool import lane
from cmwq._workqueue.future import BoundedFuture, Future

if TYPE_CHECKING:
    from cmwq._pool.item import Item
    from cmwq._workqueue.pwq import PoolWorkQueue
    from cmwq._workqueue.queue import WorkQueue

T = TypeVar("T")


class TakenFuture(Future[T]):
    """The future of a call that was taken out. It is in no list, and is counted nowhere."""

    def _withdraw(self) -> None:
        pass

    def set_running_or_notify_cancel(self) -> bool:
        with self.phase.pwq.pool.lock:
            if self._state == PENDING:
                self._state = RUNNING
                return True
        if self.cancelled():
            return False
        raise InvalidStateError(f"{self!r}: it is running already, or has run")

    def set_result(self, result: T) -> None:
        self._settle(result, None)

    def set_exception(self, exception: BaseException | None) -> None:
        self._settle(None, exception)

    def _settle(self, result: T | None, exception: BaseException | None) -> None:
        with self.phase.pwq.pool.lock:
            if self._state in (CANCELLED, CANCELLED_AND_NOTIFIED, FINISHED):
                raise InvalidStateError(f"{self!r}: it is done already")
            self._result, self._exception = result, exception
            audience = self._audience
            self._state = FINISHED if audience is None else RUNNING
            held = self._call, self._kwargs, self._context  # dropped outside the lock: finalisers are user code
            self._call = self._kwargs = self._context = None
        if audience is not None:
            audience.announce(self)
        del held


class TakenCall:
    """One call that was taken out, with the attributes of `concurrent.futures.thread._WorkItem`."""

    def __init__(self, future: Future[Any], fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.future = future
        self.fn = fn
        self.args = args
        self.kwargs = kwargs
        self._context = future._context or copy_context()

    @property
    def task(self) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
        """What Python 3.14 has instead of the three attributes."""
        return self.fn, self.args, self.kwargs

    def run(self, ctx: object = None) -> None:
        """Make the call here and now, and settle its future. ctx: what Python 3.14 passes; it is ignored."""
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            result = self._context.run(self.fn, *self.args, **self.kwargs)
        except BaseException as exc:
            self.future.set_exception(exc)
            self = None  # type: ignore[assignment]  # break the cycle through the traceback
        else:
            self.future.set_result(result)


def take_out(queue: WorkQueue) -> Future[Any] | None:
    """Take the first call that has not begun out of the queue; from now on it is the caller's. None: there is none."""
    for pwq in queue.places():
        pool = pwq.pool
        with pool.lock:
            lane.merge(pool)
            future = _remove_first(pool.worklist, pwq)
            listed = future is not None
            if future is None:
                future = _remove_first(pwq.inactive, pwq)
            if future is None:
                continue
            pwq.take_out(future, listed=listed)
            if isinstance(future, BoundedFuture):
                future._room.give(future)
            future.__class__ = TakenFuture
            pool.kick_or_settle()
        return future
    return None


@holding("pwq.pool.lock")
def _remove_first(items: deque[Item], pwq: PoolWorkQueue) -> Future[Any] | None:
    for index, item in enumerate(items):
        if isinstance(item, Future) and item.phase.pwq is pwq and not item.withdrawn:
            del items[index]
            return item
    return None
