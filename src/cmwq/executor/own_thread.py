"""OwnThread: one thread that makes all calls of an executor, for code that is bound to a thread.

Guarantees: every call is made on the same thread. The thread exists from the first submission until nobody can hand
it another call, and then ends. It is started by the thread that submits, not by the worker that hands the first call
over: that may come when the program is at its end already, where CPython 3.12 refuses every new thread. The child of a
fork has a new one, from the first call that is handed over.

An exception that reaches the thread between two calls, such as an asynchronous one or a `MemoryError`, does not end it,
as it ends no worker (B4, F10): a call that it had begun ends with the exception, one that it had not begun is made. If
the thread ends all the same, the calls go on on another one, and nobody waits for what the first can't answer.

To the rules this thread is no worker. The worker that took the call from the list hands it over, and is counted as
blocked until the call has ended. Meanwhile it lends its identity: on this thread `current_work()` is the call, and a
wait is a wait of that worker. So the wait is known to block, and is refused where the work would wait for itself (F7).
Whatever shows a worker's thread shows this one.

Assumes that its queue is ordered and hands over one call at a time. So only one worker at a time is here, and no lock
is needed. The letters are those of `pool`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import ref

from cmwq._core import log
from cmwq._core.held import outside
from cmwq._errors import CmwqError, ThreadLimit
from cmwq._pool.blocking import blocking
from cmwq._pool.worker import attempt, be_worker, current_worker, in_words

if TYPE_CHECKING:
    from cmwq._core.ports import Host, Parker, Thread


PATIENCE = 5.0
"""Seconds between two looks of who waits for a call whether the thread still lives."""


class OwnThread:
    """The handle through which calls are handed over. When nobody has it any more, the thread ends."""

    def __init__(self, name: str, host: Host) -> None:
        self._name = name  # I
        self._host = host  # I
        self._loop: _Loop | None = None  # S of the first who submits, then of the worker that hands over
        self.begun = False  # Q: somebody has submitted a call

    def begin(self) -> None:
        """Start the thread for the first call that is submitted, if a thread can be had now.

        The queue's lock lets one thread at a time come here. Only the first does it: later, after a refusal, an
        interruption or a fork, the worker that hands a call over starts the thread. No worker is here at the same time,
        because no call is queued before this returns.
        """
        if not self.begun:
            self.begun = True
            with suppress(ThreadLimit):
                self._start()

    @outside
    def run(self, call: Callable[[], Any]) -> Any:
        """Make the call on the thread, and return its result or raise its exception.

        Raises ThreadLimit if the thread cannot be started.  Context: a worker.
        """
        handed = _Handed(call, self._host.parker())
        try:
            while not handed.done:  # else the thread has ended, and had not begun it
                self._hand_over(handed, self._living())
            return handed.outcome()
        finally:
            del self, handed  # a traceback keeps this frame, and must not keep the thread alive

    def _hand_over(self, handed: _Handed, loop: _Loop) -> None:
        worker = current_worker()
        with blocking():
            thread = None if worker is None else worker.thread
            if worker is not None:
                worker.thread = loop.thread
            try:
                loop.hand_over(handed)
            finally:
                if worker is not None:
                    worker.thread = thread

    def _living(self) -> _Loop:
        """The loop that makes calls, a new one if the last has ended."""
        loop = self._loop
        return loop if loop is not None and loop.lives() else self._start()

    def _start(self) -> _Loop:
        self._loop = loop = _Loop(self, self._name, self._host)
        return loop

    def end(self) -> Thread | None:
        """End the thread. No call is running, and none will come. Returns the thread, for the caller to join, or None.

        Takes no lock, and may be called under any.
        """
        loop, self._loop = self._loop, None
        if loop is None:
            return None
        loop.end()
        return loop.thread

    def forget(self) -> None:
        """Drop the thread in the child of a fork. If the fork happened within a call, this thread ends after it."""
        loop, self._loop = self._loop, None
        if loop is not None:
            loop.end()


class _Loop:
    """The body of the thread. It holds only a weak reference to the `OwnThread`."""

    def __init__(self, own: OwnThread, name: str, host: Host) -> None:
        self._parker = host.parker()  # I
        self._own = ref(own, self._parker.unpark)  # I: it wakes the thread to end when nobody can hand it a call
        # Each change is atomic. The first is the call in hand, until its end was told; None: end.
        self._handed: deque[_Handed | None] = deque()
        self._stumbled: _Handed | None = None  # S: the call that it was about to begin when it was interrupted
        self._over = False  # S of the thread, then true for good: it begins no more calls
        self._name = name  # I
        self._host = host  # I
        try:
            self.thread: Thread = host.spawn(name, self._run)  # I
        except BaseException:  # Ctrl-C: if the thread runs all the same, it ends
            self.end()
            raise

    def lives(self) -> bool:
        """Whether it makes calls."""
        return not self._over and self.thread.is_alive()

    def hand_over(self, handed: _Handed) -> None:
        """Have the thread make the call, and return when that has ended, or the thread has without having begun it."""
        handed.is_back = False
        self._handed.append(handed)
        self._parker.unpark()
        # Looked at last: the thread sets it before it looks for calls the last time, so one sees the other.
        if self._over:
            handed.give_back()
        while not (handed.done or handed.is_back):
            if not handed.parker.park(PATIENCE) and not self.thread.is_alive():
                handed.give_back()  # nothing of the thread's own was left to do it

    def end(self) -> None:
        """Tell the thread to end. Takes no lock, so a finaliser may call it."""
        self._handed.append(None)
        self._parker.unpark()

    def _run(self) -> None:
        try:
            while True:
                try:
                    return self._make_calls()
                except BaseException as exc:
                    self._put_down(exc)
        finally:
            try:
                self._leave()
            finally:  # it was interrupted in that
                self._leave()

    def _make_calls(self) -> None:
        with suppress(Exception):
            self._host.set_thread_name(self._name)
        cpus: Any = None
        while True:
            while not self._handed:
                if self._own() is None:
                    return
                self._parker.park(-1)
            handed = self._handed[0]
            if handed is None:
                return
            if not handed.begun:  # else it was interrupted in it, or before the next line but one
                cpus = handed.bind(self._host, cpus)
                handed.call()
            handed = self._stumbled = None  # an idle thread keeps no call alive
            self._handed.popleft()

    def _put_down(self, exc: BaseException) -> None:
        """The thread was interrupted: end the call that it had begun. One at which it is interrupted a second time
        before it began is taken to be the cause, and ends, too.
        """
        be_worker(None)
        handed = self._handed[0] if self._handed else None
        if handed is not None:
            if handed.begun or handed is self._stumbled:
                handed.settle(exc)
            self._stumbled = handed
        log.warning("the thread %s was interrupted by %s, and goes on", self._name, in_words(exc))

    def _leave(self) -> None:
        """The thread ends: those who wait for a call that it has not made are told. May be called again."""
        self._over = True
        for handed in self._handed.copy():
            if handed is not None:
                handed.give_back()


class _Handed:
    """One call on its way to the thread, and its outcome on the way back."""

    def __init__(self, call: Callable[[], Any], parker: Parker) -> None:
        self._call: Callable[[], Any] | None = call
        self._context = copy_context()  # the call's own context is entered already, on the worker's thread
        self._worker = current_worker()
        self.parker = parker
        self.begun = False
        self.done = False
        self.is_back = False  # the thread has ended, and will not begin it
        self._result: Any = None
        self._exception: BaseException | None = None

    def bind(self, host: Host, cpus: Any) -> Any:
        """Bind this thread to the CPUs of the worker's pool, unless these are `cpus`. Returns those it is bound to."""
        if self._worker is None or self._worker.pool.cpus is cpus:
            return cpus
        cpus = self._worker.pool.cpus
        attempt(self._worker.pool, "have its own thread bound to its CPUs", partial(host.bind, cpus))
        return cpus

    def call(self) -> None:
        """Make the call on this thread, and note its outcome. What the call raises is no exception of this (B4)."""
        parker = self.parker
        try:
            self.begun = True
            be_worker(self._worker)
            self._result = self._context.run(self._call)  # type: ignore[arg-type]
        except BaseException as exc:
            self._exception = exc
        finally:
            be_worker(None)
            self._call = None
            self.done = True
            del self  # break the cycle through the traceback
            parker.unpark()

    def settle(self, exc: BaseException) -> None:
        """It ends with this exception, unless its own end was noted already. May be called again."""
        self.begun = True
        self._call = None
        if not self.done and self._exception is None:
            self._exception = exc.with_traceback(None)  # whose frames know this call
        self.done = True
        self.parker.unpark()

    def give_back(self) -> None:
        """The thread has ended, or is about to: if it had begun the call, that ends. May be called again."""
        if self.begun:
            self.settle(CmwqError("the thread of this call has ended"))
        else:
            self.is_back = True
            self.parker.unpark()

    def outcome(self) -> Any:
        if self._exception is not None:
            try:
                raise self._exception
            finally:
                self = None  # type: ignore[assignment]  # break the cycle through the traceback
        return self._result
