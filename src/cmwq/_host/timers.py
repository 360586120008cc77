"""Timers: one heap and one thread, asleep until the earliest.

Guarantees
- A timer fires once, on the thread "cmwq/timers", never before its time; or it was taken back, and `cancel` said so.
- Timers of the same instant fire in the order of `call_later`.
- Whatever an fn raises is logged. The thread outlives it.
- `call_later` either leaves a timer that will fire, or raises. Once `start` has returned it needs no further thread.
- No wake-up while there is no timer (G4), and none for a timer that is not the earliest. A timer that was cancelled
  while it was the earliest may cost one.
- No fn is called, and none is let go of, with the lock held: what its closure holds may have finalisers.
- `call_later` and `cancel` cost O(log n), amortised, n being the timers that are still to fire: of cancelled ones the
  heap holds as many more at most (but `_TOLERATED` in any case), and nothing of their fns.

Assumes that fns don't block: they are called one after the other. And that nothing calls in from within a call in
progress on the same thread, as a signal handler could, or a finaliser that the garbage collector happens to run.

Why the thread stays. To end it when there is no timer would free little, and to have it again could be refused, at the
very moment at which a timer is to bring help against a lack of threads.

Why cancelling doesn't remove. To find an entry in a heap costs O(n), unless every move within the heap is noted, which
`heapq` can't do. So an entry whose timer was cancelled stays until it comes to the top, or until more than half of the
heap is such; then all go at once. That costs O(n) after n / 2 cancellations at least.

Why no wake-up is lost. `_wakes_at` is when the thread will look at the heap without being told, or -inf: it will look
before it sleeps. It is written under the lock, by the thread after it saw the heap, by others after they unparked it.
A timer earlier than that was either pushed before the thread looked, or finds it in `_wakes_at`. An unpark that comes
before the park is kept. And an exception from a signal handler, anywhere in `call_later`, does no harm: it compares
with when the thread wakes, not with the heap's first, so an entry that was pushed but not told hides no later one.

Letters: I as in `_core.pool`; T: `_lock` held.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from itertools import count
from typing import TYPE_CHECKING

from cmwq._errors import QueueClosed
from cmwq._host.parker import LockParker

if TYPE_CHECKING:
    from cmwq._core import ports

_log = logging.getLogger("cmwq")
_TOLERATED = 64
"""So many cancelled entries may stay though they are most of the heap: else few timers would mean compacting always."""


class Timer:
    """A call to come."""

    __slots__ = ("_fn", "_timers")

    def __init__(self, timers: Timers, fn: Callable[[], None]) -> None:
        self._timers = timers  # I
        self._fn: Callable[[], None] | None = fn  # T; None: it has begun, or was taken back

    def cancel(self) -> bool:
        """Take it back. True: fn was not begun, and never will be. Does not wait for one that was."""
        return self._timers._cancel(self)


class Timers:
    """Thread-safe. `spawn` starts a thread of a given name or raises `ThreadLimit`. `clock` never goes back."""

    def __init__(
        self,
        spawn: Callable[[str, Callable[[], None]], ports.Thread],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._spawn = spawn  # I
        self._clock = clock  # I
        self._parker = LockParker()  # I: where the thread sleeps
        self._starting = threading.Lock()  # taken before T, and kept while a thread is being started
        self._lock = threading.Lock()
        # The number keeps timers of one instant in order, and spares comparing Timers. Drawn under the lock: without a
        # GIL, count() may give the same number twice.
        self._heap: list[tuple[float, int, Timer]] = []  # T
        self._numbers = count()  # T
        self._cancelled = 0  # T: how many entries of the heap belong to timers that were taken back
        self._wakes_at = -math.inf  # T
        self._thread: ports.Thread | None = None  # T to change; read freely
        self._closed = False  # T to change; read freely

    def start(self) -> None:
        """Have the thread from now on. Raises ThreadLimit."""
        with self._starting:
            self._check_open()
            if self._thread is None:
                self._claim(self._spawn("cmwq/timers", self._run))

    def call_later(self, delay: float, fn: Callable[[], None]) -> Timer:
        """Call fn after so many seconds. Raises ThreadLimit if that takes a thread which can't be had."""
        # Not max(): a NaN, which would spoil the order of the heap, must become 0 as well.
        due = self._clock() + (delay if delay > 0 else 0)
        timer = Timer(self, fn)
        if self._thread is None:
            self.start()
        with self._lock:
            self._check_open()
            heappush(self._heap, (due, next(self._numbers), timer))
            if due < self._wakes_at:
                self._parker.unpark()
                self._wakes_at = -math.inf
        return timer

    def close(self) -> None:
        """End the thread. Timers still to come are dropped: their `cancel` returns False.

        Context: no lock held that an fn may take; an fn may call it.
        """
        with self._starting, self._lock:
            self._closed = True
            dropped = self._drop_all()
        self._parker.unpark()
        del dropped
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def abandon(self) -> None:
        """In the child of a fork: the thread is the parent's, and so is whoever held a lock.

        To cancel one of the parent's timers here is harmless, and returns False. Should the thread have been the one
        that forked, in an fn, then it ends.
        """
        self._starting = threading.Lock()
        self._lock = threading.Lock()
        self._closed = True
        self._drop_all()
        self._parker.unpark()

    def fire_due(self) -> float:
        """Call all that is due, the earliest first. Returns how long to park: seconds, or -1 for ever.

        Context: the timer thread, or a test in its place.
        """
        while True:
            with self._lock:
                if not self._heap:
                    self._wakes_at = math.inf
                    return -1
                due, _, timer = self._heap[0]
                fn = timer._fn
                if fn is not None and (left := due - self._clock()) > 0:
                    self._wakes_at = due
                    return min(left, threading.TIMEOUT_MAX)
                # One entry at a time, the cancelled ones too: there may be very many, and others want the lock.
                heappop(self._heap)
                timer._fn = None
                if fn is None:
                    self._cancelled -= 1
            if fn is not None:
                _call(fn)
            del fn  # not by the next assignment, which is under the lock

    def _run(self) -> None:
        if not self._claim(threading.current_thread()):
            return
        while not self._closed:
            self._parker.park(self.fire_due())

    def _check_open(self) -> None:
        if self._closed:
            raise QueueClosed("these timers have ended: closed, or left behind in the process that forked this one")

    def _claim(self, thread: ports.Thread) -> bool:
        """Whether this thread is the one.

        Asked on both sides: Ctrl-C may end `start` after the thread began and before `start` could note it. Then the
        next `start` finds none, and makes another; one of the two has to go.
        """
        with self._lock:
            if self._thread is None:
                self._thread = thread
            return self._thread is thread

    def _cancel(self, timer: Timer) -> bool:
        garbage = None
        with self._lock:
            fn, timer._fn = timer._fn, None
            if fn is None:
                return False
            self._cancelled += 1
            if self._cancelled > _TOLERATED and self._cancelled * 2 > len(self._heap):
                garbage = self._compact()
        del fn, garbage
        return True

    def _compact(self) -> object:
        """Forget the cancelled entries. Returns what is to be let go of outside the lock.  Context: lock held."""
        old = self._heap
        self._heap = [entry for entry in old if entry[2]._fn is not None]
        heapify(self._heap)
        self._cancelled = 0
        return old

    def _drop_all(self) -> object:
        """Take back all timers. Returns what is to be let go of outside the lock.  Context: lock held, or a fork."""
        old, self._heap = self._heap, []
        fns = [timer._fn for _, _, timer in old]
        for _, _, timer in old:
            timer._fn = None
        self._cancelled = 0
        return old, fns


def _call(fn: Callable[[], None]) -> None:
    try:
        fn()
    except BaseException:  # SystemExit too: it is not for an fn to end everybody's timers
        with contextlib.suppress(BaseException):  # nor for a handler, a filter or a repr()
            _log.exception("timer %r raised", fn)
