"""H2: subscriptions on real threads: who hears of what, who is slow, who raises, forks and the end."""

from __future__ import annotations

import logging
import os
import subprocess
import threading
import time
from collections.abc import Callable

import pytest
from conftest import HANG, Gate

import cmwq
from cmwq.events import Event, Kind

Python = Callable[..., "subprocess.CompletedProcess[str]"]
WORKS = (Kind.QUEUED, Kind.ACTIVATED, Kind.STARTED, Kind.ENDED)


@pytest.fixture
def queue(universe: cmwq.Runtime) -> cmwq.WorkQueue:
    return cmwq.WorkQueue("q", runtime=universe)


def test_H2_a_callback_hears_of_everything_before_the_subscription_ends(queue: cmwq.WorkQueue) -> None:
    heard: list[Event] = []
    with cmwq.events.subscribe(heard.append, queue=queue, kinds=WORKS) as subscription:
        for future in queue.submit_many(int, range(100)):
            future.result(HANG)
    assert [event.kind for event in heard].count(Kind.ENDED) == 100
    for kind in WORKS:
        assert len({event.item for event in heard if event.kind is kind}) == 100
    assert [event.time for event in heard] == sorted(event.time for event in heard)
    assert subscription.dropped == 0
    before = len(heard)
    queue.submit(int).result(HANG)
    subscription.close()
    assert len(heard) == before
    assert not [thread for thread in threading.enumerate() if thread is subscription.thread]


def test_H2_events_are_taken_one_by_one_or_waited_for(queue: cmwq.WorkQueue) -> None:
    with cmwq.events.subscribe(queue=queue, kinds=["ended"]) as subscription:
        assert subscription.get(timeout=0) is None
        assert subscription.take() == []
        threading.Timer(0.01, queue.submit, (int,)).start()
        event = subscription.get(HANG)
        assert event is not None
        assert (event.kind, event.work, event.why) == ("ended", "int", "")
        queue.submit(str).result(HANG)
    assert [event.work for event in subscription] == ["str"], "over: what is left, and no more"
    assert subscription.get() is None


def test_H2_several_threads_may_wait_and_each_event_goes_to_one(queue: cmwq.WorkQueue) -> None:
    taken: list[Event] = []
    with cmwq.events.subscribe(queue=queue, kinds=["ended"]) as subscription:
        threads = [threading.Thread(target=lambda: taken.extend(subscription)) for _ in range(4)]
        for thread in threads:
            thread.start()
        futures = [queue.submit(int) for _ in range(500)]
        for future in futures:
            future.result(HANG)
    for thread in threads:
        thread.join(HANG)
        assert not thread.is_alive()
    assert len(taken) == 500
    assert {event.item for event in taken} == set(map(id, futures))


def test_H2_who_is_subscribed_to_a_queue_hears_of_no_other(universe: cmwq.Runtime, queue: cmwq.WorkQueue) -> None:
    other = cmwq.WorkQueue("other", runtime=universe)
    with cmwq.events.subscribe(queue=queue) as subscription, cmwq.events.subscribe(runtime=universe) as everything:
        queue.submit(time.sleep, 0.001).result(HANG)
        other.submit(int).result(HANG)
    found = subscription.take()
    assert {event.queue for event in found} == {"q"}
    assert {Kind.QUEUED, Kind.ENDED} <= {event.kind for event in found} <= {*WORKS, Kind.BLOCKED, Kind.RUNNING}
    assert {"q", "other", ""} == {event.queue for event in everything.take()}


def test_H2_F3_a_queue_that_drained_is_observed_as_before(queue: cmwq.WorkQueue) -> None:
    with cmwq.events.subscribe(queue=queue, kinds=["queued"]) as subscription:
        queue.submit(int)
        queue.drain(HANG)
        queue.submit(str).result(HANG)
        queue.close(HANG)
        with pytest.raises(cmwq.QueueClosed):
            queue.submit(int)
    assert [event.work for event in subscription.take()] == ["int", "str"]


