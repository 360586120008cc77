"""F3: drain and close."""

from __future__ import annotations

import logging
import threading
from typing import Any

import pytest
from conftest import HANG, Gate
from simulated import simulate, simulate_each

import cmwq
from cmwq.testing import Simulation


def test_F3_drain_lets_chained_work_through_and_refuses_the_rest(runtime: cmwq.Runtime, gate: Gate) -> None:
    wq = cmwq.WorkQueue("spool", runtime=runtime)
    other = cmwq.WorkQueue("other", runtime=runtime)
    done: list[str] = []
    work = cmwq.Work(done.append, "child's child")

    def child() -> None:
        done.append("child")
        assert wq.queue(work)

    def parent() -> None:
        gate()
        wq.submit(child)

    wq.submit(parent)
    gate.await_arrivals(1)
    drainer = threading.Thread(target=wq.drain, args=(HANG,))
    drainer.start()
    while wq.is_open:
        other.submit(int).result(HANG)
    with wq._lock:
        pass  # while it is held the state changes first, and then the gates are shut
    refused = cmwq.Work(int)
    for call in (lambda: wq.submit(int), lambda: wq.queue(refused), lambda: wq.submit_many(abs, [1, 2])):
        with pytest.raises(cmwq.QueueClosed, match=r"queue 'spool' is draining .* queue again after drain\(\)"):
            call()
    with pytest.raises(cmwq.QueueClosed):
        other.submit(wq.submit, int).result(HANG)
    assert not refused.pending
    assert drainer.is_alive()
    gate.open.set()
    drainer.join(HANG)
    assert done == ["child", "child's child"]
    assert wq.is_open
    assert wq.queue(refused)
    assert refused.flush(HANG) or not refused.pending


def test_F3_drain_waits_until_it_is_empty() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", scope="cpu", max_active=1, runtime=runtime)
        done = 0

        def chain(left: int) -> None:
            nonlocal done
            sim.sleep(0.001)
            if left:
                wq.queue_on(left % 3, cmwq.Work(chain, left - 1))
            done += 1

        for _ in range(3):
            wq.submit(chain, 5)
        wq.drain()
        assert done == 18
        assert wq.submit(len, "open again").result() == 10

    simulate_each(scenario, 30, cpus=3)


def test_F3_it_complains_after_10_rounds_and_every_100(caplog: pytest.LogCaptureFixture) -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("endless", runtime=runtime)

        def chain(left: int) -> None:
            sim.sleep(0.001)
            if left:
                wq.submit(chain, left - 1)

        wq.submit(chain, 5)
        wq.drain()
        assert not caplog.messages, "that is not worth a complaint"
        wq.submit(chain, 220)
        wq.drain()

    with caplog.at_level(logging.WARNING, "cmwq"):
        simulate(scenario)
    assert caplog.messages == [
        f"drain of queue 'endless' is not done after {rounds} rounds: its works queue new ones"
        for rounds in (10, 100, 200)
    ]


def test_F3_several_may_drain_and_it_is_open_after_the_last() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime)
        drained = 0

        def drain() -> None:
            nonlocal drained
            wq.drain()
            drained += 1

        wq.submit(sim.sleep, 0.005)
        threads = [sim.host.spawn(f"drainer {n}", drain) for n in range(3)]
        for thread in threads:
            thread.join()
        assert drained == 3
        assert wq.is_open
        assert wq.submit(int).result() == 0

    simulate_each(scenario, 20)


def test_F3_a_drain_that_times_out_leaves_it_open(universe: cmwq.Runtime, gate: Gate) -> None:
    wq = cmwq.WorkQueue("q", runtime=universe)
    wq.submit(gate)
    gate.await_arrivals(1)
    with pytest.raises(cmwq.CmwqTimeout, match=r"drain of queue 'q': 1 works still there after 0\.01 s"):
        wq.drain(0.01)
    assert wq.is_open
    assert wq.submit(len, "ab").result(HANG) == 2


def test_F3_what_was_delayed_is_let_in_while_it_drains() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime)
        wq.submit(sim.sleep, 1.0)
        wq.queue_delayed(cmwq.DelayedWork(sim.note, "during"), 0.5)
        wq.queue_delayed(cmwq.DelayedWork(sim.note, "after"), 5.0)
        wq.drain()
        sim.note("drained")
        sim.sleep(10.0)

    assert simulate(scenario, cpus=2).log == [(500, "during"), (1000, "drained"), (5000, "after")]


