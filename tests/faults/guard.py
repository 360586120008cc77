"""Puts the machine back as it was, however a test ends: when its input closes, undoes what it was told, last first.

Started by `machine.Machine`, in a session of its own, before anything is done to the machine. Each line is a step to be
undone, and is acknowledged: only then is the step taken. What could not be undone is printed.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable

PATIENCE = 20.0  # seconds for each step: processes need a moment to die


def kill(pid: int) -> Callable[[], None]:
    """By descriptor: the number may be another process's by then."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return lambda: None

    def undo() -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)

    return undo


def write(path: str, text: str) -> Callable[[], None]:
    def undo() -> None:
        with open(path, "w") as file:
            file.write(text)

    return undo


def cgroup(folder: str) -> Callable[[], None]:
    """Thaw it, move its processes to where they came from, remove it."""

    def undo() -> None:
        if not os.path.isdir(folder):
            return
        if os.path.exists(f"{folder}/freezer.state"):
            write(f"{folder}/freezer.state", "THAWED")()
        with open(f"{folder}/cgroup.procs") as file:
            for pid in file.read().split():
                with contextlib.suppress(ProcessLookupError):
                    write(f"{os.path.dirname(folder)}/cgroup.procs", pid)()
        os.rmdir(folder)

    return undo


STEPS = {"kill": kill, "write": write, "cgroup": cgroup}


def say(text: str) -> None:
    with contextlib.suppress(OSError):  # the test may be dead
        print(text, flush=True)


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    undo = []
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        undo.append((line, STEPS[name](*arguments)))
        say("noted")
    for line, step in reversed(undo):
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                step()
                break
            except OSError as exc:
                if time.monotonic() > deadline:
                    say(f"not undone: {line.strip()}: {exc}")
                    break
                time.sleep(0.01)


if __name__ == "__main__":
    main()
