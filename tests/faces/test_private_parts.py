"""What other projects read of a ThreadPoolExecutor though it is private."""

from __future__ import annotations

import concurrent.futures as cf
import threading
from concurrent.futures.thread import ThreadPoolExecutor
from queue import Empty
from typing import TYPE_CHECKING, Any

import pytest
from conftest import HANG, Gate

import cmwq
from cmwq._host import ThreadHost
from cmwq._sensor._ticking import Doing, TickingSensor, Watched

if TYPE_CHECKING:
    from cmwq._pool.worker import Worker


def drained(executor: ThreadPoolExecutor) -> list[Any]:
    """As Google Pub/Sub's scheduler does it."""
    items = []
    try:
        while True:
            items.append(executor._work_queue.get(block=False))
    except Empty:
        return items


@pytest.fixture(params=["calls", "prepared calls", "one thread", "many threads"])
def held(request: pytest.FixtureRequest, runtime: cmwq.Runtime, gate: Gate) -> Any:
    """An executor whose one place, or every CPU, is taken."""
    options: dict[str, dict[str, Any]] = {
        "calls": {"max_active": 1},
        "prepared calls": {"max_active": 1, "initializer": int},
        "one thread": {"max_workers": 1},
        "many threads": {"max_active": 256},
    }
    computing, number = request.param == "many threads", 1

    def compute() -> None:
        gate.arrived.release()
        while not gate.open.is_set():
            pass

    executor = cmwq.Executor(runtime=runtime, **options[request.param])
    if computing:
        # What is listed is taken out as what waits inactive is. Computing calls keep the others from being begun.
        number = len(runtime.cpus())
        for _ in range(number):
            executor.submit(compute)
    else:
        executor.submit(gate)
    gate.await_arrivals(number)
    yield executor
    gate.open.set()
    executor.shutdown()


def test_the_work_queue_is_drained_and_nothing_runs_any_more(held: cmwq.Executor, gate: Gate) -> None:
    ran: list[int] = []
    futures = [held.submit(ran.append, n) for n in range(20)]
    items = drained(held)
    numbers = [item.args[0] for item in items]
    assert numbers == sorted(numbers)
    assert all(item.fn == ran.append and item.kwargs == {} for item in items)
    assert all(item.task[1][0] == item.args[0] for item in items), "as Python 3.14 has it"
    assert [item.future for item in items] == [futures[n] for n in numbers]
    assert held._work_queue.empty()
    gate.open.set()
    held.shutdown()  # doesn't wait for what was taken
    # Where one of those that compute was believed blocked some have begun meanwhile.
    assert sorted(ran + numbers) == list(range(20))
    assert not any(item.future.done() for item in items)
    if held._max_workers == 1:
        assert ran == []


@pytest.fixture
def taken(runtime: cmwq.Runtime, gate: Gate) -> Any:
    """Calls that were taken out: of ("ab", "c", "") it asks the length, of the number 1 it fails to."""
    executor = cmwq.Executor(max_active=1, runtime=runtime)
    executor.submit(gate)
    gate.await_arrivals(1)
    for thing in ("ab", "c", "", 1):
        executor.submit(len, thing)
    items = drained(executor)
    assert len(items) == 4
    yield items
    gate.open.set()
    executor.shutdown()


def test_what_was_taken_out_can_be_run_by_its_taker(taken: list[Any]) -> None:
    for item in taken:
        item.run()
    assert [item.future.result(0) for item in taken[:3]] == [2, 1, 0]
    with pytest.raises(TypeError):
        taken[3].future.result(0)


def test_what_was_taken_out_can_be_cancelled_and_settled_by_its_taker(taken: list[Any]) -> None:
    heard: list[Any] = []
    for item in taken:
        item.future.add_done_callback(heard.append)
    assert taken[0].future.cancel()
    taken[0].run()  # as if it had not been
    assert taken[0].future.cancelled()
    taken[1].future.set_result("set")
    taken[2].future.set_exception(KeyError("set"))
    assert taken[1].future.result(0) == "set"
    assert isinstance(taken[2].future.exception(0), KeyError)
    with pytest.raises(cf.InvalidStateError):
        taken[1].future.set_result("again")
    assert heard == [item.future for item in taken[:3]]


def test_who_waits_for_what_was_taken_out_hears_of_it(runtime: cmwq.Runtime, gate: Gate) -> None:
    with cmwq.Executor(max_active=1, runtime=runtime) as executor:
        executor.submit(gate)
        gate.await_arrivals(1)
        future = executor.submit(len, "abc")
        got: list[Any] = []
        waiter = threading.Thread(target=lambda: got.append(future.result(HANG)))
        waiter.start()
        (item,) = drained(executor)
        item.run()
        waiter.join(HANG)
        assert got == [3]
        gate.open.set()


def test_taking_out_makes_room_for_others(runtime: cmwq.Runtime, gate: Gate) -> None:
    """Of a listed call the place is given to the next."""
    with cmwq.Executor(max_active=2, runtime=runtime) as executor:
        executor.submit(gate)
        executor.submit(gate)
        gate.await_arrivals(2)
        executor.submit(len, "abc")
        executor._work_queue.get_nowait()
        last = executor.submit(len, "ab")
        gate.open.set()
        assert last.result(HANG) == 2


