"""OwnThread: one thread that makes all calls of an executor, for code that is bound to a thread.

Guarantees: every call is made on the same thread, from the first to the last; it exists from the first call until
nobody can hand it another, and then ends; a fork's child has a new one. To the rules it is no worker: the worker that
took the call from the list hands it over, and says that it is blocked itself until the call has ended. Meanwhile its
identity is lent: on this thread `current_work()` is the call, waits are that worker's, so they are known to be blocked,
and are refused where they would wait for themselves (F7); what shows a worker's thread shows this one.

Assumes that its queue is ordered and hands over one call at a time, so there is no lock: one worker at a time is here.
The letters are those of `pool`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextvars import copy_context
from typing import TYPE_CHECKING, Any
from weakref import ref

from cmwq._core.held import outside
from cmwq._pool.blocking import blocking
from cmwq._pool.worker import be_worker, current_worker

if TYPE_CHECKING:
    from cmwq._core.ports import Host, Parker, Thread


class OwnThread:
    """Whoever has this may hand over calls. When nobody has it any more the thread ends."""

    def __init__(self, name: str, host: Host) -> None:
        self._name = name  # I
        self._host = host  # I
        self._loop: _Loop | None = None  # S of the worker that hands over; None: not started

    @outside
    def run(self, call: Callable[[], Any]) -> Any:
        """The call's result or exception.  Context: a worker. Raises ThreadLimit."""
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
        """No call is running, and none will come. Returns the thread that ends, for the caller to join.

        Takes no lock, and may be called under any.
        """
        loop, self._loop = self._loop, None
        if loop is None:
            return None
        loop.end()
        return loop.thread

    def forget(self) -> None:
        """In the child of a fork. If the fork was in a call, then this very thread ends after it."""
        loop, self._loop = self._loop, None
        if loop is not None:
            loop.end()


class _Loop:
    """The thread's life. It knows nothing of who has it."""

    def __init__(self, own: OwnThread, name: str, host: Host) -> None:
        self._parker = host.parker()  # I
        self._own = ref(own, self._parker.unpark)  # I: nobody can hand it a call any more: it ends
        self._handed: deque[_Handed | None] = deque()  # each change is atomic; None: end
        self._name = name  # I
        self._host = host  # I
        try:
            self.thread: Thread = host.spawn(name, self._run)  # I
        except BaseException:  # Ctrl-C: should it run all the same, it ends
            self.end()
            raise

    def hand_over(self, handed: _Handed) -> None:
        """Returns when the call has ended."""
        self._handed.append(handed)
        self._parker.unpark()
        handed.wait()

    def end(self) -> None:
        """May be called by a finaliser: takes no lock."""
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
            handed = None  # at rest it keeps nothing alive


class _Handed:
    """One call on its way there and back."""

    def __init__(self, call: Callable[[], Any], parker: Parker) -> None:
        self._call: Callable[[], Any] | None = call
        self._context = copy_context()  # the call's own is entered already, on the worker's thread
        self._worker = current_worker()
        self._parker = parker
        self._done = False
        self._result: Any = None
        self._exception: BaseException | None = None

    def bind(self, host: Host, cpus: Any) -> Any:
        """To the CPUs of the worker's pool, if those have changed."""
        if self._worker is None or self._worker.pool.cpus is cpus:
            return cpus
        cpus = self._worker.pool.cpus
        host.bind(cpus)
        return cpus

    def call(self) -> None:
        """Never raises (B4)."""
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
