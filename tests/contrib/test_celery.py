"""cmwq.contrib.celery without a broker: the order in which a shutdown becomes a cold one. The rest: tests/services."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import Gate

import cmwq

state = pytest.importorskip("celery.worker.state", reason="Celery can't be imported here")
contrib = pytest.importorskip("cmwq.contrib.celery")


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(state, "should_terminate", None)
    monkeypatch.setattr(cmwq.default_runtime(), "exit_timeout", 60.0)
    pool = contrib.TaskPool(1)
    pool.start()
    return pool


def test_a_shutdown_that_is_cold_before_a_warm_one_reaches_the_pool_leaves_behind_what_runs(
    pool: Any, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []
    pool.apply_async(gate)
    gate.await_arrivals(1)
    waits = pool.apply_async(ran.append, ("waits",))
    monkeypatch.setattr(state, "should_terminate", True)  # by a handler, after the event loop had ended
    pool.stop()
    assert cmwq.default_runtime().exit_timeout == 0.0
    assert waits.future.cancelled()
    gate.open.set()
    assert ran == []


def test_a_warm_shutdown_ends_with_what_runs(pool: Any) -> None:
    ran: list[str] = []
    pool.apply_async(ran.append, ("ran",)).wait()
    pool.stop()
    assert ran == ["ran"]
    assert cmwq.default_runtime().exit_timeout == 60.0
    with pytest.raises(cmwq.QueueClosed):
        pool.apply_async(ran.append, ("after",))
