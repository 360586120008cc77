"""E13: works at a fixed rate."""

from __future__ import annotations

import contextvars
import math
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from conftest import HANG, Gate
from simulated import simulate, simulate_each

import cmwq
from cmwq._workqueue.periodic import FixedRate
from cmwq.testing import Simulation

CALM = cmwq.Config(cpu_intensive_thresh=0)


def hold_timers(sim: Simulation, seconds: float) -> None:
    """On the timers' thread: nobody else's timer is served meanwhile."""
    until = sim.host.now + seconds
    while sim.host.now < until:
        sim.host.sleep(until - sim.host.now)  # a timer that comes due wakes the thread


def test_E13_a_thousand_periods_without_drift() -> None:
    """Each execution takes a while, and each begins when it is due, to the last bit that a float has."""
    begun: list[float] = []

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime)

        def body() -> None:
            begun.append(sim.host.now)
            sim.sleep(0.03 * (len(begun) % 3))

        work = cmwq.PeriodicWork(body)
        assert wq.queue_periodic(work, 0.1, first=0.05)
        sim.sleep(0.05 + 999.5 * 0.1)
        assert work.missed == 0
        assert work.cancel()

    simulate(scenario, config=CALM)
    assert len(begun) == 1000
    for n, when in enumerate(begun):
        assert when == pytest.approx(0.05 + n * 0.1, abs=1e-9)


def test_E13_one_that_begins_late_does_not_move_the_later_ones() -> None:
    """Something else has the timer's thread for a moment, again and again."""
    begun: list[float] = []

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime)
        work = cmwq.PeriodicWork(lambda: begun.append(sim.host.now))
        wq.queue_periodic(work, 1.0)
        for n in range(100):
            sim.host.call_later(3 * n + 2.75, partial(hold_timers, sim, 0.5))
        sim.sleep(300.5)
        assert work.missed == 0
        work.cancel()

    simulate(scenario)
    late = [n for n in range(1, 301) if n % 3 == 0]
    assert begun == [n + 0.25 if n in late else n for n in range(1, 301)]


def test_E13_several_times_that_have_come_at_once_are_one_execution() -> None:
    """As after a process was stopped: here the timer's thread was."""

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime)
        work = cmwq.PeriodicWork(lambda: sim.note(f"{work.missed}"))
        wq.queue_periodic(work, 1.0)
        sim.host.call_later(1.5, partial(hold_timers, sim, 5.25))
        sim.sleep(8.5)
        work.cancel()

    assert simulate(scenario).log == [(1000, "0"), (6750, "4"), (7000, "4"), (8000, "4")]


def test_E13_a_time_that_comes_while_it_runs_is_missed_and_not_made_up_for() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime)
        durations = iter([0.25, 1.9, 3.4, 0.0, 0.0])

        def body() -> None:
            sim.note(f"{work.missed}")
            sim.sleep(next(durations))

        work = cmwq.PeriodicWork(body)
        wq.queue_periodic(work, 1.0)
        sim.sleep(9.5)
        assert work.missed == 4
        work.cancel()

    assert simulate(scenario, config=CALM).log == [(1000, "0"), (2000, "0"), (4000, "1"), (8000, "4"), (9000, "4")]


def test_E13_missed_are_those_that_led_to_no_execution() -> None:
    """Whatever the durations and whoever comes first: beats that passed = executions + missed."""

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", max_active=1, runtime=runtime)
        executions = 0

        def body() -> None:
            nonlocal executions
            executions += 1
            sim.sleep(0.0007 * (executions % 5))

        work = cmwq.PeriodicWork(body)
        wq.queue_periodic(work, 0.001)
        for _ in range(10):
            wq.submit(sim.sleep, 0.0013)
        sim.sleep(0.0305)
        work.cancel()  # what was queued and is taken back here was no miss
        wq.flush()
        beats = 30
        assert beats - 1 <= executions + work.missed <= beats
        assert executions
        assert work.missed

    simulate_each(scenario, 40, cpus=2)


