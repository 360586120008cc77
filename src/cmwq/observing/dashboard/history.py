"""What the pools of a process did over time, at three resolutions: ten minutes, two hours, two days.

Guarantees: memory is fixed once the pools are known: per pool and resolution, so many points, each a few floats. Beyond
`POOLS` pools, further ones count only in the sum of all. Time without pictures is kept as a gap, not as zeros. Where
the clock was set back, what was seen at later times is dropped: the points are in order, and the last is the newest.

A point is the mean of what was seen within it, except that of works that wait, of which it is the most: a short queue
that nobody would see in a mean is what one looks for. Not thread-safe: the owner's lock guards it.
"""

from __future__ import annotations

from array import array
from math import isnan, nan
from typing import Any

COLUMNS = ("running", "blocked", "idle", "target", "pending", "inactive", "completed", "cpu")
"""`completed` is works per second, `cpu` is how many CPUs were in use, the others are numbers of workers or works."""
MOST = frozenset({"pending", "inactive"})
POOLS = 64
ALL = ""
"""The name of the sum of all pools."""
RANGES = ((1, 600), (10, 720), (120, 1440))
"""Of each resolution: seconds per point, if pictures come once a second, and the number of points."""

Values = tuple[float, ...]
"""One number per column."""


class Ring:
    """The last `size` points, of `seconds` each."""

    def __init__(self, seconds: float, size: int) -> None:
        self.seconds = seconds
        self.size = size
        self._ids = array("q", [-1]) * size
        self._seen = array("l", [0]) * size
        self._last = -1
        self._columns: dict[str, list[array[float]]] = {}

    def add(self, time: float, values: dict[str, Values]) -> None:
        point = int(time // self.seconds)
        place = point % self.size
        if point < self._last:
            for at, later in enumerate(self._ids):
                if later > point:
                    self._ids[at] = -1
        if self._ids[place] != point:
            self._ids[place] = point
            self._seen[place] = 0
            for columns in self._columns.values():
                for column in columns:
                    column[place] = nan
        self._last = point
        self._seen[place] += 1
        for name, numbers in values.items():
            for title, column, number in zip(COLUMNS, self._of(name), numbers, strict=True):
                before = column[place]
                if isnan(before):
                    column[place] = number
                elif title in MOST:
                    column[place] = max(before, number)
                else:
                    column[place] = before + (number - before) / self._seen[place]

    def _of(self, name: str) -> list[array[float]]:
        columns = self._columns.get(name)
        if columns is None:
            columns = self._columns[name] = [array("f", [nan]) * self.size for _ in COLUMNS]
        return columns

    def read(self) -> dict[str, Any]:
        """The points from the first that is kept, ready for JSON: a gap is None."""
        points = sorted(point for point in self._ids if point > max(self._last - self.size, -1))
        first = points[0] if points else self._last + 1
        span = range(first, self._last + 1)
        known = set(points)
        pools = {
            name: {
                title: [_json(column[point % self.size]) if point in known else None for point in span]
                for title, column in zip(COLUMNS, columns, strict=True)
            }
            for name, columns in self._columns.items()
        }
        return {"seconds": self.seconds, "times": [point * self.seconds for point in span], "pools": pools}


def _json(number: float) -> float | None:
    return None if isnan(number) else round(number, 3)


class History:
    """All resolutions. `interval` is how often pictures come, in seconds."""

    def __init__(self, interval: float) -> None:
        self.rings = [Ring(seconds * max(1.0, interval), size) for seconds, size in RANGES]
        self._known: set[str] = {ALL}

    def add(self, time: float, values: dict[str, Values]) -> None:
        """Add what was seen at this time (epoch seconds), by pool."""
        for name in values:
            if len(self._known) <= POOLS:
                self._known.add(name)
        kept = {name: numbers for name, numbers in values.items() if name in self._known}
        for ring in self.rings:
            ring.add(time, kept)
