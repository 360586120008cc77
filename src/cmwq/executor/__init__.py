"""Executor: a `concurrent.futures.ThreadPoolExecutor` that owns no threads.

It is a lease on the process's pools: a work queue of its own (`lease`). Shutting it down drains this queue and leaves
the works of everybody else alone. Guarantees: `map` and asyncio, like any caller, submit through `submit` as the class
or its subclass defines it; the private parts of a ThreadPoolExecutor that other projects read exist here and mean the
same (`private`).
"""

from __future__ import annotations

import concurrent.futures as cf
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator
from contextvars import Context
from queue import Queue, SimpleQueue
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar

from cmwq._workqueue.map import map_calls
from cmwq._workqueue.runtime import default_runtime
from cmwq.executor.lease import Initializer, LeaseQueue, PreparedQueue
from cmwq.executor.private import WaitingCalls, threads_of

if TYPE_CHECKING:
    from types import TracebackType

    from cmwq._workqueue.future import Future
    from cmwq._workqueue.queue import WorkQueue
    from cmwq._workqueue.runtime import Runtime

P = ParamSpec("P")
T = TypeVar("T")
_numbers = itertools.count()


class Executor(cf.ThreadPoolExecutor):
    """Run calls with as much concurrency as pays. There is no number to choose.

    name: shown in snapshots and thread names. A number is `max_workers`, as in `ThreadPoolExecutor(8)`.
    thread_name_prefix: while a call runs, `threading.current_thread().name` begins with it. It is also the executor's
        name if none is given.
    initializer, initargs: `initializer(*initargs)` is called once on each thread that serves this executor, before the
        first call there. The threads belong to the process, so it must not change anything that others rely on. The
        context variables that it sets are also set for the calls, unless the submitter has set them. If it raises, the
        executor is broken: waiting and later calls get `concurrent.futures.thread.BrokenThreadPool`.
    max_active: how many calls of this executor may be active at once (default 256). A call that waits for the result of
        another one does not count meanwhile. Without a number, neither does a call that rests while no other makes
        progress. "auto": the limit is learned, as for `WorkQueue`.
    max_workers: the same as max_active, for callers that insist on this name. But `max_workers=1` means one thread: all
        calls run on the same thread, in order, as code with thread-bound objects (sqlite3, Django) requires. That
        thread is started at the first call, and ends at shutdown, at interpreter exit, or when nothing refers to the
        executor any more. There, a call that waits for a later one gets FlushDeadlock. For nothing but a limit of one,
        use `max_active=1`.
    cancel_on_error: if an exception (including Ctrl-C) leaves the `with` block, cancel the calls that have not begun
        and wait only for those that run. By default all are waited for, as in the standard library.
    scope, context: as for `WorkQueue`.
    runtime: whose pools are used; by default those of the process's default runtime.

    Thread-safe. After shutdown `submit` raises QueueClosed, which is a RuntimeError. The child of a fork may go on
    using the executor. As a context manager it waits for its calls at the end.
    """

    # super().__init__ is deliberately not called: it would make a queue and a set of threads.
    def __init__(
        self,
        name: str | int | None = None,
        thread_name_prefix: str = "",
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        max_active: int | Literal["auto"] | None = None,
        scope: str = "system",
        context: Context | None = None,
        max_workers: int | None = None,
        cancel_on_error: bool = False,
        runtime: Runtime | None = None,
    ) -> None:
        if isinstance(name, int):  # ThreadPoolExecutor(8)
            name, max_workers = None, name
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")  # ThreadPoolExecutor's words, here and below
        if max_active is not None and max_workers is not None and max_active != max_workers:
            raise TypeError("max_workers is another word for max_active: pass one of them")
        limit = max_active if max_active is not None else max_workers
        if isinstance(limit, int) and limit <= 0:
            raise ValueError("max_workers must be greater than 0")
        if max_workers == 1 and scope != "system":
            raise ValueError(f"max_workers=1 is one thread, and no scope of {scope!r}: for a limit say max_active=1")
        self._name = name or thread_name_prefix or f"executor-{next(_numbers)}"  # I
        self._thread_name_prefix = thread_name_prefix or self._name  # I
        self._cancel_on_error = cancel_on_error  # I
        self._initializer = initializer  # type: ignore[assignment]  # I: other projects read it, and the next one
        self._initargs = initargs  # I
        self._shutdown_lock = threading.Lock()  # for code that takes it; nothing here needs it
        self._idle_semaphore = threading.Semaphore(0)  # likewise: no worker is ever reported idle
        options: dict[str, Any] = {
            "max_active": limit,
            "scope": scope,
            "context": context,
            "runtime": runtime or default_runtime(),
            "thread_name_prefix": thread_name_prefix,
        }
        if initializer is None and max_workers != 1:
            self._make_queue: Callable[..., LeaseQueue] = LeaseQueue  # I, as is the next
        else:
            self._make_queue = PreparedQueue
            options["initializer"] = None if initializer is None else Initializer(initializer, initargs)
            options["one_thread"] = max_workers == 1
        self._options = options
        self._use(self._make_queue(self._name, **options))

    def _use(self, queue: LeaseQueue) -> None:
        self._queue = queue
        self._submit = queue.submit_call  # looked up once, for the hot path
        self._own = queue.own_thread()  # keeps the thread alive, as do the calls that will need it

    def __repr__(self) -> str:
        return f"<cmwq.Executor {self._queue.name!r} {self._queue._state.value}>"

    @property
    def queue(self) -> WorkQueue:
        """The work queue of this executor."""
        return self._queue

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Schedule fn(*args, **kwargs) on a worker, in a copy of the caller's context. Returns its future.

        Raises QueueClosed after shutdown, BrokenThreadPool after an initializer failed, ThreadLimit if not even the
        runtime's own thread can be created. Cancelling the future has an effect only until the call begins.
        """
        return self._submit(fn, args, kwargs)

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """Like `map(fn, *iterables)`, but concurrent. The results come in the order of the arguments.

        timeout: seconds from this call within which every result must be there; else TimeoutError is raised.
        buffersize: how many calls may be submitted whose results have not been taken; the iterables are read no
            further. None submits all at once.
        chunksize has no effect, as with threads; below 1 it raises ValueError.

        The exception of a call is raised when its result is taken. Leaving the iterator after some results cancels the
        calls that have not begun. If it is never asked for a result, all that were submitted run.
        """
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        # An iterator that has calls left to submit does so by this executor: it keeps it, and a thread that is its own.
        if buffersize is None and type(self).submit is _OWN_SUBMIT and "submit" not in self.__dict__:
            return self._queue.map(fn, *iterables, timeout=timeout)
        return map_calls(self._queue, fn, iterables, timeout, buffersize, submit=self.submit)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Accept no more calls, not even from this executor's own calls.

        cancel_futures: cancel the calls that have not begun. wait: return only when the others have ended. It may be
        called again, and by several threads. Raises FlushDeadlock if one of its own calls waits for it.
        """
        own, self._own = self._own, None
        self._queue.shut_down()
        if cancel_futures:
            self._queue.cancel_pending()
        if wait:
            self._queue.close()
        elif own is not None:
            self._queue.end_when_done(own)

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.shutdown(cancel_futures=self._cancel_on_error and exc_type is not None)

    # Private parts of a ThreadPoolExecutor that other projects read.

    @property
    def _max_workers(self) -> int:  # type: ignore[override]
        return self._queue.max_active

    @property
    def _shutdown(self) -> bool:  # type: ignore[override]
        return not self._queue.is_open

    @property
    def _broken(self) -> bool | str:  # type: ignore[override]
        return self._queue.broken

    @property
    def _threads(self) -> set[threading.Thread]:  # type: ignore[override]
        """The threads that run calls of this executor right now. Joining one waits for that call."""
        return threads_of(self._queue)

    @property
    def _work_queue(self) -> SimpleQueue[Any]:
        return WaitingCalls(self._queue)  # type: ignore[return-value]

    @_work_queue.setter
    def _work_queue(self, queue: object) -> None:
        """Accept a queue by which a subclass bounds the waiting calls, such as `queue.Queue(maxsize)`.

        The queue stays empty; its `maxsize` becomes `max_pending`. Raises TypeError if it has an order of its own.
        """
        if type(queue) not in (Queue, SimpleQueue):
            raise TypeError(f"an Executor runs its calls in order of submission, and can't take them from {queue!r}")
        maxsize = getattr(queue, "maxsize", 0)
        if maxsize > 0:
            if self._queue.places():
                raise RuntimeError("_work_queue is to be replaced before the first call")
            self._use(self._make_queue(self._name, max_pending=maxsize, **self._options))

    def _adjust_thread_count(self) -> None:
        """Do nothing: the pools adjust the number of threads."""


_OWN_SUBMIT = Executor.submit
"""Whoever puts another in its place wants `map` to call that."""

# Dask and others tell threads from processes by `"ThreadPoolExecutor" in str(type(executor))`. So the class reports
# this name, and the module has it too, because pickle looks for the class there.
ThreadPoolExecutor = Executor
Executor.__name__ = Executor.__qualname__ = "ThreadPoolExecutor"
