"""E12 on real threads: works that a broker keeps back until it is asked. The rules themselves are in `sim`."""

from __future__ import annotations

import gc
import itertools
import logging
import os
import queue
import re
import subprocess
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from typing import Any

import pytest
from conftest import HANG, Gate, until
from handlers import handled_again_and_again
from opcodes import Interrupt, InterruptAt
from thorough import often

import cmwq


class Broker:
    """Messages, handed out one at a time to who asks; what was handed out is to be acknowledged."""

    def __init__(self, handle: Callable[[int], object]) -> None:
        self.handle = handle
        self.messages: deque[int] = deque()
        self.lock = threading.Lock()
        self.acknowledged: list[int] = []
        self.tell: Callable[[], object] = int
        self.askers = 0

    def publish(self, *messages: int) -> None:
        self.messages.extend(messages)
        self.tell()

    def next(self) -> Callable[[], object] | None:
        self.askers += 1
        assert self.askers == 1, "two ask at the same time"
        try:
            return partial(self.work, self.messages.popleft()) if self.messages else None
        finally:
            self.askers -= 1

    def work(self, message: int) -> None:
        self.handle(message)
        self.acknowledged.append(message)


def test_E12_a_source_is_asked_although_somebody_observes_the_queue(runtime: cmwq.Runtime) -> None:
    broker = Broker(lambda message: None)
    wq = cmwq.WorkQueue("consumer", runtime=runtime)
    with cmwq.events.subscribe(queue=wq) as events:
        serving = wq.serve(broker.next)
        broker.tell = serving.notify
        broker.publish(*range(5))
        until(lambda: len(broker.acknowledged) == 5)
        serving.stop()
        assert "ended" in {event.kind for event in events.take()}


def test_E12_of_200_sleeping_calls_that_a_broker_keeps_back_all_run_at_once(runtime: cmwq.Runtime) -> None:
    """As without a broker. No clock: each waits until all have begun."""
    everybody = threading.Barrier(200)
    broker = Broker(lambda message: everybody.wait(HANG))
    wq = cmwq.WorkQueue("consumer", runtime=runtime)
    serving = wq.serve(broker.next)
    broker.tell = serving.notify
    broker.publish(*range(200))
    deadline = time.monotonic() + HANG
    while len(broker.acknowledged) < 200:
        assert time.monotonic() < deadline, f"{200 - everybody.n_waiting} were never asked for: {serving!r}"
        time.sleep(0.01)
    serving.close(HANG)
    assert sorted(broker.acknowledged) == list(range(200))
    assert serving.given == 200


def test_E12_no_message_of_many_producers_is_lost_or_doubled(universe: cmwq.Runtime) -> None:
    seen: Counter[int] = Counter()
    broker = Broker(lambda message: seen.update([message]))
    wq = cmwq.WorkQueue("consumer", runtime=universe)
    serving = wq.serve(broker.next)
    broker.tell = serving.notify
    producers = [
        threading.Thread(target=lambda first=first: [broker.publish(first + n) for n in range(500)])  # type: ignore[misc]
        for first in range(0, 4000, 1000)
    ]
    for producer in producers:
        producer.start()
    for producer in producers:
        producer.join(HANG)
    deadline = time.monotonic() + HANG
    while serving.ended < 2000:
        assert time.monotonic() < deadline, f"a notify is lost: {serving!r}"
        time.sleep(0.001)
    assert set(seen.values()) == {1}
    assert len(seen) == 2000
    assert not serving.failures, "two asked at the same time"
    serving.close(HANG)


@pytest.mark.parametrize("how", ["close of the queue", "close of the runtime", "stop"])
def test_E12_a_queue_get_that_blocks_is_let_go_of_by_on_stop(how: str) -> None:
    runtime = cmwq.Runtime()
    wq = cmwq.WorkQueue("q", runtime=runtime)
    inbox: queue.Queue[Callable[[], object] | None] = queue.Queue()
    ran: list[int] = []
    serving = wq.serve(iter(inbox.get, None), on_stop=partial(inbox.put, None))
    for n in range(10):
        inbox.put(partial(ran.append, n))
    {"close of the queue": wq.close, "close of the runtime": runtime.close, "stop": serving.close}[how](HANG)
    assert serving.over
    assert len(ran) == serving.given == serving.ended
    runtime.close(HANG)


def test_E12_calls_of_the_queue_go_on_while_its_source_blocks(universe: cmwq.Runtime, gate: Gate) -> None:
    def source() -> None:
        gate()
        raise StopIteration

    wq = cmwq.WorkQueue("q", runtime=universe)
    serving = wq.serve(source)
    gate.await_arrivals(1)
    assert [wq.submit(int).result(HANG) for _ in range(20)] == [0] * 20
    wq.flush(HANG)
    assert not serving.over
    gate.open.set()
    serving.wait(HANG)


