"""How a work is queued: `WorkQueue.queue`, `queue_on`, `queue_delayed`, `mod_delayed`, and `submit` of a work.

Guarantees: a work that is pending or blocked is left as it is (E4, F6). Whatever else is raised, the work is either
pending with this queueing, or as it was (F10). `work` says what pending means; only it, `queued`, `delay`, `periodic`
and this module change that. The letters are those of `pool`; W: work._lock.
"""

from __future__ import annotations

from contextvars import copy_context
from functools import partial
from math import inf
from typing import TYPE_CHECKING

from cmwq._core import checks
from cmwq._core.surely import ask_for_depth, at_any_depth
from cmwq._errors import REFUSALS, Refused, WorkDisabled, own, refused_by_us
from cmwq._workqueue.delay import Delay
from cmwq._workqueue.queued import Queued
from cmwq._workqueue.work import DelayedWork, Work

if TYPE_CHECKING:
    from cmwq._workqueue.queue import WorkQueue
    from cmwq._workqueue.work_future import WorkFuture


def queue(wq: WorkQueue, /, work: Work) -> bool:
    """Queue a work. True: it was queued. Thread-safe; does not wait, unless for room (`max_pending`).

    False: it was pending already, and this call is coalesced with the earlier one (E4), or it is disabled. Raises
    QueueClosed, QueueFull, ThreadLimit, TypeError.
    """
    # The hot path: what `queue_specially` does in the usual case.
    try:
        born = work._born
    except AttributeError:
        check_work(wq, work)
        raise
    if wq._special or wq._shut or born != Work.generation:
        return queue_specially(wq, work)
    if (work._item is not None or work._delay is not None) and not work._lock.stained:
        return False
    try:
        pwq = wq._only or wq.place_here()
        with work._lock:
            # `is_idle`, inlined.
            if work._item is not None or work._delay is not None or work._disables or work._cancels:
                return False
            Queued(work, pwq.outside, copy_context()).hand_over(pwq)
    except Refused as exc:
        own(exc)
        wq.runtime.host.defer(partial(queue_specially, wq, work, accepted=True))
    return True


def check_work(wq: WorkQueue, work: object) -> None:
    """Raise TypeError for what is no work; for a function it says what to do with that."""
    what = f"what is queued to queue {wq.name!r}"
    if callable(work) and not isinstance(work, Work):
        raise TypeError(
            f"{what} is {checks.shown(work)}, and must be a Work, not a function: make one of it, or submit() it"
        )
    checks.instance(what, work, Work)


def queue_specially(
    wq: WorkQueue,
    work: Work,
    cpu: int | None = None,
    *,
    delay: float = 0.0,
    future: WorkFuture | None = None,
    accepted: bool = False,
) -> bool:
    """`queue` with all options. Everything that may take time, or be refused, is done before W is taken.

    With a future it raises Reentered, which the caller handles. accepted: an earlier call was deferred and has returned
    True. If the queue drains or is full by now, the work is let in all the same.
    """
    if work._born != Work.generation:
        work.begin_anew()
    if wq._shut:
        wq._check_admitted(None, accepted=accepted)  # first: if refused, it must not be coalesced with another's
    if not work.is_idle:
        return False
    item: Queued | None = None
    try:
        pwq = (wq._only or wq.place_here()) if cpu is None else wq.place_at(cpu)
        if delay > 0:
            new = Delay(wq, pwq, work, delay)
            if future is not None:
                new.futures.append(future)
        else:
            item = Queued(work, pwq.outside, wq.new_context())
            item.accepted = accepted
            if wq._room is not None and not accepted:
                ask_for_depth()
                item.room = wq._room
                wq._room.take(item)
        with work._lock:
            if not work.is_idle:
                return False
            if item is None:
                wq._check_open()
                new.start()
            else:
                if future is not None:
                    item.add_future(future)
                item.hand_over(pwq)
    except Refused as exc:
        own(exc)
        if future is not None:
            raise
        wq.runtime.host.defer(partial(queue_specially, wq, work, cpu, delay=delay, accepted=True))
    finally:
        if item is not None and item.room is not None:
            at_any_depth(_give_back, item)
    return True


def _give_back(item: Queued) -> None:
    """Give back the item's place in the room, if it was not queued."""
    if item.room is not None and not (item.is_awaited or item.begun or item.over):
        item.room.give_later(item)


def queue_or_join(wq: WorkQueue, work: Work, future: WorkFuture, *, accepted: bool = False) -> None:
    """Queue the work, or give the future the result of the execution to come. Raises QueueClosed, WorkDisabled."""
    try:
        while not (queue_specially(wq, work, future=future, accepted=accepted) or work.add_future(future)):
            if work.is_blocked:
                raise WorkDisabled(f"{work!r} can't be submitted to queue {wq.name!r} until it is enabled")
    except Refused as exc:
        own(exc)
        wq.runtime.host.defer(partial(_join_later, wq, work, future))


def _join_later(wq: WorkQueue, work: Work, future: WorkFuture) -> None:
    """`queue_or_join`, deferred: if it fails, only the future can tell."""
    try:
        queue_or_join(wq, work, future, accepted=True)
    except REFUSALS as exc:
        own(exc)
        future.settle(None, exc)


def mod_delayed(wq: WorkQueue, work: DelayedWork, delay: float) -> bool:
    """`WorkQueue.mod_delayed`, where the promises are stated."""
    delay = checked_delay(work, delay)
    wq._check_open()  # before anything is changed
    if delay > 0:
        wq.check_takes_delays()
    ask_for_depth()
    try:
        new = Delay(wq, wq._only or wq.place_here(), work, delay)
        with work._here():
            moved = not work.is_blocked and work.move_to(new)
        work._drop_taken()
    except BaseException as exc:
        if not refused_by_us(exc):
            at_any_depth(work._drop_taken)
            raise
        wq.runtime.host.defer(partial(mod_delayed, wq, work, delay))
        return work.pending
    return moved


def checked_delay(work: DelayedWork, delay: float) -> float:
    """The delay in seconds, 0 or more. Raises TypeError, ValueError."""
    if not isinstance(work, DelayedWork):
        raise TypeError(f"only a DelayedWork can be delayed, not {checks.shown(work)}")
    delay = checks.seconds("delay", delay)
    if delay == inf:
        raise ValueError(f"delay is inf, and {work!r} would never begin")
    return max(0.0, delay)
