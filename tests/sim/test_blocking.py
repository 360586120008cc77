"""Why a worker isn't counted (A2, A5, A9): one answer at a time, whoever finds out, with each way a sensor reports."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import cmwq
from cmwq._pool import blocking, lending
from cmwq._pool.blocking import SAID
from cmwq._pool.pool import WorkerPool
from cmwq._pool.worker import Worker, current_worker
from cmwq.testing import Simulation
from cmwq.testing.sim_sensor import MarkingLookout


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


def test_A4_a_sensor_that_gave_a_false_alarm_is_armed_again() -> None:
    """The worker that it woke finds nothing to do, and rests again; then the only one that runs does block."""

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        order: list[str] = []
        wq = cmwq.WorkQueue("q", runtime=runtime)
        wq.submit(lambda: (sim.burn(0.002), sim.sleep(0.010), order.append("slow")))
        wq.submit(order.append, "quick")
        sim.sleep(0.001)
        (pool,) = runtime.pools()
        reserve, lookout = pool.armed_with, pool.lookout
        assert reserve is not None
        assert isinstance(lookout, MarkingLookout)
        lookout.armed = None  # one arming wakes at most one
        reserve.parker.unpark()
        sim.sleep(0.0005)
        assert reserve.idle
        wq.flush()
        assert order == ["quick", "slow"]

    simulate(scenario, marks=True)


def test_A4_one_object_is_entered_again_while_it_is_entered() -> None:
    """The work blocks until the outermost is left, and runs from then on, while it goes on."""

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq, hint = cmwq.WorkQueue("q", runtime=runtime), cmwq.blocking()
        seen: list[object] = []

        def work() -> None:
            worker = current_worker()
            assert worker is not None
            for _ in range(2):
                with hint:
                    with hint:
                        seen.append(worker.blocked)
                    seen.append(worker.blocked)
                seen.append(worker.blocked)

        wq.submit(work).result()
        assert seen == [SAID, SAID, None] * 2

    simulate(scenario)


def test_F10_a_hint_in_the_middle_of_a_critical_section_is_none() -> None:
    """A finaliser may give it there, on the thread that has the lock. It is left out, and the next one counts."""

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime)
        seen: list[object] = []

        def work() -> None:
            worker = current_worker()
            assert worker is not None
            with worker.pool.lock, cmwq.blocking():
                seen.append(worker.blocked)
            with cmwq.blocking():
                seen.append(worker.blocked)
            seen.append((worker.blocked, worker.nr_hints))

        wq.submit(work).result()
        assert seen == [None, SAID, (None, 0)]

    simulate(scenario)


def rest_of_children(worker: Worker) -> None:
    blocking.children_compute(worker)
    blocking.children_rest(worker, asleep=False)


@pytest.mark.parametrize("goes_on", [blocking.worker_running, blocking.let_go, blocking.over, rest_of_children])
def test_E1_whatever_tells_that_a_worker_goes_on_its_work_has_its_place_again(
    goes_on: Callable[[Worker], object],
) -> None:
    """A sensor; that it computes what is known to be long; the end of its item; its children."""

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        seen: list[tuple[int, bool]] = []

        def item() -> None:
            pool, worker = me()
            assert worker.item is not None
            pwq = worker.item.pwq
            with pool.lock:
                lending._lend(pool, pwq, worker)
                seen.append((pwq.nr_active, worker.lender is pwq))
                goes_on(worker)
                seen.append((pwq.nr_active, worker.lender is None))

        cmwq.WorkQueue("q", runtime=runtime).submit(item).result()
        assert seen == [(0, True), (1, True)]

    simulate(scenario)


def test_F10_a_hint_that_was_given_where_none_can_be_is_forgotten() -> None:
    """In the middle of cmwq's own code, by a finaliser or handler that does not leave it. Later ones have effect."""

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        def interrupted() -> Worker:
            pool, worker = me()
            with pool.lock:
                cmwq.blocking().__enter__()
            return worker

        def item() -> tuple[Worker, object]:
            with cmwq.blocking():
                return me()[1], me()[1].blocked

        wq = cmwq.WorkQueue("q", runtime=runtime)
        first, second = wq.submit(interrupted), wq.submit(item)  # the worker runs one right after the other
        assert second.result() == (first.result(), SAID)

    simulate(scenario)
