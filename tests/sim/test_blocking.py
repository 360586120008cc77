"""Why a worker isn't counted (A2, A5, A9): one answer at a time, whoever finds out, with each way a sensor reports."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import cmwq
from cmwq._core.pool import WorkerPool
from cmwq._core.worker import Worker, current_worker
from cmwq.testing import Simulation


def simulate(scenario: Callable[[Simulation, cmwq.Runtime], None], *, marks: bool = False) -> None:
    sim = Simulation(cpus=1, marks=marks)

    def main() -> None:
        with sim.runtime() as runtime:
            scenario(sim, runtime)

    sim.run(main)


def me() -> tuple[WorkerPool, Worker]:
    worker = current_worker()
    assert worker is not None
    return worker.pool, worker


def test_A5_who_says_that_it_blocks_counts_as_blocked_whatever_was_seen_of_it_before() -> None:
    """It was seen in a lock a moment ago, which nobody took back yet."""

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        counts: list[tuple[int, int]] = []

        def item() -> None:
            pool, worker = me()
            with pool.lock:
                pool.worker_sleeping(worker, on_lock=True)
            counts.append((pool.nr_running, pool.nr_blocked))
            with cmwq.blocking():
                counts.append((pool.nr_running, pool.nr_blocked))
            counts.append((pool.nr_running, pool.nr_blocked))

        cmwq.WorkQueue("q", runtime=runtime).submit(item).result()
        assert counts == [(0, 0), (0, 1), (1, 0)]

    simulate(scenario)


@pytest.mark.parametrize("marks", [False, True])
def test_A9_a_hog_stays_one_whatever_a_sensor_has_to_say_of_it(marks: bool) -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        counts: list[int] = []

        def item() -> None:
            pool, worker = me()
            sim.burn(0.045)
            counts.append(pool.nr_hogs)
            sim.sleep(0.001)  # it is seen to sleep, and to run again, before anybody looks at its CPU time
            counts.append(pool.nr_hogs)
            with pool.lock:
                pool.worker_sleeping(worker)
                pool.worker_running(worker)
            counts.append(pool.nr_hogs)

        wq = cmwq.WorkQueue("q", runtime=runtime)
        hog = wq.submit(item)
        others = [wq.submit(sim.burn, 0.050) for _ in range(3)]
        hog.result()
        assert counts == [1, 1, 1]
        for other in others:
            other.result()

    simulate(scenario, marks=marks)


@pytest.mark.parametrize("marks", [False, True])
def test_A2_who_said_that_it_blocks_does_so_until_it_takes_that_back(marks: bool) -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        counts: list[tuple[int, int]] = []

        def item() -> None:
            pool, worker = me()
            with cmwq.blocking():
                sim.sleep(0.001)
                with pool.lock:
                    pool.worker_running(worker)
                counts.append((pool.nr_running, pool.nr_blocked))
            counts.append((pool.nr_running, pool.nr_blocked))

        cmwq.WorkQueue("q", runtime=runtime).submit(item).result()
        assert counts == [(0, 1), (1, 0)]

    simulate(scenario, marks=marks)
