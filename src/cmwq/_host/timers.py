"""Timers: one heap, and one thread that sleeps until the earliest timer is due.

Guarantees
- A timer fires once, on the thread "cmwq/timers", and never before its time, unless it was cancelled first; then
  `cancel` returned True.
- Timers of the same instant fire in the order of `call_later`.
- Whatever an fn raises is logged. The thread survives it, and any exception that is thrown at it in its loop. If
  several at once end it all the same, another takes its place.
- `call_later` either leaves a timer that will fire, or raises; if it is interrupted, as by Ctrl-C, perhaps both. Once
  `start` has returned, it needs no further thread.
- The thread is not woken while there is no timer (G4), nor for a timer that is not the earliest. A timer that was
  cancelled while it was the earliest may cost one wake-up.
- No fn is called or dropped with the lock held, because what its closure refers to may have finalisers.
- `call_later` and `cancel` cost O(log n), amortised, where n is the number of timers still to fire. The heap holds at
  most as many cancelled entries again (or `_TOLERATED`, if that is more), and these don't keep their fns alive.

Assumes that fns don't block: they are called one after the other.

A signal handler, or a finaliser that the garbage collector runs, may call in while a call is in progress on the same
thread. If it would have to wait for the call that it interrupted, it gets `Reentered`, and nothing is changed. `cancel`
never raises that: it needs the lock only to count the cancellation, which is deferred until the lock is free.

Why no timer is lost, nor fires twice. Whichever thread takes fn out of `Timer._fns` owns it: the timer thread, or one
that cancels. The timer thread takes fn and calls it with no bytecode in between, and removes the entry from the heap
afterwards. So if the thread is interrupted, either fn has begun, or the entry is still there.

Why the thread stays. Ending it when there is no timer would free little, and creating it again could be refused, just
when a timer is needed to help against a lack of threads.

Why cancelling doesn't remove. Finding an entry in a heap costs O(n), unless every move within the heap is recorded,
which `heapq` can't do. So the entry of a cancelled timer stays until it comes to the top, or until more than half of
the heap is cancelled; then all such entries are removed at once. That costs O(n) after n / 2 cancellations at least.

Why no wake-up is lost. `_wakes_at` is the time at which the thread will look at the heap unprompted; -inf means that it
will look before it sleeps. It is written under the lock: by the timer thread after it looked at the heap, and by a
thread that unparks it. A new timer is either pushed before the thread looks, or is compared with `_wakes_at`, and the
thread is unparked if the timer is earlier. An unpark that comes before the park is kept. After an exception with the
lock held, `_recount` makes the thread look again.

Letters: I as in `_pool.pool`; T: `_lock` held.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
import weakref
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from itertools import count
from operator import call
from typing import TYPE_CHECKING

from cmwq._core import log
from cmwq._core.held import holding, outside
from cmwq._core.ranks import Rank
from cmwq._core.surely import surely
from cmwq._errors import QueueClosed, ThreadLimit
from cmwq._host import locks
from cmwq._host.locks import defer, inside
from cmwq._host.parker import LockParker

if TYPE_CHECKING:
    from cmwq._core import ports

try:
    from cmwq._sensor._sentinel import Parker as _Parker
except ImportError:  # no compiler was there
    _Parker = LockParker  # type: ignore[assignment,misc]

_TOLERATED = 64
"""This many cancelled entries may stay even if they are most of the heap; else a small heap would always be
compacted."""


class Timer:
    """A call that is due later. Thread-safe."""

    __slots__ = ("_counted", "_fns", "_timers")

    def __init__(self, timers: Timers, fn: Callable[[], None]) -> None:
        self._timers = timers  # I
        self._fns = [fn]  # each change is atomic; empty: it has begun, or was taken back
        self._counted = False  # T: its entry is one of `_cancelled`, or has left the heap

    def cancel(self) -> bool:
        """Cancel the call, without waiting. True: fn has not begun and never will. False: it has begun, ended, or was
        cancelled or dropped before. Never raises; may be called from any thread, signal handler or finaliser.
        """
        try:
            fn = self._fns.pop()
        except IndexError:
            return False
        if inside() >> Rank.TIMERS:
            defer(self._count)
        else:
            self._count()
        del fn  # this call holds no lock here
        return True

    def _count(self) -> None:
        self._timers._count(self)


class Timers:
    """A set of timers and their thread. Thread-safe.

    `spawn` starts a thread with a given name, or raises `ThreadLimit`. `clock` returns seconds and never goes back.
    """

    def __init__(
        self,
        spawn: Callable[[str, Callable[[], None]], ports.Thread],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._spawn = spawn  # I
        self._clock = clock  # I
        self._parker: ports.Parker = _Parker()  # I: the timer thread's
        self._starting = locks.new(Rank.TIMERS_STARTING)  # held while a thread is being started
        self._lock = locks.new(Rank.TIMERS, _mending(weakref.ref(self)))
        # The number keeps timers of one instant in order, so that Timers are never compared. It is drawn under the lock
        # because without a GIL count() may give the same number twice.
        self._heap: list[tuple[float, int, Timer]] = []  # T
        self._numbers = count()  # T
        self._cancelled = 0  # T: how many entries of the heap belong to cancelled timers
        self._wakes_at = -math.inf  # T
        self._thread: ports.Thread | None = None  # T to change; read freely
        self._closed = False  # T to change; read freely

    def start(self) -> None:
        """Create the timer thread if there is none. Raises ThreadLimit, or QueueClosed after `close`."""
        with self._starting:
            self._check_open()
            if self._thread is None:
                self._claim(self._spawn("cmwq/timers", self._run))

    def call_later(self, delay: float, fn: Callable[[], None]) -> Timer:
        """Call fn on the timer thread after `delay` seconds.

        Raises ThreadLimit if the timer thread is needed and can't be created, QueueClosed after `close`.
        """
        # Not max(): a NaN, which would break the order of the heap, must become 0 as well.
        due = self._clock() + (delay if delay > 0 else 0)
        timer = Timer(self, fn)
        if self._thread is None:
            self.start()
        with self._lock:
            self._check_open()
            heappush(self._heap, (due, next(self._numbers), timer))
            if due < self._wakes_at:
                self._lock.wake(self._parker)
                self._wakes_at = -math.inf
        return timer

    def close(self) -> None:
        """End the thread and wait for its end. Timers still to fire are dropped: their `cancel` returns False.

        Context: no lock held that an fn may take. An fn may call it; then it doesn't wait.
        """
        with self._starting, self._lock:
            self._closed = True
            self._lock.wake(self._parker)
            dropped = self._drop_all()
        del dropped
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def abandon(self) -> None:
        """In the child of a fork: drop all timers and free the locks, because the threads of the parent are missing.

        Cancelling one of the parent's timers here is harmless and returns False. If the timer thread itself forked, in
        an fn, it ends in the child.
        """
        locks.reinit(self._starting)
        locks.reinit(self._lock)
        self._closed = True
        self._drop_all()
        self._parker.unpark()

    @outside
    def fire_due(self) -> float:
        """Fire all timers that are due, the earliest first. Returns how many seconds to park, or -1 for ever.

        Context: the timer thread, or a test in its place.
        """
        while True:
            garbage = None
            with self._lock:
                if not self._heap:
                    self._wakes_at = math.inf
                    return -1
                due, _, timer = self._heap[0]
                if not timer._fns:
                    # One entry at a time: there may be very many, and other threads need the lock.
                    garbage = heappop(self._heap)
                    self._cancelled -= timer._counted
                    timer._counted = True
                elif (left := due - self._clock()) > 0:
                    self._wakes_at = due
                    return min(left, threading.TIMEOUT_MAX)
            if garbage is None:
                _fire(timer)
            del timer, garbage  # here, because the next assignment happens under the lock

    def _run(self) -> None:
        # Every step of the loop is inside a `try`; the first step of a `try` within the loop would not be.
        with surely(self._have_successor), surely(self._have_successor):
            while True:
                try:
                    while not self._serve():
                        pass
                    return
                except BaseException:
                    pass  # it came while another exception was being logged

    def _have_successor(self) -> None:
        """If the timer thread ends although it is needed, as several exceptions at once may end it: start another.

        If that is refused, the next `call_later` tries again.
        """
        with self._lock:
            if self._closed or self._thread is not threading.current_thread():
                return
            self._thread = None
        with contextlib.suppress(ThreadLimit, QueueClosed):
            self.start()

    def _serve(self) -> bool:
        """Fire timers until the end. False: an exception interrupted it, and it must be called again."""
        try:
            while not self._closed and self._claim(threading.current_thread()):
                self._parker.park(self.fire_due())
            return True
        except BaseException:
            _log_failure("the timer thread was interrupted, and goes on")
            return False

    def _check_open(self) -> None:
        if self._closed:
            raise QueueClosed("these timers have ended: closed, or left behind in the process that forked this one")

    def _claim(self, thread: ports.Thread) -> bool:
        """Make this thread the timer thread if there is none. Returns whether it is the timer thread.

        Both `start` and the thread call it: Ctrl-C may end `start` after the thread began and before `start` could note
        it. Then the next `start` finds none and makes another, and one of the two has to end.
        """
        with self._lock:
            if self._thread is None:
                self._thread = thread
            return self._thread is thread

    def _count(self, timer: Timer) -> None:
        """Count a cancelled timer. A thread that is interrupted before this leaves an entry that is not counted."""
        garbage = None
        with self._lock:
            self._cancelled += not timer._counted
            timer._counted = True
            if self._cancelled > _TOLERATED and self._cancelled * 2 > len(self._heap):
                garbage = self._compact()
        del garbage

    @holding("self._lock")
    def _recount(self) -> None:
        """Make the heap and the counts consistent again, whatever was half done."""
        heapify(self._heap)
        self._cancelled = sum(timer._counted for _, _, timer in self._heap)
        self._wakes_at = -math.inf
        self._parker.unpark()

    @holding("self._lock")
    def _compact(self) -> object:
        """Remove the cancelled entries. Returns objects that the caller must drop after releasing the lock."""
        old = self._heap
        self._heap = [entry for entry in old if entry[2]._fns]
        for _, _, timer in old:
            timer._counted = not timer._fns
        heapify(self._heap)
        self._cancelled = 0
        return old

    def _drop_all(self) -> object:
        """Drop all timers. Returns objects that the caller must drop after releasing the lock.

        Context: lock held, or the child of a fork.
        """
        old, self._heap = self._heap, []
        self._cancelled = 0
        for _, _, timer in old:
            timer._counted = True
        return old, [timer._fns.pop() for _, _, timer in old if timer._fns]


def _mending(timers: weakref.ref[Timers]) -> Callable[[], None]:
    """The `mend` of the timers' lock. Its reference is weak, or the lock would keep its owner alive."""

    def mend() -> None:
        if (found := timers()) is not None:
            found._recount()

    return mend


def _fire(timer: Timer) -> None:
    try:
        next(map(call, map(list.pop, (timer._fns,))))  # taken and called with no bytecode in between: see above
    except BaseException as exc:  # SystemExit too: an fn must not end the timers of all others
        taken_back = isinstance(exc, IndexError) and exc.args == ("pop from empty list",)
        if not (taken_back and exc.__traceback__ is not None and exc.__traceback__.tb_next is None):
            _log_failure("a timer raised")


def _log_failure(what: str) -> None:
    with contextlib.suppress(BaseException):  # a handler, a filter or a repr() must not end them, either
        log.exception(what)
