"""The errors that cmwq raises. Each is a `CmwqError`, and also the standard exception that a caller would catch."""

from __future__ import annotations

import queue as _queue


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


class ForeignProcess(CmwqError, RuntimeError):
    """The call would wait for something that happens only in the process that forked this one (G2)."""


class Abandoned(CmwqError, RuntimeError):
    """The runtime ended at its time limit and left behind what the caller waits for (G3)."""


class InvariantError(CmwqError, AssertionError):
    """A rule of the pool does not hold: a bug in cmwq. Only `check_invariants()` raises it, in tests."""
