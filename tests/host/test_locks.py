# ruff: noqa: PT012  # what raises is the end of a section
"""The locks: however a section is left, it is over; nobody waits for himself; what can't be done now is done later."""

from __future__ import annotations

import ctypes
import gc
import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import HANG, needs_failing_malloc
from opcodes import Interrupt, InterruptAt, at_each

from cmwq import CmwqError, Reentered
from cmwq._core.ranks import Rank
from cmwq._errors import PACKAGE, REFUSALS, own
from cmwq._host import locks
from cmwq._host.parker import LockParker

try:
    from cmwq._sensor import _sentinel
except ImportError:  # no compiler was there
    _sentinel = None  # type: ignore[assignment]

Python = Callable[..., "subprocess.CompletedProcess[str]"]
FILES = ("test_locks.py", "locks.py")


def families() -> Iterator[Any]:
    yield SimpleNamespace(name="py", Lock=locks.PyLock, inside=locks.py_inside, defer=locks.py_defer)
    if _sentinel is not None:
        yield SimpleNamespace(name="c", Lock=_sentinel.Lock, inside=_sentinel.inside, defer=_sentinel.defer)
        yield SimpleNamespace(name="lookout", Lock=lookout, inside=_sentinel.inside, defer=_sentinel.defer)


def lookout(rank: int, mend: Callable[[], object] | None = None) -> Any:
    made = _sentinel.Watch().lookout((0,), 1, 1, rank)
    made.mend = mend
    return made


@pytest.fixture(params=families(), ids=lambda family: family.name)
def family(request: pytest.FixtureRequest) -> Iterator[Any]:
    yield request.param
    assert request.param.inside() == 0


PROGRAM = """
    import os, sys, threading, warnings
    from cmwq._host import locks
    warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads, on purpose
    if sys.argv[1:] == ["py"] or locks.Lock is locks.PyLock:
        Lock, inside, defer = locks.PyLock, locks.py_inside, locks.py_defer
    else:
        Lock, inside, defer = locks.Lock, locks.inside, locks.defer
"""


@pytest.fixture(params=["py", "c"])
def program(request: pytest.FixtureRequest, python: Python) -> Callable[[str], str]:
    """Run it in a process of its own. What it printed."""
    if request.param == "c" and _sentinel is None:
        pytest.skip("the C extension was not built")

    def run(text: str) -> str:
        done = python("import sys; sys.argv[1:] = [%r]\n" % request.param, PROGRAM, text)  # noqa: UP031
        assert (done.stderr, done.returncode) == ("", 0)
        return done.stdout

    return run


class Bell:
    """A parker that counts."""

    def __init__(self) -> None:
        self.rings = 0

    def unpark(self) -> None:
        self.rings += 1


def on_a_thread(fn: Callable[[], object]) -> Any:
    """What fn returned, or raised."""
    result: list[Any] = []

    def body() -> None:
        try:
            result.append(fn())
        except BaseException as exc:
            result.append(exc)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join(HANG)
    assert not thread.is_alive()
    return result[0]


def is_free(lock: Any) -> bool:
    """Another thread can have it."""

    def take() -> bool:
        with lock:
            return bool(lock.held())

    return not lock.locked() and on_a_thread(take) is True


# ------------------------------------------------------------------------------------ held, and by whom


def test_which_lock_is_chosen() -> None:
    if _sentinel is None:
        assert (locks.Lock, locks.inside, locks.defer) == (locks.PyLock, locks.py_inside, locks.py_defer)
    else:
        assert locks.Lock is _sentinel.Lock
        assert (locks.inside, locks.defer) == (_sentinel.inside, _sentinel.defer)


def test_a_section_holds_the_lock_until_its_end(family: Any) -> None:
    lock = family.Lock(3)
    with lock as nothing:
        assert nothing is None
        assert (lock.locked(), lock.held(), family.inside()) == (True, True, 1 << 3)
        assert on_a_thread(lambda: (lock.locked(), lock.held(), family.inside())) == (True, False, 0)
    assert (lock.locked(), lock.held(), family.inside()) == (False, False, 0)
    assert is_free(lock)


