"""Timers: what `call_later` and `cancel` promise. Mostly without a thread, on a clock that stands still until told."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import heapq
import logging
import subprocess
import threading
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from operator import call
from queue import SimpleQueue
from typing import Any

import pytest
from conftest import HANG, is_forgotten, until
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opcodes import Interrupt, InterruptAt, at_each

from cmwq import Reentered, ThreadLimit
from cmwq._errors import QueueClosed
from cmwq._host import ThreadHost
from cmwq._host.locks import inside
from cmwq._host.parker import LockParker
from cmwq._host.timers import _TOLERATED, Timer, Timers

THREAD = "cmwq/timers"


class Bell(LockParker):
    """Counts."""

    __slots__ = ("rings",)

    def __init__(self) -> None:
        super().__init__()
        self.rings = 0

    def unpark(self) -> None:
        self.rings += 1
        super().unpark()


class Watched(LockParker):
    """Says when its thread goes to sleep for ever."""

    __slots__ = ("asleep", "timeouts")

    def __init__(self) -> None:
        super().__init__()
        self.timeouts: list[float] = []
        self.asleep = threading.Semaphore(0)

    def park(self, timeout: float = -1) -> bool:
        self.timeouts.append(timeout)
        if timeout == -1:
            self.asleep.release()
        return super().park(timeout)


class Absent:
    """In place of the thread: the test is it."""

    def join(self, timeout: float | None = None) -> None:
        pass


class Stepped(Timers):
    """Time passes, and timers fire, when the test says so. Times are small integers: exact, and often equal."""

    def __init__(self) -> None:
        super().__init__(lambda name, body: Absent(), lambda: self.now)
        self.now = 0.0
        self.bell = self._parker = Bell()

    def advance(self, seconds: float) -> float:
        self.now += seconds
        return self.fire_due()


class Threads:
    """Starts threads as the host does, and remembers them."""

    def __init__(self) -> None:
        self.started: list[threading.Thread] = []

    def __call__(self, name: str, body: Callable[[], None]) -> threading.Thread:
        thread = threading.Thread(target=body, name=name, daemon=True)
        thread.start()
        self.started.append(thread)
        return thread


@pytest.fixture
def stepped() -> Stepped:
    return Stepped()


@pytest.fixture
def threads() -> Threads:
    return Threads()


@pytest.fixture
def timers(threads: Threads) -> Iterator[Timers]:
    """On real threads, which are gone afterwards."""
    timers = Timers(threads)
    yield timers
    timers.close()
    for thread in threads.started:
        thread.join(HANG)
        assert not thread.is_alive()


@pytest.fixture
def host() -> Iterator[ThreadHost]:
    host = ThreadHost()
    yield host
    host.stop_timers()


def fires(timers: Timers | ThreadHost, delay: float = 0) -> bool:
    fired = threading.Event()
    timers.call_later(delay, fired.set)
    return fired.wait(HANG)


def refuse_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)


# ------------------------------------------------------------------------------------ when, and in which order


def test_F9_a_timer_fires_once_and_never_before_its_time(stepped: Stepped) -> None:
    fired: list[float] = []
    stepped.call_later(3, lambda: fired.append(stepped.now))
    assert stepped.fire_due() == 3
    assert stepped.advance(2) == 1
    assert fired == []
    assert stepped.advance(1) == -1
    assert stepped.advance(9) == -1
    assert fired == [3]


def test_F9_never_before_its_time_on_the_real_clock(host: ThreadHost) -> None:
    early: list[float] = []
    last = threading.Event()

    def check(due: float) -> None:
        if (left := due - host.monotonic()) > 0:
            early.append(left)

    for n in range(100):
        due = host.monotonic() + n / 5000
        host.call_later(n / 5000, partial(check, due))
    host.call_later(100 / 5000, last.set)
    assert last.wait(HANG)
    assert early == []


def test_timers_of_one_instant_fire_in_the_order_of_call_later(stepped: Stepped) -> None:
    fired: list[int] = []
    for n in range(100):
        stepped.call_later(5, partial(fired.append, n))
    stepped.advance(5)
    assert fired == list(range(100))


@pytest.mark.parametrize("delay", [0, -1, -0.0, float("-inf"), float("nan")])
def test_a_delay_that_is_none_is_now_and_takes_its_turn(stepped: Stepped, delay: float) -> None:
    fired: list[str] = []
    stepped.now = 7
    for _ in range(3):
        stepped.call_later(1, lambda: fired.append("later"))
    stepped.call_later(0, lambda: fired.append("first"))
    stepped.call_later(delay, lambda: fired.append("second"))
    stepped.call_later(0, lambda: fired.append("third"))
    assert stepped.fire_due() == 1
    assert fired == ["first", "second", "third"]


def test_a_delay_may_be_longer_than_a_thread_can_wait(timers: Timers) -> None:
    timers.call_later(float("inf"), lambda: None)
    assert fires(timers)
    timers.call_later(threading.TIMEOUT_MAX * 10, lambda: None)
    assert fires(timers)


class Model:
    """What timers do, as a sorted list would do it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pending: list[tuple[float, int]] = []
        self.fired: list[int] = []

    def call_later(self, delay: float, name: int) -> None:
        self.pending.append((self.now + max(delay, 0), name))
        self.pending.sort()

    def cancel(self, name: int) -> bool:
        before = len(self.pending)
        self.pending = [entry for entry in self.pending if entry[1] != name]
        return len(self.pending) < before

    def advance(self, seconds: float) -> float:
        self.now += seconds
        self.fired += [name for due, name in self.pending if due <= self.now]
        self.pending = [entry for entry in self.pending if entry[0] > self.now]
        return self.pending[0][0] - self.now if self.pending else -1


