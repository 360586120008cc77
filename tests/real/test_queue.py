"""WorkQueue and Work on real threads, each sensor."""

from __future__ import annotations

import logging
import os
import re
import threading

import pytest
from conftest import HANG, Gate

import cmwq


@pytest.fixture(params=["system", "cpu"])
def wq(request: pytest.FixtureRequest, runtime: cmwq.Runtime) -> cmwq.WorkQueue:
    return cmwq.WorkQueue("q", scope=request.param, runtime=runtime)


def test_E4_a_pending_work_is_queued_once_and_again_while_it_runs(runtime: cmwq.Runtime, gate: Gate) -> None:
    wq = cmwq.WorkQueue("one", max_active=1, runtime=runtime)
    runs: list[int] = []
    work = cmwq.Work(runs.append, 1)
    blocker = cmwq.Work(gate)
    assert wq.queue(blocker)
    gate.await_arrivals(1)
    assert wq.queue(work)
    assert not wq.queue(work)
    assert work.pending
    assert blocker.running
    assert not blocker.pending
    assert wq.queue(blocker), "while it runs, it may be queued once more"
    assert not wq.queue(blocker)
    gate.open.set()
    wq.flush(HANG)
    assert runs == [1]
    gate.await_arrivals(1)
    assert not work.pending
    assert not work.running


def test_E3_a_work_never_runs_twice_at_the_same_time(runtime: cmwq.Runtime) -> None:
    queues = [cmwq.WorkQueue(f"q{n}", scope=scope, runtime=runtime) for n, scope in enumerate(["system", "cpu"] * 2)]
    inside = threading.Lock()
    overlaps, runs = [], []

    def body() -> None:
        if not inside.acquire(blocking=False):
            overlaps.append(1)
            return
        with cmwq.blocking():
            os.sched_yield()
        runs.append(1)
        inside.release()

    work = cmwq.Work(body)
    queued = sum(wq.queue(work) for _ in range(500) for wq in queues)
    for _ in range(2):
        for wq in queues:
            wq.flush(HANG)
    assert not overlaps
    assert len(runs) == queued


def test_E5_a_work_may_requeue_itself(wq: cmwq.WorkQueue) -> None:
    runs: list[int] = []

    def body() -> None:
        runs.append(1)
        if len(runs) < 100:
            assert wq.queue(work)

    work = cmwq.Work(body)
    wq.queue(work)
    wq.close(HANG)
    assert len(runs) == 100


