"""The lock that `concurrent.futures.wait` and `as_completed` hold while they read a future (`_workqueue/readers.py`).

Ctrl-C in their loops leaves such locks held for ever. B4: who waits for a call is told of its end all the same.
"""

from __future__ import annotations

import concurrent.futures as cf
import os
import random
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import HANG, Gate, until
from handlers import handler_raises
from thorough import often

import cmwq
from cmwq._core.told import Told
from cmwq._workqueue import readers
from cmwq._workqueue.audience import Audience


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open.set()


@pytest.fixture
def held(universe: cmwq.Runtime, gate: Gate) -> cf.Future[Any]:
    """A call that runs until the gate opens. Ctrl-C has left its condition held by this thread."""
    future = cmwq.WorkQueue("q", runtime=universe).submit(gate)
    assert gate.arrived.acquire(timeout=HANG)
    future._condition.acquire()
    return future


def on_a_thread(fn: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=fn, daemon=True)
    thread.start()
    return thread


def slowly(monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[], object]) -> None:
    """`wait` does that after it has read the states, and before it says that it waits."""
    install = cf._base._create_and_install_waiters  # type: ignore[attr-defined]

    def instead(*args: Any) -> Any:
        meanwhile()
        return install(*args)

    monkeypatch.setattr(cf._base, "_create_and_install_waiters", instead)


