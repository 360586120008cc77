"""E2: an ordered queue does one work at a time, in queueing order."""

from __future__ import annotations

import threading

import pytest
from conftest import HANG
from simulated import simulate, simulate_each

import cmwq
from cmwq.testing import Simulation


def test_E2_one_at_a_time_in_queueing_order(runtime: cmwq.Runtime) -> None:
    wq = cmwq.WorkQueue("ledger", ordered=True, runtime=runtime)
    inside = threading.Lock()
    done: list[tuple[int, int]] = []
    overlaps: list[int] = []

    def entry(thread: int, number: int) -> None:
        if not inside.acquire(blocking=False):
            overlaps.append(number)
            return
        with cmwq.blocking():  # others may run meanwhile, but not of this queue
            done.append((thread, number))
        inside.release()

    def writer(thread: int) -> None:
        for number in range(150):
            wq.submit(entry, thread, number)

    threads = [threading.Thread(target=writer, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG)
    wq.flush(HANG)
    assert not overlaps
    assert len(done) == 450
    for index in range(3):
        assert [number for who, number in done if who == index] == list(range(150))


def test_E2_order_is_kept_whatever_cpu_a_work_is_queued_on() -> None:
    done: list[int] = []

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("ledger", ordered=True, runtime=runtime)
        done.clear()

        def entry(number: int) -> None:
            sim.sleep(0.001 * (number % 3))
            done.append(number)

        for number in range(12):
            wq.queue_on(number % 4, cmwq.Work(entry, number))
        wq.flush()
        assert done == list(range(12))

    simulate_each(scenario, 20, cpus=4)


def test_E2_a_work_that_waits_does_not_let_the_next_begin() -> None:
    """A work of any other queue would lend its place under max_active."""

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("ledger", ordered=True, runtime=runtime)
        other = cmwq.WorkQueue("other", runtime=runtime)

        def first() -> None:
            other.submit(sim.sleep, 1.0).result()
            sim.note("first")

        wq.submit(first)
        wq.submit(sim.note, "second")
        wq.flush()

    assert [text for _, text in simulate(scenario, cpus=4).log] == ["first", "second"]


def test_E2_a_work_that_still_runs_elsewhere_keeps_its_place_in_the_order() -> None:
    """E3 makes it wait for itself, and those behind it wait with it."""

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        elsewhere = cmwq.WorkQueue("elsewhere", scope="cpu", runtime=runtime)
        wq = cmwq.WorkQueue("ledger", ordered=True, runtime=runtime)
        order: list[str] = []

        def body() -> None:
            order.append("begins")
            sim.sleep(0.010)
            order.append("ends")

        work = cmwq.Work(body)
        elsewhere.queue(work)
        while not work.running:
            sim.sleep(0.001)
        wq.submit(order.append, "before")
        wq.queue(work)
        wq.submit(order.append, "behind")
        wq.flush()
        assert order == ["begins", "before", "ends", "begins", "ends", "behind"]

    simulate_each(scenario, 40, cpus=2)


def test_E2_cancelling_one_of_them_keeps_the_order_of_the_rest() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("ledger", ordered=True, runtime=runtime)
        works = [cmwq.Work(sim.note, f"{n}") for n in range(6)]
        wq.submit(sim.sleep, 0.001)
        for work in works:
            wq.queue(work)
        for work in works[::2]:
            assert work.cancel()
        wq.queue(works[0])
        wq.flush()

    assert [text for _, text in simulate(scenario).log] == ["1", "3", "5", "0"]


def test_E2_what_contradicts_ordered_is_refused(universe: cmwq.Runtime) -> None:
    for options in ({"max_active": 2}, {"scope": "cpu"}):
        with pytest.raises(ValueError, match=r"queue 'l': an ordered queue has scope 'system' and max_active 1"):
            cmwq.WorkQueue("l", ordered=True, runtime=universe, **options)
    wq = cmwq.WorkQueue("l", ordered=True, max_active=1, runtime=universe)
    with pytest.raises(ValueError, match="'l' is ordered: its max_active is 1 and stays so"):
        wq.max_active = 2
    wq.max_active = 1