def test_by_hand(family: Any) -> None:
    lock = family.Lock(3)
    assert lock.acquire() is None
    assert (lock.locked(), lock.held(), family.inside()) == (True, True, 1 << 3)
    with pytest.raises(RuntimeError, match="doesn't hold"):
        raise on_a_thread(lock.release)
    assert lock.held()
    lock.release()
    with pytest.raises(RuntimeError, match="doesn't hold"):
        lock.release()
    assert is_free(lock)


def test_a_section_in_which_it_is_let_go_of_and_taken_again_ends_as_one(family: Any) -> None:
    """A worker's loop does that around each item."""
    lock = family.Lock(3)
    with lock:
        lock.release()
        assert is_free(lock)
        assert family.inside() == 0
        lock.acquire()
        assert (lock.held(), family.inside()) == (True, 1 << 3)
    assert is_free(lock)
    with pytest.raises(KeyError):
        with lock:
            lock.release()
            raise KeyError
    assert is_free(lock)


def test_only_one_thread_holds_it(family: Any) -> None:
    lock, threads, rounds = family.Lock(0), 4, 500
    count = [0]
    go = threading.Barrier(threads)

    def work() -> None:
        go.wait(HANG)
        for n in range(rounds):
            with lock:
                seen = count[0]
                if n % 50 == 0:
                    others.wait(0.0001)  # lets others come to the lock
                count[0] = seen + 1

    others = threading.Event()
    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(HANG)
    assert count == [threads * rounds]


def test_a_lock_that_was_dropped_while_held_is_held_no_more() -> None:
    if _sentinel is None:
        pytest.skip("the C extension was not built")
    for make in (_sentinel.Lock, lookout):
        lock: Any = make(4)
        lock.acquire()
        lock.wake(LockParker())
        del lock
        assert _sentinel.inside() == 0


# ------------------------------------------------------------------------------------ ranks


def test_a_thread_takes_only_locks_of_a_higher_rank(family: Any) -> None:
    made = [family.Lock(rank) for rank in range(32)]
    for rank, lock in enumerate(made):
        assert lock.rank == rank
        with lock:
            for other in [*made, family.Lock(rank)]:
                allowed = other.rank > rank
                for take in (other.acquire, lambda other=other: other.__exit__(None, None, None)):
                    if allowed:
                        take()
                        if other.held():
                            other.release()
                    else:
                        with pytest.raises(
                            Reentered, match=r"^called by a finaliser .* would have to wait for itself$"
                        ):
                            take()
                assert other.locked() == (other is lock)
            assert family.inside() == 1 << rank
    with made[0], made[7], made[31]:
        assert family.inside() == 1 | 1 << 7 | 1 << 31


@pytest.mark.parametrize("rank", [-1, 32, 1 << 20])
def test_there_are_32_ranks(family: Any, rank: int) -> None:
    with pytest.raises(ValueError, match="from 0 to 31"):
        family.Lock(rank)


def test_the_ranks_of_cmwq_are_in_order() -> None:
    assert list(Rank) == list(range(len(Rank)))
    for rank in Rank:
        assert f"- {rank.name}:" in (Rank.__doc__ or __import__("cmwq._core.ranks").__doc__)


def test_who_enters_again_changes_nothing(family: Any) -> None:
    mended: list[int] = []
    lock = family.Lock(3, lambda: mended.append(1))
    bell = Bell()

    class Dropped:
        def __del__(self) -> None:
            try:
                with lock:
                    pytest.fail("it is held already")
            except Reentered:
                lock.wake(bell)

    with lock:
        Dropped()
        gc.collect()  # where finalisers run late
        assert lock.held()
        with pytest.raises(Reentered):
            with lock:
                pass
        assert lock.held()
    assert bell.rings == 1
    assert mended == []
    assert is_free(lock)


# ------------------------------------------------------------------------------------ however it is left


class Ledger:
    """Two numbers that must agree, and what goes with them."""

    def __init__(self, family: Any) -> None:
        self.family = family
        self.listed: list[int] = []
        self.count = 0
        self.outer, self.inner = family.Lock(2), family.Lock(5, self.recount)
        self.bell = Bell()
        self.decided = self.deferred = False
        self.calls: list[int] = []

    def recount(self) -> None:
        assert self.inner.held()
        self.count = len(self.listed)

    def work(self) -> None:
        with self.outer:
            self.family.defer(partial(self.calls.append, 1))  # in C: it can't be interrupted itself
            self.deferred = True
            with self.inner:
                self.count += 1
                self.inner.wake(self.bell)
                self.decided = True
                self.listed.append(1)


