"""Executor: what users of ThreadPoolExecutor expect, on each sensor."""

from __future__ import annotations

import asyncio
import concurrent.futures as cf
import contextvars
import gc
import itertools
import sys
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

import pytest
from conftest import HANG, Gate

import cmwq
from cmwq._host import ThreadHost
from cmwq._sensor._ticking import Doing, TickingSensor, Watched

if TYPE_CHECKING:
    from cmwq._pool.worker import Worker


def test_is_a_thread_pool_executor_without_threads_of_its_own() -> None:
    before = set(threading.enumerate())
    with cmwq.Executor() as executor:
        assert isinstance(executor, cf.ThreadPoolExecutor)
        assert set(threading.enumerate()) <= before


def test_results_and_exceptions(executor: cmwq.Executor) -> None:
    assert executor.submit(pow, 2, 10).result(HANG) == 1024
    assert executor.submit(int, "ff", base=16).result(HANG) == 255
    failing = executor.submit(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        failing.result(HANG)
    assert isinstance(failing.exception(HANG), ZeroDivisionError)


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_B4_no_exception_kills_a_worker(executor: cmwq.Executor, runtime: cmwq.Runtime, error: type) -> None:
    def fail() -> None:
        raise error

    for _ in range(10):
        with pytest.raises(error):
            executor.submit(fail).result(HANG)
    assert executor.submit(len, "ab").result(HANG) == 2
    (pool,) = runtime._pools.values()
    with pool.lock:
        created = pool.stats.created
    assert {f"cmwq/u0:{n}" for n in range(created)} <= {thread.name for thread in threading.enumerate()}


def test_standard_consumers_accept_its_futures(executor: cmwq.Executor) -> None:
    futures = [executor.submit(pow, 2, n) for n in range(50)]
    done, not_done = cf.wait(futures, HANG)
    assert (len(done), len(not_done)) == (50, 0)
    assert sorted(f.result() for f in cf.as_completed(futures, HANG)) == [2**n for n in range(50)]

    async def main() -> list[int]:
        loop = asyncio.get_running_loop()
        wrapped = [asyncio.wrap_future(executor.submit(pow, 3, n)) for n in range(5)]
        return [*await asyncio.gather(*wrapped), await loop.run_in_executor(executor, len, "abc")]

    assert asyncio.run(main()) == [1, 3, 9, 27, 81, 3]


def test_wait_for_the_first_and_for_an_exception(executor: cmwq.Executor, gate: Gate) -> None:
    held = executor.submit(gate)
    quick = executor.submit(pow, 1, 1)
    done, not_done = cf.wait([held, quick], HANG, return_when=cf.FIRST_COMPLETED)
    assert quick in done
    assert held in not_done
    bad = executor.submit(lambda: 1 / 0)
    done, _ = cf.wait([held, bad], HANG, return_when=cf.FIRST_EXCEPTION)
    assert bad in done


def test_callbacks_are_called_once_before_and_after_the_end(executor: cmwq.Executor, gate: Gate) -> None:
    calls: list[cf.Future[Any]] = []
    called = threading.Event()
    future = executor.submit(gate)
    gate.await_arrivals(1)
    future.add_done_callback(calls.append)
    future.add_done_callback(lambda _: called.set())
    gate.open.set()
    assert called.wait(HANG)
    future.add_done_callback(calls.append)
    assert calls == [future, future]


def test_result_times_out_and_comes_later(executor: cmwq.Executor, gate: Gate) -> None:
    future = executor.submit(gate)
    with pytest.raises(TimeoutError, match="no result within"):
        future.result(0.01)
    with pytest.raises(cmwq.CmwqTimeout):
        future.exception(0)
    gate.open.set()
    assert future.result(HANG) is None


def test_cancel_takes_back_only_what_has_not_begun(runtime: cmwq.Runtime, gate: Gate) -> None:
    with cmwq.Executor(max_active=1, runtime=runtime) as executor:
        running = executor.submit(gate)
        gate.await_arrivals(1)
        ran: list[int] = []
        waiting = executor.submit(ran.append, 1)
        last = executor.submit(ran.append, 2)
        assert not running.cancel()
        assert waiting.cancel()
        assert waiting.cancelled()
        with pytest.raises(cf.CancelledError):
            waiting.result()
        gate.open.set()
        last.result(HANG)
        assert ran == [2]


def test_context_is_captured_at_submit_and_never_leaks(executor: cmwq.Executor) -> None:
    var = contextvars.ContextVar("var", default="none")

    def set_and_get(value: str | None) -> str:
        seen = var.get()
        if value:
            var.set(value)
        return seen

    token = var.set("caller")
    assert executor.submit(set_and_get, "worker").result(HANG) == "caller"
    var.reset(token)
    # Whichever worker runs these, the earlier one's change is not there.
    assert {executor.submit(set_and_get, None).result(HANG) for _ in range(20)} == {"none"}


def test_a_worker_keeps_no_result_alive(executor: cmwq.Executor) -> None:
    class Result:
        pass

    future = executor.submit(Result)
    gone = weakref.ref(future.result(HANG))
    del future
    executor.queue.flush(HANG)
    deadline = time.monotonic() + HANG
    while gone() is not None and time.monotonic() < deadline:
        gc.collect()
        executor.submit(int).result(HANG)
    assert gone() is None


def test_map_is_in_order_and_raises_where_the_call_did(executor: cmwq.Executor) -> None:
    assert list(executor.map(pow, [2, 3, 4], [5, 2, 3])) == [32, 9, 64]
    results = executor.map(lambda n: 10 // n, [5, 2, 0, 1])
    assert next(results) == 2
    assert next(results) == 5
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_map_buffersize_reads_only_so_far_ahead(executor: cmwq.Executor) -> None:
    taken: list[int] = []

    def source() -> Any:
        for n in itertools.count():
            taken.append(n)
            yield n

    results = executor.map(lambda n: n * n, source(), buffersize=3)
    assert len(taken) == 3
    assert [next(results) for _ in range(5)] == [0, 1, 4, 9, 16]
    assert len(taken) == 8
    results.close()  # type: ignore[attr-defined]
    assert list(executor.map(str, range(10), buffersize=100)) == list(map(str, range(10)))


@pytest.mark.parametrize(("options", "error"), [({"buffersize": 0}, ValueError), ({"buffersize": "1"}, TypeError)])
def test_map_refuses_a_buffersize_that_is_none(executor: cmwq.Executor, options: dict[str, Any], error: type) -> None:
    with pytest.raises(error, match="buffersize"):
        executor.map(str, [1], **options)


def test_map_times_out(executor: cmwq.Executor, gate: Gate) -> None:
    with pytest.raises(TimeoutError):
        list(executor.map(lambda _: gate(), [1], timeout=0.01))


def test_shutdown_waits_and_then_refuses(runtime: cmwq.Runtime, gate: Gate) -> None:
    executor = cmwq.Executor("lease", runtime=runtime)
    other = cmwq.Executor("other", runtime=runtime)
    future = executor.submit(gate)
    gate.await_arrivals(1)
    executor.shutdown(wait=False)
    with pytest.raises(RuntimeError, match="lease"):
        executor.submit(int)
    assert not future.done()
    gate.open.set()
    executor.shutdown()
    assert future.done()
    executor.shutdown()
    assert other.submit(int).result(HANG) == 0, "a lease's end is nobody else's"
    other.shutdown()


def test_shutdown_can_cancel_what_has_not_begun(runtime: cmwq.Runtime, gate: Gate) -> None:
    executor = cmwq.Executor(max_active=1, runtime=runtime)
    first = executor.submit(gate)
    gate.await_arrivals(1)
    rest = [executor.submit(int) for _ in range(20)]
    executor.shutdown(wait=False, cancel_futures=True)
    assert all(future.cancelled() for future in rest)
    gate.open.set()
    executor.shutdown()
    assert first.result(0) is None


def test_a_call_that_shuts_its_own_lease_down_is_told(executor: cmwq.Executor) -> None:
    with pytest.raises(cmwq.FlushDeadlock, match="wait for itself"):
        executor.submit(executor.shutdown).result(HANG)


def test_arguments_of_thread_pool_executor() -> None:
    assert cmwq.Executor(7)._max_workers == 7
    assert cmwq.Executor(max_workers=3, thread_name_prefix="x")._max_workers == 3
    assert cmwq.Executor(thread_name_prefix="x").queue.name == "x"


def test_B5_a_thread_is_named_after_its_queue_also_if_another_has_the_same_name(runtime: cmwq.Runtime) -> None:
    def names(queue: Any) -> set[str]:
        return {queue.submit(lambda: threading.current_thread().name).result().rpartition("_")[0] for _ in range(30)}

    with (
        cmwq.WorkQueue("pdf", runtime=runtime) as plain,
        cmwq.Executor("pdf", thread_name_prefix="a", runtime=runtime) as one,
        cmwq.Executor("pdf", thread_name_prefix="b", runtime=runtime) as other,
    ):
        for _ in range(3):
            assert names(one) == {"a"}
            assert names(other) == {"b"}
            assert names(plain) == {""}
    with pytest.raises(ValueError, match="greater than 0"):
        cmwq.Executor(max_workers=0)
    with pytest.raises(TypeError, match="another word"):
        cmwq.Executor(max_workers=3, max_active=4)


def test_private_attributes_that_others_read(runtime: cmwq.Runtime, gate: Gate) -> None:
    executor = cmwq.Executor(max_active=1, runtime=runtime)
    executor.submit(gate)
    gate.await_arrivals(1)
    executor.submit(int)
    assert executor._work_queue.qsize() == 1
    assert len(executor._threads) == 1
    assert all(isinstance(thread, threading.Thread) for thread in executor._threads)
    assert not executor._shutdown
    assert not executor._broken
    gate.open.set()
    executor.shutdown()
    assert executor._shutdown
    assert executor._work_queue.empty()
    assert executor._threads == set()


def test_E1_max_active_is_kept_and_nested_waits_lend_their_place(runtime: cmwq.Runtime) -> None:
    with cmwq.Executor(max_active=1, runtime=runtime) as executor:

        def nest(depth: int) -> int:
            return 0 if depth == 0 else 1 + executor.submit(nest, depth - 1).result(HANG)

        assert executor.submit(nest, 20).result(HANG) == 20


def test_nested_waits_to_depth_500(executor: cmwq.Executor) -> None:
    def nest(depth: int) -> int:
        return 0 if depth == 0 else 1 + executor.submit(nest, depth - 1).result(HANG)

    assert executor.submit(nest, 500).result(HANG) == 500


class SeesNobodySleep(TickingSensor):
    """One that is never wrong about works that only compute, however busy the machine is."""

    def doing(self, worker: Worker, watched: Watched) -> Doing:
        return Doing.RUNS


def test_A3_A5_a_flood_of_cpu_bound_items_keeps_to_the_cpus() -> None:
    """Beside those that may run there are a manager and a reserve."""
    host = ThreadHost()
    config = cmwq.Config(cpu_intensive_thresh=0)  # an item's thread may be kept off its CPU for long
    with cmwq.Runtime(host=host, sensor=SeesNobodySleep(host), config=config) as runtime:
        executor = cmwq.Executor(runtime=runtime)
        assert sum(executor.map(lambda n: sum(range(100)) and 1, range(20_000))) == 20_000
        (pool,) = runtime.snapshot().pools
        assert pool.peak_workers <= pool.target + 2
        assert pool.completed == 20_000
    host.stop_timers()


def test_a_contended_lock_does_not_make_more_and_more_threads(runtime: cmwq.Runtime, executor: cmwq.Executor) -> None:
    """Each sensor in turn: some of them may be wrong, on a busy machine, about a few.

    (Seen: 3 to 5 threads, and 181 to 257 if each that waits for the lock makes one more.)
    """
    lock = threading.Lock()

    def item(_: int) -> int:
        with lock:
            return sum(range(2000)) and 1

    assert sum(executor.map(item, range(10_000))) == 10_000
    (pool,) = runtime.snapshot().pools
    assert pool.peak_workers <= 64
    assert pool.completed == 10_000


def test_A4_sleepers_do_not_hold_up_what_waits(executor: cmwq.Executor, gate: Gate) -> None:
    blocked = [executor.submit(gate) for _ in range(40)]
    gate.await_arrivals(40)  # all at the same time, though there are far fewer CPUs
    assert executor.submit(pow, 2, 3).result(HANG) == 8
    gate.open.set()
    cf.wait(blocked, HANG)


def test_A4_work_queued_while_all_compute_starts_when_they_block(runtime: cmwq.Runtime, gate: Gate) -> None:
    computing, enough = threading.Semaphore(0), threading.Event()

    def compute_then_block() -> None:
        computing.release()
        while not enough.is_set():
            pass
        gate()

    with cmwq.Executor(runtime=runtime) as executor:
        blocked = [executor.submit(compute_then_block) for _ in runtime.cpus()]
        for _ in blocked:
            assert computing.acquire(timeout=HANG)
        late = executor.submit(pow, 2, 3)
        enough.set()
        assert late.result(HANG) == 8
        gate.open.set()


def test_A4_a_hint_is_enough_for_any_sensor(executor: cmwq.Executor, gate: Gate) -> None:
    def wait_in_hint() -> None:
        with cmwq.blocking():
            gate()

    for _ in range(100):
        executor.submit(wait_in_hint)
    gate.await_arrivals(100)
    gate.open.set()
    cmwq.blocking().__enter__()  # outside a worker it is nothing


def test_spinning_waiters_make_progress(executor: cmwq.Executor) -> None:
    """A work that waits by polling, without the pool's help, still lets what it waits for run."""
    flag = threading.Event()

    def poll() -> bool:
        deadline = time.monotonic() + HANG
        while not flag.is_set() and time.monotonic() < deadline:
            time.sleep(0.001)
        return flag.is_set()

    polling = [executor.submit(poll) for _ in range(8)]
    executor.submit(flag.set)
    assert all(future.result(HANG) for future in polling)


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="how CPython lays out instances")
def test_a_future_needs_no_dictionary_of_its_own(python: Any) -> None:
    """All are made before the first runs: its later attributes must have their place all the same."""
    done = python("""
        import cmwq, gc
        queue = cmwq.WorkQueue("q")
        futures = [queue.submit(int) for _ in range(1000)]
        queue.flush()
        print(sum(type(part) is dict for future in futures for part in gc.get_referents(future)))
    """)
    assert done.stdout.strip() == "0", done.stderr
