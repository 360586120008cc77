"""F1: what flushes of a stuck queue leave behind."""

from __future__ import annotations

import pytest
from simulated import simulate, simulate_each

import cmwq
from cmwq._workqueue.pwq import PoolWorkQueue
from cmwq.testing import Simulation


def only_place(wq: cmwq.WorkQueue) -> PoolWorkQueue:
    (place,) = wq.places()
    return place


def test_F1_a_stuck_queue_that_is_flushed_again_and_again_grows_by_its_works_alone() -> None:
    """Between the flushes works come, and end."""

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime)
        stuck = [wq.submit(sim.sleep, 1_000.0)]
        for n in range(200):
            wq.submit(sim.sleep, 0.5)
            with pytest.raises(cmwq.CmwqTimeout):
                wq.flush(timeout=0.1 if n % 2 else 0.9)
            if n % 100 == 50:
                stuck.append(wq.submit(sim.sleep, 1_000.0))
        sim.sleep(1.0)
        with pytest.raises(cmwq.CmwqTimeout):
            wq.flush(timeout=0.1)
        place = only_place(wq)
        assert len(place.sealed) <= len(stuck)
        assert not any(phase.parkers for phase in place.sealed)
        assert not any(future.done() for future in stuck)
        wq.flush()
        assert all(future.done() for future in stuck)
        assert not place.sealed

    simulate(scenario, cpus=2)


def test_F1_a_flush_of_a_phase_that_became_one_with_another_returns_with_that() -> None:
    """The first work ends last; each flush returns when all before it have ended, and no earlier."""

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime)
        seconds = [3.0, 1.0, 2.0, 0.5, 4.0]
        returned: dict[int, float] = {}

        def flush(index: int) -> None:
            wq.flush()
            returned[index] = sim.host.now

        threads = []
        for index, each in enumerate(seconds):
            wq.submit(sim.sleep, each)
            threads.append(sim.host.spawn(f"flusher {index}", lambda index=index: flush(index)))  # type: ignore[misc]
            while len(only_place(wq).sealed) <= index:
                sim.host.pause()
        for thread in threads:
            thread.join()
        assert [returned[n] for n in range(len(seconds))] == [max(seconds[: n + 1]) for n in range(len(seconds))]

    simulate(scenario, cpus=2)


def test_F1_a_phase_that_is_merged_before_it_is_waited_for() -> None:
    """Of a queue on two pools both are sealed first; the second's phase is merged while the first is waited for."""

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", scope="cpu", runtime=runtime)
        wq.queue_on(0, cmwq.Work(sim.sleep, 1.0))
        wq.queue_on(1, cmwq.Work(sim.sleep, 3.0))
        with pytest.raises(cmwq.CmwqTimeout):
            wq.flush(timeout=0.001)
        wq.queue_on(1, cmwq.Work(sim.sleep, 0.5))
        wq.flush()
        assert sim.host.now == 3.0

    simulate_each(scenario, 10, cpus=2)
