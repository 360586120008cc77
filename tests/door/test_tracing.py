"""G6: tracing, profiling, monitoring, coverage and debuggers see what works do, as in any thread; and end no worker."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

WORK = """
    import sys, threading, cmwq
    def inner(n):
        x = n + 1
        return x
    def body(n):
        y = inner(n)
        return y
    seen = []
"""


def run(python: Callable[..., Any], *parts: str) -> None:
    done = python(*parts)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


@pytest.mark.parametrize("face", ["cmwq.Executor()", "cmwq.WorkQueue('q')"])
def test_G6_threading_settrace_sees_the_lines_of_works(python: Callable[..., Any], face: str) -> None:
    run(
        python,
        WORK,
        f"""
    face = {face}
    def trace(frame, event, arg):
        if frame.f_code.co_name in ("inner", "body"):
            seen.append((event, frame.f_code.co_name, threading.current_thread() is not threading.main_thread()))
        return trace
    threading.settrace(trace)
    assert [face.submit(body, n).result(60) for n in range(3)] == [1, 2, 3]
    assert seen.count(("line", "inner", True)) == 6, seen
    assert seen.count(("line", "body", True)) == 6
    assert seen.count(("return", "body", True)) == 3
    print("done")
    """,
    )


def test_G6_threading_setprofile_sees_the_calls_of_works(python: Callable[..., Any]) -> None:
    run(
        python,
        WORK,
        """
    def profile(frame, event, arg):
        if frame.f_code.co_name in ("inner", "body"):
            seen.append((event, frame.f_code.co_name))
    threading.setprofile(profile)
    work = cmwq.Work(body, 1)
    for _ in range(3):
        cmwq.system.queue(work)
        cmwq.system.flush(60)
    assert seen == [("call", "body"), ("call", "inner"), ("return", "inner"), ("return", "body")] * 3, seen
    print("done")
    """,
    )


@pytest.mark.skipif(sys.version_info < (3, 12), reason="settrace_all_threads is of Python 3.12")
@pytest.mark.parametrize("kind", ["trace", "profile"])
def test_G6_a_function_set_for_all_threads_sees_works_of_workers_that_were_there(
    python: Callable[..., Any], kind: str
) -> None:
    """As a debugger does that is attached to a running program. And it is gone when it is taken off."""
    run(
        python,
        WORK,
        f"""
    KIND = {kind!r}
    assert cmwq.system.submit(body, 1).result(60) == 2
    def look(frame, event, arg):
        if frame.f_code is inner.__code__:
            seen.append(event)
        return look
    on = getattr(threading, f"set{{KIND}}_all_threads")
    on(look)
    assert [cmwq.system.submit(body, n).result(60) for n in range(10)] == list(range(1, 11))
    on(None)
    assert seen.count("call") == seen.count("return") == 10, seen
    assert (seen.count("line") == 20) is (KIND == "trace"), seen
    del seen[:]
    assert cmwq.system.submit(body, 1).result(60) == 2
    assert seen == []
    print("done")
    """,
    )


@pytest.mark.skipif(sys.version_info < (3, 12), reason="sys.monitoring is of Python 3.12")
def test_G6_monitoring_sees_the_lines_of_works(python: Callable[..., Any]) -> None:
    """Even if it begins when the workers are there already."""
    run(
        python,
        WORK,
        """
    assert cmwq.system.submit(body, 1).result(60) == 2
    monitoring = sys.monitoring
    monitoring.use_tool_id(monitoring.PROFILER_ID, "test")
    def line(code, number):
        if code.co_name == "inner":
            seen.append(number)
    monitoring.register_callback(monitoring.PROFILER_ID, monitoring.events.LINE, line)
    monitoring.set_events(monitoring.PROFILER_ID, monitoring.events.LINE)
    assert cmwq.system.submit(body, 1).result(60) == 2
    monitoring.set_events(monitoring.PROFILER_ID, 0)
    assert len(seen) == 2 and seen[1] == seen[0] + 1, seen
    print("done")
    """,
    )


@pytest.mark.skipif(importlib.util.find_spec("coverage") is None, reason="no coverage.py here")
def test_G6_coverage_counts_the_lines_of_works(python: Callable[..., Any], tmp_path: Path) -> None:
    module = tmp_path / "measured.py"
    module.write_text("def body(n):\n    if n:\n        return 1\n    return 0\n")
    run(
        python,
        f"""
    import sys
    sys.path.insert(0, {str(tmp_path)!r})
    import coverage
    cov = coverage.Coverage(data_file=None, concurrency=["thread"], include=["*/measured.py"], config_file=False)
    cov.start()
    import cmwq, measured
    assert [cmwq.Executor().submit(measured.body, n).result(60) for n in (0, 1)] == [0, 1]
    cov.stop()
    assert cov.analysis({str(module)!r})[2] == [], "all lines were seen"
    print("done")
    """,
    )


def test_G6_a_debugger_in_a_work_steps_through_it(python: Callable[..., Any]) -> None:
    """As `breakpoint()` does: the work's own frames get the trace function, from where it is set."""
    run(
        python,
        WORK,
        """
    import bdb
    class Debugger(bdb.Bdb):
        def user_line(self, frame):
            if frame.f_code.co_name in ("inner", "stops_here"):
                seen.append(frame.f_code.co_name)
            if frame.f_code.co_name == "worker_thread":
                self.set_quit()
            else:
                self.set_step()
    def stops_here(n):
        debugger = Debugger()
        debugger.set_trace()
        y = inner(n)
        debugger.set_continue()
        return y
    pool = cmwq.Executor()
    assert pool.submit(stops_here, 1).result(60) == 2
    assert seen.count("inner") == 2 and seen.count("stops_here") >= 2, seen
    assert list(pool.map(body, range(50), timeout=60)) == list(range(1, 51))
    print("done")
    """,
    )