def test_B4_a_failing_work_is_logged_or_handed_over(runtime: cmwq.Runtime, caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise SystemExit("no")

    with cmwq.WorkQueue("logs", runtime=runtime) as wq, caplog.at_level(logging.ERROR, "cmwq"):
        wq.queue(cmwq.Work(fail))
    assert "logs" in caplog.text
    assert "fail" in caplog.text
    seen: list[tuple[cmwq.Work, BaseException]] = []
    work = cmwq.Work(fail)
    with cmwq.WorkQueue("hands", on_error=lambda w, e: seen.append((w, e)), runtime=runtime) as wq:
        wq.queue(work)
    assert seen[0][0] is work
    assert isinstance(seen[0][1], SystemExit)


def test_F1_flush_waits_for_what_was_queued_before_and_no_more(runtime: cmwq.Runtime, gate: Gate) -> None:
    wq = cmwq.WorkQueue("q", runtime=runtime)
    done: list[int] = []
    for n in range(500):  # more than max_active: inactive ones are waited for too
        wq.submit(done.append, n)
    wq.flush(HANG)
    assert len(done) == 500
    held = wq.submit(gate)
    with pytest.raises(cmwq.CmwqTimeout, match="1 works still there"):
        wq.flush(0.01)
    later = threading.Thread(target=wq.flush, args=(HANG,))
    later.start()
    gate.open.set()
    later.join(HANG)
    assert held.done()


def test_F1_flush_returns_under_constant_queueing(wq: cmwq.WorkQueue) -> None:
    stop = threading.Event()

    def chain() -> None:
        if not stop.is_set():
            wq.submit(chain)

    for _ in range(4):
        wq.submit(chain)
    wq.flush(HANG)
    stop.set()
    wq.close(HANG)


def test_F7_flushing_ones_own_queue_is_told(wq: cmwq.WorkQueue) -> None:
    with pytest.raises(cmwq.FlushDeadlock, match="'q'"):
        wq.submit(wq.flush).result(HANG)


def test_close_lets_chained_work_through_and_refuses_the_rest(runtime: cmwq.Runtime, gate: Gate) -> None:
    wq = cmwq.WorkQueue("closing", runtime=runtime)
    ran: list[str] = []

    def parent() -> None:
        gate()
        wq.submit(ran.append, "child")

    wq.submit(parent)
    gate.await_arrivals(1)
    with pytest.raises(cmwq.CmwqTimeout):
        wq.close(0.01)
    with pytest.raises(cmwq.QueueClosed, match="closing"):
        wq.submit(int)
    work = cmwq.Work(int)
    with pytest.raises(cmwq.QueueClosed):
        wq.queue(work)
    assert not work.pending
    gate.open.set()
    wq.close(HANG)
    assert ran == ["child"]
    wq.close(HANG)


def test_E1_raising_max_active_starts_what_waits(runtime: cmwq.Runtime, gate: Gate) -> None:
    wq = cmwq.WorkQueue("q", max_active=1, runtime=runtime)
    for _ in range(10):
        wq.submit(gate)
    gate.await_arrivals(1)
    assert runtime.snapshot().queues[0].inactive == 9
    wq.max_active = 10
    gate.await_arrivals(9)
    with pytest.raises(ValueError, match="at least 1"):
        wq.max_active = 0


def test_A1_a_per_cpu_queues_works_run_bound_to_their_cpu(runtime: cmwq.Runtime) -> None:
    wq = cmwq.WorkQueue("percpu", scope="cpu", runtime=runtime)
    affinities = [wq.submit(os.sched_getaffinity, 0).result(HANG) for _ in range(20)]
    assert all(len(affinity) == 1 for affinity in affinities)
    for pool in runtime.snapshot().pools:
        assert pool.target == 1
        assert pool.name == str(pool.cpus[0])
    wq.close(HANG)


def test_B5_workers_are_named_like_the_kernels(runtime: cmwq.Runtime) -> None:
    def comm() -> str:
        with open(f"/proc/self/task/{threading.get_native_id()}/comm") as file:
            return file.read().strip()

    wq = cmwq.WorkQueue("qname", runtime=runtime)
    assert re.fullmatch(r"cmwq/u0:\d-qname", wq.submit(comm).result(HANG))
    assert wq.submit(lambda: threading.current_thread().name).result(HANG).startswith("cmwq/u0:")
    wq.close(HANG)


def test_current_work_is_what_this_thread_runs(runtime: cmwq.Runtime) -> None:
    wq = cmwq.WorkQueue("q", runtime=runtime)
    assert cmwq.current_work() is None
    seen: list[object] = []
    work = cmwq.Work(lambda: seen.append(cmwq.current_work()))
    wq.queue(work)
    future = wq.submit(cmwq.current_work)
    assert future.result(HANG) is future
    wq.close(HANG)
    assert seen == [work]


def test_H4_the_snapshots_counts_add_up(runtime: cmwq.Runtime, gate: Gate) -> None:
    wq = cmwq.WorkQueue("q", max_active=3, runtime=runtime)
    for _ in range(5):
        wq.submit(gate)
    gate.await_arrivals(3)
    snapshot = runtime.snapshot()
    (pool,), (queue,) = snapshot.pools, snapshot.queues
    assert (queue.active, queue.inactive, queue.unfinished) == (3, 2, 5)
    assert pool.started == pool.completed + 3
    assert pool.workers >= 4
    assert snapshot.to_dict()["pools"][0]["name"] == "u0"
    gate.open.set()
    wq.close(HANG)


def test_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match="scope"):
        cmwq.WorkQueue("q", scope="planet")
    with pytest.raises(ValueError, match="max_active"):
        cmwq.WorkQueue("q", max_active=0)
    with pytest.raises(TypeError, match="callable"):
        cmwq.Work(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_workers"):
        cmwq.Runtime(max_workers=1)
