"""E11: queues with `max_active="auto"`, in the simulator and on threads. The law itself: tests/sim/test_learned.py."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from typing import Any

import pytest
from conftest import HANG, Gate
from simulated import simulate, simulate_each

import cmwq
from cmwq._pool.worker import current_worker
from cmwq._workqueue.learned import Stage
from cmwq._workqueue.rising import FIRST
from cmwq.testing import Simulation


class Places:
    """A resource for so many works of a simulation. The others wait for it, and can be seen not to sleep."""

    def __init__(self, sim: Simulation, number: int) -> None:
        self.sim = sim
        self.free = number
        self.line: deque[Any] = deque()
        self.most = 0
        self.asking = 0

    def use(self, seconds: float) -> None:
        worker = current_worker()
        assert worker is not None
        self.asking += 1
        self.most = max(self.most, self.asking)
        while not self.free:
            parker = self.sim.host.parker()
            self.line.append(parker)
            worker.watched = True
            self.sim.sensor.sleeping(worker)
            parker.park()
            worker.watched = False
            self.sim.sensor.running(worker)
        self.free -= 1
        self.sim.sleep(seconds)
        self.free += 1
        self.asking -= 1
        self.tell()

    def tell(self) -> None:
        if self.line:
            self.line.popleft().unpark()


def learning(wq: cmwq.WorkQueue) -> Any:
    (place,) = wq.places()
    assert place.learning is not None
    return place.learning


def test_E11_a_queue_learns_how_many_pay() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", max_active="auto", runtime=runtime)
        places = Places(sim, 4)
        began = sim.host.now
        for _ in range(400):
            wq.submit(places.use, 0.01)
        wq.flush()
        assert sim.host.now - began < 1.15 * 400 * 0.01 / 4
        assert places.most <= 16
        assert 3 <= wq.max_active <= 16
        assert learning(wq).law.stage is not Stage.RISE

    simulate(scenario, cpus=2)


def test_E11_sleeps_are_not_held_up() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", max_active="auto", runtime=runtime)
        for _ in range(400):
            wq.submit(sim.sleep, 1.0)
        wq.flush()
        assert sim.host.now < 2.05
        assert wq.max_active == 256

    simulate(scenario, cpus=2)


def test_E11_two_queues_on_one_pool_learn_their_own() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        narrow = cmwq.WorkQueue("narrow", max_active="auto", runtime=runtime)
        wide = cmwq.WorkQueue("wide", max_active="auto", runtime=runtime)
        places = Places(sim, 2)
        for _ in range(200):
            narrow.submit(places.use, 0.01)
            wide.submit(sim.sleep, 0.2)
        narrow.flush()
        wide.flush()
        assert narrow.max_active <= 8
        assert wide.max_active >= 150

    simulate(scenario, cpus=2)


def test_E11_what_was_learned_is_remembered_while_the_queue_idles_and_by_its_name() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        places = Places(sim, 12)
        with cmwq.WorkQueue("q", max_active="auto", runtime=runtime) as wq:
            for _ in range(600):
                wq.submit(places.use, 0.01)
            wq.flush()
            learned = wq.max_active
            sim.sleep(3600)
            assert wq.max_active == learned != FIRST
            assert learning(wq).law.stage is Stage.STAY
        again = cmwq.WorkQueue("q", max_active="auto", runtime=runtime)
        assert again.max_active == learned
        again.submit(int).result()
        assert learning(again).law.stage is Stage.STAY
        other = cmwq.WorkQueue("other", max_active="auto", runtime=runtime)
        assert other.max_active == FIRST

    simulate(scenario, cpus=2)


def test_E11_a_number_ends_the_learning_and_auto_begins_it() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", max_active="auto", runtime=runtime)
        assert wq.learns
        assert not wq.has_explicit_limit
        for _ in range(100):
            wq.submit(sim.sleep, 1.0)
        sim.sleep(0.5)
        assert wq.max_active > 50
        wq.max_active = 3
        assert (wq.max_active, wq.learns, wq.has_explicit_limit) == (3, False, True)
        later = [wq.submit(sim.sleep, 0.1) for _ in range(30)]
        sim.sleep(0.55)
        view = runtime.snapshot().queues[0]
        assert (view.max_active, view.learns, view.active, view.inactive) == (3, False, 3, 27)
        wq.max_active = "auto"
        assert wq.learns
        assert not wq.has_explicit_limit
        for future in later:
            future.result()
        assert learning(wq).law.limit == wq.max_active
        assert type(wq.places()[0].phase).__name__ == "LearnedPhase"

    simulate(scenario)


def test_E11_works_queued_before_the_learning_count() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", max_active=2, runtime=runtime)
        for _ in range(600):
            wq.submit(sim.sleep, 0.01)
        wq.max_active = "auto"
        wq.flush()
        assert learning(wq).law.stage is not Stage.RISE

    simulate(scenario)


def test_E11_works_that_were_cancelled_are_not_counted() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", max_active="auto", runtime=runtime)
        held = [wq.submit(sim.sleep, 10.0) for _ in range(FIRST)]
        later = [wq.submit(int) for _ in range(500)]
        own = learning(wq)
        for future in later[:400]:
            assert future.cancel()
        assert own.quota == wq.places()[0].left
        assert own.law.stage is Stage.RISE
        for future in later[400:]:
            assert future.cancel()
        for future in held:
            future.result()

    simulate(scenario)


def test_E11_works_that_raise_count_as_failed() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", max_active="auto", on_error=lambda work, exc: None, runtime=runtime)

        def fail() -> None:
            sim.sleep(0.001)
            raise ValueError

        for n in range(60):
            wq.submit(fail) if n % 2 else wq.queue(cmwq.Work(fail))
        wq.flush()
        own = learning(wq)
        assert own.failed == 60
        assert own.law.stage is Stage.RISE
        assert own.law._good == 0
        assert wq.max_active <= 2 * FIRST

    simulate(scenario)


def test_E11_no_timer_is_left_and_none_exists_while_no_work_waits() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", max_active="auto", runtime=runtime)
        for _ in range(FIRST):
            wq.submit(sim.sleep, 1.0)
        assert learning(wq).alarm.timer is None
        wq.submit(sim.sleep, 1.0)
        assert learning(wq).alarm.timer is not None
        wq.flush()
        assert learning(wq).alarm.timer is None

    simulate(scenario)


def test_E11_G4_the_law_watches_only_while_works_wait() -> None:
    """Also if the last one that waited got the place of one that ended, which is the usual way."""

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        runtime.limits["q", "system"] = 4
        wq = cmwq.WorkQueue("q", max_active="auto", runtime=runtime)
        for n in range(5):
            wq.submit(sim.sleep, 1.0 + n)
        assert learning(wq).law.watches
        sim.sleep(1.5)
        assert wq.nr_unfinished() == 4
        assert not learning(wq).law.watches
        wq.flush()

    simulate(scenario)


def test_E8_E11_nothing_is_learned_and_nothing_rises_while_the_queue_is_frozen() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", max_active="auto", freezable=True, runtime=runtime)
        for _ in range(40):
            wq.submit(sim.sleep, 0.05)
        runtime.freeze()
        limit = wq.max_active
        assert learning(wq).alarm.timer is None
        sim.sleep(100)
        assert wq.max_active == limit
        runtime.thaw()
        wq.flush()
        assert sim.host.now < 101

    simulate(scenario)


def test_E11_F1_F4_a_learned_limit_under_random_interleavings() -> None:
    """Works of two kinds, cancelled ones, a switch to a number and back; the invariants are checked at each step."""

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", max_active="auto", runtime=runtime)
        places, done = Places(sim, 2), []

        def body(n: int) -> None:
            if n % 3:
                places.use(0.002)
            else:
                sim.sleep(0.001)
            done.append(n)

        futures = [wq.submit(body, n) for n in range(40)]
        cancelled = [n for n in (11, 25, 39) if futures[n].cancel()]
        sim.sleep(0.003)
        wq.max_active = 2
        futures += [wq.submit(body, n) for n in range(40, 50)]
        sim.sleep(0.003)
        wq.max_active = "auto"
        wq.flush()
        assert sorted([*done, *cancelled]) == list(range(50))
        assert not wq.has_works()

    simulate_each(scenario, 10, cpus=2)


def test_E11_the_limit_is_one_for_each_pool() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", max_active="auto", scope="cpu", runtime=runtime)
        places = Places(sim, 2)
        slow = [wq.queue_on(0, cmwq.Work(places.use, 0.01)) for _ in range(120)]
        wide = [wq.queue_on(1, cmwq.Work(sim.sleep, 0.05)) for _ in range(120)]
        assert all(slow + wide)
        wq.flush()
        found = {place.pool.name: place.max_active for place in wq.places()}
        assert found["0"] <= 8
        assert found["1"] >= 100
        assert wq.max_active == found["1"]

    simulate(scenario, cpus=2)


def test_E11_what_no_limit_can_be_is_refused(universe: cmwq.Runtime) -> None:
    with pytest.raises(TypeError, match="'q': max_active is 'many', and must be an integer or 'auto'"):
        cmwq.WorkQueue("q", max_active="many", runtime=universe)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="ordered queue has"):
        cmwq.WorkQueue("q", ordered=True, max_active="auto", runtime=universe)
    wq = cmwq.WorkQueue("q", ordered=True, runtime=universe)
    with pytest.raises(ValueError, match="is ordered"):
        wq.max_active = "auto"
    with pytest.raises(TypeError, match="must be an integer or 'auto'"):
        wq.max_active = "AUTO"  # type: ignore[assignment]
    assert wq.max_active == 1
    with pytest.raises(TypeError, match="must be an integer or 'auto'"):
        cmwq.Executor(max_active="few", runtime=universe)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------- on threads


def test_E11_on_threads_all_works_are_done_and_the_limit_is_shown(runtime: cmwq.Runtime) -> None:
    with cmwq.WorkQueue("q", max_active="auto", runtime=runtime) as wq:
        lock = threading.Lock()

        def commit(n: int) -> int:
            with lock:
                time.sleep(0.0005)
            return n

        assert list(wq.map(commit, range(300))) == list(range(300))
        view = runtime.snapshot().queues[0]
        assert view.learns
        assert view.max_active == wq.max_active
        assert 1 <= wq.max_active <= 256


def test_E11_an_executor_takes_auto(universe: cmwq.Runtime) -> None:
    with cmwq.Executor(max_active="auto", runtime=universe) as pool:
        assert list(pool.map(abs, range(-50, 0))) == list(range(50, 0, -1))
        assert isinstance(pool._max_workers, int)
        assert pool.queue.learns


def test_E11_works_that_wait_for_one_another_unseen_are_not_kept_apart_for_good(universe: cmwq.Runtime) -> None:
    """More works than places wait for the last one, by means that cmwq can't see. None gives up."""
    wq = cmwq.WorkQueue("q", max_active="auto", runtime=universe)
    told = threading.Event()
    waiting = [wq.submit(told.wait, HANG) for _ in range(50)]
    wq.submit(told.set)
    assert all(future.result(HANG) for future in waiting)


