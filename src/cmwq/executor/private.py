"""The private parts of a ThreadPoolExecutor that other projects read, and what they mean here.

`_work_queue` holds the waiting calls: Google Pub/Sub's scheduler drains it, tools read its size, and subclasses put
items of their own into it. `_threads` holds the threads that run calls now: tools count, name and join them.
"""

from __future__ import annotations

import concurrent.futures as cf
import threading
from collections.abc import Callable
from queue import Empty
from typing import TYPE_CHECKING, Any

from cmwq._workqueue.future import Future
from cmwq.executor.lease import PreparedCall
from cmwq.executor.taken import TakenCall, take_out

if TYPE_CHECKING:
    from cmwq._workqueue.queue import WorkQueue


class WaitingCalls:
    """The calls of an executor that have not begun, as a queue. Thread-safe."""

    def __init__(self, queue: WorkQueue) -> None:
        self._queue = queue

    def qsize(self) -> int:
        return self._queue.nr_pending()

    def empty(self) -> bool:
        return not self.qsize()

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Take out the first waiting call. From now on the caller may run, cancel or drop it.

        Raises Empty at once if there is none, even with `block`: later calls are left to the pools.
        """
        future = take_out(self._queue)
        if future is None:
            raise Empty
        fn, *args = future._call  # type: ignore[misc]
        if isinstance(fn, PreparedCall):
            fn = fn.func
        if isinstance(fn, PutItem):
            future.cancel()
            return fn.item
        return TakenCall(future, fn, tuple(args), future._kwargs or {})

    def get_nowait(self) -> Any:
        return self.get(block=False)

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """Have a worker call `item.run()`. None, with which the standard library wakes its threads, is ignored."""
        if item is not None:
            self._queue.submit(PutItem(item))

    def put_nowait(self, item: Any) -> None:
        self.put(item)


class PutItem:
    """Runs a work item that somebody else made. The outcome goes to that item's own future."""

    def __init__(self, item: Any) -> None:
        self.item = item

    def __call__(self) -> None:
        if hasattr(self.item, "task"):
            self.item.run(self)  # since Python 3.14 a work item asks for the context that calls its task
        else:
            self.item.run()

    def run(self, task: tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]) -> Any:
        fn, args, kwargs = task
        return fn(*args, **kwargs)


class ServingThread(threading.Thread):
    """A thread that runs a call of the executor, seen from outside as that thread.

    Only `join` and `is_alive` refer to the call: the thread itself may go on serving others for long.
    """

    def __init__(self, thread: threading.Thread, call: Future[Any] | None) -> None:
        # super().__init__ is not called: it would make a thread that is not started. This copies all the real one has.
        self.__dict__.update(thread.__dict__)
        self._real = thread
        self._call_of_executor = call

    def join(self, timeout: float | None = None) -> None:
        if self._call_of_executor is not None:
            cf.wait([self._call_of_executor], timeout)

    def is_alive(self) -> bool:
        return self._call_of_executor is not None and not self._call_of_executor.done()

    def __eq__(self, other: object) -> bool:
        return other is self._real or (isinstance(other, ServingThread) and other._real is self._real)

    def __hash__(self) -> int:
        return hash(self._real)


def threads_of(queue: WorkQueue) -> set[threading.Thread]:
    """The threads that run calls of this queue right now."""
    found: set[threading.Thread] = set()
    for pwq in queue.places():
        with pwq.pool.lock:
            serving = [(worker.thread, worker.item) for worker in pwq.pool.workers if worker.item is not None]
        for thread, item in serving:
            if item.queue is queue and isinstance(thread, threading.Thread):
                found.add(ServingThread(thread, item if isinstance(item, Future) else None))
    return found
