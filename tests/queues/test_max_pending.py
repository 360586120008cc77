"""E9: a bound on what waits."""

from __future__ import annotations

import queue
import threading
from typing import Any

import pytest
from conftest import HANG, Gate
from simulated import simulate, simulate_each

import cmwq
from cmwq.testing import Simulation


def full_queue(runtime: cmwq.Runtime, gate: Gate, full: str, *, name: str = "batch") -> cmwq.WorkQueue:
    """One work runs, two wait, more may not."""
    wq = cmwq.WorkQueue(name, max_active=1, max_pending=2, full=full, runtime=runtime)
    wq.submit(gate)
    gate.await_arrivals(1)
    return wq


def test_E9_raise(universe: cmwq.Runtime, gate: Gate) -> None:
    wq = full_queue(universe, gate, "raise")
    assert wq.max_pending == 2
    work, another = cmwq.Work(int), cmwq.Work(int)
    waiting = wq.submit(int)
    assert wq.queue(work)
    with pytest.raises(cmwq.QueueFull, match=r"queue 'batch': 2 works wait already \(max_pending\)"):
        wq.submit(int)
    with pytest.raises(queue.Full):
        wq.queue(another)
    assert not another.pending
    assert not wq.queue(work), "one with the earlier: that takes no room"
    assert waiting.cancel()
    assert wq.queue(another), "a cancelled work makes room"
    assert another.cancel()
    assert wq.queue(another)
    gate.open.set()
    wq.flush(HANG)
    assert wq.submit(len, "room again").result(HANG) == 10


def test_E9_block(runtime: cmwq.Runtime, gate: Gate) -> None:
    wq = full_queue(runtime, gate, "block")
    done: list[int] = []
    submitted = threading.Semaphore(0)

    def produce() -> None:
        for n in range(20):
            wq.submit(done.append, n)
            submitted.release()

    producer = threading.Thread(target=produce)
    producer.start()
    for _ in range(2):
        assert submitted.acquire(timeout=HANG)
    assert wq._room is not None
    while not wq._room._waiting:  # it asks for the third
        runtime.snapshot()
    assert not submitted.acquire(blocking=False)
    gate.open.set()
    producer.join(HANG)
    wq.flush(HANG)
    assert done == list(range(20))


def test_E9_never_more_wait_than_it_says() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("batch", max_active=2, max_pending=3, runtime=runtime)
        waiting = most = 0

        def item() -> None:
            nonlocal waiting
            waiting -= 1
            sim.sleep(0.001)

        def produce() -> None:
            nonlocal waiting, most
            for n in range(8):
                if n % 2:
                    wq.submit(item)
                else:
                    assert wq.queue(cmwq.Work(item))
                waiting += 1
                most = max(most, waiting)
                assert wq.nr_pending() <= 3

        producers = [sim.host.spawn(f"producer {n}", produce) for n in range(3)]
        for producer in producers:
            producer.join()
        wq.flush()
        assert waiting == 0
        assert wq._room is not None
        assert wq._room.taken == 0

    simulate_each(scenario, 30, cpus=2)


def test_E9_who_waits_gets_room_in_order_of_arrival() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("batch", max_active=1, max_pending=1, runtime=runtime)
        wq.submit(sim.sleep, 1.0)
        sim.sleep(0.1)
        wq.submit(sim.sleep, 1.0)

        def late(name: str) -> None:
            wq.submit(lambda: (sim.note(name), sim.sleep(1.0)))

        threads = []
        for name in "abc":
            threads.append(sim.host.spawn(name, lambda name=name: late(name)))  # type: ignore[misc]
            sim.sleep(0.1)
        for thread in threads:
            thread.join()
        wq.flush()

    assert [text for _, text in simulate(scenario).log] == ["a", "b", "c"]


