"""The tests themselves: whatever they do to the machine is undone, even if they are killed."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

from conftest import HANG, state_of

from .machine import cpu_file, spare_cpu, wait_until

PROGRAM = """
    import json, signal, sys
    from faults.machine import Machine
    machine = Machine()
    program = machine.start("Load")
    folders = []
    for controller in ("pids", "cpu", "freezer"):
        try:
            group = machine.cgroup(controller, program)
        except BaseException:  # it skips: this machine has no such controller
            continue
        folders.append(str(group.folder))
        if controller == "freezer":
            group["freezer.state"] = "FROZEN"
    machine.switch(int(sys.argv[1]), online=False)
    print(json.dumps([machine.guard.pid, program.pid, folders]), flush=True)
    signal.pause()
"""


def is_alive(pid: int) -> bool:
    """Nor a zombie: nobody may be there to hear of its end."""
    try:
        return state_of(pid) not in "ZX"
    except OSError:
        return False


def test_whatever_was_done_is_undone_when_the_test_is_killed() -> None:
    spare = spare_cpu()
    tests = str(Path(__file__).parent.parent)
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(spare)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": tests}
    ) as process:
        try:
            assert process.stdout is not None
            guard, program, folders = json.loads(process.stdout.readline())
            assert cpu_file(spare).read_text() == "0\n"
            assert folders
            assert all(Path(folder).is_dir() for folder in folders)
            descriptor = os.pidfd_open(guard)
        finally:
            process.send_signal(signal.SIGKILL)
    assert select.select([descriptor], [], [], HANG)[0], "the guard doesn't end"
    os.close(descriptor)
    assert cpu_file(spare).read_text() == "1\n"
    assert not any(Path(folder).exists() for folder in folders)
    wait_until(lambda: is_alive(program) and "the program still runs")
