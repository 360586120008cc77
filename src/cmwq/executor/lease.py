"""LeaseQueue: the work queue of an `Executor`, with what ThreadPoolExecutor promises beyond the promises of any queue.

Guarantees: after shutdown nothing is accepted, not even from the executor's own calls, so a call that submits itself
again cannot make shutdown endless. A call is made only on a thread on which the initializer has succeeded. With
`one_thread` all calls are made on the same thread (`own_thread`), in order. The letters are those of `pool`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures._base import LOGGER
from concurrent.futures.thread import BrokenThreadPool
from contextvars import Context, copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn
from weakref import ref

from cmwq._core.naming import StandIn
from cmwq._errors import QueueClosed, own
from cmwq._workqueue.future import Future
from cmwq._workqueue.place_end import PhaseEnd
from cmwq._workqueue.queue import WorkQueue
from cmwq._workqueue.work import Work
from cmwq.executor.own_thread import OwnThread

if TYPE_CHECKING:
    from cmwq._core.ports import Thread
    from cmwq._pool.worker import Worker
    from cmwq._workqueue.pwq import PoolWorkQueue


class LeaseQueue(WorkQueue):
    """The queue of an executor whose calls may run on any worker."""

    broken: bool | str = False
    _chains = False

    def __init__(self, name: str, *, thread_name_prefix: str = "", **options: Any) -> None:
        self._thread_name_prefix = thread_name_prefix  # I
        super().__init__(name, **options)

    def thread_name(self, worker: Worker) -> str:
        return f"{self._thread_name_prefix}_{worker.index}" if self._thread_name_prefix else worker.name

    def refuse_coroutine_function(self, fn: object) -> None:
        """Do nothing: as in the standard library, programs get the coroutine, and await it themselves."""

    def own_thread(self) -> OwnThread | None:
        """The thread of `one_thread`, made if need be; this reference keeps it alive. None: any worker will do."""
        return None

    def end_when_done(self, own: OwnThread) -> None:
        """Have the thread end after the last call. The queue accepts no more calls.  Does not wait."""
        for pwq in self.places():
            with pwq.pool.lock:
                phase = pwq.seal()
            if phase is not None and PhaseEnd(phase).attach(_Ending(own)):
                return  # an ordered queue has only one place
        own.end()

    def cancel_pending(self) -> None:
        """Cancel the future of every submitted call that has not begun. What was queued as a `Work` stays."""
        for pwq in self.places():
            with pwq.pool.lock:
                items = [item for item in (*pwq.pool.listed(), *pwq.inactive) if item.queue is self]
            for item in items:
                if isinstance(item, Future):
                    item.cancel()

    def place_here(self) -> PoolWorkQueue:
        try:
            if _interpreter_ends() and not self._pwqs:
                raise QueueClosed(f"queue {self.name!r} had no work before, and none can be begun now")
            return super().place_here()
        except QueueClosed as exc:
            own(exc)
            self._refuse(exc)

    def _refuse(self, exc: QueueClosed) -> NoReturn:
        """Raise the error in the standard library's words, which tools look for."""
        words = "cannot schedule new futures after "
        if self.drains or str(exc).startswith(words):
            raise exc
        words += "interpreter shutdown" if _interpreter_ends() else "shutdown"
        raise QueueClosed(f"{words}: {exc}") from None


class _Ending:
    """A parker among those of a flush, on which no thread waits: when it is unparked, it ends the thread."""

    def __init__(self, own: OwnThread) -> None:
        self._own = own

    def park(self, timeout: float = -1, spins: bool = False, /) -> bool:
        raise AssertionError("nobody is there to park")

    def unpark(self, *_: object) -> None:
        self._own.end()


def _interpreter_ends() -> bool:
    return getattr(threading, "_SHUTTING_DOWN", False)


