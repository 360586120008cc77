"""That a child process has ended: seen and waited for without reaping it, so that its number stays its own.

What not every Python has is looked for here, and at one place in `spawn`: without `os.pidfd_open` (Pythons that were
built for an old kernel, as uv's are) a wait with a limit looks again and again; without `os.waitid` (macOS before
Python 3.13) nobody can look without reaping, so the command is refused.
"""

from __future__ import annotations

import os
import select
import time

from cmwq.cli.output import Refusal

PAUSE = 0.1  # seconds until a process that can't be waited for is looked at again
LONGEST_POLL = 1e6  # seconds: the kernel's limit is near 2 million, and who waits looks again anyway


def check() -> None:
    """Raises Refusal where the end of a process can't be seen."""
    if not hasattr(os, "waitid"):
        raise Refusal("commands need os.waitid, which this Python lacks (on macOS, 3.13 is the first to have it)")


def looked_at(pid: int) -> bool:
    """Whether a child has ended. Raises ChildProcessError if something else in this process reaped it."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def has_exited(pid: int) -> bool:
    """The same; what was reaped has."""
    try:
        return looked_at(pid)
    except ChildProcessError:
        return True


def await_exit(pid: int, seconds: float | None) -> None:
    """Wait for the end of a process for so long, or less; None: to its end. It is not reaped.

    Raises ChildProcessError, if something else reaped it and no limit is given.
    """
    if seconds is None:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        return
    try:
        fd = os.pidfd_open(pid)
    except (AttributeError, OSError):  # an old Python or kernel, or no descriptor to be had
        time.sleep(max(0.0, min(seconds, PAUSE)))
        return
    try:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        poll.poll(milliseconds(max(0.0, seconds)))
    finally:
        os.close(fd)


def reaped(pid: int) -> tuple[int | None, int | None] | None:
    """Its status, or the signal that ended it, and its number is free from now on; None if it has not ended."""
    result = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)
    if result is None:
        return None
    return (result.si_status, None) if result.si_code == os.CLD_EXITED else (None, result.si_status)


def milliseconds(seconds: float | None) -> float | None:
    """For `poll`; less, if that is more than the kernel can count."""
    return None if seconds is None else min(seconds, LONGEST_POLL) * 1000 + 1
