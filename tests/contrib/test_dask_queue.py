"""cmwq.contrib.dask.ClusterWorkQueue: what a queue promises on one machine, where it is promised on a cluster."""

from __future__ import annotations

import asyncio
import concurrent.futures as cf
import operator
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from conftest import HANG, until

import cmwq

distributed = pytest.importorskip("distributed", reason="Dask distributed can't be imported here")
contrib = pytest.importorskip("cmwq.contrib.dask")

from cmwq.contrib.dask import calls  # noqa: E402

from .dask_works import cluster_here, gate_named, pass_gate  # noqa: E402

pytestmark = pytest.mark.filterwarnings("default")  # Dask's own


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """(worker, client), with the plugin."""
    with cluster_here() as (cluster, client):
        client.register_plugin(contrib.CmwqPlugin())
        yield next(iter(cluster.workers.values())), client


@pytest.fixture
def client(cluster: Any) -> Any:
    return cluster[1]


_ran: list[object] = []


@pytest.fixture(autouse=True)
def _nothing_ran() -> None:
    _ran.clear()


def run(value: object) -> object:
    _ran.append(value)
    return value


def run_after(gate: str, value: object) -> object:
    pass_gate(gate)
    return run(value)


def fail(value: object) -> None:
    _ran.append(value)
    raise LookupError(f"no {value}")


# ------------------------------------------------------------------------------------- calls


def test_the_standard_library_accepts_the_futures(client: Any) -> None:
    with contrib.ClusterWorkQueue("standard", client=client) as queue:
        futures = [queue.submit(run, number) for number in range(20)]
        assert sorted(future.result(HANG) for future in cf.as_completed(futures, HANG)) == list(range(20))
        assert all(isinstance(future, cf.Future) for future in futures)
        done = cf.wait([queue.submit(pow, 2, 5), queue.submit(pow, 2, 6)], HANG).done
        assert {future.result() for future in done} == {32, 64}

        async def await_it() -> object:
            return await asyncio.wrap_future(queue.submit(run, "awaited"))

        assert asyncio.run(await_it()) == "awaited"


def test_map_gives_results_in_order_and_reads_no_further_than_its_buffer(client: Any) -> None:
    read: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(10):
            read.append(number)
            yield number

    with contrib.ClusterWorkQueue("map", client=client) as queue:
        results = queue.map(operator.neg, numbers(), buffersize=3)
        assert len(read) == 3
        assert list(results) == [-number for number in range(10)]
        assert list(queue.map(operator.add, [1, 2], [10, 20], timeout=HANG)) == [11, 22]
        with pytest.raises(ValueError, match="buffersize"):
            queue.map(run, [1], buffersize=0)


def test_map_gives_all_results_before_the_error_of_its_input(client: Any) -> None:
    def numbers() -> Iterator[int]:
        yield from range(5)
        raise KeyError("on purpose")

    got: list[object] = []
    with contrib.ClusterWorkQueue("map", client=client) as queue:
        results = queue.map(operator.neg, numbers(), buffersize=2)
        with pytest.raises(KeyError, match="on purpose"):
            got.extend(iter(results.__next__, None))
    assert got == [0, -1, -2, -3, -4]


def test_map_ends_at_its_timeout_and_takes_back_what_was_not_sent(client: Any) -> None:
    with contrib.ClusterWorkQueue("late", client=client, max_active=1) as queue, gate_named("slow") as gate:
        with pytest.raises(cmwq.CmwqTimeout):
            list(queue.map(partial(run_after, "slow"), range(3), timeout=0.05))
        gate.open.set()
        queue.flush(HANG)
        assert len(_ran) <= 1


def test_what_a_work_raises_comes_back(client: Any) -> None:
    with contrib.ClusterWorkQueue("raises", client=client) as queue:
        with pytest.raises(LookupError, match="no luck"):
            queue.submit(fail, "luck").result(HANG)


def test_what_cannot_be_pickled_is_refused_at_once(client: Any) -> None:
    with contrib.ClusterWorkQueue("pickle", client=client) as queue:
        with pytest.raises(TypeError, match=r"can't be sent to another machine.*lock"):
            queue.submit(run, threading.Lock())
        with pytest.raises(TypeError, match="coroutine"):
            queue.submit(asyncio.sleep, 1)
        with pytest.raises(TypeError, match="calls a function"):
            queue.submit("nothing")
        assert queue.nr_unfinished() == 0


