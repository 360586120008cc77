"""Locks that no exception leaves held, and with which no thread waits for itself.

All locks of cmwq are of this kind. This module is the readable implementation; `_sensor/_native/lock.h` has the same in
C (`Lock`, `inside`, `defer`), which is used where it was built. The two keep separate accounts of the locks that a
thread holds, so a process uses only one of them. A section is the time from taking a lock to releasing it.

Guarantees
1. *No frame leaves a lock held.* An exception may come at any bytecode: from Ctrl-C, `PyThreadState_SetAsyncExc`, a
   trace function, or lack of memory. It finds the lock free, or held by a section that will still end.
2. *A section that ends by an exception mends.* Unless it has refused something, as it does before it changes anything
   (`REFUSALS`, raised by our own code, and not let out by a signal handler), `mend` is called with the lock still held,
   to recount what may be half done. If `mend` raises, the lock is stained: the next thread that takes it mends first.
   If that fails again, that thread gets the exception of `mend` and not the lock.
3. *No deadlock.* A thread waits only for locks of a higher rank than all that it holds, including those held by frames
   that a finaliser or a signal handler interrupted. So among the threads that wait, the one that holds the highest rank
   waits for a thread that doesn't wait. Any other request is refused (`Reentered`) before it changes anything.
4. *What is refused can be deferred.* `defer(fn)` calls fn on this thread when it holds none of these locks.

How `with` holds a lock. An ordinary `__exit__` leaves a gap: between the body and the call of `__exit__` the
interpreter executes a few bytecodes that the `with` doesn't cover, and an exception there leaves the lock held for
ever. So `__exit__` is a property here. `with` reads it before it calls `__enter__`; reading it takes the lock and
returns a `_Hold`, which lies on the frame's value stack, and nowhere else, until the section is over. If the `_Hold`
dies without having been called, its frame was left some other way, and its `__del__` releases the lock.

Python code can itself be interrupted at each bytecode. The guarantees hold all the same, because:
- No frame has the `_Hold` in a variable. Otherwise the traceback of an exception would keep it, and the lock, for as
  long as the exception lives. The `_Hold` is made and called by C code alone: it is a `partial`, and its function
  refers to an `_Entry` instead.
- `RLock` is asked whether this thread holds the lock, since it knows its owner from the moment it is taken. An account
  kept here would be wrong between taking and noting. `_Thread.entered` only says which locks to ask.
- Each step of the end of a section may be done twice, and the last step is to forget the entry. If an end is
  interrupted, the `_Hold` dies and does the rest.
There is one limit: if a second exception comes while the first is being handled, this fails. The locks in C have no
such moment.

Letters as in `_pool.pool`; here L is the lock itself, and S its own thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from functools import partial
from itertools import count
from operator import attrgetter, call
from typing import TYPE_CHECKING, Any

from cmwq._core import log
from cmwq._core.held import accounts, watched
from cmwq._core.surely import at_any_depth, frames
from cmwq._errors import REFUSALS, Refused, refused_by_us

if TYPE_CHECKING:
    from cmwq._core import ports

_nothing_in_c = int
_MAX_RANK = 31
SECTION = 9
"""So many frames a section needs at its end. There must be as many when it begins, or the lock would stay held."""
_REENTERED = (
    "called by a finaliser or a signal handler in the middle of cmwq's own code on the same thread: "
    "it would have to wait for itself"
)


class PyLock:
    """The lock in Python. Thread-safe.

    `rank` is from 0 to 31; else ValueError. `mend` is called after a section that an exception ended. It may be
    replaced with the lock held, or before other threads know the lock. TypeError if it is neither callable nor None.
    """

    __slots__ = ("_forgiven", "_raw", "mend", "rank", "stained")

    def __init__(self, rank: int, mend: Callable[[], object] | None = None) -> None:
        if not 0 <= rank <= _MAX_RANK:
            raise ValueError(f"a lock's rank is from 0 to {_MAX_RANK}, not {rank}")
        if mend is not None and not callable(mend):
            raise TypeError(f"mend must be callable or None, not {type(mend).__name__}")
        self.rank = rank  # I
        self.mend = mend  # L
        self._raw: Any = threading.RLock()  # F
        self.stained = False  # L: an exception ended a section, and `mend` has not succeeded since
        self._forgiven = False  # F: the parent acquired it, and the child's release() is still to come

    def __enter__(self) -> None:
        pass

    @property
    def __exit__(self) -> Callable[[object, object, object], None]:
        """For `with` alone: reading it takes the lock. Raises Reentered, or what `mend` raises; then it isn't held."""
        frames(SECTION)
        me = _threads.me
        _refuse_to_wait_for_myself(me, self)
        entry = _Entry(self, me)
        # This is one expression, so that the _Hold is on the value stack only until it is returned.
        return (_Hold(entry.end), me.entered.setdefault(entry), entry.raw.acquire(), _begin(entry))[0]

    def by_hand(self) -> AbstractContextManager[None]:
        """For a `with` around code that calls `acquire` and `release`: whatever ends the block, the calling thread does
        not hold the lock after it. If it did, the lock is mended like after a section that an exception ended.
        """
        return _Hold(_Entry(self, _threads.me).end)

    def acquire(self) -> None:
        """Take the lock, in a `with` of `by_hand`, for code that releases it and takes it again.

        Raises as `with` does. After an interruption, `held` tells whether the lock was taken.
        """
        me = _threads.me
        _refuse_to_wait_for_myself(me, self)
        entry = _Entry(self, me, by_hand=True)
        me.entered[entry] = None
        entry.raw.acquire()
        _begin(entry)

    def release(self) -> None:
        """Release what `acquire` took, then make deferred calls. Raises RuntimeError if this thread doesn't hold it."""
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
        """Whether any thread holds it."""
        return repr(self._raw).startswith("<locked")  # RLock.locked() is new in Python 3.14

    def held(self) -> bool:
        """Whether the calling thread holds it."""
        return bool(self._raw._is_owned())

    def wake(self, parker: ports.Parker) -> None:
        """Unpark as soon as the lock is free. This implementation does it at once: the woken thread waits for the lock.

        Raises RuntimeError if the calling thread doesn't hold it.  Context: held.
        """
        if not self.held():
            raise RuntimeError("wake() is for whoever holds the lock")
        parker.unpark()

    def _at_fork_reinit(self) -> None:
        """In the child of a fork: make it free. A section that this thread is still within keeps the old RLock."""
        mine = [entry for entry in tuple(_threads.me.entered) if entry.lock is self and entry.raw is self._raw]
        self._forgiven = self.held() and any(entry.by_hand for entry in mine)
        self._raw = threading.RLock()


