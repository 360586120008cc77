"""F1, F2: waiting for what was queued before, and for nothing else."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest
from conftest import HANG, Gate
from simulated import simulate, simulate_each

import cmwq.aio
from cmwq._workqueue.delay import Delay
from cmwq._workqueue.pwq import PoolWorkQueue
from cmwq._workqueue.queued import Queued
from cmwq.testing import Simulation


def test_F1_all_that_was_queued_before_has_ended_on_all_pools() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", scope="cpu", max_active=1, runtime=runtime)
        done: list[int] = []

        def item(number: int) -> None:
            sim.sleep(0.001 * (number % 4))
            done.append(number)

        for round_ in range(3):
            mine = range(round_ * 10, round_ * 10 + 10)
            for number in mine:
                wq.queue_on(number % 3, cmwq.Work(item, number))
            wq.flush()
            assert set(mine) <= set(done)

    simulate_each(scenario, 30, cpus=3)


def test_F1_what_is_queued_after_does_not_matter(runtime: cmwq.Runtime, gate: Gate) -> None:
    wq = cmwq.WorkQueue("q", runtime=runtime)
    begun, flushed = threading.Event(), threading.Event()
    go_on = threading.Event()

    def first() -> None:
        begun.set()
        with cmwq.blocking():
            assert go_on.wait(HANG)

    def flush() -> None:
        wq.flush(HANG)
        flushed.set()

    wq.submit(first)
    assert begun.wait(HANG)
    flusher = threading.Thread(target=flush)
    flusher.start()
    while not any(pwq.sealed for pwq in wq.places()):  # the flush has begun
        runtime.snapshot()
    later = wq.submit(gate)
    gate.await_arrivals(1)
    assert not flushed.is_set()
    go_on.set()
    flusher.join(HANG)
    assert flushed.is_set()
    assert not later.done()


def test_F1_it_returns_while_others_queue_for_ever() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", max_active=2, runtime=runtime)
        stop = False

        def again() -> None:
            sim.sleep(0.001)
            if not stop:
                wq.submit(again)

        for _ in range(5):
            wq.submit(again)
        mine = [wq.submit(sim.sleep, 0.001) for _ in range(3)]
        wq.flush()
        assert all(future.done() for future in mine)
        assert wq.nr_pending(), "others still queue"
        stop = True

    simulate_each(scenario, 20, cpus=2)


def test_F1_several_flush_at_the_same_time() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", max_active=2, runtime=runtime)

        def flusher() -> None:
            for n in range(4):
                mine = [wq.submit(sim.sleep, 0.001 * n) for n in range(n)]
                wq.flush()
                assert all(future.done() for future in mine)

        threads = [sim.host.spawn(f"flusher {n}", flusher) for n in range(4)]
        for thread in threads:
            thread.join()
        assert not any(pwq.sealed for pwq in wq.places())

    simulate_each(scenario, 30, cpus=2)


def test_F1_a_cancelled_work_is_not_waited_for() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", max_active=1, runtime=runtime)
        wq.submit(sim.sleep, 1.0)
        call, work = wq.submit(sim.sleep, 10.0), cmwq.Work(sim.sleep, 10.0)
        wq.queue(work)
        flusher = sim.host.spawn("flusher", lambda: (wq.flush(), sim.note("flushed"))[0])
        sim.sleep(0.5)
        call.cancel()
        work.cancel()
        flusher.join()

    assert simulate(scenario).log == [(1000, "flushed")]


def test_F1_a_delay_that_runs_is_not_waited_for(universe: cmwq.Runtime) -> None:
    wq = cmwq.WorkQueue("q", runtime=universe)
    work = cmwq.DelayedWork(int)
    wq.queue_delayed(work, 3600)
    wq.flush(HANG)
    assert work.cancel()


def test_F1_an_empty_or_unused_queue_is_flushed_at_once(universe: cmwq.Runtime) -> None:
    wq = cmwq.WorkQueue("q", runtime=universe)
    wq.flush(HANG)
    assert universe.snapshot().pools == (), "nothing was started for it"
    wq.submit(int).result(HANG)
    wq.flush(HANG)
    wq.flush(0)


def test_F2_it_says_whether_it_waited(runtime: cmwq.Runtime, gate: Gate) -> None:
    wq = cmwq.WorkQueue("q", runtime=runtime)
    work = cmwq.Work(gate)
    assert not work.flush(HANG), "never queued"
    wq.queue(work)
    gate.await_arrivals(1)
    with pytest.raises(cmwq.CmwqTimeout, match=r"flush: <cmwq\.Work .* running> did not end after 0\.01 s"):
        work.flush(0.01)
    gate.open.set()
    work.flush(HANG)
    assert not work.running
    assert not work.flush(HANG), "it has ended"


def test_F2_it_waits_for_the_last_queueing_and_no_later_one() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime)

        def body() -> None:
            sim.note("begins")
            sim.sleep(1.0)

        work = cmwq.Work(body)
        wq.queue(work)
        sim.sleep(0.1)
        wq.queue(work)  # runs from 1.0 to 2.0
        flusher = sim.host.spawn("flusher", lambda: (work.flush(), sim.note("flushed"))[0])
        sim.sleep(1.0)
        wq.queue(work)  # from 2.0 to 3.0
        flusher.join()

    log = simulate(scenario).log
    assert sorted(log) == [(0, "begins"), (1000, "begins"), (2000, "begins"), (2000, "flushed")]


def test_F2_of_a_work_that_only_runs_it_waits_for_that() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime)
        work = cmwq.Work(sim.sleep, 1.0)
        wq.queue(work)
        sim.sleep(0.5)
        assert work.flush()
        assert sim.host.now == 1.0

    simulate(scenario)


def test_F2_a_work_taken_back_while_it_is_flushed_ends_the_wait() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", max_active=1, runtime=runtime)
        wq.submit(sim.sleep, 10.0)
        work = cmwq.Work(int)
        wq.queue(work)
        flusher = sim.host.spawn("flusher", lambda: (work.flush(), sim.note("flushed"))[0])
        sim.sleep(1.0)
        assert work.cancel()
        flusher.join()

    assert simulate(scenario).log == [(1000, "flushed")]


def test_F2_it_is_no_work_under_max_active() -> None:
    """The kernel's barrier must not count, else flushing the only active work of a full queue would hang."""

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", max_active=1, runtime=runtime)
        works = [cmwq.Work(sim.sleep, 0.001) for _ in range(4)]
        for work in works:
            wq.queue(work)
        flushers = [sim.host.spawn("flusher", work.flush) for work in works]  # type: ignore[arg-type]
        for flusher in flushers:
            flusher.join()
        assert not any(work.pending or work.running for work in works)

    simulate_each(scenario, 20)


