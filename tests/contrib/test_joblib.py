"""cmwq.contrib.joblib, with the real joblib."""

from __future__ import annotations

import contextlib
import contextvars
import itertools
import multiprocessing
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import HANG, AtOnce, Gate, until

import cmwq

joblib = pytest.importorskip("joblib", reason="joblib can't be imported here")

import cmwq.contrib.joblib  # noqa: E402

MANY = 2000
"""Tasks: many more than run at a time."""

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="none")


@pytest.fixture(autouse=True)
def _backend() -> Iterator[None]:
    cmwq.contrib.joblib.register()
    with joblib.parallel_config(backend="cmwq"):
        yield
    cmwq.system.flush(HANG)


def test_results_come_in_order() -> None:
    assert joblib.Parallel()(joblib.delayed(pow)(n, 2) for n in range(1000)) == [n * n for n in range(1000)]


def test_tasks_that_wait_for_each_other_run_at_once_on_however_few_cpus() -> None:
    barrier = threading.Barrier(50)
    assert sorted(joblib.Parallel()(joblib.delayed(barrier.wait)(HANG) for _ in range(50))) == list(range(50))


def test_within_parallel_as_a_context_manager_too() -> None:
    barrier = threading.Barrier(50)
    with joblib.Parallel() as parallel:
        for _ in range(2):
            parallel(joblib.delayed(barrier.wait)(HANG) for _ in range(50))


@pytest.mark.parametrize("n_jobs", [2, 5])
def test_a_number_is_a_bound(n_jobs: int) -> None:
    at_once = AtOnce()

    def task() -> None:
        with at_once:
            threading.Event().wait(0.002)

    joblib.Parallel(n_jobs=n_jobs)(joblib.delayed(task)() for _ in range(60))
    assert 1 <= at_once.most <= n_jobs


def test_one_job_runs_in_the_calling_thread() -> None:
    told = joblib.Parallel(n_jobs=1)(joblib.delayed(threading.get_ident)() for _ in range(3))
    assert set(told) == {threading.get_ident()}


def test_data_are_cut_into_as_many_parts_as_there_are_cpus() -> None:
    assert joblib.effective_n_jobs(-1) == joblib.cpu_count()
    assert joblib.effective_n_jobs(7) == 7
    with pytest.raises(ValueError, match="n_jobs == 0"):
        joblib.Parallel(n_jobs=0)([])


def test_nested_to_any_depth_without_deadlock_and_with_the_same_backend() -> None:
    def nested(depth: int) -> int:
        if depth == 0:
            return 1
        backend, _ = joblib.parallel.get_active_backend()
        assert isinstance(backend, cmwq.contrib.joblib.JoblibBackend)
        return sum(joblib.Parallel(n_jobs=-1)(joblib.delayed(nested)(depth - 1) for _ in range(4)))

    assert joblib.Parallel()(joblib.delayed(nested)(3) for _ in range(4)) == [64] * 4


def test_nested_and_bounded_by_less_than_the_depth() -> None:
    def nested(depth: int) -> int:
        if depth == 0:
            return 1
        return sum(joblib.Parallel(n_jobs=2)(joblib.delayed(nested)(depth - 1) for _ in range(2)))

    assert joblib.Parallel(n_jobs=2)(joblib.delayed(nested)(4) for _ in range(2)) == [16, 16]


@pytest.mark.parametrize("managed", [False, True])
def test_the_error_of_a_task_is_raised_while_others_run_and_what_has_not_begun_is_cancelled(
    gate: Gate, managed: bool
) -> None:
    def task(number: int) -> None:
        if number == 0:
            gate.await_arrivals(1)
            assert all_there.wait(HANG)  # else joblib keeps some of them for the next call
            raise ValueError("on purpose")
        begun.append(number)
        gate()

    def tasks() -> Iterator[Any]:
        yield from (joblib.delayed(task)(number) for number in range(MANY))
        all_there.set()

    begun: list[int] = []
    all_there = threading.Event()
    parallel = joblib.Parallel(n_jobs=2, pre_dispatch="all")
    with parallel if managed else contextlib.nullcontext():
        with pytest.raises(ValueError, match="on purpose"):
            parallel(tasks())
        assert not gate.open.is_set(), "nobody has waited for what runs"
        assert joblib.Parallel(n_jobs=2)(joblib.delayed(abs)(-n) for n in range(9)) == list(range(9))
        if managed:  # what runs takes up no place of the next call
            meet = threading.Barrier(2)
            assert sorted(parallel(joblib.delayed(meet.wait)(HANG) for _ in range(2))) == [0, 1]
        gate.open.set()
    assert 1 <= len(begun) <= 2


