"""The processes below a thread: those that it started, and theirs (A10). Linux alone tells; elsewhere there are none.

All of it is read without privileges, and without touching `subprocess`: `/proc/self/task/TID/children` names the
children that one thread has started, `/proc/PID/stat` tells whether a process is runnable, and each process has a CPU
clock that all may read.

What can't be seen: a process whose parent has ended belongs to somebody else (a double fork, a daemon), and so does one
that a server starts on request (the forkserver of multiprocessing, a container's runtime). A kernel without
CONFIG_PROC_CHILDREN tells nothing: see `why_not`.

All functions are thread-safe and read the system anew with each call. `has_children` and `children_of` are called by
workers that were woken. The C versions keep the GIL, because to release it can cost a switch interval.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator

from cmwq._core.ports import Process
from cmwq._host import files

try:
    from cmwq._sensor import _sentinel
except ImportError:  # no compiler was there
    _sentinel = None  # type: ignore[assignment]

MOST = 64
"""How many processes, and how many threads of each, one look visits."""


def why_not() -> str | None:
    """Why the processes below a thread can't be seen here; None: they can."""
    if not sys.platform.startswith("linux"):
        return f"no Linux /proc on {sys.platform}"
    try:
        with open(f"/proc/self/task/{threading.get_native_id()}/children", "rb"):
            return None
    except OSError as error:
        return f"/proc/self/task/TID/children can't be read: {error.strerror}"


def _has_children() -> bool:
    """Whether this process has any child that it has not waited for yet."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except (OSError, AttributeError):  # AttributeError: no such call here
        return False
    return True


def _children_of(tid: int, pid: int = 0) -> tuple[int, ...]:
    """The children that a thread has started: of this process, or of the process `pid`; none, if it can't be read."""
    try:
        fd = os.open(f"/proc/{pid or 'self'}/task/{tid}/children", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ()
    try:
        whole = os.read(fd, 16 * MOST).rpartition(b" ")[0]  # each number ends with a space; the last one may be cut
        return tuple(map(int, whole.split()[:MOST]))
    except OSError:  # the thread has ended
        return ()
    finally:
        os.close(fd)


has_children = _has_children if _sentinel is None else _sentinel.has_children
children_of = _children_of if _sentinel is None else _sentinel.children_of


def below(roots: tuple[int, ...]) -> Iterator[Process]:
    """These processes and those below them, `MOST` at most."""
    todo, left = list(roots), MOST
    while todo and left:
        pid, left = todo.pop(), left - 1
        try:
            stat = files.read(f"/proc/{pid}/stat")
            fields = stat.rpartition(b")")[2].split()  # its name, in parentheses, may hold anything
            process = Process(pid, time.clock_gettime(_clock_of(pid)), fields[0] == b"R")
            threads = [str(pid)] if fields[17] == b"1" else os.listdir(f"/proc/{pid}/task")[:MOST]
        except (OSError, IndexError):
            continue  # it has ended, or is hidden
        yield process
        for tid in threads:
            todo.extend(children_of(int(tid), pid))


def _clock_of(pid: int) -> int:
    """The CPU clock of a process, as clock_getcpuclockid(3) makes it: the number's complement, and 2: what the
    scheduler counts.
    """
    return ~pid << 3 | 2
