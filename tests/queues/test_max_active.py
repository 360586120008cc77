"""E1: how many works of a queue are active on one pool."""

from __future__ import annotations

import threading

import pytest
from conftest import HANG, Gate
from simulated import simulate

import cmwq
from cmwq.testing import Simulation


def test_E1_at_most_max_active_run_and_the_others_wait_in_order(runtime: cmwq.Runtime, gate: Gate) -> None:
    wq = cmwq.WorkQueue("q", max_active=3, runtime=runtime)
    held = [wq.submit(gate) for _ in range(3)]
    gate.await_arrivals(3)
    begun: list[int] = []
    later = [wq.submit(begun.append, n) for n in range(20)]
    view = runtime.snapshot().queues[0]
    assert (view.active, view.inactive) == (3, 20)
    assert not begun
    gate.open.set()
    wq.flush(HANG)
    assert all(future.done() for future in held + later)
    assert sorted(begun) == list(range(20))


def test_E1_the_default_is_256() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime)
        for _ in range(300):
            wq.submit(sim.sleep, 1.0)
        sim.sleep(0.5)
        view = runtime.snapshot().queues[0]
        assert (wq.max_active, view.active, view.inactive) == (256, 256, 44)
        assert len(wq.threads()) == 256

    simulate(scenario)


def test_E1_the_limit_is_one_for_each_pool() -> None:
    """The original design: max_active=1, scope="cpu"."""

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", max_active=1, scope="cpu", runtime=runtime)

        def item(name: str) -> None:
            sim.note(name)
            sim.sleep(1.0)

        for cpu in (0, 0, 1, 1):
            assert wq.queue_on(cpu, cmwq.Work(item, f"cpu {cpu}"))
        wq.flush()

    sim = simulate(scenario, cpus=2)
    assert sorted(sim.log) == [(0, "cpu 0"), (0, "cpu 1"), (1000, "cpu 0"), (1000, "cpu 1")]


def test_E1_the_limit_is_of_each_queue_and_not_of_the_pool() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        queues = [cmwq.WorkQueue(f"q{n}", max_active=1, runtime=runtime) for n in range(3)]
        futures = [wq.submit(sim.sleep, 1.0) for wq in queues for _ in range(2)]
        for future in futures:
            future.result()
        assert sim.host.now == 2.0

    simulate(scenario)


def test_E1_waiting_works_begin_in_order_as_others_end() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", max_active=2, runtime=runtime)

        def item(name: str, seconds: float) -> None:
            sim.note(name)
            sim.sleep(seconds)

        for name, seconds in (("a", 1.0), ("b", 3.0), ("c", 1.0), ("d", 1.0), ("e", 1.0)):
            wq.submit(item, name, seconds)
        wq.flush()

    assert simulate(scenario).log == [(0, "a"), (0, "b"), (1000, "c"), (2000, "d"), (3000, "e")]


@pytest.mark.parametrize("scope", ["system", "cpu"])
def test_E1_raising_the_limit_starts_waiting_works_at_once(scope: str) -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", max_active=1, scope=scope, runtime=runtime)
        for name in "abc":
            wq.submit(lambda name=name: (sim.note(name), sim.sleep(10.0)))  # type: ignore[misc]
        sim.sleep(1.0)
        wq.max_active = 2
        sim.sleep(1.0)
        wq.max_active = 3
        assert wq.max_active == 3
        wq.flush()

    assert simulate(scenario).log == [(0, "a"), (1000, "b"), (2000, "c")]


def test_E1_lowering_the_limit_lets_what_is_active_end() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", max_active=2, runtime=runtime)
        for name in "abcd":
            wq.submit(lambda name=name: (sim.note(name), sim.sleep(1.0)))  # type: ignore[misc]
        sim.sleep(0.5)
        wq.max_active = 1
        wq.flush()

    assert simulate(scenario).log == [(0, "a"), (0, "b"), (1000, "c"), (2000, "d")]


def test_E1_a_cancelled_work_makes_room() -> None:
    """Both where it is listed already and where it waits inactive."""

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        first = cmwq.WorkQueue("first", runtime=runtime)
        wq = cmwq.WorkQueue("q", max_active=1, runtime=runtime)
        first.submit(sim.burn, 0.001)
        listed, inactive, last = wq.submit(int), wq.submit(int), wq.submit(int)
        view = next(queue for queue in runtime.snapshot().queues if queue.name == "q")
        assert (view.active, view.inactive) == (1, 2)
        assert listed.cancel()
        assert inactive.cancel()
        assert last.result() == 0
        wq.flush()
        view = next(queue for queue in runtime.snapshot().queues if queue.name == "q")
        assert (view.active, view.inactive, view.unfinished) == (0, 0, 0)

    simulate(scenario)


def test_E1_a_work_that_flushes_another_lends_its_place() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", max_active=1, runtime=runtime)
        other = cmwq.Work(sim.note, "other")

        def body() -> None:
            wq.queue(other)
            assert other.flush()
            sim.note("body")

        wq.submit(body).result()

    assert [text for _, text in simulate(scenario).log] == ["other", "body"]


def test_E1_a_limit_below_one_is_refused(universe: cmwq.Runtime) -> None:
    with pytest.raises(ValueError, match=r"queue 'q': max_active is 0, and must be at least 1"):
        cmwq.WorkQueue("q", max_active=0, runtime=universe)
    wq = cmwq.WorkQueue("q", runtime=universe)
    with pytest.raises(ValueError, match=r"max_active is -1"):
        wq.max_active = -1
    assert wq.max_active == 256


def test_E1_many_threads_change_the_limit_and_nothing_is_left_behind(universe: cmwq.Runtime) -> None:
    wq = cmwq.WorkQueue("q", max_active=1, runtime=universe)

    def change() -> None:
        for n in range(100):
            wq.max_active = 1 + n % 5
            wq.submit(int)

    threads = [threading.Thread(target=change) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG)
    wq.flush(HANG)
    view = universe.snapshot().queues[0]
    assert (view.active, view.inactive, view.unfinished) == (0, 0, 0)


def test_E1_what_was_taken_back_gets_no_place() -> None:
    """Else it would be passed over only when its turn comes, and hold up until then what waits behind it."""

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        one = cmwq.WorkQueue("one", max_active=1, runtime=runtime)
        other = cmwq.WorkQueue("other", runtime=runtime)
        begun: dict[str, float] = {}

        def last() -> None:
            begun["last"] = sim.host.now

        one.submit(sim.burn, 0.001)
        taken_back = one.submit(sim.burn, 0.001)
        one.submit(last)
        for _ in range(20):
            other.submit(sim.burn, 0.001)
        assert taken_back.cancel()
        sim.sleep(0.0055)  # the first has ended: its place is the last one's, behind those 20 and before the next
        for _ in range(20):
            other.submit(sim.burn, 0.001)
        one.flush()
        assert begun["last"] == pytest.approx(0.021)

    simulate(scenario)
