"""Whatever handles the log's records, or is told in them, raises: no promise depends on it."""

from __future__ import annotations

import logging
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator

import pytest
from conftest import HANG, until

import cmwq


class DiskFull(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        raise OSError("disk full")


@pytest.fixture
def raising() -> Iterator[None]:
    logger, full = logging.getLogger("cmwq"), DiskFull()
    logger.addFilter(full)
    yield
    logger.removeFilter(full)


def deaths(runtime: cmwq.Runtime) -> int:
    return sum(pool.stats.deaths for pool in runtime._pools.values())


def fail() -> None:
    raise ZeroDivisionError


def test_B4_F1_works_that_fail_end_and_their_workers_live(raising: None, capsys: pytest.CaptureFixture[str]) -> None:
    with cmwq.Runtime() as runtime:
        wq = cmwq.WorkQueue("q", runtime=runtime)
        works = [cmwq.Work(fail) for _ in range(6)]
        for work in works:
            wq.queue(work)
        wq.flush(HANG)
        assert not any(work.running or work.pending for work in works)
        served = wq.serve([fail, fail])
        served.wait(HANG)
        future = wq.submit(int)
        future.add_done_callback(lambda _: fail())
        assert future.result(HANG) == 0
        wq.flush(HANG)
        assert deaths(runtime) == 0
        runtime.check_invariants()
    told = capsys.readouterr().err
    assert told.count("of queue 'q' raised [told here because logging raised OSError]") == 8
    assert "exception calling callback" in told


class Unspeakable(cmwq.Work):
    def __repr__(self) -> str:
        raise SystemExit


def test_B4_a_work_that_cannot_be_told_of_ends_and_its_worker_lives(capsys: pytest.CaptureFixture[str]) -> None:
    with cmwq.Runtime() as runtime:
        wq = cmwq.WorkQueue("q", runtime=runtime)
        for _ in range(3):
            wq.queue(Unspeakable(fail))
        wq.flush(HANG)
        assert deaths(runtime) == 0
        assert wq.submit(int).result(HANG) == 0
    assert "%r of queue %r raised [told here because logging raised SystemExit]" in capsys.readouterr().err


def test_F3_drain_and_close_go_on_to_their_end(raising: None) -> None:
    wq = cmwq.WorkQueue("q")
    wq.queue_delayed(cmwq.DelayedWork(int), 1000)  # close warns of it
    left = 40  # drain warns of so long a chain

    def chain() -> None:
        nonlocal left
        left -= 1
        if left:
            wq.queue(work)

    work = cmwq.Work(chain)
    wq.queue(work)
    wq.drain(HANG)
    assert wq.submit(int).result(HANG) == 0
    wq.close(HANG)
    with pytest.raises(cmwq.QueueClosed):
        wq.submit(int)


def test_H1_the_thread_that_tells_events_lives(raising: None) -> None:
    told, again = threading.Event(), threading.Event()

    def tell(event: object) -> None:
        (again if told.is_set() else told).set()
        fail()

    with cmwq.Runtime() as runtime, cmwq.events.subscribe(tell, runtime=runtime):
        wq = cmwq.WorkQueue("q", runtime=runtime)
        for _ in range(100):
            wq.submit(int).result(HANG)
        until(again.is_set)


def test_G3_what_was_accepted_is_done_at_exit() -> None:
    program = """
        import cmwq, logging, time
        class Full(logging.Handler):
            def emit(self, record): raise OSError("disk full")
        logging.getLogger().addHandler(Full())
        wq = cmwq.WorkQueue("q")
        wq.queue_delayed(cmwq.DelayedWork(print, "never"), 1000)
        early = cmwq.WorkQueue("early", delayed="run")
        early.queue_delayed(cmwq.DelayedWork(print, "early"), 1000)
        future = wq.submit(lambda: (time.sleep(0.3), print("saved")))
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG, check=True)
    assert sorted(done.stdout.split()) == ["early", "saved"]
    assert done.stderr.endswith("[told here because logging raised OSError]\n")


def test_F10_an_interruption_of_the_main_thread_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from cmwq._core import log

    def interrupt(record: logging.LogRecord) -> bool:
        raise KeyboardInterrupt

    logger = logging.getLogger("cmwq")
    monkeypatch.setattr(logger, "filters", [interrupt])
    with pytest.raises(KeyboardInterrupt):
        log.warning("anything")
    thread = threading.Thread(target=log.warning, args=("anything",))
    thread.start()  # pytest makes an error of what a thread raises
    thread.join()
