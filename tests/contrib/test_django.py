"""cmwq.contrib.django: the backend of Django Tasks, with Django's own machinery around it."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from conftest import HANG, Gate, until

pytest.importorskip("django.tasks", reason="Django Tasks came with Django 6.0, for Python 3.12 or newer")

from django.core.checks import run_checks
from django.db import connection, connections
from django.tasks import task_backends
from django.tasks.base import TaskResultStatus
from django.tasks.exceptions import InvalidTask, TaskResultDoesNotExist
from django.tasks.signals import task_enqueued, task_finished, task_started
from django.utils import timezone

import cmwq
from contrib import django_tasks as tasks
from contrib.wsgi import run_example


def finished(result: Any) -> Any:
    """The result when its task has ended."""

    def is_finished() -> bool:
        result.refresh()
        return bool(result.is_finished)

    until(is_finished)
    return result


@pytest.fixture(autouse=True)
def _afresh() -> None:
    tasks.ORDER.clear()
    tasks.LEFT.clear()
    tasks.GATES.clear()


def test_a_task_runs_in_the_pool_and_its_result_can_be_fetched() -> None:
    result = tasks.add.enqueue(2, b=3)
    assert finished(result).return_value == 5
    assert result.status == TaskResultStatus.SUCCESSFUL
    assert result.enqueued_at <= result.started_at <= result.finished_at
    assert tasks.add.get_result(result.id).return_value == 5
    about = finished(tasks.about.enqueue()).return_value
    assert about["in_pool"]
    assert about["attempt"] == 1


def test_what_enqueue_returns_changes_only_when_it_is_refreshed(gate: Gate) -> None:
    tasks.GATES["it"] = gate
    result = tasks.hold.enqueue("it")
    gate.await_arrivals(1)
    assert result.status == TaskResultStatus.READY
    result.refresh()
    assert result.status == TaskResultStatus.RUNNING
    gate.open.set()
    assert finished(result).return_value is None


@pytest.mark.parametrize("name", ["fail", "leave", "unserialisable"])
def test_what_a_task_raises_is_in_its_result_and_ends_no_thread(name: str) -> None:
    result = finished(getattr(tasks, name).enqueue())
    assert result.status == TaskResultStatus.FAILED
    assert result.errors[0].exception_class in (ZeroDivisionError, SystemExit, TypeError)
    assert "Traceback" in result.errors[0].traceback
    assert finished(tasks.add.enqueue(1, 1)).return_value == 2


def test_a_result_is_found_from_every_thread_and_not_in_another_backend() -> None:
    result = finished(tasks.add.enqueue(1, 1))
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(task_backends["default"].get_result(result.id)))
    thread.start()
    thread.join(HANG)
    assert found[0].return_value == 2
    with pytest.raises(TaskResultDoesNotExist):
        task_backends["single"].get_result(result.id)


def test_only_so_many_finished_results_are_kept() -> None:
    add = tasks.add.using(backend="forgetful")
    first = add.enqueue(1, 1)
    until(lambda: task_backends["forgetful"].get_result(first.id).is_finished)
    for _ in range(3):
        finished(add.enqueue(1, 1))
    with pytest.raises(TaskResultDoesNotExist):
        task_backends["forgetful"].get_result(first.id)


def test_waiting_tasks_do_not_hold_up_others(gate: Gate) -> None:
    tasks.GATES["it"] = gate
    held = [tasks.hold.enqueue("it") for _ in range(50)]
    gate.await_arrivals(50)
    assert finished(tasks.add.enqueue(1, 1)).return_value == 2
    gate.open.set()
    for each in held:
        finished(each)


def test_tasks_begin_in_the_order_of_their_priorities(gate: Gate) -> None:
    tasks.GATES["it"] = gate
    held = tasks.hold.using(backend="single").enqueue("it")
    gate.await_arrivals(1)
    note = tasks.note.using(backend="single")
    results = [
        note.using(priority=priority).enqueue(name)
        for name, priority in [("a", 0), ("b", -7), ("c", 50), ("d", 0), ("e", 50)]
    ]
    gate.open.set()
    for each in [held, *results]:
        finished(each)
    assert tasks.ORDER == ["c", "e", "a", "d", "b"]


def test_a_deferred_task_runs_when_its_time_has_come() -> None:
    soon = timezone.now() + timedelta(seconds=0.3)
    result = tasks.add.using(run_after=soon).enqueue(1, 1)
    late = tasks.add.using(run_after=timezone.now() + timedelta(hours=1)).enqueue(1, 1)
    past = tasks.add.using(run_after=timezone.now() - timedelta(hours=1)).enqueue(1, 1)
    assert finished(result).started_at >= soon
    assert finished(past).return_value == 2
    late.refresh()
    assert late.status == TaskResultStatus.READY


def test_a_task_whose_time_has_come_has_its_priority_however_many_wait(gate: Gate) -> None:
    tasks.GATES["it"] = gate
    held = tasks.hold.using(backend="single").enqueue("it")
    gate.await_arrivals(1)
    note = tasks.note.using(backend="single")
    results = [note.enqueue(f"low {number}") for number in range(5)]
    soon = timezone.now() + timedelta(seconds=0.05)
    results.append(note.using(priority=50, run_after=soon).enqueue("high"))
    queue = task_backends["single"]._store().queue("default")
    until(lambda: len(queue._due) == 6)
    gate.open.set()
    for each in [held, *results]:
        finished(each)
    assert tasks.ORDER[0] == "high"


def test_queues_do_not_hold_up_one_another(gate: Gate) -> None:
    tasks.GATES["it"] = gate
    held = tasks.hold.using(backend="single").enqueue("it")
    gate.await_arrivals(1)
    assert finished(tasks.add.using(backend="single", queue_name="mail").enqueue(1, 1)).return_value == 2
    gate.open.set()
    finished(held)
    with pytest.raises(InvalidTask):
        tasks.add.using(queue_name="unknown")


def test_a_coroutine_function_may_be_a_task_and_coroutines_may_enqueue() -> None:
    assert finished(tasks.asynchronous.enqueue(21)).return_value == 42

    async def enqueue() -> Any:
        result = await tasks.add.aenqueue(1, 1)
        while not result.is_finished:
            await asyncio.sleep(0.001)
            await result.arefresh()
        return result.return_value

    assert asyncio.run(enqueue()) == 2


def test_signals_are_sent_and_a_receiver_that_raises_stops_no_task() -> None:
    seen: list[Any] = []

    def receive(sender: Any, task_result: Any, signal: Any, **_: Any) -> None:
        seen.append((task_result.id, signal, task_result.status, cmwq.current_work() is not None))
        if signal is not task_enqueued:
            raise RuntimeError("as it was asked")

    def ours() -> list[Any]:
        """A task of an earlier test may tell of its end late."""
        return [told for identity, *told in seen if identity == result.id]

    for signal in (task_enqueued, task_started, task_finished):
        signal.connect(receive)
    try:
        result = tasks.add.enqueue(1, 1)
        assert finished(result).return_value == 2
        until(lambda: len(ours()) == 3)
    finally:
        for signal in (task_enqueued, task_started, task_finished):
            signal.disconnect(receive)
    assert ours() == [
        [task_enqueued, TaskResultStatus.READY, False],
        [task_started, TaskResultStatus.RUNNING, True],
        [task_finished, TaskResultStatus.SUCCESSFUL, True],
    ]


def test_a_receiver_of_enqueued_that_raises_refuses_the_task() -> None:
    ids: list[str] = []

    def receive(sender: Any, task_result: Any, **_: Any) -> None:
        ids.append(task_result.id)
        raise RuntimeError("no")

    task_enqueued.connect(receive)
    try:
        with pytest.raises(RuntimeError, match="no"):
            tasks.note.enqueue("never")
    finally:
        task_enqueued.disconnect(receive)
    with pytest.raises(TaskResultDoesNotExist):
        task_backends["default"].get_result(ids[0])
    finished(tasks.add.enqueue(1, 1))
    assert tasks.ORDER == []


def test_a_task_sees_the_context_of_who_enqueued_it_and_leaves_none() -> None:
    token = tasks.VARIABLE.set("the caller's")
    try:
        assert {finished(tasks.about.enqueue()).return_value["seen"] for _ in range(10)} == {"the caller's"}
    finally:
        tasks.VARIABLE.reset(token)
    assert finished(tasks.about.enqueue()).return_value["seen"] == "nothing"


def test_connections_are_closed_after_each_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(connection.settings_dict, "NAME", str(tmp_path / "db"))
    monkeypatch.setitem(connections.settings["default"], "NAME", str(tmp_path / "db"))
    monkeypatch.setitem(connections.settings["default"], "CONN_MAX_AGE", None)
    for _ in range(5):
        assert finished(tasks.query.enqueue()).return_value == [False, 42]
    for _, each in tasks.LEFT:
        with pytest.raises(sqlite3.ProgrammingError, match="closed"):
            each.cursor()


def test_the_check_says_that_it_is_not_durable_and_options_are_checked() -> None:
    assert [each.id for each in run_checks() if each.id == "cmwq.W001"]
    with pytest.raises(ValueError, match="max_workers"):
        type(task_backends["default"])("x", {"OPTIONS": {"max_workers": 3}})


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"results": None}, TypeError), ({"results": "100"}, TypeError), ({"results": -1}, ValueError),
        ({"max_active": "20"}, TypeError), ({"max_active": 0}, ValueError), ({"max_active": []}, TypeError),
    ],
)  # fmt: skip
def test_an_option_that_can_not_be_is_refused_at_once(options: dict[str, Any], error: type[Exception]) -> None:
    (name,) = options
    with pytest.raises(error, match=f"option {name} of task backend 'x'"):
        type(task_backends["default"])("x", {"OPTIONS": options})
    for fine in ({}, {"results": 0}, {"max_active": None}, {"max_active": "auto"}):
        type(task_backends["default"])("x", {"OPTIONS": fine})


def test_what_fails_beside_a_task_is_logged_and_the_task_has_its_outcome(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("on purpose")

    with monkeypatch.context() as patch:
        patch.setattr(type(connections), "close_all", refuse)
        assert finished(tasks.add.enqueue(2, b=3)).return_value == 5
        until(lambda: caplog.text.count("could not be closed") >= 2)
    with monkeypatch.context() as patch:
        patch.setattr(task_started, "send_robust", refuse)
        result = tasks.add.enqueue(2, b=3)
        until(lambda: f"the outcome of task {result.id}" in caplog.text)


PROGRAM = """
    import os, sys
    from datetime import timedelta
    from django.utils import timezone
    from contrib import django_tasks as tasks
