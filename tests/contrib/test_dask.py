"""cmwq.contrib.dask.CmwqPlugin: tasks that block give their slots back, and all else is as on Dask's own threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import HANG, until

import cmwq

distributed = pytest.importorskip("distributed", reason="Dask distributed can't be imported here")
contrib = pytest.importorskip("cmwq.contrib.dask")

from .dask_works import burn, cluster_here, gate_named, pass_gate  # noqa: E402

pytestmark = pytest.mark.filterwarnings("default")  # Dask's own


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A worker with two threads and the plugin: (worker, client)."""
    with cluster_here() as (cluster, client):
        client.register_plugin(contrib.CmwqPlugin())
        yield next(iter(cluster.workers.values())), client


def executor_of(worker: Any) -> Any:
    return worker.executors["default"]


# ------------------------------------------------------------------------------------- slots


def test_any_number_of_tasks_block_at_once_on_two_threads(cluster: Any) -> None:
    worker, client = cluster
    with gate_named("many") as gate:
        futures = client.map(pass_gate, ["many"] * 20, range(20), pure=False)
        gate.await_arrivals(20)
        until(lambda: len(worker.state.long_running) >= 18)
        assert len(worker.state.executing) <= 2
        gate.open.set()
        assert client.gather(futures) == list(range(20))
    until(lambda: executor_of(worker).nr_blocked() == 0)


def test_blocking_is_noticed_although_nothing_is_queued_on_the_worker_when_it_happens(cluster: Any) -> None:
    worker, client = cluster
    with gate_named("first") as first, gate_named("late") as late:
        futures = client.map(pass_gate, ["first"] * 2, pure=False)
        first.await_arrivals(2)
        until(lambda: len(worker.state.executing) < 2)  # one slot is back, and nobody waits for it
        more = client.map(pass_gate, ["late"] * 4, pure=False)
        late.await_arrivals(4)
        late.open.set()
        client.gather(more)
        first.open.set()
        client.gather(futures)


def test_no_more_than_max_blocked_tasks_are_without_a_slot() -> None:
    with cluster_here() as (cluster, client):
        client.register_plugin(contrib.CmwqPlugin(max_blocked=3))
        worker = next(iter(cluster.workers.values()))
        with gate_named("few") as gate:
            futures = client.map(pass_gate, ["few"] * 9, pure=False)
            gate.await_arrivals(5)
            until(lambda: len(worker.state.executing) == 2)
            executor = executor_of(worker)
            for _ in range(5):
                client.sync(_look, executor)
                assert (executor.nr_blocked(), len(worker.state.executing)) == (3, 2)
            assert not gate.arrived.acquire(blocking=False)
            gate.open.set()
            client.gather(futures)


async def _look(executor: Any) -> None:
    executor._look(executor.queue.blocked())


def test_with_no_slots_to_give_back_it_is_as_without_the_plugin() -> None:
    with cluster_here() as (cluster, client):
        client.register_plugin(contrib.CmwqPlugin(max_blocked=0))
        worker = next(iter(cluster.workers.values()))
        with gate_named("none") as gate:
            futures = client.map(pass_gate, ["none"] * 4, pure=False)
            gate.await_arrivals(2)
            client.sync(_look, executor_of(worker))
            assert executor_of(worker).given_back == 0
            gate.open.set()
            client.gather(futures)


_running: set[int] = set()
_most: list[int] = []


def burn_and_count(number: int) -> int:
    _running.add(number)
    _most.append(len(_running))
    burn(0.05)
    _running.discard(number)
    return number


def test_equal_tasks_that_compute_run_as_many_at_a_time_as_there_are_threads(cluster: Any) -> None:
    _, client = cluster
    _most.clear()
    assert client.gather(client.map(burn_and_count, range(10), pure=False)) == list(range(10))
    # A task that waits for a lock for a moment as it begins may be seen as blocked: one more begins. (Else it is 10.)
    assert max(_most) <= 4


def compute_until(name: str) -> None:
    end = time.monotonic() + HANG
    while name not in _flags:
        assert time.monotonic() < end
        burn(0.001)


def raise_flag(name: str) -> None:
    _flags.add(name)


_flags: set[str] = set()


def test_short_tasks_of_another_kind_pass_those_that_compute_for_long(cluster: Any) -> None:
    worker, client = cluster
    _flags.clear()
    long = client.map(compute_until, ["flag"] * 3, pure=False)
    until(lambda: len(worker.state.tasks) >= 2)
    client.submit(raise_flag, "flag", pure=False).result(HANG)
    client.gather(long)


