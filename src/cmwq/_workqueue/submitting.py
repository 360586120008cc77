"""`submit` in the special cases: a work instead of a function, or a queue with a context or a room of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cmwq._core.surely import ask_for_depth, at_any_depth
from cmwq._errors import Refused, own, refused_by_us
from cmwq._workqueue.future import BoundedFuture, Future
from cmwq._workqueue.inserting import insert, insert_later
from cmwq._workqueue.queueing import queue_or_join
from cmwq._workqueue.work import Work
from cmwq._workqueue.work_future import WorkFuture

if TYPE_CHECKING:
    from cmwq._workqueue.pwq import PoolWorkQueue
    from cmwq._workqueue.queue import WorkQueue
    from cmwq._workqueue.room import Room


def submit_specially(wq: WorkQueue, fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Future[Any]:
    """`WorkQueue.submit`, where the promises are stated."""
    if isinstance(fn, Work):
        if args or kwargs:
            raise TypeError(f"{fn!r} has its arguments already")
        result = WorkFuture((wq._only or wq.place_here()).outside, fn)
        queue_or_join(wq, fn, result)
        return result
    if wq._room is not None:
        return _submit_bounded(wq, wq._room, fn, args, kwargs)
    context = wq.new_context()
    pwq = wq._only or wq.place_here()
    future: Future[Any] = Future(pwq.outside, (fn, *args), kwargs, context)
    try:
        insert(pwq, future)
    except Refused as exc:
        own(exc)
        insert_later(pwq, future)
    return future


def _submit_bounded(
    wq: WorkQueue, room: Room, fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> BoundedFuture[Any]:
    """Submit to a queue with `max_pending`, which may mean waiting for room first."""
    context = wq.new_context()
    pwq = wq._only or wq.place_here()
    future: BoundedFuture[Any] = BoundedFuture(pwq.outside, (fn, *args), kwargs, context)
    future._room = room
    ask_for_depth()
    try:
        room.take(future)
        insert(pwq, future)
    except BaseException as exc:
        if not refused_by_us(exc):
            at_any_depth(_give_back, room, pwq, future)
            raise
        # It is let in later, even if the queue is full: by then no caller can wait or get an exception.
        room.give_later(future)
        insert_later(pwq, future)
    return future


def _give_back(room: Room, pwq: PoolWorkQueue, future: BoundedFuture[Any]) -> None:
    """Give back the call's place in the room, if it was not queued."""
    if not pwq.has(future):
        room.give(future)
