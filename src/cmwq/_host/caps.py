"""How many threads may be had (B6): RLIMIT_NPROC, the cgroup's pids.max, the kernel's threads-max.

Near a cap the pool goes on with what it has. Asked before a thread is created, because some of these limits fail the
whole process's other threads too: the last thread of a cgroup should not be ours. Unless nothing would go on without
it: what `SPARE` leaves to others is not left by a pool's first worker and its reserve.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from cmwq._host.topology import cgroup_folders

try:
    import resource
except ImportError:
    resource = None  # type: ignore[assignment]

SPARE = 4
"""Threads left to the rest of the process, by whoever can do without one."""


@dataclass(frozen=True, slots=True)
class Cap:
    """A limit on threads; None: no limit, or not known. `used` counts against the same limit."""

    name: str
    limit: int | None
    used: int | None
    source: str


def thread_caps() -> list[Cap]:
    """Every cap that this machine has, in no order."""
    caps = [_nproc(), _threads_max()]
    for folder in cgroup_folders("pids"):
        limit = _number(folder / "pids.max")
        if limit is not None:
            source = os.fsencode(folder).decode("utf-8", "replace")  # to be shown
            caps.append(Cap("pids.max", limit, _number(folder / "pids.current"), source))
    return caps


def headroom() -> int:
    """How many more threads may be created before the tightest cap is reached."""
    rooms = [cap.limit - (cap.used or 0) for cap in thread_caps() if cap.limit is not None]
    return min(rooms, default=1 << 30)


def _nproc() -> Cap:
    source = "getrlimit(RLIMIT_NPROC)"
    if resource is None:
        return Cap("RLIMIT_NPROC", None, None, source)
    try:
        soft, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    except (OSError, ValueError):
        return Cap("RLIMIT_NPROC", None, None, source)
    # Root is exempt from this limit, and others' threads count against it: unknown use is best left to the refusal
    # itself.
    return Cap("RLIMIT_NPROC", None if soft < 0 or os.geteuid() == 0 else soft, _own_threads(), source)


def _threads_max() -> Cap:
    path = Path("/proc/sys/kernel/threads-max")
    used = None
    with contextlib.suppress(OSError, ValueError, IndexError):
        # "0.00 0.01 0.05 2/345 678": runnable / all threads of the machine
        used = int(Path("/proc/loadavg").read_text().split()[3].split("/")[1])
    return Cap("threads-max", _number(path), used, str(path))


def _own_threads() -> int | None:
    try:
        # Bytes: the process's name, which is in it, may be anything.
        return int(Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()[17])
    except (OSError, ValueError, IndexError):
        return None


def _number(path: Path) -> int | None:
    """None for "max" and for files that aren't there."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
