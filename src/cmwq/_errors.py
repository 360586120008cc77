"""The errors that cmwq raises. Each is a `CmwqError`, and also the standard exception that a caller would catch."""

from __future__ import annotations

import queue as _queue
from typing import Any


class CmwqError(Exception):
    """The base class of all errors of this package."""


class QueueClosed(CmwqError, RuntimeError):
    """A work was offered to a queue, an executor or a runtime that accepts none any more."""


class QueueFull(CmwqError, _queue.Full):
    """`max_pending` works wait already, and the queue was made with full="raise" (E9)."""


class WorkDisabled(CmwqError, RuntimeError):
    """The work is disabled, and cannot be submitted until it is enabled (F6)."""


class FlushDeadlock(CmwqError, RuntimeError):
    """A work would wait for itself: what it waits for needs this very work, directly or through other waits (F7)."""


class CmwqTimeout(CmwqError, TimeoutError):
    """A wait took longer than its `timeout` (F8)."""


class ThreadLimit(CmwqError, RuntimeError):
    """No thread can be created: the system refused one, or a cap is reached (B6)."""


class Reentered(CmwqError, RuntimeError):
    """A finaliser or a signal handler made this call while the same thread was inside cmwq's own code. The call would
    have to wait for the thread that it interrupted.
    """


class Refused(Reentered):
    """A lock or a wait was refused, and within cmwq the call may be deferred."""

    def __reduce__(self) -> tuple[type[Reentered], tuple[Any, ...]]:
        return Reentered, self.args


Refused.__name__ = Refused.__qualname__ = Reentered.__name__  # what users see of it


class ForeignProcess(CmwqError, RuntimeError):
    """The call would wait for something that happens only in the process that forked this one (G2)."""


class Abandoned(CmwqError, RuntimeError):
    """The runtime ended at its time limit and left behind what the caller waits for (G3)."""


class InvariantError(CmwqError, AssertionError):
    """A rule of the pool does not hold: a bug in cmwq. Only `check_invariants()` raises it, in tests."""


REFUSALS = (
    Refused, QueueClosed, QueueFull, WorkDisabled, FlushDeadlock, CmwqTimeout, ThreadLimit, ForeignProcess, Abandoned,
)  # fmt: skip
"""What our own code raises where it refuses something, before it changes anything."""

PACKAGE = (lambda: None).__code__.co_filename.removesuffix("_errors.py")
"""What the names of the files of all our code begin with."""


def raised_by_us(exc: BaseException) -> bool:
    """Whether only code of ours was on the way from here to where the exception was raised."""
    traceback = exc.__traceback__
    while traceback is not None:
        if not traceback.tb_frame.f_code.co_filename.startswith(PACKAGE):
            return False
        traceback = traceback.tb_next
    return True


def refused_by_us(exc: BaseException, refusals: type | tuple[type, ...] = Refused) -> bool:
    """Whether it is a refusal of our own code: nothing is changed. Else it is an interruption of whatever was done."""
    return isinstance(exc, refusals) and raised_by_us(exc)


def own(refusal: CmwqError) -> None:
    """Raise it again if a signal handler let it out, which has called cmwq, and interrupted the caller at any moment.

    To be called wherever our own code catches what our own code raises (`Refused`, `REFUSALS`): it would take that for
    the refusal of its own call, before which nothing is changed. (A handler without a frame of its own, such as a
    `partial` of a method of ours, is taken for ours.)
    """
    if not raised_by_us(refusal):
        try:
            raise refusal
        finally:
            del refusal  # its traceback leads here