def test_E12_source_and_call_have_a_copy_of_the_servers_context(universe: cmwq.Runtime) -> None:
    user: ContextVar[str] = ContextVar("user", default="nobody")
    seen: list[str] = []

    def source() -> Callable[[], object]:
        if len(seen) == 2:
            raise StopIteration
        asked_as = user.get()
        user.set(f"message {len(seen)}")
        return lambda: seen.append(f"{asked_as}, {user.get()}")

    user.set("server")
    with cmwq.WorkQueue("q", ordered=True, runtime=universe) as wq:
        wq.serve(source).wait(HANG)
    assert seen == ["server, message 0", "server, message 1"]
    assert user.get() == "server"


def test_E12_current_work_is_told_and_its_exceptions_are_logged(
    universe: cmwq.Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[object] = []

    def call() -> None:
        seen.append(cmwq.current_work())
        raise SystemExit

    with cmwq.WorkQueue("q", runtime=universe) as wq:
        wq.serve([call]).wait(HANG)
    assert isinstance(seen[0], cmwq.Future)
    (record,) = (record for record in caplog.records if record.name == "cmwq")
    assert "call> of queue 'q' raised" in record.getMessage()


def test_E12_what_is_no_source_is_told_so(universe: cmwq.Runtime) -> None:
    wq = cmwq.WorkQueue("q", runtime=universe)
    with pytest.raises(TypeError, match="queue 'q': a source is a function or an iterable of calls, not 7"):
        wq.serve(7)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="queue 'q': on_stop"):
        wq.serve([], on_stop=7)  # type: ignore[arg-type]
    wq.close(HANG)
    with pytest.raises(cmwq.QueueClosed, match="queue 'q' is closed"):
        wq.serve([int])
    with (
        cmwq.Executor(max_workers=1, runtime=universe) as one_thread,
        pytest.raises(TypeError, match="on threads prepared for them"),
    ):
        one_thread.queue.serve([int])


def test_E12_a_served_queue_that_nobody_can_notify_is_not_kept(universe: cmwq.Runtime) -> None:
    wq = cmwq.WorkQueue("q", runtime=universe)
    serving = wq.serve(lambda: None)
    wq.submit(int).result(HANG)
    deadline = time.monotonic() + HANG
    while " dry " not in repr(serving):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    gone = weakref.ref(serving)
    del serving, wq
    universe.close(HANG)
    until(lambda: (gc.collect(), gone() is None)[1])


def test_E12_E9_none_counts_under_max_pending(universe: cmwq.Runtime) -> None:
    wq = cmwq.WorkQueue("q", max_active=1, max_pending=1, full="raise", runtime=universe)
    serving = wq.serve(partial(int) for _ in range(1000))
    serving.wait(HANG)
    assert serving.ended == 1000
    wq.close(HANG)


def test_E12_notify_in_a_signal_handler(universe: cmwq.Runtime) -> None:
    """Wherever it strikes: in a submit, in a flush, in a notify."""
    ran: list[object] = []
    signals = 0
    broker = Broker(ran.append)
    wq = cmwq.WorkQueue("q", runtime=universe)
    serving = wq.serve(broker.next)
    broker.tell = serving.notify

    def handler() -> None:
        nonlocal signals
        signals += 1
        broker.publish(1)

    deadline = time.monotonic() + HANG
    with handled_again_and_again(handler, lambda: 1e-3):
        while signals < 100:
            assert time.monotonic() < deadline
            wq.submit(int)
            wq.flush(HANG)
            serving.notify()
    while len(ran) < signals:
        assert time.monotonic() < deadline, (ran, serving)
        time.sleep(0.001)
    serving.close(HANG)


def test_E12_F10_what_the_source_gave_is_not_lost_by_an_interruption_of_its_worker() -> None:
    """An exception at one bytecode of ours after the other, between a call and the next but one. Each call is made
    once; or, if it struck as the call was about to begin or had just ended, it is that call's outcome.
    """
    # One CPU: a worker goes on with the next call itself, and with the tracing.
    runtime = cmwq.Runtime(cpus=sorted(os.sched_getaffinity(0))[:1], config=cmwq.Config(cpu_intensive_thresh=0))
    logging.getLogger("cmwq").setLevel(logging.CRITICAL)
    step = often(1, 3)
    try:
        struck = [_interrupt_at(n, runtime).raised for n in range(1, _interrupt_at(0, runtime).seen + 1, step)]
        runtime.check_invariants()
    finally:
        logging.getLogger("cmwq").setLevel(logging.NOTSET)
        runtime.close(HANG)
    assert len(struck) * step > 300
    assert sum(struck) > 0.9 * len(struck)