STEPS = st.lists(
    st.tuples(st.just("call_later"), st.integers(-1, 9))
    | st.tuples(st.just("cancel"), st.integers(0, 200))
    | st.tuples(st.just("move"), st.integers(0, 200))
    | st.tuples(st.just("advance"), st.integers(0, 4)),
    max_size=300,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=STEPS)
def test_timers_do_what_a_sorted_list_would(steps: list[tuple[str, int]]) -> None:
    stepped, model = Stepped(), Model()
    made: list[Timer] = []
    fired: list[int] = []

    def call_later(delay: float) -> None:
        name = len(made)
        made.append(stepped.call_later(delay, lambda: fired.append(name)))
        model.call_later(delay, name)

    for step, number in steps:
        if step == "call_later":
            call_later(number)
        elif step == "advance":
            assert stepped.advance(number) == model.advance(number)
            assert fired == model.fired
        elif made:
            name = number % len(made)
            assert made[name].cancel() == model.cancel(name)
            if step == "move":
                call_later(number % 10)
    assert stepped.advance(9) == model.advance(9) == -1
    assert fired == model.fired


def test_an_fn_may_set_and_cancel_timers(stepped: Stepped) -> None:
    fired: list[str] = []

    def first() -> None:
        fired.append("first")
        assert second.cancel()
        stepped.call_later(0, lambda: fired.append("third"))
        stepped.call_later(1, lambda: fired.append("fourth"))

    stepped.call_later(1, first)
    second = stepped.call_later(1, lambda: fired.append("second"))
    assert stepped.advance(1) == 1
    assert fired == ["first", "third"]
    stepped.advance(1)
    assert fired == ["first", "third", "fourth"]


# ------------------------------------------------------------------------------------ cancelling


def test_F4_cancel_says_whether_it_took_the_timer_back(stepped: Stepped) -> None:
    answers: list[bool] = []
    cancelled = stepped.call_later(1, lambda: pytest.fail("cancelled, and yet it fires"))
    fired = stepped.call_later(1, lambda: answers.append(fired.cancel()))
    assert cancelled.cancel() is True
    assert cancelled.cancel() is False
    stepped.advance(1)
    assert answers == [False]  # it had begun
    assert fired.cancel() is False