def test_an_exception_at_any_bytecode_ends_the_section(family: Any) -> None:
    kept: list[BaseException] = []  # for a traceback keeps what frames refer to

    def run(interrupt: InterruptAt) -> None:
        ledger = Ledger(family)
        try:
            with interrupt:
                ledger.work()
        except Interrupt as exc:
            kept.append(exc)
        else:
            assert not interrupt.raised, "an exception was lost"
        assert (family.inside(), ledger.outer.locked(), ledger.inner.locked()) == (0, False, False)
        assert ledger.count == len(ledger.listed)
        assert ledger.bell.rings >= ledger.decided
        assert ledger.deferred <= len(ledger.calls) <= 1
        with ledger.outer, ledger.inner:
            pass

    assert at_each(run, *FILES) > 30
    assert len(kept) > 30


def test_an_exception_at_any_bytecode_of_a_plain_body(family: Any) -> None:
    """The gap: between a section's last step and the call of what ends it."""
    lock = family.Lock(1)

    def section() -> None:
        with lock:
            pass

    def run(interrupt: InterruptAt) -> None:
        try:
            with interrupt:
                section()
        except Interrupt:
            pass
        assert not lock.locked()

    assert at_each(run, "test_locks.py") > 5


class Thrown(Exception):
    pass


def test_exceptions_thrown_from_another_thread(family: Any) -> None:
    ledger = Ledger(family)
    ready, hits = SimpleQueue[None](), SimpleQueue[None]()  # in C: threading's own are left locked by such exceptions
    stop = False

    def rounds() -> None:
        while not stop:
            ledger.work()

    def body() -> None:
        while not stop:
            try:
                ready.put(None)
                rounds()  # in a function: a loop's own step back is not within its `try`
            except Thrown:
                hits.put(None)

    thread = threading.Thread(target=body)
    thread.start()
    for _ in range(200):
        ready.get(timeout=HANG)
        assert ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(Thrown))
        hits.get(timeout=HANG)
    stop = True
    thread.join(HANG)
    assert not thread.is_alive()
    assert is_free(ledger.inner)
    assert is_free(ledger.outer)
    assert ledger.count == len(ledger.listed)


@needs_failing_malloc
def test_want_of_memory_at_any_allocation_ends_the_section(family: Any) -> None:
    import _testcapi as memory

    ledger = Ledger(family)
    ledger.work()
    failed = 0
    log = logging.getLogger("cmwq")
    log.disabled = True
    try:
        for n in range(60):
            try:
                memory.set_nomemory(n, n + 1)
                try:
                    ledger.work()
                finally:
                    memory.remove_mem_hooks()
            except MemoryError:
                failed += 1
            assert not ledger.inner.locked()
            assert not ledger.outer.locked()
            assert family.inside() == 0
    finally:
        log.disabled = False
    with ledger.inner:
        assert ledger.count == len(ledger.listed)
    assert failed


def test_a_generator_that_is_dropped_within_a_section(family: Any) -> None:
    lock = family.Lock(3)

    def generate() -> Iterator[int]:
        with lock:
            yield 1

    steps = generate()
    next(steps)
    assert lock.held()
    del steps
    gc.collect()
    assert is_free(lock)


