"""A11 in the simulator: while memory is short nobody new is started, as long as one runs."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import cmwq
from cmwq._pool import memory
from cmwq._pool.pool import WorkerPool
from cmwq.testing import Simulation

MB = 1_000_000
SEEDS = [None, 1, 2, 3]


class Machine:
    """A simulation whose works use memory; it was once used up if `most` is above the limit."""

    def __init__(self, seed: int | None, limit: int | None, *, own: int = 40 * MB) -> None:
        self.sim = Simulation(cpus=2, seed=seed)
        self.sim.host.memory_limit = limit
        self.sim.host.memory_used = self.most = own
        self.running = self.most_running = 0

    def take(self, size: int) -> None:
        self.sim.host.memory_used += size
        self.most = max(self.most, self.sim.host.memory_used)

    def work(self, size: int, seconds: float) -> None:
        """Allocate that much in some steps, and hold it while it sleeps."""
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        for _ in range(5):
            self.sim.burn(0.002)
            self.take(size // 5)
        self.sim.sleep(seconds)
        self.take(-(size // 5) * 5)
        self.running -= 1

    def run(self, scenario: Callable[[cmwq.Runtime, cmwq.WorkQueue], None]) -> None:
        def main() -> None:
            with self.sim.runtime(check_every=3) as runtime:
                wq = cmwq.WorkQueue("q", runtime=runtime)
                scenario(runtime, wq)
                wq.flush()

        self.sim.run(main)


def only_pool(runtime: cmwq.Runtime) -> WorkerPool:
    (pool,) = runtime._pools.values()
    return pool


@pytest.mark.parametrize("seed", SEEDS)
def test_A11_works_that_would_not_fit_together_run_as_many_as_fit(seed: int | None) -> None:
    machine = Machine(seed, 300 * MB)
    machine.run(lambda runtime, wq: wq.submit_many(lambda n: machine.work(30 * MB, 0.5), range(100)) and None)
    assert machine.most <= 300 * MB
    assert machine.most_running >= 5
    assert machine.sim.host.now < 100 * 0.5 / 4


@pytest.mark.parametrize("seed", SEEDS)
def test_A11_where_there_is_enough_nothing_is_held_back(seed: int | None) -> None:
    machine = Machine(seed, 64_000 * MB)
    machine.run(lambda runtime, wq: wq.submit_many(lambda n: machine.work(10 * MB, 1.0), range(100)) and None)
    assert machine.most_running == 100
    assert machine.sim.host.now < 1.7


def test_A11_where_nothing_is_known_nothing_is_held_back() -> None:
    machine = Machine(None, None)
    machine.run(lambda runtime, wq: wq.submit_many(lambda n: machine.work(10 * MB, 1.0), range(100)) and None)
    assert machine.most_running == 100


def test_A11_one_always_runs() -> None:
    """Others have used up the memory."""
    machine = Machine(None, 300 * MB, own=299 * MB)

    def scenario(runtime: cmwq.Runtime, wq: cmwq.WorkQueue) -> None:
        futures = wq.submit_many(lambda n: machine.work(0, 0.01), range(20))
        for future in futures:
            future.result()

    machine.run(scenario)
    assert machine.most_running <= 3  # two begin before the first look


def test_A11_a_work_that_comes_while_none_runs_begins_at_once() -> None:
    machine = Machine(None, 300 * MB, own=299 * MB)

    def scenario(runtime: cmwq.Runtime, wq: cmwq.WorkQueue) -> None:
        wq.submit(int).result()
        pool = only_pool(runtime)
        with pool.lock:
            memory._hold(pool)
        now = machine.sim.host.now
        assert wq.submit(lambda: machine.sim.host.now).result() == now

    machine.run(scenario)


def test_A11_it_grows_back() -> None:
    machine = Machine(None, 300 * MB)

    def scenario(runtime: cmwq.Runtime, wq: cmwq.WorkQueue) -> None:
        machine.take(250 * MB)
        futures = wq.submit_many(lambda n: machine.work(0, 0.2), range(100))
        machine.sim.sleep(0.5)
        assert only_pool(runtime).memory.held
        assert runtime.snapshot().pools[0].held
        assert machine.running <= 3
        machine.take(-250 * MB)
        machine.sim.sleep(0.3)
        assert machine.running > 30
        assert not runtime.snapshot().pools[0].held
        for future in futures:
            future.result()

    machine.run(scenario)


def test_A11_it_shrinks_while_many_run() -> None:
    machine = Machine(None, 1000 * MB)

    def scenario(runtime: cmwq.Runtime, wq: cmwq.WorkQueue) -> None:
        futures = wq.submit_many(lambda n: machine.work(MB, 0.2), range(200))
        machine.sim.sleep(0.15)
        assert machine.running > 20
        machine.take(990 * MB - machine.sim.host.memory_used)
        machine.sim.sleep(0.6)
        assert machine.running <= 3
        machine.take(-920 * MB)
        for future in futures:
            future.result()

    machine.run(scenario)


def test_A11_works_that_wait_for_works_are_no_stall() -> None:
    """However short memory is: those that all others wait for begin."""
    machine = Machine(None, 300 * MB, own=299 * MB)

    def scenario(runtime: cmwq.Runtime, wq: cmwq.WorkQueue) -> None:
        def nested(depth: int) -> int:
            return wq.submit(nested, depth - 1).result() + 1 if depth else 0

        assert wq.submit(nested, 20).result() == 20

    machine.run(scenario)
    assert machine.sim.host.now < 2.0


def test_A11_nor_are_those_that_wait_in_ways_that_nobody_sees() -> None:
    machine = Machine(None, 300 * MB, own=299 * MB)

    def scenario(runtime: cmwq.Runtime, wq: cmwq.WorkQueue) -> None:
        ended: list[int] = []

        def waits(n: int) -> None:
            while len(ended) < n:  # for all those behind it
                machine.sim.sleep(0.1)
            ended.append(n)

        futures = [wq.submit(waits, n) for n in (3, 2, 1, 0)]
        for future in futures:
            future.result()

    machine.run(scenario)
    assert machine.sim.host.now < 30


def test_A11_the_watchdog_says_so() -> None:
    machine = Machine(None, 300 * MB, own=299 * MB)
    said: list[cmwq.Stall] = []

    def main() -> None:
        with machine.sim.runtime(watchdog=True, config=cmwq.Config(watchdog_thresh=5.0)) as runtime:
            runtime.configure(on_stall=said.append)
            wq = cmwq.WorkQueue("q", runtime=runtime)
            futures = [wq.submit(machine.sim.burn, 20.0) for _ in range(6)]
            for future in futures:
                future.result()

    machine.sim.run(main)
    assert any("memory is short (285 of 286 MiB are used" in stall.reason for stall in said), said


def test_A11_a_pass_that_nobody_used_is_not_used_when_memory_is_short_again() -> None:
    """The valve opened while all that waited was set aside, and then there was room."""
    machine = Machine(None, 300 * MB)

    def scenario(runtime: cmwq.Runtime, wq: cmwq.WorkQueue) -> None:
        futures = [wq.submit(machine.sim.sleep, seconds) for seconds in (1.5, 1.5, 0.05, 0.05, 0.05)]
        machine.sim.sleep(0.1)  # two execute, and several are idle
        pool = only_pool(runtime)
        with pool.lock:
            memory._hold(pool)
            pool.memory.passes = 1
            memory._let_go(pool)
        machine.take(259 * MB)
        machine.sim.sleep(0.5)  # the next look is due
        later = [wq.submit(machine.sim.sleep, 0.1) for _ in range(3)]
        machine.sim.sleep(0.1)
        assert pool.memory.held
        assert not any(future.running() or future.done() for future in later)
        for future in futures + later:
            future.result()

    machine.run(scenario)
