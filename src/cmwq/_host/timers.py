"""Timers: one heap and one thread, asleep until the earliest.

Guarantees
- A timer fires once, on the thread "cmwq/timers", never before its time; or it was taken back, and `cancel` said so.
- Timers of the same instant fire in the order of `call_later`.
- Whatever an fn raises is logged. The thread outlives it, and an exception that is thrown at it anywhere in its loop.
- `call_later` either leaves a timer that will fire, or raises; if it was interrupted, as by Ctrl-C, perhaps both. Once
  `start` has returned it needs no further thread.
- No wake-up while there is no timer (G4), and none for a timer that is not the earliest. A timer that was cancelled
  while it was the earliest may cost one.
- No fn is called, and none is let go of, with the lock held: what its closure holds may have finalisers.
- `call_later` and `cancel` cost O(log n), amortised, n being the timers that are still to fire: of cancelled ones the
  heap holds as many more at most (but `_TOLERATED` in any case), and nothing of their fns.

Assumes that fns don't block: they are called one after the other.

Who calls in from within a call in progress on the same thread, as a signal handler may, or a finaliser that the garbage
collector happens to run, gets `Reentered` if it would have to wait for what it interrupted, and nothing was changed.
`cancel` never does: it needs no lock to take a timer back, only to count it, and that can wait until the lock is free.

Why no timer is lost, nor fires twice. Who takes fn out of `Timer._fns` has it: the thread, or one who cancels. The
thread takes it and calls it with no bytecode in between, and its entry leaves the heap afterwards. So whatever
interrupts the thread, either fn has begun, or the entry is still there.

Why the thread stays. To end it when there is no timer would free little, and to have it again could be refused, at the
very moment at which a timer is to bring help against a lack of threads.

Why cancelling doesn't remove. To find an entry in a heap costs O(n), unless every move within the heap is noted, which
`heapq` can't do. So an entry whose timer was cancelled stays until it comes to the top, or until more than half of the
heap is such; then all go at once. That costs O(n) after n / 2 cancellations at least.

Why no wake-up is lost. `_wakes_at` is when the thread will look at the heap without being told, or -inf: it will look
before it sleeps. It is written under the lock, by the thread after it saw the heap, by others who unpark it.
A timer earlier than that was either pushed before the thread looked, or finds it in `_wakes_at`. An unpark that comes
before the park is kept. And an exception anywhere with the lock held does no harm: `_recount` makes the thread look.

Letters: I as in `_core.pool`; T: `_lock` held.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
import weakref
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from itertools import count
from operator import call
from typing import TYPE_CHECKING

from cmwq._core.held import holding, outside
from cmwq._core.ranks import Rank
from cmwq._errors import QueueClosed
from cmwq._host import locks
from cmwq._host.locks import defer, inside
from cmwq._host.parker import LockParker

if TYPE_CHECKING:
    from cmwq._core import ports

try:
    from cmwq._sensor._sentinel import Parker as _Parker
except ImportError:  # no compiler was there
    _Parker = LockParker  # type: ignore[assignment,misc]

_log = logging.getLogger("cmwq")
_TOLERATED = 64
"""So many cancelled entries may stay though they are most of the heap: else few timers would mean compacting always."""


class Timer:
    """A call to come."""

    __slots__ = ("_counted", "_fns", "_timers")

    def __init__(self, timers: Timers, fn: Callable[[], None]) -> None:
        self._timers = timers  # I
        self._fns = [fn]  # each change is atomic; empty: it has begun, or was taken back
        self._counted = False  # T: its entry is one of `_cancelled`, or has left the heap

    def cancel(self) -> bool:
        """Take it back. True: fn was not begun, and never will be. Does not wait for one that was. Never raises."""
        try:
            fn = self._fns.pop()
        except IndexError:
            return False
        if inside() >> Rank.TIMERS:
            defer(self._count)
        else:
            self._count()
        del fn  # with no lock held by this call
        return True

    def _count(self) -> None:
        self._timers._count(self)


class Timers:
    """Thread-safe. `spawn` starts a thread of a given name or raises `ThreadLimit`. `clock` never goes back."""

    def __init__(
        self,
        spawn: Callable[[str, Callable[[], None]], ports.Thread],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._spawn = spawn  # I
        self._clock = clock  # I
        self._parker: ports.Parker = _Parker()  # I: where the thread sleeps
        self._starting = locks.new(Rank.TIMERS_STARTING)  # kept while a thread is being started
        self._lock = locks.new(Rank.TIMERS, _mending(weakref.ref(self)))
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
                self._lock.wake(self._parker)
                self._wakes_at = -math.inf
        return timer

    def close(self) -> None:
        """End the thread. Timers still to come are dropped: their `cancel` returns False.

        Context: no lock held that an fn may take; an fn may call it.
        """
        with self._starting, self._lock:
            self._closed = True
            self._lock.wake(self._parker)
            dropped = self._drop_all()
        del dropped
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def abandon(self) -> None:
        """In the child of a fork: the thread is the parent's, and so is whoever held a lock.

        To cancel one of the parent's timers here is harmless, and returns False. Should the thread have been the one
        that forked, in an fn, then it ends.
        """
        locks.reinit(self._starting)
        locks.reinit(self._lock)
        self._closed = True
        self._drop_all()
        self._parker.unpark()

    @outside
    def fire_due(self) -> float:
        """Call all that is due, the earliest first. Returns how long to park: seconds, or -1 for ever.

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
                    # One entry at a time: there may be very many, and others want the lock.
                    garbage = heappop(self._heap)
                    self._cancelled -= timer._counted
                    timer._counted = True
                elif (left := due - self._clock()) > 0:
                    self._wakes_at = due
                    return min(left, threading.TIMEOUT_MAX)
            if garbage is None:
                _fire(timer)
            del timer, garbage  # not by the next assignment, which is under the lock

    def _run(self) -> None:
        # No step of the loop is outside the `try`, as the first step of a `try` within it would be.
        while True:
            try:
                while not self._serve():
                    pass
                return
            except BaseException:
                pass  # it came while another was being told of

    def _serve(self) -> bool:
        """The thread's work. False: it was interrupted, and is to go on."""
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
        """Whether this thread is the one.

        Asked on both sides: Ctrl-C may end `start` after the thread began and before `start` could note it. Then the
        next `start` finds none, and makes another; one of the two has to go.
        """
        with self._lock:
            if self._thread is None:
                self._thread = thread
            return self._thread is thread

    def _count(self, timer: Timer) -> None:
        """The timer was taken back. Whoever is interrupted before it leaves one more that is not counted."""
        garbage = None
        with self._lock:
            self._cancelled += not timer._counted
            timer._counted = True
            if self._cancelled > _TOLERATED and self._cancelled * 2 > len(self._heap):
                garbage = self._compact()
        del garbage

    @holding("self._lock")
    def _recount(self) -> None:
        """Right again, whatever was half done."""
        heapify(self._heap)
        self._cancelled = sum(timer._counted for _, _, timer in self._heap)
        self._wakes_at = -math.inf
        self._parker.unpark()

    @holding("self._lock")
    def _compact(self) -> object:
        """Forget the cancelled entries. Returns what is to be let go of outside the lock."""
        old = self._heap
        self._heap = [entry for entry in old if entry[2]._fns]
        for _, _, timer in old:
            timer._counted = not timer._fns
        heapify(self._heap)
        self._cancelled = 0
        return old

    def _drop_all(self) -> object:
        """Take back all timers. Returns what is to be let go of outside the lock.  Context: lock held, or a fork."""
        old, self._heap = self._heap, []
        self._cancelled = 0
        for _, _, timer in old:
            timer._counted = True
        return old, [timer._fns.pop() for _, _, timer in old if timer._fns]


def _mending(timers: weakref.ref[Timers]) -> Callable[[], None]:
    """A weak reference: the lock knows it, and would else keep its owner alive."""

    def mend() -> None:
        if (found := timers()) is not None:
            found._recount()

    return mend


def _fire(timer: Timer) -> None:
    try:
        next(map(call, map(list.pop, (timer._fns,))))  # taken and called: see above
    except BaseException as exc:  # SystemExit too: it is not for an fn to end everybody's timers
        taken_back = isinstance(exc, IndexError) and exc.args == ("pop from empty list",)
        if not (taken_back and exc.__traceback__ is not None and exc.__traceback__.tb_next is None):
            _log_failure("a timer raised")


def _log_failure(what: str) -> None:
    with contextlib.suppress(BaseException):  # nor for a handler, a filter or a repr()
        _log.exception(what)