def test_the_process_runs_as_many_works_as_its_workers_have_threads() -> None:
    def limit() -> int:
        return cmwq.snapshot().cpu_limit

    before = limit()
    with cluster_here(threads_per_worker=1) as (_, client):
        client.register_plugin(contrib.CmwqPlugin())
        assert limit() == 1
        client.unregister_worker_plugin("cmwq")
        assert limit() == before
        client.register_plugin(contrib.CmwqPlugin())
    assert limit() == before


# ------------------------------------------------------------------------------------- what tasks may expect


def who() -> tuple[str, str, str]:
    from distributed import get_client, get_worker

    return get_worker().address, get_client().scheduler.address, threading.current_thread().name


def test_get_worker_and_get_client_work_on_cmwqs_threads(cluster: Any) -> None:
    worker, client = cluster
    address, scheduler, thread = client.submit(who, pure=False).result(HANG)
    assert (address, scheduler) == (worker.address, client.scheduler.address)
    assert "Dask-Default-Threads" in thread


def test_tasks_are_told_apart_by_the_prefixes_of_their_keys(cluster: Any) -> None:
    """Dask hands over a closure, in which the key is found: another version of Dask may do it otherwise."""
    worker, client = cluster
    with gate_named("kinds") as gate:
        future = client.submit(pass_gate, "kinds", key="load-1234")
        gate.await_arrivals(1)
        task = executor_of(worker)._tasks["load-1234"]
        assert (task.kind, task.began > 0) == ("load", True)
        gate.open.set()
        future.result(HANG)
    until(lambda: not executor_of(worker)._tasks)


def nested(depth: int) -> int:
    from distributed import get_client

    if not depth:
        return 1
    client = get_client()
    return int(sum(client.gather(client.map(nested, [depth - 1] * 2, pure=False))))


def with_worker_client(depth: int) -> int:
    from distributed import worker_client

    if not depth:
        return 1
    with worker_client() as client:
        return int(sum(client.gather(client.map(with_worker_client, [depth - 1] * 2, pure=False))))


def seceding(name: str) -> str:
    from distributed import rejoin, secede

    secede()
    pass_gate(name)
    rejoin()
    secede()  # again, after it has rejoined
    return name


@pytest.mark.parametrize("task", [nested, with_worker_client])
def test_tasks_wait_for_tasks_to_any_depth(cluster: Any, task: Any) -> None:
    assert cluster[1].submit(task, 4, pure=False).result(HANG) == 16


def test_tasks_secede_and_rejoin_by_themselves(cluster: Any) -> None:
    worker, client = cluster
    with gate_named("secede") as gate:
        futures = client.map(seceding, ["secede"] * 6, pure=False)
        gate.await_arrivals(6)
        gate.open.set()
        assert client.gather(futures) == ["secede"] * 6
    until(lambda: executor_of(worker).nr_blocked() == 0)


def test_a_task_that_is_blocked_is_in_the_profile_and_has_a_call_stack(cluster: Any) -> None:
    worker, client = cluster
    with gate_named("seen") as gate:
        future = client.submit(pass_gate, "seen", pure=False)
        gate.await_arrivals(1)
        stacks = client.call_stack(keys=[future.key])
        assert "pass_gate" in str(stacks)

        def is_in_the_profile() -> bool:  # the worker begins a new one each second
            worker.trigger_profile()
            return "pass_gate" in str(worker.profile_recent)

        until(is_in_the_profile)
        gate.open.set()
        future.result(HANG)


def test_a_blocked_task_keeps_its_resources() -> None:
    with cluster_here(threads_per_worker=1, resources={"GPU": 1}) as (cluster, client):
        client.register_plugin(contrib.CmwqPlugin())
        worker = next(iter(cluster.workers.values()))
        with gate_named("gpu") as gate:
            futures = client.map(pass_gate, ["gpu"] * 3, resources={"GPU": 1}, pure=False)
            gate.await_arrivals(1)
            until(lambda: not worker.state.executing)
            assert worker.state.available_resources["GPU"] == 0
            assert not gate.arrived.acquire(blocking=False)
            gate.open.set()
            client.gather(futures)


class Counter:
    def __init__(self) -> None:
        self.count = 0

    def add(self, number: int) -> int:
        self.count += number
        return self.count


def test_actors_are_as_before(cluster: Any) -> None:
    _, client = cluster
    with client.as_current():
        counter = client.submit(Counter, actor=True).result(HANG)
        assert [counter.add(1).result(HANG) for _ in range(3)] == [1, 2, 3]


def failing() -> None:
    raise LookupError("nothing there")


def test_what_a_task_raises_is_its_outcome_and_the_worker_goes_on(cluster: Any) -> None:
    _, client = cluster
    with pytest.raises(LookupError, match="nothing there"):
        client.submit(failing, pure=False).result(HANG)
    assert client.submit(abs, -3).result(HANG) == 3


# ------------------------------------------------------------------------------------- cancelling


_cancelled: list[object] = []