def test_H2_a_slow_observer_loses_its_own_events_and_is_told_how_many(queue: cmwq.WorkQueue) -> None:
    with (
        cmwq.events.subscribe(queue=queue, kinds=["ended"], limit=3) as slow,
        cmwq.events.subscribe(queue=queue, kinds=["ended"]) as quick,
    ):
        for number in range(10):
            queue.submit(abs, number).result(HANG)
        queue.flush(HANG)
        first = slow.take()
        assert [event.kind for event in first] == ["ended"] * 3
        assert slow.dropped == 7
        queue.submit(abs, 10).result(HANG)
        queue.flush(HANG)
        lost, then = slow.take()
        assert (lost.kind, lost.number, lost.pool) == (Kind.LOST, 7, "u0")
        assert then.kind is Kind.ENDED
        for number in range(5):
            queue.submit(abs, number).result(HANG)
        queue.flush(HANG)
    assert [(event.kind, event.number) for event in slow] == [*[(Kind.ENDED, 0)] * 3, (Kind.LOST, 2)]
    assert slow.dropped == 9
    assert [event.kind for event in quick] == ["ended"] * 16
    assert quick.dropped == 0


def test_H2_works_do_not_wait_for_a_callback(queue: cmwq.WorkQueue, gate: Gate) -> None:
    heard: list[Event] = []

    def hold(event: Event) -> None:
        gate()
        heard.append(event)

    subscription = cmwq.events.subscribe(hold, queue=queue, kinds=["ended"], limit=10)
    first = queue.submit(int)
    gate.await_arrivals(1)
    for future in [queue.submit(int) for _ in range(100)]:
        future.result(HANG)
    queue.flush(HANG)
    assert subscription.dropped == 90
    assert not heard
    gate.open.set()
    subscription.close(HANG)
    assert [event.kind for event in heard] == [*["ended"] * 11, "lost"]
    assert heard[0].item == id(first)
    assert heard[-1].number == 90


def test_H2_an_observer_may_queue_works_wait_for_them_and_unsubscribe(queue: cmwq.WorkQueue) -> None:
    results: list[int] = []
    ready, done = threading.Event(), threading.Event()

    def react(event: Event) -> None:
        ready.wait(HANG)
        results.append(queue.submit(abs, -7).result(HANG))
        queue.flush(HANG)
        subscription.close()
        done.set()

    subscription = cmwq.events.subscribe(react, queue=queue, kinds=["ended"])
    ready.set()
    queue.submit(int).result(HANG)
    assert done.wait(HANG)
    assert subscription.thread is not None
    subscription.thread.join(HANG)
    assert results[0] == 7
    place = queue._only
    assert place is not None
    assert not place.observed


def test_H2_an_observer_may_close_the_runtime() -> None:
    runtime = cmwq.Runtime()
    queue, done = cmwq.WorkQueue("q", runtime=runtime), threading.Event()

    def close(event: Event) -> None:
        runtime.close(HANG)
        done.set()

    cmwq.events.subscribe(close, queue=queue, kinds=["ended"])
    queue.submit(int)
    assert done.wait(HANG)
    with pytest.raises(cmwq.QueueClosed):
        queue.submit(int)