def test_E11_under_a_limit_that_was_learned_works_lend_their_places_when_nothing_moves() -> None:
    """Learned is about 4; then 40 works wait, unseen, for one that comes after them."""
    sim = Simulation(cpus=2)

    def main() -> None:
        with sim.runtime(lends=True) as runtime:
            wq = cmwq.WorkQueue("q", max_active="auto", runtime=runtime)
            places, event = Places(sim, 4), Places(sim, 0)
            for _ in range(200):
                wq.submit(places.use, 0.01)
            wq.flush()
            assert wq.max_active <= 16
            for _ in range(40):
                wq.submit(event.use, 0.01)
            wq.submit(setattr, event, "free", 1)
            for _ in range(40):
                wq.submit(event.tell)
            wq.flush()
            assert not event.line

    sim.run(main)


def test_G2_E11_the_child_of_a_fork_learns_anew(universe: cmwq.Runtime, gate: Gate) -> None:
    wq = cmwq.WorkQueue("q", max_active="auto", runtime=universe)
    held = [wq.submit(gate) for _ in range(FIRST)]
    later = [wq.submit(int) for _ in range(20)]
    gate.await_arrivals(FIRST)
    child = os.fork()
    if not child:
        try:
            done = sum(future.result(HANG) for future in [wq.submit(int, 1) for _ in range(100)])
            os._exit(0 if done == 100 and wq.learns and wq.max_active >= 1 else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    gate.open.set()
    for future in held + later:
        future.result(HANG)
