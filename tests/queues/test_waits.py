"""F8: every wait takes a timeout, and Ctrl-C interrupts it in the main thread."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest
from conftest import HANG, Gate
from interrupted.whole import until

import cmwq


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda s: s.future.result(0.01), "no result within 0.01 s: <cmwq.Future running of queue 'q'>"),
        (lambda s: s.future.exception(0.01), "no result within 0.01 s: <cmwq.Future running of queue 'q'>"),
        (lambda s: s.wq.flush(0.01), "flush of queue 'q': 2 works still there after 0.01 s"),
        (lambda s: s.wq.drain(0.01), "drain of queue 'q': 2 works still there after 0.01 s"),
        (lambda s: s.wq.close(0.01), "close of queue 'q': 2 works still there after 0.01 s"),
        (lambda s: s.work.flush(0.01), "flush: <cmwq.Work Gate object running> did not end after 0.01 s"),
        (lambda s: s.work.cancel_sync(0.01), "cancel_sync: <cmwq.Work Gate object running> did not end after 0.01 s"),
        (lambda s: s.work.disable_sync(0.01), "disable_sync: <cmwq.Work Gate object running disabled> did not end"),
        (lambda s: s.batch.wait(0.01), "a batch of 1 calls did not end after 0.01 s"),
        (lambda s: s.batch.results(0.01), "a batch of 1 calls did not end after 0.01 s"),
        (lambda s: s.runtime.freeze(0.01), "freeze: works of freezable queues still run after 0.01 s"),
        (lambda s: s.runtime.close(0.01), "close of a runtime: works still there after 0.01 s"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_F8_a_timeout_is_kept_and_says_what_was_not_done(
    universe: cmwq.Runtime, call: Callable[[Stuck], object], said: str
) -> None:
    stuck = Stuck(universe)
    try:
        with pytest.raises(cmwq.CmwqTimeout) as caught:
            call(stuck)
        # A work is called by its name, whatever else is said of it.
        assert said in str(caught.value)
        assert isinstance(caught.value, TimeoutError)
        with pytest.raises(cmwq.CmwqTimeout):
            stuck.wq.flush(0)
    finally:
        stuck.gate.open.set()
    stuck.wq.flush(HANG)
    assert stuck.future.done()


class Stuck:
    """A queue that runs a call and a work until the gate opens."""

    def __init__(self, runtime: cmwq.Runtime) -> None:
        self.runtime = runtime
        self.gate = Gate()
        self.wq = cmwq.WorkQueue("q", freezable=True, runtime=runtime)
        self.batch = cmwq.Batch(self.wq)
        self.future = self.batch.submit(self.gate)
        self.work = cmwq.Work(self.gate)
        self.wq.queue(self.work)
        self.gate.await_arrivals(2)


def test_F8_a_wait_in_a_work_times_out_too(runtime: cmwq.Runtime, gate: Gate) -> None:
    wq = cmwq.WorkQueue("q", max_active=1, runtime=runtime)
    other = cmwq.WorkQueue("other", runtime=runtime)
    other.submit(gate)
    gate.await_arrivals(1)

    def waits() -> str:
        with pytest.raises(cmwq.CmwqTimeout, match="'other'"):
            other.flush(0.01)
        return "told"

    assert wq.submit(waits).result(HANG) == "told"
    wq.flush(HANG)
    view = next(queue for queue in runtime.snapshot().queues if queue.name == "q")
    assert (view.active, view.inactive) == (0, 0)


ASLEEP = """
    import os
    def asleep():
        with open(f"/proc/self/task/{os.getpid()}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "S"
"""
"""Part of a program: whether the main thread sleeps."""


def test_however_many_wait_for_a_result_each_is_woken_when_it_is_there(universe: cmwq.Runtime, gate: Gate) -> None:
    """Whoever wakes looks at once, and without any lock: one that found nothing would rest for good."""
    found: list[bool] = []

    class Looks:
        def park(self, timeout: float = -1, spins: bool = False, /) -> bool:
            raise NotImplementedError

        def unpark(self) -> None:
            found.append(future.done())

    wq = cmwq.WorkQueue("q", runtime=universe)
    future = wq.submit(gate)
    assert all(future.attach(Looks()) for _ in range(20))  # more than a lock remembers until it is free
    gate.open.set()
    future.result(HANG)
    until(lambda: len(found) == 20, HANG, lambda: f"{len(found)} of 20 are told")  # the first when the lock is free
    assert found == [True] * 20


@pytest.mark.parametrize("wait", ["stuck.result()", "concurrent.futures.wait([stuck])"])
@pytest.mark.parametrize("twin", ["1", "0"])
def test_F8_ctrl_c_interrupts_a_wait_that_just_begins(
    python: Callable[..., subprocess.CompletedProcess[str]], wait: str, twin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it spins or sleeps. With `threading.Lock` there is an instant, before it sleeps, in which a signal is not
    heard: see `_core.asleep`.
    """
    monkeypatch.setenv("CMWQ_TWIN", twin)
    done = python(
        ASLEEP,
        f"""
        def wait(stuck): {wait}
        """,
        """
        import cmwq, concurrent.futures, signal, threading, time

        ROUNDS, MAIN = 400, threading.get_ident()
        begun, heard, ends = threading.Semaphore(0), threading.Semaphore(0), threading.Event()
        unheard, listens = 0, False

        class Pressed(BaseException): pass

        def pressed(*_):
            global listens
            if listens:
                listens = False
                raise Pressed

        def press():
            global unheard
            for number in range(ROUNDS):
                begun.acquire()
                end = time.perf_counter() + number % 100 * 1e-6
                while time.perf_counter() < end: pass
                signal.pthread_kill(MAIN, signal.SIGINT)
                while not heard.acquire(timeout=0.3):
                    if asleep():  # else it is only kept off its CPU
                        unheard += 1
                        signal.pthread_kill(MAIN, signal.SIGINT)

        signal.signal(signal.SIGINT, pressed)
        threading.Thread(target=press, daemon=True).start()
        wq = cmwq.WorkQueue("q")
        stuck = wq.submit(ends.wait)
        for _ in range(ROUNDS):
            for _ in range(3): wq.submit(int).result()  # it pays off to spin
            try:
                listens = True
                begun.release()
                wait(stuck)
            except Pressed:
                heard.release()
        ends.set()
        wq.close()
        print(unheard)
        """,
    )
    assert done.stderr == ""
    assert int(done.stdout) < 8


def test_F8_ctrl_c_interrupts_every_wait_and_undoes_it(python: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """A second thread sends the signal as soon as the main thread sleeps in a parker."""
    done = python(
        ASLEEP,
        """
        import cmwq, linecache, os, signal, sys, threading

        MAIN = threading.get_ident()
        waiting = threading.Semaphore(0)

        def parks(frame):
            line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
            return frame.f_code.co_filename.endswith("asleep.py") or ".park(" in line  # one in Python, one in C

        def press():
            while True:
                waiting.acquire()
                if over:
                    return
                while True:
                    frame = sys._current_frames()[MAIN]
                    if parks(frame) and asleep():
                        break
                    os.sched_yield()
                del frame
                signal.pthread_kill(MAIN, signal.SIGINT)  # the kernel may give a process's signal to another thread

        over = False
        presser = threading.Thread(target=press)
        presser.start()

        def interrupted(name, call):
            waiting.release()
            try:
                call()
            except KeyboardInterrupt:
                print(name, flush=True)

        gate, there = threading.Event(), threading.Semaphore(0)
        def hold():
            there.release()
            gate.wait()
        wq = cmwq.WorkQueue("q", freezable=True)
        batch = cmwq.Batch(wq)
        future = batch.submit(hold)
        work = cmwq.Work(hold)
        wq.queue(work)
        full = cmwq.WorkQueue("full", max_active=1, max_pending=1)
        full.submit(hold)
        for _ in range(3): there.acquire()
        full.submit(int)
        refused = cmwq.Work(int)

        interrupted("result", future.result)
        interrupted("flush", wq.flush)
        interrupted("drain", wq.drain)
        assert wq.is_open
        interrupted("work.flush", work.flush)
        interrupted("cancel_sync", work.cancel_sync)
        assert not work.is_blocked
        interrupted("disable_sync", work.disable_sync)
        assert work.disabled and work.enable()
        interrupted("batch.wait", batch.wait)
        interrupted("freeze", cmwq.freeze)
        assert wq.submit(len, "abc").result() == 3
        interrupted("full-submit", lambda: full.submit(int))
        interrupted("full-queue", lambda: full.queue(refused))
        assert not refused.pending and full._room.taken == 1
        assert wq.queue(refused)
        runtime = cmwq.Runtime()
        cmwq.WorkQueue("r", runtime=runtime).submit(hold); there.acquire()
        interrupted("runtime.close", runtime.close)
        interrupted("close", wq.close)
        over = True
        waiting.release()
        presser.join()
        gate.set()
        wq.close(30); full.close(30); runtime.close(30)
        print("end")
        """,
    )
    assert done.stderr == ""
    assert done.stdout.split() == [
        "result", "flush", "drain", "work.flush", "cancel_sync", "disable_sync", "batch.wait", "freeze", "full-submit",
        "full-queue", "runtime.close", "close", "end",
    ]  # fmt: skip
