"""What cmwq raises. Every error is a `CmwqError` and also the standard exception a caller would catch."""

from __future__ import annotations

import queue as _queue


class CmwqError(Exception):
    """Base of all errors of this package."""


class QueueClosed(CmwqError, RuntimeError):
    """Work was offered to a queue, lease or runtime that takes none any more."""


class QueueFull(CmwqError, _queue.Full):
    """`max_pending` works wait already, and the queue was made with full="raise" (E9)."""


class WorkDisabled(CmwqError, RuntimeError):
    """The work is disabled (F6)."""


class FlushDeadlock(CmwqError, RuntimeError):
    """A work waits for something that waits for this work (F7)."""


class CmwqTimeout(CmwqError, TimeoutError):
    """A wait took longer than its `timeout` (F8)."""


class ThreadLimit(CmwqError, RuntimeError):
    """No thread can be had: the system refused one, or a cap is reached (B6)."""


class Reentered(CmwqError, RuntimeError):
    """Called by a finaliser or a signal handler in the middle of cmwq's own code on the same thread: it would have to
    wait for itself."""


class ForeignProcess(CmwqError, RuntimeError):
    """What this would wait for happens in the process that forked this one, and never here (G2)."""


class Abandoned(CmwqError, RuntimeError):
    """The runtime ended, and what this would wait for did not: a limit of time was set, and it was left behind (G3)."""


class InvariantError(CmwqError, AssertionError):
    """A rule of the pool does not hold: a bug of cmwq. Raised by `check_invariants()`, in tests only."""