def _interrupt_at(n: int, runtime: cmwq.Runtime) -> InterruptAt:
    interrupt = InterruptAt(n, "_workqueue/serving.py", "_workqueue/asking.py")
    made: Counter[str] = Counter()
    failed: Counter[str] = Counter()

    def failing(work: cmwq.Work, exc: BaseException) -> None:
        assert isinstance(exc, Interrupt)
        failed[work._fn.args[0]] += 1  # type: ignore[attr-defined]

    def call(name: str) -> None:
        made[name] += 1
        if name == "start":
            interrupt.__enter__()
        if name == "stop":
            interrupt.n = 0
            interrupt.__exit__(None, None, None)

    wq = cmwq.WorkQueue("q", on_error=failing, runtime=runtime)
    names = ["start", "a", "b", "stop"]
    serving = wq.serve(map(partial, itertools.repeat(call), names))
    serving.wait(HANG)
    wq.flush(HANG)
    assert serving.given == serving.ended == 4
    for name in names:
        assert made[name] <= 1
        assert made[name] + failed[name] >= 1, f"{name!r} is lost, at bytecode {n}"
    wq.close(HANG)
    return interrupt


def test_E12_G2_in_the_child_of_a_fork_nothing_is_served(
    python: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = python("""
        import os, time, warnings, cmwq
        warnings.simplefilter("ignore")  # since 3.12: of a fork with threads
        asked = []
        wq = cmwq.WorkQueue("q")
        def source():
            asked.append(os.getpid())
        serving = wq.serve(source)
        while not asked:
            time.sleep(0.001)
        pid = os.fork()
        if not pid:
            assert serving.over
            serving.notify()
            serving.stop()
            try:
                serving.wait()
            except cmwq.ForeignProcess:
                pass
            else:
                os._exit(3)
            assert wq.submit(int).result(30) == 0
            os._exit(0 if os.getpid() not in asked else 2)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        n = len(asked)
        serving.notify()
        while len(asked) == n:
            time.sleep(0.001)
        print("ends")
    """)
    assert (done.stdout, done.stderr, done.returncode) == ("ends\n", "", 0)


def test_E12_G2_a_call_that_forks_ends_in_both(python: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = python("""
        import os, warnings, cmwq
        warnings.simplefilter("ignore")
        wq = cmwq.WorkQueue("q")
        def call():
            pid = os.fork()
            if pid:
                print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
        parent = os.getpid()
        wq.serve([call]).wait(30)
        assert os.getpid() == parent
    """)
    assert (done.stdout, done.stderr, done.returncode) == ("0\n", "", 0)


def test_E12_G3_at_exit_what_was_given_is_done_and_the_source_is_asked_no_more(
    python: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = python("""
        import queue, time, cmwq
        wq = cmwq.WorkQueue("q")
        inbox = queue.Queue()
        begun = queue.Queue()
        def call():
            begun.put(None)
            time.sleep(0.2)
            print("done")
        inbox.put(call)
        serving = wq.serve(iter(inbox.get, None), on_stop=lambda: inbox.put(None))
        begun.get()
    """)
    assert (done.stdout, done.stderr, done.returncode) == ("done\n", "", 0)


def test_E12_what_comes_after_the_time_limit_of_the_end_is_said_not_to_be_run(
    gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    runtime = cmwq.Runtime()
    wq = cmwq.WorkQueue("q", runtime=runtime)
    ran: list[Any] = []

    def source() -> Callable[[], object]:
        gate()
        return late

    def late() -> None:
        ran.append(1)

    serving = wq.serve(source)
    gate.await_arrivals(1)
    runtime.close(0.01, abandon=True)
    with pytest.raises(cmwq.Abandoned):
        serving.wait(HANG)
    gate.open.set()
    until(lambda: serving.over)
    until(lambda: "late that a source gave to queue 'q' is not run" in caplog.text)
    assert not ran
    assert re.search("asking of source.* is abandoned", caplog.text)


def test_E12_a_source_that_is_asked_learns_which_works_are_blocked(runtime: cmwq.Runtime, gate: Gate) -> None:
    """What a scheduler needs that is to be told of them: `cmwq.contrib.dask` gives their slots back."""
    wq = cmwq.WorkQueue("blocked", runtime=runtime)
    seen: list[list[Any]] = []
    until(lambda: wq.blocked() == [])

    def source() -> None:
        seen.append(wq.blocked())

    with wq.serve(source) as serving:
        futures = [wq.submit(gate) for _ in range(len(runtime.cpus()))]
        gate.await_arrivals(len(futures))

        def all_seen() -> bool:
            serving.notify()
            most = len(futures) if runtime.snapshot().sensor == "sentinel" else 1  # others look only until one is seen
            return any(len(set(found) & set(futures)) >= most for found in seen)

        until(all_seen)
        gate.open.set()
        for future in futures:
            future.result(HANG)
    until(lambda: wq.blocked() == [])
