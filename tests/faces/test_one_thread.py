"""max_workers=1: every call on one and the same thread, as code with thread-bound objects relies on."""

from __future__ import annotations

import concurrent.futures as cf
import contextvars
import ctypes
import gc
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from conftest import HANG, Gate

import cmwq
from cmwq._pool.recovery import bury_the_dead
from cmwq.executor import own_thread


@pytest.fixture
def single(runtime: cmwq.Runtime) -> Any:
    with cmwq.Executor(max_workers=1, thread_name_prefix="db", runtime=runtime) as executor:
        yield executor


def alive(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == name]


def until(true: Callable[[], bool]) -> None:
    """What happens by itself, soon, has happened."""
    deadline = time.monotonic() + HANG
    while not true():
        assert time.monotonic() < deadline
        gc.collect()
        time.sleep(0.001)


def test_all_calls_run_on_one_thread_that_is_not_the_callers(single: cmwq.Executor, runtime: cmwq.Runtime) -> None:
    others = cmwq.Executor(runtime=runtime)
    local = threading.local()

    def count() -> tuple[int, int]:
        local.calls = getattr(local, "calls", 0) + 1
        return threading.get_ident(), local.calls

    def count_there() -> tuple[int, int]:
        return single.submit(count).result(HANG)

    seen = [single.submit(count).result(HANG) for _ in range(50)]
    seen += list(single.map(lambda _: count(), range(50)))
    seen += [future.result(HANG) for future in [others.submit(count_there) for _ in range(50)]]
    seen.append(single.queue.submit(count).result(HANG))
    seen += [future.result(HANG) for future in single.queue.submit_many(lambda _: count(), range(9))]
    assert {thread for thread, _ in seen} == {seen[0][0]}
    assert sorted(calls for _, calls in seen) == list(range(1, 161))
    assert threading.get_ident() not in {thread for thread, _ in seen}
    others.shutdown()


@pytest.mark.parametrize("make", [lambda: cmwq.Executor(1), lambda: cmwq.Executor(max_workers=1, max_active=1)])
def test_sqlite_objects_can_be_used_by_every_call(make: Callable[[], cmwq.Executor]) -> None:
    with make() as executor:
        connection = executor.submit(sqlite3.connect, ":memory:").result(HANG)
        assert all(executor.submit(connection.execute, "select 1").result(HANG) for _ in range(100))
        executor.submit(connection.close).result(HANG)
        assert executor._max_workers == 1


def test_max_active_1_is_no_more_than_a_limit(runtime: cmwq.Runtime) -> None:
    with cmwq.Executor(max_active=1, runtime=runtime) as executor:
        assert executor.submit(lambda: executor.submit(int, "7").result(HANG)).result(HANG) == 7


def test_no_other_thread_has_its_name(single: cmwq.Executor, runtime: cmwq.Runtime) -> None:
    assert [single.submit(lambda: threading.current_thread().name).result(HANG) for _ in range(20)] == ["db_0"] * 20
    assert len([thread for thread in threading.enumerate() if thread.name.startswith("db")]) == 1


def test_calls_run_in_order_one_at_a_time(single: cmwq.Executor) -> None:
    running, order = threading.Lock(), []

    def call(n: int) -> None:
        assert running.acquire(blocking=False)
        order.append(n)
        running.release()

    for future in [single.submit(call, n) for n in range(300)]:
        future.result(HANG)
    assert order == list(range(300))


def test_the_thread_is_started_at_the_first_submission_and_ends_with_shutdown(runtime: cmwq.Runtime) -> None:
    executor = cmwq.Executor(max_workers=1, thread_name_prefix="begins-and-ends", runtime=runtime)
    assert not alive("begins-and-ends_0")
    future = executor.submit(lambda: threading.current_thread().name)
    (thread,) = alive("begins-and-ends_0")  # at once, not when a worker comes to the call
    assert future.result(HANG) == "begins-and-ends_0"
    executor.shutdown()
    assert not thread.is_alive()


