"""Executor: a `concurrent.futures.ThreadPoolExecutor` to everybody who insists on one, that owns no threads.

It is a lease on the process's pools: a work queue of its own (`lease`). Shutting it down drains this lease and touches
nobody else's work. Guarantees: whoever calls it, `map` and asyncio included, calls `submit` as its class or a subclass
defines it; what other projects read of a ThreadPoolExecutor's private parts is there and means the same (`private`).
"""

from __future__ import annotations

import concurrent.futures as cf
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator
from contextvars import Context
from queue import Queue, SimpleQueue
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

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
    """Run calls with as much concurrency as pays. No number to choose.

    name: for snapshots and thread names.
    thread_name_prefix: while a call runs, `threading.current_thread().name` begins with it; also the name, if none is
        given.
    initializer, initargs: `initializer(*initargs)` is called once on each thread that serves this executor, before its
        first call there. The threads are the process's, so it must not change what others rely on. Context variables
        that it sets are set for the calls, too, unless whoever submits one has set them. If it raises, the executor is
        broken: calls that wait, and later ones, get `concurrent.futures.thread.BrokenThreadPool`.
    max_active: how many of its calls may be active at once (default 256). A call that waits for another call's result
        doesn't count meanwhile; without a number, nor does one that rests while no other call makes progress.
    max_workers: where a caller insists on it, it means the same; but `max_workers=1` means one thread: every call runs
        on the same one, in order, as code with thread-bound objects (sqlite3, Django) relies on. It is started at the
        first call and ends at shutdown, at exit, or when nobody has the executor any more. There, a call that waits for
        a later one gets FlushDeadlock. For no more than a limit of one say `max_active=1`.
    cancel_on_error: if the `with` block is left by an exception (Ctrl-C is one), calls that haven't begun are
        cancelled, and only those that run are waited for. By default all are waited for, as the standard library does.
    scope, context: as for `WorkQueue`.
    runtime: where the pools are; the process's default runtime if not given.

    Thread-safe. `submit` raises QueueClosed, a RuntimeError, after shutdown; a fork's child may go on using it. As a
    context manager it waits for its calls at the end.
    """

    # Not calling super().__init__ is the point: it would make a queue and a set of threads.
    def __init__(
        self,
        name: str | int | None = None,
        thread_name_prefix: str = "",
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        max_active: int | None = None,
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
        if limit is not None and limit <= 0:
            raise ValueError("max_workers must be greater than 0")
        if max_workers == 1 and scope != "system":
            raise ValueError(f"max_workers=1 is one thread, and no scope of {scope!r}: for a limit say max_active=1")
        self._name = name or thread_name_prefix or f"executor-{next(_numbers)}"  # I
        self._thread_name_prefix = thread_name_prefix or self._name  # I
        self._cancel_on_error = cancel_on_error  # I
        self._initializer = initializer  # type: ignore[assignment]  # I: to be read by others, as is the next
        self._initargs = initargs  # I
        self._shutdown_lock = threading.Lock()  # for those who take it; nothing here needs it
        self._idle_semaphore = threading.Semaphore(0)  # likewise: nobody is ever known to be idle
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
        self._submit = queue.submit_call  # looked up once: it is on the hot path
        self._own = queue.own_thread()  # kept alive by this, and by the calls that will need it

    def __repr__(self) -> str:
        return f"<cmwq.Executor {self._queue.name!r} {self._queue._state.value}>"

    @property
    def queue(self) -> WorkQueue:
        """The lease's work queue."""
        return self._queue

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """One call, one result: fn(*args, **kwargs) on a worker, in a copy of the caller's context.

        Raises QueueClosed after shutdown, BrokenThreadPool after an initializer's failure, ThreadLimit if not even the
        runtime's own thread can be had.
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
        """Like `map(fn, *iterables)`, concurrently, results in order.

        timeout: seconds from this call until each result must be there, else TimeoutError. buffersize: at most so many
        calls are submitted whose results have not been taken, and the iterables are read only so far; None: all at
        once. chunksize has no effect, as with threads; below 1 it raises ValueError. A call's exception is raised when
        its result is taken; leaving the iterator early cancels what hasn't begun.
        """
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        return map_calls(self._queue, fn, iterables, timeout, buffersize, submit=self.submit)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls, from its own calls neither. cancel_futures: cancel those that haven't begun. wait: return
        when the others have ended.

        May be called again, and by several threads. Raises FlushDeadlock if one of its own calls waits for it.
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

    # What other projects read of a ThreadPoolExecutor, though it is private.

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
        """The threads that run calls of this lease right now. To join one is to wait for that call."""
        return threads_of(self._queue)

    @property
    def _work_queue(self) -> SimpleQueue[Any]:
        return WaitingCalls(self._queue)  # type: ignore[return-value]

    @_work_queue.setter
    def _work_queue(self, queue: object) -> None:
        """Subclasses bound what waits by a queue of their own, `queue.Queue(maxsize)`. It stays empty; its limit is
        taken as `max_pending`. One with an order of its own can't be honoured.
        """
        if type(queue) not in (Queue, SimpleQueue):
            raise TypeError(f"an Executor runs its calls in order of submission, and can't take them from {queue!r}")
        maxsize = getattr(queue, "maxsize", 0)
        if maxsize > 0:
            if self._queue.places():
                raise RuntimeError("_work_queue is to be replaced before the first call")
            self._use(self._make_queue(self._name, max_pending=maxsize, **self._options))

    def _adjust_thread_count(self) -> None:
        """Nothing to adjust: that is what the pools do."""


# Dask and others tell threads from processes by `"ThreadPoolExecutor" in str(type(executor))`. So that is the class's
# name for who asks it, and a name of this module, where pickle looks for the class.
ThreadPoolExecutor = Executor
Executor.__name__ = Executor.__qualname__ = "ThreadPoolExecutor"
