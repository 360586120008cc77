"""What is said: the words that tools look for, timeouts as they were given, and names of threads."""

from __future__ import annotations

import concurrent.futures as cf
import re
import threading
from typing import Any

import pytest
from conftest import HANG, Gate

import cmwq


@pytest.mark.parametrize("options", [{}, {"initializer": int}, {"max_workers": 1}, {"scope": "cpu"}])
@pytest.mark.parametrize("used", [False, True])
def test_after_shutdown_the_standard_librarys_words(runtime: cmwq.Runtime, options: dict[str, Any], used: bool) -> None:
    executor = cmwq.Executor("pages", runtime=runtime, **options)
    if used:
        executor.submit(int).result(HANG)
    executor.shutdown()
    for submit in (executor.submit, executor.queue.submit):
        with pytest.raises(RuntimeError, match=r"cannot schedule new futures after shutdown.*'pages'") as caught:
            submit(int)
        assert isinstance(caught.value, cmwq.QueueClosed)


def test_after_the_runtimes_end_they_are_the_same() -> None:
    runtime = cmwq.Runtime()
    executor = cmwq.Executor(runtime=runtime)
    executor.submit(int).result(HANG)
    runtime.close()
    for each in (executor, cmwq.Executor(runtime=runtime)):
        with pytest.raises(cmwq.QueueClosed, match=r"cannot schedule new futures after shutdown.*runtime"):
            each.submit(int)


def test_a_drain_is_no_shutdown(runtime: cmwq.Runtime, gate: Gate) -> None:
    with cmwq.Executor(runtime=runtime) as executor:
        executor.submit(gate)
        gate.await_arrivals(1)
        refused: list[str] = []

        def submit_until_refused() -> None:
            while not refused:
                try:
                    executor.submit(int)
                except cmwq.QueueClosed as exc:
                    refused.append(str(exc))
            gate.open.set()

        thread = threading.Thread(target=submit_until_refused)
        thread.start()
        executor.queue.drain(HANG)
        thread.join(HANG)
        assert "queue again after drain()" in refused[0]
        assert "shutdown" not in refused[0]
        assert executor.submit(int).result(HANG) == 0


@pytest.mark.parametrize("options", ["", "1", "initializer=int"])
@pytest.mark.parametrize("before", ["", "executor.submit(int).result()"])
def test_after_the_interpreters_end_they_say_so(python: Any, options: str, before: str) -> None:
    done = python(f"""
        import atexit, cmwq
        executor = cmwq.Executor({options})
        {before}
        @atexit.register
        def late():
            try:
                executor.submit(print, "late")
            except RuntimeError as exc:
                print(type(exc).__name__, exc)
    """)
    assert re.match("QueueClosed cannot schedule new futures after interpreter shutdown", done.stdout), done.stderr
    assert "late" not in done.stdout
    assert done.returncode == 0


@pytest.mark.parametrize("how", ["executor.shutdown()", "executor.shutdown(cancel_futures=True)"])
@pytest.mark.parametrize("options", ["", "max_workers=1"])
def test_a_call_that_submits_itself_again_ends_with_shutdown(python: Any, how: str, options: str) -> None:
    done = python(f"""
        import cmwq
        executor = cmwq.Executor({options})
        def poll():
            try:
                executor.submit(poll)
            except RuntimeError as exc:
                print(exc, flush=True)
        executor.submit(poll).result()
        {how}
    """)
    assert done.stderr == ""
    assert not done.stdout or done.stdout.startswith("cannot schedule new futures after "), "or it was cancelled first"
    assert done.returncode == 0


@pytest.mark.parametrize("timeout", [0.05, 0, 7e-3])
def test_a_timeout_of_map_shows_what_was_given(runtime: cmwq.Runtime, gate: Gate, timeout: float) -> None:
    with cmwq.Executor(runtime=runtime) as executor:
        results = executor.map(lambda _: gate(), range(3), timeout=timeout)
        with pytest.raises(cmwq.CmwqTimeout, match=rf"within {timeout} s\b"):
            next(results)
        results = executor.map(lambda _: gate(), range(3), timeout=timeout)
        with pytest.raises(cf.TimeoutError, match=rf"within {timeout} s\b"):
            list(results)
        gate.open.set()


def test_a_timeout_of_the_calls_own_is_left_alone(runtime: cmwq.Runtime) -> None:
    def fail(_: int) -> None:
        raise TimeoutError("the server's")

    with cmwq.Executor(runtime=runtime) as executor:
        with pytest.raises(TimeoutError, match="the server's"):
            list(executor.map(fail, range(3), timeout=HANG))


def test_the_prefix_is_in_threadings_names_while_a_call_runs(runtime: cmwq.Runtime) -> None:
    def name() -> str:
        return threading.current_thread().name

    with (
        cmwq.Executor(thread_name_prefix="pages", runtime=runtime) as pages,
        cmwq.Executor("named", thread_name_prefix="images", runtime=runtime) as images,
        cmwq.Executor(runtime=runtime) as plain,
        cmwq.WorkQueue("wq", runtime=runtime) as wq,
    ):
        for _ in range(10):  # one after the other, so mostly on the same thread
            assert re.fullmatch(r"pages_\d+", pages.submit(name).result(HANG))
            assert re.fullmatch(r"images_\d+", images.submit(name).result(HANG))
            assert re.fullmatch(r"cmwq/u0:\d+", plain.submit(name).result(HANG))
            assert re.fullmatch(r"pages_\d+", pages.submit(name).result(HANG))
            assert re.fullmatch(r"cmwq/u0:\d+", wq.submit(name).result(HANG))
        assert images.queue.name == "named"
        assert images._thread_name_prefix == "images"
