"""F9: works that wait for their time."""

from __future__ import annotations

import concurrent.futures as cf
import math
import threading
import time
from contextlib import suppress

import pytest
from conftest import HANG, Gate
from simulated import simulate, simulate_each

import cmwq
from cmwq._workqueue.delay import Delay
from cmwq._workqueue.queued import Queued
from cmwq.testing import Simulation


def test_F9_it_begins_no_earlier_than_its_delay(universe: cmwq.Runtime) -> None:
    wq = cmwq.WorkQueue("q", runtime=universe)
    begun: dict[float, float] = {}
    queued: dict[float, float] = {}

    def body(delay: float) -> None:
        begun[delay] = time.monotonic()

    works = {delay: cmwq.DelayedWork(body, delay) for delay in (0.03, 0.001, 0.02, 0.01)}
    for delay, work in works.items():
        queued[delay] = time.monotonic()
        assert wq.queue_delayed(work, delay)
    ended = threading.Event()
    last = cmwq.DelayedWork(ended.set)
    wq.queue_delayed(last, 0.03)
    assert ended.wait(HANG)
    wq.flush(HANG)
    for delay in works:
        assert begun[delay] - queued[delay] >= delay


def test_F9_it_is_pending_until_its_time_comes(universe: cmwq.Runtime) -> None:
    wq = cmwq.WorkQueue("q", runtime=universe)
    work = cmwq.DelayedWork(int)
    assert wq.queue_delayed(work, 3600)
    assert work.pending
    assert work.cancel()
    assert not work.pending


