"""Timers: one heap, one thread, asleep until the earliest; no thread while there is no timer (G4)."""

from __future__ import annotations

import heapq
import logging
import threading
import time
from collections.abc import Callable
from itertools import count

_log = logging.getLogger("cmwq")
_LINGER = 1.0  # s an unneeded thread waits for the next timer, so that bursts don't start one each


class Timer:
    """A call to come. cancel() takes it back if it hasn't begun."""

    __slots__ = ("_fn", "_timers")

    def __init__(self, timers: Timers, fn: Callable[[], None]) -> None:
        self._timers = timers
        self._fn: Callable[[], None] | None = fn

    def cancel(self) -> None:
        self._timers.cancelled(self)


class Timers:
    """Thread-safe. `fn`s are called one after the other and must not block; what they raise is logged."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._heap: list[tuple[float, int, Timer]] = []
        self._numbers = count()
        self._running = False  # the thread is there and will look at the heap again

    def call_later(self, delay: float, fn: Callable[[], None]) -> Timer:
        """delay in seconds, on the monotonic clock; never earlier."""
        timer = Timer(self, fn)
        with self._changed:
            heapq.heappush(self._heap, (time.monotonic() + delay, next(self._numbers), timer))
            if self._running:
                if self._heap[0][2] is timer:
                    self._changed.notify()
                return timer
            self._running = True
        try:
            threading.Thread(target=self._run, name="cmwq/timers", daemon=True).start()
        except RuntimeError:
            # No thread can be had. The timer stays on the heap; the next call_later tries again.
            with self._changed:
                self._running = False
        return timer

    def cancelled(self, timer: Timer) -> None:
        with self._changed:
            timer._fn = None
            while self._heap and self._heap[0][2]._fn is None:
                heapq.heappop(self._heap)
            if not self._heap:
                self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._heap:
                    self._changed.wait(_LINGER)
                if not self._heap:
                    self._running = False
                    return
                due, _, timer = self._heap[0]
                if (left := due - time.monotonic()) > 0:
                    self._changed.wait(left)
                    continue
                heapq.heappop(self._heap)
                fn, timer._fn = timer._fn, None
            if fn is not None:
                try:
                    fn()
                except Exception:
                    _log.exception("timer %r raised", fn)
                del fn
