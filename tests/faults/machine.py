"""What tests do to the machine: cgroups (v1), CPUs taken offline, programs that suffer it. `guard.py` undoes all of it.

What a machine doesn't allow is skipped, with the reason. Only one test at a time, of all on this machine, has it.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import HANG, stop

from cmwq._host import files, topology

HERE = Path(__file__).parent


class Machine:
    """Close it, whatever happens. If that can't be done the guard sees it."""

    def __init__(self) -> None:
        if not sys.platform.startswith("linux"):
            pytest.skip("needs Linux")
        self._programs: list[Program] = []
        self._noted: set[str] = set()
        with _reserve() as reserved:
            self.guard = subprocess.Popen(
                [sys.executable, "-I", "-S", HERE / "guard.py"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
                pass_fds=[reserved.fileno()],  # until it has undone everything
            )

    def close(self) -> None:
        left = self.guard.communicate(timeout=HANG)[0]
        for program in self._programs:
            program.end()
        assert not left, left

    def _note(self, *step: str | int) -> None:
        """To be undone."""
        line = json.dumps(step)
        if line not in self._noted:
            assert self.guard.stdin is not None
            assert self.guard.stdout is not None
            self.guard.stdin.write(line + "\n")
            self.guard.stdin.flush()
            assert self.guard.stdout.readline() == "noted\n"
            self._noted.add(line)

    def start(self, name: str, **options: Any) -> Program:
        """A program of `programs.py`."""
        program = Program(name, options)
        self._programs.append(program)
        self._note("kill", program.pid)
        assert program.hear() == "ready"
        return program

    def cgroup(self, controller: str, *programs: Program, suffix: bytes = b"") -> Cgroup:
        """A new one below that of this process, without limits, with these programs. suffix: of its name."""
        root_only(f"a cgroup for {controller}")
        parent = next(map(Path, topology.cgroup_folders(controller)), None)
        if parent is None or (parent / "cgroup.controllers").exists():
            pytest.skip(f"no cgroup v1 controller {controller!r} is mounted")
        folder = parent / f"cmwq-test-{os.getpid()}-{len(self._noted)}{os.fsdecode(suffix)}"
        self._note("cgroup", str(folder))
        try:
            folder.mkdir()
        except OSError as exc:
            pytest.skip(f"no cgroup can be made: {exc}")
        group = Cgroup(folder)
        if controller == "cpuset":
            for name in ("cpuset.cpus", "cpuset.mems"):
                group[name] = (parent / name).read_text()
        for program in programs:
            group["cgroup.procs"] = program.pid
        return group

    @contextmanager
    def frozen(self, program: Program) -> Iterator[None]:
        """Meanwhile none of its threads runs, and no signal tells it."""
        group = self.cgroup("freezer", program)
        group["freezer.state"] = "FROZEN"
        try:
            wait_until(lambda: group["freezer.state"] != "FROZEN" and "it isn't frozen yet")
            yield
        finally:
            group["freezer.state"] = "THAWED"

    def switch(self, cpu: int, online: bool) -> None:
        path = cpu_file(cpu)
        self._note("write", str(path), "1")
        path.write_text("1" if online else "0")


class Program:
    """One of `programs.py`, in a process of its own. It is asked, and answers."""

    def __init__(self, name: str, options: dict[str, Any]) -> None:
        command = [sys.executable, "-X", "faulthandler", HERE / "programs.py", name, json.dumps(options)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.pid = self._process.pid
        self._unread = b""

    def tell(self, command: str, **arguments: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([command, arguments]).encode() + b"\n")
        self._process.stdin.flush()

    def hear(self) -> Any:
        """Its next answer."""
        assert self._process.stdout is not None
        deadline = time.monotonic() + HANG
        while b"\n" not in self._unread:
            if not select.select([self._process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
                self._process.send_signal(signal.SIGABRT)  # all its stacks, to stderr
                self._process.wait(HANG)
                pytest.fail("the program says nothing; for its stacks see stderr")
            data = os.read(self._process.stdout.fileno(), 1 << 16)
            assert data, "the program ended; see stderr"
            self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        return json.loads(line)

    def ask(self, command: str, **arguments: Any) -> Any:
        self.tell(command, **arguments)
        return self.hear()

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Meanwhile none of its threads runs."""
        try:
            stop(self.pid)
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def threads(self) -> list[tuple[str, set[int]]]:
        """Name of each, and the CPUs it is bound to.

        By `files`: where many threads want the only CPU that is left, hundreds of file objects take a minute.
        """
        found = []
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            try:
                found.append((files.read(task / "comm").decode().strip(), os.sched_getaffinity(int(task.name))))
            except OSError:  # it has just ended
                continue
        return found

    def end(self) -> None:
        self._process.kill()
        self._process.communicate(timeout=HANG)


class Cgroup:
    """Its files, by name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __getitem__(self, name: str) -> str:
        return (self.folder / name).read_text().strip()

    def __setitem__(self, name: str, value: str | int) -> None:
        (self.folder / name).write_text(str(value))


def _reserve() -> socket.socket:
    """The right to do things to the machine: a name that the kernel gives once, and takes back when nobody holds it."""
    deadline = time.monotonic() + HANG
    while True:
        right = socket.socket(socket.AF_UNIX)
        try:
            right.bind("\0cmwq-faults")
            return right
        except OSError:
            right.close()
            if time.monotonic() > deadline:
                pytest.skip("others have the machine: tests of faults that don't end")
            time.sleep(0.05)


def root_only(what: str) -> None:
    if os.geteuid():
        pytest.skip(f"{what} needs root")


def cpu_file(cpu: int) -> Path:
    return Path(f"/sys/devices/system/cpu/cpu{cpu}/online")


def spare_cpu() -> int:
    """A CPU that can be taken offline."""
    root_only("to take a CPU offline")
    cpus = several_cpus()
    for cpu in cpus[:0:-1]:
        if os.access(cpu_file(cpu), os.W_OK):
            return cpu
    pytest.skip(f"none of the CPUs {cpus} can be taken offline")


def several_cpus() -> tuple[int, ...]:
    system = Path("/sys/devices/system/cpu")
    deadline = time.monotonic() + 5
    while len(cpus := topology.cpus()) < 2:
        # Somebody else may have taken one offline for a moment.
        if time.monotonic() > deadline or (system / "online").read_text() == (system / "present").read_text():
            pytest.skip(f"needs two CPUs; there is {cpus}")
        time.sleep(0.05)
    return cpus


def wait_until(holds: Callable[[], Any]) -> None:
    """holds() returns None or False if it does, else what is wrong."""
    deadline = time.monotonic() + HANG
    while wrong := holds():
        assert time.monotonic() < deadline, wrong
        time.sleep(0.05)