def test_E9_a_work_of_the_queue_itself_never_waits_for_room(universe: cmwq.Runtime, gate: Gate) -> None:
    wq = cmwq.WorkQueue("batch", max_active=1, max_pending=1, runtime=universe)

    def parent() -> str:
        wq.submit(int)
        with pytest.raises(cmwq.QueueFull, match=r"queue 'batch' is full \(1 works wait\), and one of its own works"):
            wq.submit(int)
        return "told"

    assert wq.submit(parent).result(HANG) == "told"


class Impatient(cmwq.Work):
    """A work that gives up when submit() asks too often whether it is pending yet."""

    __slots__ = ("asked",)
    asked: int

    def add_future(self, future: Any) -> bool:
        self.asked += 1
        assert self.asked < 1000, "submit() spins"
        return super().add_future(future)


def test_E9_submitting_a_work_whose_queueing_waits_for_room_does_not_spin() -> None:
    """By a work of that very queue, even: then room could never be made."""

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("batch", max_active=1, max_pending=1, runtime=runtime)
        work = Impatient(int)
        work.asked = 0

        def holder() -> None:
            sim.sleep(1.0)
            try:
                wq.submit(work)
            except cmwq.QueueFull:
                sim.note("told")

        held = wq.submit(holder)
        sim.sleep(0.1)
        wq.submit(int)
        waits = sim.host.spawn("waits for room", lambda: wq.queue(work))  # type: ignore[arg-type]
        waits.join()
        held.result()

    simulate(scenario, cpus=2)


def test_E9_a_work_of_another_queue_may_wait(universe: cmwq.Runtime, gate: Gate) -> None:
    wq = full_queue(universe, gate, "block")
    other = cmwq.WorkQueue("other", max_active=1, runtime=universe)
    for _ in range(2):
        wq.submit(int)
    submitting = other.submit(lambda: wq.submit(len, "abc"))
    # It lends its place meanwhile: another work of its queue can run.
    assert other.submit(len, "ab").result(HANG) == 2
    assert not submitting.done()
    gate.open.set()
    assert submitting.result(HANG).result(HANG) == 3


def test_E9_what_is_refused_for_another_reason_takes_no_room(universe: cmwq.Runtime, gate: Gate) -> None:
    wq = full_queue(universe, gate, "raise")
    assert wq._room is not None
    disabled = cmwq.Work(int)
    disabled.disable()
    assert not wq.queue(disabled)
    wq.refuse()
    with pytest.raises(cmwq.QueueClosed):
        wq.submit(int)
    with pytest.raises(cmwq.QueueClosed):
        wq.queue(cmwq.Work(int))
    assert wq._room.taken == 0


def test_E9_a_work_whose_delay_ends_is_let_in(universe: cmwq.Runtime, gate: Gate) -> None:
    wq = full_queue(universe, gate, "raise")
    for _ in range(2):
        wq.submit(int)
    ran = threading.Event()
    assert wq.queue_delayed(cmwq.DelayedWork(ran.set), 0.001)
    gate.open.set()
    assert ran.wait(HANG)


def test_E9_submit_many_and_map_wait_for_room(universe: cmwq.Runtime) -> None:
    wq = cmwq.WorkQueue("batch", max_pending=2, runtime=universe)
    assert [future.result(HANG) for future in wq.submit_many(abs, range(-20, 0))] == list(range(20, 0, -1))
    assert list(wq.map(abs, range(-20, 0))) == list(range(20, 0, -1))


def test_E9_arguments_are_checked(universe: cmwq.Runtime) -> None:
    with pytest.raises(ValueError, match="queue 'b': max_pending is 0, and must be at least 1"):
        cmwq.WorkQueue("b", max_pending=0, runtime=universe)
    with pytest.raises(ValueError, match="queue 'b': full 'wait' is none of 'block', 'raise'"):
        cmwq.WorkQueue("b", max_pending=1, full="wait", runtime=universe)
    assert cmwq.WorkQueue("b", runtime=universe).max_pending is None
