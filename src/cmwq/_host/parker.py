"""A parker made of a lock: a thread sleeps in acquire() until another thread releases the lock."""

from __future__ import annotations

from threading import Lock

from cmwq._core import asleep


class LockParker:
    """One thread parks here until another unparks it. An early unpark is kept, once. Ctrl-C interrupts park() in the
    main thread.

    Several threads may unpark at the same time: release() raises if the lock is not held, but then an earlier unpark is
    still to be consumed, which has the same effect.
    """

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = Lock()
        self._lock.acquire()

    def park(self, timeout: float = -1, spins: bool = False) -> bool:
        """Wait for an unpark, at most `timeout` seconds; -1: for ever. False: the time passed.

        It never spins, because Python code can't spin without the GIL.
        """
        return asleep.acquire(self._lock, timeout)

    def unpark(self, *_: object) -> None:
        """Let park() return, now or next time. It ignores its arguments, so it can be the callback of a weak
        reference."""
        try:
            self._lock.release()
        except RuntimeError as exc:
            if asleep.is_a_handlers(exc):
                self.unpark()  # it came perhaps before the lock was released
                raise
