"""F4, F5: taking back, and waiting until it doesn't run either."""

from __future__ import annotations

import random
import threading

import pytest
from conftest import HANG, Gate
from simulated import simulate, simulate_each

import cmwq
from cmwq._core.ports import Lock
from cmwq._workqueue.pwq import PoolWorkQueue
from cmwq._workqueue.queued import Queued
from cmwq.testing import Simulation


def test_F4_a_pending_work_is_taken_back(runtime: cmwq.Runtime, gate: Gate) -> None:
    wq = cmwq.WorkQueue("q", max_active=1, runtime=runtime)
    runs: list[int] = []
    work = cmwq.Work(runs.append, 1)
    assert not work.cancel(), "it was never queued"
    wq.submit(gate)
    wq.queue(work)
    assert work.cancel()
    assert not work.pending
    assert not work.cancel()
    wq.queue(work)
    gate.open.set()
    wq.flush(HANG)
    assert runs == [1]
    assert not work.cancel(), "it has run"


def test_F4_an_execution_that_has_begun_goes_on(runtime: cmwq.Runtime, gate: Gate) -> None:
    wq = cmwq.WorkQueue("q", runtime=runtime)
    work = cmwq.Work(gate)
    wq.queue(work)
    gate.await_arrivals(1)
    assert not work.cancel()
    assert work.running
    wq.queue(work)
    assert work.cancel(), "but the next is taken back"
    assert work.running
    gate.open.set()
    wq.flush(HANG)
    assert not gate.arrived.acquire(blocking=False)


def test_F4_a_delay_is_taken_back(universe: cmwq.Runtime) -> None:
    wq = cmwq.WorkQueue("q", runtime=universe)
    work = cmwq.DelayedWork(int)
    wq.queue_delayed(work, 3600)
    assert work.pending
    assert work.cancel()
    assert not work.pending
    assert not wq._delays
    assert wq.queue(work)
    wq.flush(HANG)


def test_F4_many_are_taken_back_and_leave_nothing_in_the_lists(universe: cmwq.Runtime, gate: Gate) -> None:
    wq = cmwq.WorkQueue("q", max_active=1, runtime=universe)
    wq.submit(gate)
    gate.await_arrivals(1)
    work = cmwq.Work(int)
    done: list[int] = []
    for n in range(5000):
        assert wq.queue(work)
        assert work.cancel()
        if n % 1000 == 0:
            wq.submit(done.append, n)
    (pwq,) = wq.places()
    assert len(pwq.inactive) < 300
    gate.open.set()
    wq.flush(HANG)
    assert done == [0, 1000, 2000, 3000, 4000]


def test_F4_either_it_is_taken_back_or_it_runs() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", max_active=2, runtime=runtime)
        runs: list[int] = []
        works = [cmwq.Work(runs.append, n) for n in range(6)]
        cancelled: list[bool] = []

        def cancel() -> None:
            cancelled.extend(work.cancel() for work in works)

        queued = [wq.queue(work) for work in works]
        threads = [sim.host.spawn(f"cancel {n}", cancel) for n in range(2)]
        queued += [wq.queue(work) for work in works]
        for thread in threads:
            thread.join()
        wq.flush()
        assert len(runs) == sum(queued) - sum(cancelled)
        view = runtime.snapshot().queues[0]
        assert (view.active, view.inactive, view.unfinished) == (0, 0, 0)

    simulate_each(scenario, 60, cpus=2)


