"""B4: what a work changes of its thread, and leaves so, is undone, and said once."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from conftest import HANG

import cmwq
from cmwq._host import ThreadHost
from cmwq._host.traits import look
from cmwq._pool.leaks import LEAKS_PERIOD

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="nothing of this is a thread's elsewhere")


def mask() -> set[int]:
    return {int(each) for each in signal.pthread_sigmask(signal.SIG_BLOCK, ())}


def nice() -> int:
    return os.getpriority(os.PRIO_PROCESS, 0)


def one_cpu() -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def may_lower_nice() -> bool:
    """In a thread that ends at once."""
    said: list[bool] = []

    def attempt() -> None:
        host = ThreadHost()
        host.set_nice(5)
        said.append(host.set_nice(0))

    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()
    return said[0]


LEAKS: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
    "its signal mask": (lambda: signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGTERM}), mask),
    "its nice value": (lambda: os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 7), nice),
    "its affinity": (one_cpu, lambda: os.sched_getaffinity(0)),
}


@pytest.fixture(params=LEAKS)
def leak(request: pytest.FixtureRequest) -> str:
    what: str = request.param
    if what == "its affinity" and len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one CPU only")
    return what


@pytest.fixture(params=["clean", "dirty"])
def ordered(request: pytest.FixtureRequest) -> Any:
    """Two queues whose works run on one thread, one behind the other; or two of the same name."""
    with cmwq.Runtime() as runtime:
        yield (
            cmwq.WorkQueue("dirty", ordered=True, runtime=runtime),
            cmwq.WorkQueue(request.param, ordered=True, runtime=runtime),
        )
        runtime.check_invariants()


def on_thread(queue: cmwq.WorkQueue, fn: Callable[[], object]) -> tuple[int, object]:
    def body() -> tuple[int, object]:
        return threading.get_native_id(), fn()

    return queue.submit(body).result(HANG)


def test_B4_the_next_queues_works_see_nothing_of_it(ordered: Any, leak: str, caplog: pytest.LogCaptureFixture) -> None:
    dirty, clean = ordered
    change, seen = LEAKS[leak]
    if leak == "its nice value" and not may_lower_nice():
        pytest.skip("to lower a nice value is not permitted")
    _, before = on_thread(clean, seen)
    same, deadline = 0, time.monotonic() + HANG

    def leave() -> tuple[int, Any]:
        change()
        # It is there before this one ends, so the same worker mostly takes it.
        return threading.get_native_id(), clean.submit(lambda: (threading.get_native_id(), seen()))

    with caplog.at_level(logging.WARNING, "cmwq"):
        while same < 3:
            thread, future = dirty.submit(leave).result(HANG)
            next_thread, found = future.result(HANG)
            if thread == next_thread:
                same += 1
                assert found == before
            assert time.monotonic() < deadline, "hardly a worker served both queues: nothing was tested"
    said = [record.getMessage() for record in caplog.records]
    assert said == [f"a work of queue 'dirty' changed {leak} and left it so on its worker's thread; it was undone"]


def outside(thread: int) -> dict[str, object]:
    """The same of another thread."""
    with open(f"/proc/self/task/{thread}/status") as status:
        blocked = next(int(line.split()[1], 16) for line in status if line.startswith("SigBlk"))
    return {
        "its signal mask": {number for number in range(1, 65) if blocked >> (number - 1) & 1},
        "its nice value": os.getpriority(os.PRIO_PROCESS, thread),
        "its affinity": os.sched_getaffinity(thread),
    }


def test_B4_nor_does_it_stay_when_the_worker_rests(ordered: Any, leak: str) -> None:
    dirty, _ = ordered
    change, seen = LEAKS[leak]
    if leak == "its nice value" and not may_lower_nice():
        pytest.skip("to lower a nice value is not permitted")
    _, before = on_thread(dirty, seen)
    threading.Event().wait(2 * LEAKS_PERIOD)  # it was looked at a moment ago, and isn't again so soon
    thread, _ = on_thread(dirty, change)
    deadline = time.monotonic() + HANG
    while outside(thread)[leak] != before:
        assert time.monotonic() < deadline, f"{leak} stays so"
        time.sleep(0.001)


def test_B4_what_may_not_be_undone_is_said(ordered: Any, caplog: pytest.LogCaptureFixture) -> None:
    dirty, clean = ordered
    host = dirty.runtime.host
    host.set_nice = lambda nice: False
    with caplog.at_level(logging.WARNING, "cmwq"):
        for _ in range(5):
            dirty.submit(LEAKS["its nice value"][0]).result(HANG)
            clean.submit(int).result(HANG)
            threading.Event().wait(LEAKS_PERIOD)
        dirty.runtime.close(HANG)
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.endswith(
        "changed its nice value and left it so on its worker's thread; to undo it is not permitted here"
    )


def test_B4_reports_are_bounded(universe: cmwq.Runtime, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "cmwq"):
        for n in range(150):
            wq = cmwq.WorkQueue(f"q{n}", runtime=universe)
            wq.submit(LEAKS["its signal mask"][0]).result(HANG)
        universe.close(HANG)
    assert 1 <= len(caplog.records) <= 100
    assert len(universe.leaks) <= 100


def test_B4_cpus_that_leave_are_no_leak(universe: cmwq.Runtime, caplog: pytest.LogCaptureFixture) -> None:
    if len(universe.cpus()) < 2:
        pytest.skip("one CPU only")
    with caplog.at_level(logging.WARNING, "cmwq"):
        cpu = universe.cpus()[0]
        for n in range(40):
            (universe.cpu_online if n % 2 else universe.cpu_offline)(cpu)
            for name in "ab":
                cmwq.WorkQueue(f"{name}{n}", runtime=universe).submit(int).result(HANG)
    assert caplog.records == []
    assert universe.leaks == set()


class SlowToBind(ThreadHost):
    """Whoever binds a thread from outside it waits for the gate first."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.asked = threading.Event(), threading.Event()

    def bind(self, cpus: Iterable[int], tid: int = 0) -> bool:
        if tid:
            self.asked.set()
            assert self.gate.wait(HANG)
        return super().bind(cpus, tid)


