"""The rules of a pool (A and B), one by one, on the virtual clock."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from weakref import finalize

import pytest

import cmwq
from cmwq._host import ThreadHost
from cmwq._pool.pool import WorkerPool
from cmwq.testing import SimHost, Simulation
from cmwq.testing.sim_host import SimParker


def in_simulation(
    test: Callable[[Simulation, cmwq.Runtime], None], *, config: cmwq.Config | None = None, **options: int
) -> None:
    """Run test(sim, runtime) as the first thread of a simulation."""
    max_workers = options.pop("max_workers", 1024)
    sim = Simulation(**options)  # type: ignore[arg-type]

    def main() -> None:
        with sim.runtime(config=config, max_workers=max_workers) as runtime:
            test(sim, runtime)

    sim.run(main)


def only_pool(runtime: cmwq.Runtime) -> WorkerPool:
    (pool,) = runtime._pools.values()
    return pool


class Concurrency:
    """How many burn at the same time, and the most that ever did."""

    def __init__(self, sim: Simulation) -> None:
        self.sim = sim
        self.now = self.most = 0

    def burn(self, seconds: float = 0.001) -> None:
        self.now += 1
        self.most = max(self.most, self.now)
        self.sim.burn(seconds)
        self.now -= 1


@pytest.mark.parametrize("cpus", [1, 2, 4])
def test_A2_A3_a_flood_runs_on_as_many_workers_as_cpus(cpus: int) -> None:
    def test(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("flood", runtime=runtime)
        concurrency = Concurrency(sim)
        for _ in range(200):
            wq.submit(concurrency.burn)
        wq.flush()
        pool = only_pool(runtime)
        assert concurrency.most == cpus
        # One in reserve (B1), one made while the manager managed; each worker was woken once or so.
        assert pool.stats.created <= cpus + 2
        assert pool.nr_wakeups <= cpus + 2

    in_simulation(test, cpus=cpus)


def test_A4_the_next_starts_at_the_very_moment_the_last_running_one_blocks() -> None:
    def test(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime)
        for n in range(20):
            wq.submit(lambda n=n: (sim.note(f"{n}"), sim.burn(0.001), sim.sleep(1.0)))  # type: ignore[misc]
        wq.flush()
        assert sim.log == [(float(n), f"{n}") for n in range(20)]

    in_simulation(test)


@pytest.mark.skipif(
    not ThreadHost().gil_enabled(), reason="without a GIL it runs whenever counts of threads are merged"
)
def test_A4_a_finaliser_that_takes_its_time_holds_up_nobody() -> None:
    def test(sim: Simulation, runtime: cmwq.Runtime) -> None:
        runtime.pool_here("system").office.create_worker()
        wq = cmwq.WorkQueue("q", runtime=runtime)
        cancelled = wq.submit(print)
        finalize(cancelled, sim.burn, 1.0)
        cancelled.cancel()
        del cancelled
        # With the GIL nobody is woken for it: one is on the way. That one drops the cancelled call first.
        assert wq.submit(lambda: sim.host.now).result() == 0.0

    in_simulation(test, cpus=2, gil=True)


def test_A4_what_a_work_made_room_for_does_not_wait_for_its_next_execution() -> None:
    def test(sim: Simulation, runtime: cmwq.Runtime) -> None:
        one, many = cmwq.WorkQueue("one", max_active=1, runtime=runtime), cmwq.WorkQueue("many", runtime=runtime)
        work = cmwq.Work(sim.burn, 0.002)
        one.queue(work)
        behind = one.submit(lambda: sim.host.now)
        many.submit(sim.burn, 0.001)
        sim.sleep(0.0005)
        many.queue(work)  # as long as it runs this hangs behind it, and is executed first
        assert behind.result() == 0.002

    in_simulation(test, cpus=2)


def test_A4_who_finds_that_others_sleep_wakes_for_the_rest() -> None:
    def test(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime)

        def hints() -> None:
            with cmwq.blocking():
                sim.host.sleep(0.0005)
            sim.host.sleep(0.0005)

        def sleeps() -> None:
            sim.host.sleep(0.001)
            sim.sleep(1.0)

        # Three run, two fall asleep, and the third ends its work before anybody has looked.
        for fn in (hints, sleeps, sleeps, partial(sim.burn, 0.001)):
            wq.submit(fn)
        assert wq.submit(lambda: sim.host.now).result() == 0.001

    in_simulation(test, cpus=2, marks=True)


class CountedParks(SimParker):
    def __init__(self, host: SimHost, parks: list[float]) -> None:
        super().__init__(host)
        self.parks = parks

    def park(self, timeout: float = -1, spins: bool = False) -> bool:
        self.parks.append(timeout)
        return super().park(timeout, spins)


def test_A3_who_takes_results_in_turn_is_not_woken_for_each() -> None:
    """Each waking takes a CPU from a worker. While works wait it looks again by itself; the end it hears at once."""
    parks: list[float] = []

    def test(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime)
        futures = [wq.submit(sim.burn, 0.0001) for _ in range(200)]
        sim.sleep(0.00005)  # the first is running
        sim.host.parker = lambda: CountedParks(sim.host, parks)  # type: ignore[method-assign]
        for future in futures:
            future.result()
        assert sim.host.now == pytest.approx(200 * 0.0001), "it heard late of the last"

    in_simulation(test)
    assert len(parks) < 40


@pytest.mark.parametrize("max_workers", [2, 8])
def test_A3_who_looks_again_by_itself_is_woken_when_no_work_waits_any_more(max_workers: int) -> None:
    """With two workers nobody is in reserve here, and no sensor is armed."""

    def test(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime)
        if max_workers == 2:
            wq.submit(sim.sleep, 1.0)
            sim.sleep(0.5)
        first, _second = wq.submit(sim.burn, 0.0002), wq.submit(sim.burn, 0.5)
        sim.sleep(0.0001)
        began = sim.host.now
        first.result()
        assert sim.host.now - began == pytest.approx(0.0001)
        assert not only_pool(runtime).nappers

    in_simulation(test, max_workers=max_workers)


def blocked_then_a_flood(sim: Simulation, runtime: cmwq.Runtime, blocked: int) -> int:
    """That many block and wake together, with a flood waiting behind them: the most that computed at the same time."""
    wq = cmwq.WorkQueue("q", runtime=runtime)
    concurrency = Concurrency(sim)
    for _ in range(blocked):
        wq.submit(sim.sleep, 1.0)
    sim.sleep(0.5)
    for _ in range(400):
        wq.submit(concurrency.burn, 0.005)  # too short for a hog
    sim.sleep(0.5 + 1e-6)  # they have woken, and found the flood
    concurrency.most = 0
    wq.flush()
    return concurrency.most


def test_A5_concurrency_that_rose_while_workers_slept_falls_again() -> None:
    def test(sim: Simulation, runtime: cmwq.Runtime) -> None:
        # Nobody is blocked any more: no slack. (Those that found the CPU taken wait for it, and then go idle.)
        assert blocked_then_a_flood(sim, runtime, 30) <= 2
        assert len(only_pool(runtime).workers) >= 30

    in_simulation(test)


def test_A5_while_others_are_blocked_a_few_more_go_on_working() -> None:
    """The slack: whoever would go idle works on, and is there when one of those that run blocks."""

    def wakeups(slack: int) -> int:
        counted: list[int] = []

        def test(sim: Simulation, runtime: cmwq.Runtime) -> None:
            wq = cmwq.WorkQueue("q", runtime=runtime)

            def item() -> None:
                sim.burn(0.001)
                sim.sleep(0.003)

            for _ in range(300):
                wq.submit(item)
            wq.flush()
            counted.append(only_pool(runtime).nr_wakeups)

        in_simulation(test, config=cmwq.Config(slack_per_cpu=slack), cpus=2, seed=1)
        return counted[0]

    assert wakeups(4) < wakeups(0) / 2


def test_A6_who_starts_wakes_the_next() -> None:
    def test(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime)
        pool = runtime.pool_here("system")
        for _ in range(8):
            pool.office.create_worker()
        concurrency = Concurrency(sim)
        wq.submit_many(concurrency.burn, [0.001] * 8)  # wakes one; the others are woken by those that start
        wq.flush()
        assert concurrency.most == 4

    in_simulation(test, cpus=4)


def test_A7_the_warmest_idle_worker_is_woken() -> None:
    def test(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime)
        pool = runtime.pool_here("system")
        for _ in range(5):
            pool.office.create_worker()
        used = set()

        def note() -> None:
            used.add(sim.host.me().name)

        for _ in range(20):
            wq.submit(note).result()
        assert len(used) == 1

    in_simulation(test)


def test_A8_cpu_intensive_works_do_not_count() -> None:
    sim = Simulation(cpus=8)
    config = cmwq.Config(cpu_intensive_thresh=0)  # else they would be let go of as hogs

    def main() -> None:
        with cmwq.Runtime(host=sim.host, sensor=sim.sensor, cpus=(0,), config=config) as runtime:
            heavy = cmwq.WorkQueue("heavy", cpu_intensive=True, runtime=runtime)
            light = cmwq.WorkQueue("light", runtime=runtime)
            for _ in range(3):
                heavy.submit(sim.burn, 1.0)
            done = light.submit(lambda: sim.host.now)
            assert done.result() < 1.0

    sim.run(main)


def test_A9_hogs_are_let_go_of_one_per_cpu_and_no_more() -> None:
    def test(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime)
        concurrency = Concurrency(sim)
        for _ in range(12):
            wq.submit(concurrency.burn, 1.0)
        wq.flush()
        assert concurrency.most == 4
        assert wq.nr_hogs >= 8  # nobody looks while nothing waits behind them
        assert only_pool(runtime).nr_hogs == 0

    # More CPUs than the pool has, so that those that run burn and do not wait for one.
    sim = Simulation(cpus=8)

    def main() -> None:
        with cmwq.Runtime(host=sim.host, sensor=sim.sensor, cpus=(0, 1)) as runtime:
            test(sim, runtime)

    sim.run(main)


def test_A9_short_works_get_past_a_hog() -> None:
    sim = Simulation(cpus=2)

    def main() -> None:
        with cmwq.Runtime(host=sim.host, sensor=sim.sensor, cpus=(0,)) as runtime:
            wq = cmwq.WorkQueue("q", runtime=runtime)
            wq.submit(sim.burn, 10.0)
            ended = [wq.submit(lambda: sim.host.now) for _ in range(10)]
            assert max(future.result() for future in ended) < 0.05

    sim.run(main)


def test_A9_a_work_that_blocks_in_between_is_no_hog() -> None:
    def test(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime)

        def item() -> None:
            for _ in range(10):
                sim.burn(0.008)
                sim.sleep(0.001)

        for _ in range(5):
            wq.submit(item)
        wq.flush()
        assert wq.nr_hogs == 0

    in_simulation(test, cpus=1)


@pytest.mark.parametrize("seed", range(10))
def test_B1_B2_a_reserve_is_made_before_the_last_idle_worker_works(seed: int) -> None:
    def test(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime)
        # Each waits for the next: if there were ever nobody in reserve, the chain would stop.
        depth = 40

        def nest(left: int) -> int:
            return 0 if not left else 1 + wq.submit(nest, left - 1).result()

        assert wq.submit(nest, depth).result() == depth
        pool = only_pool(runtime)
        with pool.lock:
            assert pool.idle_list

    in_simulation(test, seed=seed)


def test_B2_after_a_refusal_the_manager_waits_before_it_tries_again() -> None:
    tries: list[float] = []

    def test(sim: Simulation, runtime: cmwq.Runtime) -> None:
        allowed = 1

        def refuse(name: str) -> bool:
            nonlocal allowed
            if allowed:
                allowed -= 1
                return False
            tries.append(sim.host.now)
            return sim.host.now < 2.5

        sim.host.refuse = refuse
        wq = cmwq.WorkQueue("q", runtime=runtime)
        first = wq.submit(lambda: wq.submit(len, "ab").result())  # the second needs a thread of its own
        assert first.result() == 2

    in_simulation(test)
    assert tries[:3] == pytest.approx([0.0, 1.0, 2.0])


def test_B2_during_the_pause_nobody_tries() -> None:
    tries: list[float] = []

    def test(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime)
        wq.submit(len, "").result()

        def refuse(name: str) -> bool:
            tries.append(sim.host.now)
            return True

        sim.host.refuse = refuse
        for _ in range(len(only_pool(runtime).workers) - 1):
            wq.submit(sim.sleep, 10.0)
        for _ in range(35):  # each is begun by the last idle worker
            wq.submit(len, "").result()
            sim.sleep(0.1)

    in_simulation(test)
    assert 1 <= len(tries) <= 5, tries


@pytest.mark.parametrize("seed", range(10))
def test_B2_one_manager_at_a_time(seed: int) -> None:
    def test(sim: Simulation, runtime: cmwq.Runtime) -> None:
        managers, most = 0, 0

        def slowly(name: str) -> bool:
            nonlocal managers, most
            managers += 1
            most = max(most, managers)
            sim.host.sleep(0.01)
            managers -= 1
            return False

        wq = cmwq.WorkQueue("q", runtime=runtime)
        runtime.pool_here("system").office.create_worker()
        sim.host.refuse = slowly
        for _ in range(30):
            wq.submit(sim.sleep, 0.003)
            sim.sleep(0.002)
        wq.flush()
        assert most == 1

    in_simulation(test, seed=seed, cpus=2)


@pytest.mark.parametrize("busy", [0, 1, 20, 100])
def test_B3_culling_brings_200_idle_workers_down_to_the_rule(busy: int) -> None:
    def test(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", max_active=1000, runtime=runtime)
        for _ in range(busy):
            wq.submit(sim.sleep, 100_000.0)
        for _ in range(200):
            wq.submit(sim.sleep, 1.0)
        sim.sleep(2.0)
        pool = only_pool(runtime)
        with pool.lock:
            assert len(pool.idle_list) >= 200
        sim.sleep(298.0)  # IDLE_WORKER_TIMEOUT is not over since they went idle
        with pool.lock:
            assert len(pool.idle_list) >= 200
            coldest = pool.idle_list[0]
        sim.sleep(10.0)
        with pool.lock:
            idle = len(pool.idle_list)
            # Too many while idle > 2 and (idle - 2) * 4 >= busy: two may stay, and one more for each 4 busy.
            assert idle == max(2, 1 + -(-busy // 4))
            assert coldest not in pool.idle_list, "A7: the coldest goes first"
            assert pool.alarms.cull.timer is None, "the timer exists only while there is something to cull"
        for name in ("workers", "idle"):
            assert getattr(runtime.snapshot().pools[0], name) < 200

    in_simulation(test)


def test_B6_at_the_cap_the_pool_goes_on_with_what_it_has() -> None:
    def test(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime)
        done: list[int] = []

        def item(n: int) -> None:
            sim.sleep(0.010)
            done.append(n)

        for n in range(50):
            wq.submit(item, n)
        wq.flush()
        assert sorted(done) == list(range(50))
        assert len(only_pool(runtime).workers) <= 5

    in_simulation(test, max_workers=5)
