"""Here: the host of the calling thread. It is for what belongs to no runtime, such as a `Work` that was never queued.

Guarantees: on a simulated thread this is the simulation's host, elsewhere the process's. So whatever takes its lock
from here can be used by the threads that made it.
"""

from __future__ import annotations

from threading import local
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cmwq._core.ports import Host

_this_thread = local()
_of_process: list[Host] = []  # has one element once `serve_process` was called


def host_here() -> Host:
    """The host of the calling thread."""
    host: Host | None = getattr(_this_thread, "host", None)
    return _of_process[0] if host is None else host


def be_of(host: Host) -> None:
    """From now on the calling thread is one of that host's. Threads that do not call this are the process's."""
    _this_thread.host = host


def serve_process(host: Host) -> None:
    """From now on this is the host of all threads that have not called `be_of`."""
    _of_process[:] = [host]
