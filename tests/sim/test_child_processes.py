"""A10 in the simulator: a worker that waits for child processes counts as running while one of them computes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

import cmwq
from cmwq._pool.worker import current_worker
from cmwq.testing import Simulation

SEEDS = [None, 1, 4]
BURN, SLEEP = ("burn", 0.1), ("sleep", 0.1)


class Peak:
    """How many children compute, or wait for a CPU, at once, after every step."""

    def __init__(self, sim: Simulation) -> None:
        self.most = 0
        self._host = sim.host
        sim.host.on_step.append(self._count)

    def _count(self) -> None:
        children = [child for started in self._host._children.values() for child in started]
        busy = [child for child in children if child.burns_since is not None or child in self._host._cpu_queue]
        self.most = max(self.most, len(busy))


@pytest.fixture(params=[(seed, marks) for seed in SEEDS for marks in (False, True)], ids=str)
def simulation(request: pytest.FixtureRequest) -> Callable[[], Simulation]:
    """Makes one: a test that runs on several threads at once needs as many."""
    seed, marks = request.param
    return partial(Simulation, cpus=2, seed=seed, late=0.003 if seed and seed > 3 else 0.0, marks=marks)


def flood(sim: Simulation, *bodies: Callable[[], object]) -> float:
    """Run these works in one queue to their ends. Returns the seconds that took."""
    runtime = sim.runtime()

    def main() -> float:
        wq = cmwq.WorkQueue("q", runtime=runtime)
        futures = [wq.submit(body) for body in bodies]
        for future in futures:
            future.result()
        took = sim.host.now
        runtime.close()
        return took

    return sim.run(main)


def test_A10_a_flood_of_children_that_compute_runs_as_many_as_there_are_cpus(
    simulation: Callable[[], Simulation],
) -> None:
    sim = simulation()
    peak = Peak(sim)
    took = flood(sim, *[lambda: sim.run_child(BURN)] * 20)
    assert peak.most <= (4 if sim.host._random else 2)  # one more per CPU, where a look may come too early
    assert took < 1.1


def test_A10_E12_so_does_a_flood_that_is_pulled_from_a_source(simulation: Callable[[], Simulation]) -> None:
    """As few wait with their calls, too; the others stay in the source."""
    sim = simulation()
    peak, runtime, begun = Peak(sim), sim.runtime(), list[int]()

    def child(number: int) -> None:
        begun.append(number)
        sim.run_child(BURN)

    def main() -> float:
        wq, calls = cmwq.WorkQueue("q", runtime=runtime), [partial(child, number) for number in range(20)]
        serving = wq.serve(calls)
        while not serving.over:
            assert serving.given - len(begun) <= 2 + 1
            sim.sleep(0.005)
        took = sim.host.now
        runtime.check_invariants()
        runtime.close()
        return took

    took = sim.run(main)
    assert sorted(begun) == list(range(20))
    # In order, but for threads that pass one another on the way to their calls.
    assert all(abs(number - position) <= 2 for position, number in enumerate(begun))
    assert peak.most <= (4 if sim.host._random else 2)
    assert took < 1.1


def test_A10_a_flood_of_children_that_sleep_runs_all_at_once(simulation: Callable[[], Simulation]) -> None:
    sim = simulation()
    assert flood(sim, *[lambda: sim.run_child(SLEEP)] * 40) < 0.3


def test_A10_children_that_begin_with_a_computation_and_sleep_then(simulation: Callable[[], Simulation]) -> None:
    sim = simulation()
    peak = Peak(sim)
    took = flood(sim, *[lambda: sim.run_child(("burn", 0.001), ("sleep", 1.0))] * 20)
    assert peak.most <= 4
    assert took < 1.2


def test_A10_a_mixture_keeps_the_cpus_busy(simulation: Callable[[], Simulation]) -> None:
    sim = simulation()
    peak = Peak(sim)
    took = flood(sim, *[lambda: sim.run_child(BURN), lambda: sim.run_child(SLEEP)] * 10)
    assert peak.most <= 4
    assert took < 0.75  # half a second of computation for each CPU


def test_A10_children_that_wake_up_and_compute(simulation: Callable[[], Simulation]) -> None:
    """Nothing can be done about those, but no more are started meanwhile."""
    sim = simulation()
    peak = Peak(sim)
    flood(sim, *[lambda: sim.run_child(("sleep", 0.05), BURN)] * 8, *[lambda: sim.run_child(BURN)] * 8)
    assert peak.most <= 12


def test_A10_works_whose_children_have_slept_do_not_all_compute_at_once(simulation: Callable[[], Simulation]) -> None:
    sim = simulation()
    peak = Peak(sim)
    flood(sim, *[lambda: sim.run_child(SLEEP)] * 20, *[lambda: sim.run_child(BURN)] * 40)
    assert peak.most <= 4


def test_A9_A10_other_works_pass_children_that_compute_for_long(simulation: Callable[[], Simulation]) -> None:
    sim = simulation()
    runtime = sim.runtime()
    waits: list[float] = []

    def short(queued_at: float) -> None:
        waits.append(sim.host.now - queued_at)

    def main() -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime)
        futures = [wq.submit(sim.run_child, ("burn", 1.0)) for _ in range(8)]
        for _ in range(40):
            futures.append(wq.submit(short, sim.host.now))  # type: ignore[arg-type]
            sim.host.sleep(0.02)
        assert len(waits) == 40
        for future in futures:
            future.result()
        runtime.close()

    sim.run(main)
    assert max(waits) < 0.05


def test_A10_works_of_one_function_begin_in_order(simulation: Callable[[], Simulation]) -> None:
    sim = simulation()
    begun: list[int] = []

    def body(n: int) -> None:
        begun.append(n)
        sim.run_child(("burn", 0.05))

    flood(sim, *[lambda n=n: body(n) for n in range(20)])
    if not sim.host._random:
        assert begun == list(range(20))
    assert sorted(begun) == list(range(20))


def test_A10_what_a_child_starts_counts_too(simulation: Callable[[], Simulation]) -> None:
    sim = simulation()
    peak = Peak(sim)

    def shell() -> None:
        sim.host.start_child(lambda: sim.start_child(BURN).join()).join()

    assert flood(sim, *[lambda: sim._wait(shell)] * 12) < 0.8
    assert peak.most <= 4


def test_A10_a_work_that_sleeps_when_its_child_is_gone_is_blocked(simulation: Callable[[], Simulation]) -> None:
    sim = simulation()

    def body() -> None:
        sim.run_child(BURN)
        sim.sleep(1.0)

    assert flood(sim, *[body] * 10) < 1.7


def test_A10_a_child_left_behind_is_not_the_next_works(simulation: Callable[[], Simulation]) -> None:
    """It computes for long, while later works of the same worker sleep."""
    sim = simulation()

    def leave() -> None:
        sim.start_child(("sleep", 0.01), ("burn", 5.0))
        sim.sleep(0.005)

    assert flood(sim, leave, leave, *[lambda: sim.sleep(0.1)] * 40) < 0.7


def test_A10_works_that_wait_for_works_are_never_held_up_by_children(simulation: Callable[[], Simulation]) -> None:
    sim = simulation()
    runtime = sim.runtime()

    def main() -> int:
        wq = cmwq.WorkQueue("q", runtime=runtime)

        def nested(depth: int) -> int:
            sim.start_child(("burn", 0.05))
            return wq.submit(nested, depth - 1).result() + 1 if depth else 0

        futures = [wq.submit(nested, 5) for _ in range(5)]
        total = sum(future.result() for future in futures)
        runtime.close()
        return total

    assert sim.run(main) == 25


@pytest.mark.parametrize("rests", [0.0, 0.008])
def test_E1_A10_a_work_that_lent_its_place_has_it_again_when_its_children_have_computed(
    monkeypatch: pytest.MonkeyPatch, rests: float
) -> None:
    """Else the next work of its worker would have lent nothing when it waits, and would wait for ever."""
    monkeypatch.setattr("cmwq._workqueue.options.DFL_ACTIVE", 4)
    sim = Simulation(cpus=1)
    lent: list[bool] = []

    def main() -> int:
        runtime = sim.runtime(lends=True, config=cmwq.Config(cpu_intensive_thresh=0.01))
        many = cmwq.WorkQueue("many", runtime=runtime)
        one = cmwq.WorkQueue("one", max_active=1, runtime=runtime)
        others = cmwq.WorkQueue("others", runtime=runtime)
        nested: list[cmwq.Future[int]] = []

        def parent() -> None:
            sim.run_child(("sleep", 3.0), ("burn", 0.5))
            worker = current_worker()
            assert worker is not None
            lent.append(worker.lender is not None)
            sim.burn(0.008)  # the timer sees that no child computes, and that it runs
            nested.append(one.submit(lambda: one.submit(int).result()))
            sim.burn(rests)

        many.submit(parent)
        for _ in range(12):
            many.submit(sim.sleep, 60.0)
        sim.sleep(3.1)
        for _ in range(40):
            others.submit(sim.burn, 0.01)
        while not nested:
            sim.sleep(0.01)
        result = nested[0].result(200.0)
        runtime.close()
        return result

    assert sim.run(main) == 0
    assert lent == [True], "else this shows nothing"


@pytest.mark.parametrize("thresh", [0.0, 0.01])
def test_A10_works_that_wait_for_one_another_while_their_children_compute_come_to_an_end(thresh: float) -> None:
    """The lane never stands still, whether or not hogs are looked for."""
    sim = Simulation(cpus=1)
    arrived: list[int] = []

    def body() -> None:
        arrived.append(1)
        while len(arrived) < 4 and sim.host.now < 60:
            sim.run_child(("burn", 0.05))

    def main() -> None:
        runtime = sim.runtime(config=cmwq.Config(cpu_intensive_thresh=thresh))
        wq = cmwq.WorkQueue("q", runtime=runtime)
        for _ in range(4):
            wq.submit(body)
        wq.flush()
        runtime.close()

    sim.run(main)
    assert sim.host.now < 20
