"""E3 to E6, E10: what becomes of a `Work` from queueing to execution, and in which order."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from contextlib import suppress

import pytest
from conftest import HANG, Gate
from opcodes import Interrupt
from simulated import simulate, simulate_each

import cmwq
from cmwq._workqueue import twin
from cmwq.testing import Simulation


def test_E3_a_colliding_work_follows_its_running_self_on_the_same_worker() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime)
        threads: list[str] = []

        def body() -> None:
            sim.note("begins")
            threads.append(sim.host.me().name)
            sim.sleep(0.010)
            sim.note("ends")

        work = cmwq.Work(body)
        wq.queue(work)
        sim.sleep(0.005)
        assert wq.queue(work)
        assert work.pending
        assert work.running
        wq.submit(sim.note, "others go on")
        wq.flush()
        assert len(set(threads)) == 1

    assert simulate(scenario, cpus=2).log == [
        (0, "begins"), (5, "others go on"), (10, "ends"), (10, "begins"), (20, "ends"),
    ]  # fmt: skip


def test_E3_wherever_it_is_queued_it_never_runs_twice_at_once() -> None:
    """Queues of the same and of other pools, ordered ones, and one of another runtime."""

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        foreign = sim.runtime()
        queues = [
            cmwq.WorkQueue("a", runtime=runtime),
            cmwq.WorkQueue("b", scope="cpu", runtime=runtime),
            cmwq.WorkQueue("c", ordered=True, runtime=runtime),
            cmwq.WorkQueue("d", highpri=True, runtime=runtime),
            cmwq.WorkQueue("e", runtime=foreign),
        ]
        inside = runs = 0

        def body() -> None:
            nonlocal inside, runs
            inside += 1
            assert inside == 1, "it runs twice at once"
            runs += 1
            sim.sleep(0.001)
            inside -= 1

        work = cmwq.Work(body)
        queued = 0
        for n in range(15):
            queued += queues[n % 5].queue(work)
            sim.sleep(0.0004)
        for queue in queues:
            queue.flush()
        assert runs == queued
        foreign.close()

    simulate_each(scenario, 40, cpus=3)


def test_E3_two_works_of_one_function_do_run_at_once(runtime: cmwq.Runtime, gate: Gate) -> None:
    wq = cmwq.WorkQueue("q", runtime=runtime)
    for _ in range(3):
        wq.queue(cmwq.Work(gate))
    gate.await_arrivals(3)


def test_E4_it_is_pending_until_just_before_it_runs(runtime: cmwq.Runtime, gate: Gate) -> None:
    wq = cmwq.WorkQueue("q", max_active=1, runtime=runtime)
    seen: list[tuple[bool, bool, bool, bool]] = []

    def body() -> None:
        state = (work.pending, work.running)
        seen.append((*state, not seen and wq.queue(work), not seen and wq.queue(work)))

    work = cmwq.Work(body)
    assert not work.pending
    wq.submit(gate)
    assert wq.queue(work)
    assert not wq.queue(work), "one with the earlier"
    assert work.pending
    assert not work.running
    gate.open.set()
    wq.close(HANG)
    # The first run queued itself once more, and found that a second time was one with that.
    assert seen == [(False, True, True, False), (False, True, False, False)]
    assert not work.pending
    assert not work.running


def test_E4_on_other_queues_and_cpus_too_it_is_pending_once() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", max_active=1, runtime=runtime)
        other = cmwq.WorkQueue("other", scope="cpu", runtime=runtime)
        wq.submit(sim.sleep, 0.001)
        work = cmwq.DelayedWork(sim.note, "ran")
        assert wq.queue(work)
        assert not other.queue(work)
        assert not other.queue_on(1, work)
        assert not wq.queue_delayed(work, 1.0)
        runtime.close()

    assert simulate(scenario, cpus=2).log == [(1, "ran")]


def test_E4_each_queueing_that_returned_true_is_one_execution() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        queues = [cmwq.WorkQueue("a", runtime=runtime), cmwq.WorkQueue("b", scope="cpu", runtime=runtime)]
        runs: list[int] = []
        work = cmwq.Work(runs.append, 1)
        queued: list[bool] = []

        def queueing() -> None:
            for n in range(6):
                queued.append(queues[n % 2].queue(work))

        threads = [sim.host.spawn(f"queueing {n}", queueing) for n in range(3)]
        for thread in threads:
            thread.join()
        for queue in queues:
            queue.flush()
        assert len(runs) == sum(queued)
        assert len(queued) == 18

    simulate_each(scenario, 30, cpus=2)


def test_E5_a_work_may_be_dropped_by_its_owner_while_it_runs(universe: cmwq.Runtime, gate: Gate) -> None:
    wq = cmwq.WorkQueue("q", runtime=universe)
    work = cmwq.Work(gate)
    gone = weakref.ref(work)
    wq.queue(work)
    gate.await_arrivals(1)
    del work
    gate.open.set()
    wq.flush(HANG)
    deadline = time.monotonic() + HANG
    while gone() is not None and time.monotonic() < deadline:
        gc.collect()
        wq.submit(int).result(HANG)
    assert gone() is None


def test_E5_a_work_may_cancel_what_it_queued_itself(universe: cmwq.Runtime) -> None:
    wq = cmwq.WorkQueue("q", runtime=universe)
    seen: list[bool] = []

    def body() -> None:
        seen.append(wq.queue(work))
        seen.append(work.cancel())
        seen.append(work.pending)

    work = cmwq.Work(body)
    wq.queue(work)
    wq.close(HANG)
    assert seen == [True, True, False]


def test_E5_a_work_may_disable_itself(universe: cmwq.Runtime) -> None:
    wq = cmwq.WorkQueue("q", runtime=universe)
    seen: list[bool] = []

    def body() -> None:
        work.disable()
        seen.append(wq.queue(work))

    work = cmwq.Work(body)
    wq.queue(work)
    wq.close(HANG)
    assert seen == [False]
    assert work.enable()


def test_E6_what_was_done_before_queueing_is_seen(runtime: cmwq.Runtime) -> None:
    """Also where queue() returned False: the execution to come sees it."""
    wq = cmwq.WorkQueue("q", runtime=runtime)
    box = [-1]
    seen: list[int] = []
    work = cmwq.Work(lambda: seen.append(box[0]))
    for n in range(3000):
        box[0] = n
        queued_at = len(seen)
        if wq.queue(work) and n % 100 == 0:
            work.flush(HANG)
            assert seen[-1] == n
            assert len(seen) > queued_at
    wq.flush(HANG)
    assert seen[-1] == 2999
    assert seen == sorted(seen)


def test_E6_what_several_threads_did_before_queueing_is_seen(runtime: cmwq.Runtime) -> None:
    wq = cmwq.WorkQueue("q", runtime=runtime)
    boxes = [0] * 3
    seen: list[list[int]] = []
    work = cmwq.Work(lambda: seen.append(list(boxes)))

    def write(index: int) -> None:
        for n in range(1, 501):
            boxes[index] = n
            wq.queue(work)

    threads = [threading.Thread(target=write, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG)
    wq.flush(HANG)
    assert seen[-1] == [500] * 3


def test_E10_works_of_all_queues_are_taken_in_order_of_activation() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        queues = [cmwq.WorkQueue(f"q{n}", runtime=runtime) for n in range(3)]
        narrow = cmwq.WorkQueue("narrow", max_active=1, runtime=runtime)
        narrow.submit(sim.burn, 0.001)
        narrow.submit(sim.note, "waited inactive")  # listed when the first has ended: behind all the others
        for n in range(12):
            queues[n % 3].submit(sim.note, f"{n}")
        runtime.close()

    texts = [text for _, text in simulate(scenario).log]
    assert texts == [*(f"{n}" for n in range(12)), "waited inactive"]


@pytest.mark.parametrize("why", ["full", "closed"])
def test_E4_one_with_a_queueing_that_is_refused_is_not_lost(why: str) -> None:
    """False means that an execution is still to come. So it must come, whatever becomes of the other caller."""

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        refusing = cmwq.WorkQueue("refusing", max_active=1, max_pending=1, full="raise", runtime=runtime)
        wq = cmwq.WorkQueue("q", runtime=runtime)
        refusing.submit(sim.sleep, 1.0)
        sim.sleep(0.1)
        refusing.submit(int)
        if why == "closed":
            refusing.close()
        runs: list[int] = []
        work = cmwq.Work(runs.append, 1)

        def refused() -> None:
            with suppress(cmwq.QueueClosed, cmwq.QueueFull):
                refusing.queue(work)

        thread = sim.host.spawn("refused", refused)
        wq.queue(work)
        thread.join()
        runtime.close()
        assert runs

    simulate_each(scenario, 60, cpus=2)


@pytest.mark.skipif(twin.installed, reason="it puts something in the place of the Python, which does not serve")
@pytest.mark.parametrize("look", ["pending", "queue", "flush"])
def test_E4_F10_if_queueing_and_mending_are_both_interrupted_it_can_be_queued_all_the_same(
    runtime: cmwq.Runtime, monkeypatch: pytest.MonkeyPatch, look: str
) -> None:
    """It is noted that the work is queued, and it is in no list: whoever looks next completes the mending."""

    def interrupted(*_: object) -> None:
        raise Interrupt

    wq = cmwq.WorkQueue("q", runtime=runtime)
    ran: list[None] = []
    work = cmwq.Work(ran.append, None)
    wq.queue(work)
    wq.flush(HANG)
    with monkeypatch.context() as patch:
        patch.setattr("cmwq._workqueue.queued.insert", interrupted)
        patch.setattr(cmwq.Work, "mend", interrupted)
        with pytest.raises(Interrupt):
            wq.queue(work)
    if look == "pending":
        assert not work.pending
    elif look == "flush":
        work.flush(HANG)
    assert wq.queue(work)
    work.flush(HANG)
    assert len(ran) == 2
