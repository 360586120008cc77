"""How many threads may be created (B6): RLIMIT_NPROC, the cgroup's pids.max, the kernel's threads-max.

Near a cap a pool goes on with the workers it has. The caps are checked before a thread is created, because at some of
them all other threads of the process are refused too: cmwq should not take the last thread of a cgroup. So `SPARE`
threads are left to others, except by a pool's first worker and its reserve, without which no work would be executed.
All functions are thread-safe and read the system anew with each call.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass

from cmwq._host import files
from cmwq._host.topology import cgroup_folders

try:
    import resource
except ImportError:
    resource = None  # type: ignore[assignment]

SPARE = 4
"""How many threads are left to the rest of the process when the thread to be created is not essential."""


@dataclass(frozen=True, slots=True)
class Cap:
    """A limit on the number of threads, and how many count against it now. None: no limit, or not known."""

    name: str
    limit: int | None
    used: int | None
    source: str


def thread_caps() -> list[Cap]:
    """Every cap that applies to this process, in no particular order."""
    caps = [_nproc(), _threads_max()]
    for folder in cgroup_folders("pids"):
        limit = files.number(f"{folder}/pids.max")
        if limit is not None:
            source = os.fsencode(folder).decode("utf-8", "replace")  # for display
            caps.append(Cap("pids.max", limit, files.number(f"{folder}/pids.current"), source))
    return caps


def headroom() -> int:
    """How many more threads may be created before the tightest cap is reached; 2**30 if there is none."""
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
    # Root is exempt from this limit. Threads of the user's other processes count against it too, but are not known
    # here; then the system's refusal shows.
    return Cap("RLIMIT_NPROC", None if soft < 0 or os.geteuid() == 0 else soft, _own_threads(), source)


def _threads_max() -> Cap:
    path = "/proc/sys/kernel/threads-max"
    used = None
    with contextlib.suppress(OSError, ValueError, IndexError):
        # "0.00 0.01 0.05 2/345 678": runnable / all threads of the machine
        used = int(files.read("/proc/loadavg").split()[3].split(b"/")[1])
    return Cap("threads-max", files.number(path), used, path)


def _own_threads() -> int | None:
    try:
        # Bytes, because the process's name, which it contains, may be any.
        return int(files.read("/proc/self/stat").rpartition(b")")[2].split()[17])
    except (OSError, ValueError, IndexError):
        return None