def test_B4_nobody_is_blamed_while_hotplug_is_about_to_bind_the_thread(caplog: pytest.LogCaptureFixture) -> None:
    host = SlowToBind()
    with caplog.at_level(logging.WARNING, "cmwq"), cmwq.Runtime(host=host) as runtime:
        if len(runtime.cpus()) < 2:
            pytest.skip("one CPU only")
        queues = [cmwq.WorkQueue(name, ordered=True, runtime=runtime) for name in "ab"]
        for queue in queues:
            queue.submit(int).result(HANG)
        cpu = runtime.cpus()[0]
        for change in runtime.cpu_offline, runtime.cpu_online:
            host.gate.clear()
            host.asked.clear()
            changing = threading.Thread(target=change, args=(cpu,))
            changing.start()
            assert host.asked.wait(HANG), "no worker is bound again, so nothing was tested"
            for _ in range(3):
                for queue in queues:
                    queue.submit(int).result(HANG)
            host.gate.set()
            changing.join(HANG)
        assert runtime.leaks == set()
    assert caplog.records == []


def test_B4_what_the_kernel_may_have_done_is_undone_and_blamed_on_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """A thread whose last CPU leaves is allowed all there are; this is all that can be seen of it when it came back."""
    everywhere = os.sched_getaffinity(0)
    if len(everywhere) < 2:
        pytest.skip("one CPU only")
    with caplog.at_level(logging.WARNING, "cmwq"), cmwq.Runtime() as runtime:
        here, there = (cmwq.WorkQueue(name, runtime=runtime, scope="cpu") for name in "ab")
        thread, _ = on_thread(here, lambda: os.sched_setaffinity(0, everywhere))
        deadline = time.monotonic() + HANG
        while len(os.sched_getaffinity(thread)) > 1:
            there.submit(int).result(HANG)
            assert time.monotonic() < deadline, "its affinity stays so"
        assert runtime.leaks == set()
    assert caplog.records == []


def test_a_look_is_cheap_and_equal_to_the_last() -> None:
    assert look() == look()
    assert look().cpus == os.sched_getaffinity(0)
    assert look().nice == nice()
    assert look().mask == mask()
