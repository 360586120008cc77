"""The calls that queue: submit and its kin, decorators, and what they refuse."""

from __future__ import annotations

import concurrent.futures as cf
import contextvars
import gc
import logging

import pytest
from conftest import HANG, Gate

import cmwq

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


def test_work_is_a_decorator(universe: cmwq.Runtime) -> None:
    runs: list[int] = []

    @cmwq.Work
    def refresh() -> None:
        runs.append(1)

    wq = cmwq.WorkQueue("q", runtime=universe)
    assert wq.queue(refresh)
    assert refresh.flush(HANG) or not refresh.pending
    wq.flush(HANG)
    assert runs == [1]
    assert "refresh" in repr(refresh)


def test_a_work_has_its_arguments(universe: cmwq.Runtime) -> None:
    seen: list[tuple[int, int, int]] = []

    def fn(a: int, /, b: int, *, c: int) -> None:
        seen.append((a, b, c))

    wq = cmwq.WorkQueue("q", runtime=universe)
    work = cmwq.Work(fn, 1, 2, c=3)
    for _ in range(2):
        wq.queue(work)
        wq.flush(HANG)
    assert seen == [(1, 2, 3)] * 2


def test_offload_makes_calls_futures(runtime: cmwq.Runtime) -> None:
    wq = cmwq.WorkQueue("q", runtime=runtime)

    @wq.offload
    def power(base: int, exponent: int = 2) -> int:
        """What it does."""
        return int(base**exponent)

    assert power(3).result(HANG) == 9
    assert power(2, exponent=5).result(HANG) == 32
    assert (power.__name__, power.__doc__) == ("power", "What it does.")
    with pytest.raises(TypeError):
        power("x").result(HANG)  # type: ignore[arg-type]


def test_submitting_a_work_gives_its_result(runtime: cmwq.Runtime, gate: Gate) -> None:
    wq = cmwq.WorkQueue("q", max_active=1, runtime=runtime)
    wq.submit(gate)
    gate.await_arrivals(1)
    runs: list[int] = []
    work = cmwq.Work(lambda: runs.append(1) or len(runs))  # type: ignore[func-returns-value]
    first, second = wq.submit(work), wq.submit(work)
    assert not wq.queue(work), "it is pending"
    assert isinstance(first, cf.Future)
    gate.open.set()
    assert first.result(HANG) == second.result(HANG) == 1, "both are the result of one execution"
    assert wq.submit(work).result(HANG) == 2