class _Thread:
    """The locks that a thread may hold, and its deferred calls."""

    __slots__ = ("deferred", "drain", "entered", "numbers")

    def __init__(self) -> None:
        self.entered: dict[_Entry, None] = {}  # S: the locks that it may hold
        self.deferred: dict[int, Callable[[], object]] = {}  # S: in order
        self.numbers = count()  # S
        self.drain: Any = _drain(self)  # S: the last one that was begun, whether it runs or not

    def holds(self) -> int:
        ranks = 0
        for entry in tuple(self.entered):
            if entry.raw is entry.lock._raw and entry.raw._is_owned():
                ranks |= 1 << entry.lock.rank
        return ranks

    def forget(self, raw: object) -> None:
        """Drop the entries of `acquire`.  Context: not held.

        The entry of a frame that is about to take the lock, and that this frame interrupts, stays.
        """
        for entry in tuple(self.entered):
            if entry.raw is raw and entry.by_hand:
                self.entered.pop(entry, None)


class _Threads(threading.local):
    def __init__(self) -> None:
        self.me = _Thread()


class _Entry:
    """One section: one acquisition of a lock by one thread."""

    def __init__(self, lock: PyLock, thread: _Thread, *, by_hand: bool = False) -> None:
        self.lock = lock  # I
        self.raw = lock._raw  # I: in the child of a fork the lock has another one
        self.thread = thread  # I
        self.by_hand = by_hand  # I

    def end(self, _: object = None, exc: BaseException | None = None, *__: object) -> None:
        """End the section: `with` calls this through the `_Hold`."""
        if exc is not None and not refused_by_us(exc, REFUSALS) and _is_within(self):
            _mend_if_it_can(self)
        _end(self)
        self.abandon = _nothing_in_c  # type: ignore[assignment,method-assign]

    def abandon(self) -> None:
        """End the section after an exception: the `_Hold` calls this when it dies without having been called."""
        if _is_within(self):
            _mend_if_it_can(self)
        _end(self)


class _Hold(partial[None]):
    """What `with` calls at the end of a section, made of an entry's `end`. If it dies uncalled, it ends the section.

    After an ordinary end it dies without executing a bytecode, because an exception in a finaliser is lost, and it may
    be Ctrl-C.
    """

    __del__ = property(attrgetter("func.__self__.abandon"))

    def __enter__(self) -> None:  # it is itself what `by_hand` returns
        pass

    __exit__ = partial.__call__


