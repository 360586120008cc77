"""What tests share: runtimes of their own, each sensor in turn, and children of the same interpreter."""

from __future__ import annotations

import os

os.environ.setdefault("CMWQ_DEBUG", "1")  # here and in the children; read when cmwq is imported

import gc
import importlib.util
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import cmwq
from cmwq._core import held
from cmwq._sensor import NAMES, why_not
from cmwq.testing import Simulation

HANG = 60.0  # seconds: only a hang or a lost wake-up takes so long

needs_failing_malloc = pytest.mark.skipif(
    importlib.util.find_spec("_testcapi") is None or sys.version_info >= (3, 12),
    reason="no _testcapi, or Python 3.12 or later: without memory CPython 3.12 and 3.13, with a GIL or without, die "
    "themselves now and then, with Python alone, too (the procfs sensor, locks in Python)",
)


def until(condition: Callable[[], bool]) -> None:
    """Look until it holds. Fails if it never does."""
    deadline = time.monotonic() + HANG
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.001)


def recounted() -> bool:
    """True, for use in `until`. Without a GIL, what one thread made and another dropped lives until the former runs
    again, which an idle worker may not do for long, or until the collector counts for all threads: here it does. With a
    GIL nothing is collected, so that what is in a cycle stays.
    """
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        gc.collect()
    return True


def is_forgotten(there: weakref.ref[Any]) -> bool:
    """Has it gone, and not to the collector? Without a GIL: see `recounted`."""
    return recounted() and there() is None


def descriptors() -> list[str]:
    """The numbers of the open files, without those that an earlier test's garbage would close at any moment."""
    gc.collect()
    return sorted(os.listdir("/proc/self/fd"))


def module_of(path: Path) -> ModuleType:
    """A program or an example, as a module."""
    spec = importlib.util.spec_from_file_location(f"{path.parent.name}_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up by its name
    spec.loader.exec_module(module)
    return module


def state_of(pid: object) -> str:
    """The letter that the system has for what a process does: R, S, T (stopped), Z (a zombie), ..."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def stop(pid: int) -> None:
    """SIGSTOP it, and wait: one thread takes the signal, and only then the others stop."""
    os.kill(pid, signal.SIGSTOP)

    def states() -> Iterator[str]:
        for task in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError):  # it has just ended
                yield state_of(f"{pid}/task/{task.name}")

    until(lambda: set(states()) == {"T"})


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Import one of tools/."""
    tools = Path(__file__).parents[1] / "tools"
    monkeypatch.syspath_prepend(str(tools))
    return lambda name: module_of(tools / f"{name}.py")


@pytest.fixture(autouse=True, scope="session")
def _simulations_stay_on_one_cpu() -> Iterator[None]:
    """Simulated threads run one at a time and hand over at each seam: on one CPU that costs a fifth less, and no waking
    of an idle CPU. What a simulation does depends on its seed alone.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    run = Simulation.run

    def on_one_cpu(self: Simulation, main: Callable[[], object]) -> object:
        allowed = os.sched_getaffinity(0)  # of this thread alone; those that it starts inherit it
        os.sched_setaffinity(0, {sorted(allowed)[os.getpid() % len(allowed)]})
        try:
            return run(self, main)
        finally:
            os.sched_setaffinity(0, allowed)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Simulation, "run", on_one_cpu)
        yield


@pytest.fixture(autouse=True)
def _nothing_broken() -> Iterator[None]:
    """No lock was taken out of order, no function called without the lock it needs; not even where that was caught."""
    before = len(held.broken)
    yield
    found = held.broken[before:]
    assert not found, "\n".join(map(str, found))


@pytest.fixture(params=NAMES)
def sensor(request: pytest.FixtureRequest) -> str:
    """Each sensor in turn; only the one that CMWQ_SENSOR names, if it does."""
    name: str = request.param
    wanted = os.environ.get("CMWQ_SENSOR")
    if wanted and wanted != name:
        pytest.skip(f"CMWQ_SENSOR={wanted}")
    reason = why_not(name)
    if reason is not None:
        pytest.skip(f"{name}: {reason}")
    return name


@pytest.fixture
def runtime(sensor: str) -> Iterator[cmwq.Runtime]:
    """A runtime of the test's own on real threads; its invariants are checked when all is done."""
    runtime = cmwq.Runtime(sensor=sensor)
    yield runtime
    runtime.check_invariants()
    runtime.close(timeout=HANG)


@pytest.fixture
def universe() -> Iterator[cmwq.Runtime]:
    """The same where no sensor matters: with the default one."""
    runtime = cmwq.Runtime()
    yield runtime
    runtime.check_invariants()
    runtime.close(timeout=HANG)


@pytest.fixture
def executor(runtime: cmwq.Runtime) -> Iterator[cmwq.Executor]:
    executor = cmwq.Executor(runtime=runtime)
    yield executor
    executor.queue.close(HANG)


@pytest.fixture
def python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a program in a new interpreter: python(*texts, **options of subprocess.run)."""

    def run(*parts: str, **options: Any) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-X", "faulthandler", "-c", "".join(map(textwrap.dedent, parts))]
        # A line is written at once, and not its end by itself: others may write in between.
        env = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
        options = {"env": env, **options}
        return subprocess.run(command, capture_output=True, text=True, timeout=HANG, check=False, **options)

    return run


UNTIL_QUIET = """
    import os, time
    def switches():
        total = {}
        for tid in os.listdir("/proc/self/task"):
            try:
                with open(f"/proc/self/task/{tid}/status") as file:
                    total[tid] = sum(int(line.split()[1]) for line in file if "ctxt_switches" in line)
            except OSError:
                pass  # it has just ended
        del total[str(os.getpid())]  # this very thread
        return total
    def until_quiet():
        deadline = time.monotonic() + 45
        while True:
            before = switches()
            time.sleep(2)
            after = switches()
            switched = {tid: n - before.get(tid, 0) for tid, n in after.items() if n != before.get(tid)}
            if not switched or time.monotonic() > deadline:
                return len(after) > 1, switched
"""
"""Part of a program. until_quiet() returns whether there are several other threads, and how often each of them was
switched to in the last two seconds: not at all, unless there were no such two seconds for long. (As counted by the
kernel. A busy machine may let a thread that is about to rest come to it seconds later.)
"""


class AtOnce:
    """Counts how many threads are within its `with` block at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._now = self.most = 0

    def __enter__(self) -> None:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._now -= 1


class Gate:
    """Lets a test hold works at a point and know that they are there.

    If it is not opened in time, it opens, and the works that waited fail. So however many wait behind those, a test
    that fails before it opens its gate, and waits for them on its way out, comes out and says why.
    """

    def __init__(self) -> None:
        self.open = threading.Event()
        self.arrived = threading.Semaphore(0)

    def __call__(self) -> None:
        self.arrived.release()
        opened = self.open.wait(HANG)
        self.open.set()
        assert opened, "nobody opened the gate"

    def await_arrivals(self, number: int) -> None:
        for _ in range(number):
            assert self.arrived.acquire(timeout=HANG), "a work that should run does not"


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open.set()