@pytest.mark.parametrize("first", [None, 0, -5, 2.5])
def test_E13_the_first_time(first: float | None) -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime)
        work = cmwq.PeriodicWork(sim.note, "ran")
        wq.queue_periodic(work, 1.0, first)
        sim.sleep(3.9)
        work.cancel()

    begins = 1.0 if first is None else max(0.0, first)
    expected = [1000 * (begins + n) for n in range(4) if begins + n < 3.9]
    assert [when for when, _ in simulate(scenario).log] == expected


def test_E13_it_is_pending_from_its_queueing_to_its_end() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime)
        work = cmwq.PeriodicWork(sim.note, "ran")
        assert wq.queue(work), "once, like any work"
        assert not wq.queue_periodic(work, 1.0), "it is pending"
        wq.flush()
        assert not work.pending
        assert wq.queue_periodic(work, 1.0)
        for _ in range(3):
            assert work.pending
            assert not wq.queue_periodic(work, 0.1), "it goes on as it was"
            assert not wq.queue(work), "an execution is to come"
            sim.sleep(1.0)
        assert work.cancel()
        assert not work.pending
        assert not work.cancel()
        sim.sleep(3.0)
        assert wq.queue_periodic(work, 2.0), "and again, with another period"
        sim.sleep(2.5)
        work.cancel()

    assert [when for when, _ in simulate(scenario).log] == [0, 1000, 2000, 3000, 8000]


def test_E13_requeued_by_itself_while_it_runs() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime)

        def body() -> None:
            sim.note(f"{wq.queue(work)}")

        work = cmwq.PeriodicWork(body)
        wq.queue_periodic(work, 1.0)
        sim.sleep(2.5)
        work.cancel()
        wq.flush()

    assert simulate(scenario).log == [(1000, "False"), (2000, "False")]


@pytest.mark.parametrize("stop", ["cancel", "cancel_sync", "disable", "disable_sync"])
def test_E13_whatever_takes_it_back_stops_it(stop: str) -> None:
    """Between two executions, while it waits for a worker, and while it runs."""

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        for phase in ("between", "listed", "running"):
            wq = cmwq.WorkQueue("q", max_active=1, runtime=runtime)
            work = cmwq.PeriodicWork(lambda: (sim.note("begun"), sim.sleep(0.5), sim.note("ended")))
            wq.queue_periodic(work, 1.0)
            if phase == "listed":
                wq.submit(sim.sleep, 1.25)
            sim.sleep({"between": 0.9, "listed": 1.1, "running": 1.2}[phase])
            assert getattr(work, stop)(), phase
            assert not work.pending
            if stop.endswith("sync"):
                assert not work.running
            assert work.disabled == stop.startswith("disable")
            sim.sleep(5.0)
            assert not work.running
            names = [name for _, name in sim.log]
            assert names == (["begun", "ended"] if phase == "running" else []), phase
            sim.log.clear()
            assert wq.queue_periodic(work, 1.0) is not work.disabled
            work.cancel()

    simulate(scenario, config=CALM)


def test_E13_its_own_function_may_stop_it_but_not_wait_for_it() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime)

        def body() -> None:
            sim.note("ran")
            with pytest.raises(cmwq.FlushDeadlock):
                work.cancel_sync()
            assert not work.pending, "taken back all the same"

        work = cmwq.PeriodicWork(body)
        wq.queue_periodic(work, 1.0)
        sim.sleep(5.0)
        work = cmwq.PeriodicWork(lambda: (sim.note("ran"), work.cancel()))
        wq.queue_periodic(work, 1.0)
        sim.sleep(5.0)

    assert [when for when, _ in simulate(scenario).log] == [1000, 6000]


