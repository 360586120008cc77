"""map: calls submitted ahead of those who take their results, as far as a buffer allows."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from cmwq._core import checks

if TYPE_CHECKING:
    from cmwq._core.future import Future
    from cmwq._core.queue import WorkQueue

T = TypeVar("T")


def map_calls(
    queue: WorkQueue,
    fn: Callable[..., T],
    iterables: tuple[Iterable[Any], ...],
    timeout: float | None,
    buffersize: int | None,
) -> Iterator[T]:
    """`WorkQueue.map`, which says what it promises."""
    if buffersize is not None:
        buffersize = checks.integer("buffersize", buffersize, 1)
    timeout = checks.timeout(timeout)
    host = queue.runtime.host
    deadline = None if timeout is None else host.monotonic() + timeout
    calls = zip(*iterables)  # noqa: B905  # as map() does
    submit = queue.submit
    ahead = deque(submit(fn, *args) for args in islice(calls, buffersize))

    # Submitting begins at the call, not when the first result is asked for: hence a generator inside.
    def results() -> Iterator[T]:
        try:
            while ahead:
                if buffersize is not None:
                    for args in islice(calls, 1):
                        ahead.append(submit(fn, *args))
                # Popped only now, and not kept: a result lives as long as its taker wants.
                left = None if deadline is None else deadline - host.monotonic()
                yield _result_of(ahead, left)
        finally:
            for future in ahead:
                future.cancel()

    return results()


def _result_of(ahead: deque[Future[T]], timeout: float | None) -> T:
    """The first one's result, removed; if that fails it is cancelled, the rest left to the caller."""
    future = ahead.popleft()
    try:
        return future.result(timeout)
    finally:
        future.cancel()
        del future
