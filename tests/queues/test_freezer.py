"""E8: freezable queues stop, and go on where they stopped."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable

import pytest
from conftest import HANG, Gate
from simulated import simulate, simulate_each

import cmwq
from cmwq._workqueue.pwq import PoolWorkQueue
from cmwq.testing import Simulation


def test_E8_freeze_returns_when_nothing_runs_and_nothing_starts_until_thaw(runtime: cmwq.Runtime, gate: Gate) -> None:
    wq = cmwq.WorkQueue("f", freezable=True, max_active=2, runtime=runtime)
    other = cmwq.WorkQueue("other", runtime=runtime)
    done: list[int] = []
    running = [wq.submit(gate) for _ in range(2)]
    gate.await_arrivals(2)
    for n in range(5):
        wq.submit(done.append, n)
    freezer = threading.Thread(target=runtime.freeze, args=(HANG,))
    freezer.start()
    while not all(pwq.frozen for pwq in wq.places()):
        other.submit(int).result(HANG)
    assert freezer.is_alive(), "two works of it still run"
    gate.open.set()
    freezer.join(HANG)
    assert not freezer.is_alive()
    assert all(future.done() for future in running)
    wq.submit(done.append, 5)
    assert other.submit(len, "go on").result(HANG) == 5
    assert done == []
    view = next(queue for queue in runtime.snapshot().queues if queue.name == "f")
    assert (view.active, view.inactive) == (0, 6)
    runtime.thaw()
    wq.flush(HANG)
    assert sorted(done) == list(range(6))


@pytest.mark.parametrize("ordered", [False, True])
def test_E8_order_and_max_active_are_kept(ordered: bool) -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("f", freezable=True, ordered=ordered, max_active=1, runtime=runtime)
        done: list[int] = []
        inside = 0

        def item(number: int) -> None:
            nonlocal inside
            inside += 1
            assert inside == 1
            sim.sleep(0.001)
            done.append(number)
            inside -= 1

        for number in range(12):
            wq.submit(item, number)
            if number % 4 == 3:
                runtime.freeze()
                assert not inside
                before = list(done)
                sim.sleep(0.010)
                assert done == before, "a work started while frozen"
                runtime.thaw()
        wq.flush()
        assert done == list(range(12))

    simulate_each(scenario, 30, cpus=2)


def test_E8_a_place_made_while_frozen_is_frozen() -> None:
    """A queue made meanwhile, and one that uses a pool for the first time."""

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        early = cmwq.WorkQueue("early", freezable=True, scope="cpu", runtime=runtime)
        early.submit(int).result()
        runtime.freeze()
        late = cmwq.WorkQueue("late", freezable=True, runtime=runtime)
        works = [cmwq.Work(sim.note, f"cpu {cpu}") for cpu in (0, 1)]
        for cpu, work in enumerate(works):
            assert early.queue_on(cpu, work)
        late.submit(sim.note, "late")
        sim.sleep(1.0)
        assert all(work.pending for work in works)
        assert not sim.log
        runtime.thaw()
        runtime.close()

    assert sorted(simulate(scenario, cpus=2).log) == [(1000, "cpu 0"), (1000, "cpu 1"), (1000, "late")]


def test_E8_a_freeze_that_times_out_freezes_nothing(universe: cmwq.Runtime, gate: Gate) -> None:
    wq = cmwq.WorkQueue("f", freezable=True, runtime=universe)
    wq.submit(gate)
    gate.await_arrivals(1)
    with pytest.raises(cmwq.CmwqTimeout, match=r"freeze: works of freezable queues still run after 0\.01 s"):
        universe.freeze(0.01)
    assert not universe.frozen
    assert wq.submit(len, "abc").result(HANG) == 3


def test_E8_twice_is_once_and_thaw_is_harmless(universe: cmwq.Runtime) -> None:
    wq = cmwq.WorkQueue("f", freezable=True, runtime=universe)
    universe.thaw()
    wq.submit(int).result(HANG)
    universe.freeze(HANG)
    universe.freeze(HANG)
    future = wq.submit(len, "ab")
    assert not future.done()
    universe.thaw()
    universe.thaw()
    assert future.result(HANG) == 2


def test_E8_a_frozen_work_can_be_cancelled_and_a_frozen_queue_flushed_in_vain(universe: cmwq.Runtime) -> None:
    wq = cmwq.WorkQueue("f", freezable=True, runtime=universe)
    ran: list[str] = []
    universe.freeze(HANG)
    work = cmwq.Work(ran.append, "cancelled")
    wq.queue(work)
    wq.submit(ran.append, "kept")
    assert work.cancel_sync(HANG)
    with pytest.raises(cmwq.CmwqTimeout, match="1 works still there"):
        wq.flush(0.01)
    universe.thaw()
    wq.flush(HANG)
    assert ran == ["kept"]


def test_E8_a_colliding_work_waits_for_thaw_too() -> None:
    """E3 would let it follow its running self at once."""

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("f", freezable=True, runtime=runtime)
        work = cmwq.Work(lambda: (sim.note("begins"), sim.sleep(0.010)))
        wq.queue(work)
        sim.sleep(0.005)
        wq.queue(work)
        sim.sleep(0.001)  # it collided, and is to follow
        runtime.freeze()
        sim.sleep(1.0)
        runtime.thaw()
        wq.flush()

    assert simulate(scenario, cpus=2).log == [(0, "begins"), (1010, "begins")]


def test_E8_F10_a_freeze_that_was_interrupted_is_completed_by_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever freezes next must not take a place for frozen because half of that was done."""
    began: list[int] = []
    sim = Simulation(cpus=1)

    def interrupted(_: object) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    def main() -> None:
        with sim.runtime() as runtime:
            queue = cmwq.WorkQueue("q", freezable=True, runtime=runtime)
            queue.submit(sim.burn, 0.001)
            futures = queue.submit_many(began.append, [1, 2])
            (place,) = queue.places()
            monkeypatch.setattr("cmwq._pool.lane.merge", interrupted)
            with pytest.raises(KeyboardInterrupt):
                place.freeze()
            runtime.freeze()
            sim.sleep(1.0)
            assert began == []
            runtime.thaw()
            for future in futures:
                future.result(HANG)

    sim.run(main)
    assert began == [1, 2]