def test_E13_F2_flush_waits_for_the_execution_that_is_due_and_no_other() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime)
        work = cmwq.PeriodicWork(sim.sleep, 0.5)
        wq.queue_periodic(work, 1.0)
        assert not work.flush(), "nothing runs, and what is to come is not waited for"
        assert sim.host.now == 0
        sim.sleep(1.25)
        assert work.flush()
        assert sim.host.now == 1.5
        assert not work.flush()
        sim.sleep(0.75)
        wq.flush()
        assert sim.host.now == 2.5
        work.cancel()

    simulate(scenario, config=CALM)


def test_E13_what_it_raises_is_told_and_it_goes_on() -> None:
    failures: list[str] = []

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", on_error=lambda work, exc: failures.append(repr(exc)), runtime=runtime)

        def body() -> None:
            sim.note("ran")
            raise [ValueError(1), SystemExit(2), KeyboardInterrupt()][len(sim.log) - 1]

        work = cmwq.PeriodicWork(body)
        wq.queue_periodic(work, 1.0)
        sim.sleep(3.5)
        assert work.pending
        work.cancel()

    simulate(scenario)
    assert failures == ["ValueError(1)", "SystemExit(2)", "KeyboardInterrupt()"]


def test_E13_close_ends_it_after_what_is_due() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", max_active=1, runtime=runtime)
        work = cmwq.PeriodicWork(sim.note, "ran")
        wq.queue_periodic(work, 1.0)
        sim.sleep(0.5)
        wq.submit(sim.sleep, 1.0)
        sim.sleep(0.75)
        wq.close()
        assert not work.pending
        sim.sleep(5.0)
        with pytest.raises(cmwq.QueueClosed):
            wq.queue_periodic(work, 1.0)
        other = sim.runtime(config=CALM)
        lasting = cmwq.PeriodicWork(sim.note, "lasting")
        cmwq.WorkQueue("other", runtime=other).queue_periodic(lasting, 1.0)
        sim.sleep(1.5)
        other.close()
        assert not lasting.pending
        sim.sleep(5.0)

    assert simulate(scenario, config=CALM).log == [(1500, "ran"), (7500, "lasting")]


def test_E13_a_drain_is_no_end_and_has_one() -> None:
    """Times that come while the queue drains are missed; then it goes on, in its old rhythm."""

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime)
        work = cmwq.PeriodicWork(sim.note, "ran")
        wq.queue_periodic(work, 1.0)
        sim.sleep(0.5)
        wq.submit(sim.sleep, 3.0)
        wq.drain()
        assert sim.host.now == 3.5
        assert (work.missed, work.pending) == (3, True)
        sim.sleep(1.0)
        work.cancel()

    assert [when for when, _ in simulate(scenario, config=CALM).log] == [4000]


def test_E13_E8_what_is_due_while_frozen_is_carried_out_once() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", freezable=True, runtime=runtime)
        work = cmwq.PeriodicWork(sim.note, "ran")
        wq.queue_periodic(work, 1.0)
        runtime.freeze()
        sim.sleep(3.5)
        runtime.thaw()
        sim.sleep(1.0)
        assert work.missed == 2
        work.cancel()

    assert [when for when, _ in simulate(scenario, config=CALM).log] == [3500, 4000]


def test_E13_submitted_it_tells_the_result_of_the_next_execution() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime)
        work = cmwq.PeriodicWork(lambda: sim.host.now)
        wq.queue_periodic(work, 1.0)
        first = wq.submit(work)
        sim.sleep(0.5)
        assert first.result() == 1.0
        second, third = wq.submit(work), wq.submit(work)
        assert (second.result(), third.result()) == (2.0, 2.0)
        last = wq.submit(work)
        work.cancel()
        assert last.cancelled()
        slow = cmwq.PeriodicWork(lambda: sim.sleep(0.5) or "slept")
        wq.queue_periodic(slow, 1.0)
        running = wq.submit(slow)
        sim.sleep(1.25)
        assert slow.cancel()
        assert running.result() == "slept", "what ran went on, and is told"

    simulate(scenario)


