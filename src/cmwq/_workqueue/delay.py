"""Delay: one wait of a work for its time.

Guarantees: it fires no earlier than its time (F9); its work is pending with it until that is queued, so that there is
no moment in which another could queue the work in between; if the queue doesn't take the work when the time has come,
whoever waits for a result is told. The letters are those of `pool`; W: work._lock.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import TYPE_CHECKING

from cmwq._core.held import holding, outside
from cmwq._errors import CmwqError
from cmwq._workqueue.queued import Queued

if TYPE_CHECKING:
    from contextvars import Context

    from cmwq._core.ports import Timer
    from cmwq._workqueue.pwq import PoolWorkQueue
    from cmwq._workqueue.queue import WorkQueue
    from cmwq._workqueue.work import Work
    from cmwq._workqueue.work_future import WorkFuture

_log = logging.getLogger("cmwq")


class Delay:
    """One wait of a DelayedWork for its time."""

    repeats = False
    """There is a next time: there is none to lose."""

    __slots__ = ("_context", "_fired", "_made", "_pwq", "_seconds", "_timer", "futures", "work", "wq")

    def __init__(self, wq: WorkQueue, pwq: PoolWorkQueue, work: Work, seconds: float) -> None:
        self.wq = wq  # I
        self.work = work  # I
        self._seconds = seconds  # I
        self._pwq = pwq  # A: where it will go; another place once that CPU has left
        self._context: Context | None = wq.new_context()  # W
        self._timer: Timer | None = None  # W
        self._fired = False  # T
        self._made: Queued | None = None  # W: what came of it
        self.futures: list[WorkFuture] = []  # W: who wants the result

    @holding("self.work._lock")
    def go(self) -> None:
        """Begin to wait; or, without a delay, be queued at once. Harmless if that has happened.

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
        """The time has come: its work is queued. It doesn't wait for its delay any more by then, for it may begin at
        once, and may be queued again by its own function (E4); should this be interrupted, `Work.mend` queues it.

        Raises QueueClosed.
        """
        work, self._fired = self.work, True
        work._moving = self
        work._delay = None
        try:
            item = self.insert()
        except CmwqError:
            work._moving = None
            self.stop()
            raise
        work._moving = None
        self.stop()
        return item

    def has_begun(self) -> bool:
        """What came of it, if anything did, begins or is over."""
        made = self._made
        return made is not None and (made.begun or made.over)

    @holding("self.work._lock")
    def start(self) -> None:
        """Raises ThreadLimit, QueueClosed; and is not started then."""
        self.wq.check_takes_delays()
        self._timer = self.wq.runtime.host.call_later(self._seconds, self.fire)
        self.wq._delays.add(self)
        self.work._delay = self
        try:
            self.wq.check_takes_delays()  # `close` may have listed the delays already
        except CmwqError:
            self.work._delay = None
            self.stop()
            raise

    @holding("self.work._lock")
    def settle(self, item: Queued | None) -> None:
        """Something was raised while W was held. item: where the work is pending by now."""
        if item is not None:  # its time had come
            self.work._delay = None
            self.stop()
        elif self._fired:  # in vain
            self._timer = self.wq.runtime.host.call_later(0.0, self.fire)

    @holding("self.work._lock")
    def stop(self) -> None:
        """It won't fire.  Context: work._delay changed already."""
        self.wq._delays.discard(self)
        if self._timer is not None:
            self._timer.cancel()

    @outside
    def hasten(self) -> Queued | None:
        """Let its time have come. Returns the queueing that came of it, which may be over already; None: its work
        doesn't wait for it any more. Raises QueueClosed: its work is not taken, and was taken back.
        """
        work, refusal = self.work, None
        self.choose_place()
        with work._here():
            if self.is_over():
                return None
            try:
                return self.come()
            except CmwqError as exc:
                refusal = exc
                work._taken.append(self)
        work._drop_taken()
        raise refusal

    @outside
    def cancel(self) -> bool:
        """Take its work back, whatever else of it is pending. False: that doesn't wait for it any more."""
        work = self.work
        with work._here():
            was = not self.is_over() and work._take_back_delay() is not None
        work._drop_taken()
        return was

    @holding("self.work._lock")
    def is_over(self) -> bool:
        """Its work does not wait for it. It may be noted all the same, if interrupted as it began: then no more."""
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
        """They are to be another's."""
        futures, self.futures = self.futures, []
        return futures

    @outside
    def choose_place(self) -> None:
        """D3: if its CPU has left, it goes where works go now. Before W is taken, for that may start a pool."""
        if self._pwq.pool.disassociated and self.work._delay is self:
            with suppress(CmwqError):  # the old place will do where no other can be had: the queue drains, say
                self._pwq = self.wq.place_here()

    @outside
    def fire(self) -> None:
        """The time has come, whatever was raised while a place was sought.  Context: the timer's thread."""
        try:
            self.choose_place()
        finally:
            self._be_due()

    @outside
    def _be_due(self) -> None:
        work, refusal = self.work, None
        self._fired = True
        with work._lock:
            if work._delay is not self:
                return  # taken back, or moved, in this very moment
            try:
                self.come()
            except CmwqError as exc:
                refusal = exc
        if refusal is not None:
            _log.warning("%r is not run: %s", work, refusal)
            self.drop()

    def _next_context(self) -> Context | None:
        return self._context

    @holding("self.work._lock")
    def insert(self, *, accepted: bool = True) -> Queued:
        """Queue its work. Raises QueueClosed."""
        pwq = self._pwq
        self._made = item = Queued(self.work, pwq.outside, self._next_context())
        item.accepted = accepted
        for future in self.futures:
            item.add_future(future)
        item.hand_over(pwq)
        return item
