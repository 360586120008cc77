"""An event, as `threading.Event`, that nothing can leave in a bad state.

A `threading.Event` has a lock, which `wait` and `set` hold for moments. If an exception, as Ctrl-C, comes in such a
moment, the lock stays held, and whoever sets the event then hangs; so does a signal handler that sets the event for
which the interrupted code is about to wait.

Guarantees: `set` never blocks. A thread that waits returns once the event is set, whatever other threads, or calls that
this one interrupts, were doing; nothing that is interrupted keeps others.

Why no wake-up is lost: `set` sets the flag, then looks who sleeps. Who waits enters its lock there, then looks at the
flag once more. So one of the two sees the other.
"""

from __future__ import annotations

from contextlib import suppress
from threading import Lock
from typing import Any

from cmwq._core import asleep


class Told:
    """Thread-safe."""

    __slots__ = ("_flag", "sleepers")

    def __init__(self) -> None:
        self._flag = False  # A
        self.sleepers: list[Any] = []  # A: the lock on which each thread sleeps that waits

    def is_set(self) -> bool:
        return self._flag

    def set(self) -> None:
        """Set it, and wake who waits. Does not block; may be repeated."""
        self._flag = True
        for bed in self.sleepers.copy():
            try:
                bed.release()
            except RuntimeError as exc:  # it was woken before
                if asleep.is_a_handlers(exc):
                    raise

    def clear(self) -> None:
        self._flag = False

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is set, for at most so many seconds. Returns whether it was."""
        if self._flag:
            return True
        bed = Lock()
        bed.acquire()
        self.sleepers.append(bed)
        try:
            return self._flag or asleep.acquire(bed, -1 if timeout is None else max(0.0, timeout))
        finally:
            with suppress(ValueError):
                self.sleepers.remove(bed)
