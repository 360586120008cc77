"""Executor: a `concurrent.futures.ThreadPoolExecutor` to everybody who insists on one, that owns no threads.

It is a lease on the process's pools: a work queue of its own. Shutting it down drains this lease and touches nobody
else's work.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from cmwq._core.config import DFL_ACTIVE
from cmwq._core.queue import WorkQueue
from cmwq._core.runtime import default_runtime

if TYPE_CHECKING:
    from cmwq._core.runtime import Runtime

P = ParamSpec("P")
T = TypeVar("T")
_numbers = itertools.count()


class Executor(ThreadPoolExecutor):
    """Run calls with as much concurrency as pays. No number to choose.

    name: for snapshots and thread names; `thread_name_prefix`, where a caller passes it, is taken as the name.
    max_active: how many of its calls may be active at once (default 256); `max_workers`, where a caller insists on it,
        means the same. A call that waits for another call's result doesn't count meanwhile.
    scope, context: as for `WorkQueue`.
    runtime: where the pools are; the process's default runtime if not given.
    initializer: refused (TypeError): no thread is this executor's own, so there is none to initialise. Use a context
        variable, which is captured at `submit`, or a `threading.local` filled at first use.

    Thread-safe. `submit` raises QueueClosed, a RuntimeError, after shutdown; a fork's child may go on using it. As a
    context manager it waits for its calls at the end.
    """

    # Not calling super().__init__ is the point: it would make a queue and a set of threads. What others read of those
    # is below.
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
        runtime: Runtime | None = None,
    ) -> None:
        if isinstance(name, int):  # ThreadPoolExecutor(8)
            name, max_workers = None, name
        if initializer is not None:
            raise TypeError(
                "Executor takes no initializer: its threads are shared by the whole process. "
                "Use a context variable or a threading.local instead"
            )
        if max_active is not None and max_workers is not None and max_active != max_workers:
            raise TypeError("max_workers is another word for max_active: pass one of them")
        limit = max_active if max_active is not None else max_workers
        if limit is not None and limit <= 0:
            raise ValueError("max_workers must be greater than 0")  # ThreadPoolExecutor's words
        name = name or thread_name_prefix or f"executor-{next(_numbers)}"
        self._queue = WorkQueue(
            name, max_active=limit or DFL_ACTIVE, scope=scope, context=context, runtime=runtime or default_runtime()
        )
        self._queue._chains = False
        # The lease's own book is kept only by those who may need it: shutdown(cancel_futures=True).
        self.submit = self._queue.submit  # type: ignore[method-assign]  # one call less on the hot path

    def __repr__(self) -> str:
        return f"<cmwq.Executor {self._queue.name!r} {self._queue._state.value}>"

    @property
    def queue(self) -> WorkQueue:
        """The lease's work queue."""
        return self._queue

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
        calls are submitted ahead of what has been taken, and the iterables are read only so far; None: all at once.
        chunksize has no effect, as with threads. A call's exception is raised when its result is taken; leaving the
        iterator early cancels what hasn't begun.
        """
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        return self._queue.map(fn, *iterables, timeout=timeout, buffersize=buffersize)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls, from its own calls neither. cancel_futures: cancel those that haven't begun. wait: return
        when the others have ended.

        May be called again, and by several threads. Raises FlushDeadlock if one of its own calls waits for it.
        """
        self._queue.shut_down()
        if cancel_futures:
            self._queue.cancel_pending()
        if wait:
            self._queue.close()

    def __exit__(self, *exc_info: object) -> None:
        self.shutdown()

    # What other projects read of a ThreadPoolExecutor, though it is private.

    @property
    def _max_workers(self) -> int:  # type: ignore[override]
        return self._queue.max_active

    @property
    def _shutdown(self) -> bool:  # type: ignore[override]
        return not self._queue.is_open

    @property
    def _broken(self) -> bool:  # type: ignore[override]
        return False

    @property
    def _thread_name_prefix(self) -> str:  # type: ignore[override]
        return self._queue.name

    @property
    def _threads(self) -> set[threading.Thread]:  # type: ignore[override]
        """The threads that run calls of this lease right now. They are not its own."""
        return self._queue.threads()

    @property
    def _work_queue(self) -> SimpleQueue[Any]:  # type: ignore[override]
        return _Waiting(self._queue)  # type: ignore[return-value]

    @property
    def _idle_semaphore(self) -> threading.Semaphore:  # type: ignore[override]
        return threading.Semaphore(0)

    def _adjust_thread_count(self) -> None:
        """Nothing to adjust: that is what the pools do."""


class _Waiting:
    """What is read of `_work_queue`: how much waits."""

    def __init__(self, wq: WorkQueue) -> None:
        self._wq = wq

    def qsize(self) -> int:
        return self._wq.nr_pending()

    def empty(self) -> bool:
        return not self.qsize()
