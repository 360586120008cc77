"""A stand-in for processes that can be watched: pictures by the contract (version 1), without sockets.

`Machine` has the two functions of `cmwq.observing.client` that the dashboard uses, so either can be passed to
`Sockets`. A `Program` is one process of it: a test says what its next picture shows.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Any

from cmwq._errors import CmwqError

SHORT = 0.01  # seconds between two pictures, so that a test need not wait
BOUNDS = [0.0001, 0.001, 0.01, 0.1, 1.0, 10.0, 100.0]
Picture = dict[str, Any]


class NotAnswering(CmwqError):
    """As `cmwq.observing.client.NotAnswering`."""


def pool(name: str = "u0", **changes: Any) -> Picture:
    """One pool of a picture."""
    numbers = ("running", "blocked", "pending", "inactive", "culled", "refused", "started", "completed", "wakeups")
    plain: Picture = dict.fromkeys(numbers, 0)
    plain |= {"name": name, "cpus": [0, 1], "target": 2, "held": False, "disassociated": False, "workers": 3}
    plain |= {"idle": 3, "created": 3, "peak_workers": 3, "nice": 0, "cpu_seconds": 0.0, "why": ""}
    return plain | changes


def queue(name: str = "system", **changes: Any) -> Picture:
    """One queue of a picture."""
    numbers = ("active", "inactive", "unfinished", "hogs", "maydays", "rescued", "started", "completed", "failed")
    plain: Picture = dict.fromkeys((*numbers, "wakeups"), 0)
    plain |= {"name": name, "scope": "system", "state": "open", "max_active": 256, "learns": False, "rescuer": False}
    plain |= {"cpu_seconds": 0.0, "why": "", "waiting": None, "running": None, "serial": 1}
    return plain | changes


def worker(name: str = "cmwq/u0:0", state: str = "running", **changes: Any) -> Picture:
    """One worker of a picture."""
    works = state != "idle"
    plain: Picture = {"name": name, "pool": "u0", "tid": 1000, "state": state, "rescuer": False, "since": 0.5}
    plain |= {"queue": "system" if works else "", "work": "fetch" if works else "", "item": 1 if works else 0}
    plain |= {"cpu_seconds": 0.1 if works else None, "waits_for": "", "stack": [], "held_by": 0}
    return plain | changes


def function(name: str = "fetch", **changes: Any) -> Picture:
    """One function of a picture."""
    plain = {"name": name, "queue": "system", "ended": 10, "failed": 0, "seconds": 2.0, "cpu_seconds": 0.5}
    return {**plain, "running": 1, **changes}


def histogram(*counts: int) -> Picture:
    """A histogram of so many works per bucket of `BOUNDS`."""
    filled = [*counts, *[0] * (len(BOUNDS) + 1 - len(counts))]
    return {"bounds": BOUNDS, "counts": filled, "sum": 0.01 * sum(counts), "sampled": sum(counts)}


def picture(**changes: Any) -> Picture:
    """A picture of a process at rest, with these parts in place of its own."""
    plain: Picture = {"version": 1, "time": time.time(), "uptime": 75.0, "command": ["python", "-m", "shop.worker"]}
    plain |= {"python": "3.11.7", "cpu_seconds": 1.0, "frozen": False, "pid": 4242, "sensor": "sentinel"}
    plain |= {"sensor_reason": "works", "gil": True, "cpus": [0, 1], "cpu_limit": 2}
    plain["memory"] = {"held": False, "used": 300 << 20, "limit": 2 << 30, "source": "cgroup"}
    plain |= {
        "pools": [pool()],
        "queues": [queue()],
        "functions": [],
        "stalls": [],
        "stall_after": 30.0,
        "workers_left_out": 0,
    }
    plain["workers"] = [worker(f"cmwq/u0:{number}", "idle") for number in range(3)]
    return plain | changes


@dataclass
class Program:
    """A process. `path` is that of its socket; `gone` and `silent` make it stop answering."""

    pid: int
    command: list[str] = field(default_factory=lambda: ["python", "-m", "shop.worker"])
    now: Picture = field(default_factory=picture)
    asked: list[bool] = field(default_factory=list)
    """Of each picture that was asked for: with stacks?"""
    gone: bool = False
    silent: str = ""
    nonsense: Picture = field(default_factory=dict)
    """What its pictures say in place of what is true."""
    since: float = 0.0
    goes_on: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.goes_on.set()

    @property
    def path(self) -> str:
        return f"/nowhere/{self.pid}.socket"

    def picture(self, stacks: bool = False) -> Picture:
        self.answer()
        assert self.goes_on.wait(60)
        self.asked.append(stacks)
        shown = {"time": time.time(), "pid": self.pid, "command": self.command}
        workers = [
            {**each, "stack": [f'  File "shop.py", line 7, in {each["work"]}\n'] if stacks and each["work"] else []}
            for each in self.now["workers"]
        ]
        return {**self.now, **shown, "workers": workers, **self.nonsense}

    def hold(self) -> threading.Event:
        """Answer nothing until the event that is returned is set."""
        self.goes_on = threading.Event()
        return self.goes_on

    def answer(self) -> None:
        if self.gone:
            raise NotAnswering(f"There is no process {self.pid}.")
        if self.silent:
            raise NotAnswering(self.silent)


class Machine:
    """The processes there are: stands in for the module `cmwq.observing.client`."""

    def __init__(self, *programs: Program) -> None:
        self.programs = list(programs)

    def processes(self) -> list[Program]:
        return [program for program in self.programs if not program.gone]

    def connect(self, pid: int | None = None, path: str | None = None) -> Connection:
        for program in self.programs:
            if program.pid == pid or program.path == path:
                program.answer()
                return Connection(program)
        raise NotAnswering(f"There is no process {pid}.")


class Connection:
    def __init__(self, program: Program) -> None:
        self._program = program

    def picture(self, stacks: bool = False) -> Picture:
        return self._program.picture(stacks)

    def close(self) -> None:
        pass
