"""Sleeping on a lock, so that a signal is heard.

The interpreter calls the handlers of signals in the main thread, between two steps of its Python code. If it sleeps in
`Lock.acquire`, the signal interrupts that. But there is an instant just before the thread sleeps, after the
interpreter has looked for signals: one that comes then is not heard until something else wakes the thread, which may
be never. It is not rare where a wait itself causes the signal, as with a child process that ends or a timer. And each
look for signals is followed by such an instant.

Guarantee: a signal that comes in such an instant is heard after `INSTANT`, or when the wait has lasted twice as long,
whichever is later. No thread but the main one wakes for that, and that one the more seldom the longer it waits: 15
times in the first half hour.
"""

from __future__ import annotations

from threading import get_ident, main_thread
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _thread import LockType

INSTANT = 0.05
"""Seconds until the main thread, when it waits, looks for signals again. The next look is after twice as long, ..."""


def acquire(lock: LockType, timeout: float) -> bool:
    """Acquire it, and return whether that was possible. timeout: seconds; -1: for ever."""
    if not 0 <= timeout <= INSTANT and get_ident() == main_thread().ident:
        sleep = INSTANT
        while not 0 <= timeout <= sleep:
            if lock.acquire(True, sleep):
                return True
            if timeout > 0:
                timeout -= sleep
            sleep *= 2
    return lock.acquire(True, timeout)


def is_a_handlers(refusal: RuntimeError) -> bool:
    """Is it not the refusal to release a lock, but what a signal handler raised as the lock was to be released?

    Context: the caller's frame has caught it, around the call of `release` alone.
    """
    traceback = refusal.__traceback__
    return traceback is not None and traceback.tb_next is not None
