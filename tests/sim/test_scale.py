"""What the simulator has for large and harsh scenarios: what threads cost, CPUs that come and go, times without
threads, checks now and then, a sensor that marks.
"""

from __future__ import annotations

import random
from unittest import mock

import pytest
import test_interleavings
from simulated import with_each

import cmwq
from cmwq._errors import InvariantError, ThreadLimit
from cmwq.testing import Simulation


def test_to_create_a_thread_takes_its_creator_time() -> None:
    sim = Simulation()
    sim.host.spawn_cost = 0.25

    def main() -> None:
        for name in ("first", "second"):
            sim.host.spawn(name, lambda name=name: sim.note(name))  # type: ignore[misc]
        sim.note("created")
        sim.host.sleep(1.0)

    sim.run(main)
    assert sim.log == [(250.0, "first"), (500.0, "created"), (500.0, "second")]


@pytest.mark.parametrize("cost", [0.0, 0.25])
def test_who_is_woken_runs_a_while_later_and_once(cost: float) -> None:
    sim = Simulation()
    sim.host.wake_cost = cost

    def main() -> None:
        parker = sim.host.parker()

        def sleeper() -> None:
            for _ in range(2):
                parker.park()
                sim.note("awake")
                sim.host.sleep(0.5)
                sim.note("slept")

        thread = sim.host.spawn("sleeper", sleeper)
        for _ in range(2):
            sim.host.sleep(1.0)
            parker.unpark()
            parker.unpark()
        thread.join()

    sim.run(main)
    late = cost * 1000
    assert sim.log == [
        (1000 + late, "awake"),
        (1500 + late, "slept"),
        (2000 + late, "awake"),
        (2500 + late, "slept"),
    ]


def test_a_wake_up_that_comes_after_the_timeout_wakes_nobody_from_something_else() -> None:
    sim = Simulation()
    sim.host.wake_cost = 0.25

    def main() -> None:
        parker = sim.host.parker()

        def sleeper() -> None:
            assert parker.park(0.1)  # unparked, though not woken by it
            sim.host.sleep(5.0)
            sim.note("slept")

        thread = sim.host.spawn("sleeper", sleeper)
        sim.host.sleep(0.05)
        parker.unpark()
        thread.join()

    sim.run(main)
    assert sim.log == [(5100.0, "slept")]


def test_a_pool_grows_as_fast_as_threads_can_be_made() -> None:
    sim = Simulation(cpus=4)
    sim.host.spawn_cost = 0.010

    def main() -> None:
        with sim.runtime() as runtime:
            wq = cmwq.WorkQueue("q", runtime=runtime)
            for n in range(4):
                wq.submit(lambda n=n: (sim.note(f"{n}"), sim.burn(1.0)))  # type: ignore[misc]
            wq.flush()

    sim.run(main)
    # Each makes the next before it begins, and the first had to be made itself.
    assert sim.log == [(20.0, "0"), (30.0, "1"), (40.0, "2"), (50.0, "3")]


def test_threads_are_refused_at_certain_times() -> None:
    sim = Simulation()

    def main() -> None:
        sim.host.refuse_during((1.0, 2.0), (3.0, 4.0))
        for _ in range(5):
            try:
                sim.host.spawn("thread", lambda: None)
                sim.note("created")
            except ThreadLimit:
                sim.note("refused")
            sim.host.sleep(1.0)

    sim.run(main)
    assert [text for _, text in sim.log] == ["created", "refused", "created", "refused", "created"]


def test_as_many_burn_as_there_are_cpus_whenever_that_changes() -> None:
    sim = Simulation(cpus=4)

    def main() -> None:
        def burner(n: int) -> None:
            sim.note(f"{n}")
            sim.burn(1.0)
            sim.note(f"{n} ends")

        threads = [sim.host.spawn(f"burner {n}", lambda n=n: burner(n)) for n in range(10)]  # type: ignore[misc]
        sim.host.sleep(0.5)
        sim.host.set_cpus([0])  # four burn, and do so to the end
        sim.host.sleep(1.0)
        sim.host.set_cpus(range(3))  # at 1.5 one burns, and two more may begin
        assert (sim.host.cpus(), sim.host.cpu_limit()) == ((0, 1, 2), 3)
        for thread in threads:
            thread.join()

    sim.run(main)
    ends = [(at, text.split()[0]) for at, text in sim.log if text.endswith("ends")]
    assert [at for at, _ in ends] == [1000.0] * 4 + [2000.0] + [2500.0] * 2 + [3000.0] + [3500.0] * 2
    assert [n for _, n in ends] == [str(n) for n in range(10)]


