"""How fast counters grow: the difference between the newest picture and one of about five seconds before.

Guarantees: memory is bounded by the pictures of `SPAN` seconds, of which only counters are kept, and at most `SAMPLES`
of them. A counter that went down (the process is another one) has no rate until there are two pictures of it again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable

SPAN = 5.0  # seconds
SAMPLES = 32

Counters = dict[Hashable, tuple[float, ...]]


class Rates:
    """The rates of some counters. Times are those of the pictures, in seconds."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, Counters]] = deque(maxlen=SAMPLES)

    def add(self, time: float, counters: Counters) -> None:
        """Take the counters of a picture."""
        if self._samples and time <= self._samples[-1][0]:
            self._samples.clear()  # a clock that was set back, or another process
        self._samples.append((time, counters))
        while len(self._samples) > 2 and self._samples[1][0] <= time - SPAN:
            self._samples.popleft()

    def forget(self) -> None:
        """Begin anew."""
        self._samples.clear()

    def of(self, key: Hashable) -> tuple[float, ...] | None:
        """The growth per second of each counter with this key; None if it isn't known yet."""
        if len(self._samples) < 2:
            return None
        (begin, before), (end, now) = self._samples[0], self._samples[-1]
        if key not in before or key not in now:
            return None
        rates = tuple((b - a) / (end - begin) for a, b in zip(before[key], now[key], strict=True))
        return rates if all(rate >= 0 for rate in rates) else None