def test_G6_a_trace_function_that_raises_in_a_work_ends_that_call_only(python: Callable[..., Any]) -> None:
    run(
        python,
        WORK,
        """
    class Stop(BaseException):
        pass
    def trace(frame, event, arg):
        if frame.f_code.co_name == "inner" and event == "line" and frame.f_locals["n"] == 3:
            raise Stop
        return trace
    threading.settrace(trace)
    pool = cmwq.Executor()
    futures = [pool.submit(body, n) for n in range(50)]
    for n, future in enumerate(futures):
        if n == 3:
            assert type(future.exception(60)) is Stop
        else:
            assert future.result(60) == n + 1
    cmwq.default_runtime().check_invariants()
    print("done")
    """,
    )


def test_G6_a_trace_function_that_raises_in_our_own_code_loses_nothing(python: Callable[..., Any]) -> None:
    """In each worker's thread once, somewhere: Python takes it off then. Each call has an outcome, and all goes on."""
    done = python(
        WORK,
        """
    import random
    chance = random.Random(1)
    raised = []
    class Stop(Exception):
        pass
    def trace(frame, event, arg):
        if "worker.py" in frame.f_code.co_filename and chance.random() < 0.05:
            raised.append(frame.f_code.co_name)
            raise Stop
        return trace
    threading.settrace(trace)
    config = cmwq.Config(create_cooldown=0.01, watch_period=0.02)
    for _ in range(20):
        with cmwq.Runtime(config=config) as runtime:
            queue = cmwq.WorkQueue("q", runtime=runtime)
            futures = [queue.submit(body, n) for n in range(20)]
            for n, future in enumerate(futures):
                exc = future.exception(60)
                assert exc is None and future.result() == n + 1 or type(exc) is Stop, exc
            queue.flush(60)
            runtime.check_invariants()
    assert len(raised) >= 20, raised
    print("done")
    """,
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