def _refuse_to_wait_for_myself(me: _Thread, lock: PyLock) -> None:
    if me.holds() >> lock.rank:
        raise Refused(_REENTERED)


def _begin(entry: _Entry) -> object:
    """Mend a stained lock; if that raises, release it.  Context: the lock was just taken."""
    lock = entry.lock
    if not lock.stained:
        return None
    try:
        if lock.mend is not None:
            at_any_depth(lock.mend)
    except BaseException:
        _end(entry)
        raise
    lock.stained = False
    return None


def _is_within(entry: _Entry) -> bool:
    """Whether the lock is held in that section: False if it wasn't taken yet, or was released already."""
    if entry.thread is _threads.me:
        return bool(entry.raw._is_owned())
    return entry in entry.thread.entered


def _mend_if_it_can(entry: _Entry) -> None:
    """Call `mend` after an exception; if it raises, leave the lock stained.  Context: the lock is held."""
    lock = entry.lock
    if lock.mend is None or entry.raw is not lock._raw:
        return
    lock.stained = True
    try:
        at_any_depth(lock.mend)  # a RecursionError in the section would come again
        if entry.raw is lock._raw:
            lock.stained = False
    except BaseException:  # the exception that ended the section is raised; the next thread mends again
        pass


def _end(entry: _Entry) -> None:
    """Release the lock if it is held in this section, and make the deferred calls if no other lock is held."""
    holder, me = entry.thread, _threads.me
    if _is_within(entry):
        if holder is me:
            entry.raw.release()
        else:
            # Its frame died on another thread, as a generator's can. Up to Python 3.13 this doesn't check the owner;
            # later it raises RuntimeError. Nothing in cmwq holds a lock over a `yield`.
            entry.raw._release_save()
    holder.entered.pop(entry, None)
    holder.forget(entry.raw)
    if holder is not me and not holder.entered:  # it may have ended, and then no other thread would call them
        for number in list(holder.deferred):
            if (fn := holder.deferred.pop(number, None)) is not None:
                me.deferred[next(me.numbers)] = fn
    _call_deferred(me)


def _call_deferred(me: _Thread) -> None:
    if me.deferred and not me.drain.gi_running and not me.holds():
        at_any_depth(_make_deferred, me)  # whoever deferred them was told that they would be made


def _make_deferred(me: _Thread) -> None:
    me.drain = _drain(me)
    for _ in me.drain:
        pass


def _drain(me: _Thread) -> Generator[None, None, None]:
    """Make the deferred calls. Calls that they defer in turn are made by the same run.

    It is a generator because the interpreter knows at any time whether a generator runs, even after an interruption.
    """
    failure: BaseException | None = None
    while (numbers := list(me.deferred)) and not me.holds():
        for number in numbers:
            try:
                _call(me, number)
            except BaseException as exc:
                if isinstance(exc, RecursionError) and number in me.deferred:
                    raise  # the same would come again and again; the end of the next section makes the calls
                failure = failure or exc  # the other calls must still be made
    if failure is not None:
        raise failure
    yield from ()


def _call(me: _Thread, number: int) -> None:
    """Make one deferred call, once, whatever interrupts.

    The call is removed from the list, made, and noted as returned, with no bytecode in between. So an exception of the
    function can be told from an interruption before or after it.
    """
    fn = me.deferred.get(number, _nothing_in_c)
    returned: list[object] = []
    try:
        next(map(returned.append, map(call, map(me.deferred.pop, (number,), (_nothing_in_c,)))))
    except Exception:
        if returned or number in me.deferred:
            raise
        log.exception("deferred call %r raised", fn)


def py_inside() -> int:
    """The ranks of the locks that the calling thread holds, as a bit set; 0: none."""
    return _threads.me.holds()


def py_defer(fn: Callable[[], object]) -> None:
    """Call fn on this thread when it holds none of these locks: at once, or after the outermost section, in order.

    An `Exception` that it raises is logged. Any other exception, such as Ctrl-C, is raised where the section ends, if
    possible, after the calls that were deferred later. Raises TypeError if fn isn't callable.
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
    """A new lock. In the debug mode its use is checked against the order of ranks. Raises as `PyLock`."""
    return watched(Lock(rank, mend), inside)


def reinit(lock: ports.Lock) -> None:
    """In the child of a fork: make the lock free, whichever thread held it."""
    lock._at_fork_reinit()  # type: ignore[attr-defined]  # every lock of cmwq has it, a lookout too


accounts.append(inside)
