"""What commands print, kept until it is their turn: in memory, and in one file without a name where it is much.

Guarantees: a stream keeps at most `SLOT` bytes in memory, and what `read` brought at once. All streams of a run share
one file. It has no name, so it is gone when the process is, however that ends; and it never becomes larger than what
waits at one time, because the room of what was printed is used again.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Iterator

from cmwq.cli.output import one_line

SLOT = 1 << 16  # bytes
PAUSE = 0.1  # seconds until a descriptor that could not be had is asked for again
TRIES = 50


class SpillError(Exception):
    """The file cannot be written or read. The text says why."""


class Spill:
    """A file of slots. Thread-safe; S: guarded by `_lock`. The methods raise SpillError."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._fd: int | None = None  # S: until it is needed there is none
        self._free: list[int] = []  # S: slots below `_nr_slots` that are not in use
        self._nr_slots = 0  # S

    def put(self, data: bytes | memoryview) -> int:
        """Write at most `SLOT` bytes; the slot where they are."""
        with self._lock:
            fd = self._fd
            if fd is None:
                fd = self._fd = _nameless()
            if self._free:
                slot = self._free.pop()
            else:
                slot = self._nr_slots
                self._nr_slots += 1
        offset, left = slot * SLOT, memoryview(data)
        try:
            while left:
                written = os.pwrite(fd, left, offset)
                offset += written
                left = left[written:]
        except OSError as error:
            raise SpillError(_why(error)) from error
        return slot

    def get(self, slot: int, size: int) -> bytes:
        assert self._fd is not None
        try:
            data = os.pread(self._fd, size, slot * SLOT)
        except OSError as error:
            raise SpillError(_why(error)) from error
        if len(data) != size:
            raise SpillError("the file with the output that waits was cut short")
        return data

    def free(self, slots: list[int]) -> None:
        with self._lock:
            self._free += slots

    @property
    def nr_slots(self) -> int:
        """The size of the file, in slots."""
        return self._nr_slots

    def close(self) -> None:
        with self._lock:
            fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)


class Stream:
    """What one command wrote to its stdout or stderr. One thread at a time."""

    __slots__ = ("_last", "_last_size", "_pieces", "_slots", "_spill", "held")

    def __init__(self, spill: Spill) -> None:
        self._spill = spill
        self._slots: list[int] = []  # each full
        self._pieces: list[bytes] = []  # what comes after them
        self.held = 0  # bytes of these pieces
        self._last = self._last_size = 0  # once it is packed: the slot of its end, and the bytes there

    @property
    def size(self) -> int:
        return len(self._slots) * SLOT + self._last_size + self.held

    def add(self, data: bytes) -> None:
        """Raises SpillError."""
        self._pieces.append(data)
        self.held += len(data)
        if self.held > SLOT:
            rest = memoryview(b"".join(self._pieces))
            while len(rest) > SLOT:
                self._slots.append(self._spill.put(rest[:SLOT]))
                rest = rest[SLOT:]
            self._pieces = [bytes(rest)]
            self.held = len(rest)

    def pack(self) -> None:
        """It has ended: keep nothing of it in memory. Raises SpillError."""
        if self.held:
            self._last, self._last_size = self._spill.put(b"".join(self._pieces)), self.held
            self._pieces, self.held = [], 0

    def blocks(self) -> Iterator[bytes]:
        """All of it, in order. It stays. Raises SpillError."""
        for slot in self._slots:
            yield self._spill.get(slot, SLOT)
        if self._last_size:
            yield self._spill.get(self._last, self._last_size)
        elif self.held:
            yield b"".join(self._pieces)

    def drop(self) -> None:
        """Forget it, and give back its room."""
        if self._last_size:
            self._slots.append(self._last)
            self._last_size = 0
        if self._slots:
            self._spill.free(self._slots)
            self._slots = []
        self._pieces, self.held = [], 0


def _nameless() -> int:
    """A file that no folder lists.

    Commands leave the process some descriptors (`spawn.RESERVED`). That the whole system has none is waited out, for a
    while: what holds them may wait for this.
    """
    for left in reversed(range(TRIES)):
        try:
            import tempfile  # takes a while, and a descriptor, and is rarely needed

            with tempfile.TemporaryFile(buffering=0) as file:
                return os.dup(file.fileno())
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE) or not left:
                raise SpillError(_why(error)) from error
            time.sleep(PAUSE)
    raise AssertionError


def _why(error: OSError) -> str:
    try:
        import tempfile

        folder = tempfile.gettempdir()
    except OSError:
        folder = "any folder for temporary files"
    what = error.strerror or str(error)
    return f"output that waits is kept in {folder}: {one_line(what)} (TMPDIR chooses another folder)"