def test_a_section_that_ends_on_another_thread(family: Any) -> None:
    if family.Lock is locks.PyLock and sys.version_info >= (3, 14):
        pytest.skip("since Python 3.14 no thread can release the RLock of another one; nothing in cmwq needs it to")
    lock = family.Lock(3)
    called: list[int] = []

    def generate() -> Iterator[int]:
        with lock:
            family.defer(lambda: called.append(threading.get_ident()))
            yield 1

    steps = generate()
    assert on_a_thread(lambda: next(steps)) == 1
    assert (lock.locked(), lock.held(), family.inside(), called) == (True, False, 0, [])
    steps.close()  # type: ignore[attr-defined]
    assert called == [threading.get_ident()]  # its own is there no more
    assert is_free(lock)

    begun, go = threading.Event(), threading.Event()
    steps = generate()

    def go_on() -> int:
        next(steps)
        begun.set()
        assert go.wait(HANG)
        with lock, family.Lock(4):
            return int(family.inside())

    thread = threading.Thread(target=lambda: called.append(go_on()))
    thread.start()
    assert begun.wait(HANG)
    steps.close()  # type: ignore[attr-defined]
    go.set()
    thread.join(HANG)
    assert called[-1] == 0b11000  # it may take again what another let go of in its place


# ------------------------------------------------------------------------------------ mending


def in_our_code(lock: Any, error: type[BaseException], call: Callable[[], object] = int) -> None:
    """Raise the error in a section of a module of cmwq's, or call something there."""
    there: dict[str, Any] = {}
    source = "def section(lock, error, call):\n with lock:\n  call()\n  raise error"
    exec(compile(source, f"{PACKAGE}_host/section.py", "exec"), there)
    there["section"](lock, error, call)


def test_F10_what_a_signal_handler_lets_out_into_a_section_is_no_refusal_of_that_section(family: Any) -> None:
    """That may be at any moment: so the section mends, and nobody takes it for a lock that was refused to himself."""
    mended: list[int] = []
    lock = family.Lock(3)
    lock.mend = lambda: mended.append(1)

    def call_of_a_handler() -> None:
        in_our_code(lock, ValueError)

    with pytest.raises(Reentered) as caught:
        in_our_code(lock, ValueError, call_of_a_handler)
    assert mended == [1]
    with pytest.raises(Reentered):
        own(caught.value)
    for error in (*REFUSALS, Reentered, CmwqError):
        mended.clear()
        with pytest.raises(error):
            with lock:  # this file is not one of cmwq's
                raise error
        assert mended == [1]
        assert is_free(lock)


def test_an_exceptional_end_mends_with_the_lock_held(family: Any) -> None:
    seen: list[bool] = []
    lock = family.Lock(3)
    lock.mend = lambda: seen.append(lock.held())
    with lock:
        pass
    for error in REFUSALS:  # raised before anything was changed
        with pytest.raises(error):
            in_our_code(lock, error)
    assert seen == []
    for other in (ValueError, KeyboardInterrupt, GeneratorExit):
        with pytest.raises(other):
            with lock:
                raise other
        assert is_free(lock)
    assert seen == [True] * 3
    lock.mend = None
    with pytest.raises(ValueError, match="mine"):
        with lock:
            raise ValueError("mine")
    assert lock.mend is None
    assert is_free(lock)


class Mender:
    def __init__(self) -> None:
        self.fails = True
        self.calls = 0

    def __call__(self) -> None:
        self.calls += 1
        if self.fails:
            raise LookupError(f"mending failed {self.calls} times")


@pytest.mark.parametrize("by_hand", [False, True])
def test_whoever_takes_a_stained_lock_mends_first(family: Any, by_hand: bool) -> None:
    mend = Mender()
    lock = family.Lock(3, mend)
    assert lock.mend is mend
    bell = Bell()

    def take() -> None:
        if by_hand:
            lock.acquire()
            assert lock.held()
            lock.release()
        else:
            with lock:
                assert lock.held()

    with pytest.raises(ValueError, match="mine"):
        with lock:
            lock.wake(bell)
            raise ValueError("mine")
    assert (mend.calls, bell.rings) == (1, 1)
    assert lock.stained
    for calls in (2, 3):
        with pytest.raises(LookupError, match=f"failed {calls} times"):
            take()
        assert (lock.locked(), family.inside(), mend.calls) == (False, 0, calls)
    mend.fails = False
    take()
    assert not lock.stained
    take()
    assert mend.calls == 4


