"""Batch: a set of submitted calls to wait for together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from cmwq._core import checks
from cmwq._workqueue.wait import run_steps

if TYPE_CHECKING:
    from types import TracebackType

    from cmwq._workqueue.future import Future
    from cmwq._workqueue.queue import WorkQueue
    from cmwq._workqueue.wait import Steps

P = ParamSpec("P")
T = TypeVar("T")


class Batch:
    """Calls submitted to one queue, waited for as one: nobody else's matter, as they would with `flush`.

        with cmwq.Batch(queue) as batch:
            for path in paths:
                batch.submit(convert, path)
        sizes = batch.results()

    As a context manager it waits at the end; if the block raised, what has not begun is cancelled first. Thread-safe:
    several threads, its own calls among them, may submit to it. Iterating gives the futures in order of submission.
    """

    def __init__(self, queue: WorkQueue) -> None:
        from cmwq._workqueue.queue import WorkQueue

        self.queue = checks.instance("the queue of a Batch", queue, WorkQueue)  # I
        self._futures: list[Future[Any]] = []  # A: only ever appended to

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """As `WorkQueue.submit`, and part of this batch."""
        future = self.queue.submit(fn, *args, **kwargs)
        self._futures.append(future)
        return future

    def wait(self, timeout: float | None = None) -> None:
        """Return when all have ended, those submitted meanwhile too. What they raised is in their futures.

        timeout: seconds. Raises CmwqTimeout (they go on), FlushDeadlock from one of its own calls.
        """
        run_steps(self.wait_steps(), self.queue.runtime, timeout, lambda: f"a batch of {len(self)} calls did not end")

    def wait_steps(self) -> Steps[None]:
        """`wait`, for whoever drives it."""
        done = 0
        while done < len(self._futures):
            yield self._futures[done]
            done += 1

    def results(self, timeout: float | None = None) -> list[Any]:
        """Their results, in order of submission, when all have ended. Raises the first exception in that order.

        timeout: seconds; raises CmwqTimeout after it.
        """
        self.wait(timeout)
        return [future.result() for future in self._futures]

    def cancel(self) -> int:
        """Cancel what has not begun. Returns how many that were."""
        return sum(future.cancel() for future in list(self._futures) if not future.done())

    def __len__(self) -> int:
        return len(self._futures)

    def __iter__(self) -> Iterator[Future[Any]]:
        return iter(list(self._futures))

    def __enter__(self) -> Batch:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if exc_type is not None:
            self.cancel()
        self.wait()
