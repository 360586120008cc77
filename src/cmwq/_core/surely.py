"""Undoing something whatever interrupts, and at whichever depth (F10).

A `RecursionError` is no interruption that comes once. At the same depth it comes each time, in what undoes something as
in what is to be undone, so doing it twice does not help. What undoes something is therefore called by `at_any_depth`,
with room for more frames than the recursion limit leaves. To call that needs no more depth than to take a lock or to
make a `surely`, so who has done one of these has it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from threading import Lock, local
from typing import TYPE_CHECKING, Any, TypeVar

T = TypeVar("T")

MORE_FRAMES = 40
"""So many frames there are at least in `py_at_any_depth`; ours need fewer. It can't be many more: when the limit is
restored another thread may be beyond it, and if that is by 50, Python 3.11 aborts the process.
"""

ASKED_FRAMES = 60
"""So many frames are asked for where the limit can't be raised: `MORE_FRAMES`, and those of the way there."""

FREE_THREADED = hasattr(sys, "_is_gil_enabled") and not sys._is_gil_enabled()


class _Thread(local):
    deepened = False


class _Limit:
    """The recursion limit of the process, while `py_at_any_depth` has raised it."""

    lock = Lock()
    users = 0  # lock: calls in progress that have raised it
    base = 0  # lock: what it is without them
    ours = 0  # lock: what they have made of it. If it is another now, somebody else has set it


_thread = _Thread()


def frames(number: int) -> None:
    """Raise RecursionError unless there is room for so many frames, and for a call of C beyond them."""
    if number > 1:
        frames(number - 1)
    else:
        sys.getrecursionlimit()


def py_at_any_depth(fn: Callable[..., T], *args: Any) -> T:
    """Call fn, with room for more frames than the recursion limit leaves. Such calls within it get no more.

    The C raises the calling thread's own count. Here the limit of all threads is raised, only where that is needed, and
    is restored unless somebody else has set it meanwhile. Without a GIL it is not, since other threads count as they
    run; there the frames were asked for before (`ask_for_depth`, `surely`).
    """
    if FREE_THREADED:
        before, _thread.deepened = _thread.deepened, True
        try:
            return fn(*args)
        finally:
            _thread.deepened = before
    try:
        frames(MORE_FRAMES)
    except RecursionError:
        if _thread.deepened:
            return fn(*args)
        frames(2)  # the limit can't be restored from beyond it
    else:
        return fn(*args)
    with _Limit.lock:
        if sys.getrecursionlimit() != _Limit.ours:
            _Limit.base = sys.getrecursionlimit()
        _Limit.users += 1
        _Limit.ours = _Limit.base + MORE_FRAMES * _Limit.users
        sys.setrecursionlimit(_Limit.ours)
        _thread.deepened = True
    try:
        return fn(*args)
    finally:
        with _Limit.lock:
            _thread.deepened = False
            _Limit.users -= 1
            if sys.getrecursionlimit() == _Limit.ours:
                sys.setrecursionlimit(_Limit.base + MORE_FRAMES * _Limit.users)
                _Limit.ours = _Limit.base + MORE_FRAMES * _Limit.users


def _ask() -> None:
    """Raise RecursionError unless `at_any_depth` can be called here and, where it gives no more frames, has enough."""
    if not FREE_THREADED:
        frames(5)
    elif not _thread.deepened:  # else they were asked for
        frames(ASKED_FRAMES)


at_any_depth = py_at_any_depth
ask_for_depth: Callable[[], object] = _ask
"""As `_ask`. Not needed with a twin in C, which needs no frames."""

if not TYPE_CHECKING:
    with suppress(ImportError):  # no compiler was there, or it was to be for every Python
        from cmwq._sensor._sentinel import at_any_depth

        ask_for_depth = int  # the quickest call that does nothing


class surely:
    """A context manager that calls `undo` at the end, whatever happens. It may call it twice, so that must do no harm.

    An interruption may come before the first step of `__exit__`. So where `undo` must be called for sure, write it
    twice: `with surely(undo), surely(undo):`. Then one interruption, wherever it comes, prevents at most one of the
    calls (F10). Against a RecursionError one would do: what `__exit__` needs is asked for in `__enter__`, before
    anything is changed.
    """

    __slots__ = ("_undo",)

    def __init__(self, undo: Callable[[], object]) -> None:
        self._undo = undo  # S

    def __enter__(self) -> None:
        frames(4)
        ask_for_depth()

    def __exit__(self, *exc_info: object) -> None:
        at_any_depth(self._undo)
