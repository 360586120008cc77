"""Locks that no exception leaves behind, and that a thread never waits for twice.

Its one job: say what is true while a section runs, and after it was left, however it was left. Everything in cmwq that
is a lock is one of these. This is the readable one; `_sensor/_native/lock.h` has the same in C (`Lock`, `inside`,
`defer`), which serves where it was built. The two keep separate accounts of what a thread holds: a process uses one.

Guarantees
1. *No frame leaves a lock behind.* An exception at any bytecode, as of Ctrl-C, `PyThreadState_SetAsyncExc`, a trace
   function, or for want of memory, finds the lock free, or held by who is still within the section.
2. *An exceptional end mends.* After an exception that is no `CmwqError` (those are raised before anything is changed)
   `mend` is called with the lock still held, to recount what may be half done. If it raises, the lock is stained:
   whoever takes it next mends first, and gets `mend`'s exception, and not the lock, if that fails again.
3. *No deadlock.* A thread waits only for locks of a higher rank than all it holds, and what it holds includes what the
   frames hold that a finaliser or a signal handler interrupted. So among the threads that wait, the one that holds the
   highest rank waits for somebody who doesn't wait. Anything else is refused (`Reentered`) before it touches anything.
4. *What is refused can be left for later.* `defer(fn)` calls fn on this thread when it holds none of these locks.

How `with` holds it. An ordinary `__exit__` leaves a gap: between the body and its call the interpreter executes a few
bytecodes for which the `with` doesn't answer, and an exception there leaves the lock held for ever. So `__exit__` is a
property here. `with` reads it before it calls `__enter__`; reading takes the lock and returns a `_Hold`, which lies on
the frame's value stack, and nowhere else, until the section is over. If it dies without having been called, its frame
was left some other way, and it lets go in `__del__`.

What makes that true of Python code, which can itself be interrupted at each bytecode:
- No frame has the `_Hold` in a variable, or the traceback of an exception would keep it, and the lock, for as long as
  somebody looks at the exception. It is made, and called, by C code alone: it is a `partial`, whose function knows an
  `_Entry` instead.
- Whether this thread holds a lock is asked of `RLock`, which knows its owner from the moment it is taken. An account of
  our own would be wrong between the taking and the noting. `_Thread.entered` says only for which locks to ask.
- Each step of an end may be done twice, and the last is to forget the entry: whoever is interrupted on the way, the
  `_Hold` dies and does the rest.
Of two exceptions in one section the second may come while the first is dealt with; then this fails. The locks in C
know no such moment.

Letters as in `_core.pool`; here L is the lock itself, and S its own thread.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Generator
from functools import partial
from itertools import count
from operator import attrgetter, call
from typing import TYPE_CHECKING, Any

from cmwq._core.held import accounts, watched
from cmwq._errors import CmwqError, Reentered

if TYPE_CHECKING:
    from cmwq._core import ports

_log = logging.getLogger("cmwq")
_nothing_in_c = int
_MAX_RANK = 31
_REENTERED = (
    "called by a finaliser or a signal handler in the middle of cmwq's own code on the same thread: "
    "it would have to wait for itself"
)


class PyLock:
    """Thread-safe. `rank` is from 0 to 31. `mend` may be replaced with the lock held, or before others know it."""

    __slots__ = ("_forgiven", "_raw", "_stained", "mend", "rank")

    def __init__(self, rank: int, mend: Callable[[], object] | None = None) -> None:
        if not 0 <= rank <= _MAX_RANK:
            raise ValueError(f"a lock's rank is from 0 to {_MAX_RANK}, not {rank}")
        if mend is not None and not callable(mend):
            raise TypeError(f"mend must be callable or None, not {type(mend).__name__}")
        self.rank = rank  # I
        self.mend = mend  # L
        self._raw: Any = threading.RLock()  # F
        self._stained = False  # L: left by an exception, and not mended since
        self._forgiven = False  # F: a release() is to come of what the parent acquired

    def __enter__(self) -> None:
        pass

    @property
    def __exit__(self) -> Callable[[object, object, object], None]:
        """For `with` alone: to read it is to take the lock."""
        me = _threads.me
        _refuse_to_wait_for_myself(me, self)
        entry = _Entry(self, me)
        # One expression: until it is returned the _Hold is on the value stack only.
        return (_Hold(entry.end), me.entered.setdefault(entry), entry.raw.acquire(), _begin(entry))[0]

    def acquire(self) -> None:
        """For who can't say `with`, and sees to it that `release` follows. `held` tells whether it came to that."""
        me = _threads.me
        _refuse_to_wait_for_myself(me, self)
        entry = _Entry(self, me, by_hand=True)
        me.entered[entry] = None
        entry.raw.acquire()
        _begin(entry)

    def release(self) -> None:
        """Let go of what `acquire` took."""
        if not self._raw._is_owned():
            if not self._forgiven:
                raise RuntimeError("release of a lock that this thread doesn't hold")
            self._forgiven = False
            return
        me = _threads.me
        self._raw.release()
        me.forget(self._raw)
        _call_deferred(me)

    def locked(self) -> bool:
        """Does anybody hold it?"""
        return repr(self._raw).startswith("<locked")  # RLock.locked() is of Python 3.14

    def held(self) -> bool:
        """Does this thread hold it?"""
        return bool(self._raw._is_owned())

    def wake(self, parker: ports.Parker) -> None:
        """Unpark as soon as the lock is free. Here: at once; the thread that wakes will wait for the lock.

        Context: held.
        """
        if not self.held():
            raise RuntimeError("wake() is for whoever holds the lock")
        parker.unpark()

    def _at_fork_reinit(self) -> None:
        """In the child of a fork: nobody holds it. A section that this thread is still within keeps the old RLock."""
        mine = [entry for entry in tuple(_threads.me.entered) if entry.lock is self and entry.raw is self._raw]
        self._forgiven = self.held() and any(entry.by_hand for entry in mine)
        self._raw = threading.RLock()


