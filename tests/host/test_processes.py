"""The processes below a thread, as the system shows them (A10): the C functions and the Python ones."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from conftest import HANG, until

from cmwq._host import processes
from cmwq._host.processes import below

pytestmark = pytest.mark.skipif(processes.why_not() is not None, reason=str(processes.why_not()))

IMPLEMENTATIONS = ["Python"] if processes._sentinel is None else ["Python", "C"]


@pytest.fixture(params=IMPLEMENTATIONS)
def children_of(request: pytest.FixtureRequest) -> Callable[..., tuple[int, ...]]:
    return processes._children_of if request.param == "Python" else processes._sentinel.children_of


@pytest.fixture(params=IMPLEMENTATIONS)
def has_children(request: pytest.FixtureRequest) -> Callable[[], bool]:
    return processes._has_children if request.param == "Python" else processes._sentinel.has_children


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "100"]) as child:
        yield child
        child.kill()


def test_A10_the_children_of_a_thread_are_those_that_it_started(
    children_of: Callable[..., tuple[int, ...]], sleeper: subprocess.Popen[bytes]
) -> None:
    me = threading.get_native_id()
    assert sleeper.pid in children_of(me)
    others: list[tuple[int, ...]] = []
    thread = threading.Thread(target=lambda: others.append(children_of(threading.get_native_id())))
    thread.start()
    thread.join()
    assert others == [()]
    assert children_of(me, os.getpid()) == children_of(me)


def test_A10_the_children_of_a_thread_that_is_gone_are_none(children_of: Callable[..., tuple[int, ...]]) -> None:
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()
    assert children_of(thread.native_id) == ()
    assert children_of(1 << 30, 1 << 30) == ()


def test_A10_many_children_are_read_as_whole_numbers(children_of: Callable[..., tuple[int, ...]]) -> None:
    before = set(children_of(threading.get_native_id()))  # children of threads that ended are the main thread's
    started = [subprocess.Popen(["sleep", "100"]) for _ in range(processes.MOST + 10)]
    try:
        found = children_of(threading.get_native_id())
        assert len(found) == processes.MOST
        assert set(found) <= before | {child.pid for child in started}
    finally:
        for child in started:
            child.kill()
            child.wait()


def test_A10_whether_there_are_children(has_children: Callable[[], bool]) -> None:
    program = (
        "import os, subprocess; from cmwq._host import processes; "
        f"has = processes.{'_has_children' if has_children is processes._has_children else 'has_children'}; "
        "before = has(); child = subprocess.Popen(['sleep', '100']); during = has(); child.kill(); "
        "os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT); ended = has(); child.wait(); "
        "print(before, during, ended, has())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=HANG)
    assert done.stdout.split() == ["False", "True", "True", "False"], done.stderr


def test_A10_who_computes_is_runnable_and_its_clock_goes_on() -> None:
    with subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) as child:
        try:
            (first,) = below((child.pid,))
            until(lambda: all(process.used > first.used for process in below((child.pid,))))
            until(lambda: all(process.runnable for process in below((child.pid,))))
        finally:
            child.kill()


def test_A10_who_sleeps_is_not_runnable_and_its_clock_stands(sleeper: subprocess.Popen[bytes]) -> None:
    until(lambda: not any(process.runnable for process in below((sleeper.pid,))))

    def used_meanwhile() -> float:
        (first,) = below((sleeper.pid,))
        time.sleep(0.05)
        (second,) = below((sleeper.pid,))
        return second.used - first.used

    until(lambda: used_meanwhile() == 0)  # at first it may have been seen while it was loaded


def test_A10_the_whole_tree_is_seen_also_what_other_threads_started() -> None:
    program = (
        "import subprocess, threading; "
        "start = lambda: subprocess.run(['sleep', '100']); threading.Thread(target=start).start(); start()"
    )
    with subprocess.Popen([sys.executable, "-S", "-c", program], start_new_session=True) as child:
        try:
            until(lambda: len(list(below((child.pid,)))) == 3)
        finally:
            os.killpg(child.pid, 9)


def test_A10_processes_that_are_gone_are_passed_over() -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    assert list(below((child.pid,))) == []