"""


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}


def test_at_exit_tasks_that_are_due_run_and_others_are_dropped_with_a_warning(python: Callable[..., Any]) -> None:
    done = python(
        PROGRAM,
        """
        from django.tasks.signals import task_finished
        task_finished.connect(lambda task_result, **_: sys.stdout.write(f"{task_result.return_value}\\n"), weak=False)
        for number in range(30):
            tasks.add.enqueue(number, 0)
        tasks.add.using(run_after=timezone.now() + timedelta(hours=1)).enqueue(1000, 0)
        """,
        env=_environment(),
    )
    assert done.returncode == 0, done.stderr
    assert sorted(map(int, done.stdout.split())) == list(range(30))
    assert "django default/default" in done.stderr


def test_the_child_of_a_fork_begins_with_nothing_and_goes_on(python: Callable[..., Any]) -> None:
    done = python(
        PROGRAM,
        """
        import time, threading
        from django.tasks.exceptions import TaskResultDoesNotExist
        from django.tasks import task_backends
        gate, begun = threading.Event(), []
        tasks.GATES["it"] = lambda: begun.append(1) or gate.wait()
        held = tasks.hold.enqueue("it")
        while not begun:  # until then a worker may hold the lock of a signal of Django's
            time.sleep(0.001)
        child = os.fork()
        if child == 0:
            try:
                task_backends["default"].get_result(held.id)
            except TaskResultDoesNotExist:
                print("forgotten", flush=True)
            result = tasks.add.enqueue(1, 1)
            while not result.is_finished:
                time.sleep(0.001)
                result.refresh()
            print(result.return_value, flush=True)
            os._exit(0)
        os.waitpid(child, 0)
        gate.set()
        """,
        env={**_environment(), "PYTHONWARNINGS": "ignore"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["forgotten", "2"]


def test_the_example_runs() -> None:
    assert "failed: builtins.ConnectionError" in run_example("django_tasks.py")
