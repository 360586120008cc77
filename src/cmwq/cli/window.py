"""How far `cmwq map` and `cmwq exec` may run ahead of what they have printed: so many items, so many bytes.

An item is read only when a worker could begin it, and only if there is room for it beside the results that wait to be
printed and those that the running items will probably add. Otherwise the input is left alone until there is room. The
size of a result is known only when it is there; until then it is estimated by the sizes of recent results.

Guarantees: at most `count` items are between being read and being printed. Their bytes, and those of their results,
exceed `room` by no more than one item and what ran when the room was used up. Nothing waits for ever: whatever was read
has begun, so it ends and is printed in its turn; and if none is left, one more is read, however large.

Assumes that each caller of `end` or `leave` then calls `room_again`, and sees to it that reading goes on.
"""

from __future__ import annotations

import sys
import threading

COUNT = 1000
ROOM = 64 << 20  # bytes


def weight(text: str | None) -> int:
    return 0 if text is None else sys.getsizeof(text)


class Window:
    """The items that were read and not yet printed, and their bytes. Thread-safe. W: guarded by `_lock`."""

    def __init__(self, count: int = COUNT, room: int = ROOM) -> None:
        self.most, self.room = count, room
        self._lock = threading.Lock()
        self._count = 0  # W: items
        self._size = 0  # W: bytes of these items, and of their results that wait
        self._running = 0  # W
        self._usual = 0.0  # W: usual bytes of a result; recent ones count most
        self._refused = False  # W: room was asked for, and there was none

    @property
    def running(self) -> int:
        return self._running

    @property
    def refused(self) -> bool:
        return self._refused

    @property
    def crowded(self) -> bool:
        """Whether half of the room is taken, so that results had better wait elsewhere."""
        return self._size > self.room // 2

    def has_room(self) -> bool:
        """Whether one more item may be read. If not, `room_again` says when."""
        with self._lock:
            self._refused = not self._has_room()
            return not self._refused

    def room_again(self) -> bool:
        """True, once, when there was no room and now there is."""
        with self._lock:
            again = self._refused and self._has_room()
            if again:
                self._refused = False
            return again

    def enter(self, size: int) -> None:
        """Note that an item of so many bytes was read, and runs."""
        with self._lock:
            self._count += 1
            self._size += size
            self._running += 1

    def result(self, size: int, ran: bool = True) -> None:
        """Add a result that waits to be printed. ran: it counts for the estimate of the usual size."""
        with self._lock:
            self._size += size
            if ran:
                self._usual += (size - self._usual) / 8

    def end(self) -> None:
        """Note that an item that ran has ended."""
        with self._lock:
            self._running -= 1

    def leave(self, results: int, size: int) -> None:
        """Note that so many items were printed. size: the bytes given to `enter` and `result` for them."""
        with self._lock:
            self._count -= results
            self._size -= size

    def _has_room(self) -> bool:
        """Context: W held."""
        if not self._count:
            return True
        return self._count < self.most and self._size + (self._running + 1) * self._usual < self.room