def test_the_result_of_a_work_that_raises_is_the_futures(
    universe: cmwq.Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    wq = cmwq.WorkQueue("q", runtime=universe)
    error = wq.submit(cmwq.Work(int, "no number")).exception(HANG)
    assert isinstance(error, ValueError)
    assert not caplog.records, "whoever has the future hears of it"


def test_cancelling_a_works_future_leaves_the_work_alone(universe: cmwq.Runtime, gate: Gate) -> None:
    wq = cmwq.WorkQueue("q", max_active=1, runtime=universe)
    wq.submit(gate)
    runs: list[int] = []
    work = cmwq.Work(runs.append, 1)
    future, other = wq.submit(work), wq.submit(work)
    assert future.cancel()
    assert work.pending
    gate.open.set()
    assert other.result(HANG) is None
    assert runs == [1]
    with pytest.raises(cf.CancelledError):
        future.result(HANG)


def test_cancelling_a_work_cancels_its_futures(universe: cmwq.Runtime, gate: Gate) -> None:
    wq = cmwq.WorkQueue("q", max_active=1, runtime=universe)
    wq.submit(gate)
    work = cmwq.Work(int)
    future = wq.submit(work)
    assert work.cancel()
    with pytest.raises(cf.CancelledError):
        future.result(HANG)
    assert cf.wait([future], HANG).done == {future}


def test_a_submitted_work_takes_no_more_arguments(universe: cmwq.Runtime) -> None:
    wq = cmwq.WorkQueue("q", runtime=universe)
    with pytest.raises(TypeError, match=r"<cmwq\.Work int> has its arguments already"):
        wq.submit(cmwq.Work(int), 1)


def test_submit_many_is_all_or_none(universe: cmwq.Runtime) -> None:
    wq = cmwq.WorkQueue("q", max_active=3, runtime=universe)
    assert [future.result(HANG) for future in wq.submit_many(pow, range(10), [2] * 10)] == [n * n for n in range(10)]
    assert wq.submit_many(abs, []) == []

    def broken() -> object:
        yield 1
        raise LookupError("in the iterable")

    with pytest.raises(LookupError):
        wq.submit_many(abs, broken())  # type: ignore[arg-type]
    wq.flush(HANG)
    assert universe.snapshot().pools[0].started == 10


def test_a_coroutine_function_is_refused_where_many_calls_are_submitted(universe: cmwq.Runtime) -> None:
    wq = cmwq.WorkQueue("q", runtime=universe)

    async def answer(_: object) -> None: ...

    for submit in (wq.submit_many, wq.map):
        with pytest.raises(TypeError, match="coroutine function"):
            submit(answer, [1])


def test_map_reads_as_far_ahead_as_buffersize(universe: cmwq.Runtime) -> None:
    wq = cmwq.WorkQueue("q", runtime=universe)
    read: list[int] = []

    def source() -> object:
        for n in range(100):
            read.append(n)
            yield n

    results = wq.map(abs, source(), buffersize=5)  # type: ignore[arg-type]
    assert len(read) == 5
    assert [next(results) for _ in range(10)] == list(range(10))
    assert len(read) == 15
    assert list(results) == list(range(10, 100))
    for size, error in ((0, ValueError), (1.5, TypeError)):
        with pytest.raises(error, match="buffersize"):
            wq.map(abs, [1], buffersize=size)  # type: ignore[arg-type]


def test_map_left_early_cancels_what_has_not_begun(universe: cmwq.Runtime, gate: Gate) -> None:
    wq = cmwq.WorkQueue("q", max_active=1, runtime=universe)
    ran: list[int] = []

    def item(n: int) -> int:
        ran.append(n)
        if n == 1:
            gate()
        return n

    results = wq.map(item, range(10))
    assert next(results) == 0
    gate.await_arrivals(1)
    results.close()  # type: ignore[attr-defined]
    gate.open.set()
    wq.flush(HANG)
    assert ran == [0, 1]


@pytest.mark.parametrize("executor", [False, True])
@pytest.mark.parametrize(("buffersize", "submitted"), [(None, 10), (5, 5)])
def test_map_that_is_never_asked_for_a_result_cancels_nothing(
    universe: cmwq.Runtime, gate: Gate, buffersize: int | None, submitted: int, executor: bool
) -> None:
    """`executor.map(send, letters)` as a statement sends them all, as with the standard library (bpo-11777)."""
    kind = cmwq.Executor if executor else cmwq.WorkQueue
    ran: list[int] = []

    def item(n: int) -> None:
        ran.append(n)
        gate()

    with kind("q", max_active=1, runtime=universe) as wq:
        wq.map(item, range(10), buffersize=buffersize)
        gate.await_arrivals(1)
        gc.collect()
        gate.open.set()
    assert ran == list(range(submitted))


def test_map_times_out(universe: cmwq.Runtime, gate: Gate) -> None:
    wq = cmwq.WorkQueue("q", runtime=universe)
    with pytest.raises(cmwq.CmwqTimeout):
        next(wq.map(lambda _: gate(), [1], timeout=0.01))


def test_the_callers_context_is_captured(universe: cmwq.Runtime) -> None:
    wq = cmwq.WorkQueue("q", runtime=universe)
    seen: list[str] = []
    work = cmwq.DelayedWork(lambda: seen.append(variable.get()))
    variable.set("caller's")
    assert wq.submit(variable.get).result(HANG) == "caller's"
    wq.queue(work)
    wq.flush(HANG)
    wq.queue_delayed(work, 3600)
    variable.set("later")
    work.flush(HANG)
    context = contextvars.copy_context()
    context.run(variable.set, "queue's own")
    own = cmwq.WorkQueue("own", context=context, runtime=universe)
    assert own.submit(variable.get).result(HANG) == "queue's own"
    own.queue(work)
    own.flush(HANG)
    assert seen == ["caller's", "caller's", "queue's own"]


def test_a_queues_own_context_may_be_empty(universe: cmwq.Runtime) -> None:
    """For works as for calls: an empty context is none that is missing."""
    own = cmwq.WorkQueue("own", context=contextvars.Context(), runtime=universe)
    seen: list[str] = []
    token = variable.set("caller's")
    try:
        assert own.submit(variable.get).result(HANG) == "unset"
        own.queue(cmwq.Work(lambda: seen.append(variable.get())))
    finally:
        variable.reset(token)
    own.flush(HANG)
    assert seen == ["unset"]


def test_on_error_that_raises_is_logged_and_the_queue_goes_on(
    universe: cmwq.Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    def on_error(work: cmwq.Work, exc: BaseException) -> None:
        raise LookupError("in on_error")

    wq = cmwq.WorkQueue("q", on_error=on_error, runtime=universe)
    with caplog.at_level(logging.ERROR, "cmwq"):
        wq.queue(cmwq.Work(int, "no number"))
        wq.flush(HANG)
    assert "on_error of queue 'q' raised" in caplog.text
    assert "in on_error" in caplog.text
    assert wq.submit(len, "ab").result(HANG) == 2


def test_errors_are_what_a_caller_would_catch() -> None:
    assert issubclass(cmwq.QueueClosed, RuntimeError)
    assert issubclass(cmwq.WorkDisabled, RuntimeError)
    assert issubclass(cmwq.FlushDeadlock, RuntimeError)
    for name in cmwq.__all__:
        value = getattr(cmwq, name)
        if isinstance(value, type) and issubclass(value, BaseException):
            assert issubclass(value, cmwq.CmwqError)


@pytest.mark.parametrize(("cpu", "error"), [(-1, ValueError), ("0", TypeError), (1.0, TypeError), (True, TypeError)])
def test_queue_on_refuses_what_is_no_cpu(universe: cmwq.Runtime, cpu: int, error: type[Exception]) -> None:
    work = cmwq.Work(int)
    with pytest.raises(error, match=f"cpu is {cpu!r}, and must be"):
        cmwq.WorkQueue("q", runtime=universe).queue_on(cpu, work)
    assert not work.pending


def test_a_cpu_that_is_not_there_is_served_elsewhere(universe: cmwq.Runtime) -> None:
    wq = cmwq.WorkQueue("q", scope="cpu", runtime=universe)
    work = cmwq.Work(int)
    assert wq.queue_on(100_000, work)
    wq.flush(HANG)
    assert not work.pending
    assert len(universe.snapshot().pools) == 1