def test_F5_it_waits_for_a_running_execution(runtime: cmwq.Runtime, gate: Gate) -> None:
    wq = cmwq.WorkQueue("q", runtime=runtime)
    ended: list[int] = []
    work = cmwq.Work(lambda: (gate(), ended.append(1)))
    wq.queue(work)
    gate.await_arrivals(1)
    results: list[tuple[bool, bool]] = []
    canceller = threading.Thread(target=lambda: results.append((work.cancel_sync(HANG), bool(ended))))
    canceller.start()
    while not work.is_blocked:
        runtime.snapshot()
    assert not wq.queue(work), "nobody can queue it meanwhile"
    with pytest.raises(cmwq.WorkDisabled, match=r"<cmwq\.Work .*> can't be submitted to queue 'q' until it is enabled"):
        wq.submit(work)
    gate.open.set()
    canceller.join(HANG)
    assert results == [(False, True)]
    assert wq.queue(work), "afterwards it can be queued"
    wq.flush(HANG)
    assert len(ended) == 2


def test_F5_a_work_that_requeues_itself_comes_to_rest(runtime: cmwq.Runtime) -> None:
    wq = cmwq.WorkQueue("q", runtime=runtime)
    runs: list[int] = []
    often = threading.Event()

    def body() -> None:
        wq.queue(work)
        runs.append(1)
        if len(runs) > 5:
            often.set()

    work = cmwq.Work(body)
    wq.queue(work)
    assert often.wait(HANG)
    work.cancel_sync(HANG)
    count = len(runs)
    assert not work.pending
    assert not work.running
    wq.flush(HANG)
    assert len(runs) == count
    assert wq.queue(work)
    work.cancel_sync(HANG)


def test_F5_after_it_returns_the_work_neither_waits_nor_runs() -> None:
    """Whatever others do meanwhile: queue it here and there, delay it, cancel it too. All cancellers return."""

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        queues = [
            cmwq.WorkQueue("a", runtime=runtime),
            cmwq.WorkQueue("b", scope="cpu", runtime=runtime),
            cmwq.WorkQueue("c", ordered=True, runtime=runtime),
        ]
        rng = random.Random(sim.host.steps)
        inside = runs = 0

        def body() -> None:
            nonlocal inside, runs
            inside += 1
            runs += 1
            sim.sleep(0.001)
            if runs < 500:
                rng.choice(queues).queue(work)
            inside -= 1

        work = cmwq.DelayedWork(body)

        def queueing() -> None:
            for _ in range(6):
                choice = rng.random()
                if choice < 0.4:
                    rng.choice(queues).queue(work)
                elif choice < 0.7:
                    rng.choice(queues).queue_delayed(work, rng.choice([0.0, 0.0005]))
                else:
                    rng.choice(queues).mod_delayed(work, rng.choice([0.0, 0.0005]))
                sim.sleep(0.0004)

        def cancelling() -> None:
            for _ in range(3):
                work.disable()
                work.cancel_sync()
                assert not inside, "it runs after cancel_sync returned"
                assert not work.pending
                assert not work.running
                work.enable()
                sim.sleep(0.0007)

        threads = [sim.host.spawn(f"thread {n}", body) for n, body in enumerate([queueing] * 2 + [cancelling] * 2)]
        for thread in threads:
            thread.join()
        work.cancel_sync()
        assert not work.pending
        assert not work.running
        assert runs < 500, "it requeued itself while it was cancelled"
        assert queues[0].queue(work)
        work.cancel_sync()

    simulate_each(scenario, 80, cpus=2)


def test_F5_a_requeueing_on_its_way_comes_too_late() -> None:
    """Between the two steps of queue(), somebody begins to cancel: then it returns False."""

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime)
        runs = 0

        def body() -> None:
            nonlocal runs
            runs += 1
            if runs % 10 == 0:
                sim.sleep(0)  # whoever waits for its turn gets it
            if runs < 200:
                wq.queue(work)

        work = cmwq.Work(body)
        for _ in range(4):
            runs = 0
            assert wq.queue(work)
            while not runs:
                sim.host.seam()  # another may go first: time does not pass
            work.cancel_sync()
            assert runs < 200, "it requeued itself while it was cancelled"
            assert not work.pending
            assert not work.running

    simulate_each(scenario, 40, cpus=2)


