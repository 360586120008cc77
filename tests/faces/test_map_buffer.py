"""map(buffersize=n): never more than n calls whose results have not been taken, and as much of the input read."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import HANG, Gate

import cmwq


class Source:
    """Numbers, and how far they were read."""

    def __init__(self, end: int | None = None, error: type[Exception] | None = None) -> None:
        self.taken = 0
        self._end = end
        self._error = error

    def __iter__(self) -> Iterator[int]:
        for n in itertools.count():
            if n == self._end:
                if self._error is not None:
                    raise self._error
                return
            self.taken += 1
            yield n


@pytest.mark.parametrize("size", [1, 2, 5])
def test_so_much_is_read_ahead_and_no_more(runtime: cmwq.Runtime, size: int) -> None:
    source = Source()
    with cmwq.Executor(runtime=runtime) as executor:
        results = executor.map(lambda n: n * n, source, buffersize=size)
        assert source.taken == size
        for n in range(20):
            assert next(results) == n * n
            assert source.taken == size + n + 1, "the buffer is full again while the result is used"
        results.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("size", [1, 3])
def test_while_a_result_is_waited_for_nothing_more_is_read(runtime: cmwq.Runtime, gate: Gate, size: int) -> None:
    """Not n + 1: the buffer may be all that memory allows."""
    source = Source()
    seen: list[int] = []

    def call(n: int) -> int:
        if n == 0:
            gate()
        return n

    with cmwq.Executor(runtime=runtime) as executor:
        results = executor.map(call, source, buffersize=size)
        other = cmwq.Executor(runtime=runtime)
        first = other.submit(next, results)
        gate.await_arrivals(1)
        other.submit(lambda: seen.append(source.taken)).result(HANG)
        assert seen == [size]
        gate.open.set()
        assert first.result(HANG) == 0
        assert source.taken == size + 1
        results.close()  # type: ignore[attr-defined]
        other.shutdown()


def test_the_end_of_the_input_is_the_end(runtime: cmwq.Runtime) -> None:
    with cmwq.Executor(runtime=runtime) as executor:
        for size, end in itertools.product([1, 3, 10], [0, 1, 3, 7]):
            assert list(executor.map(abs, Source(end), buffersize=size)) == list(range(end))
        assert list(executor.queue.map(abs, Source(7), buffersize=2)) == list(range(7))


def test_results_come_before_the_inputs_error(runtime: cmwq.Runtime) -> None:
    got: list[int] = []
    with cmwq.Executor(runtime=runtime) as executor:
        results = executor.map(abs, Source(5, KeyError), buffersize=2)
        with pytest.raises(KeyError):
            got.extend(iter(results.__next__, None))
    assert got == [0, 1, 2, 3, 4]


def test_after_shutdown_what_was_submitted_is_still_to_be_had(runtime: cmwq.Runtime) -> None:
    got: list[int] = []
    with cmwq.Executor(runtime=runtime) as executor:
        results = executor.map(abs, Source(), buffersize=3)
        got.append(next(results))
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        got.extend(iter(results.__next__, None))
    assert got == [0, 1, 2, 3], "none is lost, and that it isn't all is told"


def test_leaving_early_cancels_what_has_not_begun(runtime: cmwq.Runtime, gate: Gate) -> None:
    ran: list[int] = []

    def call(n: int) -> None:
        ran.append(n)
        if n == 1:
            gate()

    with cmwq.Executor(max_active=1, runtime=runtime) as executor:
        results: Any = executor.map(call, range(20), buffersize=5)
        next(results)
        gate.await_arrivals(1)
        results.close()
        gate.open.set()
    assert ran == [0, 1]


def test_a_result_lives_no_longer_than_its_taker_wants(runtime: cmwq.Runtime) -> None:
    import gc
    import time
    import weakref

    class Big:
        pass

    with cmwq.Executor(runtime=runtime) as executor:
        results = executor.map(lambda _: Big(), range(10), buffersize=3)
        for _ in range(9):
            gone = weakref.ref(next(results))
            deadline = time.monotonic() + HANG
            while gone() is not None and time.monotonic() < deadline:
                gc.collect()
                time.sleep(0.001)  # its worker may hold it for a moment; without a GIL, gc.collect() stops it
            assert gone() is None, gc.get_referrers(gone())
