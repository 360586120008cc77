"""initializer: once on each thread that serves the executor, before its first call there."""

from __future__ import annotations

import contextvars
import logging
import threading
from concurrent.futures.thread import BrokenThreadPool
from typing import Any

import pytest
from conftest import HANG, Gate

import cmwq


@pytest.fixture(params=[8, 1], ids=["shared threads", "one thread"])
def workers(request: pytest.FixtureRequest) -> int:
    number: int = request.param
    return number


def test_it_is_called_once_on_each_thread_before_its_first_call(runtime: cmwq.Runtime, workers: int) -> None:
    local, lock = threading.local(), threading.Lock()
    initialised: list[int] = []

    def initialise(value: str) -> None:
        local.value = value
        with lock:
            initialised.append(threading.get_ident())

    together = threading.Barrier(workers)

    def call(_: int) -> tuple[int, str]:
        together.wait(HANG)
        return threading.get_ident(), local.value

    with cmwq.Executor(max_workers=workers, initializer=initialise, initargs=("ready",), runtime=runtime) as executor:
        assert initialised == [], "nothing starts before the first call"
        seen = [*executor.map(call, range(3 * workers)), *executor.queue.map(call, range(workers))]
        assert len({thread for thread, _ in seen}) >= workers
        assert {value for _, value in seen} == {"ready"}
        assert sorted(initialised) == sorted({thread for thread, _ in seen})


def test_each_executor_has_its_own(runtime: cmwq.Runtime) -> None:
    """Though they share their threads."""
    local = threading.local()

    def initialise(name: str) -> None:
        setattr(local, name, True)

    with (
        cmwq.Executor(initializer=initialise, initargs=("one",), runtime=runtime) as one,
        cmwq.Executor(initializer=initialise, initargs=("two",), runtime=runtime) as two,
    ):
        for _ in range(20):
            assert one.submit(lambda: local.one).result(HANG)
            assert two.submit(lambda: local.two).result(HANG)


def test_context_variables_that_it_sets_are_the_calls_unless_the_caller_set_them(
    runtime: cmwq.Runtime, workers: int
) -> None:
    var, other = contextvars.ContextVar("var", default="none"), contextvars.ContextVar("other", default="none")

    def initialise() -> None:
        var.set("initialised")
        assert other.get() == "none", "it sees nothing of the call's"

    token = other.set("caller")
    with cmwq.Executor(max_workers=workers, initializer=initialise, runtime=runtime) as executor:
        for _ in range(10):
            assert executor.submit(lambda: (var.get(), other.get())).result(HANG) == ("initialised", "caller")
        var.set("caller")
        assert executor.submit(var.get).result(HANG) == "caller"
    other.reset(token)


def test_a_failing_one_breaks_the_executor(
    runtime: cmwq.Runtime, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    entered, go_on = threading.Semaphore(0), threading.Event()

    def fail() -> None:
        entered.release()
        assert go_on.wait(HANG)
        raise OSError("no database")

    ran: list[int] = []
    executor = cmwq.Executor(max_workers=workers, initializer=fail, runtime=runtime)
    assert not executor._broken
    first = executor.submit(ran.append, 1)
    assert entered.acquire(timeout=HANG)
    waiting = [executor.submit(ran.append, n) for n in range(300)]
    with caplog.at_level(logging.CRITICAL, "concurrent.futures"):
        go_on.set()
        for future in (first, *waiting):
            with pytest.raises(BrokenThreadPool, match="initializer failed"):
                future.result(HANG)
    assert "no database" in caplog.text
    assert executor._broken
    with pytest.raises(BrokenThreadPool):
        executor.submit(ran.append, 2)
    with pytest.raises(BrokenThreadPool):
        executor.queue.submit_many(ran.append, [2])
    executor.shutdown()
    assert ran == []


def test_a_failing_one_is_told_to_who_waits_behind_calls_that_go_on(runtime: cmwq.Runtime, gate: Gate) -> None:
    """All places are taken by calls that run; the pending ones hear of it all the same, as in the standard library."""
    first = threading.Lock()
    all_queued = threading.Event()

    def fail_on_the_second_thread() -> None:
        if not first.acquire(blocking=False):
            assert all_queued.wait(HANG)
            raise OSError

    with cmwq.Executor(max_active=2, initializer=fail_on_the_second_thread, runtime=runtime) as executor:
        running = executor.submit(gate)
        gate.await_arrivals(1)
        broken = [executor.submit(gate) for _ in range(10)]
        all_queued.set()
        for future in broken:
            with pytest.raises(BrokenThreadPool):
                future.result(HANG)
        assert running.running()
        gate.open.set()
        assert running.result(HANG) is None


def test_messages_show_the_function_not_the_preparation(runtime: cmwq.Runtime, gate: Gate) -> None:
    with cmwq.Executor(initializer=int, max_active=1, runtime=runtime) as executor:
        executor.submit(gate)
        gate.await_arrivals(1)
        future: Any = executor.submit(pow, 2, 3)
        assert future.describe().startswith("call pow of queue")
        gate.open.set()


def test_a_forks_child_prepares_its_threads_anew(python: Any) -> None:
    done = python("""
        import cmwq, os
        def initialise():
            print(os.getpid() == parent, flush=True)
        parent = os.getpid()
        executor = cmwq.Executor(initializer=initialise, max_active=1)
        executor.submit(int).result()
        if (pid := os.fork()) == 0:
            executor.submit(int).result()
            os._exit(0)
        os.waitpid(pid, 0)
        executor.submit(int).result()
    """)
    assert done.stdout.split()[:2] == ["True", "False"], done.stderr


def test_what_is_no_callable_is_refused() -> None:
    with pytest.raises(TypeError, match="initializer must be a callable"):
        cmwq.Executor(initializer=1)  # type: ignore[arg-type]
