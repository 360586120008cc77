"""G: import, fork, exit, Ctrl-C, idleness. In interpreters of their own, with the sensor that CMWQ_SENSOR names."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable

import pytest
from conftest import HANG, UNTIL_QUIET

Python = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(autouse=True)
def each_sensor(sensor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CMWQ_SENSOR", sensor)


def check(done: subprocess.CompletedProcess[str], expected: str = "", status: int = 0) -> None:
    assert (done.stdout.split(), done.stderr, done.returncode) == (expected.split(), "", status)


def test_G1_nothing_starts_at_import(python: Python) -> None:
    check(
        python("""
            import os, cmwq
            cmwq.Executor(); cmwq.WorkQueue("q"); cmwq.snapshot()
            print(len(os.listdir("/proc/self/task")))
        """),
        "1",
    )


def test_G3_pending_work_is_done_at_exit(python: Python) -> None:
    check(
        python("""
            import cmwq, sys, time
            def work(n):
                time.sleep(0.01)
                sys.stdout.write(f"{n}\\n")
                sys.stdout.flush()
                if n < 3: cmwq.system.submit(work, n + 1)  # it may run at once
            cmwq.system.submit(work, 0)
            cmwq.Executor().submit(time.sleep, 0.05)
            cmwq.system.queue(cmwq.Work(time.sleep, 0.05))
        """),
        "0 1 2 3",
    )


def test_G3_an_executor_dropped_in_mid_work_finishes_it(python: Python) -> None:
    check(
        python("""
            import cmwq, time, gc
            ex = cmwq.Executor(max_active=1)
            for n in range(5): ex.submit(lambda n: (time.sleep(0.01), print(n, flush=True)), n)
            del ex; gc.collect()
        """),
        "0 1 2 3 4",
    )


def test_G3_an_exception_in_main_exits_as_usual(python: Python) -> None:
    done = python("import cmwq; cmwq.system.submit(print, 1); raise SystemExit(3)")
    check(done, "1", 3)


@pytest.mark.parametrize("presses", [1, 2])
def test_G3_ctrl_c(presses: int) -> None:
    """The first leaves the main program; what runs is done at exit. The second, meanwhile, leaves at once."""
    program = """
        import cmwq, threading, time, sys
        started, go = threading.Event(), threading.Event()
        def work():
            started.set()
            while not go.is_set():
                time.sleep(0.01)
            print("done", flush=True)
        cmwq.system.submit(work)
        started.wait()
        try:
            print("ready", flush=True)
            while True: time.sleep(1)
        finally:
            print("leaving", flush=True)
            if sys.argv[1] == "1":
                threading.Timer(0.5, go.set).start()  # it is in the exit hook by then
    """
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), str(presses)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == "ready\n"
        child.send_signal(signal.SIGINT)
        assert child.stdout.readline() == "leaving\n"
        if presses == 2:
            # It may still be on its way to the exit hook; asking again until it has left is what a user would do.
            while child.poll() is None:
                child.send_signal(signal.SIGINT)
                try:
                    child.wait(0.2)
                except subprocess.TimeoutExpired:
                    continue
        out, err = child.communicate(timeout=HANG)
    finally:
        child.kill()
    assert out == ("done\n" if presses == 1 else "")
    assert "KeyboardInterrupt" in err
    assert "Fatal" not in err
    assert child.returncode in (-signal.SIGINT, 130)


def test_G2_a_forked_child_starts_afresh(python: Python) -> None:
    check(
        python("""
            import cmwq, os, threading, warnings
            warnings.simplefilter("ignore", DeprecationWarning)
            gate, there = threading.Event(), threading.Event()
            ex = cmwq.Executor()
            def hold(): there.set(); gate.wait()
            held = ex.submit(hold); there.wait()
            done = ex.submit(pow, 2, 3); done.result()
            pid = os.fork()
            if pid == 0:
                assert cmwq.snapshot().pools == ()
                assert done.result() == 8
                try:
                    held.result()
                except cmwq.ForeignProcess as exc:
                    assert isinstance(exc, RuntimeError)
                else:
                    os._exit(2)
                assert ex.submit(pow, 2, 4).result(30) == 16
                ex.shutdown()
                os._exit(0)
            print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            gate.set(); held.result(30); print("parent")
        """),
        "0 parent",
    )


def test_G2_forks_under_load_never_hang(python: Python) -> None:
    check(
        python("""
            import cmwq, os, threading, time, warnings
            warnings.simplefilter("ignore", DeprecationWarning)
            stop = threading.Event()
            ex = cmwq.Executor()
            def churn(n):
                time.sleep(0.0001 * (n % 3))
                if not stop.is_set(): ex.submit(churn, n)
            for n in range(30): ex.submit(churn, n)
            bad, end = 0, time.monotonic() + 20
            for _ in range(30):
                if time.monotonic() > end: break  # on a busy machine each of these processes takes long to end
                pid = os.fork()
                if pid == 0:
                    code = 0 if ex.submit(pow, 3, 2).result(30) == 9 else 1
                    os._exit(code)
                bad += os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0
            stop.set()
            print(bad)
        """),
        "0",
    )


def test_G2_a_work_that_forks(python: Python) -> None:
    check(
        python("""
            import cmwq, os, warnings, multiprocessing as mp
            warnings.simplefilter("ignore", DeprecationWarning)
            ex = cmwq.Executor()
            def fork():
                with mp.get_context("fork").Pool(1) as pool:
                    return pool.apply(pow, (2, 5))
            print(*[ex.submit(fork).result(30) for _ in range(3)])
        """),
        "32 32 32",
    )


def test_G4_an_idle_process_does_not_wake_up(python: Python) -> None:
    """No thread of it is switched to for two seconds, after the last work and a grace period."""
    check(
        python(
            UNTIL_QUIET,
            """
            import cmwq, time, concurrent.futures as cf
            ex = cmwq.Executor()
            cf.wait([ex.submit(time.sleep, 0.002) for _ in range(50)])
            time.sleep(2.5)  # what ticks finds out that there is nothing to do, timers linger
            print(*until_quiet())
            """,
        ),
        "True {}",
    )


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="needs Linux")
def test_A1_cpus_of_a_runtime_are_respected(python: Python) -> None:
    check(
        python("""
            import cmwq, os
            cpu = min(os.sched_getaffinity(0))
            with cmwq.Runtime(cpus=[cpu]) as runtime:
                ex = cmwq.Executor(runtime=runtime)
                print(ex.submit(os.sched_getaffinity, 0).result() == {cpu}, runtime.snapshot().pools[0].target)
        """),
        "True 1",
    )
