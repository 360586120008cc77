"""An end that is bounded: what hangs is left behind, by name, and whoever waits for it is told."""

from __future__ import annotations

import logging
import subprocess
import threading
from collections.abc import Callable

import pytest
from conftest import HANG, Gate

import cmwq

Python = Callable[..., "subprocess.CompletedProcess[str]"]


def told(call: Callable[[], object]) -> tuple[threading.Thread, list[BaseException]]:
    """Call it on a thread of its own; what it raises, once that has ended."""
    raised: list[BaseException] = []

    def body() -> None:
        try:
            call()
        except BaseException as exc:
            raised.append(exc)

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    return thread, raised


def test_at_exit_what_hangs_is_left_behind_by_name_and_the_process_ends(python: Python) -> None:
    done = python("""
        import cmwq, threading, time
        cmwq.configure(exit_timeout=3)
        began = threading.Semaphore(0)
        def hang(): began.release(); threading.Event().wait()
        hanging = cmwq.system.submit(hang)
        def need():
            began.release()
            hanging.result()
        cmwq.system_long.submit(need)
        cmwq.system_percpu.queue(cmwq.Work(hang))
        one = cmwq.WorkQueue("one", ordered=True)
        one.submit(hang)
        one.submit(int); one.submit(int); one.submit(len, "")
        for _ in range(4): began.acquire()
    """)
    assert (done.stdout, done.returncode) == ("", 0)
    lines = [line for line in done.stderr.splitlines() if not line.startswith(" ")]
    after = "3 s after its runtime was to end"
    assert len(lines) == 5
    assert f"3 works of queue 'one' are cancelled: they had not begun {after}: 2 times int, len" in lines
    for name in (
        "call hang of queue 'system'",
        "call hang of queue 'one'",
        "work hang of queue 'system_percpu'",
        "call need of queue 'system_long'",
    ):
        assert sum(line.startswith(f"{name} is abandoned: it had not ended {after}; ") for line in lines) == 1
    assert "it waits for the result of call hang of queue 'system'" in done.stderr
    assert "in hang" in done.stderr, "and where it is"


def test_at_exit_an_end_in_time_is_as_without_a_limit(python: Python) -> None:
    done = python("""
        import cmwq, time
        cmwq.configure(exit_timeout=60)
        cmwq.system.submit(lambda: (time.sleep(0.1), print("done", flush=True)))
    """)
    assert (done.stdout, done.stderr, done.returncode) == ("done\n", "", 0)


@pytest.mark.parametrize(
    "wait",
    [
        "future.result()",
        "future.result(timeout=1000)",
        "cf.wait([future]); future.result()",
        "queue.flush()",
        "queue.close()",
        "executor.shutdown()",
        "work.flush()",
        "work.cancel_sync()",
        "batch.results()",
        "cmwq.default_runtime().close()",
    ],
)
def test_at_exit_threads_that_wait_for_what_hangs_hold_nobody_up(python: Python, wait: str) -> None:
    """They aren't daemons: the interpreter waits for them."""
    done = python(f"""
        import cmwq, threading, concurrent.futures as cf
        cmwq.configure(exit_timeout=2)
        began = threading.Semaphore(0)
        def hang(): began.release(); threading.Event().wait()
        executor, queue, work = cmwq.Executor(), cmwq.WorkQueue("q"), cmwq.Work(hang)
        batch = cmwq.Batch(queue)
        future = executor.submit(hang); batch.submit(hang); queue.queue(work)
        for _ in range(3): began.acquire()
        def wait():
            try:
                began.release()
                {wait}
            except cmwq.Abandoned as exc:
                print("told", flush=True)
        threading.Thread(target=wait).start()
        began.acquire()
    """)
    assert (done.stdout, done.returncode) == ("told\n", 0), done.stderr


