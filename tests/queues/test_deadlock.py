"""F7: a work that would wait for itself is told."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from conftest import HANG, Gate, until
from simulated import simulate, simulate_each

import cmwq
from cmwq._workqueue.item_end import ItemEnd
from cmwq._workqueue.pwq import PoolWorkQueue
from cmwq._workqueue.queued import Queued
from cmwq._workqueue.wait import Waits
from cmwq.testing import Simulation


@pytest.mark.parametrize("verb", ["flush", "drain", "close"])
@pytest.mark.parametrize("scope", ["system", "cpu"])
def test_F7_a_work_that_waits_for_its_own_queue(runtime: cmwq.Runtime, verb: str, scope: str) -> None:
    wq = cmwq.WorkQueue("mine", scope=scope, runtime=runtime)

    def culprit() -> None:
        getattr(wq, verb)()

    with pytest.raises(cmwq.FlushDeadlock, match=r"culprit of queue 'mine' .*queue 'mine'"):
        wq.submit(culprit).result(HANG)
    assert wq.submit(len, "it goes on").result(HANG) == 10


def test_F7_a_callback_of_a_future_that_waits_for_its_own_queue(runtime: cmwq.Runtime, gate: Gate) -> None:
    wq = cmwq.WorkQueue("mine", runtime=runtime)
    told: list[str] = []

    def culprit(_: object) -> None:
        try:
            wq.flush()
        except cmwq.FlushDeadlock as exc:
            told.append(str(exc))

    wq.submit(gate).add_done_callback(culprit)
    gate.open.set()
    wq.flush(HANG)
    (words,) = told
    assert words.startswith(
        "a call that has ended of queue 'mine' flushes its own queue 'mine': it would wait for itself. "
    )


@pytest.mark.parametrize("verb", ["flush", "cancel_sync", "disable_sync"])
def test_F7_a_work_that_waits_for_itself(runtime: cmwq.Runtime, verb: str) -> None:
    wq = cmwq.WorkQueue("mine", runtime=runtime)
    told: list[str] = []

    def culprit() -> None:
        with pytest.raises(cmwq.FlushDeadlock) as caught:
            getattr(work, verb)()
        told.append(str(caught.value))

    work = cmwq.Work(culprit)
    wq.queue(work)
    wq.flush(HANG)
    assert len(told) == 1
    assert "culprit of queue 'mine'" in told[0]
    if verb == "disable_sync":
        assert work.enable(), "it stays disabled"
    assert wq.queue(work), "it can be queued as before"
    wq.flush(HANG)
    while work.disabled:
        work.enable()


def test_F7_waiting_for_the_next_queueing_of_itself() -> None:
    """It can begin only when this execution has ended (E3)."""

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("mine", runtime=runtime)
        other = cmwq.WorkQueue("other", scope="cpu", runtime=runtime)
        told: list[str] = []

        def body() -> None:
            if not told:
                other.queue(work)
                with pytest.raises(cmwq.FlushDeadlock) as caught:
                    work.flush()
                told.append(str(caught.value))

        work = cmwq.Work(body)
        wq.queue(work)
        wq.flush()
        other.flush()
        assert told
        assert "would wait for ever" in told[0]

    simulate_each(scenario, 10, cpus=2)


def test_F7_a_cycle_of_flushes_is_told_to_one_of_them_in_words() -> None:
    told: list[str] = []

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        queues = [cmwq.WorkQueue(name, runtime=runtime) for name in ("red", "green", "blue")]
        told.clear()

        def flushes(index: int) -> None:
            sim.sleep(0.001)  # all three run by then
            try:
                queues[(index + 1) % 3].flush()
            except cmwq.FlushDeadlock as exc:
                told.append(str(exc))

        for index in range(3):
            queues[index].submit(flushes, index)
        for queue in queues:
            queue.flush()
        assert len(told) == 1, "one gives way, the others then end"
        for name in ("red", "green", "blue"):
            assert f"flushes queue '{name}'" in told[0]
            assert f"of queue '{name}'" in told[0]

    simulate_each(scenario, 30, cpus=2)
    assert told[0].startswith("this would wait for ever: call ")
    assert told[0].count("that needs") == 3


def test_F7_a_cycle_of_works_that_cancel_each_other() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime)
        told: list[int] = []

        def cancels(index: int) -> None:
            sim.sleep(0.001)
            try:
                works[1 - index].cancel_sync()
            except cmwq.FlushDeadlock:
                told.append(index)

        works = [cmwq.Work(cancels, index) for index in range(2)]
        for work in works:
            wq.queue(work)
        wq.flush()
        assert len(told) == 1
        assert not any(work.pending or work.running or work.is_blocked for work in works)

    simulate_each(scenario, 30, cpus=2)


def test_F7_an_ordered_queues_work_that_waits_for_a_later_one(runtime: cmwq.Runtime) -> None:
    wq = cmwq.WorkQueue("ledger", ordered=True, runtime=runtime)

    def parent() -> int:
        return wq.submit(len, "child").result()

    with pytest.raises(cmwq.FlushDeadlock, match=r"parent of queue 'ledger' waits for the result of call len"):
        wq.submit(parent).result(HANG)


def test_F7_through_another_queues_work(universe: cmwq.Runtime) -> None:
    """a waits for b, which waits for what is behind a in an ordered queue."""
    ledger = cmwq.WorkQueue("ledger", ordered=True, runtime=universe)
    other = cmwq.WorkQueue("other", runtime=universe)

    def b() -> int:
        return ledger.submit(int).result()

    def a() -> int:
        return other.submit(b).result()

    with pytest.raises(cmwq.FlushDeadlock, match=r"'other'.*'ledger'|'ledger'.*'other'"):
        ledger.submit(a).result(HANG)


def test_F7_a_batch_from_one_of_its_own_calls(universe: cmwq.Runtime) -> None:
    batch = cmwq.Batch(cmwq.WorkQueue("q", runtime=universe))
    in_it = threading.Event()

    def waits() -> None:
        assert in_it.wait(HANG)
        batch.wait()

    culprit = batch.submit(waits)
    in_it.set()
    with pytest.raises(cmwq.FlushDeadlock):
        culprit.result(HANG)


def test_F7_freezing_from_a_freezable_work(universe: cmwq.Runtime) -> None:
    wq = cmwq.WorkQueue("f", freezable=True, runtime=universe)
    with pytest.raises(cmwq.FlushDeadlock, match="freezes queue 'f'"):
        wq.submit(universe.freeze).result(HANG)
    assert not universe.frozen
    assert wq.submit(len, "thawed").result(HANG) == 6


def test_F7_closing_the_runtime_from_its_own_work(universe: cmwq.Runtime) -> None:
    with pytest.raises(cmwq.FlushDeadlock, match="close of a runtime from one of its own works"):
        cmwq.WorkQueue("q", runtime=universe).submit(universe.close).result(HANG)


def test_F7_an_ordered_works_friend_that_waits_for_room() -> None:
    """The ordered queue is full; its running work waits for another that waits for room there."""

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        ledger = cmwq.WorkQueue("ledger", ordered=True, max_pending=1, runtime=runtime)
        other = cmwq.WorkQueue("other", runtime=runtime)

        def parent() -> None:
            ledger.submit(int)
            try:
                other.submit(lambda: ledger.submit(int)).result()
            except cmwq.FlushDeadlock:
                sim.note("told")

        ledger.submit(parent).result()
        ledger.flush()

    assert [text for _, text in simulate(scenario, cpus=2).log] == ["told"]


@pytest.mark.parametrize("ordered", [False, True])
def test_F7_waits_that_end_are_not_mistaken_for_deadlocks(ordered: bool) -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        a = cmwq.WorkQueue("a", ordered=ordered, runtime=runtime)
        b = cmwq.WorkQueue("b", runtime=runtime)
        c = cmwq.WorkQueue("c", runtime=runtime)
        errors: list[BaseException] = []

        def waits(how: Callable[[], object]) -> None:
            sim.sleep(0.0005)
            try:
                how()
            except cmwq.FlushDeadlock as exc:
                errors.append(exc)

        for _ in range(3):
            a.submit(waits, b.flush)
            a.submit(waits, lambda: b.submit(waits, c.flush).result())
            b.submit(waits, c.flush)
            b.submit(waits, lambda: c.submit(sim.sleep, 0.001).result())
            c.submit(sim.sleep, 0.001)
        for queue in (a, b, c):
            queue.drain()
        assert not errors

    simulate_each(scenario, 20, cpus=2)


class Vanishing(dict[Any, Any]):
    """Whose entries end just as the chain is followed: after the second look at one it is gone."""

    def __init__(self) -> None:
        super().__init__()
        self.looks = 0

    def __contains__(self, key: object) -> bool:
        found = super().__contains__(key)
        self.looks += found
        if self.looks > 2:
            self.pop(key)
        return found

    def get(self, key: Any, default: Any = None) -> Any:
        return super().get(key, default) if key in self else default


def test_F7_a_wait_that_ends_while_the_chain_is_followed(
    universe: cmwq.Runtime, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Waits(universe.host)  # other runtimes have nothing to do with it
    monkeypatch.setattr(universe, "waits", own)
    wq = cmwq.WorkQueue("q", runtime=universe)
    middle = wq.submit(lambda: wq.submit(gate).result())
    gate.await_arrivals(1)
    while len(universe.waits._waiting) < 1:
        time.sleep(0.001)
    waiting = universe.waits._waiting = Vanishing()
    waiting.update(own.all())
    waiting[middle] = middle  # what it waits for is not asked any more
    outer = wq.submit(middle.result)
    while waiting.looks < 3 and not outer.done():
        time.sleep(0.001)
    gate.open.set()
    outer.result(HANG)


def test_F7_from_outside_any_work_all_may_be_waited_for(universe: cmwq.Runtime, gate: Gate) -> None:
    first, second = (cmwq.WorkQueue(name, runtime=universe) for name in ("first", "second"))

    def flushes() -> str:
        gate()
        second.flush()
        return "flushed"

    future = first.submit(flushes)
    gate.await_arrivals(1)
    held = second.submit(gate)
    gate.open.set()
    first.flush(HANG)
    second.flush(HANG)
    assert held.done()
    assert future.result(HANG) == "flushed"


# ------------------------------------------------------------------------------- through several runtimes


def test_F7_a_chain_through_two_runtimes_is_seen(universe: cmwq.Runtime) -> None:
    """a, in an ordered queue of the one, waits for b in the other, which waits for what is behind a."""
    with cmwq.Runtime() as second:
        ledger = cmwq.WorkQueue("ledger", ordered=True, runtime=universe)
        other = cmwq.WorkQueue("other", runtime=second)

        def b() -> int:
            return ledger.submit(int).result()

        def a() -> int:
            return other.submit(b).result()

        with pytest.raises(cmwq.FlushDeadlock, match=r"'other'.*'ledger'|'ledger'.*'other'"):
            ledger.submit(a).result(HANG)
        assert universe.waits is second.waits
        until(lambda: universe.waits.all() == {})  # the other one may still wait for what is behind


def test_F7_runtimes_of_two_simulations_have_nothing_to_do_with_each_other() -> None:
    first, second = Simulation().runtime(), Simulation().runtime()
    assert first.waits is not second.waits
    with cmwq.Runtime() as real:
        assert real.waits is not first.waits


def test_F7_G2_a_forked_child_has_none_of_its_parents_waits(python: Callable[..., Any]) -> None:
    """And may wait: the lock is its own."""
    done = python("""
        import cmwq, os, threading, time, warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        runtime, second = cmwq.Runtime(), cmwq.Runtime()
        wq, other = cmwq.WorkQueue("q", runtime=runtime), cmwq.WorkQueue("other", runtime=second)
        gate = threading.Event()
        held = wq.submit(lambda: other.submit(gate.wait).result())
        while len(runtime.waits.all()) < 1: time.sleep(0.001)
        pid = os.fork()
        if pid == 0:
            fine = runtime.waits.all() == {} and runtime.waits is second.waits
            fine &= wq.submit(lambda: other.submit(abs, -7).result()).result(30) == 7
            os._exit(0 if fine else 1)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        gate.set()
        print(held.result(30), runtime.waits.all())
    """)
    assert (done.stdout.split(), done.stderr) == (["0", "True", "{}"], "")


# ------------------------------------------------------------------------------- what is no deadlock


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("first", ["the call", "the work"])
@pytest.mark.parametrize("busy", [False, True])
def test_F7_an_ordered_call_needs_a_work_that_is_queued_before_it_and_none_behind(
    frozen: bool, first: str, busy: bool
) -> None:
    """A work of another queue is to run in the ledger, too, once it has ended. It waits for a call there."""

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        ledger = cmwq.WorkQueue("ledger", ordered=True, freezable=True, runtime=runtime)
        other = cmwq.WorkQueue("other", runtime=runtime)
        told: list[object] = []

        def body() -> None:
            if told:
                return
            if busy:
                ledger.submit(sim.sleep, 1.0)
            if first == "the work":
                assert ledger.queue(work)
            call = ledger.submit(len, "written")
            if first == "the call":
                assert ledger.queue(work)
            sim.sleep(0.5)
            try:
                told.append(call.result())
            except cmwq.FlushDeadlock as exc:
                told.append(str(exc))

        work = cmwq.Work(body)
        if frozen:
            runtime.freeze()
        other.queue(work)
        sim.sleep(2.0)
        runtime.thaw()
        other.flush()
        ledger.flush()
        if first == "the call":
            assert told == [7]
        else:
            assert "waits for the result of call len of queue 'ledger', that needs work" in str(told[0])

    simulate_each(scenario, 4, cpus=2)


@pytest.mark.parametrize("wait", ["result", "flush"])
def test_F7_a_work_that_is_about_to_be_listed_will_stand_behind(wait: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is pending already, and not yet in the queue, whose call is waited for meanwhile."""
    insert = cmwq._workqueue.queued.insert

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        ledger = cmwq.WorkQueue("ledger", ordered=True, runtime=runtime)
        other = cmwq.WorkQueue("other", runtime=runtime)
        runs, ended = 0, []

        def insert_slowly(place: PoolWorkQueue, item: Queued) -> None:
            sim.host.sleep(1.0)
            insert(place, item)

        def body() -> None:
            nonlocal runs
            runs += 1
            if runs == 1:
                ledger.submit(sim.sleep, 5.0)
                call = ledger.submit(int)
                monkeypatch.setattr("cmwq._workqueue.queued.insert", insert_slowly)
                sim.host.spawn("queuer", partial(ledger.queue, work))
                sim.sleep(0.5)
                assert work.pending
                call.result() if wait == "result" else ledger.flush()
                ended.append(sim.host.now)

        work = cmwq.Work(body)
        other.queue(work)
        other.flush()
        monkeypatch.setattr("cmwq._workqueue.queued.insert", insert)
        ledger.flush()
        assert (runs, ended) == (2, [5.0])

    simulate(scenario, cpus=2)


