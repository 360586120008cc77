"""map: calls are submitted ahead of the thread that takes their results, as far as a buffer allows."""

from __future__ import annotations

import concurrent.futures as cf
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from cmwq._core import checks
from cmwq._core.surely import at_any_depth
from cmwq._errors import CmwqTimeout

if TYPE_CHECKING:
    from cmwq._core.ports import Host
    from cmwq._workqueue.queue import WorkQueue

T = TypeVar("T")

AT_HAND = frozenset({list, tuple, range, set, frozenset, dict, str, bytes, deque})
"""Iterables of these types are there already, and reading them runs no code of users."""


def map_calls(
    queue: WorkQueue,
    fn: Callable[..., T],
    iterables: tuple[Iterable[Any], ...],
    timeout: float | None,
    buffersize: int | None,
    *,
    submit: Callable[..., cf.Future[T]] | None = None,
    submit_many: Callable[..., Any] | None = None,
) -> Iterator[T]:
    """Do what `WorkQueue.map` promises. submit: called instead of the queue's own method, if given. submit_many: called
    for all calls at once, if it is given, and the iterables are there already: to read one that is still being made may
    take long, or need what the first calls do.
    """
    if buffersize is not None:
        buffersize = checks.integer("buffersize", buffersize, 1)
    timeout = checks.timeout(timeout)
    submit = submit or queue.submit
    limit = None if timeout is None else _Limit(timeout, queue.runtime.host)
    calls = zip(*iterables)  # noqa: B905  # as map() does
    if (
        submit_many is not None
        and buffersize is None
        and iterables
        and all(type(each) in AT_HAND for each in iterables)
    ):
        ahead = deque(submit_many(fn, *iterables))
    else:
        ahead = deque(submit(fn, *args) for args in islice(calls, buffersize))
    rest = None if buffersize is None else Rest(calls, fn, submit)
    return _results(ahead, rest, limit)


# A generator of its own, so that submitting begins at the call of `map_calls` and not at the first result. If nobody
# asks for the first it never gets into its `try`, so nothing is cancelled: `executor.map(send, letters)` as a statement
# sends them all, as with the standard library (bpo-11777; CPython's tests hold it).
def _results(ahead: deque[cf.Future[T]], rest: Rest[T] | None, limit: _Limit | None) -> Iterator[T]:
    try:
        while ahead:
            if rest is None:
                yield take(ahead, _result_of, limit)  # in no variable: it lives as long as the caller wants
                continue
            result = [take(ahead, _result_of, limit)]
            # The next call is submitted when a result is there, so that no more than `buffersize` calls are waited for;
            # and before that result is yielded, so that all of them go on meanwhile.
            rest.submit_next(ahead)
            yield result.pop()
        if rest is not None and rest.error is not None:
            raise rest.error
    finally:
        at_any_depth(_cancel_all, ahead)


def _cancel_all(futures: deque[cf.Future[T]]) -> None:
    for future in futures:
        future.cancel()


class Rest(Generic[T]):
    """The calls that are not submitted yet."""

    def __init__(self, calls: Iterator[tuple[Any, ...]], fn: Callable[..., T], submit: Callable[..., cf.Future[T]]):
        self._calls: Iterator[tuple[Any, ...]] | None = calls  # S: None: there are no more
        self._fn = fn  # S
        self._submit = submit  # S
        self.error: Exception | None = None  # S
        """Why there are no more: what the iterable raised, or the queue when it refused a call. As with `map()`, it is
        raised after the results of all earlier calls.
        """

    def submit_next(self, ahead: deque[cf.Future[T]]) -> None:
        if self._calls is None:
            return
        try:
            for args in self._calls:
                ahead.append(self._submit(self._fn, *args))
                return
        except Exception as exc:
            self.error = exc
        self._calls = None


def take(ahead: deque[cf.Future[T]], slowly: Callable[..., T], limit: _Limit | None) -> T:
    """Remove the first future and return its result, at once if it has one. The twin has another."""
    return slowly(ahead, limit)


def _result_of(ahead: deque[cf.Future[T]], limit: _Limit | None) -> T:
    """Remove the first future and return its result; if that fails, cancel it. The caller cancels the rest."""
    future = ahead.popleft()
    try:
        return future.result() if limit is None else limit.result_of(future)
    finally:
        future.cancel()
        del future


class _Limit:
    """A deadline, `timeout` seconds from when this is made."""

    def __init__(self, timeout: float, host: Host) -> None:
        self._timeout = timeout  # S
        self._host = host  # S
        self._deadline = host.monotonic() + timeout  # S

    def result_of(self, future: cf.Future[T]) -> T:
        try:
            return future.result(max(0.0, self._deadline - self._host.monotonic()))
        except TimeoutError as exc:
            if future.done() and not future.cancelled() and future.exception() is exc:
                raise  # the call itself raised it
        raise CmwqTimeout(f"map: no result within {self._timeout:g} s of the call: {future!r}")
