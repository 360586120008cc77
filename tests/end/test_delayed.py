"""What becomes of delayed works whose time has not come, when their queue ends."""

from __future__ import annotations

import logging
import subprocess
import threading
from collections.abc import Callable

import pytest
from conftest import HANG, Gate
from simulated import simulate_each

import cmwq
from cmwq.testing import Simulation

Python = Callable[..., "subprocess.CompletedProcess[str]"]


def save() -> None:
    """What the works are called in messages."""


LOST = (
    "queue 'q' closes, and delayed works whose time has not come are not run: 3 times save; "
    'a queue made with delayed="run" runs them, with delayed="cancel" it is silent'
)


def a_queue_with_three(runtime: cmwq.Runtime, saved: list[int], **options: str) -> cmwq.WorkQueue:
    queue = cmwq.WorkQueue("q", runtime=runtime, **options)  # type: ignore[arg-type]

    def save() -> None:
        saved.append(1)

    save.__qualname__ = "save"
    for _ in range(3):
        queue.queue_delayed(cmwq.DelayedWork(save), 3600)
    return queue


@pytest.mark.parametrize(
    ("made", "closed", "runs", "says"),
    [
        ({}, {}, 0, [LOST]),
        ({"delayed": "cancel"}, {}, 0, []),
        ({"delayed": "run"}, {}, 3, []),
        ({}, {"delayed": "run"}, 3, []),
        ({}, {"delayed": "cancel"}, 0, []),
        ({"delayed": "run"}, {"delayed": "cancel"}, 0, []),
        ({"delayed": "cancel"}, {"delayed": "run"}, 3, []),
    ],
)
def test_close_runs_or_cancels_them(
    universe: cmwq.Runtime,
    caplog: pytest.LogCaptureFixture,
    made: dict[str, str],
    closed: dict[str, str],
    runs: int,
    says: list[str],
) -> None:
    saved: list[int] = []
    queue = a_queue_with_three(universe, saved, **made)
    with caplog.at_level(logging.WARNING, "cmwq"):
        queue.close(HANG, **closed)  # type: ignore[arg-type]
    assert len(saved) == runs
    assert caplog.messages == says


def test_a_context_manager_and_a_runtimes_close_do_what_the_queue_was_made_to(caplog: pytest.LogCaptureFixture) -> None:
    runtime = cmwq.Runtime()
    saved: list[int] = []
    with a_queue_with_three(runtime, saved, delayed="run"):
        pass
    assert len(saved) == 3
    kept, lost = a_queue_with_three(runtime, saved, delayed="run"), a_queue_with_three(runtime, saved)
    with caplog.at_level(logging.WARNING, "cmwq"):
        runtime.close(HANG)
    assert len(saved) == 6
    assert caplog.messages == [LOST]
    del kept, lost


def test_at_exit_a_debounced_save_is_saved_if_asked_to_and_its_loss_is_told(python: Python) -> None:
    done = python("""
        import cmwq
        ledger = cmwq.WorkQueue("ledger", ordered=True, delayed="run")
        other = cmwq.WorkQueue("other")
        @cmwq.DelayedWork
        def save(): print("saved", flush=True)
        @cmwq.DelayedWork
        def forgotten(): print("wrong", flush=True)
        ledger.mod_delayed(save, 3600)
        ledger.mod_delayed(save, 3600)
        other.queue_delayed(forgotten, 3600)
    """)
    assert (done.stdout, done.returncode) == ("saved\n", 0)
    assert done.stderr.startswith("queue 'other' closes, and delayed works whose time has not come are not run: forgot")
    assert len(done.stderr.splitlines()) == 1


def test_results_of_works_that_are_lost_are_cancelled_and_of_those_that_run_are_there(universe: cmwq.Runtime) -> None:
    for how, cancelled in (("cancel", True), ("run", False)):
        queue = cmwq.WorkQueue("q", runtime=universe)
        work = cmwq.DelayedWork(len, "abc")
        queue.queue_delayed(work, 3600)
        future = queue.submit(work)
        queue.close(HANG, delayed=how)
        assert future.cancelled() is cancelled
        assert cancelled or future.result(HANG) == 3
        assert not work.pending


def test_a_delay_that_begins_while_the_runtime_drains_is_not_lost_silently(caplog: pytest.LogCaptureFixture) -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        queue = cmwq.WorkQueue("q", delayed="run", runtime=runtime)
        saved: list[int] = []

        def collect() -> None:
            sim.sleep(0.01)
            queue.queue_delayed(cmwq.DelayedWork(saved.append, 1), 3600)

        queue.submit(collect)
        runtime.close()
        assert saved == [1]

    simulate_each(scenario, 10)
    assert not caplog.messages