def test_E13_each_execution_has_a_context_of_its_own() -> None:
    var: contextvars.ContextVar[int] = contextvars.ContextVar("var", default=0)
    seen: list[int] = []

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime)

        def body() -> None:
            seen.append(var.get())
            var.set(99)

        var.set(7)
        work = cmwq.PeriodicWork(body)
        wq.queue_periodic(work, 1.0)
        sim.sleep(3.5)
        work.cancel()

    contextvars.copy_context().run(simulate, scenario)
    assert seen == [7, 7, 7]


def test_E13_F5_it_is_stopped_in_the_moment_at_which_it_is_due() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime)
        running = 0

        def body() -> None:
            nonlocal running
            running += 1
            sim.sleep(0.0002)
            running -= 1

        work = cmwq.PeriodicWork(body)
        for _ in range(5):
            assert wq.queue_periodic(work, 0.001, first=0)
            sim.sleep(0.002)
            work.cancel_sync()
            assert (running, work.pending, work.running) == (0, False, False)
            sim.sleep(0.005)
            assert (running, work.pending) == (0, False)

    simulate_each(scenario, 60, cpus=2)


def test_E13_arguments_are_checked(universe: cmwq.Runtime) -> None:
    wq = cmwq.WorkQueue("q", runtime=universe)
    work = cmwq.PeriodicWork(int)
    bad: list[tuple[type[Exception], tuple[Any, ...]]] = [
        (TypeError, (cmwq.Work(int), 1.0)),
        (TypeError, (cmwq.DelayedWork(int), 1.0)),
        (TypeError, (work, "1")),
        (TypeError, (work, None)),
        (TypeError, (work, True)),
        (ValueError, (work, 0)),
        (ValueError, (work, -1.0)),
        (ValueError, (work, 0.0009)),
        (ValueError, (work, math.nan)),
        (ValueError, (work, math.inf)),
        (TypeError, (work, 1.0, "1")),
        (ValueError, (work, 1.0, math.nan)),
        (ValueError, (work, 1.0, math.inf)),
    ]
    for error, arguments in bad:
        with pytest.raises(error, match="must be"):
            wq.queue_periodic(*arguments)
    for call in (wq.queue_delayed, wq.mod_delayed):
        with pytest.raises(TypeError, match="only a DelayedWork can be delayed"):
            call(work, 1.0)  # type: ignore[arg-type]
    assert not work.pending
    assert not universe.snapshot().pools, "and nothing was started"


def test_E13_on_the_real_clock(universe: cmwq.Runtime) -> None:
    wq = cmwq.WorkQueue("q", runtime=universe)
    begun: list[float] = []
    enough = threading.Event()

    def body() -> None:
        begun.append(time.monotonic())
        if len(begun) == 20:
            work.cancel()
            enough.set()

    work = cmwq.PeriodicWork(body)
    before = time.monotonic()
    assert wq.queue_periodic(work, 0.005, first=0.01)
    assert enough.wait(HANG)
    wq.flush(HANG)
    assert len(begun) == 20
    assert all(when >= before + 0.01 + n * 0.005 for n, when in enumerate(begun)), "never before its time"


def test_E13_slow_works_on_real_threads(universe: cmwq.Runtime, gate: Gate) -> None:
    wq = cmwq.WorkQueue("q", runtime=universe)
    work = cmwq.PeriodicWork(gate)
    wq.queue_periodic(work, 0.001)
    gate.await_arrivals(1)
    deadline = time.monotonic() + HANG
    while work.missed < 10:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert not gate.arrived.acquire(blocking=False), "it never runs twice at once"
    gate.open.set()
    work.cancel_sync(HANG)