@pytest.mark.parametrize("step", range(3))
def test_E8_F10_a_thaw_that_is_interrupted_is_completed(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """step: how many places are thawed before the interruption."""
    with cmwq.Runtime() as runtime:
        queues = [cmwq.WorkQueue(f"q{number}", freezable=True, runtime=runtime) for number in range(3)]
        runtime.freeze()
        futures = [queue.submit(int) for queue in queues]
        thaw, left = PoolWorkQueue.thaw, [step]

        def interrupted(place: PoolWorkQueue) -> None:
            if not left[0]:
                monkeypatch.undo()
                raise KeyboardInterrupt
            left[0] -= 1
            thaw(place)

        monkeypatch.setattr(PoolWorkQueue, "thaw", interrupted)
        with pytest.raises(KeyboardInterrupt):
            runtime.thaw()
        assert not runtime.frozen
        assert [future.result(HANG) for future in futures] == [0, 0, 0]


def test_E8_a_runtime_that_closes_thaws() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("f", freezable=True, runtime=runtime)
        runtime.freeze()
        wq.submit(sim.note, "done")

    assert [text for _, text in simulate(scenario).log] == ["done"]


def test_E8_a_freeze_that_fails_leaves_another_ones_as_it_is() -> None:
    """Whether the other one still waits, or has returned."""

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("f", freezable=True, runtime=runtime)
        other = cmwq.WorkQueue("other", runtime=runtime)

        def hold() -> None:
            runtime.freeze()
            sim.note("frozen")

        wq.submit(sim.sleep, 0.1)
        sim.sleep(0.001)
        holder = other.submit(hold)
        sim.sleep(0.001)
        with pytest.raises(cmwq.CmwqTimeout):
            runtime.freeze(0.01)
        assert runtime.frozen
        late = wq.submit(sim.note, "late")
        holder.result()
        assert runtime.frozen
        assert not late.done()
        runtime.thaw()
        late.result()

    assert [text for _, text in simulate(scenario, cpus=2).log] == ["frozen", "late"]


def test_E8_the_last_freeze_that_fails_thaws() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("f", freezable=True, runtime=runtime)
        other = cmwq.WorkQueue("other", runtime=runtime)
        wq.submit(sim.sleep, 0.1)
        sim.sleep(0.001)
        freezes = [other.submit(runtime.freeze, timeout) for timeout in (0.02, 0.01, 0.03)]
        sim.sleep(0.025)
        assert runtime.frozen
        assert all(isinstance(future.exception(), cmwq.CmwqTimeout) for future in freezes)
        assert not runtime.frozen
        assert wq.submit(len, "abc").result() == 3

    simulate(scenario, cpus=2)


def test_E8_G3_nothing_is_lost_in_a_runtime_that_ends_while_others_freeze() -> None:
    """What was listed would become inactive in the frozen queue, and the pools, quiet, would be closed over it."""

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("f", freezable=True, max_active=1, runtime=runtime)
        refused: list[str] = []

        def keep_freezing() -> None:
            while not refused:
                try:
                    runtime.freeze()
                except cmwq.QueueClosed as exc:
                    refused.append(str(exc))
                else:
                    sim.sleep(0.001)
                    runtime.thaw()
                    sim.sleep(0.0005)

        thread = sim.host.spawn("freezes", keep_freezing)
        works = [wq.submit(sim.sleep, 0.001) for _ in range(20)]
        runtime.close()
        thread.join()
        assert all(work.done() for work in works)
        assert refused == ["freeze: the runtime is being closed"]

    simulate_each(scenario, 30, cpus=2)


def test_E8_a_close_that_gave_up_lets_others_freeze_again() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("f", freezable=True, runtime=runtime)
        work = wq.submit(sim.sleep, 0.1)
        with pytest.raises(cmwq.CmwqTimeout):
            runtime.close(0.01)
        runtime.freeze()
        assert work.done()
        assert runtime.frozen

    simulate(scenario, cpus=2)


def test_E8_the_default_runtimes_freezer(python: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = python("""
        import cmwq
        wq = cmwq.WorkQueue("f", freezable=True)
        cmwq.freeze(30)
        future = wq.submit(print, "thawed", flush=True)
        cmwq.system.submit(print, "frozen", flush=True).result(30)
        cmwq.thaw()
        future.result(30)
    """)
    assert (done.stdout.split(), done.stderr, done.returncode) == (["frozen", "thawed"], "", 0)
