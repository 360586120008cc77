"""A10 with real processes: children that compute hold back further works, children that sleep do not."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest
from conftest import HANG

import cmwq
from cmwq._host import processes

pytestmark = [
    pytest.mark.parametrize("sensor", ["sentinel", "procfs"], indirect=True),
    pytest.mark.skipif(processes.why_not() is not None, reason=str(processes.why_not())),
    # asyncio silences this warning of its own with `warnings.catch_warnings`, which changes the filters of the whole
    # process before Python 3.14: where several threads do so at once, one of them may find them as they were.
    pytest.mark.filterwarnings("ignore:'get_child_watcher' is deprecated:DeprecationWarning"),
]

PYTHON = [sys.executable, "-S", "-c"]
COMPUTE = "import time\nend = time.process_time() + 0.06\nwhile time.process_time() < end: pass"
SLEEP = "import time; time.sleep(0.5)"


class Watch:
    """Looks, every few milliseconds, below how many children of this process something is runnable at once."""

    def __init__(self) -> None:
        self.most = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.003):
            children = [child for tid in os.listdir("/proc/self/task") for child in processes.children_of(int(tid))]
            busy = sum(any(process.runnable for process in processes.below((child,))) for child in children)
            self.most = max(self.most, busy)


@pytest.fixture
def wq(runtime: cmwq.Runtime) -> cmwq.WorkQueue:
    return cmwq.WorkQueue("children", runtime=runtime)


def by_asyncio(program: str) -> None:
    async def main() -> None:
        await (await asyncio.create_subprocess_exec(*PYTHON, program)).wait()

    asyncio.run(main())


def by_multiprocessing(program: str) -> None:
    process = multiprocessing.get_context("spawn").Process(target=exec, args=(program,))
    process.start()
    process.join()


WAYS: dict[str, Callable[[str], object]] = {
    "wait": lambda program: subprocess.run([*PYTHON, program], check=True),
    "poll": lambda program: subprocess.run([*PYTHON, program], check=True, capture_output=True),
    "read": lambda program: subprocess.check_output([*PYTHON, program], stderr=subprocess.DEVNULL),
    "a shell's pipeline": lambda program: subprocess.run(
        f"{sys.executable} -S -c '{program}' | cat", shell=True, check=True, capture_output=True
    ),
    "asyncio": by_asyncio,
}


@pytest.mark.parametrize("way", WAYS)
def test_A10_a_flood_of_computations_runs_as_many_as_there_are_cpus(wq: cmwq.WorkQueue, way: str) -> None:
    with Watch() as watch:
        futures = [wq.submit(WAYS[way], COMPUTE) for _ in range(16)]
        for future in futures:
            future.result(HANG)
    # One more per CPU; and a worker that a busy machine keeps from starting its child looks blocked. (Else all 16 run.)
    assert watch.most <= 2 * wq.runtime.host.cpu_limit() + 8


def test_A10_so_does_one_of_multiprocessing(wq: cmwq.WorkQueue) -> None:
    """Roughly: its processes are started under locks, and who waits for those looks blocked, with no child yet."""
    with Watch() as watch:
        futures = [wq.submit(by_multiprocessing, COMPUTE) for _ in range(24)]
        for future in futures:
            future.result(HANG)
    assert watch.most <= 6 * wq.runtime.host.cpu_limit() + 6  # of 24


def test_A10_a_flood_of_children_that_sleep_runs_at_once(wq: cmwq.WorkQueue) -> None:
    """No child ends before all have begun."""
    read, write = os.pipe()
    count = 20
    try:
        program = "import os, sys; os.write(1, b'.'); sys.stdin.read()"
        stdin_read, stdin_write = os.pipe()
        futures = [
            wq.submit(subprocess.run, [*PYTHON, program], stdin=stdin_read, stdout=write, check=True)
            for _ in range(count)
        ]
        begun = 0
        while begun < count:
            begun += len(os.read(read, count))
        os.close(stdin_write)
        for future in futures:
            future.result(HANG)
    finally:
        for fd in (read, write, stdin_read):
            os.close(fd)


def test_A9_A10_other_works_pass_children_that_compute_for_ever(wq: cmwq.WorkQueue) -> None:
    def body() -> None:
        with subprocess.Popen([*PYTHON, "while True: pass"]) as child:
            children.append(child)

    children: list[subprocess.Popen[bytes]] = []
    futures = [wq.submit(body) for _ in range(6)]
    try:
        assert [wq.submit(abs, -n).result(HANG) for n in range(50)] == list(range(50))
        assert not any(future.done() for future in futures)
    finally:
        while not all(future.done() or future.cancel() for future in futures):
            for child in list(children):
                child.kill()


def test_A10_works_behind_children_that_compute_go_on_when_those_end(wq: cmwq.WorkQueue) -> None:
    futures = [wq.submit(subprocess.run, [*PYTHON, COMPUTE], check=True) for _ in range(6)]
    short = [wq.submit(abs, -n) for n in range(50)]
    assert [future.result(HANG) for future in short] == list(range(50))
    for future in futures:
        future.result(HANG)


def test_A10_a_child_that_computes_for_ever_holds_up_no_work_that_waits_for_another(wq: cmwq.WorkQueue) -> None:
    children = []

    def body() -> int:
        children.append(subprocess.Popen([*PYTHON, "while True: pass"]))
        return wq.submit(abs, -1).result(HANG)

    try:
        assert [future.result(HANG) for future in [wq.submit(body) for _ in range(6)]] == [1] * 6
    finally:
        for child in children:
            child.kill()
            child.wait()
