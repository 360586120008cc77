"""G3: calls that queue themselves again. No end waits for them for ever."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable

import pytest
from conftest import HANG, Gate

import cmwq

Python = Callable[..., "subprocess.CompletedProcess[str]"]


def check(done: subprocess.CompletedProcess[str], out: str, err: str = "") -> None:
    assert (done.stdout, done.stderr, done.returncode) == (out, err, 0)


@pytest.mark.parametrize("cancel", [False, True])
def test_an_executors_shutdown_refuses_its_own_calls_submits(universe: cmwq.Runtime, cancel: bool) -> None:
    executor = cmwq.Executor(runtime=universe)
    refusals: list[BaseException] = []
    began = threading.Event()

    def poll() -> None:
        began.set()
        try:
            executor.submit(poll)
        except RuntimeError as exc:
            refusals.append(exc)

    executor.submit(poll)
    assert began.wait(HANG)
    ender = threading.Thread(target=executor.shutdown, kwargs={"cancel_futures": cancel}, daemon=True)
    ender.start()
    ender.join(HANG)
    assert not ender.is_alive()
    assert cancel or len(refusals) == 1
    for refusal in refusals:
        assert isinstance(refusal, cmwq.QueueClosed)
        assert str(refusal).startswith("cannot schedule new futures after shutdown")


def test_F3_the_lease_of_an_executor_that_drains_lets_chained_calls_through(universe: cmwq.Runtime, gate: Gate) -> None:
    executor = cmwq.Executor(runtime=universe)

    def parent() -> cmwq.Future[int]:
        gate()
        return executor.submit(len, "child")

    future = executor.submit(parent)
    gate.await_arrivals(1)
    drainer = threading.Thread(target=executor.queue.drain, args=(HANG,))
    drainer.start()
    while executor.queue.is_open:
        cmwq.WorkQueue("other", runtime=universe).submit(int).result(HANG)
    gate.open.set()
    drainer.join(HANG)
    assert future.result(HANG).result(HANG) == 5
    assert executor.submit(len, "open again").result(HANG) == 10


def test_F3_a_queue_that_closes_lets_chained_works_through(universe: cmwq.Runtime, gate: Gate) -> None:
    queue = cmwq.WorkQueue("q", runtime=universe)
    done: list[int] = []

    def chain(left: int) -> None:
        gate()
        done.append(left)
        if left:
            queue.submit(chain, left - 1)

    queue.submit(chain, 3)
    gate.await_arrivals(1)
    closer = threading.Thread(target=queue.close, args=(HANG,))
    closer.start()
    while queue.is_open:
        cmwq.WorkQueue("other", runtime=universe).submit(int).result(HANG)
    gate.open.set()
    closer.join(HANG)
    assert done == [3, 2, 1, 0]


def test_at_exit_an_executors_calls_are_refused_in_the_standard_librarys_words(python: Python) -> None:
    done = python("""
        import cmwq, threading
        executor = cmwq.Executor()
        def poll():
            try:
                executor.submit(poll)
            except RuntimeError as exc:
                print("cannot schedule new futures after" in str(exc), "shutdown" in str(exc), flush=True)
        executor.submit(poll)
    """)
    check(done, "True True\n")


def test_at_exit_a_work_of_a_named_queue_that_queues_itself_for_ever_is_refused_after_the_grace(python: Python) -> None:
    done = python("""
        import cmwq, time
        cmwq.configure(exit_grace=1)
        queue = cmwq.WorkQueue("poller")
        def poll():
            time.sleep(0.01)
            try:
                queue.submit(poll)
            except RuntimeError as exc:
                print(exc, flush=True)
        queue.submit(poll)
        cmwq.system.submit(time.sleep, 1.2)  # it is no chain: nothing is said of it
    """)
    check(
        done,
        "queue 'poller': its runtime ended with the interpreter: "
        "cannot schedule new futures after interpreter shutdown\n",
        "works of queue 'poller' still queue new ones 1 s after the interpreter was to end: refused from now on\n",
    )


def test_at_exit_a_work_may_not_queue_to_another_queue(python: Python) -> None:
    done = python("""
        import cmwq, threading
        other = cmwq.WorkQueue("other")
        def work():
            while other.is_open: pass
            for queue in other, cmwq.WorkQueue("new"):
                try:
                    queue.submit(print, "lost?")
                except cmwq.QueueClosed:
                    print("refused", flush=True)
        cmwq.system.submit(work)
    """)
    check(done, "refused\nrefused\n")
