"""Bugs that the kernel's own code had, each set up on purpose, with the threads' moves chosen by the test or its seeds.

Each of these fails if its guard is taken away: see the mutants of the same names.
"""

from __future__ import annotations

import logging

import pytest
from simulated import simulate, simulate_each

import cmwq
from cmwq._pool.pool import WorkerPool
from cmwq.testing import Simulation


def only_pool(runtime: cmwq.Runtime) -> WorkerPool:
    (pool,) = runtime._pools.values()
    return pool


def test_trap_a_wake_up_lost_between_the_list_looks_empty_and_i_am_idle() -> None:
    """A work comes at each possible moment around a worker's going idle. There is no other to make up for it."""

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        sim.host.refuse = lambda name: not name.endswith(":0")
        wq = cmwq.WorkQueue("q", runtime=runtime)
        for n in range(6):
            future = wq.submit(len, "a" * n)
            if n % 2:
                assert future.result() == n
        assert wq.submit(len, "last").result() == 4
        assert len(only_pool(runtime).workers) == 1

    simulate_each(scenario, 60)


def test_trap_an_idle_worker_is_culled_at_the_moment_it_is_woken() -> None:
    """Works come at the very instant of the cull: each runs, whichever worker was chosen for it."""
    timeout = cmwq.Config().idle_worker_timeout

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime)
        for _ in range(5):
            wq.submit(sim.sleep, 0.001)
        wq.flush()
        pool = only_pool(runtime)
        for round_ in range(3):
            sim.sleep(timeout - 0.001 if round_ == 0 else 0.0005)
            # All of them, so that those about to be culled are woken too; and one by nobody's decision, as sensors do.
            with pool.lock:
                coldest = pool.idle_list[0]
            futures = [wq.submit(sim.sleep, 0.0001) for _ in range(5)]
            coldest.parker.unpark()
            for future in futures:
                future.result()
        sim.sleep(3 * timeout)
        assert pool.stats.culled
        assert all(not worker.dying for worker in pool.workers)
        assert wq.submit(len, "abc").result() == 3

    simulate_each(scenario, 40, cpus=2)


def test_trap_two_managers() -> None:
    """While the manager creates a worker, which takes long, the last idle worker is taken for work."""
    creating = most = 0

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        def slow(name: str) -> bool:
            nonlocal creating, most
            if not name.endswith(":0"):
                creating += 1
                most = max(most, creating)
                sim.host.sleep(0.010)
                creating -= 1
            return False

        sim.host.refuse = slow
        wq = cmwq.WorkQueue("q", runtime=runtime)
        pool = runtime.pool_here("system")
        # 0 is woken, and creates 1 until 10 ms. 1 does the work, until 15 ms; so 0 creates another, until 20 ms.
        wq.submit(sim.sleep, 0.005)
        sim.sleep(0.016)
        with pool.lock:
            assert pool.office.taken
            assert len(pool.idle_list) == 1
        begun = wq.submit(lambda: sim.host.now)
        assert begun.result() == pytest.approx(0.016), "1 goes to work at once, and leaves creating to the manager"
        wq.flush()
        assert most == 1

    simulate(scenario, cpus=4)


def test_trap_the_managers_role_is_left_by_one_who_failed(caplog: pytest.LogCaptureFixture) -> None:
    """Creating fails in a way nobody expected. Somebody else manages after the cool-down."""

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        failures = 2

        def fail(name: str) -> bool:
            nonlocal failures
            if failures and not name.endswith(":0"):
                failures -= 1
                raise OSError("nobody expected this")
            return False

        sim.host.refuse = fail
        wq = cmwq.WorkQueue("q", runtime=runtime)
        # The inner call needs a second worker, which can be had only at the third try.
        assert wq.submit(lambda: wq.submit(len, "ab").result()).result() == 2
        pool = only_pool(runtime)
        assert sim.host.now == pytest.approx(2 * runtime.config.create_cooldown)
        with pool.lock:
            assert not pool.office.taken
            assert not pool.office.refused
            assert pool.idle_list

    with caplog.at_level(logging.ERROR, "cmwq"):
        simulate(scenario)
    assert caplog.text.count("could not create a worker") == 2


def test_trap_a_flush_that_counts_under_max_active_hangs() -> None:
    """The queue is full, and those in it flush what waits behind them, and each other."""

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", max_active=2, runtime=runtime)
        works = [cmwq.Work(sim.sleep, 0.001) for _ in range(4)]

        def flushes(work: cmwq.Work) -> None:
            wq.queue(work)
            assert work.flush()

        calls = [wq.submit(flushes, work) for work in works]
        for work in works:
            work.flush()
        wq.flush()
        assert all(call.done() for call in calls)
        assert not any(work.pending or work.running for work in works)
        view = runtime.snapshot().queues[0]
        assert (view.active, view.inactive) == (0, 0)

    simulate_each(scenario, 40, cpus=2)