def test_cpus_keep_their_neighbours_when_others_leave() -> None:
    sim = Simulation(cpus=8)
    sim.host.set_cpus([0, 2, 3, 5])
    assert sim.host.cpu_groups("smt", sim.host.cpus()) == ((0,), (2, 3), (5,))
    assert sim.host.cpu_groups("cache", sim.host.cpus()) == ((0, 2, 3), (5,))
    assert sim.host.cpu_groups("system", sim.host.cpus()) == ((0, 2, 3, 5),)


def test_a_pools_concurrency_follows_the_cpus_of_its_scope() -> None:
    sim = Simulation(cpus=8)

    def main() -> None:
        with sim.runtime() as runtime:
            pool = runtime.pool_at("cache", 6)
            assert (pool.cpus, pool.target) == ((4, 5, 6, 7), 4)
            for cpus, served in (((0, 1, 5, 6), (5, 6)), ((6,), (6,)), (range(8), (4, 5, 6, 7))):
                sim.host.set_cpus(cpus)
                runtime.check_cpus()
                assert (pool.cpus, pool.target) == (served, len(served))
                assert runtime.pool_at("cache", 6) is pool

    sim.run(main)


def test_a_pool_made_after_cpus_left_serves_those_that_are_there() -> None:
    sim = Simulation(cpus=8)

    def main() -> None:
        with sim.runtime() as runtime:
            runtime.pool_at("cache", 0)  # from now on it is known which belong together
            sim.host.set_cpus([0, 1, 5, 6])
            runtime.check_cpus()
            assert runtime.pool_at("cache", 6).cpus == (5, 6)
            sim.host.here = 7  # it left: whoever still runs there is served elsewhere
            assert runtime.pool_here("cpu").cpus[0] in (0, 1, 5, 6)

    sim.run(main)


@pytest.mark.parametrize("check_every", [1, 10**9])
def test_invariants_are_checked_every_so_many_steps_and_at_the_end(check_every: int) -> None:
    def run(mended: bool) -> None:
        sim = Simulation()

        def main() -> None:
            runtime = sim.runtime(check_every=check_every)
            pool = runtime.pool_here("system")
            pool.nr_blocked += 1
            sim.host.pause()
            sim.host.sleep(1.0)
            pool.nr_blocked -= mended

        sim.run(main)

    with pytest.raises(InvariantError, match="A5"):
        run(mended=False)
    if check_every == 1:
        with pytest.raises(InvariantError, match="A5"):
            run(mended=True)
    else:
        run(mended=True)


def test_a_thousand_cpus() -> None:
    """As many works as they can do in 4 ms, queued in no time, take 4 ms."""
    sim = Simulation(cpus=1_024, marks=True)

    def main() -> None:
        with sim.runtime(max_workers=4_096, check_every=5_000) as runtime:
            wq = cmwq.WorkQueue("q", max_active=4_096, runtime=runtime)
            for _ in range(4_096):
                wq.submit(sim.burn, 0.001)
            wq.flush()
            sim.note("done")

    sim.run(main)
    assert sim.log == [(4.0, "done")]


def test_a_sensor_that_marks_notices_at_once_too() -> None:
    sim = Simulation(marks=True)

    def main() -> None:
        with sim.runtime() as runtime:
            wq = cmwq.WorkQueue("q", runtime=runtime)
            for n in range(20):
                wq.submit(lambda n=n: (sim.note(f"{n}"), sim.burn(0.001), sim.sleep(1.0)))  # type: ignore[misc]
            wq.flush()

    sim.run(main)
    assert sim.log == [(float(n), f"{n}") for n in range(20)]


def test_100_interleavings_with_marks_and_costs_keep_every_invariant() -> None:
    def harsher(**options: object) -> Simulation:
        sim = Simulation(marks=True, **options)  # type: ignore[arg-type]
        rng = random.Random(options["seed"])  # type: ignore[arg-type]
        sim.host.wake_cost, sim.host.spawn_cost = rng.choice([0.0, 1e-5, 5e-4]), rng.choice([0.0, 1e-4, 2e-3])
        return sim

    with mock.patch.object(test_interleavings, "Simulation", harsher):
        with_each(range(100), test_interleavings.run_program)
