"""Alarm: a timer of a pool that exists only while there is something to look at."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cmwq._core.ports import Host, Timer


class Alarm:
    """At most one timer at a time. Context of all: the pool's lock held.

    Who is called by it begins with `cancel`: should an interruption have left two, the other is taken back.
    """

    __slots__ = ("timer",)

    def __init__(self) -> None:
        self.timer: Timer | None = None  # L: None: not set

    def set(self, host: Host, delay: float, call: Callable[[], None]) -> None:
        """Raises ThreadLimit: never, once the runtime has begun.  Context: not set."""
        self.timer = host.call_later(delay, call)

    def cancel(self) -> None:
        """It is not set any more. Harmless if it wasn't."""
        timer, self.timer = self.timer, None  # first: one that is noted will fire
        if timer is not None:
            timer.cancel()

    def forget(self) -> None:
        """In the child of a fork: the timer was the parent's."""
        self.timer = None


class Alarms:
    """Those of one pool, but for `Lending`'s."""

    __slots__ = ("cull", "drained", "hog_rests", "hogs", "mayday")

    def __init__(self) -> None:
        self.cull = Alarm()  # I: an idle worker is surplus (B3)
        self.drained = Alarm()  # I: the pool's CPU left, and it has not drained yet (D2)
        self.hogs = Alarm()  # I: work waits, or did a moment ago (A9)
        self.hog_rests = 0  # L: so often it was set since work waited
        self.mayday = Alarm()  # I: work waits, and no worker can be had (C2)

    def cancel(self) -> None:
        """The pool closes."""
        for alarm in (self.cull, self.drained, self.hogs, self.mayday):
            alarm.cancel()

    def forget(self) -> None:
        """In the child of a fork."""
        for alarm in (self.cull, self.drained, self.hogs, self.mayday):
            alarm.forget()