@pytest.mark.parametrize("verb", ["cancel_sync", "disable_sync"])
def test_F5_while_the_first_delay_of_a_work_ends_it_is_waited_for(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The work moves from its delay to its queue, and has run nowhere: for a moment it is found in no place."""
    hand_over = Queued.hand_over

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime)

        def slowly(item: Queued, place: PoolWorkQueue) -> None:
            sim.host.sleep(0.010)  # here the timer's thread holds the work's lock
            hand_over(item, place)
            sim.host.sleep(0.010)  # and the work begins before others get that

        def body() -> None:
            sim.note("begins")
            sim.sleep(1.0)
            sim.note("ends")

        monkeypatch.setattr(Queued, "hand_over", slowly)
        work = cmwq.DelayedWork(body)
        wq.queue_delayed(work, 0.100)
        sim.sleep(0.105)
        assert not work.running, "it is moving"
        getattr(work, verb)()
        assert not work.running
        sim.note("returned")
        monkeypatch.setattr(Queued, "hand_over", hand_over)

    log = [text for _, text in simulate(scenario, cpus=2).log]
    assert log == ["begins", "ends", "returned"]


def test_F5_a_work_that_is_queued_for_the_first_time_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """As cancel_sync is called it has run nowhere, and it begins just before its lock is taken."""
    here = cmwq.Work._here

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime)
        work = cmwq.Work(sim.sleep, 1.0)

        def too_late(work: cmwq.Work) -> Lock:
            monkeypatch.setattr(cmwq.Work, "_here", here)
            assert wq.queue(work)
            sim.sleep(0.5)
            assert work.running
            return here(work)

        monkeypatch.setattr(cmwq.Work, "_here", too_late)
        assert not work.cancel_sync(), "it had begun"
        assert not work.running
        assert sim.host.now == 1.0

    simulate(scenario, cpus=2)


def test_F5_all_concurrent_cancellers_return(universe: cmwq.Runtime, gate: Gate) -> None:
    wq = cmwq.WorkQueue("q", runtime=universe)
    work = cmwq.Work(gate)
    wq.queue(work)
    gate.await_arrivals(1)
    wq.queue(work)
    results: list[bool] = []
    cancellers = [threading.Thread(target=lambda: results.append(work.cancel_sync(HANG))) for _ in range(4)]
    for canceller in cancellers:
        canceller.start()
    while work.pending or len(work._cancels) < 4:
        universe.snapshot()
    gate.open.set()
    for canceller in cancellers:
        canceller.join(HANG)
    assert sorted(results) == [False, False, False, True], "one of them took it back"
    assert not work.is_blocked


def test_F5_after_a_timeout_it_can_be_queued_again(universe: cmwq.Runtime, gate: Gate) -> None:
    wq = cmwq.WorkQueue("q", runtime=universe)
    work = cmwq.Work(gate)
    wq.queue(work)
    gate.await_arrivals(1)
    wq.queue(work)
    with pytest.raises(cmwq.CmwqTimeout, match=r"cancel_sync: <cmwq\.Work .* running> did not end after 0\.01 s"):
        work.cancel_sync(0.01)
    assert not work.pending, "it was taken back all the same"
    assert wq.queue(work)
    assert work.cancel()


def test_F5_of_an_idle_work_it_returns_at_once(universe: cmwq.Runtime) -> None:
    work = cmwq.Work(int)
    assert not work.cancel_sync()
    wq = cmwq.WorkQueue("q", runtime=universe)
    wq.queue(work)
    wq.flush(HANG)
    assert not work.cancel_sync(HANG)


def test_F5_a_pending_work_of_a_stuck_queue_is_not_waited_for() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", max_active=1, runtime=runtime)
        wq.submit(sim.sleep, 10.0)
        work = cmwq.Work(int)
        wq.queue(work)
        assert work.cancel_sync()
        assert sim.host.now == 0

    simulate(scenario)