def test_the_thread_ends_after_the_last_call_of_who_does_not_wait(runtime: cmwq.Runtime, gate: Gate) -> None:
    executor = cmwq.Executor(max_workers=1, thread_name_prefix="no-wait", runtime=runtime)
    executor.submit(gate)
    last, failing = executor.submit(threading.get_ident), executor.submit(int, "x")
    gate.await_arrivals(1)
    (thread,) = alive("no-wait_0")
    executor.shutdown(wait=False)
    gate.open.set()
    thread.join(HANG)
    assert not thread.is_alive(), "though the executor and the futures are still there"
    assert last.result(HANG) == thread.ident
    with pytest.raises(ValueError, match="invalid literal"):
        failing.result(HANG)


def test_the_thread_ends_when_nobody_has_the_executor_any_more(runtime: cmwq.Runtime, gate: Gate) -> None:
    executor = cmwq.Executor(max_workers=1, thread_name_prefix="dropped", runtime=runtime)
    executor.submit(gate)
    failing, future = executor.submit(int, "x"), executor.submit(len, "abc")
    gate.await_arrivals(1)
    (thread,) = alive("dropped_0")
    del executor
    gc.collect()
    assert thread.is_alive()
    gate.open.set()
    assert future.result(HANG) == 3, "what was submitted is done"
    until(lambda: not thread.is_alive())
    assert isinstance(failing.exception(HANG), ValueError), "whose traceback has kept nothing alive"


def test_an_exception_is_the_calls_and_the_thread_goes_on(single: cmwq.Executor) -> None:
    before = single.submit(threading.get_ident).result(HANG)

    def fail(error: type[BaseException]) -> None:
        raise error("why")

    for error in (ValueError, SystemExit, KeyboardInterrupt, GeneratorExit):
        with pytest.raises(error, match="why"):
            single.submit(fail, error).result(HANG)
    assert single.submit(threading.get_ident).result(HANG) == before


def test_a_failed_call_keeps_nothing_in_a_cycle(single: cmwq.Executor, runtime: cmwq.Runtime) -> None:
    import weakref

    class Big:
        pass

    def fail(big: Big) -> None:
        raise ValueError

    big = Big()
    gone = weakref.ref(big)
    future = single.submit(fail, big)
    assert isinstance(future.exception(HANG), ValueError)
    del future, big
    gc.disable()
    try:
        deadline = time.monotonic() + HANG
        while gone() is not None and time.monotonic() < deadline:
            single.submit(int).result(HANG)
            meet(runtime, 4)
    finally:
        gc.enable()
    assert gone() is None


def meet(runtime: cmwq.Runtime, number: int) -> None:
    """Have so many of the workers that run ordered queues' works run at once, those that were idle before the new ones.

    A free-threaded Python leaves what was dropped on another thread to the thread that made it, and frees it when that
    one runs again: an idle worker has to be woken first.
    """
    barrier = threading.Barrier(number)
    queues = [cmwq.WorkQueue(f"q{index}", ordered=True, runtime=runtime) for index in range(number)]
    for future in [queue.submit(barrier.wait, HANG) for queue in queues]:
        future.result(HANG)


def test_context_is_captured_at_submit_and_never_leaks(single: cmwq.Executor) -> None:
    var = contextvars.ContextVar("var", default="none")

    def set_and_get() -> str:
        seen = var.get()
        var.set("changed")
        return seen

    token = var.set("caller")
    assert single.submit(set_and_get).result(HANG) == "caller"
    var.reset(token)
    assert {single.submit(set_and_get).result(HANG) for _ in range(5)} == {"none"}


def test_the_call_is_known_there_as_on_a_worker(single: cmwq.Executor, runtime: cmwq.Runtime) -> None:
    future = single.submit(cmwq.current_work)
    assert future.result(HANG) is future
    thread = single.submit(lambda: [threading.current_thread() in single._threads, len(single._threads)])
    assert thread.result(HANG) == [True, 1]
    assert single.submit(lambda: cmwq.blocking().__enter__()).result(HANG) is None  # entered and never left


def test_F7_a_call_that_waits_for_a_later_one_is_told(single: cmwq.Executor) -> None:
    def wait_for_a_later_one() -> Any:
        return single.submit(int).result()

    with pytest.raises(cmwq.FlushDeadlock, match="wait_for_a_later_one"):
        single.submit(wait_for_a_later_one).result(HANG)
    with pytest.raises(cmwq.FlushDeadlock, match="wait for itself"):
        single.submit(single.queue.flush).result(HANG)