def test_F4_each_timer_either_fires_or_is_taken_back_by_one(timers: Timers) -> None:
    """The thread fires while several others cancel."""
    rounds, cancellers = 40, 3
    fired: list[int] = []
    taken: list[list[int]] = [[] for _ in range(cancellers)]
    for _ in range(rounds):
        go = threading.Barrier(cancellers + 1)
        made = [timers.call_later(n / 50_000, partial(fired.append, n)) for n in range(100)]

        def cancel(mine: list[int], made: list[Timer] = made, go: threading.Barrier = go) -> None:
            go.wait(HANG)
            mine += [n for n, timer in enumerate(made) if timer.cancel()]

        others = [threading.Thread(target=cancel, args=(mine,)) for mine in taken]
        for thread in others:
            thread.start()
        go.wait(HANG)
        for thread in others:
            thread.join(HANG)
        assert fires(timers, 100 / 50_000)  # those before it have fired, if they still could
    assert sorted(fired + [n for mine in taken for n in mine]) == sorted([*range(100)] * rounds)


def test_moving_a_timer_leaves_nothing_behind(stepped: Stepped) -> None:
    for n in range(10):
        stepped.call_later(n + 1, lambda: None)
    moved = stepped.call_later(0, lambda: None)
    longest = 0
    for n in range(100_000):
        assert moved.cancel()
        moved = stepped.call_later(n % 97, lambda: None)
        longest = max(longest, len(stepped._heap))
    assert longest <= 11 + _TOLERATED + 1


def test_cancelled_timers_are_at_most_half_of_many(stepped: Stepped) -> None:
    made = [stepped.call_later(n % 100, lambda: None) for n in range(10_000)]
    for n, timer in enumerate(made):
        timer.cancel()
        left = len(made) - n - 1
        assert len(stepped._heap) <= max(2 * left + 1, left + _TOLERATED)


def test_compacting_is_rare(stepped: Stepped, monkeypatch: pytest.MonkeyPatch) -> None:
    """However few timers there are, and each costs no more than the cancellations since the last."""
    visited: list[int] = []

    def compact() -> object:
        visited.append(len(stepped._heap))
        return Timers._compact(stepped)

    monkeypatch.setattr(stepped, "_compact", compact)
    for live in (0, 100, 1000):
        for _ in range(live):
            stepped.call_later(5, lambda: None)
        visited.clear()
        for _ in range(10_000):
            stepped.call_later(9, lambda: None).cancel()
        assert 0 < len(visited) <= 10_000 / _TOLERATED
        assert sum(visited) <= 2 * 10_000


def test_compacting_keeps_the_order(stepped: Stepped) -> None:
    fired: list[int] = []
    delays = [n * 7919 % 1000 for n in range(1000)]
    made = [stepped.call_later(delay, partial(fired.append, delay)) for delay in delays]
    for n, timer in enumerate(made):
        if n % 5:
            timer.cancel()
    assert len(stepped._heap) < 500
    stepped.advance(1000)
    assert fired == sorted(delays[::5])


def test_what_the_heap_knows_of_cancelled_timers_is_the_recount(stepped: Stepped) -> None:
    made = [stepped.call_later(n % 10, lambda: None) for n in range(200)]
    for timer in made[:90]:
        timer.cancel()
    stepped.advance(4)
    assert stepped._cancelled == sum(not timer._fns for _, _, timer in stepped._heap) > 0
    heap = list(stepped._heap)
    heapq.heapify(heap)
    assert heap == stepped._heap
    stepped.advance(10)
    assert (stepped._cancelled, stepped._heap) == (0, [])


# ------------------------------------------------------------------------------------ the user's code


class Stop(BaseException):
    pass


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt, GeneratorExit, Stop])
def test_B4_whatever_an_fn_raises_is_logged_and_the_thread_lives(
    timers: Timers, threads: Threads, caplog: pytest.LogCaptureFixture, error: type[BaseException]
) -> None:
    def fn() -> None:
        raise error("as it must")

    timers.call_later(0, fn)
    assert fires(timers)
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("cmwq", logging.ERROR)
    assert record.exc_info is not None
    assert record.exc_info[0] is error
    assert len(threads.started) == 1


