"""Here: the host on whose thread this is. For what belongs to no runtime, as a `Work` that nobody has queued yet.

Guarantees: on a simulated thread it is the simulation's host, elsewhere the process's; so whatever takes its lock from
here can be used by the threads that made it.
"""

from __future__ import annotations

from threading import local
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cmwq._core.ports import Host

_this_thread = local()
_of_process: list[Host] = []  # once


def host_here() -> Host:
    """That of the calling thread."""
    host: Host | None = getattr(_this_thread, "host", None)
    return _of_process[0] if host is None else host


def be_of(host: Host) -> None:
    """From now on the calling thread is one of that host's. Threads that say nothing are the process's."""
    _this_thread.host = host


def serve_process(host: Host) -> None:
    """From now on it is the host of all threads that say nothing."""
    _of_process[:] = [host]
