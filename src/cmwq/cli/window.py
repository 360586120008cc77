"""How far `cmwq map` may run ahead of what it has printed: so many items, so many bytes.

Items that are only read wait in the pool, or here. An item begins if what waits already, and what those that run will
probably add, leave room for it; else it is *held*: it takes no thread, and is given back once there is room. What a
result weighs is known only when it is there, so those that run are reckoned with what results weighed lately.

Guarantees: at most `count` items are between being read and being printed. Their bytes, and those of their results,
exceed `room` by no more than what ran when the room was used up. Nothing waits for ever: the item whose turn it is to
be printed may always begin, and where there are no turns, one may begin when none runs and no result waits.

Assumes: whoever calls `end` or `leave` then asks `give_back`, or has somebody ask.
"""

from __future__ import annotations

import sys
import threading
from heapq import heappop, heappush

COUNT = 1000
ROOM = 64 << 20  # bytes


def weight(text: str | None) -> int:
    return 0 if text is None else sys.getsizeof(text)


class Window:
    """`ordered`: results leave in the order of their indices. W: guarded by `_changed`."""

    def __init__(self, ordered: bool, count: int = COUNT, room: int = ROOM) -> None:
        self.ordered, self.most, self.room = ordered, count, room
        self._changed = threading.Condition(threading.Lock())
        self._count = 0  # W: items
        self._size = 0  # W: bytes of these items, and of the results that wait
        self._results = 0  # W: how many of them wait
        self._running = 0  # W
        self._usual = 0.0  # W: bytes of a result; recent ones count most
        self._turn = 0  # W: the index that is printed next
        self._held: list[tuple[int, str]] = []  # W: a heap: the first is next in turn

    @property
    def running(self) -> int:
        return self._running

    @property
    def held(self) -> int:
        return len(self._held)

    def enter(self, size: int) -> None:
        """An item was read: wait until there is room for it. However large, it may be the only one."""
        with self._changed:
            while self._count and (self._count >= self.most or self._size + size > self.room):
                self._changed.wait()
            self._count += 1
            self._size += size

    def begin(self, index: int, item: str) -> bool:
        """May it run now? If not, it is held."""
        with self._changed:
            may = self._may_begin(index)
            if may:
                self._running += 1
            else:
                heappush(self._held, (index, item))
            return may

    def result(self, size: int, ran: bool = True) -> None:
        """It is there, and waits to be printed."""
        with self._changed:
            self._results += 1
            self._size += size
            if ran:
                self._usual += (size - self._usual) / 8

    def end(self) -> bool:
        """One that began has ended. Is anybody held, who may begin now?"""
        with self._changed:
            self._running -= 1
            return bool(self._held)

    def leave(self, results: int, size: int) -> None:
        """So many were printed; `size`: what was said when they entered, and of their results."""
        with self._changed:
            self._count -= results
            self._results -= results
            self._turn += results
            self._size -= size
            self._changed.notify()

    def give_back(self) -> list[tuple[int, str]]:
        """Those held who may run now; they count as running."""
        given = []
        with self._changed:
            while self._held and self._may_begin(self._held[0][0]):
                given.append(heappop(self._held))
                self._running += 1
        return given

    def _may_begin(self, index: int) -> bool:
        if self._size + (self._running + 1) * self._usual <= self.room:
            return True
        return index == self._turn if self.ordered else not (self._running or self._results)
