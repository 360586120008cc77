"""F10: what a pool does when something was raised in the middle of a critical section.

Each test makes the state that some beginning of a section's steps leaves, by hand, and lets the section end by an
exception: the lock then mends. (`tests/interrupted` raises at every bytecode; here each kind of damage is told apart.)
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from contextvars import Context
from typing import Any

import pytest
from simulated import simulate

import cmwq
from cmwq._pool.pool import WorkerPool
from cmwq._pool.worker import Worker
from cmwq._workqueue.delay import Delay
from cmwq._workqueue.future import Future
from cmwq._workqueue.inserting import insert
from cmwq._workqueue.queued import Queued, Stage
from cmwq.testing import Simulation


class Interrupted(BaseException):
    """As Ctrl-C."""


def interrupted(owner: WorkerPool, steps: Callable[[], object]) -> None:
    """A critical section that ends after these steps, in the middle."""
    interrupt(owner.lock, steps)


def interrupt(lock: Any, steps: Callable[[], object]) -> None:
    with suppress(Interrupted):
        with lock:
            steps()
            raise Interrupted


def used_pool(runtime: cmwq.Runtime, wq: cmwq.WorkQueue) -> WorkerPool:
    """With one worker, which is idle."""
    wq.submit(len, "").result()
    (pool,) = runtime._pools.values()
    return pool


def listed(wq: cmwq.WorkQueue, pool: WorkerPool, ran: list[str], name: str) -> Future[None]:
    """A call in no list, and counted nowhere."""
    place = wq.place_here()
    future: Future[None] = Future(place.outside, (ran.append, name), {}, Context())
    future.phase = place.phase
    return future


def test_F10_a_worker_that_was_taken_and_not_woken_is_woken() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq, ran = cmwq.WorkQueue("q", runtime=runtime), list[str]()
        pool = used_pool(runtime, wq)
        future = listed(wq, pool, ran, "a")

        def steps() -> None:
            pool.worklist.append(future)
            pool.idle_list[-1].kicked = True

        interrupted(pool, steps)
        runtime.check_invariants()
        wq.flush()
        assert ran == ["a"]

    simulate(scenario)


def test_F10_a_work_that_was_listed_and_not_counted_is_counted_and_done() -> None:
    """A flush waits for it; nobody has been asked for it."""

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq, ran = cmwq.WorkQueue("q", runtime=runtime, max_active=1), list[str]()
        pool = used_pool(runtime, wq)
        future = listed(wq, pool, ran, "a")
        interrupted(pool, lambda: pool.worklist.append(future))
        runtime.check_invariants()
        wq.flush()
        assert ran == ["a"]
        assert wq.nr_pending() == 0

    simulate(scenario)


def test_F10_a_work_in_two_lists_is_done_once() -> None:
    """It was on its way from the inactive ones to the list."""

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq, ran = cmwq.WorkQueue("q", runtime=runtime, max_active=1), list[str]()
        pool = used_pool(runtime, wq)
        future = listed(wq, pool, ran, "a")

        def steps() -> None:
            wq.place_here().inactive.append(future)
            pool.worklist.append(future)

        interrupted(pool, steps)
        runtime.check_invariants()
        wq.flush()
        assert ran == ["a"]

    simulate(scenario)


def test_F10_lists_that_were_emptied_to_be_filled_anew_are_filled() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq, ran = cmwq.WorkQueue("q", runtime=runtime, max_active=1), list[str]()
        pool = used_pool(runtime, wq)
        first, second = listed(wq, pool, ran, "a"), listed(wq, pool, ran, "b")

        def steps() -> None:
            pool.relisting = [first], wq.place_here(), [second]

        interrupted(pool, steps)
        runtime.check_invariants()
        wq.flush()
        assert ran == ["a", "b"]

    simulate(scenario)


def test_E11_F10_a_law_that_is_not_in_force_yet_is_put_in_force() -> None:
    """And it is asked anew, with nothing counted twice."""

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", max_active="auto", runtime=runtime)
        pool = used_pool(runtime, wq)
        for _ in range(40):
            wq.submit(sim.sleep, 1.0)
        (place,) = wq.places()
        learning = place.learning
        assert learning is not None
        law = learning.law.copy()
        law.limit = 30

        def steps() -> None:
            learning.law = law
            place.left, learning.quota = 3, 1 << 30

        interrupted(pool, steps)
        runtime.check_invariants()
        assert place.max_active == 30
        assert place.nr_active == 30
        assert place.left == learning.quota == 1
        wq.flush()
        assert learning.law.usual() < 100

    simulate(scenario)


def test_F10_a_phase_that_was_sealed_and_has_no_successor_gets_one() -> None:
    """Else works queued later would be counted in a phase that is done."""

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime)
        pool = used_pool(runtime, wq)
        place = wq.place_here()
        wq.submit(sim.sleep, 0.001)
        interrupted(pool, lambda: place.sealed.append(place.phase))
        assert place.phase not in place.sealed
        sim.sleep(0.002)
        late = wq.submit(sim.sleep, 0.001)
        wq.flush()
        assert late.done()

    simulate(scenario)


def test_F10_a_worker_that_was_to_be_listed_as_idle_is_listed() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime)
        pool = used_pool(runtime, wq)
        interrupted(pool, pool.idle_list.clear)
        runtime.check_invariants()
        assert len(pool.idle_list) == len(pool.workers)
        assert wq.submit(len, "abc").result() == 3

    simulate(scenario)


def test_F10_a_sensor_that_was_told_the_wrong_thing_is_told_again() -> None:
    """Noted as armed, and not armed: nobody would see that the only worker blocks."""

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime)
        pool = used_pool(runtime, wq)
        order: list[str] = []
        wq.submit(lambda: (sim.burn(0.001), sim.sleep(0.010), order.append("slow")))
        wq.submit(order.append, "quick")
        sim.sleep(0.0005)
        interrupted(pool, lambda: pool.lookout.arm(None))
        assert pool.lookout.armed is pool.armed_with is not None  # type: ignore[attr-defined]
        wq.flush()
        assert order == ["quick", "slow"]

    simulate(scenario)


def test_F10_a_pool_that_was_about_to_close_closes() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime)
        pool = used_pool(runtime, wq)

        def steps() -> None:
            pool.closing = True

        interrupted(pool, steps)
        sim.sleep(0.001)
        assert not pool.workers
        with pytest.raises(cmwq.QueueClosed):
            wq.submit(len, "")

    simulate(scenario)


def test_F10_a_worker_that_is_on_its_way_as_its_pool_closes_is_counted_until_it_ends() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime)
        pool = used_pool(runtime, wq)

        def steps() -> None:
            pool.closing = True
            worker = pool.idle_list[-1]
            worker.kicked = worker.dying = True

        interrupted(pool, steps)
        runtime.check_invariants()
        sim.sleep(0.001)
        assert not pool.workers
        runtime.check_invariants()
        assert (pool.nr_running, pool.nr_waking) == (0, 0)

    simulate(scenario)


def test_F10_wrong_counts_are_counted_anew() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime, max_active=2)
        pool = used_pool(runtime, wq)
        place = wq.place_here()
        for _ in range(3):
            wq.submit(sim.sleep, 0.001)

        def steps() -> None:
            pool.nr_running = pool.nr_blocked = pool.nr_waking = pool.nr_hogs = 17
            place.nr_active = place.nr_withdrawn = place.phase.queued = 17

        interrupted(pool, steps)
        runtime.check_invariants()
        assert (place.nr_active, place.nr_withdrawn, place.phase.count) == (2, 0, 3)
        wq.flush()
        assert (place.nr_active, place.phase.count) == (0, 0)

    simulate(scenario)


def test_F10_a_work_that_was_decided_to_be_moved_is_moved() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq, ran = cmwq.WorkQueue("q", runtime=runtime), list[float]()
        used_pool(runtime, wq)
        work = cmwq.DelayedWork(lambda: ran.append(sim.host.now))
        wq.queue_delayed(work, 10.0)
        began = sim.host.now

        def steps() -> None:
            work._moving = Delay(wq, wq.place_here(), work, 1.0)
            work._take_back()

        interrupt(work._lock, steps)
        assert work.pending
        sim.sleep(2.0)
        assert ran == [began + 1.0]

    simulate(scenario)


def test_F10_a_work_that_was_to_be_queued_and_was_not_listed_is_idle() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq, ran = cmwq.WorkQueue("q", runtime=runtime), list[str]()
        used_pool(runtime, wq)
        work = cmwq.Work(ran.append, "a")

        def steps() -> None:
            work._item = Queued(work, wq.place_here().outside, Context())

        interrupt(work._lock, steps)
        assert not work.pending
        assert wq.queue(work)
        work.flush()
        assert ran == ["a"]

    simulate(scenario)


def test_F10_a_work_that_was_disabled_and_not_taken_back_is_taken_back() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime)
        used_pool(runtime, wq)
        work = cmwq.DelayedWork(len, "")
        future = None
        wq.queue_delayed(work, 10.0)
        future = wq.submit(work)

        def steps() -> None:
            work._disables += 1

        interrupt(work._lock, steps)
        assert not work.pending
        assert future.cancelled()
        assert work.enable()

    simulate(scenario)


def running_elsewhere(sim: Simulation, runtime: cmwq.Runtime) -> tuple[cmwq.Work, cmwq.WorkQueue, Queued, list[float]]:
    """A work that runs on one pool for 10 ms, and its queueing to an ordered queue on another, on hold for that."""
    ran = list[float]()

    def body() -> None:
        ran.append(sim.host.now)
        sim.sleep(0.010)

    work = cmwq.Work(body)
    here, ordered = (
        cmwq.WorkQueue("here", runtime=runtime, scope="cpu"),
        cmwq.WorkQueue("o", runtime=runtime, ordered=True),
    )
    used_places(runtime, here, ordered)
    here.queue(work)
    sim.sleep(0.001)
    assert work.running
    ordered.queue(work)
    item = work._item
    assert item is not None
    return work, ordered, item, ran


def used_places(runtime: cmwq.Runtime, *queues: cmwq.WorkQueue) -> None:
    for queue in queues:
        queue.submit(len, "").result()


def test_F10_E3_a_turn_that_was_interrupted_on_hold_comes_again() -> None:
    """It had been noted as detained, and its worker put it down: it must wait for the execution elsewhere still."""

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        _, ordered, item, ran = running_elsewhere(sim, runtime)
        sim.sleep(0.001)
        assert item.stage is Stage.DETAINED
        pool = item.pwq.pool

        interrupted(pool, lambda: pool.worklist.appendleft(item))
        assert item not in pool.detained or item.stage is Stage.DETAINED  # its turn has come again
        assert item.stage in (Stage.ON_HOLD, Stage.DETAINED)
        ordered.flush()
        assert len(ran) == 2
        assert ran[1] - ran[0] >= 0.010
        assert (item.pwq.nr_active, item.pwq.phase.count) == (0, 0)

    simulate(scenario, cpus=2)


def test_F10_E3_what_was_let_go_and_not_listed_is_listed() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        work, ordered, item, ran = running_elsewhere(sim, runtime)
        sim.sleep(0.001)
        pool = item.pwq.pool
        execution = work.execution()
        assert execution is not None
        execution.held = None  # nobody else lets it go
        sim.sleep(0.020)
        assert len(ran) == 1

        def steps() -> None:
            item.stage = Stage.LISTED

        interrupted(pool, steps)
        ordered.flush()
        assert len(ran) == 2
        assert not pool.detained
        assert (item.pwq.nr_active, item.pwq.phase.count) == (0, 0)

    simulate(scenario, cpus=2)


@pytest.mark.parametrize("ordered", [False, True])
def test_F10_E3_what_follows_its_running_self_and_was_put_down_runs_once_more(ordered: bool) -> None:
    """Its worker was interrupted after it had been hung behind the running one: it is listed, too."""

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq, ran = cmwq.WorkQueue("q", runtime=runtime, ordered=ordered), list[str]()
        other = cmwq.WorkQueue("other", runtime=runtime)
        used_places(runtime, wq, other)

        def body() -> None:
            ran.append("a")
            sim.sleep(0.010)

        work = cmwq.Work(body)
        other.queue(work)
        sim.sleep(0.001)
        wq.queue(work)
        item, running = work._item, work.execution()
        assert item is not None
        assert running is not None
        pool = item.pwq.pool

        def steps() -> None:
            running.follower = item
            if item not in pool.worklist:
                pool.worklist.appendleft(item)

        interrupted(pool, steps)
        assert item not in pool.worklist
        assert item.stage is (Stage.BEHIND if ordered else Stage.LENT)
        wq.flush()
        assert ran == ["a", "a"]
        assert (item.pwq.nr_active, item.pwq.phase.count) == (0, 0)

    simulate(scenario, cpus=2)


def test_F10_E3_what_followed_and_was_listed_again_is_listed() -> None:
    """Whoever ran its work was interrupted between listing it and letting it say so."""

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq, ran = cmwq.WorkQueue("q", runtime=runtime), list[str]()
        pool = used_pool(runtime, wq)
        work = cmwq.Work(ran.append, "a")
        place = wq.place_here()
        wq.queue(work)
        item = work._item
        assert item is not None

        def steps() -> None:
            item.stage = Stage.LENT

        interrupted(pool, steps)
        assert item.stage is Stage.LISTED
        wq.flush()
        assert ran == ["a"]
        assert (place.nr_active, place.phase.count) == (0, 0)

    simulate(scenario)


def test_F10_E3_what_runs_is_known_to_run() -> None:
    """Its worker was interrupted as it began it, before the work knew."""

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime)
        pool = used_pool(runtime, wq)
        work = cmwq.Work(sim.sleep, 0.010)
        wq.queue(work)
        sim.sleep(0.001)

        def steps() -> None:
            work._execution = None

        interrupted(pool, steps)
        assert work.running
        assert work.flush()
        assert not work.running

    simulate(scenario)


class Stumbling(Future[None]):
    """Its worker is interrupted when it is about to begin it, so many times."""

    times = 0

    def claim(self, worker: Worker) -> bool:
        if self.times:
            self.times -= 1
            raise Interrupted
        return super().claim(worker)


@pytest.mark.parametrize(("times", "begins"), [(1, True), (9, False)])
def test_F10_a_worker_that_is_interrupted_before_its_work_begins(times: int, begins: bool) -> None:
    """The work goes back to where it was. If that happens again it is the work's own fault, and its end."""

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq, ran = cmwq.WorkQueue("q", runtime=runtime), list[str]()
        used_pool(runtime, wq)
        future = Stumbling(wq.place_here().outside, (ran.append, "a"), {}, Context())
        future.times = times
        insert(wq.place_here(), future)
        other = wq.submit(ran.append, "b")
        wq.flush()
        assert ran == (["a", "b"] if begins else ["b"])
        assert other.done()
        assert begins or isinstance(future.exception(), Interrupted)

    simulate(scenario)
