"""The hot path of a work, case by case: the same whether the Python serves or the C (`_workqueue/twin`).

Here the tests run with what serves in this process, which in the debug mode is the Python. `test_twin_both` runs all of
them with each.
"""

from __future__ import annotations

import concurrent.futures as cf
import contextvars
import gc
import inspect
import os
import pickle
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from conftest import HANG, Gate, is_forgotten, until
from handlers import handled_again_and_again, handler_raises

import cmwq
from cmwq._workqueue import twin
from cmwq._workqueue.future import Future

VARIABLE: contextvars.ContextVar[object] = contextvars.ContextVar("VARIABLE", default=None)


@pytest.fixture
def wq(universe: cmwq.Runtime) -> Iterator[cmwq.WorkQueue]:
    queue = cmwq.WorkQueue("twin", runtime=universe)
    yield queue
    queue.close(HANG)


class Thing:
    """Something that can be referred to weakly."""

    other: object = None


def given(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, kwargs


def fail(error: BaseException) -> None:
    raise error


def test_what_serves_is_what_was_asked_for() -> None:
    expected = os.environ.get("CMWQ_TEST_TWIN")
    if expected is None:
        assert not (twin.installed and os.environ.get("CMWQ_DEBUG") == "1"), "the debug mode checks the Python"
    else:
        assert twin.installed == (expected == "C")


# ------------------------------------------------------------------------------------------- calls and results


@pytest.mark.parametrize("args", [(), (1,), ((),), ((1, 2),), (None,), (1, 2), (1, None, "3", [4])])
@pytest.mark.parametrize("kwargs", [{}, {"timeout": 5}, {"fn": 1, "self": 2}])
def test_the_arguments_arrive_as_they_were_given(
    wq: cmwq.WorkQueue, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    assert wq.submit(given, *args, **kwargs).result(HANG) == (args, kwargs)
    assert wq.submit_call(given, args, kwargs).result(timeout=HANG) == (args, kwargs)


def test_any_result_is_the_same_object(wq: cmwq.WorkQueue) -> None:
    for result in (None, 0, 10**30, "text", [1], Thing(), NotImplemented, Future):
        future = wq.submit(lambda result=result: result)
        assert future.result(HANG) is result
        assert future.result() is result
        assert future.exception() is None
        assert future.done()
        assert not future.running()
        assert not future.cancelled()


def test_submit_without_a_function_is_a_type_error(wq: cmwq.WorkQueue) -> None:
    with pytest.raises(TypeError):
        wq.submit()  # type: ignore[call-overload]
    with pytest.raises(TypeError):
        wq.submit(fn=given)  # type: ignore[call-overload]
    with pytest.raises(TypeError):
        wq.submit_many()  # type: ignore[call-arg]
    assert wq.submit_many(given) == []


@pytest.mark.parametrize(
    "error", [ValueError("v"), KeyboardInterrupt(), SystemExit(3), StopIteration(1), GeneratorExit()]
)
def test_B4_what_a_call_raises_is_in_its_future_and_the_worker_lives(wq: cmwq.WorkQueue, error: BaseException) -> None:
    future = wq.submit(fail, error)
    assert future.exception(HANG) is error
    with pytest.raises(type(error)) as caught:
        future.result()
    assert caught.value is error
    assert [entry.name for entry in caught.traceback][-1] == "fail"
    assert wq.submit(given).result(HANG) == ((), {})


def test_the_exception_of_a_call_does_not_keep_the_future_alive(wq: cmwq.WorkQueue) -> None:
    future = wq.submit(fail, ValueError())
    assert isinstance(future.exception(HANG), ValueError)
    there = weakref.ref(future)
    until(lambda: not wq.has_works())
    gc.collect()
    gc.disable()
    try:
        del future
        until(lambda: is_forgotten(there))
    finally:
        gc.enable()


def test_result_and_timeouts(wq: cmwq.WorkQueue, gate: Gate) -> None:
    future = wq.submit(gate)
    gate.await_arrivals(1)
    assert future.running()
    for call in (future.result, future.exception):
        with pytest.raises(TimeoutError):
            call(0.01)
        with pytest.raises(TimeoutError):
            call(timeout=0.01)
    with pytest.raises(TypeError):
        future.result(1, 2)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        future.result(tmeout=1)  # type: ignore[call-arg]
    gate.open.set()
    assert future.result(HANG) is None
    assert future.result(None) is None
    assert future.result(timeout=None) is None


def test_a_pending_call_can_be_seen_and_is_forgotten_when_it_has_run(wq: cmwq.WorkQueue, gate: Gate) -> None:
    wq.max_active = 1
    wq.submit(gate)
    gate.await_arrivals(1)
    thing = Thing()
    none, one, two, named = (
        wq.submit(given), wq.submit(given, thing), wq.submit(given, 1, thing), wq.submit(given, a=thing)
    )  # fmt: skip
    assert none.function is given
    assert none._call == (given,)
    assert one._call == (given, thing)
    assert two._call == (given, 1, thing)
    assert named._kwargs == {"a": thing}
    assert isinstance(one._context, contextvars.Context)
    gate.open.set()
    for future in (none, one, two, named):
        future.result(HANG)
    for future in (none, one, two, named):
        assert future.function is future._call is future._context is future._kwargs is None
    there = weakref.ref(thing)
    del none, one, two, named, thing, future
    until(lambda: is_forgotten(there))


def test_A9_a_call_in_a_context_is_known_by_what_it_calls(wq: cmwq.WorkQueue) -> None:
    def known(*_: object) -> object:
        future: Any = cmwq.current_work()
        return future.function

    assert wq.submit(known).result(HANG) is known
    assert wq.submit(contextvars.copy_context().run, known).result(HANG) is known
    assert wq.submit_call(contextvars.copy_context().run, (known, 1), {}).result(HANG) is known
    assert [future.result(HANG) for future in wq.submit_many(contextvars.copy_context().run, [known])] == [known]


# ------------------------------------------------------------------------------------------- contexts


def test_G6_each_call_runs_in_a_copy_of_its_callers_context(wq: cmwq.WorkQueue) -> None:
    def swap(value: object) -> object:
        before = VARIABLE.get()
        VARIABLE.set(value)
        return before

    def submitted() -> list[object]:
        VARIABLE.set("mine")
        futures = [wq.submit(swap, n) for n in range(50)] + wq.submit_many(swap, range(50))
        VARIABLE.set("changed later")
        return [future.result(HANG) for future in futures]

    assert contextvars.Context().run(submitted) == ["mine"] * 100
    assert VARIABLE.get() is None


def test_G6_a_caller_without_variables_gives_calls_a_context_of_their_own(wq: cmwq.WorkQueue) -> None:
    def swap(value: object) -> tuple[object, int]:
        before, number = VARIABLE.get(), len(contextvars.copy_context())
        VARIABLE.set(value)
        return before, number

    def submitted() -> list[Any]:
        assert not len(contextvars.copy_context())
        futures = [wq.submit(swap, n) for n in range(50)] + wq.submit_many(swap, range(50))
        return [future.result(HANG) for future in futures]

    assert contextvars.Context().run(submitted) == [(None, 0)] * 100
    works = [cmwq.Work(lambda: seen.append(swap(1))) for _ in range(20)]
    seen: list[Any] = []
    contextvars.Context().run(lambda: [wq.queue(work) for work in works])
    wq.flush(HANG)
    assert seen == [(None, 0)] * 20


def test_what_a_call_left_in_its_context_dies_with_the_call(wq: cmwq.WorkQueue, gate: Gate) -> None:
    there: list[weakref.ref[Thing]] = []

    def leave() -> None:
        thing = Thing()
        there.append(weakref.ref(thing))
        VARIABLE.set(thing)

    contextvars.Context().run(lambda: wq.submit(leave)).result(HANG)
    wq.submit(given).result(HANG)
    until(lambda: is_forgotten(there[0]))


def test_a_context_that_a_call_kept_is_not_used_again(wq: cmwq.WorkQueue) -> None:
    def keep() -> contextvars.Context:
        return contextvars.copy_context()

    def submitted() -> list[contextvars.Context]:
        return [future.result(HANG) for future in [wq.submit(keep) for _ in range(20)]]

    kept = contextvars.Context().run(submitted)
    assert len({id(context) for context in kept}) == 20


# ------------------------------------------------------------------------------------------- lists and limits


def test_E2_an_ordered_queue_keeps_its_order(universe: cmwq.Runtime) -> None:
    with cmwq.WorkQueue("ordered", ordered=True, runtime=universe) as queue:
        seen: list[int] = []
        for n in range(300):
            queue.submit(seen.append, n)
        queue.submit_many(seen.append, range(300, 600))
        works = [cmwq.Work(seen.append, n) for n in range(600, 900)]
        for work in works:
            assert queue.queue(work)
        queue.flush(HANG)
    assert seen == list(range(900))


def test_A10_of_who_handed_its_work_on_nothing_is_known(universe: cmwq.Runtime, gate: Gate) -> None:
    """Its worker took a work of a known function, and left it to the worker that runs the work already (E3)."""
    wq = cmwq.WorkQueue("q", runtime=universe)
    work = cmwq.Work(gate)
    wq.queue(work)
    gate.await_arrivals(1)
    (pool,) = universe._pools.values()
    with pool.lock:
        (item,) = [worker.item for worker in pool.workers if worker.item is not None]
        pool.lane.remember(item).parent = True
    universe.limit_cpus(2)
    with cmwq.blocking():
        wq.queue(work)
        until(lambda: item.follower is not None)
    universe.check_invariants()
    gate.open.set()
    wq.flush(HANG)


def test_E1_a_limit_that_was_lowered_holds_when_the_next_work_ends(universe: cmwq.Runtime) -> None:
    with cmwq.WorkQueue("lowered", max_active=3, runtime=universe) as queue:
        gates, began = [Gate() for _ in range(3)], []
        running = [queue.submit(gate) for gate in gates]
        for gate in gates:
            gate.await_arrivals(1)
        more = [queue.submit(began.append, number) for number in range(4)]
        queue.max_active = 1
        for gate, future in list(zip(gates, running, strict=True))[:2]:
            gate.open.set()
            until(future.done)  # an end that somebody waits for is told by the Python
            time.sleep(0.02)
            assert began == [], "one runs, or two: as many as may, or more"
        gates[2].open.set()
        for future in (*running, *more):
            future.result(HANG)
        assert began == [0, 1, 2, 3]


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_E1_no_more_than_max_active_run_and_all_are_executed(universe: cmwq.Runtime, limit: int) -> None:
    with cmwq.WorkQueue("limited", max_active=limit, runtime=universe) as queue:
        lock, now, most = threading.Lock(), 0, 0

        def call(_: object) -> None:
            nonlocal now, most
            with lock:
                now += 1
                most = max(most, now)
            threading.Event().wait(0.0005)
            with lock:
                now -= 1

        futures = queue.submit_many(call, range(60)) + [queue.submit(call, n) for n in range(60)]
        for future in futures:
            future.result(HANG)
        assert 1 <= most <= limit
        queue.flush(HANG)
        (view,) = [each for each in universe.snapshot().queues if each.name == "limited"]
        assert view.active == view.inactive == 0


def test_F4_cancelled_calls_are_passed_over_and_counted_off(wq: cmwq.WorkQueue, gate: Gate) -> None:
    wq.max_active = 1
    wq.submit(gate)
    gate.await_arrivals(1)
    ran: list[int] = []
    futures = [wq.submit(ran.append, n) for n in range(400)]
    for future in (*futures[::2], *futures[::4]):
        assert future.cancel()
    gate.open.set()
    wq.flush(HANG)
    assert ran == list(range(1, 400, 2))
    assert wq.nr_unfinished() == 0
    for future in futures[::2]:
        assert future.cancelled()
        assert future.done()
        with pytest.raises(cf.CancelledError):
            future.result()


def test_F1_a_flush_waits_for_what_was_queued_before(wq: cmwq.WorkQueue, gate: Gate) -> None:
    first = wq.submit(gate)
    gate.await_arrivals(1)
    with pytest.raises(cmwq.CmwqTimeout):
        wq.flush(0.01)
    wq.submit_many(given, range(100))
    gate.open.set()
    wq.flush(HANG)
    assert first.done()


def test_E8_a_frozen_queue_starts_nothing(universe: cmwq.Runtime) -> None:
    with cmwq.WorkQueue("frozen", freezable=True, runtime=universe) as queue:
        queue.submit(given).result(HANG)
        universe.freeze()
        futures = [queue.submit(given, 1), *queue.submit_many(given, [2, 3])]
        work = cmwq.Work(given)
        assert queue.queue(work)
        assert work.pending
        universe.thaw()
        assert [future.result(HANG)[0] for future in futures] == [(1,), (2,), (3,)]


def test_F3_a_closed_queue_takes_all_or_none(universe: cmwq.Runtime) -> None:
    queue = cmwq.WorkQueue("closed", runtime=universe)
    queue.submit(given).result(HANG)
    queue.close(HANG)
    ran: list[int] = []
    work = cmwq.Work(ran.append, 1)
    for refused in (
        lambda: queue.submit(ran.append, 1),
        lambda: queue.submit_many(ran.append, range(10)),
        lambda: queue.queue(work),
        lambda: list(queue.map(ran.append, range(10))),
    ):
        with pytest.raises(cmwq.QueueClosed):
            refused()
    assert not work.pending
    assert ran == []


def test_callbacks_waiters_and_as_completed(wq: cmwq.WorkQueue, gate: Gate) -> None:
    held = wq.submit(gate)
    called: list[Any] = []
    held.add_done_callback(called.append)
    futures = wq.submit_many(given, range(20))
    assert {future.result() for future in []} == set()
    assert len(list(cf.as_completed(futures, HANG))) == 20
    gate.open.set()
    done, not_done = cf.wait([held], HANG)
    assert (done, not_done) == ({held}, set())
    until(lambda: called == [held])


# ------------------------------------------------------------------------------------------- many at once


def test_submit_many_takes_any_iterables(wq: cmwq.WorkQueue) -> None:
    def results(*iterables: Any) -> list[Any]:
        return [future.result(HANG)[0] for future in wq.submit_many(given, *iterables)]

    assert results([]) == []
    assert results("abc") == [("a",), ("b",), ("c",)]
    assert results([(1, 2), (3, 4)]) == [((1, 2),), ((3, 4),)]
    assert results([1, 2, 3], "ab") == [(1, "a"), (2, "b")]
    assert results(iter(range(3))) == [(0,), (1,), (2,)]
    assert results({"k": 1}) == [("k",)]
    with pytest.raises(TypeError):
        wq.submit_many(given, 5)  # type: ignore[arg-type]


def test_submit_many_of_an_iterable_that_raises_submits_nothing(wq: cmwq.WorkQueue) -> None:
    def items() -> Iterator[int]:
        yield 1
        raise LookupError

    ran: list[int] = []
    with pytest.raises(LookupError):
        wq.submit_many(ran.append, items())
    wq.flush(HANG)
    assert ran == []


async def coroutine(_: object) -> None: ...


def test_a_coroutine_function_is_refused_by_a_queue_and_not_by_an_executor(wq: cmwq.WorkQueue) -> None:
    for submit in (wq.submit_many, wq.map):
        with pytest.raises(TypeError, match="coroutine function"):
            submit(coroutine, [1])
    with cmwq.Executor(runtime=wq.runtime) as executor:
        made = [*executor.map(coroutine, [1]), *executor.map(coroutine, [1], buffersize=1)]
        made += [future.result(HANG) for future in executor.queue.submit_many(coroutine, [1])]
    assert len(made) == 3
    for each in made:
        each.close()  # type: ignore[union-attr]


def test_submit_many_more_than_are_active(wq: cmwq.WorkQueue) -> None:
    futures = wq.submit_many(given, range(3000))
    assert [future.result(HANG)[0][0] for future in futures] == list(range(3000))
    wq.flush(HANG)
    assert wq.nr_unfinished() == 0


def test_map_gives_results_in_order_and_raises_where_a_call_did(wq: cmwq.WorkQueue) -> None:
    assert list(wq.map(given, range(500))) == [((n,), {}) for n in range(500)]
    assert list(wq.map(divmod, [7, 9], (2, 4))) == [(3, 1), (2, 1)]
    results = wq.map(divmod, [1, 1, 1], [1, 0, 1])
    assert next(results) == (1, 0)
    with pytest.raises(ZeroDivisionError):
        next(results)
    with pytest.raises(StopIteration):
        next(results)


def test_map_of_an_iterable_that_needs_its_first_calls(wq: cmwq.WorkQueue) -> None:
    done = threading.Event()

    def items() -> Iterator[int]:
        yield 0
        assert done.wait(HANG), "the first call waits for the second item"
        yield 1

    def call(n: int) -> int:
        done.set()
        return n

    assert list(wq.map(call, items())) == [0, 1]


def test_map_keeps_no_result_that_was_taken(wq: cmwq.WorkQueue) -> None:
    results = wq.map(lambda _: Thing(), range(3))
    there = weakref.ref(next(results))
    until(lambda: is_forgotten(there))
    results.close()  # type: ignore[attr-defined]


def test_leaving_a_map_early_cancels_what_has_not_begun(wq: cmwq.WorkQueue, gate: Gate) -> None:
    wq.max_active = 1
    ran: list[int] = []

    def call(n: int) -> None:
        if n:
            gate()
        ran.append(n)

    results = wq.map(call, range(100))
    assert next(results) is None
    gate.await_arrivals(1)
    results.close()  # type: ignore[attr-defined]
    gate.open.set()
    wq.flush(HANG)
    assert ran == [0, 1]


def test_map_calls_the_submit_that_somebody_put_in_place(wq: cmwq.WorkQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    own, called = wq.submit, []

    def submit(*args: Any) -> Any:
        called.append(args)
        return own(*args)

    monkeypatch.setattr(wq, "submit", submit)
    assert list(wq.map(given, [1, 2])) == [((1,), {}), ((2,), {})]
    assert called == [(given, 1), (given, 2)]


def test_submit_many_reads_its_iterables_before_it_looks_at_the_context(wq: cmwq.WorkQueue) -> None:
    def items() -> Iterator[int]:
        for n in range(3):
            VARIABLE.set(n)
            yield n

    def submitted() -> list[object]:
        return [future.result(HANG) for future in wq.submit_many(lambda _: VARIABLE.get(), items())]

    assert contextvars.Context().run(submitted) == [2, 2, 2]


# ------------------------------------------------------------------------------------------- works


def test_E4_a_pending_work_is_coalesced(wq: cmwq.WorkQueue, gate: Gate) -> None:
    wq.max_active = 1
    wq.submit(gate)
    gate.await_arrivals(1)
    ran: list[int] = []
    work = cmwq.Work(ran.append, 1)
    assert wq.queue(work)
    assert not wq.queue(work=work)
    assert work.pending
    gate.open.set()
    wq.flush(HANG)
    assert ran == [1]
    assert not work.pending
    assert not work.running
    assert wq.queue(work)
    wq.flush(HANG)
    assert ran == [1, 1]


def test_E3_a_work_that_is_queued_while_it_runs_follows(wq: cmwq.WorkQueue, gate: Gate) -> None:
    lock, now, most, times = threading.Lock(), 0, 0, 0

    def call() -> None:
        nonlocal now, most, times
        with lock:
            now, times = now + 1, times + 1
            most = max(most, now)
        gate()
        with lock:
            now -= 1

    work = cmwq.Work(call)
    assert wq.queue(work)
    gate.await_arrivals(1)
    assert wq.queue(work)
    assert not wq.queue(work)
    gate.open.set()
    wq.flush(HANG)
    assert (most, times) == (1, 2)


def test_F6_a_disabled_work_is_refused(wq: cmwq.WorkQueue) -> None:
    ran: list[int] = []
    work = cmwq.Work(ran.append, 1)
    work.disable()
    assert not wq.queue(work)
    work.enable()
    assert wq.queue(work)
    wq.flush(HANG)
    assert ran == [1]


def test_only_works_are_queued(wq: cmwq.WorkQueue) -> None:
    for wrong in (None, given, 5):
        with pytest.raises(TypeError):
            wq.queue(wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        wq.queue()  # type: ignore[call-arg]


def test_B4_what_a_work_raises_goes_to_on_error(universe: cmwq.Runtime) -> None:
    told: list[tuple[object, BaseException, object]] = []

    def tell(work: cmwq.Work, exc: BaseException) -> None:
        assert sys.exc_info()[1] is exc, "it is not being handled"
        told.append((work, exc, VARIABLE.get()))

    def call() -> None:
        VARIABLE.set("set by the work")
        fail(error)

    error = KeyError("k")
    work = cmwq.Work(call)
    with cmwq.WorkQueue("errors", on_error=tell, runtime=universe) as queue:
        assert contextvars.Context().run(queue.queue, work)
    assert told == [(work, error, "set by the work")]


def test_a_work_with_arguments_and_a_future(wq: cmwq.WorkQueue) -> None:
    seen: list[Any] = []
    work = cmwq.Work(lambda *args, **kwargs: seen.append((args, kwargs)), 1, 2, a=3)
    wq.queue(work)
    wq.flush(HANG)
    assert seen == [((1, 2), {"a": 3})]
    assert wq.submit(work).result(HANG) is None
    assert len(seen) == 2


# ------------------------------------------------------------------------------------------- garbage


def in_a_cycle(make: Callable[[Thing], object]) -> weakref.ref[Thing]:
    """A thing that refers to what `make` returned, which refers to it."""
    thing = Thing()
    thing.other = make(thing)
    return weakref.ref(thing)


def test_a_cycle_through_a_future_is_collected(wq: cmwq.WorkQueue) -> None:
    def returned(thing: Thing) -> object:
        future = wq.submit(lambda: thing)
        assert future.result(HANG) is thing
        return future

    def in_its_dict(thing: Thing) -> object:
        future = wq.submit(given)
        future.result(HANG)
        future.mine = thing  # type: ignore[attr-defined]
        return future

    def raised(thing: Thing) -> object:
        error = ValueError()
        error.thing = thing  # type: ignore[attr-defined]
        future = wq.submit(fail, error)
        assert future.exception(HANG) is error
        return future

    def called_back(thing: Thing) -> object:
        future = wq.submit(given)
        future.result(HANG)
        future._kept = lambda: thing  # type: ignore[attr-defined]
        return future

    for make in (returned, in_its_dict, raised, called_back):
        there = in_a_cycle(make)
        wq.submit(given).result(HANG)  # no worker has it as its last
        wq.flush(HANG)

        def gone(there: weakref.ref[Thing] = there) -> bool:
            gc.collect()
            return there() is None

        until(gone)


def test_a_cycle_through_a_cancelled_future_is_collected(wq: cmwq.WorkQueue, gate: Gate) -> None:
    wq.max_active = 1
    wq.submit(gate)
    gate.await_arrivals(1)

    def cancelled(thing: Thing) -> object:
        future = wq.submit(given, thing)
        assert future.cancel()
        future.mine = thing  # type: ignore[attr-defined]
        return future

    there = in_a_cycle(cancelled)
    gate.open.set()
    wq.flush(HANG)

    def gone() -> bool:
        gc.collect()
        return there() is None

    until(gone)


def test_a_cycle_through_a_queue_and_its_futures_is_collected(universe: cmwq.Runtime) -> None:
    def make(thing: Thing) -> object:
        queue = cmwq.WorkQueue("cyclic", on_error=lambda *_: thing.other, runtime=universe)
        futures = [queue.submit(given) for _ in range(3)]
        for future in futures:
            future.result(HANG)
        queue.close(HANG)
        return queue, futures

    there = in_a_cycle(make)

    def gone() -> bool:
        gc.collect()
        return there() is None

    until(gone)


def test_futures_are_what_futures_are(wq: cmwq.WorkQueue) -> None:
    future = wq.submit(given)
    assert type(future) is cmwq.Future
    assert isinstance(future, cf.Future)
    assert weakref.ref(future)() is future
    assert future.result(HANG) == ((), {})
    with pytest.raises(TypeError):
        pickle.dumps(future)
    with pytest.raises(cf.InvalidStateError):
        future.set_result(None)
    assert repr(future) == "<cmwq.Future finished of queue 'twin'>"
    assert {future: 1}[future] == 1


def test_finalisers_of_what_a_call_held_may_call_us(wq: cmwq.WorkQueue) -> None:
    called: list[Any] = []

    class Submits:
        def __del__(self) -> None:
            called.append(wq.submit(given))

    for _ in range(50):
        wq.submit(given, Submits())

    def all_called() -> bool:
        gc.collect()  # without a GIL the last reference may be one that a sleeping thread has still to count off
        return len(called) == 50

    until(all_called)
    assert [future.result(HANG) for future in called] == [((), {})] * 50


def test_the_methods_say_what_they_did_before() -> None:
    for owner, name, words in (
        (cmwq.WorkQueue, "submit", "Submit one call"),
        (cmwq.WorkQueue, "submit_many", "at a fraction of the cost"),
        (cmwq.WorkQueue, "queue", "Queue a work"),
    ):
        method = getattr(owner, name)
        assert words in (inspect.getdoc(method) or "")
        assert "self" not in str(inspect.signature(method)) or str(inspect.signature(method)).startswith("(self")
    assert list(inspect.signature(cmwq.WorkQueue.submit).parameters)[1:] == ["fn", "args", "kwargs"]


def test_subclasses_override_and_call_what_they_inherit(universe: cmwq.Runtime) -> None:
    class Counting(cmwq.WorkQueue):
        number = 0

        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
            self.number += 1
            return super().submit(fn, *args, **kwargs)

    with Counting("counting", runtime=universe) as queue:
        assert queue.submit(given, 1, a=2).result(HANG) == ((1,), {"a": 2})
        assert list(queue.map(given, range(5))) == [((n,), {}) for n in range(5)]
        assert queue.number == 6


# ------------------------------------------------------------------------------------------- threads, signals, forks


def test_a_flood_of_functions_in_c_lets_other_threads_run(wq: cmwq.WorkQueue) -> None:
    ticks, stop = [0], threading.Event()

    def tick() -> None:
        while not stop.wait(0.001):
            ticks[0] += 1

    numbers = list(range(20_000))
    ticker = threading.Thread(target=tick)
    ticker.start()
    futures = wq.submit_many(sorted, [numbers] * 30_000)
    assert futures[0].result(HANG) == numbers
    assert not futures[-1].done(), "all were executed before another thread had the GIL"
    before = ticks[0]
    for future in futures[1:]:
        future.cancel()
    until(lambda: ticks[0] > before)
    stop.set()
    ticker.join(HANG)
    wq.flush(HANG)


def test_many_producers_lose_nothing(wq: cmwq.WorkQueue, universe: cmwq.Runtime) -> None:
    each, producers = 400, 4
    seen: list[int] = []
    futures: list[list[cmwq.Future[Any]]] = [[] for _ in range(producers)]
    barrier = threading.Barrier(producers)

    def produce(number: int) -> None:
        barrier.wait(HANG)
        for n in range(each):
            if n % 3 == 0:
                futures[number] += wq.submit_many(seen.append, [number * each + n])
            else:
                futures[number].append(wq.submit(seen.append, number * each + n))

    threads = [threading.Thread(target=produce, args=(number,)) for number in range(producers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG)
    for made in futures:
        for future in made:
            assert future.result(HANG) is None
    wq.flush(HANG)
    assert sorted(seen) == list(range(each * producers))
    universe.check_invariants()


def test_E3_a_work_queued_while_it_runs_waits_for_its_end(wq: cmwq.WorkQueue, gate: Gate) -> None:
    calls: list[int] = []

    def call() -> None:
        calls.append(threading.get_ident())
        gate()

    work = cmwq.Work(call)
    assert wq.queue(work)
    gate.await_arrivals(1)
    assert wq.queue(work)
    wq.submit(int).result(HANG)  # behind it in the list: so another worker has had the work in its hands
    assert wq.submit(int).result(HANG) == 0
    time.sleep(0.05)  # for a second call to begin, if there is one
    assert len(calls) == 1
    gate.open.set()
    wq.flush(HANG)
    assert len(calls) == 2
    assert calls[0] == calls[1], "the second call is on the same worker"


def test_one_work_from_many_threads_never_runs_twice_at_once(wq: cmwq.WorkQueue) -> None:
    now, most, times, queued = 0, 0, 0, [0, 0, 0]
    lock = threading.Lock()

    def call() -> None:
        nonlocal now, most, times
        with lock:
            now, times = now + 1, times + 1
            most = max(most, now)
        time.sleep(0.0002)  # so that the next worker is woken for what has been queued meanwhile
        with lock:
            now -= 1

    work = cmwq.Work(call)

    def produce(number: int) -> None:
        for _ in range(500):
            queued[number] += wq.queue(work)

    threads = [threading.Thread(target=produce, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG)
    wq.flush(HANG)
    assert most == 1
    assert times == sum(queued)


def test_works_and_cancelling_at_the_same_time(wq: cmwq.WorkQueue, universe: cmwq.Runtime) -> None:
    ran, cancelled = [0], 0
    lock = threading.Lock()

    def call() -> None:
        with lock:
            ran[0] += 1

    futures: list[cmwq.Future[Any]] = []
    for _ in range(20):
        made = wq.submit_many(lambda _: call(), range(40))
        cancelled += sum([future.cancel() for future in made[::-1]])
        futures += made
    wq.flush(HANG)
    assert ran[0] + cancelled == len(futures) == 800
    assert sum(future.cancelled() for future in futures) == cancelled
    universe.check_invariants()


def test_nested_calls_wait_for_one_another(universe: cmwq.Runtime) -> None:
    with cmwq.WorkQueue("nested", max_active=2, runtime=universe) as queue:

        def call(depth: int) -> int:
            return 1 + (queue.submit(call, depth - 1).result(HANG) if depth else 0)

        assert [future.result(HANG) for future in [queue.submit(call, 6) for _ in range(4)]] == [7] * 4


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timers")
def test_F10_handlers_that_call_us_in_a_flood_lose_nothing(wq: cmwq.WorkQueue, universe: cmwq.Runtime) -> None:
    made: list[cmwq.Future[Any]] = []
    wq.submit(given).result(HANG)  # to start a pool is no call that can be deferred
    with handled_again_and_again(lambda: made.append(wq.submit(given, "from the handler")), lambda: 0.001):
        futures = [wq.submit(given, n) for n in range(5000)]
        for n, future in enumerate(futures):
            assert future.result(HANG) == ((n,), {})
        until(lambda: len(made) > 3)
    assert [future.result(HANG) for future in made] == [(("from the handler",), {})] * len(made)
    wq.flush(HANG)
    universe.check_invariants()


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timers")
def test_F10_ctrl_c_in_a_flood_leaves_everything_whole(wq: cmwq.WorkQueue, universe: cmwq.Runtime) -> None:
    class Stop(Exception):
        pass

    with handler_raises(signal.SIGALRM, Stop):
        for n in range(60):
            with suppress(Stop):
                try:
                    signal.setitimer(signal.ITIMER_REAL, 0.0005 + n * 0.00005)
                    futures = [wq.submit(given, n) for n in range(2000)] + wq.submit_many(given, range(200))
                    for future in futures:
                        future.result(HANG)
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
    wq.flush(HANG)
    universe.check_invariants()
    assert wq.submit(given).result(HANG) == ((), {})


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_G2_the_child_of_a_fork_begins_anew() -> None:
    queue = cmwq.WorkQueue("forked")
    release = threading.Event()
    running = queue.submit(release.wait, HANG)
    until(running.running)
    queue.max_active = 1
    waiting = queue.submit(given)
    work = cmwq.Work(given)
    queue.queue(work)
    pid = os.fork()
    if not pid:
        status = 1
        try:
            assert not work.pending
            assert queue.submit(given, 1).result(HANG) == ((1,), {})
            assert [future.result(HANG) for future in queue.submit_many(given, [2])] == [((2,), {})]
            assert queue.queue(work)
            queue.flush(HANG)
            try:
                waiting.result(HANG)
            except cmwq.ForeignProcess:
                status = 0
        finally:
            sys.stderr.flush()
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    release.set()
    assert os.waitstatus_to_exitcode(status) == 0
    assert running.result(HANG)
    assert waiting.result(HANG) == ((), {})
    queue.close(HANG)


def test_H1_what_is_counted_agrees(wq: cmwq.WorkQueue, universe: cmwq.Runtime) -> None:
    for future in [wq.submit(given) for _ in range(50)] + wq.submit_many(given, range(50)):
        future.result(HANG)
    for _ in range(7):
        assert isinstance(wq.submit(fail, ValueError()).exception(HANG), ValueError)
    wq.flush(HANG)
    (view,) = [each for each in universe.snapshot().queues if each.name == "twin"]
    assert (view.started, view.completed, view.failed, view.unfinished) == (107, 107, 7, 0)


def test_H2_an_observed_flood_is_told_whole(universe: cmwq.Runtime) -> None:
    from cmwq import events

    with cmwq.WorkQueue("observed", runtime=universe) as queue:
        queue.submit(given).result(HANG)
        seen: list[Any] = []
        with events.subscribe(seen.append, runtime=universe):
            for future in [queue.submit(given) for _ in range(30)] + queue.submit_many(given, range(30)):
                future.result(HANG)
            queue.flush(HANG)
            until(lambda: sum(event.kind is events.Kind.ENDED for event in seen) == 60)
        assert sum(event.kind is events.Kind.STARTED for event in seen) == 60
        assert queue.submit(given).result(HANG) == ((), {})