def test_whatever_ends_a_block_that_may_acquire_by_hand_the_lock_is_free(family: Any) -> None:
    mended: list[bool] = []
    lock = family.Lock(3, lambda: mended.append(lock.held()))

    def again_and_again() -> None:
        with lock.by_hand():
            for _ in range(3):
                lock.acquire()
                lock.release()
            lock.acquire()
            raise KeyError

    with pytest.raises(KeyError):
        again_and_again()
    assert (lock.locked(), family.inside(), mended) == (False, 0, [True])
    with lock.by_hand():
        with lock:
            pass
    with pytest.raises(KeyError), lock.by_hand():
        raise KeyError
    assert mended == [True]  # it was not held, so nothing was half done

    def run(interrupt: InterruptAt) -> None:
        mended.clear()
        try:
            with interrupt:
                again_and_again()
        except (Interrupt, KeyError):
            pass
        assert (lock.locked(), family.inside()) == (False, 0)

    assert at_each(run, *FILES) > 30


def test_a_thread_that_ends_with_the_lock_in_its_hands_holds_nobody_up(family: Any) -> None:
    lock = family.Lock(3)

    def end() -> None:
        with lock.by_hand():
            lock.acquire()
            lock.release()
            lock.acquire()

    thread = threading.Thread(target=end)
    thread.start()
    thread.join(HANG)
    assert not lock.locked()
    with lock:
        assert lock.held()


@pytest.mark.parametrize("mend", [3, "x", ()])
def test_mend_is_called_so_it_must_be_callable(family: Any, mend: object) -> None:
    with pytest.raises(TypeError, match="callable"):
        family.Lock(3, mend).acquire()


# ------------------------------------------------------------------------------------ waking


def test_who_is_woken_finds_the_lock_free(family: Any) -> None:
    lock = family.Lock(3)
    seen: list[bool] = []

    class Looks:
        def unpark(self) -> None:
            seen.append(lock.locked())

    with pytest.raises(RuntimeError, match="whoever holds"):
        lock.wake(Looks())
    with lock:
        for _ in range(20):
            lock.wake(Looks())
    assert len(seen) == 20  # more than the lock remembers: the others at once
    if family.name != "py":
        assert seen[-8:] == [False] * 8
    seen.clear()
    with pytest.raises(KeyError):
        with lock:
            lock.wake(Looks())
            raise KeyError
    lock.acquire()
    lock.wake(Looks())
    lock.release()
    assert len(seen) == 2


def test_every_kind_of_parker_can_be_woken(family: Any) -> None:
    lock = family.Lock(3)
    parkers: list[Any] = [LockParker()]
    if _sentinel is not None:
        parkers += [_sentinel.Parker(), _sentinel.Watch().lookout((0,), 1, 1).slot()]
    for parker in parkers:
        parked: list[bool] = []
        thread = threading.Thread(target=lambda: parked.append(parker.park(HANG)))  # noqa: B023
        thread.start()
        with lock:
            lock.wake(parker)
        thread.join(HANG)
        assert parked == [True]


def test_a_parker_that_raises_wakes_the_others(family: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if family.name == "py":
        pytest.skip("unparks at once")
    told: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: told.append(args.exc_type))

    class Raises:
        def __init__(self, error: type[BaseException]) -> None:
            self.error = error

        def unpark(self) -> None:
            raise self.error

    lock, bell = family.Lock(3), Bell()
    for error in (LookupError, KeyboardInterrupt):
        with pytest.raises(error):
            with lock:
                lock.wake(Raises(error))
                lock.wake(bell)
        assert is_free(lock)
    assert bell.rings == 2
    assert told == [LookupError, KeyboardInterrupt]  # it was tried twice


# ------------------------------------------------------------------------------------ deferring


def test_what_is_deferred_is_called_in_order_when_the_thread_holds_nothing(family: Any) -> None:
    outer, inner = family.Lock(2), family.Lock(5)
    called: list[tuple[object, int]] = []

    def note(name: object) -> Callable[[], None]:
        return lambda: called.append((name, family.inside()))

    family.defer(note("at once"))
    assert called == [("at once", 0)]
    called.clear()
    with outer:
        family.defer(note(1))
        with inner:
            family.defer(note(2))
        assert called == []
        on_a_thread(lambda: family.defer(note("another thread, which holds none")))
        assert called == [("another thread, which holds none", 0)]
        called.clear()
        family.defer(note(3))
    assert called == [(1, 0), (2, 0), (3, 0)]
    called.clear()
    with pytest.raises(KeyError):
        with outer:
            family.defer(note(4))
            raise KeyError
    outer.acquire()
    family.defer(note(5))
    outer.release()
    assert called == [(4, 0), (5, 0)]
    with pytest.raises(TypeError, match="callable"):
        family.defer(3)


