"""A parker made of a lock: a thread sleeps in acquire() until another releases it."""

from __future__ import annotations

from threading import Lock


class LockParker:
    """Where one thread sleeps until told. An early unpark is kept, once. Ctrl-C interrupts park() in the main thread.

    Several may unpark at the same time: release() of a lock that is not held raises, and then an earlier unpark is
    still to be consumed, which says the same.
    """

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = Lock()
        self._lock.acquire()

    def park(self, timeout: float = -1, spins: bool = False) -> bool:
        """Seconds; -1: for ever. False: the time passed. It never spins: Python can't without the GIL."""
        return self._lock.acquire(True, timeout)

    def unpark(self, *_: object) -> None:
        """Whatever it is given: so it can be the callback of a weak reference."""
        try:  # noqa: SIM105  # hot path
            self._lock.release()
        except RuntimeError:
            pass
