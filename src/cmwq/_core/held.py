"""Which locks a function needs held, and a debug mode that checks it, as the kernel's lockdep does.

A function states its needs in a decorator and nowhere else:

- `@holding("pool.lock")`: the caller holds that lock. The path begins with a parameter. Of several locks any one is
  enough. A path that leads to None (not on a pool yet, say) asks for nothing.
- `@not_holding("pool.lock")`: the caller does not hold that lock, because the function takes it, or calls what takes
  it.
- `@outside`: the calling thread holds no lock of cmwq, so the function may run user code.

This is about the moment of the call: a function may release the lock and take it again.

Guarantees: without `CMWQ_DEBUG=1` in the environment a decorator returns the function itself, and `watched` the lock
itself, so they cost nothing. With it, a call that breaks a declaration, or a lock taken against the order of `ranks`,
fails at once, and the message says where the locks were taken. The simulator always checks the order of locks.

A thread in a critical section can be interrupted by a signal handler, a finaliser or a trace function that calls cmwq
again. That is not a mistake in cmwq, and the locks refuse it (`Reentered`). The stack tells it from a mistake: between
the section and the call there is then a frame from outside the package, or a `__del__`. (Sections that a test begins
itself are not cmwq's either.)

A failure here may be caught by other code, for example by a worker that survives everything. So it is also kept in
`broken` and written to stderr.

The letters are those of `_pool.pool`; S is the thread's own.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import wraps
from operator import attrgetter
from typing import TYPE_CHECKING, Any, TypeVar

from cmwq._core.ranks import Rank
from cmwq._errors import PACKAGE

if TYPE_CHECKING:
    from types import CodeType, FrameType

    from cmwq._core.ports import Lock, Parker

F = TypeVar("F", bound=Callable[..., Any])

DEBUG = os.environ.get("CMWQ_DEBUG") == "1"
"""Are calls and locks checked? Decided at import."""

broken: list[AssertionError] = []
"""The failures so far."""

accounts: list[Callable[[], int]] = []
"""Each returns the ranks of the locks that the calling thread holds, one bit per rank: one for the real locks, one for
those of a simulation.
"""


class LockOrder(AssertionError):
    """A lock was about to be taken against the order of ranks."""


class WrongContext(AssertionError):
    """A function was called without the lock that it needs, or with one that must not be held."""


class _Place:
    """Where this thread took a lock. It does not keep the frame, because that would keep the section's hold alive."""

    __slots__ = ("code", "frame_id", "line", "pid")

    def __init__(self, frame: FrameType) -> None:
        self.frame_id = id(frame)  # S: the frame lives as long as the section does
        self.code: CodeType = frame.f_code  # S
        self.line = frame.f_lineno  # S
        self.pid = os.getpid()  # S

    def __str__(self) -> str:
        return f"{self.code.co_filename}:{self.line}, in {self.code.co_qualname}"


class _Places(threading.local):
    def __init__(self) -> None:
        self.by_rank: dict[int, _Place] = {}  # S: where the lock of a rank was last taken


_places = _Places()


def _name(rank: int) -> str:
    return Rank(rank).name if rank in Rank._value2member_map_ else f"rank {rank}"


def _fail(error: AssertionError) -> None:
    broken.append(error)
    os.write(2, f"cmwq: {type(error).__name__}: {error}\n".encode(errors="replace"))
    raise error


def _ranks(bits: int) -> list[int]:
    return [rank for rank in range(bits.bit_length()) if bits >> rank & 1]


def _interrupted(frame: FrameType | None, place: _Place | None) -> bool:
    """Does this frame belong to an interruption of the section that began at that place?"""
    if place is None:
        return True  # it was taken on another thread, or not noted here
    if isinstance(sys.exc_info()[1], GeneratorExit):
        return True  # a generator that nobody wants any more is ended wherever its last reference goes
    while frame is not None:
        if not frame.f_code.co_filename.startswith(PACKAGE) or frame.f_code.co_name == "__del__":
            return True
        if id(frame) == place.frame_id:
            return False
        frame = frame.f_back
    return True


def about_to_take(rank: int, holds: int, depth: int = 2) -> None:
    """Raise LockOrder if a thread that holds these ranks (one bit each) must not take a lock of this rank.

    Does nothing if the thread was interrupted while it held them: then the lock itself refuses. depth: how many frames
    out the lock is taken.
    """
    frame = sys._getframe(depth)
    if not holds >> rank:
        _places.by_rank[rank] = _Place(frame)
        return
    for higher in _ranks(holds):
        place = _places.by_rank.get(higher)
        if higher >= rank and not _interrupted(frame, place):
            _fail(
                LockOrder(
                    f"{_name(rank)} is about to be taken at {_Place(frame)}, while this thread holds {_name(higher)}, "
                    f"taken at {place}"
                )
            )


