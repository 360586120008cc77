"""Which process groups have members that live, beside a leader that has ended and isn't reaped.

The kernel doesn't tell: to it a zombie is a member, so that a signal to the group always finds somebody. `/proc` tells,
at the price of a look at all processes.

Guarantees: one look serves all threads that ask meanwhile, and at most about a tenth of the time is spent on looks.
Assumes nothing: where there is no `/proc`, or it hides processes, nobody is seen. What begins or forks during a look
may be missed, so who must be sure of a group sends it SIGKILL before its leader is reaped.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time

OFTEN = 0.05  # seconds from one look to the next, at least
_COST = 10  # times as long as a look took
_DEAD = b"ZXx"


class Groups:
    """Thread-safe; G: guarded by `_lock`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._living: frozenset[int] = frozenset()  # G
        self._begun = -1.0  # G: when the last look began
        self.interval = OFTEN  # seconds after which it pays to ask again

    def lives(self, group: int, since: float) -> bool:
        """Whether a living member was seen. since: by a look that began then or later, on the monotonic clock."""
        with self._lock:
            begun = time.monotonic()
            if self._begun < min(since, begun):
                self._living = living()
                self._begun = begun
                self.interval = max(OFTEN, _COST * (time.monotonic() - begun))
            return group in self._living


def living() -> frozenset[int]:
    """The groups of all processes that live, as far as they can be seen."""
    groups = set()
    with contextlib.suppress(OSError):
        for name in os.listdir("/proc"):
            if name.isdigit():
                with contextlib.suppress(OSError, ValueError, IndexError):
                    groups.add(_group_of(name))
    groups.discard(0)
    return frozenset(groups)


def _group_of(name: str) -> int:
    """0 if the process has ended. Raises OSError if it is gone."""
    fd = os.open(f"/proc/{name}/stat", os.O_RDONLY | os.O_CLOEXEC)
    try:
        # After the program's name, which may hold anything: state, parent, group.
        state, _, group = os.read(fd, 1024).rpartition(b")")[2].split(maxsplit=3)[:3]
    finally:
        os.close(fd)
    return 0 if state in _DEAD else int(group)
