"""cmwq.contrib.celery without a broker: moments of a shutdown, and of a lost connection. The rest: tests/services."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import Gate

import cmwq

state = pytest.importorskip("celery.worker.state", reason="Celery can't be imported here")
contrib = pytest.importorskip("cmwq.contrib.celery")
kombu = pytest.importorskip("kombu", reason="Kombu can't be imported here")


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


class Request:
    """What the pool sees of a request of Celery's: its message, whether it was revoked, and that it is told."""

    def __init__(self, message: Any) -> None:
        self.message = message
        self.accepted: list[int] = []

    def revoked(self) -> bool:
        return False

    def on_accepted(self, pid: int, _time: float) -> None:
        self.accepted.append(pid)


def test_what_begins_between_the_loss_of_its_connection_and_the_flush_is_not_run(pool: Any, gate: Gate) -> None:
    with kombu.Connection("memory://") as connection, connection.SimpleQueue("tasks") as tasks:
        for number in range(2):
            tasks.put(number)
        before, after = [Request(tasks.get(timeout=60)) for _ in range(2)]
        assert not before.message.channel.closed
        ran: list[str] = []
        pool.apply_async(ran.append, ("before",), accept_callback=before.on_accepted).wait()
        pool.apply_async(gate)
        gate.await_arrivals(1)
        waits = pool.apply_async(ran.append, ("after",), accept_callback=after.on_accepted)
        connection.collect()  # as Celery does, and some time later it calls flush
        gate.open.set()
        waits.wait()
    assert not waits.future.cancelled()
    assert (ran, len(before.accepted), after.accepted) == (["before"], 1, [])
    pool.stop()


def test_a_channel_of_amqp_that_was_given_up_is_known_by_its_connection() -> None:
    class Channel:  # py-amqp's has no `closed`
        connection: object = object()

    class Message:
        channel = Channel()

    assert not contrib._is_given_back(Request(Message))
    Channel.connection = None
    assert contrib._is_given_back(Request(Message))
    assert not contrib._is_given_back(None)


class Shared(set):  # type: ignore[type-arg]
    """A set that others change in any moment, as they may without a GIL: only its copy can be iterated."""

    def __iter__(self) -> Any:
        raise RuntimeError("Set changed size during iteration")

    def copy(self) -> set[Any]:
        return set(self)  # in C, and by no iterator


def test_what_waits_may_be_taken_back_while_tasks_end(pool: Any, gate: Gate) -> None:
    pool._unfinished = Shared()
    runs = pool.apply_async(gate)
    gate.await_arrivals(1)
    waits = pool.apply_async(int)
    pool.flush()
    assert waits.future.cancelled()
    gate.open.set()
    runs.wait()
    pool.stop()