def test_B4_a_log_that_fails_does_not_end_the_thread(timers: Timers, threads: Threads) -> None:
    class Filter(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            raise Stop

    log, filter_ = logging.getLogger("cmwq"), Filter()
    log.addFilter(filter_)
    try:
        timers.call_later(0, lambda: pytest.fail("to be logged"))
        assert fires(timers)
    finally:
        log.removeFilter(filter_)
    assert len(threads.started) == 1


class Captured:
    """What the closure of an fn holds: its finaliser comes back to the timers."""

    def __init__(self, timers: Timers, seen: list[bool]) -> None:
        self.timers = timers
        self.seen = seen

    def __call__(self) -> None:
        pass

    def __del__(self) -> None:
        self.seen.append(not self.timers._lock.locked())


def test_no_finaliser_runs_under_the_lock(stepped: Stepped) -> None:
    seen: list[bool] = []
    stepped.call_later(1, Captured(stepped, seen))
    stepped.call_later(1, Captured(stepped, seen))
    stepped.advance(1)
    assert seen == [True] * 2  # fired: gone at once, though the timers live on
    timer = stepped.call_later(1, Captured(stepped, seen))
    timer.cancel()
    assert seen == [True] * 3  # cancelled
    for made in [stepped.call_later(1, Captured(stepped, seen)) for _ in range(500)]:
        made.cancel()
    assert seen == [True] * 503  # cancelled, and compacted
    kept = stepped.call_later(1, Captured(stepped, seen))
    stepped.call_later(1, Captured(stepped, seen))
    stepped.close()
    assert seen == [True] * 505  # dropped
    del kept


def test_an_fn_is_called_without_the_lock(timers: Timers) -> None:
    done = threading.Event()

    def fn() -> None:
        others = threading.Thread(target=lambda: timers.call_later(HANG, lambda: None).cancel())
        others.start()
        others.join(HANG)
        if not others.is_alive():
            done.set()

    timers.call_later(0, fn)
    assert done.wait(HANG)


def test_nothing_of_a_fired_timer_is_kept(timers: Timers) -> None:
    """By the thread, while it sleeps."""

    class Fn:
        def __call__(self) -> None:
            pass

    timers._parker = parker = Watched()
    timers.start()
    assert parker.asleep.acquire(timeout=HANG)
    fn = Fn()
    gone = weakref.ref(fn)
    timer = timers.call_later(0, fn)
    del fn
    assert parker.asleep.acquire(timeout=HANG)
    until(lambda: is_forgotten(gone))
    assert timer.cancel() is False


# ------------------------------------------------------------------------------------ waking


def test_G4_no_timer_no_wake_up(stepped: Stepped) -> None:
    stepped.call_later(1, lambda: None)
    assert stepped.advance(1) == -1  # for ever
    timer = stepped.call_later(1, lambda: None)
    assert stepped.fire_due() == 1
    timer.cancel()
    assert stepped.advance(1) == -1


def test_G4_only_a_timer_earlier_than_all_wakes_the_thread(stepped: Stepped) -> None:
    stepped.fire_due()
    stepped.call_later(20, lambda: None)
    assert stepped.bell.rings == 1
    stepped.call_later(10, lambda: None)
    assert stepped.bell.rings == 1  # it was woken, and has yet to look
    assert stepped.fire_due() == 10
    stepped.call_later(10, lambda: None)
    stepped.call_later(30, lambda: None)
    assert stepped.bell.rings == 1
    stepped.call_later(9, lambda: None)
    assert stepped.bell.rings == 2


def test_G4_moving_a_timer_back_and_forth_behind_the_first_wakes_nobody(stepped: Stepped) -> None:
    stepped.call_later(1, lambda: None)
    stepped.fire_due()
    rings = stepped.bell.rings
    for n in range(1000):
        stepped.call_later(2 + n % 5, lambda: None).cancel()
    assert stepped.bell.rings == rings


def test_ctrl_c_between_push_and_unpark_hides_no_timer(stepped: Stepped) -> None:
    class Interrupted(Bell):
        __slots__ = ("before",)

        def unpark(self) -> None:
            if not hasattr(self, "before"):
                self.before = True
                raise KeyboardInterrupt
            super().unpark()

    stepped.fire_due()
    stepped._parker = bell = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        stepped.call_later(1, lambda: None)
    assert bell.rings == 1


def test_the_thread_sleeps_for_ever_and_wakes_for_the_next(timers: Timers) -> None:
    timers._parker = parker = Watched()
    timers.start()
    for _ in range(3):
        assert parker.asleep.acquire(timeout=HANG)
        timers.call_later(0, lambda: None)
    assert parker.asleep.acquire(timeout=HANG)
    assert parker.timeouts == [-1] * 4


# ------------------------------------------------------------------------------------ the thread


def test_G1_no_thread_before_the_first_timer(timers: Timers, threads: Threads) -> None:
    assert threads.started == []
    assert fires(timers)
    (thread,) = threads.started
    assert thread.name == THREAD


def test_one_thread_however_many_ask_for_it(timers: Timers, threads: Threads) -> None:
    go = threading.Barrier(8)

    def ask() -> None:
        go.wait(HANG)
        timers.call_later(0, lambda: None)

    asking = [threading.Thread(target=ask) for _ in range(8)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join(HANG)
    assert fires(timers)
    assert len(threads.started) == 1


def test_B6_a_timer_without_a_thread_is_refused_and_not_kept(monkeypatch: pytest.MonkeyPatch, host: ThreadHost) -> None:
    fired: list[str] = []
    with monkeypatch.context() as patch:
        refuse_threads(patch)
        with pytest.raises(ThreadLimit, match=THREAD):
            host.start_timers()
        with pytest.raises(ThreadLimit, match=THREAD):
            host.call_later(0, lambda: fired.append("refused"))
    assert host._timers._heap == []
    assert fires(host)
    assert fired == []


def test_B6_once_started_no_thread_is_needed(monkeypatch: pytest.MonkeyPatch, host: ThreadHost) -> None:
    host.start_timers()
    refuse_threads(monkeypatch)
    assert fires(host)
    assert fires(host)
    host.start_timers()


def test_ctrl_c_while_the_thread_starts_makes_no_second(threads: Threads) -> None:
    """The signal comes after the thread began and before `start` knows it."""
    interruptions = [KeyboardInterrupt]

    def spawn(name: str, body: Callable[[], None]) -> threading.Thread:
        thread = threads(name, body)
        if interruptions:
            raise interruptions.pop()
        return thread

    timers = Timers(spawn)
    with pytest.raises(KeyboardInterrupt):
        timers.call_later(0, lambda: pytest.fail("taken back, and yet it fires"))
    timers.start()
    assert fires(timers)
    staying = [thread for thread in threads.started if thread is timers._thread]
    assert len(staying) == 1
    for thread in threads.started:
        if thread not in staying:
            thread.join(HANG)
            assert not thread.is_alive()
    assert fires(timers)
    timers.close()
    assert not staying[0].is_alive()


# ------------------------------------------------------------------------------------ the end


def test_close_ends_the_thread_and_drops_what_is_to_come(threads: Threads) -> None:
    timers = Timers(threads)
    dropped = timers.call_later(HANG, lambda: pytest.fail("dropped, and yet it fires"))
    timers.close()
    timers.close()
    assert not threads.started[0].is_alive()
    assert dropped.cancel() is False
    for late in (timers.start, lambda: timers.call_later(0, lambda: None)):
        with pytest.raises(QueueClosed, match="ended"):
            late()


def test_close_without_a_thread_starts_none(threads: Threads) -> None:
    timers = Timers(threads)
    timers.close()
    with pytest.raises(QueueClosed):
        timers.call_later(0, lambda: None)
    assert threads.started == []


def test_an_fn_may_close(threads: Threads, caplog: pytest.LogCaptureFixture) -> None:
    timers = Timers(threads)
    timers.call_later(0, timers.close)
    threads.started[0].join(HANG)
    assert not threads.started[0].is_alive()
    assert caplog.records == []


def test_a_host_may_stop_its_timers_and_have_new_ones(host: ThreadHost) -> None:
    assert fires(host)
    before = host._timers._thread
    assert isinstance(before, threading.Thread)
    host.stop_timers()
    assert not before.is_alive()
    assert fires(host)


def test_F10_timers_whose_end_was_interrupted_are_ended_by_the_next_call() -> None:
    def run(interrupt: InterruptAt) -> None:
        host = ThreadHost()
        host.start_timers()
        thread = host._timers._thread
        assert isinstance(thread, threading.Thread)
        with contextlib.suppress(Interrupt), interrupt:
            host.stop_timers()
        host.stop_timers()
        thread.join(HANG)
        assert not thread.is_alive()

    assert at_each(run, "_host/__init__.py", "_host/timers.py") > 30


Python = Callable[..., "subprocess.CompletedProcess[str]"]


def test_G2_a_forked_child_has_no_timers_and_may_have_new_ones(python: Python) -> None:
    """Forked while somebody holds every lock of the timers: nobody in the child ever lets go of them."""
    done = python("""
        import os, threading, warnings
        from cmwq._host import ThreadHost
        warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads, on purpose
        host = ThreadHost()
        fired = threading.Event()
        old = host.call_later(0.05, lambda: os.write(1, b"parent "))
        locks = host._timers._starting, host._timers._lock
        for lock in locks:
            lock.acquire()
        pid = os.fork()
        if pid == 0:
            host.forget()
            print(old.cancel(), end=" ")
            host.call_later(0.1, fired.set)
            print(fired.wait(30), [t.name for t in threading.enumerate()][1:], end=" ", flush=True)
            os._exit(0)
        for lock in locks:
            lock.release()
        os.waitpid(pid, 0)
        host.call_later(0, fired.set)
        print(fired.wait(30))
    """)
    child = "False True ['cmwq/timers'] "
    assert (sorted(done.stdout.split()), done.stderr) == (sorted(f"{child}parent True".split()), "")


def test_G2_an_fn_that_forks_leaves_no_timer_thread_in_the_child(python: Python) -> None:
    done = python("""
        import os, threading, warnings
        from cmwq._host import ThreadHost
        warnings.simplefilter("ignore", DeprecationWarning)
        host = ThreadHost()
        forked, next_one = threading.Event(), threading.Event()
        def fork():
            pid = os.fork()
            if pid == 0:
                host.forget()
                return  # to what was the timer thread
            _, status = os.waitpid(pid, 0)
            print("child ended", status)
            forked.set()
        host.call_later(0, fork)
        host.call_later(0, lambda: (print("next", flush=True), next_one.set()))
        assert forked.wait(30) and next_one.wait(30)
        host.stop_timers()
    """)
    assert (sorted(done.stdout.splitlines()), done.stderr) == (["child ended 0", "next"], "")


def test_timers_are_let_go_of_with_their_host() -> None:
    """No thread, no cycle that only a root would hold."""
    host = ThreadHost()
    gone: Any = weakref.ref(host)
    del host
    gc.collect()
    assert gone() is None


# ------------------------------------------------------------------------------------ interrupted, and entered again


def test_cancel_within_a_call_on_the_same_thread_takes_back_and_is_counted_later(stepped: Stepped) -> None:
    timer = stepped.call_later(1, lambda: pytest.fail("cancelled, and yet it fires"))
    with stepped._lock:
        assert timer.cancel() is True
        assert timer.cancel() is False
        assert stepped._cancelled == 0
    assert stepped._cancelled == 1
    assert stepped.advance(1) == -1


def test_call_later_within_a_call_on_the_same_thread_is_refused_and_changes_nothing(stepped: Stepped) -> None:
    stepped.call_later(1, lambda: None)
    heap = list(stepped._heap)
    with stepped._lock:
        with pytest.raises(Reentered):
            stepped.call_later(0, lambda: None)
        with pytest.raises(Reentered):
            stepped.close()
    assert stepped._heap == heap
    stepped.call_later(0, lambda: None)  # it is no call in progress any more


def test_an_exception_at_any_bytecode_loses_no_timer_and_doubles_none() -> None:
    def run(interrupt: InterruptAt) -> None:
        stepped = Stepped()
        fired: list[str] = []
        stepped.call_later(1, partial(fired.append, "first"))
        stepped.fire_due()
        kept, answer = None, False
        try:
            with interrupt:
                kept = stepped.call_later(0, partial(fired.append, "second"))
                taken_back = stepped.call_later(3, partial(fired.append, "third"))
                answer = taken_back.cancel()
                stepped.advance(1)
        except Interrupt:
            pass
        rings = stepped.bell.rings
        assert not stepped._heap or stepped._wakes_at <= stepped._heap[0][0] or rings
        stepped.advance(9)
        assert fired.count("first") == 1
        assert kept is None or fired.count("second") == 1
        assert fired.count("second") <= 1
        assert not (answer and "third" in fired)
        assert (stepped._heap, stepped._cancelled, inside()) == ([], 0, 0)

    logging.getLogger("cmwq").disabled = True
    try:
        assert at_each(run, "timers.py", "_host/locks.py") > 100
    finally:
        logging.getLogger("cmwq").disabled = False


def test_the_timer_thread_outlives_an_exception_at_any_bytecode_of_its_loop() -> None:
    def run(interrupt: InterruptAt) -> None:
        began = SimpleQueue[None]()

        def spawn(name: str, body: Callable[[], None]) -> threading.Thread:
            def traced() -> None:
                began.get()
                interrupt.since = "_serve"  # before that it is not yet in its loop
                with contextlib.suppress(Interrupt), interrupt:  # one that comes after its loop, at its end
                    body()

            thread = threading.Thread(target=traced, name=name)
            thread.start()
            return thread

        timers = Timers(spawn)
        fired = SimpleQueue[int]()
        for n in range(2):
            timers.call_later(0, partial(fired.put, n))
        began.put(None)
        assert [fired.get(timeout=HANG) for _ in range(2)] == [0, 1]
        timers.call_later(0, partial(fired.put, 2))
        assert fired.get(timeout=HANG) == 2
        assert fired.empty()
        thread = timers._thread
        assert isinstance(thread, threading.Thread)
        timers.close()
        assert not thread.is_alive()

    assert at_each(run, "_host/timers.py", "_host/locks.py", "_host/parker.py") > 50


def test_the_timer_thread_outlives_what_is_thrown_at_it(timers: Timers, threads: Threads) -> None:
    assert fires(timers)
    (thread,) = threads.started
    for n in range(100):
        fired = [SimpleQueue[int]() for _ in range(2)]
        timers.call_later(0, partial(fired[0].put, n))
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(Stop))
        timers.call_later(0, partial(fired[1].put, n))
        assert [one.get(timeout=HANG) for one in fired] == [n, n]
    assert len(threads.started) == 1


def test_if_the_timer_thread_is_ended_all_the_same_another_takes_its_place(
    timers: Timers, threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fires(timers)
    (thread,) = threads.started
    throw = partial(
        ctypes.pythonapi.PyThreadState_SetAsyncExc, ctypes.c_ulong(thread.ident or 0), ctypes.py_object(Stop)
    )

    def raise_two_at_once() -> bool:
        """The second comes while the first is being handled: no bytecode is between them."""
        del timers._serve  # type: ignore[method-assign]
        list(map(call, (throw, partial(int, "no number"))))
        return False

    fired = SimpleQueue[None]()
    timers.call_later(0.1, partial(fired.put, None))
    monkeypatch.setattr(logging.getLogger("cmwq"), "disabled", True)
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    timers._serve = raise_two_at_once  # type: ignore[method-assign]
    throw()
    timers._parker.unpark()
    thread.join(HANG)
    assert not thread.is_alive()
    fired.get(timeout=HANG)
    assert fires(timers)
    assert timers._thread is threads.started[1]
    assert len(threads.started) == 2