def test_H2_a_callback_that_raises_is_logged_and_after_10_times_in_a_row_called_no_more(
    queue: cmwq.WorkQueue, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[int] = []

    def fail(event: Event) -> None:
        calls.append(len(calls))
        if len(calls) != 5:  # then it begins anew
            raise SystemExit

    with caplog.at_level(logging.ERROR, "cmwq"):
        subscription = cmwq.events.subscribe(fail, queue=queue, kinds=["ended"])
        for _ in range(50):
            queue.submit(int).result(HANG)
        assert subscription.thread is not None
        subscription.thread.join(HANG)
    assert len(calls) == 15
    assert subscription.over
    assert "its callback raised 10 times in a row, and is called no more" in caplog.text
    place = queue._only
    assert place is not None
    assert not place.observed


def test_H2_a_subscription_in_the_middle_of_works_hears_of_the_next(queue: cmwq.WorkQueue, gate: Gate) -> None:
    """Also where a worker is at home with the queue, and would run the next item without ado."""
    queue.max_active = 1  # one worker runs them all, without a rest in between
    # One of the first 64 is measured, and does not leave the worker at home; then none for 10 ms.
    held = queue.submit_many(lambda fn: fn(), [*[int] * 64, gate])[-1]
    gate.await_arrivals(1)
    waiting = [queue.submit(int) for _ in range(3)]
    with cmwq.events.subscribe(queue=queue, kinds=["started", "ended"]) as subscription:
        gate.open.set()
        for future in (held, *waiting):
            future.result(HANG)
        queue.flush(HANG)
        after = queue.submit(int)
        after.result(HANG)
    found = subscription.take()
    for kind in (Kind.STARTED, Kind.ENDED):
        assert id(after) in {event.item for event in found if event.kind is kind}
    assert set(map(id, waiting)) <= {event.item for event in found if event.kind is Kind.STARTED}
    assert id(held) not in {event.item for event in found if event.kind is Kind.STARTED}


def test_H2_subscribing_and_unsubscribing_under_load_loses_no_work(queue: cmwq.WorkQueue) -> None:
    stop = threading.Event()
    results: list[int] = []

    def load() -> None:
        while not stop.is_set():
            results.extend(future.result(HANG) for future in [queue.submit(abs, -1) for _ in range(20)])

    threads = [threading.Thread(target=load) for _ in range(2)]
    for thread in threads:
        thread.start()
    seen = 0
    for _ in range(100):
        with cmwq.events.subscribe(queue=queue) as subscription:
            queue.submit(int).result(HANG)
        known: set[int] = set()
        for event in subscription.take():
            seen += 1
            if event.kind is Kind.STARTED:
                assert event.item not in known
                known.add(event.item)
            elif event.kind is Kind.ENDED:  # one that had begun before, observed by the last subscription, too
                known.discard(event.item)
    stop.set()
    for thread in threads:
        thread.join(HANG)
        assert not thread.is_alive()
    assert seen
    assert set(results) == {1}


def test_H2_where_a_worker_is_blocked_is_looked_up_if_asked_for(queue: cmwq.WorkQueue, sensor: str) -> None:
    if sensor == "hints" or not os.path.exists("/proc/self/task"):
        pytest.skip("nobody notices")
    runtime = cmwq.Runtime(sensor=sensor)
    reading, writing = os.pipe()
    with cmwq.WorkQueue("pipe", runtime=runtime) as pipe:
        subscription = cmwq.events.subscribe(queue=pipe, kinds=["blocked"], where=True)
        futures = [pipe.submit(os.read, reading, 1) for _ in range(8)]
        while True:
            event = subscription.get(HANG)
            assert event is not None
            assert event.work == "read"
            if event.why == "asleep" and event.where:  # and not for a moment, for a lock, as it begins
                break
        assert event.where == runtime.host.waits_in(os.getpid() and _tid_of(runtime, event.worker))
        os.write(writing, b"x" * 8)
        for future in futures:
            future.result(HANG)
    subscription.close()
    runtime.close(HANG)
    os.close(reading)
    os.close(writing)


def _tid_of(runtime: cmwq.Runtime, name: str) -> int:
    return next(worker.tid for pool in runtime.pools() for worker in list(pool.workers) if worker.name == name)


def test_H2_what_cannot_be_subscribed_to_is_refused(universe: cmwq.Runtime, queue: cmwq.WorkQueue) -> None:
    with pytest.raises(ValueError, match="'begun' is no kind of event; there are counts, queued, "):
        cmwq.events.subscribe(kinds=["begun"])
    with pytest.raises(ValueError, match="queue 'q' is another runtime's"):
        cmwq.events.subscribe(queue=queue, runtime=cmwq.default_runtime())
    with pytest.raises(TypeError, match="callback"):
        cmwq.events.subscribe(7)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="queue is 3, and must be a WorkQueue"):
        cmwq.events.subscribe(queue=3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="must be a Runtime"):
        cmwq.events.subscribe(runtime=3)  # type: ignore[arg-type]
    for kinds in ("started", cmwq.events.Kind.STARTED, 3):
        with pytest.raises(TypeError, match=r"kinds is .*, and must be a collection of names: \['started'\]"):
            cmwq.events.subscribe(kinds=kinds)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="limit"):
        cmwq.events.subscribe(limit=0)
    with (
        cmwq.events.subscribe(lambda event: None, runtime=universe) as subscription,
        pytest.raises(TypeError, match="has a callback"),
    ):
        subscription.get()
    assert universe.events.subscriptions == ()