def test_F7_two_that_wait_for_each_other_are_told(runtime: cmwq.Runtime) -> None:
    one, two = (cmwq.Executor(max_workers=1, runtime=runtime) for _ in range(2))

    def there_and_back() -> Any:
        return two.submit(lambda: one.submit(int).result()).result()

    with pytest.raises(cmwq.FlushDeadlock):
        one.submit(there_and_back).result(HANG)
    one.shutdown()
    two.shutdown()


def test_a_call_that_waits_for_others_is_known_to_be_blocked(single: cmwq.Executor, runtime: cmwq.Runtime) -> None:
    """However many of them wait: each is a worker's, and none of those runs."""
    with cmwq.Executor(runtime=runtime) as others:
        singles = [cmwq.Executor(max_workers=1, runtime=runtime) for _ in range(20)]
        nested = [each.submit(lambda: others.submit(pow, 2, 3).result(HANG)) for each in singles]
        assert [future.result(HANG) for future in nested] == [8] * 20
        for each in singles:
            each.shutdown()


def test_what_has_not_begun_can_be_cancelled(single: cmwq.Executor, gate: Gate) -> None:
    ran: list[int] = []
    single.submit(gate)
    gate.await_arrivals(1)
    waiting = [single.submit(ran.append, n) for n in range(10)]
    assert all(future.cancel() for future in waiting[::2])
    gate.open.set()
    cf.wait(waiting, HANG)
    single.queue.flush(HANG)
    assert ran == [1, 3, 5, 7, 9]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
def test_G2_a_forks_child_has_a_thread_of_its_own(single: cmwq.Executor) -> None:
    before = single.submit(threading.get_native_id).result(HANG)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            found = {single.submit(threading.get_native_id).result(HANG) for _ in range(10)}
            code = 0 if len(found) == 1 and found != {before} else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert single.submit(threading.get_native_id).result(HANG) == before


@pytest.mark.parametrize("then", ["return", "os._exit(executor.submit(len, 'abc').result() - 3)"])
def test_G2_a_fork_within_a_call_ends_that_thread_in_the_child(python: Any, then: str) -> None:
    """It is the child's only one: with it the child ends, unless it goes on otherwise."""
    done = python(f"""
        import cmwq, os, warnings
        warnings.simplefilter("ignore")
        executor = cmwq.Executor(1)
        def fork():
            pid = os.fork()
            if pid:
                return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            print(cmwq.current_work(), flush=True)
            {then}
        print(executor.submit(fork).result())
    """)
    assert done.stdout.splitlines() == ["None", "0"], done.stderr


def test_G3_pending_calls_are_done_at_exit(python: Any) -> None:
    done = python("""
        import cmwq, threading, time
        executor = cmwq.Executor(1)
        threads = set()
        def call(n):
            threads.add(threading.get_ident())
            time.sleep(0.01)
            if n == 19:
                print(len(threads), flush=True)
        for n in range(20):
            executor.submit(call, n)
    """)
    assert (done.stdout, done.stderr, done.returncode) == ("1\n", "", 0)


def test_a_work_is_refused_for_nothing_would_bring_it_there(single: cmwq.Executor) -> None:
    work, delayed = cmwq.Work(int), cmwq.DelayedWork(int)
    for queue_it in (
        lambda: single.submit(work),
        lambda: single.queue.queue(work),
        lambda: single.queue.queue_on(0, work),
        lambda: single.queue.queue_delayed(delayed, 1),
        lambda: single.queue.mod_delayed(delayed, 1),
    ):
        with pytest.raises(TypeError, match="takes calls only"):
            queue_it()


def test_one_thread_has_no_scope(runtime: cmwq.Runtime) -> None:
    with pytest.raises(ValueError, match="say max_active=1"):
        cmwq.Executor(max_workers=1, scope="cpu", runtime=runtime)


class Late(Exception):
    """An exception that another thread raises in one, as time limits do."""


def strike(thread: int) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(Late))