@pytest.mark.parametrize("step", ["_latest_due", "_try_to_queue", "insert", "_wait_for_next"])
def test_E13_F10_what_is_raised_on_the_timers_thread_does_not_end_it(
    universe: cmwq.Runtime, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    original = getattr(FixedRate, step)
    failures = iter([False, True, False, False, True])

    def fails(*args: object, **kwargs: object) -> object:
        if next(failures, False):
            raise MemoryError
        return original(*args, **kwargs)

    monkeypatch.setattr(FixedRate, step, fails)
    ran = threading.Semaphore(0)
    work = cmwq.PeriodicWork(ran.release)
    cmwq.WorkQueue("q", runtime=universe).queue_periodic(work, 0.005)
    for _ in range(10):
        assert ran.acquire(timeout=HANG)
    assert next(failures, None) is None
    work.cancel_sync(HANG)
    assert not work.pending


def test_E13_G3_due_in_a_queue_that_closes_it_ends_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    """Whoever closes a queue first lets it refuse works, and then stops what is periodic: the timer comes between."""
    begun: list[float] = []

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime)
        work = cmwq.PeriodicWork(lambda: begun.append(sim.host.now))
        assert wq.queue_periodic(work, 1.0)
        sim.sleep(1.5)
        wq.refuse()
        sim.sleep(1.0)
        assert not work.pending
        wq.close()

    simulate(scenario)
    assert begun == [1.0]
    assert caplog.messages == []


def test_E13_G3_exit_ends_it(python: Callable[..., Any]) -> None:
    done = python(
        """
        import cmwq, threading
        ran = threading.Event()
        work = cmwq.PeriodicWork(ran.set)
        cmwq.system.queue_periodic(work, 0.001)
        assert ran.wait(60)
        print("end of main")
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "end of main\n", "")


def test_E13_G2_a_forked_child_has_none(python: Callable[..., Any]) -> None:
    done = python(
        """
        import cmwq, os, time, warnings
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks with threads
        pids = set()
        def body():
            pids.add(os.getpid())  # and no lock of the program, which a worker might hold at a fork
        def wait_for_it():
            while not pids:
                time.sleep(0.001)
        work = cmwq.PeriodicWork(body)
        cmwq.system.queue_periodic(work, 0.002)
        wait_for_it()
        for _ in range(5):
            pid = os.fork()
            if not pid:
                assert not work.pending and not work.missed
                pids.clear()
                assert cmwq.system.queue_periodic(work, 0.002)
                wait_for_it()
                assert work.cancel_sync()
                cmwq.system.flush()
                os._exit(7)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        assert work.cancel_sync()
        assert pids == {os.getpid()}
        print("done")
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_E13_a_process_that_was_stopped_makes_nothing_up_for(python: Callable[..., Any]) -> None:
    """In the child: 200 times and more are due while it is stopped; one execution follows."""
    done = python(
        """
        import cmwq, os, signal, subprocess, sys, threading, time
        begun, ran = [], threading.Semaphore(0)
        def body():
            begun.append(time.monotonic())
            ran.release()
        work = cmwq.PeriodicWork(body)
        cmwq.system.queue_periodic(work, 0.005)
        assert ran.acquire(timeout=60)
        helper = subprocess.Popen([sys.executable, "-c", '''
        import os, signal, time
        os.kill(PID, signal.SIGSTOP)
        time.sleep(3)
        os.kill(PID, signal.SIGCONT)
        '''.replace("PID", str(os.getpid())).replace("\\n        ", "\\n")])
        helper.wait()
        while work.missed < 200:  # the timer's thread may get to its CPU after this one
            time.sleep(0.001)
        n = len(begun)
        while len(begun) < n + 3:
            time.sleep(0.001)
        work.cancel_sync()
        gap = max(range(1, len(begun)), key=lambda n: begun[n] - begun[n - 1])
        assert begun[gap] - begun[gap - 1] > 1
        after = begun[gap:]
        assert len(after) <= (after[-1] - after[0]) / 0.005 + 50, after  # 600 were missed; a few may come late
        print("done")
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