def test_trap_a_flush_that_misses_inactive_works() -> None:
    """Also while another flush is under way, which has sealed what runs."""

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", max_active=1, runtime=runtime)
        wq.submit(sim.sleep, 1.0)
        early = sim.host.spawn("early", lambda: (wq.flush(), sim.note("early"))[0])
        sim.sleep(0.1)
        inactive = [wq.submit(sim.sleep, 1.0) for _ in range(2)]
        late = sim.host.spawn("late", lambda: (wq.flush(), sim.note("late"))[0])
        sim.sleep(0.1)
        wq.submit(sim.sleep, 1.0)
        for thread in (early, late):
            thread.join()
        assert all(future.done() for future in inactive)

    assert simulate(scenario).log == [(1000, "early"), (3000, "late")]


@pytest.mark.parametrize("where", ["another pool", "an ordered queue", "another runtime"])
def test_trap_a_work_queued_elsewhere_while_it_runs_runs_twice_at_once(where: str) -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        foreign = sim.runtime()
        here = cmwq.WorkQueue("here", scope="cpu", runtime=runtime)
        there = cmwq.WorkQueue(
            "there", ordered=where == "an ordered queue", runtime=foreign if where == "another runtime" else runtime
        )
        inside = runs = 0

        def body() -> None:
            nonlocal inside, runs
            inside += 1
            assert inside == 1, "it runs twice at once"
            runs += 1
            sim.sleep(0.010)
            inside -= 1

        work = cmwq.Work(body)
        here.queue_on(0, work)
        while not work.running:
            sim.sleep(0.001)
        there.submit(int).result()
        assert there.queue(work)
        behind = there.submit(lambda: runs)
        assert here.queue_on(1, work) is False, "it is pending"
        there.flush()
        here.flush()
        assert runs == 2
        if where == "an ordered queue":
            assert behind.result() == 2, "what is queued behind it there keeps behind it"
        foreign.close()

    simulate_each(scenario, 30, cpus=2)


@pytest.mark.parametrize("verb", ["cancel", "cancel_sync", "disable_sync"])
def test_trap_a_delay_ends_while_the_work_is_cancelled(verb: str) -> None:
    """The timer fires at the very instant of the cancel: the work ran before it returned, or never runs."""

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime)
        begun = 0

        def body() -> None:
            nonlocal begun
            begun += 1
            sim.sleep(0.001)

        work = cmwq.DelayedWork(body)
        wq.queue_delayed(work, 0.010)
        # The time has come, and the timer is taken from the heap: cancelling it is too late.
        assert work._delay is not None
        timer = sim.host.spawn("timer", work._delay.fire)
        was_pending = getattr(work, verb)()
        if verb != "cancel":
            assert not work.pending
            assert not work.running
            so_far = begun
            sim.sleep(1.0)
            assert begun == so_far
        timer.join()
        wq.flush()
        sim.sleep(1.0)
        assert begun == (not was_pending)
        while work.disabled:
            work.enable()
        assert wq.queue(work)
        wq.flush()
        assert begun == 1 + (not was_pending)

    simulate_each(scenario, 60)


def test_trap_a_colliding_work_is_taken_back_and_queued_again() -> None:
    """The one taken back had a place under max_active, which must come back."""

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", max_active=4, runtime=runtime)
        work = cmwq.Work(sim.sleep, 10.0)
        wq.queue(work)
        for _ in range(8):
            sim.sleep(0.1)
            assert wq.queue(work)
            sim.sleep(0.1)  # it is found to collide, and is to follow
            assert work.cancel()
        wq.flush()
        sim.sleep(1.0)
        view = runtime.snapshot().queues[0]
        assert (view.active, view.inactive, view.unfinished) == (0, 0, 0)
        for future in [wq.submit(len, "abc") for _ in range(4)]:
            assert future.result() == 3

    simulate(scenario, cpus=2)


def test_trap_a_runtime_closes_while_a_work_is_on_hold_for_another_runtimes() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        other = sim.runtime()
        runs: list[float] = []
        work = cmwq.Work(lambda: (runs.append(sim.host.now), sim.sleep(1.0)))
        cmwq.WorkQueue("here", runtime=runtime).queue(work)
        sim.sleep(0.1)
        assert cmwq.WorkQueue("there", runtime=other).queue(work)
        sim.sleep(0.1)  # its turn came, and it is on hold
        other.close()
        assert runs == [0.0, 1.0]
        assert not work.pending

    simulate(scenario, cpus=2)


def test_trap_max_active_is_raised_while_works_wait_inactive() -> None:
    """Those that are active never end by themselves: nobody else would activate what waits."""

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", max_active=1, scope="cpu", runtime=runtime)
        free = False

        def waits() -> None:
            while not free:
                sim.sleep(1.0)

        def frees() -> None:
            nonlocal free
            free = True

        for cpu in (0, 1):
            wq.queue_on(cpu, cmwq.Work(waits))
            wq.queue_on(cpu, cmwq.Work(lambda: None))
        wq.queue_on(1, cmwq.Work(frees))
        sim.sleep(2.0)
        assert not free
        wq.max_active = 2
        wq.flush()
        assert sim.host.now < 4.0

    simulate_each(scenario, 10, cpus=2)
