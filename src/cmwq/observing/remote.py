"""Giving a monitor to a process that has none: Python 3.14 and later can run a script in another process.

It needs: the same minor version of Python on both sides; the permission to trace the other process (the same user, and
`kernel.yama.ptrace_scope` 0 or a parent; or root, or CAP_SYS_PTRACE); a target that can read the script, and was not
started with PYTHON_DISABLE_REMOTE_DEBUG. The target runs the script in its main thread, between two bytecodes: not
while that thread waits in a system call or for a lock. Only a program that has imported cmwq gets a monitor, and it
keeps it.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress

from cmwq.observing import client

PATIENCE = 5.0
"""Seconds for which the target has time to run the script."""
SCRIPT = """\
import sys
if "cmwq" in sys.modules:
    from cmwq.observing.server import begin_or_log
    begin_or_log("a monitor was asked for from another process")
"""
NEEDS = (
    "it needs the same minor version of Python on both sides, a target of this user that may be traced "
    "(kernel.yama.ptrace_scope, or root) and runs without PYTHON_DISABLE_REMOTE_DEBUG"
)


def give_monitor(pid: int, why: client.NotAnswering) -> None:
    """Have the process call `cmwq.monitor()`. It returns once that is done.

    why: the reason why it cannot be asked as it is. Raises NotAnswering: that reason, where the system or this Python
    offers no way, or a new one. It waits 5 seconds at most.
    """
    run_in: Callable[[int, str], object] | None = getattr(sys, "remote_exec", None)
    if run_in is None or not _is_python(pid):
        raise why
    fd, script = tempfile.mkstemp(prefix="cmwq-monitor-", suffix=".py")
    try:
        with open(fd, "w") as file:
            file.write(SCRIPT)
        with suppress(OSError):  # root may ask a process of another user, which has to read the script
            os.chown(script, os.stat(f"/proc/{pid}").st_uid, -1)
        try:
            run_in(pid, script)
        except (OSError, RuntimeError, ValueError) as error:
            raise client.NotAnswering(f"{why}; and a script could not be run in it ({error}): {NEEDS}") from error
        _await_monitor(pid, why)
    finally:
        os.unlink(script)


def _is_python(pid: int) -> bool:
    """Whether it is a process that may be asked to run a script; any other would only be stopped in vain."""
    try:
        with open(f"/proc/{pid}/maps", "rb") as file:
            return b"python" in file.read()
    except OSError:
        return not os.path.isdir("/proc/self")  # where there is no /proc, the system has to find out


def _await_monitor(pid: int, why: client.NotAnswering) -> None:
    until = time.monotonic() + PATIENCE
    while True:
        try:
            client.connect(pid).close()
            return
        except client.NotAnswering:
            if time.monotonic() > until:
                raise client.NotAnswering(
                    f"{why}; and it did not run the script that it was given: its main thread waits in a system call "
                    "or for a lock, or it has not imported cmwq"
                ) from None
        time.sleep(0.02)
