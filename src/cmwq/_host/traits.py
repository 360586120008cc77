"""The attributes of its thread that a work may change and leave changed (B4): affinity, nice value, signal mask."""

from __future__ import annotations

import os
from collections.abc import Iterable, Set

from cmwq._core.ports import Traits

try:
    # Not from `signal`, which makes enumerations of the numbers; that takes longer than the system call.
    from _signal import SIG_BLOCK, SIG_SETMASK, pthread_sigmask  # type: ignore[import-not-found]
except ImportError:  # no POSIX
    pthread_sigmask = None

_cpus_of = getattr(os, "sched_getaffinity", None)
_nice_of = getattr(os, "getpriority", None)


def look() -> Traits:
    """Read the attributes of the calling thread. What can't be read is None. Costs a microsecond."""
    cpus: Set[int] | None = None
    nice: int | None = None
    try:
        cpus = None if _cpus_of is None else _cpus_of(0)
        nice = None if _nice_of is None else _nice_of(os.PRIO_PROCESS, 0)  # on Linux the thread's
    except OSError:
        pass
    return Traits(cpus, nice, None if pthread_sigmask is None else pthread_sigmask(SIG_BLOCK, ()))


def set_mask(mask: Iterable[int]) -> None:
    if pthread_sigmask is not None:
        pthread_sigmask(SIG_SETMASK, mask)
