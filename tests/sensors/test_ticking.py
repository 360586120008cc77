"""The pure-Python sensors: the rules with a scripted eye and a fake pool, then the real eyes on real threads."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any, cast

import pytest
from conftest import HANG, until
from fakes import FakePool, FakeWorker, Scripted, add_worker, look, make_pool, queue

from cmwq import ThreadLimit
from cmwq._host import ThreadHost, caps
from cmwq._pool.worker import Worker
from cmwq._sensor import procfs
from cmwq._sensor._ticking import RELOOK, STILL, Doing, TickingSensor, Watched
from cmwq._sensor.hints import STUCK, HintsSensor
from cmwq._sensor.procfs import ProcfsSensor

linux = pytest.mark.skipif(procfs.usable() is not None, reason=str(procfs.usable()))


@pytest.fixture
def sensor() -> Scripted:
    return Scripted()


def test_armed_while_work_waits(sensor: Scripted) -> None:
    pool = make_pool(sensor)
    add_worker(pool, busy=True)
    add_worker(pool, busy=False)
    assert not pool.lookout.armed
    queue(pool)
    assert pool.lookout.armed
    assert sensor.rings == 1
    with pool.lock:
        pool.worklist.clear()
        pool.settle()
    assert not pool.lookout.armed


def test_nobody_is_started_at_the_target(sensor: Scripted) -> None:
    pool = make_pool(sensor)
    for _ in range(2):
        add_worker(pool, busy=True)
    add_worker(pool, busy=False)
    queue(pool, 10)
    assert not look(pool)
    assert pool.nr_running == 2


def test_a_sleeper_is_replaced_by_one(sensor: Scripted) -> None:
    pool = make_pool(sensor)
    sleeper, _ = add_worker(pool, busy=True), add_worker(pool, busy=True)
    idle = add_worker(pool, busy=False)
    queue(pool, 10)
    sensor.sees[sleeper] = Doing.SLEEPS
    assert look(pool)
    assert sleeper.sleeping
    assert idle.parker.unparked == 1
    assert pool.nr_running == 2
    assert not pool.lookout.armed  # one is on its way


def test_a_verdict_on_an_ended_item_is_void(sensor: Scripted) -> None:
    pool = make_pool(sensor)
    worker = add_worker(pool, busy=True)
    add_worker(pool, busy=True)
    add_worker(pool, busy=False)
    queue(pool)
    sensor.sees[worker] = Doing.SLEEPS

    def next_item() -> None:
        worker.item = object()

    sensor.during = next_item
    assert not look(pool)
    assert not worker.sleeping


def test_running_again_is_noticed_a_few_per_look(sensor: Scripted) -> None:
    pool = make_pool(sensor)
    sleepers = [add_worker(pool, busy=True) for _ in range(RELOOK * 2 + 1)]
    with pool.lock:
        for worker in sleepers:
            pool.worker_sleeping(worker)
            sensor.sees[worker] = Doing.SLEEPS
    seen: set[Worker] = set()
    for _ in range(3):
        sensor.looked.clear()
        look(pool)
        assert len(sensor.looked) == RELOOK
        seen.update(sensor.looked)
    assert seen == set(sleepers)
    sensor.sees.clear()
    look(pool)
    assert pool.nr_running == RELOOK


def test_A4_while_one_waits_for_the_gil_nobody_is_started_by_anybody(sensor: Scripted) -> None:
    """Nor is the sleeper told of: whoever queues next would start one."""
    pool = make_pool(sensor)
    sleeper, other = add_worker(pool, busy=True), add_worker(pool, busy=True)
    add_worker(pool, busy=False)
    queue(pool)
    sensor.sees = {sleeper: Doing.SLEEPS, other: Doing.WAITS_FOR_GIL}
    assert not look(pool)
    assert pool.nr_running == 2
    assert not pool.kick()
    sensor.sees[other] = Doing.RUNS
    assert look(pool)
    assert sleeper.sleeping


def test_who_runs_again_is_told_of_even_while_one_waits_for_the_gil(sensor: Scripted) -> None:
    pool = make_pool(sensor)
    sleeper, other = add_worker(pool, busy=True), add_worker(pool, busy=True)
    with pool.lock:
        pool.worker_sleeping(sleeper)
    sensor.sees = {sleeper: Doing.RUNS, other: Doing.WAITS_FOR_GIL}
    assert not look(pool)
    assert pool.nr_running == 2


def test_exempt_workers_are_not_looked_at(sensor: Scripted) -> None:
    pool = make_pool(sensor)
    worker = add_worker(pool, busy=True)
    with pool.lock:
        pool.lookout.exempt(worker, True)
        pool.worker_sleeping(worker)
    look(pool)
    assert not sensor.looked
    assert worker.sleeping


def test_lock_waits_must_last_while_others_run(sensor: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    now, cpu = 100.0, 0.0
    monkeypatch.setattr(ThreadHost, "monotonic", staticmethod(lambda: now))
    monkeypatch.setattr(Watched, "cpu_time", lambda self: cpu)
    pool = make_pool(sensor)
    worker = add_worker(pool, busy=True)
    add_worker(pool, busy=True)
    sensor.sees[worker] = Doing.WAITS_FOR_LOCK
    look(pool)
    assert not worker.sleeping
    now, cpu = 100.1, 1.0  # it ran in between: another wait
    look(pool)
    assert not worker.sleeping
    now = 100.2
    look(pool)
    assert worker.sleeping


def test_with_nobody_running_the_first_lock_wait_counts_at_once_the_next_must_last(
    sensor: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ThreadHost, "monotonic", staticmethod(lambda: 100.0))
    monkeypatch.setattr(Watched, "cpu_time", lambda self: 0.0)
    pool = make_pool(sensor)
    workers = [add_worker(pool, busy=True) for _ in range(3)]
    sensor.sees = dict.fromkeys(workers, Doing.WAITS_FOR_LOCK)
    look(pool)
    assert sum(w.sleeping for w in workers) == 1


def test_a_thread_that_is_gone_is_left_alone(sensor: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = make_pool(sensor)
    gone, detached, lost = (add_worker(pool, busy=True) for _ in range(3))
    pool.lookout.detach(detached)
    sensor.sees = {gone: Doing.GONE, lost: Doing.WAITS_FOR_LOCK}

    def no_such_clock(self: Watched) -> float:
        raise OSError

    monkeypatch.setattr(Watched, "cpu_time", no_such_clock)
    assert not look(pool)
    assert pool.nr_running == 3


# ------------------------------------------------------------------------------------- the thread


class RestingHost(ThreadHost):
    """Notes who rests: parks without a limit of time."""

    def __init__(self) -> None:
        super().__init__()
        self.refuses = False
        self.spawned: list[str] = []
        self.threads: list[Any] = []
        self.rests: SimpleQueue[None] = SimpleQueue()  # an exception in the middle of it leaves no lock held

    def parker(self) -> Any:
        host, real = self, super().parker()

        class Noted:
            def park(self, timeout: float = -1, spins: bool = False) -> bool:
                if timeout < 0:
                    host.rests.put(None)
                return real.park(timeout, spins)

            def unpark(self) -> None:
                real.unpark()

        return Noted()

    def spawn(self, name: str, body: Callable[[], None], began: Callable[[Any], object] | None = None) -> Any:
        self.spawned.append(name)
        if self.refuses:
            raise ThreadLimit(f"the test refuses {name}")
        self.threads.append(super().spawn(name, body, began))
        return self.threads[-1]


class Counting(TickingSensor):
    """Has a thread, and counts its looks."""

    def __init__(self) -> None:
        self.resting = RestingHost()
        super().__init__(self.resting)
        self.looks: SimpleQueue[None] = SimpleQueue()
        self.in_the_look: Callable[[], object] = lambda: None

    def doing(self, worker: Worker, watched: Watched) -> Doing:
        self.looks.put(None)
        self.in_the_look()
        return Doing.RUNS


@pytest.fixture
def counting() -> Iterator[Counting]:
    sensor = Counting()
    excepthook = threading.excepthook
    threading.excepthook = lambda args: None  # a thread may end of what a test raises in it
    yield sensor
    sensor.stop()
    for thread in sensor.resting.threads:
        thread.join(HANG)
    threading.excepthook = excepthook


def make_armed(sensor: TickingSensor) -> Any:
    """A pool that is looked at from now on."""
    pool = make_pool(sensor, target=1)
    add_worker(pool, busy=True)
    add_worker(pool, busy=False)
    sensor.post()
    queue(pool)
    return pool


def disarm(pool: Any) -> None:
    with pool.lock:
        pool.worklist.clear()
        pool.settle()


def await_looks(sensor: Counting, number: int = 5) -> None:
    for _ in range(number):
        sensor.looks.get(timeout=HANG)


def test_ticks_while_armed_and_rests_otherwise(counting: Counting) -> None:
    pool = make_armed(counting)
    for _ in range(3):
        queue(pool)
        await_looks(counting)
        while not counting.resting.rests.empty():
            counting.resting.rests.get()
        disarm(pool)
        counting.resting.rests.get(timeout=HANG)
    thread: Any = counting._thread
    counting.stop()
    counting.stop()
    assert not thread.is_alive()
    queue(pool)  # must do nothing, and not hang
    counting.post()
    assert counting.resting.spawned == ["cmwq/tick"]


def test_stop_before_anything_was_armed() -> None:
    TickingSensor(ThreadHost()).stop()


def test_arming_takes_no_lock(counting: Counting) -> None:
    """A handler or a finaliser may come in the middle of another arming."""
    depth = 0

    def again(frame: object, event: str, argument: object) -> None:
        nonlocal depth
        if depth < 3:
            depth += 1
            pool.lookout.armed = False
            pool.lookout.arm(pool.idle_list[-1])

    pool = make_pool(counting, target=1)
    add_worker(pool, busy=True)
    add_worker(pool, busy=False)
    sys.setprofile(again)
    try:
        pool.lookout.arm(pool.idle_list[-1])
    finally:
        sys.setprofile(None)
    assert depth == 3
    counting.post()
    await_looks(counting)


def test_no_thread_to_be_had_is_survived_and_tried_again_with_the_next_worker(counting: Counting) -> None:
    counting.resting.refuses = True
    pool = make_armed(counting)
    pool.lookout.parker()
    assert counting.resting.spawned == ["cmwq/tick"] * 2
    counting.resting.refuses = False
    pool.lookout.parker()
    await_looks(counting)
    pool.lookout.parker()
    assert counting.resting.spawned == ["cmwq/tick"] * 3


def test_B6_the_last_threads_are_left_to_the_first_worker_and_its_reserve(
    counting: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = 2
    monkeypatch.setattr(caps, "headroom", lambda: room)
    counting.post()
    assert counting.resting.spawned == []
    room = 3
    counting.resting._headroom_until = 0.0
    counting.post()
    assert counting.resting.spawned == ["cmwq/tick"]


def test_of_two_threads_posted_at_once_one_ticks(counting: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    make_armed(counting)
    await_looks(counting)
    other = counting.resting.spawn("cmwq/tick", counting._run)
    other.join(HANG)
    assert not other.is_alive()
    assert counting._thread is not other
    await_looks(counting)


@pytest.mark.parametrize("raised", [ValueError, SystemExit, KeyboardInterrupt])
def test_the_tick_outlives_what_is_raised_in_it(
    counting: Counting, raised: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        counting.in_the_look = lambda: None
        raise raised("from the test")

    counting.in_the_look = fail
    make_armed(counting)
    await_looks(counting)
    assert "the tick of sensor ticking raised" in caplog.text
    assert counting.resting.spawned == ["cmwq/tick"]


def test_G6_the_tick_goes_on_after_asynchronous_exceptions(counting: Counting) -> None:
    """Wherever they hit: it goes on, or has a successor."""
    pool = make_armed(counting)
    await_looks(counting)
    raise_in = ctypes.pythonapi.PyThreadState_SetAsyncExc
    for turn in range(100):
        thread = counting._thread
        assert thread is not None
        raise_in(ctypes.c_ulong(cast(Any, thread).ident), ctypes.py_object(KeyboardInterrupt))
        if turn % 2:  # at rest as well
            disarm(pool)
            queue(pool)
        while not counting.looks.empty():  # two looks after it are looked for
            counting.looks.get()
        await_looks(counting, 2)


def test_a_tick_that_ends_has_a_successor(counting: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(name: str) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(counting.resting, "set_thread_name", die)
    make_armed(counting)
    await_looks(counting)
    assert counting.resting.spawned == ["cmwq/tick"] * 2


# ------------------------------------------------------------------------------------- real eyes, real threads


class Subject:
    """A worker without a pool: a real thread that does one thing until told to end."""

    def __init__(self, pool: FakePool, body: Callable[[Subject], None]) -> None:
        self.worker: Any = FakeWorker(pool, busy=True)
        self.end = False
        self.pipe = os.pipe()
        self.lock = threading.Lock()
        self.lock.acquire()
        ready = threading.Event()

        def run() -> None:
            self.worker.watched = Watched()
            ready.set()
            body(self)

        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()
        assert ready.wait(HANG)

    def finish(self) -> None:
        self.end = True
        os.write(self.pipe[1], b"x")
        self.lock.release()
        self.thread.join(HANG)
        for fd in self.pipe:
            os.close(fd)
        assert not self.thread.is_alive()


def compute(subject: Subject) -> None:
    while not subject.end:
        pass


def read(subject: Subject) -> None:
    os.read(subject.pipe[0], 1)


def wait_for_lock(subject: Subject) -> None:
    subject.lock.acquire()
    subject.lock.release()


Start = Callable[[TickingSensor, Callable[[Subject], None]], Subject]


@pytest.fixture
def start() -> Iterator[Start]:
    subjects: deque[Subject] = deque()

    def start(sensor: TickingSensor, body: Callable[[Subject], None]) -> Subject:
        subjects.append(Subject(make_pool(sensor), body))
        return subjects[-1]

    yield start
    for subject in subjects:
        if subject.thread.is_alive():
            subject.finish()


@linux
@pytest.mark.parametrize(
    ("body", "doing"), [(read, Doing.SLEEPS), (wait_for_lock, Doing.WAITS_FOR_LOCK), (compute, Doing.RUNS)]
)
def test_procfs_knows(start: Start, body: Callable[[Subject], None], doing: Doing) -> None:
    sensor = ProcfsSensor(ThreadHost())
    sensor.learn()
    subject = start(sensor, body)
    until(lambda: sensor.doing(subject.worker, subject.worker.watched) is doing)
    subject.finish()
    until(lambda: sensor.doing(subject.worker, subject.worker.watched) is Doing.GONE)  # the kernel's part may be late


@linux
def test_procfs_goes_by_cpu_time_where_nothing_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    now, cpu = 100.0, 1.0

    def no_descriptor(tid: int) -> bytes:
        raise OSError(errno.EMFILE, "Too many open files")

    def no_such_clock(self: Watched) -> float:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(procfs, "_read", no_descriptor)
    monkeypatch.setattr(ThreadHost, "monotonic", staticmethod(lambda: now))
    monkeypatch.setattr(Watched, "cpu_time", lambda self: cpu)
    sensor = ProcfsSensor(ThreadHost())
    worker = add_worker(make_pool(sensor), busy=True)
    assert sensor.doing(worker, worker.watched) is Doing.RUNS  # not yet known
    now, cpu = 101.0, 1.5
    assert sensor.doing(worker, worker.watched) is Doing.RUNS  # it did
    now += STILL / 2
    assert sensor.doing(worker, worker.watched) is Doing.RUNS  # it may wait for the GIL, or for a CPU
    now += STILL
    assert sensor.doing(worker, worker.watched) is Doing.SLEEPS
    worker.sleeping, cpu = True, 1.6
    assert sensor.doing(worker, worker.watched) is Doing.SLEEPS  # it may have stirred
    worker.sleeping = False
    monkeypatch.setattr(Watched, "cpu_time", no_such_clock)
    assert sensor.doing(worker, worker.watched) is Doing.GONE


@linux
@pytest.mark.skipif(not ThreadHost().gil_enabled(), reason="no GIL")
@pytest.mark.skipif(sys.implementation.name != "cpython", reason="CPython's GIL")
def test_procfs_learns_the_gil(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(procfs, "LEARN_WITHIN", HANG)  # each of its looks costs a turn at the GIL
    sensor = ProcfsSensor(ThreadHost())
    sensor.learn()
    assert sensor._gil
    # Of two that compute one always waits for the GIL; and it is never taken for a lock.
    subjects = [start(sensor, compute) for _ in range(2)]
    seen: set[Doing] = set()

    def one_waits() -> bool:
        # Looking hands the GIL to one of the two. In turns, that could always be the one looked at.
        one, other = subjects
        seen.update(sensor.doing(s.worker, s.worker.watched) for s in (one, one, other, other))
        return Doing.WAITS_FOR_GIL in seen

    until(one_waits)
    assert Doing.SLEEPS not in seen


def test_hints_go_by_cpu_time(start: Start) -> None:
    sensor = HintsSensor(ThreadHost())
    sleeper = start(sensor, read)
    if sleeper.worker.watched.clock is None:
        pytest.skip("no per-thread CPU clocks")
    assert sensor.doing(sleeper.worker, sleeper.worker.watched) is Doing.RUNS  # not yet known
    until(lambda: sensor.doing(sleeper.worker, sleeper.worker.watched) is Doing.SLEEPS)
    sleeper.worker.item = object()
    assert sensor.doing(sleeper.worker, sleeper.worker.watched) is Doing.RUNS
    sleeper.finish()


def test_hints_without_clocks_start_one_more_when_nothing_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(ThreadHost, "monotonic", staticmethod(lambda: now))
    monkeypatch.delattr(time, "pthread_getcpuclockid", raising=False)
    sensor = HintsSensor(ThreadHost())
    monkeypatch.setattr(sensor, "ring", lambda: None)
    pool = make_pool(sensor)
    busy = [add_worker(pool, busy=True) for _ in range(2)]
    add_worker(pool, busy=False)
    queue(pool)
    assert not look(pool)
    now += 2 * STUCK
    pool.nr_completed += 1  # something moved
    assert not look(pool)
    now += 2 * STUCK
    assert look(pool)
    assert sum(w.sleeping for w in busy) == 1
