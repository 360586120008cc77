"""How a `with` block is left: all is waited for, as the standard library does, unless asked otherwise."""

from __future__ import annotations

import pytest
from conftest import Gate

import cmwq


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("workers", [2, 1])
def test_cancel_on_error_cancels_the_backlog(
    runtime: cmwq.Runtime, gate: Gate, error: type[BaseException], workers: int
) -> None:
    ran: list[int] = []

    def fail() -> None:
        with cmwq.Executor(max_workers=workers, cancel_on_error=True, runtime=runtime) as executor:
            held.extend(executor.submit(gate) for _ in range(workers))
            gate.await_arrivals(workers)
            waiting.extend(executor.submit(ran.append, n) for n in range(100))
            waiting[-1].add_done_callback(lambda _: gate.open.set())
            raise error

    held: list[cmwq.Future[None]] = []
    waiting: list[cmwq.Future[None]] = []
    with pytest.raises(error):
        fail()
    assert all(future.cancelled() for future in waiting)
    assert all(future.result(0) is None for future in held), "those that ran were waited for"
    assert ran == []


@pytest.mark.parametrize("options", [{}, {"cancel_on_error": True}])
def test_without_an_error_all_is_done(runtime: cmwq.Runtime, options: dict[str, bool]) -> None:
    with cmwq.Executor(max_active=1, runtime=runtime, **options) as executor:
        futures = [executor.submit(pow, n, 2) for n in range(100)]
    assert [future.result(0) for future in futures] == [n * n for n in range(100)]


def test_by_default_all_is_done_after_an_error_too(runtime: cmwq.Runtime) -> None:
    futures = []

    def fail() -> None:
        with cmwq.Executor(max_active=1, runtime=runtime) as executor:
            futures.extend(executor.submit(pow, n, 2) for n in range(100))
            raise ValueError("why")

    with pytest.raises(ValueError, match="why"):
        fail()
    assert [future.result(0) for future in futures] == [n * n for n in range(100)]