def test_closures_and_lambdas_are_sent(client: Any) -> None:
    base = 7
    with contrib.ClusterWorkQueue("closure", client=client) as queue:
        assert queue.submit(lambda number: number + base, 3).result(HANG) == 10


def test_arguments_are_those_of_the_moment_of_queueing(client: Any) -> None:
    with contrib.ClusterWorkQueue("copy", client=client, max_active=1) as queue, gate_named("copy") as gate:
        first = queue.submit(pass_gate, "copy")
        values = [1]
        future = queue.submit(run, values)
        values.append(2)
        gate.open.set()
        assert future.result(HANG) == [1]
        first.result(HANG)


def test_another_version_is_refused_before_anything_is_unpickled(client: Any, monkeypatch: Any) -> None:
    made_by = calls.made_by
    with contrib.ClusterWorkQueue("version", client=client) as queue:
        call = calls.Call.of("run", run, (1,), {})
        other = calls.Call(call.name, b"not even a pickle", ("2.7", "0.0.1"))
        monkeypatch.setattr("cmwq.contrib.dask.queue._pickled", lambda *_: other)
        with pytest.raises(contrib.VersionMismatch, match=r"Python 2\.7 with cmwq 0\.0\.1"):
            queue.submit(run, 1).result(HANG)
    assert calls.made_by is made_by
    assert _ran == []


def test_callbacks_run_on_workers_of_this_process_and_may_wait(client: Any) -> None:
    with contrib.ClusterWorkQueue("callbacks", client=client) as queue:
        results: list[object] = []
        told = threading.Event()

        def follow_up(future: Any) -> None:
            results.append(queue.submit(run, future.result() + 1).result(HANG))
            told.set()

        queue.submit(run, 1).add_done_callback(follow_up)
        assert told.wait(HANG)
        assert results == [2]


# ------------------------------------------------------------------------------------- limits and order


def test_E1_at_most_max_active_are_with_the_cluster(client: Any) -> None:
    with contrib.ClusterWorkQueue("limit", client=client, max_active=3) as queue, gate_named("limit") as gate:
        futures = [queue.submit(pass_gate, "limit") for _ in range(8)]
        gate.await_arrivals(3)
        assert queue.nr_pending() == 5
        assert [future.running() for future in futures] == [True] * 3 + [False] * 5
        queue.max_active = 5
        gate.await_arrivals(2)
        assert queue.nr_pending() == 3
        gate.open.set()
        cf.wait(futures, HANG)


def test_E1_at_most_so_many_run_on_one_worker(cluster: Any) -> None:
    worker, client = cluster
    with (
        contrib.ClusterWorkQueue("places", client=client, per_worker=2) as queue,
        gate_named("places") as gate,
    ):
        futures = [queue.submit(pass_gate, "places") for _ in range(6)]
        gate.await_arrivals(2)
        left = client.run(_places_left, workers=[worker.address])
        assert left == {worker.address: {"cmwq:places": 0}}
        assert not gate.arrived.acquire(blocking=False)
        gate.open.set()
        cf.wait(futures, HANG)


def _places_left(dask_worker: Any) -> dict[str, float]:
    return {name: left for name, left in dask_worker.state.available_resources.items() if name == "cmwq:places"}


def test_E2_an_ordered_queue_runs_one_at_a_time_in_order(client: Any) -> None:
    with contrib.ClusterWorkQueue("ledger", client=client, ordered=True) as queue:
        futures = [queue.submit(run, number) for number in range(30)]
        assert [future.result(HANG) for future in futures] == _ran == list(range(30))
        with pytest.raises(ValueError, match="ordered"):
            queue.max_active = 2


def test_the_default_limit_grows_with_the_cluster(client: Any) -> None:
    with contrib.ClusterWorkQueue("default", client=client) as queue:
        queue.submit(run, 1).result(HANG)
        assert queue.max_active == 256


# ------------------------------------------------------------------------------------- works


def test_E4_a_pending_work_is_queued_once(client: Any) -> None:
    with contrib.ClusterWorkQueue("coalesce", client=client, max_active=1) as queue, gate_named("busy") as gate:
        queue.submit(pass_gate, "busy")
        gate.await_arrivals(1)
        work = contrib.ClusterWork(run, "once")
        assert (work.pending, work.running) == (False, False)
        assert [queue.queue(work) for _ in range(3)] == [True, False, False]
        assert work.pending
        gate.open.set()
        queue.flush(HANG)
        assert _ran == ["once"]
        assert queue.queue(work)
        assert work.flush(HANG) in (True, False)
        queue.flush(HANG)
        assert _ran == ["once", "once"]


