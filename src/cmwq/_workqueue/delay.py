"""Delay: a work waits for its time.

Guarantees: a delay fires no earlier than its time (F9). Its work stays pending until it is queued, so that no other
thread can queue it in between. If the queue does not take the work when its time has come, threads that wait for its
result are told. The letters are those of `pool`; W: work._lock.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from cmwq._core import log
from cmwq._core.held import holding, outside
from cmwq._core.surely import ask_for_depth, at_any_depth
from cmwq._errors import REFUSALS, own
from cmwq._workqueue.queued import Queued

if TYPE_CHECKING:
    from contextvars import Context

    from cmwq._core.ports import Timer
    from cmwq._workqueue.pwq import PoolWorkQueue
    from cmwq._workqueue.queue import WorkQueue
    from cmwq._workqueue.work import Work
    from cmwq._workqueue.work_future import WorkFuture


class Delay:
    """One wait of a DelayedWork for its time."""

    repeats = False
    """Does it fire again and again? Then a flush leaves it alone, and closing the queue reports no loss."""

    __slots__ = ("_context", "_fired", "_made", "_pwq", "_seconds", "_timer", "futures", "work", "wq")

    def __init__(self, wq: WorkQueue, pwq: PoolWorkQueue, work: Work, seconds: float) -> None:
        self.wq = wq  # I
        self.work = work  # I
        self._seconds = seconds  # I
        self._pwq = pwq  # A: where the work will go; changed once that CPU has left
        self._context: Context | None = wq.new_context()  # W
        self._timer: Timer | None = None  # W
        self._fired = False  # T
        self._made: Queued | None = None  # W: the queueing that it led to
        self.futures: list[WorkFuture] = []  # W: those that get the result

    @holding("self.work._lock")
    def go(self) -> None:
        """Start the delay, or queue the work at once if there is none. Harmless if that has been done.

        Raises ThreadLimit, QueueClosed.
        """
        made = self._made
        if made is not None and (made.begun or made.over or made.is_pending()):
            return
        if self._seconds > 0 and not self._fired:
            self.start()
        else:
            self.insert(accepted=True)

    @holding("self.work._lock")
    def come(self) -> Queued:
        """The time has come: queue the work, and return the queueing.

        The work stops waiting for its delay before it is queued, because it may begin at once and be queued again by
        its own function (E4). If this is interrupted in between, `Work.mend` queues it. Raises QueueClosed.
        """
        work, self._fired = self.work, True
        work._moving = self
        work._delay = None
        try:
            item = self.insert()
        except REFUSALS as exc:
            own(exc)
            work._moving = None
            self.stop()
            raise
        work._moving = None
        self.stop()
        return item

    def has_begun(self) -> bool:
        """Has the queueing that it led to, if any, begun or been taken back?"""
        made = self._made
        return made is not None and (made.begun or made.over)

    @holding("self.work._lock")
    def start(self) -> None:
        """Set the timer. Raises ThreadLimit and QueueClosed: then it is not set."""
        self.wq.check_takes_delays()
        self.wq.runtime.adopt(self.wq)
        self._timer = self.wq.runtime.host.call_later(self._seconds, self.fire)
        self.wq._delays.add(self)
        self.work._delay = self
        try:
            self.wq.check_takes_delays()  # `close` may have gone through the delays already
        except REFUSALS as exc:
            own(exc)
            self.work._delay = None
            self.stop()
            raise

    @holding("self.work._lock")
    def settle(self, item: Queued | None) -> None:
        """Something was raised while W was held. item: the queueing with which the work is pending, if any."""
        if item is not None:  # its time had come, and it was queued
            self.work._delay = None
            self.stop()
        elif self._fired:  # its time had come, and it was not queued: try again
            self._timer = self.wq.runtime.host.call_later(0.0, self.fire)

    @holding("self.work._lock")
    def stop(self) -> None:
        """Cancel the timer.  Context: work._delay changed already."""
        self.wq._delays.discard(self)
        if self._timer is not None:
            self._timer.cancel()

    @holding("self.work._lock")
    def end_now(self) -> Queued:
        """End the delay now. Returns the queueing that it led to, which may be over already.

        Raises QueueClosed: the queue refused the work, which was taken back. The caller calls `_drop_taken` without W.
        """
        try:
            return self.come()
        except REFUSALS as exc:
            own(exc)
            self.work._taken.append(self)
            raise

    @outside
    def hasten(self) -> None:
        """End the delay now, if the work still waits for it. Raises QueueClosed, as `end_now`."""
        ask_for_depth()
        self.choose_place()
        try:
            with self.work._here():
                if not self.is_over():
                    self.end_now()
        except BaseException:
            at_any_depth(self.work._drop_taken)
            raise

    @outside
    def cancel(self) -> bool:
        """Take the delay back, but no other queueing of the work. False: the work did not wait for this delay."""
        work = self.work
        with work._here():
            was = not self.is_over() and work._take_back_delay() is not None
        work._drop_taken()
        return was

    @holding("self.work._lock")
    def is_over(self) -> bool:
        """Has the work stopped waiting for this delay? Then stop it, in case an interrupted `start` left it on the
        list.
        """
        if self.work._delay is self:
            return False
        self.stop()
        return True

    @outside
    def drop(self) -> None:
        """It was taken back: let go of what it refers to."""
        self._context = None
        for future in self.futures:
            future.cancel()

    def take_futures(self) -> list[WorkFuture]:
        """Return its futures, which are another's from now on."""
        futures, self.futures = self.futures, []
        return futures

    @outside
    def choose_place(self) -> None:
        """If its CPU has left, choose the place where works go now (D3). Called before W is taken, as it may start a
        pool.
        """
        if self._pwq.pool.disassociated and self.work._delay is self:
            with suppress(*REFUSALS):  # keep the old place if there is no other, e.g. while the queue drains
                self._pwq = self.wq.place_here()

    @outside
    def fire(self) -> None:
        """The time has come. The work is queued even if choosing a place raises.  Context: the timer's thread."""
        try:
            self.choose_place()
        finally:
            self._be_due()

    @outside
    def _be_due(self) -> None:
        """Queue the work, if it still waits for this delay; log it if the queue refuses."""
        work, refusal = self.work, None
        self._fired = True
        with work._lock:
            if work._delay is not self:
                return  # it was taken back or moved at this very moment
            try:
                self.come()
            except REFUSALS as exc:
                own(exc)
                refusal = exc
        if refusal is not None:
            log.warning("%r is not run: %s", work, refusal)
            self.drop()

    def _next_context(self) -> Context | None:
        """The context in which the work is to run."""
        return self._context

    @holding("self.work._lock")
    def insert(self, *, accepted: bool = True) -> Queued:
        """Queue the work. Raises QueueClosed."""
        pwq = self._pwq
        self._made = item = Queued(self.work, pwq.outside, self._next_context())
        item.accepted = accepted
        for future in self.futures:
            item.add_future(future)
        item.hand_over(pwq)
        return item
