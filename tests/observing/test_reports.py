"""H3: a report names the lock that most workers wait for, who holds it, and what that one waits for in turn."""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

import cmwq
from cmwq._core.ports import Awaited
from cmwq._host.awaited import MAX_LOCKS, awaited
from cmwq._workqueue.report import FILE
from cmwq.observing.findings import grouped
from tests.conftest import HANG, Gate, until

from .conftest import SOON_REPORTED, stall_of

with_gil = pytest.mark.skipif(
    not getattr(sys, "_is_gil_enabled", lambda: True)(), reason="frames of running threads can't be read without a GIL"
)
pytestmark = with_gil


class Things:
    """What the threads of a test contend for."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.lock = threading.Lock()
        self.other = threading.Lock()
        self.again = threading.RLock()
        self.news = threading.Condition(threading.Lock())
        self.inbox: queue.Queue[int] = queue.Queue()
        self.asked = 0

    @property
    def evaluated(self) -> threading.Lock:
        self.asked += 1
        return self.lock

    def hold(self) -> None:
        with self.lock:
            self.gate()

    def want(self) -> None:
        with self.lock:
            pass

    def want_by_property(self) -> None:
        with self.evaluated:
            pass

    def take(self) -> None:
        self.lock.acquire()
        self.gate()
        self.lock.release()

    def hold_again(self) -> None:
        with self.again:
            self.gate()

    def want_again(self) -> None:
        with self.again:
            pass

    def hold_news(self) -> None:
        with self.news:
            self.gate()

    def want_news(self) -> None:
        with self.news:
            pass

    def get(self) -> int:
        return self.inbox.get()


@pytest.fixture
def things(gate: Gate) -> Things:
    return Things(gate)


@pytest.fixture
def run(things: Things) -> Iterator[Callable[[Callable[[], object]], threading.Thread]]:
    """Run a function on a thread of its own until the end of the test."""
    threads: list[threading.Thread] = []

    def start(work: Callable[[], object]) -> threading.Thread:
        threads.append(threading.Thread(target=work, name=work.__name__))
        threads[-1].start()
        return threads[-1]

    yield start
    things.gate.open.set()
    things.inbox.put(1)
    for thread in threads:
        thread.join(HANG)


def told_of(thread: threading.Thread, words: str) -> Awaited:
    until(lambda: words in awaited([thread]).get(id(thread), Awaited("", 0, "", False)).words)
    return awaited([thread])[id(thread)]


@pytest.mark.parametrize(
    ("holder", "waiter", "words", "sure"),
    [
        ("hold", "want", "the lock self.lock", True),
        ("take", "want", "the lock self.lock", False),
        ("hold_again", "want_again", "the RLock self.again", True),
        ("hold_news", "want_news", "the lock of the Condition self.news", True),
    ],
)
def test_H3_who_holds_a_lock_is_told_and_a_guess_is_called_one(
    holder: str, waiter: str, words: str, sure: bool, things: Things, run: Any, gate: Gate
) -> None:
    run(getattr(things, holder))
    gate.await_arrivals(1)
    seen = told_of(run(getattr(things, waiter)), words)
    assert seen.words.endswith(f", in {waiter})")
    assert (seen.holder_name, seen.sure) == (holder, sure)


def test_H3_what_a_holder_does_that_is_no_worker_is_told(things: Things, run: Any, gate: Gate) -> None:
    """Of a worker that is told where it stands itself."""

    def hold_and_wait() -> None:
        with things.lock:
            gate()

    run(hold_and_wait)
    gate.await_arrivals(1)
    seen = told_of(run(things.want), "the lock self.lock")
    assert seen.holder_name == "hold_and_wait"
    assert seen.holder_does.startswith("waits for the Event self.open to be set (conftest.py:")
    assert seen.instead_of("waits for a lock (futex)").endswith(f", held by hold_and_wait, which {seen.holder_does}")


def test_H3_what_has_no_holder_is_named_and_nothing_of_the_program_is_evaluated(
    things: Things, run: Any, gate: Gate
) -> None:
    seen = told_of(run(things.get), "an item of the Queue self.inbox")
    assert (seen.holder, seen.holder_name) == (0, "")
    run(things.hold)
    gate.await_arrivals(1)
    thread = run(things.want_by_property)
    until(lambda: things.asked == 1)
    assert awaited([thread]) == {}
    assert things.asked == 1


@pytest.mark.parametrize(
    ("make", "call", "words"),
    [
        (threading.Event, "thing.wait({})", "the Event thing to be set"),
        (lambda: threading.Barrier(2), "thing.wait({})", "the others at the Barrier thing"),
        (lambda: threading.Semaphore(0), "thing.acquire(timeout={})", "a place of the Semaphore thing"),
        (lambda: threading.BoundedSemaphore(0), "thing.acquire(timeout={})", "a place of the BoundedSemaphore thing"),
        (queue.LifoQueue, "thing.get(timeout={})", "an item of the LifoQueue thing"),
        (lambda: full(queue.Queue(1)), "thing.put(1, timeout={})", "room in the Queue thing"),
    ],
)
def test_H3_what_is_waited_for_is_told_by_its_kind_and_its_name(
    make: Any, call: str, words: str, tmp_path: Path
) -> None:
    file = tmp_path / "asks.py"
    file.write_text(f"def ask(thing):\n    {call.format(3)}\n")
    there: dict[str, Any] = {"__name__": "asks"}
    exec(compile(file.read_text(), str(file), "exec"), there)

    def ask() -> None:
        with suppress(queue.Empty, queue.Full, threading.BrokenBarrierError):
            there["ask"](make())

    thread = threading.Thread(target=ask)
    thread.start()
    assert told_of(thread, words).words == f"{words} (asks.py:2, in ask)"
    thread.join(HANG)


def full(one: queue.Queue[int]) -> queue.Queue[int]:
    one.put(1)
    with suppress(queue.Full):
        one.put(2, timeout=0)
    return one


def test_H3_of_many_locks_the_holders_of_the_most_wanted_ones_are_told(run: Any) -> None:
    """Each would cost a look at all stacks."""
    locks = [threading.Lock() for _ in range(2 * MAX_LOCKS)]

    def want(lock: threading.Lock) -> None:
        with lock:
            pass

    with ExitStack() as held:
        for lock in locks:
            held.enter_context(lock)
        crowd = threading.Lock()
        with crowd:
            threads = [threading.Thread(target=want, args=(lock,)) for lock in [*locks, crowd, crowd]]
            for thread in threads:
                thread.start()
            until(lambda: len(awaited(threads)) == len(threads))
            seen = awaited(threads)
    for thread in threads:
        thread.join(HANG)
    holders = [seen[id(thread)].holder_name for thread in threads[-2:]]
    assert holders == [threading.current_thread().name] * 2


def test_H3_a_pool_whose_workers_wait_for_one_lock_is_told_who_holds_it(things: Things, gate: Gate) -> None:
    told: list[cmwq.Stall] = []
    with cmwq.Runtime(max_workers=4, config=SOON_REPORTED) as runtime:
        runtime.on_stall = told.append
        wq = cmwq.WorkQueue("q", runtime=runtime)
        futures = [wq.submit(things.hold)]
        gate.await_arrivals(1)
        holder = next(worker.name for worker in runtime.snapshot().workers if worker.work == "Things.hold")
        futures += [wq.submit(things.want) for _ in range(6)]
        stall = stall_of(told, "every other worker waits for the lock self.lock")
        gate.open.set()
        for future in futures:
            future.result(HANG)
    assert "it has as many workers as it may have (max_workers is 4)" in stall.reason
    assert "every other worker waits for the lock self.lock (test_reports.py:" in stall.reason
    assert (
        f"held by {holder} (call Things.hold of queue 'q'), which waits for the Event self.open to be set ("
        in stall.reason
    )
    assert all(Path(FILE.match(worker.stack[0])[1]) == Path(__file__) for worker in stall.workers if worker.stack)  # type: ignore[index]
    assert any(f"held by {holder}" in entry.waits_for for entry in stall.workers), "and so does each entry"


def test_H3_a_worker_that_holds_a_lock_is_told_by_its_own_name(universe: cmwq.Runtime, gate: Gate) -> None:
    """An executor has named its thread, and a dump joins them by the thread."""
    ledger = threading.Lock()

    def book() -> None:
        with ledger:
            gate()

    with cmwq.Executor(thread_name_prefix="all bookings", runtime=universe) as pool:
        for _ in range(3):
            pool.submit(book)
        gate.await_arrivals(1)

        def seen() -> list[cmwq.WorkerView]:
            workers = universe.snapshot(stacks=True).workers
            return [worker for worker in workers if "held by" in worker.waits_for]

        until(lambda: len(seen()) == 2)
        picture = universe.snapshot(stacks=True)
        (holder,) = {worker.held_by for worker in seen()}
        name = next(worker.name for worker in picture.workers if worker.tid == holder)
        assert all(worker.waits_for.endswith(f"held by {name}") for worker in seen())
        (group,) = [group for group in grouped(picture.to_dict()) if len(group.workers) == 2]
        assert group.holder.startswith(f"{name} waits for")
        gate.open.set()


def test_H3_a_queue_whose_works_all_wait_for_one_lock_is_told_who_holds_it(things: Things, gate: Gate) -> None:
    told: list[cmwq.Stall] = []
    with cmwq.Runtime(config=SOON_REPORTED) as runtime:
        runtime.on_stall = told.append
        wq = cmwq.WorkQueue("q", max_active=3, runtime=runtime)
        futures = [wq.submit(things.hold)]
        gate.await_arrivals(1)
        futures += [wq.submit(things.want) for _ in range(4)]
        stall = stall_of(told, "every other worker waits for the lock self.lock")
        gate.open.set()
        for future in futures:
            future.result(HANG)
    assert stall.queue == "q"
    assert "max_active is 3, and none of the 3 works that have a place used the CPU since" in stall.reason
    assert "every other worker waits for the lock self.lock" in stall.reason


def test_H3_workers_that_wait_for_each_others_locks_are_told_so(things: Things) -> None:
    told: list[cmwq.Stall] = []
    both = threading.Barrier(2)
    with cmwq.Runtime(max_workers=2, config=SOON_REPORTED) as runtime:
        runtime.on_stall = told.append
        wq = cmwq.WorkQueue("q", runtime=runtime)

        def first() -> None:
            with things.lock:
                both.wait(HANG)
                if things.other.acquire(timeout=3):
                    things.other.release()

        def second() -> None:
            with things.other:
                both.wait(HANG)
                if things.lock.acquire(timeout=HANG):
                    things.lock.release()

        futures = [wq.submit(first), wq.submit(second), wq.submit(int)]
        stall = stall_of(told, "so none of them ever goes on")
        for future in futures:
            future.result(HANG)
    assert "so none of them ever goes on" in stall.reason, stall.reason