def test_E3_a_work_queued_while_it_runs_follows_its_running_execution(client: Any) -> None:
    with contrib.ClusterWorkQueue("again", client=client) as queue, gate_named("again") as gate:
        work = contrib.ClusterWork(pass_gate, "again")
        assert queue.queue(work)
        gate.await_arrivals(1)
        assert work.running
        assert [queue.queue(work), queue.queue(work)] == [True, False]
        assert (work.pending, work.running) == (True, True)
        queue.submit(run, "another").result(HANG)  # which is sent at once
        assert not gate.arrived.acquire(blocking=False)
        gate.open.set()
        gate.await_arrivals(1)
        queue.flush(HANG)


def test_F4_cancel_takes_back_what_was_not_sent(client: Any) -> None:
    with contrib.ClusterWorkQueue("cancel", client=client, max_active=1) as queue, gate_named("cancel") as gate:
        sent = queue.submit(pass_gate, "cancel")
        gate.await_arrivals(1)
        call = queue.submit(run, "call")
        work = contrib.ClusterWork(run, "work")
        queue.queue(work)
        assert (sent.cancel(), call.cancel(), call.cancel()) == (False, True, True)
        assert (work.cancel(), work.cancel()) == (True, False)
        assert cf.wait([call], HANG).done == {call}
        with pytest.raises(cf.CancelledError):
            call.result()
        gate.open.set()
        queue.flush(HANG)
        assert _ran == []


def test_F5_cancel_sync_waits_for_what_runs_and_refuses_requeueing(client: Any) -> None:
    with contrib.ClusterWorkQueue("sync", client=client) as queue, gate_named("sync") as gate:
        work = contrib.ClusterWork(run_after, "sync", "ended")
        queue.queue(work)
        gate.await_arrivals(1)
        queue.queue(work)
        with pytest.raises(cmwq.CmwqTimeout):
            work.cancel_sync(0.01)
        canceller = threading.Thread(target=work.cancel_sync)
        canceller.start()
        until(lambda: work.nr_cancelling > 0)
        assert not queue.queue(work)
        assert not queue.queue_delayed(work, 1.0)
        gate.open.set()
        canceller.join(HANG)
        assert (work.pending, work.running, _ran) == (False, False, ["ended"])
        assert queue.queue(work)


def test_F9_delayed_works_wait_and_can_be_moved(client: Any) -> None:
    with contrib.ClusterWorkQueue("delayed", client=client) as queue:
        work = contrib.ClusterWork(run, "late")
        assert queue.queue_delayed(work, 3600)
        assert not queue.queue_delayed(work, 0.01)
        queue.flush(HANG)  # does not wait for it
        assert (work.pending, _ran) == (True, [])
        assert queue.mod_delayed(work, 0.01)
        until(lambda: _ran == ["late"])
        until(lambda: not work.running)
        assert not queue.mod_delayed(work, 0)
        queue.flush(HANG)
        assert _ran == ["late", "late"]
        queue.queue_delayed(work, 3600)
        assert (work.cancel(), work.pending) == (True, False)


def test_a_failed_work_goes_to_on_error(client: Any) -> None:
    failed: list[tuple[object, str]] = []
    queue = contrib.ClusterWorkQueue(
        "errors", client=client, on_error=lambda work, exc: failed.append((work, str(exc)))
    )
    with queue:
        work = contrib.ClusterWork(fail, "bread")
        queue.queue(work)
        queue.flush(HANG)
    assert failed == [(work, "no bread")]


def test_a_work_belongs_to_one_queue(client: Any) -> None:
    with contrib.ClusterWorkQueue("one", client=client) as one, contrib.ClusterWorkQueue("two", client=client) as two:
        work = contrib.ClusterWork(run, 1)
        one.queue(work)
        with pytest.raises(ValueError, match="belongs to queue 'one'"):
            two.queue(work)
        with pytest.raises(TypeError, match="ClusterWork"):
            two.queue(cmwq.Work(run, 1))


# ------------------------------------------------------------------------------------- the end


def test_F1_a_flush_waits_for_what_was_queued_before_it(client: Any) -> None:
    with contrib.ClusterWorkQueue("flush", client=client, max_active=2) as queue, gate_named("flush") as gate:
        for number in range(4):
            queue.submit(run_after, "flush", number)
        with pytest.raises(cmwq.CmwqTimeout, match="4 works still there"):
            queue.flush(0.01)
        gate.open.set()
        queue.flush(HANG)
        assert sorted(_ran) == [0, 1, 2, 3]