def test_F7_an_execution_that_has_ended_needs_nobody(runtime: cmwq.Runtime, gate: Gate) -> None:
    """Not even the next one of its work, which may wait by the time when somebody follows the chain."""
    wq, other = (cmwq.WorkQueue(name, runtime=runtime) for name in ("q", "other"))
    held = other.submit(gate)
    gate.await_arrivals(1)
    executions: list[Any] = []

    def body() -> None:
        executions.append(work.execution())
        if len(executions) == 2:
            held.result()

    work = cmwq.Work(body)
    future = wq.submit(work)
    future.result(HANG)
    wq.flush(HANG)
    assert wq.queue(work)
    while work.execution() not in runtime.waits.all():
        time.sleep(0.001)
    for target in (ItemEnd(executions[0], "flushes"), future):
        assert list(target.needs(runtime.waits.all())) == []
    gate.open.set()
    work.flush(HANG)


def test_F7_one_that_waits_only_for_a_time_closes_no_circle() -> None:
    """first waits for second, for a second; second waits for what can begin only after first: it does, in time."""

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        ledger = cmwq.WorkQueue("ledger", ordered=True, runtime=runtime)
        other = cmwq.WorkQueue("other", runtime=runtime)

        def second() -> int:
            sim.sleep(0.01)
            return ledger.submit(abs, -7).result()

        def first() -> str:
            waits_for = other.submit(second)
            with pytest.raises(TimeoutError):
                waits_for.result(timeout=1.0)
            futures.append(waits_for)
            return "went on"

        futures: list[cmwq.Future[int]] = []
        assert ledger.submit(first).result() == "went on"
        assert futures[0].result() == 7
        assert runtime.waits.all() == {}

    simulate_each(scenario, 10, cpus=2)