def wait_to_be_cancelled(name: str) -> None:
    told = threading.Event()
    contrib.on_cancel(told.set)
    assert not contrib.was_cancelled()
    pass_gate(name)
    assert told.wait(HANG)
    _cancelled.append(contrib.was_cancelled())


def test_a_task_is_told_that_it_was_cancelled(cluster: Any) -> None:
    _, client = cluster
    _cancelled.clear()
    with gate_named("cancel") as gate:
        future = client.submit(wait_to_be_cancelled, "cancel", pure=False)
        gate.await_arrivals(1)
        gate.open.set()
        future.cancel()
        until(lambda: _cancelled == [True])


def test_a_task_is_told_when_its_client_is_gone(cluster: Any) -> None:
    _, client = cluster
    _cancelled.clear()
    with gate_named("gone") as gate:
        with distributed.Client(client.scheduler.address, set_as_default=False) as other:
            future = other.submit(wait_to_be_cancelled, "gone", pure=False)
            gate.await_arrivals(1)
            gate.open.set()
        until(lambda: _cancelled == [True])
        del future


def test_outside_a_task_nothing_is_cancelled() -> None:
    contrib.on_cancel(lambda: None)
    assert not contrib.was_cancelled()


# ------------------------------------------------------------------------------------- coming and going


def test_the_plugin_comes_to_and_leaves_a_worker_whose_tasks_run() -> None:
    with cluster_here() as (cluster, client):
        worker = next(iter(cluster.workers.values()))
        own = executor_of(worker)
        with gate_named("before") as before, gate_named("during") as during:
            early = client.submit(pass_gate, "before", 1, pure=False)
            before.await_arrivals(1)
            client.register_plugin(contrib.CmwqPlugin())
            assert "ThreadPoolExecutor" in str(type(executor_of(worker)))
            assert executor_of(worker) is not own
            late = client.map(pass_gate, ["during"] * 4, range(4), pure=False)
            during.await_arrivals(4)
            client.unregister_worker_plugin("cmwq")
            assert executor_of(worker) is own
            before.open.set()
            during.open.set()
            assert (early.result(HANG), client.gather(late)) == (1, [0, 1, 2, 3])
        assert client.submit(abs, -1).result(HANG) == 1


def test_a_worker_that_closes_waits_for_what_runs_and_leaves_the_rest_to_others() -> None:
    with cluster_here(n_workers=1, threads_per_worker=1) as (cluster, client):
        client.register_plugin(contrib.CmwqPlugin(max_blocked=0))
        first = next(iter(cluster.workers.values()))
        with gate_named("closing") as gate:
            runs = client.submit(pass_gate, "closing", "ran", pure=False)
            gate.await_arrivals(1)
            waits = client.submit(abs, -2)
            cluster.scale(2)
            client.wait_for_workers(2, timeout=HANG)
            gate.open.set()
            client.retire_workers([first.address])
            assert (runs.result(HANG), waits.result(HANG)) == ("ran", 2)


def test_a_preload_brings_the_plugin() -> None:
    with cluster_here(preload=["cmwq.contrib.dask"]) as (cluster, client):
        worker = next(iter(cluster.workers.values()))
        assert "cmwq" in worker.plugins
        with gate_named("preload") as gate:
            futures = client.map(pass_gate, ["preload"] * 6, pure=False)
            gate.await_arrivals(6)
            gate.open.set()
            client.gather(futures)


def test_the_workers_metrics_say_how_many_are_blocked(cluster: Any) -> None:
    worker, client = cluster
    with gate_named("metrics") as gate:
        futures = client.map(pass_gate, ["metrics"] * 5, pure=False)
        gate.await_arrivals(5)
        until(lambda: executor_of(worker).nr_blocked() >= 3)
        metrics = client.sync(worker.get_metrics)
        assert metrics["cmwq_blocked"] >= 3
        assert metrics["cmwq_given_back"] >= 3
        gate.open.set()
        client.gather(futures)


def test_ahead_of_need_workers_get_more_tasks(cluster: Any) -> None:
    worker, client = cluster
    client.register_plugin(contrib.AheadPlugin(8))
    with gate_named("ahead") as gate:
        client.register_plugin(contrib.CmwqPlugin(max_blocked=0))
        client.unregister_worker_plugin("cmwq")  # so that slots are not given back
        futures = client.map(pass_gate, ["ahead"] * 40, pure=False)
        until(lambda: len(worker.state.tasks) == 16)  # 8 for each of 2 threads
        gate.open.set()
        client.gather(futures)


@pytest.mark.parametrize("make", [lambda: contrib.CmwqPlugin(max_blocked=-1), lambda: contrib.AheadPlugin(0.5)])
def test_numbers_that_make_no_sense_are_refused(make: Any) -> None:
    with pytest.raises(ValueError, match="must"):
        make()
