"""A9 in the simulator: short works never wait behind long ones, and long ones never become a crowd."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import copy_context
from functools import partial

import pytest

import cmwq
from cmwq._pool.blocking import HOG
from cmwq._pool.pool import WorkerPool
from cmwq._pool.worker import current_worker
from cmwq.executor.taken import take_out
from cmwq.testing import Simulation

LONG = 1.0
PATIENCE = 0.050


class Bench:
    """A pool of two CPUs on a machine of many, so that whoever may run does, and computes side by side."""

    def __init__(self, seed: int | None = None, *, machine: int = 400) -> None:
        self.sim = Simulation(cpus=machine, seed=seed)
        self.burning = self.most = 0
        self.waits: list[float] = []
        self.begun: list[int] = []

    def run(self, scenario: Callable[[cmwq.Runtime], None]) -> None:
        def main() -> None:
            self.sim.host.check_every = 5
            with cmwq.Runtime(host=self.sim.host, sensor=self.sim.sensor, cpus=(0, 1)) as runtime:
                scenario(runtime)
                runtime.check_invariants()

        self.sim.run(main)

    def long(self, seconds: float = LONG, number: int = 0) -> None:
        self.begun.append(number)
        self.burning += 1
        self.most = max(self.most, self.burning)
        self.sim.burn(seconds)
        self.burning -= 1

    def short(self, queued_at: float) -> None:
        self.waits.append(self.sim.host.now - queued_at)

    def shorts(self, wq: cmwq.WorkQueue, number: int, body: Callable[[float], object] | None = None) -> None:
        for _ in range(number):
            wq.submit(body or self.short, self.sim.host.now)
            self.sim.sleep(0.005)


def only_pool(runtime: cmwq.Runtime) -> WorkerPool:
    (pool,) = runtime._pools.values()
    return pool


def test_A9_short_works_do_not_wait_behind_long_ones_of_the_same_wrapper() -> None:
    bench = Bench()

    def scenario(runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime)
        for _ in range(16):
            wq.submit(copy_context().run, bench.long)
        for _ in range(100):
            wq.submit(copy_context().run, bench.short, bench.sim.host.now)
            wq.submit(partial(handler, function=partial(bench.short, bench.sim.host.now)))
            wq.submit(partial(handler, function=bench.long))
            bench.sim.sleep(0.005)
        wq.flush()

    bench.run(scenario)
    assert max(bench.waits) <= PATIENCE


def handler(function: Callable[[], None]) -> None:
    function()


@pytest.mark.parametrize("number", [2, 4, 16, 64])
def test_A9_short_works_do_not_wait_behind_long_ones(number: int) -> None:
    bench = Bench()

    def scenario(runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime)
        for _ in range(number):
            wq.submit(bench.long)
        bench.shorts(wq, 100)
        wq.flush()

    bench.run(scenario)
    assert max(bench.waits) <= PATIENCE
    assert max(bench.waits[20:]) < 0.001, "once the function is known, nobody waits"
    assert bench.most <= 4


def test_A9_a_flood_of_equal_long_works_is_no_crowd() -> None:
    bench = Bench()

    def scenario(runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime, max_active=300)
        for _ in range(300):
            wq.submit(bench.long, 0.043)
        wq.flush()

    bench.run(scenario)
    assert bench.most <= 4
    assert bench.sim.host.now < 300 * 0.043 / 2 * 1.05, "both CPUs were kept busy"


def test_A9_E12_nor_is_one_that_is_pulled_from_a_source() -> None:
    bench = Bench()

    def scenario(runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime, max_active=300)
        serving = wq.serve([partial(bench.long, 0.043, number) for number in range(300)])
        while not serving.over:
            assert serving.given - len(bench.begun) <= 2 + 1, "the others stay in the source"
            bench.sim.sleep(0.005)

    bench.run(scenario)
    assert bench.begun == list(range(300))
    assert bench.most <= 4
    assert bench.sim.host.now < 300 * 0.043 / 2 * 1.05, "both CPUs were kept busy"


def test_A9_E12_a_call_of_a_source_begins_as_a_hog_once_its_function_is_known() -> None:
    """As a work that was queued does. Else others would begin beside it until it is noticed."""
    bench, began_as = Bench(), []

    def long() -> None:
        worker = current_worker()
        assert worker is not None
        began_as.append(worker.blocked)
        bench.long(0.043)

    def scenario(runtime: cmwq.Runtime) -> None:
        cmwq.WorkQueue("q", runtime=runtime).serve([long] * 20).wait()

    bench.run(scenario)
    assert began_as[4:] == [HOG] * 16


def test_A9_E12_short_calls_of_a_source_pass_a_long_one_that_has_to_wait() -> None:
    bench = Bench()

    def scenario(runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime)
        for _ in range(2):
            wq.submit(bench.long)
        bench.sim.sleep(0.1)  # it is known what they are like
        calls = [bench.long, *[partial(bench.short, bench.sim.host.now)] * 50]
        wq.serve(calls).wait()

    bench.run(scenario)
    assert len(bench.waits) == 50
    assert max(bench.waits) <= PATIENCE


@pytest.mark.parametrize("seed", range(3))
def test_A9_of_a_function_that_is_seldom_long_nothing_is_held_back_for_long(seed: int) -> None:
    """A wrapper runs everything: every tenth of its works is long."""
    bench = Bench(seed)

    def wrapper(queued_at: float) -> None:
        if len(bench.waits) % 10 == 0:
            bench.waits.append(0.0)
            bench.long(0.2)
        else:
            bench.short(queued_at)

    def scenario(runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime)
        bench.shorts(wq, 300, wrapper)
        wq.flush()
        (record,) = only_pool(runtime).lane.records.values()
        assert record.short > record.long

    bench.run(scenario)
    waits = sorted(bench.waits)
    assert waits[len(waits) * 99 // 100] <= PATIENCE


def test_A9_hogs_that_wait_for_a_cpu_are_still_hogs() -> None:
    """Else more and more of them would be let go of, the less they get to run."""
    bench = Bench(machine=1)

    def scenario(runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime)
        for _ in range(30):
            wq.submit(bench.long, 0.1)
        wq.flush()

    bench.run(scenario)
    assert bench.most <= 4


def test_A9_a_hog_that_sleeps_makes_room_for_the_next() -> None:
    bench = Bench()

    def body() -> None:
        bench.long(0.05)
        bench.sim.sleep(1.0)

    def scenario(runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime)
        for _ in range(20):
            wq.submit(body)
        wq.flush()

    bench.run(scenario)
    assert bench.sim.host.now < 3.0


def test_A8_works_that_do_not_count_are_not_held_back() -> None:
    bench = Bench()

    def scenario(runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime)
        for _ in range(10):
            wq.submit(bench.long, 10.0)
        bench.shorts(wq, 20)
        exempt = cmwq.WorkQueue("exempt", cpu_intensive=True, runtime=runtime)
        began = bench.sim.host.now
        for future in [exempt.submit(bench.long, 0.5) for _ in range(10)]:
            future.result()
        assert bench.sim.host.now - began < 1.0

    bench.run(scenario)


def test_A9_works_that_wait_for_one_another_by_computing_come_to_an_end() -> None:
    """More of them than are let go of at a time."""
    bench = Bench()
    arrived: list[int] = []

    def body() -> None:
        arrived.append(1)
        while len(arrived) < 8:
            bench.sim.burn(0.05)

    def scenario(runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime)
        for _ in range(8):
            wq.submit(body)
        wq.flush()

    bench.run(scenario)
    assert 1.0 < bench.sim.host.now < 60


def with_a_lane(check: Callable[[Bench, cmwq.Runtime, cmwq.WorkQueue, list[cmwq.Future[None]]], None]) -> None:
    """Call it while some long works run and others wait in the lane."""
    bench = Bench()

    def scenario(runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime, freezable=True)
        futures = [wq.submit(bench.long, LONG, n) for n in range(20)]
        bench.shorts(wq, 20)
        assert len(only_pool(runtime).lane.items) >= 12
        check(bench, runtime, wq, futures)
        wq.flush()
        assert not only_pool(runtime).lane.items

    bench.run(scenario)


def test_A9_works_in_the_lane_begin_in_order() -> None:
    begun: list[int] = []
    bench = Bench()

    def body(n: int) -> None:
        begun.append(n)
        bench.long(0.1)

    def scenario(runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime)
        for n in range(30):
            wq.submit(body, n)
        wq.flush()

    bench.run(scenario)
    assert begun == list(range(30))


def test_F5_works_in_the_lane_can_be_cancelled() -> None:
    def check(bench: Bench, runtime: cmwq.Runtime, wq: cmwq.WorkQueue, futures: list[cmwq.Future[None]]) -> None:
        cancelled = [future.cancel() for future in futures]
        assert sum(cancelled) >= 12
        began = bench.sim.host.now
        wq.flush()
        assert bench.sim.host.now - began < 2 * LONG

    with_a_lane(check)


def test_E8_works_in_the_lane_are_frozen_and_go_on() -> None:
    def check(bench: Bench, runtime: cmwq.Runtime, wq: cmwq.WorkQueue, futures: list[cmwq.Future[None]]) -> None:
        runtime.freeze()
        assert not only_pool(runtime).lane.items
        done = sum(future.done() for future in futures)
        bench.sim.sleep(5.0)
        assert sum(future.done() for future in futures) == done
        runtime.thaw()
        wq.flush()
        assert bench.begun == list(range(20))

    with_a_lane(check)


def test_F_a_drain_waits_for_the_lane() -> None:
    def check(bench: Bench, runtime: cmwq.Runtime, wq: cmwq.WorkQueue, futures: list[cmwq.Future[None]]) -> None:
        wq.drain()
        assert all(future.done() for future in futures)

    with_a_lane(check)


def test_G_to_close_the_runtime_does_what_is_in_the_lane() -> None:
    def check(bench: Bench, runtime: cmwq.Runtime, wq: cmwq.WorkQueue, futures: list[cmwq.Future[None]]) -> None:
        runtime.close()
        assert all(future.done() for future in futures)

    with_a_lane(check)


def test_H_works_in_the_lane_count_as_pending() -> None:
    def check(bench: Bench, runtime: cmwq.Runtime, wq: cmwq.WorkQueue, futures: list[cmwq.Future[None]]) -> None:
        (view,) = runtime.snapshot().pools
        assert view.pending == sum(not future.done() and not future.running() for future in futures)

    with_a_lane(check)


def test_F10_mending_puts_the_lane_back_and_loses_nothing() -> None:
    def check(bench: Bench, runtime: cmwq.Runtime, wq: cmwq.WorkQueue, futures: list[cmwq.Future[None]]) -> None:
        pool = only_pool(runtime)
        with pool.lock:
            pool.worklist.appendleft(pool.lane.first(pool))  # interrupted in `readmit`
            pool.mend()
            assert len(set(pool.listed())) == pool.nr_listed() >= 12

    with_a_lane(check)


# ----------------------------------------------------------------------------------- taken back in the lane


@pytest.mark.parametrize("as_work", [False, True])
def test_E1_A9_a_work_that_is_taken_back_in_the_lane_gives_its_place_to_the_next(as_work: bool) -> None:
    """The lane stands still while others compute, and the next may be a short one."""
    bench = Bench()

    def scenario(runtime: cmwq.Runtime) -> None:
        others = cmwq.WorkQueue("others", runtime=runtime)
        for _ in range(20):
            others.submit(bench.long)
        bench.shorts(others, 20)
        wq = cmwq.WorkQueue("q", max_active=1, runtime=runtime)
        work = cmwq.Work(bench.long)
        if as_work:
            wq.queue(work)
        held = None if as_work else wq.submit(bench.long)
        bench.sim.sleep(0.02)
        assert len(only_pool(runtime).lane.items) >= 12
        bench.waits.clear()
        short = wq.submit(bench.short, bench.sim.host.now)
        assert work.cancel() if held is None else held.cancel()
        runtime.check_invariants()
        short.result()

    bench.run(scenario)
    assert bench.waits[-1] < 0.001


def test_F4_works_that_are_taken_back_in_the_lane_leave_it_in_any_order() -> None:
    """More than `PURGE` of them: no list is looked through for them, and who waits is not stirred."""

    def check(bench: Bench, runtime: cmwq.Runtime, wq: cmwq.WorkQueue, futures: list[cmwq.Future[None]]) -> None:
        more = [wq.submit(bench.long, LONG, 20 + n) for n in range(150)]
        bench.sim.sleep(0.02)
        for future in more[::-2] + more[::2]:
            assert future.cancel()
            runtime.check_invariants()
        wq.flush()
        assert bench.begun == list(range(20))

    with_a_lane(check)


def test_A9_what_is_taken_back_is_not_set_aside_because_a_callback_computed_for_long() -> None:
    """A call that has ended, and one that was taken back, have no function that anything could be known of."""
    bench = Bench()

    def scenario(runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime)
        for _ in range(4):
            wq.submit(bench.sim.sleep, 0.001).add_done_callback(lambda _: bench.long(0.1))
        bench.shorts(wq, 20)
        assert not only_pool(runtime).lane.records
        for _ in range(4):  # others are known to be long
            wq.submit(bench.long)
        bench.shorts(wq, 20)
        assert len(only_pool(runtime).lane.records) == 1

    bench.run(scenario)


def test_A4_whoever_looks_through_the_lane_in_vain_leaves_nobody_resting_who_is_needed() -> None:
    def check(bench: Bench, runtime: cmwq.Runtime, wq: cmwq.WorkQueue, futures: list[cmwq.Future[None]]) -> None:
        other = cmwq.WorkQueue("other", runtime=runtime, freezable=True)
        other.submit(int).result()
        assert take_out(other) is None
        runtime.check_invariants()
        bench.sim.sleep(0.02)
        (pwq,) = other.places()
        pwq.freeze()
        runtime.check_invariants()
        pwq.thaw()

    with_a_lane(check)


def test_A10_who_is_idle_is_not_taken_for_one_whose_child_computes() -> None:
    """It took a work whose children compute, and handed it to the worker that runs the work already (E3)."""
    sim = Simulation(cpus=2)
    waits: list[float] = []

    def main() -> None:
        with sim.runtime() as runtime:
            wq = cmwq.WorkQueue("q", runtime=runtime)

            def parent() -> None:
                sim.run_child(("burn", 0.5))

            for _ in range(3):
                wq.submit(parent)  # it is known what they are like
            wq.flush()
            work = cmwq.Work(parent)
            wq.queue(work)
            wq.submit(sim.sleep, 0.1)  # its worker goes idle last, so it takes what comes next
            sim.sleep(0.05)
            wq.queue(work)
            sim.sleep(0.1)
            runtime.check_invariants()
            queued = sim.host.now
            wq.submit(parent).add_done_callback(lambda _: waits.append(sim.host.now - queued))
            wq.flush()

    sim.run(main)
    assert waits[0] < 0.7, "there are two CPUs, and one work computed"
