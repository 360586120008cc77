"""Batch: calls to wait for together."""

from __future__ import annotations

import pytest
from conftest import HANG, Gate

import cmwq


def test_results_come_in_order_of_submission(runtime: cmwq.Runtime) -> None:
    wq = cmwq.WorkQueue("q", runtime=runtime)
    with cmwq.Batch(wq) as batch:
        futures = [batch.submit(pow, 2, n) for n in range(50)]
        assert len(batch) == 50
    assert all(future.done() for future in futures)
    assert list(batch) == futures
    assert batch.results() == [2**n for n in range(50)]


def test_nobody_elses_calls_are_waited_for(universe: cmwq.Runtime, gate: Gate) -> None:
    wq = cmwq.WorkQueue("q", runtime=universe)
    foreign = wq.submit(gate)
    gate.await_arrivals(1)
    with cmwq.Batch(wq) as batch:
        batch.submit(int)
    assert not foreign.done()


def test_calls_submitted_by_its_own_calls_are_part_of_it(universe: cmwq.Runtime) -> None:
    done: list[int] = []

    def grow(left: int) -> None:
        if left:
            batch.submit(grow, left - 1)
        done.append(left)

    with cmwq.Batch(cmwq.WorkQueue("q", runtime=universe)) as batch:
        batch.submit(grow, 20)
    assert sorted(done) == list(range(21))


def test_results_raise_the_first_exception_and_wait_does_not(universe: cmwq.Runtime) -> None:
    batch = cmwq.Batch(cmwq.WorkQueue("q", runtime=universe))
    batch.submit(int)
    for text in ("first", "second"):
        batch.submit(int, text)
    batch.wait(HANG)
    with pytest.raises(ValueError, match="first"):
        batch.results(HANG)


def test_a_block_that_raises_cancels_what_has_not_begun(universe: cmwq.Runtime, gate: Gate) -> None:
    wq = cmwq.WorkQueue("q", max_active=1, runtime=universe)

    def fail() -> None:
        with cmwq.Batch(wq) as batch:
            batches.append(batch)
            batch.submit(gate)
            gate.await_arrivals(1)
            for _ in range(5):
                batch.submit(int)
            wq.submit(int).add_done_callback(lambda _: None)
            gate.open.set()
            raise LookupError("in the block")

    batches: list[cmwq.Batch] = []
    with pytest.raises(LookupError):
        fail()
    first, *rest = batches[0]
    assert first.done()
    assert not first.cancelled()
    assert all(future.done() for future in rest)


def test_cancel_says_how_many_it_took_back(universe: cmwq.Runtime, gate: Gate) -> None:
    wq = cmwq.WorkQueue("q", max_active=1, runtime=universe)
    batch = cmwq.Batch(wq)
    batch.submit(gate)
    gate.await_arrivals(1)
    for _ in range(5):
        batch.submit(int)
    assert batch.cancel() == 5
    assert batch.cancel() == 0
    gate.open.set()
    batch.wait(HANG)
    assert sum(future.cancelled() for future in batch) == 5


def test_an_empty_batch_is_done(universe: cmwq.Runtime) -> None:
    with cmwq.Batch(cmwq.WorkQueue("q", runtime=universe)) as batch:
        pass
    assert batch.results() == []
    assert universe.snapshot().pools == ()
