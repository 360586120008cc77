"""How the limit of a queue rises of which nothing is known yet (E11): the first stage of `learned`.

While no work has ended there is nothing to judge, and most queues need no limit. So the limit rises with time, and how
fast is a guess from how the works wait. Works that sleep for a time of their own (`time.sleep`) need nothing that could
be short, so their limit doubles at each look, which is about as fast as threads can be made. All others may be waiting
for one another, or for the one thing that gets slower with each of them. If they do, the more there are, the later the
first one ends. So their limit rises with the cube root of the time, which even a service that slows down with the
square of the load can stand.

Once works end, the limit goes on rising while they take no longer than the first one did, at most to double in the time
that one took; and if works stop ending, because short ones ended and long ones are left.
"""

from __future__ import annotations

from typing import NamedTuple

FIRST = 4
"""The limit of a queue of which nothing is known."""
PERIOD = 1e-3
"""Seconds between two looks, at first."""
OTHERS = 2e-3
"""If works do not sleep, the limit has doubled after seven times this many seconds: a work of a hundredth of a second
ends among seven, one of a second among thirty.
"""
HANGS = 2.0
"""After so many seconds without an end the limit doubles each time they pass again: the works may wait for others that
have no place yet.
"""
ENOUGH = 8
"""So many works have to end well before it is said how long they take."""
UNHINDERED = 0.75
"""Works that take what the first one took, divided by this, are in nobody's way."""
ANOTHER_REASON = 1.3
"""If the first work took this much longer than the others, that was for another reason: it connected, or imported."""


class Sight(NamedTuple):
    """What was seen of a place in a queue since the last look."""

    now: float
    """The time in seconds."""
    ended: int
    """Works that ended."""
    failed: int
    """Those of them that raised."""
    executing: int
    """Works that have begun and not ended."""
    active: int
    """Works that hold a place."""
    sleepers: bool = False
    """Each work that was looked at sleeps for a time of its own, as in `time.sleep`, which needs nothing that is
    short. It is looked at while the limit rises, and only then.
    """


class Rise:
    """What is seen while the limit rises."""

    __slots__ = ("_area", "_failed", "_good", "_last", "_part", "_rose", "_since", "alone", "first")

    def __init__(self, now: float = 0.0) -> None:
        self._since = now  # L: when it began; later: when the first work ended well
        self._rose = now  # L: when the limit rose last
        self._part = 0.0  # L: the part of a place by which it is still to rise
        self.first: float | None = None  # L: seconds until the first work ended well; None: none has
        self.alone: float | None = None  # L: seconds a work takes if nothing is in its way, as far as is known
        self._last = now  # L: when a work ended well last
        self._failed = 0  # L: works that failed before the first ended well
        self._good = 0  # L: works that ended well after the first
        self._area = 0.0  # L: seconds that all works together have taken since then

    def see(self, sight: Sight, good: int, elapsed: float) -> None:
        """Take note. good: works that ended well. elapsed: seconds since the last look."""
        if self.first is not None:
            self._area += elapsed * sight.executing
            self._good += good
        elif good:
            self.first = self.alone = max(sight.now - self._since, 1e-6)
            self._since = sight.now
        elif sight.ended:
            self._since = self._rose = sight.now  # failures prove nothing
            self._failed += sight.ended
        if good:
            self._last = sight.now
        if self._good >= ENOUGH and self._alone_by_first() >= ANOTHER_REASON:
            self.alone = self._area / self._good

    def share(self) -> float:
        """What a work alone takes, as a share of what works take now. Not known: 0.5."""
        if self._good < ENOUGH or self._alone_by_first() >= ANOTHER_REASON:
            return 0.5
        return self._alone_by_first()

    def _alone_by_first(self) -> float:
        assert self.first is not None
        return self.first * self._good / max(self._area, 1e-9)

    def period(self, now: float) -> float:
        """Seconds until it wants to see again if nothing ends."""
        return max(PERIOD, (now - self._since) / 16)

    def limit(self, sight: Sight, limit: int) -> int:
        """The limit to which it has risen, from that one."""
        now, share = sight.now, self.share()
        if now - self._rose < 0.5 * PERIOD or (self.first is None and self._failed >= FIRST):
            return limit
        if not self._is_silent(now) and share <= (0.15 if sight.sleepers else UNHINDERED):
            return limit
        passed = min(now - self._rose, 4 * self.period(now))
        self._rose = now
        if sight.sleepers:
            return limit * (2 if passed < 2 * PERIOD else 4)  # looks may come late
        if self.first is None:
            waited = now - self._since
            risen = FIRST * (1 + min(waited, HANGS) / OTHERS) ** (1 / 3)
            return max(limit, int(risen * 2 ** max(0.0, waited / HANGS - 1)))
        more = self._part + passed * limit / self.first * (1 if share > UNHINDERED else 0.25)
        self._part = more % 1
        return limit + int(more)

    def _is_silent(self, now: float) -> bool:
        """Whether works have stopped ending, or none has ended yet."""
        if self.first is None:
            return True
        gap = (self._last - self._since) / max(1, self._good)
        return now - self._last > max(8 * gap, self.first)