def test_deferred_calls_may_enter_and_defer(family: Any) -> None:
    lock, called = family.Lock(2), []

    def fn(n: int) -> None:
        with lock:
            called.append(n)
            if n < 3000:
                family.defer(lambda: fn(n + 1000))

    with lock:
        for n in range(1000):
            family.defer(lambda n=n: fn(n))
    assert called == list(range(4000))  # and not one within the other: so many don't fit the stack


def test_a_deferred_call_that_raises_does_not_keep_back_the_others(
    family: Any, caplog: pytest.LogCaptureFixture
) -> None:
    lock, called = family.Lock(2), []

    def fails() -> None:
        called.append(0)
        raise ValueError("as it must")

    with lock:
        family.defer(fails)
        family.defer(lambda: called.append(1))
    family.defer(fails)
    assert called == [0, 1, 0]
    for record in caplog.records:
        assert (record.name, record.levelno) == ("cmwq", logging.ERROR)
        assert "fails" in record.getMessage()
        assert record.exc_info is not None
        assert str(record.exc_info[1]) == "as it must"
    assert len(caplog.records) == 2

    def interrupted() -> None:
        called.append(2)
        raise KeyboardInterrupt

    called.clear()
    with pytest.raises(KeyboardInterrupt):
        with lock:
            family.defer(interrupted)
            family.defer(lambda: called.append(3))
    assert called == [2, 3]
    with pytest.raises(KeyboardInterrupt):
        family.defer(interrupted)
    assert len(caplog.records) == 2
    assert is_free(lock)


# ------------------------------------------------------------------------------------ fork


def test_G2_in_the_child_nobody_holds_it(program: Callable[[str], str]) -> None:
    out = program("""
        mine, others, by_hand = Lock(3, lambda: print("mended")), Lock(4), Lock(5)
        there, leave, bells = threading.Event(), threading.Event(), []
        class Bell:
            def unpark(self): bells.append(os.getpid() == parent)
        def hold():
            with others:
                there.set()
                leave.wait(60)
        parent = os.getpid()
        thread = threading.Thread(target=hold)
        thread.start()
        there.wait(60)
        with mine:
            by_hand.acquire()
            if Lock is not locks.PyLock:
                mine.wake(Bell())
            pid = os.fork()
            if not pid:
                for lock in (mine, others, by_hand):
                    lock._at_fork_reinit()
                print(inside(), [(lock.locked(), lock.held()) for lock in (mine, others, by_hand)])
                with mine:
                    with others, by_hand:
                        print(inside())
                by_hand.release()  # of what the parent took
                mine.acquire()
                print(inside())
            else:
                os.waitpid(pid, 0)
                by_hand.release()
        if not pid:
            print(mine.held(), inside(), bells)
            mine.release()
            print(mine.locked(), inside(), flush=True)
            try:
                by_hand.release()
            except RuntimeError as exc:
                print(exc, flush=True)
            os._exit(0)
        leave.set()
        thread.join()
        print([lock.locked() for lock in (mine, others, by_hand)], inside(), all(bells))
    """)
    assert out.splitlines() == [
        "0 [(False, False), (False, False), (False, False)]",
        "56",
        "8",
        "True 8 []",
        "False 0",
        "release of a lock that this thread doesn't hold",
        "[False, False, False] 0 True",
    ]


def test_G2_an_exception_in_the_child_does_not_mend_what_the_parent_held(program: Callable[[str], str]) -> None:
    out = program("""
        lock = Lock(3, lambda: print("mended", flush=True))
        try:
            with lock:
                pid = os.fork()
                if not pid:
                    lock._at_fork_reinit()
                    raise KeyError
                os.waitpid(pid, 0)
        except KeyError:
            with lock:
                print(inside(), flush=True)
            os._exit(0)
        print(lock.locked())
    """)
    assert out.splitlines() == ["8", "False"]