def test_B4_who_left_the_lock_held_waits_again(
    held: cf.Future[Any], gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call ends while the thread reads the state: it must not be told too early. It was, when the worker gave up
    after a while, and then a thread waited for ever.
    """
    monkeypatch.setattr(readers, "SLICES", 1_000_000)  # nobody takes the lock away but the thread that left it

    def end_the_call() -> None:
        gate.open.set()
        time.sleep(2 * readers.SLICE)
        assert not held.done(), "its state changed while a thread read it"

    slowly(monkeypatch, end_the_call)
    assert cf.wait([held], HANG).done == {held}
    assert held.result(HANG) is None


def test_B4_another_thread_waits_for_a_call_whose_lock_was_left_held(held: cf.Future[Any], gate: Gate) -> None:
    done: list[object] = []
    threads = [
        on_a_thread(lambda: done.append(cf.wait([held], HANG).done == {held})),
        on_a_thread(lambda: done.append(list(cf.as_completed([held], HANG)) == [held])),
    ]
    time.sleep(0.01)
    gate.open.set()
    for thread in threads:
        thread.join(HANG)
    assert done == [True, True]
    assert held.result(HANG) is None


def test_B4_the_call_ends_though_its_lock_was_left_held(held: cf.Future[Any], gate: Gate) -> None:
    gate.open.set()
    assert held.result(HANG) is None
    held._condition.release()  # who has it no longer may say that it is done with it


def test_B4_a_reader_that_takes_steps_keeps_its_lock(
    universe: cmwq.Runtime, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A `wait` for very many futures holds the first one's lock for longer than anybody waits for a step."""
    monkeypatch.setattr(readers, "SLICE", 0.05)
    queue = cmwq.WorkQueue("q", runtime=universe)
    future, other = queue.submit(gate), queue.submit(gate)._condition
    assert gate.arrived.acquire(timeout=HANG)

    def step_for_long() -> None:
        gate.open.set()
        until = time.monotonic() + 60 * readers.SLICE
        while time.monotonic() < until:
            with other:
                assert not future.done(), "its state changed while a thread read it"
            time.sleep(0.001)

    slowly(monkeypatch, step_for_long)
    monkeypatch.setattr(readers, "SLICES", 40)  # this thread may be kept from running for two seconds
    assert cf.wait([future], HANG).done == {future}


def test_B4_a_wait_within_a_wait_leaves_the_outer_one_its_lock(
    universe: cmwq.Runtime, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a signal handler does that waits for the same futures."""
    monkeypatch.setattr(readers, "SLICES", 1_000_000)
    future = cmwq.WorkQueue("q", runtime=universe).submit(gate)
    assert gate.arrived.acquire(timeout=HANG)
    depth = []

    def wait_again() -> None:
        if not depth:
            depth.append(1)
            assert cf.wait([future], 0.001).not_done == {future}
            gate.open.set()
            time.sleep(2 * readers.SLICE)
            assert not future.done(), "its state changed while a thread read it"

    slowly(monkeypatch, wait_again)
    assert cf.wait([future], HANG).done == {future}


def test_B4_who_cancels_within_a_wait_is_told_of_it(
    universe: cmwq.Runtime, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a signal handler does. The wait has read that the call waits, and has not said yet that it waits for it."""
    queue = cmwq.WorkQueue("q", max_active=1, runtime=universe)
    queue.submit(gate)
    future = queue.submit(int)
    told: list[cf.Future[int]] = []
    future.add_done_callback(told.append)

    def cancel() -> None:
        assert future.cancel()
        assert future.done()

    slowly(monkeypatch, cancel)
    assert cf.wait([future], HANG).done == {future}
    until(lambda: told == [future])


def test_B4_who_left_a_lock_held_and_waits_for_others_keeps_nobody(held: cf.Future[Any], gate: Gate) -> None:
    """As a loop that polls, and takes steps all the time."""
    stop = threading.Event()
    other = held.queue.submit(stop.wait, HANG)  # type: ignore[attr-defined]
    gate.open.set()
    deadline = time.monotonic() + HANG / 2
    try:
        while not held.done():
            assert time.monotonic() < deadline
            assert cf.wait([other], 0.01).not_done
    finally:
        stop.set()


def test_B4_many_that_were_left_held_keep_others_no_longer_than_one(
    universe: cmwq.Runtime, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = cmwq.WorkQueue("q", runtime=universe)
    futures = [queue.submit(gate) for _ in range(40)]

    def leave() -> None:
        for future in futures:
            future._condition.acquire()

    leave()
    looks: list[float] = []

    class Counted(Told):
        def wait(self, timeout: float | None = None) -> bool:
            looks.append(1)
            return super().wait(timeout)

    monkeypatch.setattr(readers, "Told", Counted)
    thread = on_a_thread(lambda: cf.wait(futures, 0))
    thread.join(HANG)
    assert not thread.is_alive()
    assert 1 <= len(looks) <= 2 * readers.SLICES  # the waiter's own event is one of them


def test_B4_a_reader_that_waits_for_another_keeps_its_own(
    universe: cmwq.Runtime, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "SLICE", 0.05)
    monkeypatch.setattr(readers, "SLICES", 40)  # these threads may be kept from running for two seconds
    queue = cmwq.WorkQueue("q", runtime=universe)
    first, second, third = (queue.submit(gate)._condition for _ in range(3))
    holds, waits = threading.Event(), threading.Event()
    kept: list[bool] = []

    @readers.reads
    def hold_for_long() -> None:
        with second:
            holds.set()
            until = time.monotonic() + 60 * readers.SLICE
            while time.monotonic() < until:
                with third:  # a step
                    time.sleep(0.001)

    @readers.reads
    def wait_for_it() -> None:
        with first:
            waits.set()
            with second:
                kept.append(first.is_mine())  # type: ignore[union-attr]

    threads = [on_a_thread(hold_for_long)]
    assert holds.wait(HANG)
    threads += [on_a_thread(wait_for_it)]
    assert waits.wait(HANG)
    with first:
        assert kept == [True], "it was taken away while its thread waited"
    for thread in threads:
        thread.join(HANG)


def test_who_is_about_to_sleep_sees_that_it_was_told_meanwhile() -> None:
    told = Told()

    class Beds(list[Any]):
        def append(self, bed: Any) -> None:
            told.set()
            super().append(bed)

    told.sleepers = Beds()
    assert told.wait(HANG)
    assert told.sleepers == []
    told.clear()
    told.sleepers = []
    assert not told.wait(0.001)
    assert not told.wait(-1)
    threads = [on_a_thread(told.wait) for _ in range(3)]
    until(lambda: len(told.sleepers) == 3)
    told.set()
    told.set()
    for thread in threads:
        thread.join(HANG)
        assert not thread.is_alive()
    assert told.is_set()


@pytest.mark.parametrize("who", ["itself", "another thread"])
def test_B4_a_wait_that_was_suspended_for_long_fails_and_does_not_wait_in_vain(
    who: str, universe: cmwq.Runtime, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a handler that waits for the very call, say: one of the two has to give way."""
    future = cmwq.WorkQueue("q", runtime=universe).submit(gate)

    def wait_for_its_end() -> None:
        gate.open.set()
        assert future.result(HANG) is None

    slowly(monkeypatch, wait_for_its_end if who == "itself" else lambda: on_a_thread(wait_for_its_end).join(HANG))
    with pytest.raises(cmwq.Reentered, match="has to be begun anew"):
        cf.wait([future], HANG)
    monkeypatch.undo()
    assert cf.wait([future], HANG).done == {future}


class Cancelled:
    """A call that does not begin, as its queue is full, and what is told of its end."""

    def __init__(self, runtime: cmwq.Runtime, gate: Gate) -> None:
        self.queue = cmwq.WorkQueue("q", max_active=1, runtime=runtime)
        self.queue.submit(gate)
        assert gate.arrived.acquire(timeout=HANG)
        self.future, self.other = self.queue.submit(int), self.queue.submit(int)
        self.told: list[str] = []
        self.future.add_done_callback(lambda _: self.told.append(threading.current_thread().name))


@pytest.mark.parametrize("where", ["event", "lock"])
def test_B4_who_cancels_anywhere_in_a_wait_hangs_nobody(
    where: str, universe: cmwq.Runtime, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a signal handler, while the interrupted code holds, or is about to use, the locks of `concurrent.futures`."""
    call = Cancelled(universe, gate)
    steps = cf.as_completed([call.future], HANG)
    if where == "event":
        wait = Told.wait

        def cancel_first(self: Told, timeout: float | None = None) -> bool:
            assert call.future.cancel()
            return wait(self, timeout)

        monkeypatch.setattr(Told, "wait", cancel_first)
    else:
        clear = Told.clear

        def cancel_within(self: Told) -> None:
            assert call.other.cancel()
            clear(self)

        monkeypatch.setattr(Told, "clear", cancel_within)  # `as_completed` holds the waiter's lock
        steps = cf.as_completed([call.future, call.other], HANG)

        def cancel() -> None:
            until(lambda: bool(call.future._waiters))  # type: ignore[attr-defined]
            time.sleep(0.05)
            call.future.cancel()

        on_a_thread(cancel)
    assert call.future in set(steps)
    until(lambda: bool(call.told))


def test_B4_a_callback_that_cancels_what_others_wait_for_announces_that_itself(
    universe: cmwq.Runtime, gate: Gate
) -> None:
    """It interrupts no wait: the announcement that calls it has told all that read."""
    call = Cancelled(universe, gate)
    assert cf.wait([call.future, call.other], 0).done == set()  # both have readers
    call.other.add_done_callback(lambda _: call.future.cancel())
    assert call.other.cancel()
    assert call.told == [threading.current_thread().name]


def test_B4_the_timer_thread_calls_no_callbacks(
    universe: cmwq.Runtime, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may take long, and a runtime that is closed drops its timers."""
    call = Cancelled(universe, gate)
    slowly(monkeypatch, call.future.cancel)
    assert cf.wait([call.future], HANG).done
    until(lambda: call.told == ["cmwq announces"])


def test_B4_where_no_thread_can_be_had_the_timer_thread_announces(
    universe: cmwq.Runtime, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = Cancelled(universe, gate)
    universe.host.call_later(0.0, int)

    def refuse(*_: object) -> None:
        raise cmwq.ThreadLimit("no")

    monkeypatch.setattr(universe.host, "spawn", refuse)
    slowly(monkeypatch, call.future.cancel)
    assert cf.wait([call.future], HANG).done
    until(lambda: bool(call.told))


def test_F10_ctrl_c_anywhere_in_waits_keeps_nobody(universe: cmwq.Runtime) -> None:
    """A signal at random moments, as often as there is time for."""
    queue = cmwq.WorkQueue("q", runtime=universe)
    until_then = time.monotonic() + often(5, 2)
    with handler_raises(signal.SIGALRM, KeyboardInterrupt):
        while time.monotonic() < until_then:
            gate, told = Gate(), threading.Event()
            future = queue.submit(gate)
            future.add_done_callback(lambda _, told=told: told.set())  # type: ignore[misc]
            for _ in range(20):
                with suppress(KeyboardInterrupt):  # it may come late
                    with suppress(KeyboardInterrupt):
                        signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-5, 2e-4))
                        cf.wait([future], 0.01)
                        time.sleep(0.01)
                    signal.setitimer(signal.ITIMER_REAL, 0)
            gate.open.set()
            assert told.wait(HANG)


@pytest.fixture
def lock(universe: cmwq.Runtime, gate: Gate) -> readers.Readers:
    condition = cmwq.WorkQueue("q", runtime=universe).submit(gate)._condition
    assert isinstance(condition, readers.Readers)
    return condition


def looks_until_it_is_taken(lock: readers.Readers, monkeypatch: pytest.MonkeyPatch) -> int:
    """How often another thread looks before it takes the hold from this one."""
    waiting, looks = Told.wait, 0

    def count(self: Told, timeout: float | None = None) -> bool:
        nonlocal looks
        looks += 1
        return waiting(self, timeout)

    with monkeypatch.context() as patched:
        patched.setattr(readers, "SLICE", 0.005)
        patched.setattr(Told, "wait", count)
        thread = on_a_thread(lock.acquire)
        thread.join(HANG)
        assert not thread.is_alive()
    assert not lock.is_mine()
    return looks


def test_B4_who_lost_its_hold_to_one_that_reads_is_refused(
    lock: readers.Readers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other may be about to change the state that this one has read."""
    waiter = cf._base._AllCompletedWaiter(1, stop_on_exception=False)  # type: ignore[attr-defined]
    taken, enough = threading.Event(), threading.Event()

    @readers.reads
    def read() -> None:
        with lock:
            taken.set()
            enough.wait(HANG)

    with lock:
        monkeypatch.setattr(readers, "SLICE", 0.005)
        thread = on_a_thread(read)
        assert taken.wait(HANG)
        assert lock._holder is not None
        with pytest.raises(cmwq.Reentered, match="has to be begun anew"):
            lock.append(waiter)
        assert lock.copy() == []
    enough.set()
    thread.join(HANG)


def test_who_holds_very_many_has_more_time_to_read_them(lock: readers.Readers, monkeypatch: pytest.MonkeyPatch) -> None:
    with lock:
        holder = lock._holder
        assert holder is not None
        assert looks_until_it_is_taken(lock, monkeypatch) == readers.SLICES
    with lock:
        holder = lock._holder
        assert holder is not None
        holder.holds = 20 * readers.MANY
        assert looks_until_it_is_taken(lock, monkeypatch) == readers.SLICES + 20
        holder.holds = 1


def test_to_note_that_one_waits_is_a_step(lock: readers.Readers) -> None:
    waiter = cf._base._AllCompletedWaiter(1, stop_on_exception=False)  # type: ignore[attr-defined]
    with lock:
        holder = lock._holder
        assert holder is not None
        before = holder.steps
        lock.append(waiter)
        assert holder.steps > before
        lock.remove(waiter)


def test_a_holder_that_takes_a_step_at_the_last_moment_keeps_its_hold(
    lock: readers.Readers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "SLICE", 0.01)
    waiting, looks = Told.wait, 0

    def wait_and_see_a_step(self: Told, timeout: float | None = None) -> bool:
        nonlocal looks
        told = waiting(self, timeout)
        looks += 1
        if looks < 4 * readers.SLICES:
            holder.steps += 1
        return told

    with lock:
        holder = lock._holder
        assert holder is not None
        monkeypatch.setattr(Told, "wait", wait_and_see_a_step)
        thread = on_a_thread(lock.acquire)
        thread.join(HANG)
        assert not thread.is_alive()
        assert 5 * readers.SLICES - 2 <= looks <= 5 * readers.SLICES + 2, "it was taken for one that is over too early"
        assert not lock.is_mine()


def test_G2_in_the_child_of_a_fork_nobody_waits_for_the_parents_call(universe: cmwq.Runtime, gate: Gate) -> None:
    future = cmwq.WorkQueue("q", runtime=universe).submit(gate)
    assert gate.arrived.acquire(timeout=HANG)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        status = 1
        try:
            cf.wait([future])
        except cmwq.ForeignProcess:
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_B4_two_threads_that_announce_the_same_end_call_each_callback_once(
    universe: cmwq.Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    """The worker, and who gives the call up."""
    queue = cmwq.WorkQueue("q", runtime=universe)
    for _ in range(often(50, 10)):
        phase = queue.submit(int).phase
        future = SimpleNamespace(phase=phase, cancelled=lambda: False, _state="RUNNING", _exception=None)
        told: list[int] = []
        audience = Audience()
        audience.callbacks = [lambda _, n=n, told=told: told.append(n) for n in range(300)]  # type: ignore[misc]
        threads = [on_a_thread(partial(audience.announce, future)) for _ in range(2)]
        for thread in threads:
            thread.join(HANG)
        assert sorted(told) == list(range(300))
    assert not caplog.records


# ---------------------------------------------------------------------------------------- what is over needs no lock


def test_B4_calls_that_are_over_before_anybody_reads(universe: cmwq.Runtime, gate: Gate) -> None:
    queue = cmwq.WorkQueue("q", max_active=1, runtime=universe)
    over, bad = queue.submit(int), queue.submit(divmod, 1, 0)
    assert over.result(HANG) == 0
    assert isinstance(bad.exception(HANG), ZeroDivisionError)
    running, cancelled = queue.submit(gate), queue.submit(int)
    assert gate.arrived.acquire(timeout=HANG)
    assert cancelled.cancel()
    for future in (over, bad, cancelled):
        assert future._condition is readers.OVER
        assert future._waiters is readers.OVER
    done, not_done = cf.wait([over, bad, running, cancelled], 0.001)
    assert (done, not_done) == ({over, bad, cancelled}, {running})
    assert cf.wait([over, running], HANG, cf.FIRST_COMPLETED).done == {over}
    assert bad in cf.wait([bad, running], HANG, cf.FIRST_EXCEPTION).done
    steps = cf.as_completed([over, bad, running, cancelled], HANG)
    assert {next(steps), next(steps), next(steps)} == {over, bad, cancelled}
    gate.open.set()
    assert next(steps) is running
    assert next(steps, None) is None
    assert running._condition is not readers.OVER, "once made, always the same"


def test_who_sees_the_end_of_a_call_that_another_thread_reads_sees_its_readers(lock: readers.Readers) -> None:
    """They are made, and the call ends, just before this thread looks at the state. It finds the same ever after."""

    class EndsNow:
        _audience: Audience | None = None

        @property
        def _state(self) -> str:
            self._audience = Audience()
            self._audience.readers = lock
            return "FINISHED"

    assert readers.readers_of(EndsNow()) is lock  # type: ignore[arg-type]


class Short:
    """A pool on which calls wait, and so many begin in each nap."""

    def __init__(self, begin: int, waiting: int = 1_000_000) -> None:
        self.begin = begin
        self.worklist = range(waiting)
        self.naps = self.started = 0
        self.host = SimpleNamespace(monotonic=lambda: 1.0, parker=lambda: None)

    def nap(self, parker: object) -> None:
        self.naps += 1
        self.started += self.begin
        self.worklist = self.worklist[self.begin :]

    def count_started(self) -> int:
        return self.started


def naps(pool: Any) -> int:
    pool.naps = 0
    readers.let_workers_go_first(cf.Future(), pool)  # type: ignore[arg-type]  # it is not done
    return int(pool.naps)


@pytest.fixture
def awake() -> None:
    """This thread has not napped yet."""
    readers._thread.me.wakes_at = 0.0


@pytest.mark.usefixtures("awake")
def test_who_is_about_to_wait_lets_the_workers_go_first_and_not_for_long() -> None:
    assert naps(Short(1000, waiting=2500)) == 3
    assert naps(Short(1000, waiting=0)) == 0
    long = Short(readers.FINE - 1)
    assert naps(long) == 1
    assert naps(long) == 0, "it does not nap again and again while long works wait"


@pytest.mark.usefixtures("awake")
def test_naps_end_though_short_calls_never_do() -> None:
    assert naps(Short(1000)) == readers.NAPS


def test_nobody_naps_within_a_hold_or_on_a_worker(universe: cmwq.Runtime, lock: readers.Readers, awake: None) -> None:
    with lock:
        assert naps(Short(1000, waiting=2500)) == 0
    assert naps(Short(1000, waiting=2500)) == 3
    with cmwq.WorkQueue("q", runtime=universe) as queue:
        assert queue.submit(naps, Short(1000, waiting=2500)).result(HANG) == 0

    def leave() -> None:
        lock.acquire()  # and is interrupted

    leave()
    assert naps(Short(1000, waiting=2500)) == 3, "a hold that was left does not count for ever"