class _Thread:
    """What there is to know of a thread."""

    __slots__ = ("deferred", "drain", "entered", "numbers")

    def __init__(self) -> None:
        self.entered: dict[_Entry, None] = {}  # S: what it may hold
        self.deferred: dict[int, Callable[[], object]] = {}  # S: in order
        self.numbers = count()  # S
        self.drain: Any = _drain(self)  # S: the last that was begun; it runs, or it doesn't

    def holds(self) -> int:
        ranks = 0
        for entry in tuple(self.entered):
            if entry.raw is entry.lock._raw and entry.raw._is_owned():
                ranks |= 1 << entry.lock.rank
        return ranks

    def forget(self, raw: object) -> None:
        """Context: not held. What is on its way to take it, in a frame that this one interrupts, stays."""
        for entry in tuple(self.entered):
            if entry.raw is raw and entry.by_hand:
                self.entered.pop(entry, None)


class _Threads(threading.local):
    def __init__(self) -> None:
        self.me = _Thread()


class _Entry:
    """One taking of a lock."""

    def __init__(self, lock: PyLock, thread: _Thread, *, by_hand: bool = False) -> None:
        self.lock = lock  # I
        self.raw = lock._raw  # I: not the lock's any more in the child of a fork
        self.thread = thread  # I
        self.by_hand = by_hand  # I

    def end(self, exc_type: type[BaseException] | None = None, *_: object) -> None:
        """What the `_Hold` does when it is called."""
        if exc_type is not None and not issubclass(exc_type, CmwqError) and _is_within(self):
            _mend_if_it_can(self)
        _end(self)
        self.abandon = _nothing_in_c  # type: ignore[assignment,method-assign]

    def abandon(self) -> None:
        """What the `_Hold` does when it dies."""
        if _is_within(self):
            _mend_if_it_can(self)
        _end(self)


class _Hold(partial[None]):
    """A section: what `with` calls at its end, and what ends it if `with` can't. Made of an entry's `end`.

    After an ordinary end it dies without one bytecode. For in a finaliser an exception is lost, and it may be Ctrl-C.
    """

    __del__ = property(attrgetter("func.__self__.abandon"))


def _refuse_to_wait_for_myself(me: _Thread, lock: PyLock) -> None:
    if me.holds() >> lock.rank:
        raise Reentered(_REENTERED)


