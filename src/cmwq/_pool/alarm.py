"""Alarm: a timer of a pool that exists only while there is something to look at."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cmwq._core.ports import Host, Timer


class Alarm:
    """At most one timer at a time. Context of all methods: the pool's lock held.

    The function that the timer calls begins with `cancel`: if an interruption left two timers, the other is cancelled.
    """

    __slots__ = ("timer",)

    def __init__(self) -> None:
        self.timer: Timer | None = None  # L: None if not set

    def set(self, host: Host, delay: float, call: Callable[[], None]) -> None:
        """Call `call` after `delay` seconds. Context: not set. Raises ThreadLimit only before the runtime began."""
        self.timer = host.call_later(delay, call)

    def cancel(self) -> None:
        """Cancel the timer. Harmless if none is set."""
        timer, self.timer = self.timer, None  # first: a timer that is noted here will fire
        if timer is not None:
            timer.cancel()

    def forget(self) -> None:
        """Forget the timer, which was the parent's. Context: the child of a fork."""
        self.timer = None


class Alarms:
    """The alarms of one pool, except those of `Lending` and `Children`."""

    __slots__ = ("cull", "drained", "hog_rests", "hogs", "mayday")

    def __init__(self) -> None:
        self.cull = Alarm()  # I: an idle worker is surplus (B3)
        self.drained = Alarm()  # I: the pool's CPU left, and it has not drained yet (D2)
        self.hogs = Alarm()  # I: work waits, or did a moment ago (A9)
        self.hog_rests = 0  # L: how often it was set since work last waited
        self.mayday = Alarm()  # I: work waits, and no worker can be had (C2)

    def cancel(self) -> None:
        """Cancel all, because the pool closes."""
        for alarm in (self.cull, self.drained, self.hogs, self.mayday):
            alarm.cancel()

    def forget(self) -> None:
        """Forget all. Context: the child of a fork."""
        for alarm in (self.cull, self.drained, self.hogs, self.mayday):
            alarm.forget()