def test_a_work_that_hangs_on_a_rescuer_is_left_behind_too(python: Python) -> None:
    done = python("""
        import cmwq, threading
        from cmwq._host import ThreadHost
        from cmwq import ThreadLimit
        class Poor(ThreadHost):
            def spawn(self, name, *args):
                if name.startswith("cmwq/u"): raise ThreadLimit("no")
                return super().spawn(name, *args)
        runtime = cmwq.Runtime(host=Poor(), exit_timeout=0.3)
        queue = cmwq.WorkQueue("q", rescuer=True, runtime=runtime)
        began = threading.Event()
        def hang(): began.set(); threading.Event().wait()
        queue.submit(hang); queue.submit(int)
        began.wait()
    """)
    assert done.returncode == 0
    assert (
        "1 works of queue 'q' are cancelled: they had not begun 0.3 s after its runtime was to end: int" in done.stderr
    )
    assert "call hang of queue 'q' is abandoned: it had not ended 0.3 s after" in done.stderr


def test_a_runtime_that_is_closed_and_abandons(caplog: pytest.LogCaptureFixture, gate: Gate) -> None:
    runtime = cmwq.Runtime()
    queue = cmwq.WorkQueue("q", max_active=2, runtime=runtime)
    work = cmwq.Work(gate)
    queue.queue(work)
    hangs, waits = queue.submit(gate), queue.submit(int)
    gate.await_arrivals(2)
    queue.queue(work)  # behind its running self
    of_work = queue.submit(work)
    waiting = [told(hangs.result), told(queue.flush), told(work.flush), told(lambda: runtime.close(None))]
    with caplog.at_level(logging.WARNING, "cmwq"):
        runtime.close(3, abandon=True)
    for thread, raised in waiting:
        thread.join(HANG)
        assert [type(exc) for exc in raised] == [cmwq.Abandoned]
    assert waits.cancelled()
    assert of_work.cancelled()
    assert isinstance(hangs.exception(0), cmwq.Abandoned)
    assert len(caplog.messages) == 3
    with pytest.raises(cmwq.QueueClosed, match="its runtime is closed"):
        queue.submit(int)
    runtime.close(HANG)  # harmless
    # What was left behind ends some time; then nothing is left of it.
    gate.open.set()
    for pool in runtime.pools():
        for worker in list(pool.workers):
            assert worker.thread is not None
            worker.thread.join(HANG)
        assert not pool.workers
    assert isinstance(hangs.exception(0), cmwq.Abandoned)
    assert len(caplog.messages) == 3


def test_a_close_whose_time_is_over_leaves_the_runtime_open(universe: cmwq.Runtime, gate: Gate) -> None:
    queue = cmwq.WorkQueue("q", runtime=universe)
    hangs = queue.submit(gate)
    gate.await_arrivals(1)
    with pytest.raises(cmwq.CmwqTimeout, match=r"close of a runtime: works still there after 0\.01 s"):
        universe.close(0.01)
    assert queue.submit(len, "abc").result(HANG) == 3
    assert cmwq.WorkQueue("another", scope="cpu", runtime=universe).submit(int).result(HANG) == 0
    assert not hangs.done()


def test_a_close_that_is_interrupted_leaves_the_runtime_open(universe: cmwq.Runtime, gate: Gate) -> None:
    queue = cmwq.WorkQueue("q", delayed="run", runtime=universe)
    queue.queue_delayed(cmwq.DelayedWork(gate), 3600)

    class Interrupted(BaseException):
        pass

    def interrupt(_: cmwq.WorkQueue) -> None:
        raise Interrupted

    universe.begin_to_close()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cmwq._workqueue.end.end_delays", interrupt)
        with pytest.raises(Interrupted):
            universe.close()
    assert queue.queue_delayed(cmwq.DelayedWork(int), 3600)
    gate.open.set()
    queue.close(HANG)


@pytest.mark.parametrize("ends", ["result", "raises"])
def test_a_future_that_was_abandoned_stays_so(ends: str) -> None:
    gate = Gate()
    runtime = cmwq.Runtime()

    def work() -> int:
        gate()
        if ends == "raises":
            raise LookupError
        return 7

    future = cmwq.WorkQueue("q", runtime=runtime).submit(work)
    calls: list[object] = []
    future.add_done_callback(calls.append)
    gate.await_arrivals(1)
    runtime.close(0, abandon=True)
    assert calls == [future]
    (worker,) = [w for pool in runtime.pools() for w in pool.workers if w.item is future]
    gate.open.set()
    assert worker.thread is not None
    worker.thread.join(HANG)
    assert isinstance(future.exception(0), cmwq.Abandoned)
    assert calls == [future]