def test_H2_B6_without_a_thread_for_its_callback_nobody_is_subscribed(
    universe: cmwq.Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise cmwq.ThreadLimit("none is left")

    monkeypatch.setattr(universe.host, "spawn", refuse)
    with pytest.raises(cmwq.ThreadLimit, match="none is left"):
        cmwq.events.subscribe(print, runtime=universe)
    assert universe.events.subscriptions == ()


def test_H2_after_the_runtimes_end_a_subscription_is_over() -> None:
    runtime = cmwq.Runtime()
    heard: list[Event] = []
    cmwq.events.subscribe(heard.append, runtime=runtime, kinds=["ended"])
    pulled = cmwq.events.subscribe(runtime=runtime, kinds=["ended"])
    queue = cmwq.WorkQueue("q", runtime=runtime)
    for _ in range(10):
        queue.submit(int)
    runtime.close(HANG)
    assert len(heard) == len(list(pulled)) == 10
    late = cmwq.events.subscribe(runtime=runtime)
    assert list(late) == []


def test_H2_G3_what_was_noted_is_delivered_before_the_interpreters_end(python: Python) -> None:
    program = """
        import cmwq
        cmwq.events.subscribe(lambda event: print(event.kind, event.work, flush=True), kinds=["queued", "ended"])
        for _ in range(100):
            cmwq.system.submit(int)
    """
    done = python(program)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines.count("queued int") == lines.count("ended int") == 100


@pytest.mark.parametrize("pulls", [False, True])
def test_H2_G3_an_observer_that_never_returns_does_not_keep_the_interpreter(python: Python, pulls: bool) -> None:
    program = f"""
        import cmwq, threading
        def hang(event): threading.Event().wait()
        def take(subscription):
            for event in subscription: pass
        subscription = cmwq.events.subscribe(None if {pulls} else hang)
        if {pulls}: threading.Thread(target=take, args=(subscription,)).start()
        cmwq.system.submit(print, "done")
    """
    done = python(program)
    assert done.returncode == 0
    assert done.stdout == "done\n"
    assert ("its callback is too slow" in done.stderr) == (not pulls)


@pytest.mark.parametrize("who", ["main", "work", "callback"])
def test_H2_G2_the_child_of_a_fork_has_no_subscription(python: Python, who: str) -> None:
    program = f"""
        import cmwq, os, threading, warnings
        warnings.simplefilter("ignore", DeprecationWarning)  # since 3.12, of a fork with threads
        heard = []
        forked = threading.Event()
        def fork():
            pid = os.fork()
            if not pid:
                before = len(heard)
                assert subscription.over and pulled.over and pulled.get() is None
                assert cmwq.system.submit(abs, -1).result(60) == 1
                subscription.close(); pulled.close()
                assert len(heard) == before and not cmwq.default_runtime().events.subscriptions
                with cmwq.events.subscribe(kinds=["ended"]) as own:
                    cmwq.system.submit(abs, -1).result(60)
                assert own.get().work == "abs"
                os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0
            forked.set()
        def callback(event):
            heard.append(event)
            if {who!r} == "callback" and not forked.is_set(): fork()
        subscription = cmwq.events.subscribe(callback)
        pulled = cmwq.events.subscribe()
        cmwq.system.submit(fork if {who!r} == "work" else int).result(60)
        if {who!r} == "main": fork()
        assert forked.wait(60)
        print("whole")
    """
    done = python(program)
    assert (done.returncode, done.stdout, done.stderr) == (0, "whole\n", "")