class WatchedLock:
    """A lock whose place in the order of ranks is checked before it is taken. In a `with` it behaves as the lock
    itself.
    """

    __slots__ = ("_holds", "_lock")

    def __init__(self, lock: Lock, holds: Callable[[], int]) -> None:
        self._lock = lock  # I
        self._holds = holds  # I: the ranks that the calling thread holds

    @property
    def rank(self) -> int:
        return self._lock.rank

    @property
    def mend(self) -> Callable[[], object] | None:
        return self._lock.mend

    @mend.setter
    def mend(self, mend: Callable[[], object] | None) -> None:
        self._lock.mend = mend

    def __enter__(self) -> None:
        pass

    @property
    def __exit__(self) -> Callable[..., None]:
        about_to_take(self._lock.rank, self._holds())
        return self._lock.__exit__  # never in a variable of a frame here: see `_host.locks`

    def by_hand(self) -> AbstractContextManager[None]:
        return self._lock.by_hand()

    def acquire(self) -> None:
        about_to_take(self._lock.rank, self._holds())
        self._lock.acquire()

    def release(self) -> None:
        self._lock.release()

    @property
    def stained(self) -> bool:
        return self._lock.stained

    def locked(self) -> bool:
        return self._lock.locked()

    def held(self) -> bool:
        return self._lock.held()

    def wake(self, parker: Parker) -> None:
        self._lock.wake(parker)

    def _at_fork_reinit(self) -> None:
        self._lock._at_fork_reinit()  # type: ignore[attr-defined]  # every lock of `_host` has it


def watched(lock: Lock, holds: Callable[[], int]) -> Lock:
    """The lock; in the debug mode a `WatchedLock` of it."""
    return WatchedLock(lock, holds) if DEBUG else lock


# ------------------------------------------------------------------------------------- declarations


def holding_any(*paths: str) -> Callable[[F], F]:
    """The caller holds one of these locks."""
    return lambda fn: _checked(fn, paths, _must_hold) if DEBUG else fn


def holding(path: str) -> Callable[[F], F]:
    """The caller holds this lock."""
    return holding_any(path)


def not_holding(*paths: str) -> Callable[[F], F]:
    """The caller holds none of these locks."""
    return lambda fn: _checked(fn, paths, _must_not_hold) if DEBUG else fn


def outside(fn: F) -> F:
    """The calling thread holds no lock of cmwq."""
    if not DEBUG:
        return fn

    @wraps(fn)
    def checked(*args: Any, **kwargs: Any) -> Any:
        _must_be_outside(fn)
        try:
            return fn(*args, **kwargs)
        finally:
            del args, kwargs  # the traceback of an exception keeps this frame, which must keep nothing else alive

    return checked  # type: ignore[return-value]


def _checked(fn: F, paths: tuple[str, ...], check: Callable[..., None]) -> F:
    code = fn.__code__
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    finders = [(*_finder(path, names), path) for path in paths]

    @wraps(fn)
    def checked(*args: Any, **kwargs: Any) -> Any:
        found = [
            (follow(args[index] if index < len(args) else kwargs[name]), path) for index, name, follow, path in finders
        ]
        check(fn, found)
        try:
            return fn(*args, **kwargs)
        finally:
            del args, kwargs, found  # as in `outside`

    return checked  # type: ignore[return-value]


def _finder(path: str, names: tuple[str, ...]) -> tuple[int, str, Callable[[Any], Any]]:
    name, _, rest = path.partition(".")
    steps = [attrgetter(step) for step in rest.split(".") if step]

    def follow(value: Any) -> Any:
        for step in steps:
            if value is None:
                return None
            value = step(value)
        return value

    return names.index(name), name, follow


def _must_hold(fn: Callable[..., Any], found: list[tuple[Lock | None, str]]) -> None:
    for lock, _ in found:
        if lock is None or lock.held():
            return
        place = _places.by_rank.get(lock.rank)
        if place is not None and place.pid != os.getpid():
            return  # the rest of a section in which the process forked: in the child no thread holds the lock
    paths = " or ".join(path for _, path in found)
    _fail(WrongContext(f"{_call(fn)}: it is for whoever holds {paths}, and this thread does not"))


def _must_not_hold(fn: Callable[..., Any], found: list[tuple[Lock | None, str]]) -> None:
    for lock, path in found:
        if lock is not None and lock.held():
            place = _places.by_rank.get(lock.rank)
            if not _interrupted(sys._getframe(2), place):
                _fail(WrongContext(f"{_call(fn)}: it must not be called with {path} held, which was taken at {place}"))


def _must_be_outside(fn: Callable[..., Any]) -> None:
    for account in accounts:
        for rank in _ranks(account()):
            place = _places.by_rank.get(rank)
            if not _interrupted(sys._getframe(2), place):
                _fail(
                    WrongContext(f"{_call(fn)}: it must be called without any lock, and {_name(rank)} is held, {place}")
                )


def _call(fn: Callable[..., Any]) -> str:
    """The function, and where it is called, for a message."""
    frame: FrameType | None = sys._getframe(3)
    while frame is not None and frame.f_code.co_filename == __file__:
        frame = frame.f_back
    where = "" if frame is None else f", called at {_Place(frame)}"
    return f"{fn.__module__}.{fn.__qualname__}{where}"