@pytest.mark.parametrize("error", [cmwq.QueueClosed("on purpose"), cmwq.ThreadLimit("on purpose"), MemoryError()])
@pytest.mark.parametrize("at", [0, 40])
def test_what_keeps_a_batch_from_being_handed_over_is_raised(
    monkeypatch: pytest.MonkeyPatch, error: Exception, at: int
) -> None:
    """In the thread that calls `Parallel`, or in the callback of a task: there it had no end."""
    submit, handed_over = cmwq.Executor.submit, itertools.count()

    def refusing(self: cmwq.Executor, *call: Any) -> Any:
        if next(handed_over) == at:
            raise error
        return submit(self, *call)

    monkeypatch.setattr(cmwq.Executor, "submit", refusing)
    with pytest.raises(type(error)):
        joblib.Parallel(n_jobs=2, pre_dispatch=4)(joblib.delayed(abs)(-n) for n in range(100))


def test_the_end_of_the_main_thread_ends_a_parallel_of_another_one(python: Any) -> None:
    done = python("""
        import joblib, threading, time
        import cmwq.contrib.joblib
        cmwq.contrib.joblib.register()
        def task(number):
            begun.set()
            time.sleep(0.05)
            return number
        def run():
            with joblib.parallel_config(backend="cmwq"):
                try:
                    print(sum(joblib.Parallel(n_jobs=2)(joblib.delayed(task)(number) for number in range(18))))
                except BaseException as exc:
                    print(type(exc).__name__)
        begun = threading.Event()
        threading.Thread(target=run).start()
        begun.wait()
    """)
    assert done.stdout in ("QueueClosed\n", f"{sum(range(18))}\n"), done.stderr


@pytest.mark.filterwarnings("ignore:.*tasks.*:UserWarning")
def test_results_as_they_come_and_a_generator_left_early() -> None:
    results: Any = joblib.Parallel(return_as="generator_unordered")(joblib.delayed(abs)(-n) for n in range(50))
    assert sorted(results) == list(range(50))
    left: Any = joblib.Parallel(return_as="generator")(joblib.delayed(abs)(-n) for n in range(5000))
    assert next(left) == 0
    left.close()
    assert joblib.Parallel()(joblib.delayed(abs)(-n) for n in range(5)) == list(range(5))


def test_a_timeout_of_joblib_is_kept(gate: Gate) -> None:
    with pytest.raises(multiprocessing.TimeoutError):
        joblib.Parallel(timeout=0.05)(joblib.delayed(gate)() for _ in range(2))
    assert not gate.open.is_set(), "nobody has waited for the tasks"


def test_context_variables_of_the_caller_are_seen_and_nothing_comes_back() -> None:
    def task(number: int) -> str:
        seen = variable.get()
        variable.set(f"{number}")
        return seen

    token = variable.set("caller")
    try:
        assert (
            joblib.Parallel(pre_dispatch="all")(joblib.delayed(task)(number) for number in range(40)) == ["caller"] * 40
        )
        assert variable.get() == "caller"
    finally:
        variable.reset(token)


def test_two_threads_may_use_it_at_the_same_time() -> None:
    def run() -> list[int]:
        with joblib.parallel_config(backend="cmwq"):
            return list(joblib.Parallel()(joblib.delayed(abs)(-n) for n in range(300)))

    with cmwq.Executor() as executor:
        futures = [executor.submit(run) for _ in range(8)]
        assert all(future.result(HANG) == list(range(300)) for future in futures)


def test_nothing_is_left_of_a_parallel_when_it_has_ended() -> None:
    joblib.Parallel()(joblib.delayed(abs)(-n) for n in range(10))
    until(lambda: not [queue for queue in cmwq.snapshot().queues if queue.name == "joblib" and queue.active])