def test_F10_an_exception_that_reaches_the_thread_between_two_calls_does_not_end_it(single: cmwq.Executor) -> None:
    thread = single.submit(threading.get_ident).result(HANG)
    for number in range(20):
        strike(thread)  # it rests, or is about to
        assert single.submit(pow, 2, number).result(HANG) == 2**number
    assert single.submit(threading.get_ident).result(HANG) == thread


def test_F10_an_exception_that_reaches_the_thread_within_a_call_is_the_calls(single: cmwq.Executor) -> None:
    thread = single.submit(threading.get_ident).result(HANG)
    struck, begun = threading.Event(), threading.Event()

    def wait() -> None:
        begun.set()
        while True:
            struck.wait(0.001)

    future = single.submit(wait)
    assert begun.wait(HANG)
    strike(thread)
    with pytest.raises(Late):
        future.result(HANG)
    assert single.submit(threading.get_ident).result(HANG) == thread


dies = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


@dies
@pytest.mark.parametrize("step", ["bind", "call", "settle", "give_back", "_put_down", "_leave"])
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("times", [1, 2, 3])
def test_F10_whatever_interrupts_the_thread_every_call_ends_and_later_ones_are_made(
    runtime: cmwq.Runtime, monkeypatch: pytest.MonkeyPatch, step: str, before: bool, times: int
) -> None:
    """At the steps of a call, and at those that put down one that was interrupted; so the thread may end."""
    left = 0
    monkeypatch.setattr(own_thread, "PATIENCE", 0.05)

    def interrupting(method: Callable[..., Any]) -> Callable[..., Any]:
        def strike_here() -> None:
            nonlocal left
            if left and threading.current_thread().name == "struck_0":
                left -= 1
                raise Late

        def interrupted(*args: Any) -> Any:
            if before:
                strike_here()
            result = method(*args)
            if not before:
                strike_here()
            return result

        return interrupted

    with cmwq.Executor(max_workers=1, thread_name_prefix="struck", runtime=runtime) as executor:
        assert executor.submit(pow, 2, 3).result(HANG) == 8
        for name in {step, step if step == "bind" else "call"}:  # without an interruption nothing is put down
            owner: Any = own_thread._Handed if hasattr(own_thread._Handed, name) else own_thread._Loop
            monkeypatch.setattr(owner, name, interrupting(getattr(owner, name)))
        left = times
        futures = [executor.submit(pow, 2, number) for number in range(8)]
        outcomes = [future.exception(HANG) or future.result() for future in futures]
        failed = [outcome for outcome in outcomes if isinstance(outcome, Late | cmwq.CmwqError)]
        assert len(failed) <= times
        assert [2**n if o in failed else o for n, o in enumerate(outcomes)] == [2**n for n in range(8)]
        left = 0
        assert executor.submit(pow, 2, 3).result(HANG) == 8
        until(lambda: len(alive("struck_0")) == 1)
    until(lambda: not alive("struck_0"))


@dies
def test_F10_a_thread_that_has_ended_without_a_word_has_a_successor(
    single: cmwq.Executor, runtime: cmwq.Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_thread, "PATIENCE", 0.05)

    def gone(*_: object) -> None:
        raise SystemExit

    thread = single.submit(threading.current_thread).result(HANG)
    with monkeypatch.context() as patch:
        patch.setattr(own_thread._Loop, "_put_down", gone)
        patch.setattr(own_thread._Loop, "_leave", gone)
        patch.setattr(own_thread._Handed, "call", gone)
        future = single.submit(threading.current_thread)
        thread.join(HANG)
    assert future.result(HANG) is not thread
    assert {single.submit(threading.current_thread).result(HANG) for _ in range(5)} == {future.result()}


def test_B4_a_worker_whose_place_a_dead_thread_took_is_not_taken_for_dead(
    single: cmwq.Executor, runtime: cmwq.Runtime, gate: Gate
) -> None:
    single.submit(gate)
    gate.await_arrivals(1)
    (pool,) = runtime._pools.values()
    (worker,) = [each for each in pool.workers if each.item is not None]
    standing_in, worker.thread = worker.thread, threading.Thread()  # has never lived
    bury_the_dead(pool)
    assert worker in pool.workers
    worker.thread = standing_in