def test_F3_an_outsider_is_either_seen_or_refused() -> None:
    """Nothing that was accepted is lost or left behind, on no pool."""

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", scope="cpu", runtime=runtime)
        accepted: list[cmwq.Work] = []
        done: list[int] = []

        def outsider(number: int) -> None:
            for n in range(5):
                work = cmwq.Work(done.append, n)
                try:
                    assert wq.queue_on((number + n) % 3, work)
                except cmwq.QueueClosed:
                    assert not work.pending
                    return
                accepted.append(work)

        threads = [sim.host.spawn(f"outsider {n}", lambda n=n: outsider(n)) for n in range(3)]  # type: ignore[misc]
        wq.close()
        ended = len(done)
        for thread in threads:
            thread.join()
        assert ended == len(done) == len(accepted)

    simulate_each(scenario, 60, cpus=3)


def test_close_refuses_for_good_and_says_so(universe: cmwq.Runtime) -> None:
    with cmwq.WorkQueue("gone", runtime=universe) as wq:
        future = wq.submit(len, "abc")
    assert future.done()
    assert not wq.is_open
    assert repr(wq) == "<cmwq.WorkQueue 'gone' closed>"
    work = cmwq.DelayedWork(int)
    for call in (
        lambda: wq.submit(int),
        lambda: wq.queue(work),
        lambda: wq.queue_delayed(work, 1.0),
        lambda: wq.queue_on(0, work),
        lambda: wq.submit(work),
    ):
        with pytest.raises(cmwq.QueueClosed, match="queue 'gone' is closed and takes no more work; make a new one"):
            call()
        assert not work.pending
        assert not work.cancel()
    wq.close(HANG)
    wq.drain(HANG)
    wq.flush(HANG)
    assert not wq.is_open, "drain does not open what is closed"


def test_close_refuses_mod_delayed_too(universe: cmwq.Runtime) -> None:
    wq = cmwq.WorkQueue("gone", runtime=universe)
    wq.submit(int).result(HANG)
    wq.close(HANG)
    work = cmwq.DelayedWork(int)
    try:
        with pytest.raises(cmwq.QueueClosed, match="queue 'gone' is closed"):
            wq.mod_delayed(work, 3600)
        assert not work.pending
    finally:
        work.cancel()


def test_close_takes_delayed_works_back(universe: cmwq.Runtime) -> None:
    wq = cmwq.WorkQueue("q", runtime=universe)
    work = cmwq.DelayedWork(int)
    wq.queue_delayed(work, 3600)
    wq.close(HANG)
    assert not work.pending
    other = cmwq.WorkQueue("other", runtime=universe)
    assert other.queue(work), "it can be queued elsewhere"
    other.close(HANG)


def test_close_that_timed_out_may_be_called_again(universe: cmwq.Runtime, gate: Gate) -> None:
    wq = cmwq.WorkQueue("q", runtime=universe)
    wq.submit(gate)
    gate.await_arrivals(1)
    with pytest.raises(cmwq.CmwqTimeout, match=r"close of queue 'q': 1 works still there after 0\.01 s"):
        wq.close(0.01)
    with pytest.raises(cmwq.QueueClosed):
        wq.submit(int)
    gate.open.set()
    wq.close(HANG)


def test_a_closed_runtime_takes_no_work() -> None:
    runtime = cmwq.Runtime()
    used, unused = cmwq.WorkQueue("used", runtime=runtime), cmwq.WorkQueue("unused", runtime=runtime)
    used.submit(int).result(HANG)
    runtime.close(HANG)
    for wq in (used, unused):
        with pytest.raises(cmwq.QueueClosed, match="runtime is closed and takes no more work"):
            wq.submit(int)
        work = cmwq.Work(int)
        with pytest.raises(cmwq.QueueClosed, match="runtime is closed"):
            wq.queue(work)
        assert not work.pending


@pytest.mark.parametrize("how", ["drain", "close"])
def test_F10_F3_what_is_accepted_in_the_middle_of_the_beginning_of_a_drain_is_run(
    universe: cmwq.Runtime, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """By a finaliser, say, on the thread that drains: it can be listed only when the queue takes works no more."""
    wq, ran = cmwq.WorkQueue("q", max_pending=2, runtime=universe), []
    wq.submit(int).result(HANG)
    queued, submitted = cmwq.Work(ran.append, 1), cmwq.Work(lambda: ran.append(2) or "result")
    answers: list[Any] = []
    change_state = wq._change_state

    def queue_in_between() -> None:
        if not answers:
            answers.extend((wq.queue(queued), wq.submit(submitted), wq.submit(ran.append, 3)))
        change_state()

    monkeypatch.setattr(wq, "_change_state", queue_in_between)
    getattr(wq, how)(HANG)
    assert answers[0] is True
    assert answers[1].result(HANG) == "result"
    assert answers[2].result(HANG) is None
    assert sorted(ran) == [1, 2, 3]