def test_E4_it_is_pending_also_on_the_way_from_its_delay_to_its_queue_and_back(
    universe: cmwq.Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever looks meanwhile, without a lock, and not when its function has begun."""
    wq, run = cmwq.WorkQueue("q", max_active=1, runtime=universe), threading.Semaphore(0)
    gate, found, begun = threading.Event(), [], []
    work = cmwq.DelayedWork(lambda: (begun.append(work.pending), run.release()))

    def looks(where: type, name: str) -> None:
        original = getattr(where, name)

        def look(*args: object) -> object:
            found.append((name, work.pending))
            result = original(*args)
            if name == "hand_over":
                assert run.acquire(timeout=HANG)  # it has begun, before who moved it noted that
            return result

        monkeypatch.setattr(where, name, look)

    looks(Queued, "hand_over")
    looks(Delay, "start")
    assert wq.queue_delayed(work, 0.001)
    while not begun:
        time.sleep(0.001)
    wq.flush(HANG)
    monkeypatch.undo()
    wq.submit(gate.wait, HANG)
    assert wq.queue(work)
    looks(Delay, "start")
    wq.mod_delayed(work, 3600)
    assert work.cancel()
    gate.set()
    assert found == [("start", False), ("hand_over", True), ("start", True)]
    assert begun == [False]


def test_F9_in_order_of_time() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime)
        for seconds in (3.0, 1.0, 2.0, 2.0):
            wq.queue_delayed(cmwq.DelayedWork(sim.note, f"{seconds}"), seconds)
        sim.sleep(5.0)

    assert simulate(scenario).log == [(1000, "1.0"), (2000, "2.0"), (2000, "2.0"), (3000, "3.0")]


@pytest.mark.parametrize("delay", [0, -1.0, -math.inf])
def test_F9_no_delay_is_queue(delay: float) -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime)
        first, second = cmwq.DelayedWork(sim.note, "first"), cmwq.DelayedWork(sim.note, "second")
        assert wq.queue_delayed(first, delay)
        wq.queue(cmwq.Work(sim.note, "between"))
        assert not wq.mod_delayed(second, delay)
        wq.flush()

    assert simulate(scenario).log == [(0, "first"), (0, "between"), (0, "second")]


def test_F9_a_pending_one_is_moved_and_queue_delayed_leaves_it() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime)
        works = [cmwq.DelayedWork(sim.note, name) for name in ("later", "sooner", "stays", "idle", "listed")]
        later, sooner, stays, idle, listed = works
        for work in works[:3]:
            wq.queue_delayed(work, 2.0)
        assert wq.mod_delayed(later, 3.0)
        assert wq.mod_delayed(sooner, 1.0)
        assert not wq.queue_delayed(stays, 0.5)
        assert not wq.queue(stays)
        assert not wq.mod_delayed(idle, 2.5), "it was not pending, and is queued"
        wq.submit(sim.burn, 0.001)
        wq.queue(listed)
        assert wq.mod_delayed(listed, 4.0), "what is listed already goes back to waiting"
        sim.sleep(5.0)

    assert simulate(scenario, config=cmwq.Config(cpu_intensive_thresh=0)).log == [
        (1000, "sooner"), (2000, "stays"), (2500, "idle"), (3000, "later"), (4000, "listed"),
    ]  # fmt: skip


def test_F9_moved_again_and_again_it_runs_once() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime)
        work = cmwq.DelayedWork(sim.note, "ran")
        for _ in range(1000):
            wq.mod_delayed(work, 1.0)
            sim.sleep(0.001)
        sim.sleep(2.0)

    (when, _), *more = simulate(scenario).log
    assert when == pytest.approx(1999)
    assert not more


def test_F9_mod_delayed_queues_or_moves_whatever_others_do() -> None:
    """A debouncer: the last call decides, and the work runs after it."""

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime)
        other = cmwq.WorkQueue("other", scope="cpu", runtime=runtime)
        ran: list[float] = []
        work = cmwq.DelayedWork(lambda: ran.append(sim.host.now))
        called: list[float] = []

        def knock(queue: cmwq.WorkQueue) -> None:
            for n in range(5):
                if n % 2:
                    queue.queue(work)
                called.append(sim.host.now)
                queue.mod_delayed(work, 0.0005)
                sim.sleep(0.0002)

        threads = [sim.host.spawn(q.name, lambda q=q: knock(q)) for q in (wq, other, wq)]  # type: ignore[misc]
        for thread in threads:
            thread.join()
        sim.sleep(0.010)
        assert not work.pending
        assert ran[-1] >= max(called)

    simulate_each(scenario, 60, cpus=2)


def test_F9_a_thousand_delays_need_one_thread(universe: cmwq.Runtime) -> None:
    wq = cmwq.WorkQueue("q", runtime=universe)
    wq.submit(int).result(HANG)
    first = cmwq.DelayedWork(int)
    wq.queue_delayed(first, 3600)
    before = set(threading.enumerate())
    works = [cmwq.DelayedWork(int) for _ in range(1000)]
    for work in works:
        wq.queue_delayed(work, 3600)
    new = {thread.name for thread in set(threading.enumerate()) - before}
    assert {name for name in new if not name.startswith("cmwq/u0:")} == set()  # the reserve may just have been created
    assert all(work.cancel() for work in (first, *works))


def test_F9_only_a_delayed_work_has_a_delay_and_a_delay_is_a_number(universe: cmwq.Runtime) -> None:
    wq = cmwq.WorkQueue("q", runtime=universe)
    for call in (wq.queue_delayed, wq.mod_delayed):
        with pytest.raises(TypeError, match=r"only a DelayedWork can be delayed, not <cmwq\.Work int>"):
            call(cmwq.Work(int), 1.0)  # type: ignore[arg-type]
        work = cmwq.DelayedWork(int)
        for delay in (math.inf, math.nan):
            with pytest.raises(ValueError, match=f"delay is {delay}"):
                call(work, delay)
        assert not work.pending


def test_F9_a_runtime_that_closes_takes_delayed_works_back() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        universe = sim.runtime()
        wq = cmwq.WorkQueue("q", runtime=universe)
        work = cmwq.DelayedWork(sim.note, "ran")
        wq.queue_delayed(work, 1.0)
        future = wq.submit(work)
        universe.close()
        sim.sleep(2.0)
        assert not sim.log
        assert not work.pending
        assert future.cancelled()
        assert cmwq.WorkQueue("other", runtime=runtime).queue(work), "it can be queued elsewhere"

    simulate(scenario)


def test_submitting_a_delayed_work_gives_the_result_to_come(universe: cmwq.Runtime, gate: Gate) -> None:
    wq = cmwq.WorkQueue("q", runtime=universe)
    work = cmwq.DelayedWork(len, "abc")
    wq.queue_delayed(work, 3600)
    future = wq.submit(work)
    assert not future.done()
    assert work.flush(HANG)
    assert future.result(HANG) == 3
    wq.queue_delayed(work, 3600)
    future = wq.submit(work)
    assert work.cancel()
    with pytest.raises(cf.CancelledError):
        future.result(HANG)


@pytest.mark.parametrize("listed", [False, True])
def test_moving_a_work_keeps_the_futures_of_its_execution_to_come(
    universe: cmwq.Runtime, gate: Gate, listed: bool
) -> None:
    wq = cmwq.WorkQueue("q", max_active=1, runtime=universe)
    wq.submit(gate)
    work = cmwq.DelayedWork(len, "abc")
    wq.queue_delayed(work, 0 if listed else 3600)
    future = wq.submit(work)
    assert wq.mod_delayed(work, 0.001)
    gate.open.set()
    assert future.result(HANG) == 3


def test_flush_of_a_delayed_work_whose_runtime_has_closed_leaves_it_usable() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        universe = sim.runtime()
        work = cmwq.DelayedWork(int)
        cmwq.WorkQueue("q", runtime=universe).queue_delayed(work, 1.0)
        universe.close()
        with suppress(cmwq.QueueClosed):
            work.flush()
        assert not work.pending
        assert cmwq.WorkQueue("other", runtime=runtime).queue(work)

    simulate(scenario)


def test_F9_moving_what_is_just_being_delayed_gives_no_room_away() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", max_pending=5, runtime=runtime)
        wq.submit(int).result()
        work = cmwq.DelayedWork(int)
        thread = sim.host.spawn("delays", lambda: wq.queue_delayed(work, 0.001) and None)
        wq.mod_delayed(work, 0.0005)
        thread.join()
        sim.sleep(0.010)
        wq.flush()
        assert wq._room is not None
        assert wq._room.taken == 0

    simulate_each(scenario, 60, cpus=2)


def test_F9_moving_what_a_full_queue_just_refuses_is_not_lost() -> None:
    """mod_delayed() returned, whatever it returned: so the work is pending, here."""

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        full = cmwq.WorkQueue("full", max_active=1, max_pending=1, full="raise", runtime=runtime)
        wq = cmwq.WorkQueue("q", runtime=runtime)
        full.submit(sim.sleep, 1.0)
        sim.sleep(0.1)
        full.submit(int)
        work = cmwq.DelayedWork(int)

        def refused() -> None:
            for _ in range(3):
                with suppress(cmwq.QueueFull):
                    full.queue(work)

        thread = sim.host.spawn("refused", refused)
        wq.mod_delayed(work, 10.0)
        thread.join()
        assert work.pending
        assert work.cancel()

    simulate_each(scenario, 60, cpus=2)