def test_a_close_that_times_out_among_the_last_delayed_works_leaves_the_runtime_open() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        queue = cmwq.WorkQueue("q", delayed="run", runtime=runtime)

        def collect() -> None:
            sim.sleep(0.01)
            queue.queue_delayed(cmwq.DelayedWork(sim.sleep, 1.0), 3600)

        queue.submit(collect)
        with pytest.raises(cmwq.CmwqTimeout):
            runtime.close(0.1)
        assert queue.submit(len, "abc").result() == 3
        assert cmwq.WorkQueue("new", scope="cpu", runtime=runtime).submit(int).result() == 0
        assert queue.queue_delayed(cmwq.DelayedWork(int), 0.01)

    simulate_each(scenario, 5)


def test_a_work_that_waits_elsewhere_stays_there_if_a_closing_queues_own_work_may_not_move_it(
    universe: cmwq.Runtime, gate: Gate
) -> None:
    queue = cmwq.WorkQueue("q", runtime=universe)
    elsewhere = cmwq.WorkQueue("elsewhere", delayed="cancel", runtime=universe)
    work = cmwq.DelayedWork(int)
    elsewhere.queue_delayed(work, 3600)

    def move() -> None:
        gate()
        queue.mod_delayed(work, 3600)

    future = queue.submit(move)
    gate.await_arrivals(1)
    queue.refuse()
    gate.open.set()
    with pytest.raises(cmwq.QueueClosed):
        future.result(HANG)
    assert work.pending
    elsewhere.close(HANG)


def test_what_an_interruption_left_of_a_delay_holds_no_end_up() -> None:
    """It is noted, and its work does not wait for it (F10)."""
    for how in ("cancel", "run"):
        runtime = cmwq.Runtime()
        queue = cmwq.WorkQueue("q", delayed=how, runtime=runtime)
        work = cmwq.DelayedWork(int)
        queue.queue_delayed(work, 3600)
        work._delay = None
        closer = threading.Thread(target=runtime.close, args=(HANG,), daemon=True)
        closer.start()
        closer.join(HANG)
        assert not closer.is_alive()
        assert not queue.delays()


def test_what_delayed_may_be(universe: cmwq.Runtime) -> None:
    with pytest.raises(ValueError, match="queue 'q': delayed 'later' is none of 'cancel', 'run'"):
        cmwq.WorkQueue("q", delayed="later", runtime=universe)
    with pytest.raises(ValueError, match="delayed 'now' is none of"):
        cmwq.WorkQueue("q", runtime=universe).close(delayed="now")


CALLS: dict[str, Callable[[cmwq.WorkQueue, cmwq.DelayedWork], object]] = {
    "submit": lambda queue, work: queue.submit(int),
    "submit a work": lambda queue, work: queue.submit(work),
    "submit_many": lambda queue, work: queue.submit_many(abs, [1]),
    "queue": lambda queue, work: queue.queue(work),
    "queue_on": lambda queue, work: queue.queue_on(0, work),
    "queue_delayed": lambda queue, work: queue.queue_delayed(work, 3600),
    "queue_delayed by nothing": lambda queue, work: queue.queue_delayed(work, 0),
    "mod_delayed": lambda queue, work: queue.mod_delayed(work, 3600),
    "mod_delayed by nothing": lambda queue, work: queue.mod_delayed(work, 0),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("scope", ["system", "cpu"])
@pytest.mark.parametrize("when", ["used", "unused", "made after"])
@pytest.mark.parametrize("pending", [False, True])
def test_after_the_runtimes_close_every_call_that_queues_is_refused(
    universe: cmwq.Runtime, call: str, scope: str, when: str, pending: bool
) -> None:
    runtime = cmwq.Runtime()
    elsewhere = cmwq.WorkQueue("elsewhere", delayed="cancel", runtime=universe)
    work = cmwq.DelayedWork(int)
    if pending:
        elsewhere.queue_delayed(work, 3600)
    if when != "made after":
        queue = cmwq.WorkQueue("q", scope=scope, runtime=runtime)
    if when == "used":
        queue.submit(int).result(HANG)
    runtime.close(HANG)
    if when == "made after":
        queue = cmwq.WorkQueue("q", scope=scope, runtime=runtime)
    with pytest.raises(cmwq.QueueClosed, match="runtime is closed and takes no more work"):
        CALLS[call](queue, work)
    assert work.pending is pending, "what waits elsewhere is left alone"
    elsewhere.close(HANG)
    assert not work.pending
