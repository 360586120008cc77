"""OwnThread: one thread that makes all calls of an executor, for code that is bound to a thread.

Guarantees: every call is made on the same thread. The thread exists from the first submission until nobody can hand
it another call, and then ends. It is started by the thread that submits, not by the worker that hands the first call
over: that may come when the program is at its end already, where CPython 3.12 refuses every new thread. The child of a
fork has a new one, from the first call that is handed over.

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
from typing import TYPE_CHECKING, Any
from weakref import ref

from cmwq._core.held import outside
from cmwq._errors import ThreadLimit
from cmwq._pool.blocking import blocking
from cmwq._pool.worker import be_worker, current_worker

if TYPE_CHECKING:
    from cmwq._core.ports import Host, Parker, Thread


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
            loop = self._loop or self._start()
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
            return handed.outcome()
        finally:
            del self, handed  # a traceback keeps this frame, and must not keep the thread alive

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
        self._handed: deque[_Handed | None] = deque()  # each change is atomic; None: end
        self._name = name  # I
        self._host = host  # I
        try:
            self.thread: Thread = host.spawn(name, self._run)  # I
        except BaseException:  # Ctrl-C: if the thread runs all the same, it ends
            self.end()
            raise

    def hand_over(self, handed: _Handed) -> None:
        """Have the thread make the call, and return when it has ended."""
        self._handed.append(handed)
        self._parker.unpark()
        handed.wait()

    def end(self) -> None:
        """Tell the thread to end. Takes no lock, so a finaliser may call it."""
        self._handed.append(None)
        self._parker.unpark()

    def _run(self) -> None:
        self._host.set_thread_name(self._name)
        cpus: Any = None
        while True:
            while not self._handed:
                if self._own() is None:
                    return
                self._parker.park(-1)
            handed = self._handed.popleft()
            if handed is None:
                return
            cpus = handed.bind(self._host, cpus)
            handed.call()
            handed = None  # an idle thread keeps no call alive


class _Handed:
    """One call on its way to the thread, and its outcome on the way back."""

    def __init__(self, call: Callable[[], Any], parker: Parker) -> None:
        self._call: Callable[[], Any] | None = call
        self._context = copy_context()  # the call's own context is entered already, on the worker's thread
        self._worker = current_worker()
        self._parker = parker
        self._done = False
        self._result: Any = None
        self._exception: BaseException | None = None

    def bind(self, host: Host, cpus: Any) -> Any:
        """Bind this thread to the CPUs of the worker's pool, unless these are `cpus`. Returns those it is bound to."""
        if self._worker is None or self._worker.pool.cpus is cpus:
            return cpus
        cpus = self._worker.pool.cpus
        host.bind(cpus)
        return cpus

    def call(self) -> None:
        """Make the call on this thread, and note its outcome. Never raises (B4)."""
        parker = self._parker
        try:
            be_worker(self._worker)
            self._result = self._context.run(self._call)  # type: ignore[arg-type]
        except BaseException as exc:
            self._exception = exc
        finally:
            be_worker(None)
            self._call = None
            self._done = True
            del self  # break the cycle through the traceback
            parker.unpark()

    def wait(self) -> None:
        while not self._done:
            self._parker.park(-1)

    def outcome(self) -> Any:
        if self._exception is not None:
            try:
                raise self._exception
            finally:
                self = None  # type: ignore[assignment]  # break the cycle through the traceback
        return self._result