def test_F3_a_draining_queue_refuses_works_and_is_open_afterwards(client: Any) -> None:
    with contrib.ClusterWorkQueue("drain", client=client) as queue, gate_named("drain") as gate:
        queue.submit(run_after, "drain", 1)
        gate.await_arrivals(1)
        drainer = threading.Thread(target=queue.drain)
        drainer.start()
        until(lambda: "draining" in repr(queue))
        with pytest.raises(cmwq.QueueClosed, match="draining"):
            queue.submit(run, 2)
        gate.open.set()
        drainer.join(HANG)
        assert queue.submit(run, 3).result(HANG) == 3


def test_a_closed_queue_has_done_all_and_takes_nothing(client: Any) -> None:
    queue = contrib.ClusterWorkQueue("close", client=client, max_active=1)
    for number in range(5):
        queue.submit(run, number)
    later = contrib.ClusterWork(run, "later")
    queue.queue_delayed(later, 3600)
    queue.close(HANG)
    assert (_ran, later.pending) == (list(range(5)), False)
    with pytest.raises(cmwq.QueueClosed, match="closed"):
        queue.submit(run, 5)
    queue.close()


def test_an_abandoned_queue_waits_for_nothing(client: Any) -> None:
    with gate_named("abandon") as gate:
        queue = contrib.ClusterWorkQueue("abandon", client=client, max_active=1)
        runs, waits = queue.submit(pass_gate, "abandon"), queue.submit(run, "waits")
        gate.await_arrivals(1)
        queue.close(HANG, abandon=True)
        assert waits.cancelled()
        with pytest.raises(contrib.WorkLost, match="left to the cluster"):
            runs.result(HANG)
    assert _ran == []


def test_when_the_client_closes_nobody_waits_for_ever(cluster: Any) -> None:
    with gate_named("client") as gate:
        other = distributed.Client(cluster[1].scheduler.address, set_as_default=False)
        queue = contrib.ClusterWorkQueue("client", client=other, max_active=1)
        runs, waits = queue.submit(pass_gate, "client"), queue.submit(run, "waits")
        gate.await_arrivals(1)
        other.close()
        late = queue.submit(run, "late")
        for future in (runs, waits, late):
            with pytest.raises(contrib.WorkLost):
                future.result(HANG)
        queue.close(HANG)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"ordered": True, "max_active": 2}, "ordered"),
        ({"max_active": 0}, "at least 1"),
        ({"per_worker": 0}, "at least 1"),
        ({"retries": 1}, "repeatable"),
        ({"retries": -1, "repeatable": True}, "negative"),
    ],
)
def test_options_that_make_no_sense_are_refused(client: Any, options: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        contrib.ClusterWorkQueue("wrong", client=client, **options)


def test_a_queue_may_be_made_in_a_task(client: Any) -> None:
    with contrib.ClusterWorkQueue("outer", client=client) as queue:
        assert queue.submit(queue_from_a_task, 5).result(HANG) == list(range(5))


def queue_from_a_task(number: int) -> list[object]:
    with contrib.ClusterWorkQueue("inner") as queue:
        return list(queue.map(run, range(number), timeout=HANG))


def test_all_workers_can_be_looked_at(client: Any, tmp_path: Any) -> None:
    from cmwq.observing.dashboard.sources import NoPicture, Over

    with contrib.ClusterWorkQueue("look", client=client) as queue, gate_named("look") as gate:
        path = tmp_path / "cluster.json"
        with contrib.cluster_trace(client, path):
            future = queue.submit(pass_gate, "look")
            gate.await_arrivals(1)
            (picture,) = contrib.pictures(client).values()
            assert any(each["name"].startswith("dask") for each in picture["queues"])
            source = contrib.Source(client)
            (target,) = source.targets()
            link = source.connect(target)
            assert link.picture(stacks=True)["workers"]
            link.close()
            with pytest.raises((NoPicture, Over)):
                link.picture(stacks=False)
            gate.open.set()
            future.result(HANG)
        events = __import__("json").loads(path.read_text())["traceEvents"]
        names = {event.get("name", "") for event in events}
        assert any("pass_gate" in name for name in names)
        assert any(name.startswith("compute") for name in names), "what Dask says of its threads"
        spans = [event for event in events if event.get("ph") == "X"]
        assert all(event["ts"] >= -1e6 and event["dur"] >= 0 for event in spans)