def _begin(entry: _Entry) -> object:
    """Context: the lock was just taken."""
    lock = entry.lock
    if not lock._stained:
        return None
    try:
        if lock.mend is not None:
            lock.mend()
    except BaseException:
        _end(entry)
        raise
    lock._stained = False
    return None


def _is_within(entry: _Entry) -> bool:
    """Is the lock held in that section? Not if it wasn't taken yet, or `release` came first."""
    if entry.thread is _threads.me:
        return bool(entry.raw._is_owned())
    return entry in entry.thread.entered


def _mend_if_it_can(entry: _Entry) -> None:
    """Context: the lock is held."""
    lock = entry.lock
    if lock.mend is None or entry.raw is not lock._raw:
        return
    lock._stained = True
    try:
        lock.mend()
        if entry.raw is lock._raw:
            lock._stained = False
    except BaseException:  # the exception that ended the section goes on; whoever is next tries again
        pass


def _end(entry: _Entry) -> None:
    """Let go, if it is held; what was deferred may be called then."""
    holder, me = entry.thread, _threads.me
    if _is_within(entry):
        if holder is me:
            entry.raw.release()
        else:  # its frame died on another thread, as a generator's can; this asks for no owner
            entry.raw._release_save()
    holder.entered.pop(entry, None)
    holder.forget(entry.raw)
    if holder is not me and not holder.entered:  # it may have ended, and then nobody else would call them
        for number in list(holder.deferred):
            if (fn := holder.deferred.pop(number, None)) is not None:
                me.deferred[next(me.numbers)] = fn
    _call_deferred(me)


def _call_deferred(me: _Thread) -> None:
    if me.deferred and not me.drain.gi_running and not me.holds():
        me.drain = _drain(me)
        for _ in me.drain:
            pass


def _drain(me: _Thread) -> Generator[None, None, None]:
    """Call what was deferred. A generator, for the interpreter knows at any time whether one runs: what these calls
    defer, or end a section in, is left to the one that goes on already.
    """
    failure: BaseException | None = None
    while (numbers := list(me.deferred)) and not me.holds():
        for number in numbers:
            try:
                _call(me, number)
            except BaseException as exc:
                failure = failure or exc  # the others are to be called, too
    if failure is not None:
        raise failure
    yield from ()


def _call(me: _Thread, number: int) -> None:
    """Take it from the list, call it, and note that it returned, with no bytecode in between: it is called once,
    whatever interrupts, and one can tell what it raised from what interrupted before and after.
    """
    fn = me.deferred.get(number, _nothing_in_c)
    returned: list[object] = []
    try:
        next(map(returned.append, map(call, map(me.deferred.pop, (number,), (_nothing_in_c,)))))
    except Exception:
        if returned or number in me.deferred:
            raise
        _log.exception("deferred call %r raised", fn)


def py_inside() -> int:
    """The ranks of the locks that this thread holds, a bit each; 0: none."""
    return _threads.me.holds()


def py_defer(fn: Callable[[], object]) -> None:
    """Call fn on this thread when it holds none of these locks: at once, or after the outermost section, in order.

    An Exception that it raises is logged. Any other, like Ctrl-C, is raised where the section ends, if it can be, after
    the calls that were deferred later.
    """
    if not callable(fn):
        raise TypeError(f"defer() takes a callable, not {type(fn).__name__}")
    me = _threads.me
    number = next(me.numbers)
    me.deferred[number] = fn
    if me.drain.gi_running and not me.holds():
        _call(me, number)
    else:
        _call_deferred(me)


_threads = _Threads()

if TYPE_CHECKING:
    Lock, inside, defer = PyLock, py_inside, py_defer
else:
    try:
        from cmwq._sensor._sentinel import Lock, defer, inside
    except ImportError:  # no compiler was there
        Lock, inside, defer = PyLock, py_inside, py_defer


def new(rank: int, mend: Callable[[], object] | None = None) -> ports.Lock:
    """A lock of this process, which in the debug mode is checked against the order of ranks."""
    return watched(Lock(rank, mend), inside)


def reinit(lock: ports.Lock) -> None:
    """In the child of a fork: it is free, whoever held it."""
    lock._at_fork_reinit()  # type: ignore[attr-defined]  # every lock of ours has it: this host's, and a lookout


accounts.append(inside)
