"""Durations are those of the real clock, also where a test of somebody else has stopped it."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable

import pytest
from conftest import HANG

import cmwq
from cmwq._host import ThreadHost

freezegun = pytest.importorskip("freezegun")
Python = Callable[..., "subprocess.CompletedProcess[str]"]


def test_F8_waits_end_although_the_clock_is_stopped(runtime: cmwq.Runtime) -> None:
    gate = threading.Event()
    queue = cmwq.WorkQueue("frozen", runtime=runtime)
    try:
        with freezegun.freeze_time("2026-11-26"):
            assert time.monotonic() == time.monotonic()
            held = queue.submit(gate.wait, HANG)
            with pytest.raises(cmwq.CmwqTimeout):
                held.result(0.01)
            with pytest.raises(cmwq.CmwqTimeout):
                queue.flush(0.01)
    finally:
        gate.set()
    assert held.result(HANG)


def test_F9_timers_go_on_although_the_clock_is_stopped(runtime: cmwq.Runtime) -> None:
    done = threading.Event()
    queue = cmwq.WorkQueue("frozen", runtime=runtime)
    with freezegun.freeze_time("2026-11-26"):
        assert queue.queue_delayed(cmwq.DelayedWork(done.set), 0.01)
        assert done.wait(HANG)


def test_A4_sleepers_are_noticed_although_the_clock_is_stopped(runtime: cmwq.Runtime) -> None:
    """One for each CPU sleeps until one behind them runs."""
    gate = threading.Event()
    queue = cmwq.WorkQueue("frozen", runtime=runtime)
    with freezegun.freeze_time("2026-11-26"):
        asleep = [queue.submit(gate.wait, HANG) for _ in range(2 * len(runtime.cpus()))]
        queue.submit(gate.set).result(HANG)
        assert all(future.result(HANG) for future in asleep)


def test_what_is_imported_while_the_clock_is_stopped_uses_the_real_one(python: Python) -> None:
    done = python("""
        import freezegun, threading
        with freezegun.freeze_time("2026-11-26"):
            import cmwq
            gate = threading.Event()
            held = cmwq.system.submit(gate.wait)
            try:
                held.result(0.01)
            except TimeoutError:
                print("timed out")
            gate.set()
    """)
    assert (done.stdout, done.stderr, done.returncode) == ("timed out\n", "", 0)


def test_it_is_the_clock_of_the_standard_library() -> None:
    before = time.monotonic()
    now = ThreadHost().monotonic()
    assert before <= now <= time.monotonic()