def test_F2_flushing_a_delayed_work_ends_its_delay(universe: cmwq.Runtime) -> None:
    wq = cmwq.WorkQueue("q", runtime=universe)
    ran = threading.Event()
    work = cmwq.DelayedWork(ran.set)
    wq.queue_delayed(work, 3600)
    assert work.flush(HANG)
    assert ran.is_set()
    assert not work.pending


def test_F2_a_delayed_work_that_ends_at_once_was_flushed(
    universe: cmwq.Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was pending, so the answer is True, however fast its delay's end led to the work's."""
    wq = cmwq.WorkQueue("q", runtime=universe)
    ran = threading.Event()
    work = cmwq.DelayedWork(ran.set)
    wq.queue_delayed(work, 3600)
    hand_over = Queued.hand_over

    def and_wait(item: Queued, place: PoolWorkQueue) -> None:
        hand_over(item, place)
        assert ran.wait(HANG)
        while wq.has_works():  # the work's own lock is held here, so nothing of ours may be waited for
            time.sleep(0.001)

    monkeypatch.setattr(Queued, "hand_over", and_wait)
    assert work.flush(HANG)


def test_F2_a_delay_that_is_replaced_as_the_flush_begins_is_ended_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The flush has seen the first one, and is about to end it."""
    choose_place = Delay.choose_place

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime)
        work = cmwq.DelayedWork(sim.note, "ran")

        def and_move(delay: Delay) -> None:
            monkeypatch.setattr(Delay, "choose_place", choose_place)
            assert wq.mod_delayed(work, 7200)

        wq.queue_delayed(work, 3600)
        monkeypatch.setattr(Delay, "choose_place", and_move)
        assert work.flush()
        assert not work.pending

    assert simulate(scenario).log == [(0, "ran")]


@pytest.mark.parametrize("how", ["flush", "aio.flush"])
@pytest.mark.parametrize("moves", ["to another delay", "to its queue"])
def test_F2_a_work_that_moves_is_waited_for(
    how: str, moves: str, universe: cmwq.Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a moment the work is found in no place. Its first delay: so it has run nowhere either."""
    wq = cmwq.WorkQueue("q", runtime=universe)
    moving, go_on, ran = threading.Event(), threading.Event(), threading.Event()
    owner, step = (Delay, "start") if moves == "to another delay" else (Queued, "hand_over")
    original = getattr(owner, step)

    def slowly(*args: Any) -> None:
        if not moving.is_set():
            moving.set()
            assert go_on.wait(HANG)
        original(*args)

    work = cmwq.DelayedWork(ran.set)
    wq.queue_delayed(work, 3600)
    monkeypatch.setattr(owner, step, slowly)
    mover = threading.Thread(target=wq.mod_delayed, args=(work, 3600 if moves == "to another delay" else 0))
    mover.start()
    assert moving.wait(HANG)
    timer = threading.Timer(0.3, go_on.set)  # the flush looks before this; if it does not, nothing is tested

    async def flush() -> bool:
        timer.start()
        return await cmwq.aio.flush(work, HANG)

    if how == "flush":
        timer.start()
        work.flush(HANG)
    else:
        asyncio.run(flush())
    assert ran.is_set()  # also where it looked too late, and found nothing to wait for
    mover.join(HANG)
    timer.join(HANG)


def test_F2_under_constant_requeueing_it_returns() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime)
        stop = False

        def body() -> None:
            sim.sleep(0.001)
            if not stop:
                wq.queue(work)

        work = cmwq.Work(body)
        wq.queue(work)
        for _ in range(3):
            assert work.flush()
        stop = True

    simulate_each(scenario, 20, cpus=2)
