"""What cmwq promises on every system: here as it is, and, on Linux, with what macOS and Windows lack taken away.

On macOS and Windows themselves these tests and those of the simulator are the ones that are run (.github/workflows).
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

AS_ON = """
    import asyncio, builtins, concurrent.futures, email, json, logging, multiprocessing, os, signal, socket, subprocess
    import sys, sysconfig, tempfile, threading, time, traceback, _signal
    sysconfig.get_config_vars()  # from a file that is named after the system

    def take_away(module, *names):
        for name in names:
            if hasattr(module, name):
                delattr(module, name)

    def without_system(opened):
        def open(path, *args, **kwargs):
            if str(path).startswith(("/proc", "/sys")):
                raise FileNotFoundError(2, "no such file here", str(path))
            return opened(path, *args, **kwargs)
        return open

    sys.platform = SYSTEM
    sys.modules["cmwq._sensor._sentinel"] = None  # it can't be imported
    os.open, builtins.open = without_system(os.open), without_system(builtins.open)
    os.listdir, os.stat = without_system(os.listdir), without_system(os.stat)
    take_away(os, *(name for name in dir(os) if name.startswith(("sched_", "SCHED_"))))
    take_away(time, "pthread_getcpuclockid")
    if SYSTEM == "win32":
        take_away(os, "fork", "register_at_fork", "waitid", "P_ALL", "WEXITED", "WNOHANG", "WNOWAIT", "getpriority")
        take_away(os, "setpriority", "PRIO_PROCESS", "geteuid", "getuid", "O_CLOEXEC", "O_NOFOLLOW", "O_DIRECTORY")
        take_away(time, "clock_gettime", "CLOCK_MONOTONIC")
        for module in (signal, _signal):
            take_away(module, "pthread_sigmask", "SIGHUP", "SIGKILL", "SIGSTOP", "SIGUSR1")
        for name in ("fcntl", "resource", "pwd", "grp", "termios"):
            sys.modules[name] = None
"""
USE = """
    import threading
    import cmwq, cmwq.aio, cmwq.events, cmwq.testing

    assert cmwq.system.submit(pow, 2, 10).result(60) == 1024
    with cmwq.Executor() as pool:
        assert list(pool.map(abs, range(-50, 0), timeout=60)) == list(range(50, 0, -1))

    def waits(gate, told):
        if told:
            with cmwq.blocking():
                assert gate.wait(60)
        else:
            assert gate.wait(60)

    # However many wait, the one that they wait for runs: at once where works say that they wait, else a little later.
    for told in (True, False):
        gate = threading.Event()
        waiters = [cmwq.system.submit(waits, gate, told) for _ in range(8)]
        cmwq.system.submit(gate.set)
        for waiter in waiters:
            waiter.result(60)

    ran = []
    with cmwq.WorkQueue("in order", ordered=True) as queue:
        work, later = cmwq.Work(ran.append, "work"), cmwq.DelayedWork(ran.append, "later")
        assert queue.queue(work)
        queue.flush(60)
        assert queue.queue_delayed(later, 0.001)
        while later.pending:
            later.flush(60)
        queue.flush(60)
        assert queue.queue_delayed(later, 3600) and later.cancel_sync(60)
    assert ran == ["work", "later"], ran

    async def asked():
        return await cmwq.aio.run(cmwq.system, sum, [1, 2, 3])
    import asyncio
    assert asyncio.run(asked()) == 6

    seen = cmwq.snapshot(stacks=True)
    assert seen.cpu_limit >= 1 and seen.pools
    cmwq.default_runtime().check_invariants()
"""
NO_SENSOR_OF_LINUX = """
    assert seen.sensor == "hints", seen.sensor
    assert SYSTEM in seen.sensor_reason, seen.sensor_reason
"""
DONE = """
    print("done")
"""


def succeeded(done: subprocess.CompletedProcess[str], printed: str = "done\n") -> None:
    assert (done.returncode, done.stdout, done.stderr) == (0, printed, "")


def test_all_of_it_here(python: Callable[..., Any]) -> None:
    succeeded(python(USE, DONE))


on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux has what is taken away here")
elsewhere = pytest.mark.parametrize("system", ["darwin", "win32"])


@on_linux
@elsewhere
def test_all_of_it_without_what_other_systems_lack(python: Callable[..., Any], system: str) -> None:
    succeeded(python(f"SYSTEM = {system!r}\n", AS_ON, USE, NO_SENSOR_OF_LINUX, DONE))


@on_linux
@elsewhere
def test_the_doctor_says_what_is_missing(python: Callable[..., Any], system: str) -> None:
    done = python(f"SYSTEM = {system!r}\n", AS_ON, "from cmwq.cli import main\nmain(['doctor'])\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert "hints" in done.stdout
    assert f"no Linux /proc on {system}" in done.stdout


@on_linux
def test_what_needs_POSIX_says_so(python: Callable[..., Any]) -> None:
    """In one line each, and not by a traceback: commands, and the monitor."""
    program = """
    import cmwq
    from cmwq.cli import main
    try:
        cmwq.monitor()
    except OSError as error:
        assert "Unix socket" in str(error), error
    else:
        raise AssertionError("there is a monitor")
    os.name = "nt"
    assert main(["map", "builtins:int"]) == 2
    """
    done = python("SYSTEM = 'win32'\n", AS_ON, program, DONE)
    assert (done.returncode, done.stdout) == (0, "done\n")
    assert done.stderr.count("\n") == 1
    assert "needs a POSIX system" in done.stderr
