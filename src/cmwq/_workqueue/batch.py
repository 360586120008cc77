"""Batch: a set of submitted calls that are waited for together."""

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
    """Calls submitted to one queue and waited for together. Unlike `flush`, it waits for no other works of the queue.

        with cmwq.Batch(queue) as batch:
            for path in paths:
                batch.submit(convert, path)
        sizes = batch.results()

    As a context manager it waits at the end; if the block raised, calls that have not begun are cancelled first.
    Iterating gives the futures in order of submission. Thread-safe: several threads may submit to it, its own calls
    among them.
    """

    def __init__(self, queue: WorkQueue) -> None:
        from cmwq._workqueue.queue import WorkQueue

        self.queue = checks.instance("the queue of a Batch", queue, WorkQueue)  # I
        self._futures: list[Future[Any]] = []  # A: only ever appended to

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Submit a call as `WorkQueue.submit` does, and add it to this batch. Raises what that raises."""
        future = self.queue.submit(fn, *args, **kwargs)
        self._futures.append(future)
        return future

    def wait(self, timeout: float | None = None) -> None:
        """Return when all calls have ended, including those submitted meanwhile. What they raised is in their futures.

        timeout: seconds; then CmwqTimeout is raised, and the calls go on. Raises FlushDeadlock in one of its own calls,
        Abandoned if the queue's runtime has ended and left some behind, ForeignProcess in the child of a fork if some
        of the parent's had not ended.
        """
        run_steps(self.wait_steps(), self.queue.runtime, timeout, lambda: f"a batch of {len(self)} calls did not end")

    def wait_steps(self) -> Steps[None]:
        """The steps of `wait`, for `run_steps` or `aio`."""
        done = 0
        while done < len(self._futures):
            future = self._futures[done]
            if not future.done():
                self.queue.runtime.check_alive(future.phase.pwq.pool, future)
            yield future
            done += 1

    def results(self, timeout: float | None = None) -> list[Any]:
        """Wait until all calls have ended, and return their results in order of submission.

        timeout: seconds; then CmwqTimeout is raised. Raises the exception of the first call in that order that failed
        or was cancelled, and what `wait` raises.
        """
        self.wait(timeout)
        return [future.result() for future in self._futures]

    def cancel(self) -> int:
        """Cancel the calls that have not begun. Returns how many these were."""
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