class SeesNobodySleep(TickingSensor):
    """One for which works that compute never look blocked, however busy the machine is."""

    def doing(self, worker: Worker, watched: Watched) -> Doing:
        return Doing.RUNS


def test_the_place_of_a_listed_call_is_free_again(gate: Gate) -> None:
    def compute() -> None:
        gate.arrived.release()
        while not gate.open.is_set():
            pass

    host = ThreadHost()
    config = cmwq.Config(cpu_intensive_thresh=0)
    with cmwq.Runtime(host=host, sensor=SeesNobodySleep(host), config=config) as runtime:
        others = cmwq.Executor(runtime=runtime)
        executor = cmwq.Executor(max_active=1, runtime=runtime)
        for _ in runtime.cpus():
            others.submit(compute)
        gate.await_arrivals(len(runtime.cpus()))
        listed = [executor.submit(len, "a"), executor.submit(len, "ab")]  # the second waits for the first's place
        (item, _) = drained(executor)
        assert item.future is listed[0]
        last = executor.submit(len, "abc")
        gate.open.set()
        assert last.result(HANG) == 3
        runtime.check_invariants()
    host.stop_timers()


def test_an_item_put_into_the_work_queue_is_run(runtime: cmwq.Runtime, gate: Gate) -> None:
    """A subclass may make its own work items, as the standard library's submit does; and put back what it took."""

    class Item:
        def __init__(self, future: cf.Future[Any], fn: Any, *args: Any) -> None:
            self.future, self.fn, self.args = future, fn, args

        def run(self) -> None:
            if self.future.set_running_or_notify_cancel():
                self.future.set_result(self.fn(*self.args))

    with cmwq.Executor(max_active=1, runtime=runtime) as executor:
        held = executor.submit(gate)
        gate.await_arrivals(1)
        future = executor.submit(pow, 2, 4)
        executor._work_queue.put(None)  # "look again"
        item: Any = Item(cf.Future(), pow, 2, 3)
        executor._work_queue.put(item)
        one, two = drained(executor)
        assert two is item
        executor._work_queue.put(item)
        executor._work_queue.put(one)
        gate.open.set()
        assert item.future.result(HANG) == 8
        assert future.result(HANG) == 16
        assert held.result(HANG) is None


def test_an_item_of_python_3_14_is_given_what_runs_its_task(runtime: cmwq.Runtime) -> None:
    class Item:
        task = (pow, (2,), {"exp": 5})
        results: Any = cf.Future()

        def run(self, ctx: Any) -> None:
            self.results.set_result(ctx.run(self.task))

    with cmwq.Executor(runtime=runtime) as executor:
        item: Any = Item()
        executor._work_queue.put(item)
        assert item.results.result(HANG) == 32


def test_an_empty_work_queue_says_so_at_once(runtime: cmwq.Runtime) -> None:
    with cmwq.Executor(runtime=runtime) as executor:
        with pytest.raises(Empty):
            executor._work_queue.get(timeout=HANG)
        assert executor._work_queue.qsize() == 0


def test_threads_are_those_that_run_calls_now(runtime: cmwq.Runtime, gate: Gate) -> None:
    with cmwq.Executor(max_active=8, runtime=runtime) as executor:
        inside: list[bool] = []

        def look_and_wait() -> None:
            inside.append(threading.current_thread() in executor._threads)
            gate()

        futures = [executor.submit(look_and_wait) for _ in range(5)]
        gate.await_arrivals(5)
        threads = executor._threads
        assert len(threads) == 5
        assert inside == [True] * 5
        assert threading.current_thread() not in threads
        assert {thread.ident for thread in threads} <= {thread.ident for thread in threading.enumerate()}
        assert all(isinstance(thread, threading.Thread) and thread.is_alive() for thread in threads)
        gate.open.set()
        for thread in threads:
            thread.join(HANG)  # of the call: the thread itself goes on
        assert all(future.done() for future in futures)
        assert not any(thread.is_alive() for thread in threads)


def test_what_else_is_read(runtime: cmwq.Runtime) -> None:
    executor = cmwq.Executor(thread_name_prefix="pages", initializer=int, initargs=("7",), runtime=runtime)
    assert executor._thread_name_prefix == "pages"
    assert (executor._initializer, executor._initargs) == (int, ("7",))
    with executor._shutdown_lock:
        assert not executor._shutdown
    assert not executor._idle_semaphore.acquire(timeout=0)
    executor._adjust_thread_count()
    executor.shutdown()
    assert executor._shutdown


def test_a_submitted_calls_future_is_set_by_its_worker_alone(runtime: cmwq.Runtime, gate: Gate) -> None:
    with cmwq.Executor(runtime=runtime) as executor:
        future = executor.submit(gate)
        gate.await_arrivals(1)
        for tamper in (
            lambda: future.set_result(None),
            lambda: future.set_exception(ValueError()),
            future.set_running_or_notify_cancel,
        ):
            with pytest.raises(cf.InvalidStateError, match=r"worker|call"):
                tamper()
        assert future.running()
        gate.open.set()
        assert future.result(HANG) is None
        with pytest.raises(cf.InvalidStateError):
            future.set_result(None)