class PreparedQueue(LeaseQueue):
    """The queue of an executor whose calls need a prepared thread. It accepts no `Work`, because nothing would prepare
    the thread for it.
    """

    def __init__(self, name: str, *, initializer: Initializer | None, one_thread: bool, **options: Any) -> None:
        self._initializer = initializer  # I
        self._one_thread = one_thread  # I
        # A weak reference: futures keep their queue alive, but they must not keep the thread alive.
        self._own: Callable[[], OwnThread | None] = _nobody  # Q to change
        if one_thread:
            del options["max_active"]
        super().__init__(name, ordered=one_thread, **options)

    def thread_name(self, worker: Worker) -> str:
        return worker.name if self._one_thread else super().thread_name(worker)  # this worker only hands the call over

    @property
    def broken(self) -> bool | str:  # type: ignore[override]
        return self._initializer is not None and self._initializer.broken

    def own_thread(self) -> OwnThread | None:
        if not self._one_thread:
            return None
        own = self._own()
        if own is None:  # at first, and later if only the queue is still referenced
            new = OwnThread(f"{self._thread_name_prefix or self.name}_0", self.runtime.host)
            with self._lock:
                own = self._own()
                if own is None:
                    own, self._own = new, ref(new)
        return own

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        return self.submit_call(fn, args, kwargs)

    def submit_call(self, fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Future[Any]:
        return super().submit_call(self._prepared(fn), args, kwargs)

    def submit_many(self, fn: Any, /, *iterables: Iterable[Any]) -> list[Future[Any]]:
        return super().submit_many(self._prepared(fn), *iterables)

    def _prepared(self, fn: Any) -> PreparedCall:
        if isinstance(fn, PreparedCall):  # one of many, prepared together
            return fn
        if isinstance(fn, Work):
            self._refuse_work(fn)
        if self.broken:
            raise BrokenThreadPool(self.broken)
        own = self.own_thread()
        if own is not None and not own.begun:
            with self._lock:
                own.begin()
        return PreparedCall(fn, self, own)

    def _refuse_work(self, work: Work) -> NoReturn:
        raise TypeError(
            f"{self.name!r} takes calls only, which it makes on threads prepared for them: "
            f"queue {work!r} to a WorkQueue, or submit what it calls"
        )

    def queue(self, work: Work) -> bool:
        self._refuse_work(work)

    def queue_on(self, cpu: int, work: Work) -> bool:
        self._refuse_work(work)

    def queue_delayed(self, work: Work, delay: float) -> bool:
        self._refuse_work(work)

    def mod_delayed(self, work: Work, delay: float) -> bool:
        self._refuse_work(work)

    def queue_periodic(self, work: Work, period: float, first: float | None = None) -> bool:
        self._refuse_work(work)

    def serve(self, source: Any, **options: Any) -> NoReturn:
        raise TypeError(f"{self.name!r} makes calls on threads prepared for them: serve {source!r} to a WorkQueue")

    def call(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Make the call, after the initializer if this thread needs it.  Context: the thread that makes the call."""
        if self._initializer is not None:
            self._initializer.prepare_thread()
        return fn(*args, **kwargs)

    def end_rescuer(self) -> Thread | None:
        """End the queue's thread. The queue has no works any more."""
        own = self._own()
        return None if own is None else own.end()

    def forget(self) -> None:
        own = self._own()
        if own is not None:
            own.forget()
        super().forget()


def _nobody() -> None:
    """The initial value of `_own`: no thread has been asked for."""


class PreparedCall(StandIn):
    """What a worker calls instead of the submitted function."""

    __slots__ = ("_own", "_queue")

    def __init__(self, fn: Callable[..., Any], queue: PreparedQueue, own: OwnThread | None) -> None:
        self.func = fn
        self._queue = queue
        self._own = own

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        call = partial(self._queue.call, self.func, args, kwargs)
        try:
            return call() if self._own is None else self._own.run(call)
        finally:
            del self, call  # a traceback keeps this frame, and must not keep the thread alive

    def __repr__(self) -> str:
        return repr(self.func)


class Initializer:
    """The call that is to be made once on each thread, and whether it has failed."""

    def __init__(self, initializer: Callable[..., object], initargs: tuple[Any, ...]) -> None:
        self._initializer = initializer  # I
        self._initargs = initargs  # I
        self._thread = threading.local()  # what the initializer left on this thread: `context`
        self.broken: bool | str = False  # set once, for good

    def prepare_thread(self) -> None:
        """Call the initializer unless this thread had it, then set its variables. Raises BrokenThreadPool."""
        if self.broken:
            raise BrokenThreadPool(self.broken)
        context = getattr(self._thread, "context", None)
        if context is None:
            context = Context()  # as a new thread would have it: nothing of the call's context leaks into it
            try:
                context.run(self._initializer, *self._initargs)
            except BaseException:
                LOGGER.critical("Exception in initializer:", exc_info=True)
                self.broken = "A thread initializer failed, the thread pool is not usable anymore"
                raise BrokenThreadPool(self.broken) from None  # waiting calls will raise it too
            self._thread.context = context
        if len(context):
            present = copy_context()
            for variable, value in context.items():
                if variable not in present:
                    variable.set(value)
