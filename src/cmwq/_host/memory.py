"""How much memory the process may still use (A11): its cgroup's limits (v2 and v1), and what the machine has left.

A cgroup counts the page cache, too. That is given back as soon as it is needed, so it does not count here
(`inactive_file`, `active_file`), nor in the kernel's MemAvailable. The tightest of all limits decides: those of the
process's own cgroup and those above it, `memory.high` as well as `memory.max`, and the machine. Swap does not count.

What limits there are is found out at most once a second, because that takes longest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple

from cmwq._core.ports import Memory
from cmwq._host import files
from cmwq._host.topology import cgroup_folders

_MEMINFO = "/proc/meminfo"
_HUGE = 1 << 60
"""Bytes: a limit above this is none; v1 says so by a number near 2^63."""
_TTL = 1.0
"""Seconds after which limits are looked for again."""
_AMPLE = 0.5
"""With so large a share of the limit left it does not matter how much of the rest is cache."""
_SCARCE = 1 << 30
"""Bytes: with less than this left, and less than a quarter, the C library is asked to give back what is free."""
_TRIM = 0.1
"""Seconds between two times that it is."""


class Limit(NamedTuple):
    """The memory limit of a cgroup: its folder, the names of its files, and bytes."""

    folder: str
    used: str
    cache: tuple[str, ...]
    """The names of the fields of `memory.stat` that are page cache."""
    bytes: int

    def look(self) -> Memory | None:
        """What counts against it now. None: it can't be read."""
        used = files.number(f"{self.folder}/{self.used}")
        if used is None:
            return None
        if self.bytes - used < _AMPLE * self.bytes:
            cache = sum(size or 0 for size in _fields(f"{self.folder}/memory.stat", *self.cache))
            used = max(0, used - cache)
        return Memory(used, self.bytes, self.folder)


class Meter:
    """Reads how much memory is left. Thread-safe: two threads that find the limits out of date both look for them."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock  # I
        self._known: tuple[float, tuple[Limit, ...]] = 0.0, ()  # A: until when that holds
        self._trim = _malloc_trim()  # I
        self._trim_at = 0.0  # A

    def __call__(self) -> Memory | None:
        """The limit of which the least is left, and what counts against it. None: not known here."""
        until, limits = self._known
        now = self._clock()
        if now >= until:
            limits = tuple(_limits())
            self._known = now + _TTL, limits
        seen = _tightest(limits)
        if self._trim is None or seen is None or now < self._trim_at or _left(seen) > min(_SCARCE, seen.limit / 4):
            return seen
        self._trim_at = now + _TRIM
        self._trim(0)
        return _tightest(limits)


def _tightest(limits: tuple[Limit, ...]) -> Memory | None:
    seen = [limit.look() for limit in limits]
    return min((each for each in (*seen, _machine()) if each is not None), key=_left, default=None)


@cache  # for the process: without a GIL the classes that ctypes makes for it are kept for ever
def _malloc_trim() -> Callable[[int], object] | None:
    """glibc's function that gives free memory back to the system; None: there is none.

    glibc keeps what is freed, up to 64 MiB in one piece for each thread, so without this it would look used.
    """
    try:
        import ctypes

        trim: Callable[[int], object] = ctypes.CDLL(None).malloc_trim
    except (ImportError, OSError, AttributeError, TypeError):  # TypeError: Windows has no CDLL(None)
        return None
    return trim


def _left(memory: Memory) -> int:
    return memory.limit - memory.used


def _limits() -> Iterator[Limit]:
    """Those of the process's cgroup, v2 or v1, and of all above it."""
    for folder in cgroup_folders("memory"):
        limits = [files.number(f"{folder}/{name}") for name in ("memory.max", "memory.high", "memory.limit_in_bytes")]
        limit = min((each for each in limits if each is not None and each < _HUGE), default=None)
        if limit is None:
            continue
        if limits[2] is None:
            yield Limit(folder, "memory.current", ("inactive_file", "active_file"), limit)
        else:
            yield Limit(folder, "memory.usage_in_bytes", ("total_inactive_file", "total_active_file"), limit)


def _machine() -> Memory | None:
    total, available = _fields(_MEMINFO, "MemTotal:", "MemAvailable:")
    if total is None or available is None:
        return None
    return Memory((total - available) * 1024, total * 1024, "the machine")


def _fields(file: str, *names: str) -> list[int | None]:
    """The numbers behind these names, each at the beginning of a line; None for one that can't be read."""
    try:
        text = b"\n" + files.read(file)
    except OSError:
        return [None] * len(names)
    behind = [text.partition(b"\n%b " % name.encode())[2].split(None, 1) for name in names]
    return [int(words[0]) if words and words[0].isdigit() else None for words in behind]