def test_F7_the_other_way_round_the_one_without_a_limit_is_not_told_either() -> None:
    """second waits already, without a limit, when first begins to wait for it, for a time."""

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime)
        works: list[cmwq.Future[str]] = []

        def first() -> str:
            with pytest.raises(TimeoutError):
                works[1].result(timeout=1.0)
            return "went on"

        def second() -> str:
            sim.sleep(0.01)
            return works[0].result()

        works += [wq.submit(first), wq.submit(second)]
        assert [work.result() for work in works] == ["went on", "went on"]

    simulate_each(scenario, 10, cpus=2)


def test_F7_a_refused_flush_of_a_delayed_work_leaves_its_delay() -> None:
    """By its own function, for which it would wait: the delay goes on, and the work runs when its time has come."""

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime)

        def body() -> None:
            sim.note("ran")
            if len(sim.log) < 3:
                wq.queue_delayed(work, 10.0)
                with pytest.raises(cmwq.FlushDeadlock):
                    work.flush()

        work = cmwq.DelayedWork(body)
        wq.queue(work)
        sim.sleep(100.0)
        wq.flush()

    assert simulate(scenario, cpus=2).log == [(0, "ran"), (10_000, "ran"), (20_000, "ran")]


def test_F7_the_warnings_end_some_time(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Who makes queues by the thousand is not warned of each for ever, and nothing of that is kept."""
    monkeypatch.setattr("cmwq._workqueue.wait.MAX_WARNED", 3)

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        safe = cmwq.WorkQueue("safe", rescuer=True, runtime=runtime)

        def waits(wq: cmwq.WorkQueue) -> int:
            return wq.submit(int).result()

        for n in range(10):
            wq = cmwq.WorkQueue(f"q{n}", runtime=runtime)
            for _ in range(2):
                safe.submit(waits, wq).result()
        assert len(runtime.waits._warned) == 3

    simulate(scenario, cpus=2)
    assert caplog.text.count("which has a rescuer") == 3
