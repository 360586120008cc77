"""What SQLAlchemy's scoped_session and Django's connections do on threads that serve many works, and come and go."""

from __future__ import annotations

import gc
import importlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import HANG, until

import cmwq

from .wsgi import run_example

EXAMPLE = Path(__file__).resolve().parents[2] / "examples/sqlalchemy_sessions.py"


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """What docs/integrations/context.md shows, with a database of its own, and five connections at most."""
    pytest.importorskip("sqlalchemy", reason="SQLAlchemy can't be imported here")
    if not EXAMPLE.exists():
        pytest.skip("no examples here")  # only a part of the tree was copied (tools/trees.py)
    monkeypatch.syspath_prepend(EXAMPLE.parent)
    module: Any = importlib.import_module(EXAMPLE.stem)
    url = f"sqlite:///{tmp_path}/visits.db"
    module.engine = module.create_engine(url, pool_size=5, max_overflow=0, pool_timeout=HANG)
    module.Base.metadata.create_all(module.engine)
    module.Session.configure(bind=module.engine)
    yield module
    module.Session.remove()
    module.engine.dispose()
    del module.engine


def in_use(example: Any) -> int:
    gc.collect()  # a session is part of cycles
    number: int = example.engine.pool.checkedout()
    return number


# ----------------------------------------------------------------------------------- SQLAlchemy


def test_a_session_that_a_work_leaves_stays_on_its_thread_and_keeps_its_connection(example: Any) -> None:
    def leave() -> None:
        example.Session.add(example.Visit(page="/never committed"))
        example.Session.flush()

    def find() -> list[str]:
        return [each.page for each in example.Session.scalars(example.select(example.Visit))]

    with cmwq.Executor(max_workers=1) as executor:
        executor.submit(leave).result(HANG)
        assert executor.submit(find).result(HANG) == ["/never committed"]  # of a work that has nothing to do with it
        assert in_use(example) == 1
    until(lambda: in_use(example) == 0)  # its thread has ended
    assert example.count() == 0


def test_surplus_threads_end_with_what_they_keep_and_the_last_two_stay(example: Any) -> None:
    together = threading.Barrier(5)

    def leave() -> None:
        example.count.__wrapped__()
        together.wait(HANG)

    with cmwq.Runtime(config=cmwq.Config(idle_worker_timeout=0.05)) as runtime:
        with cmwq.WorkQueue("sessions", runtime=runtime) as queue:
            for future in [queue.submit(leave) for _ in range(5)]:
                future.result(HANG)
        until(lambda: in_use(example) <= 2)
    until(lambda: in_use(example) == 0)


def test_with_a_session_removed_after_each_work_nothing_stays(example: Any) -> None:
    found: list[Any] = []

    @example.with_session  # type: ignore[untyped-decorator, unused-ignore]
    def use(number: int) -> None:
        session = example.Session()
        found.extend([*session.new, *session.identity_map.values()])
        session.add(example.Visit(page=f"/{number}"))
        session.flush()
        if number % 3 == 0:
            raise ZeroDivisionError  # what it did is rolled back
        session.commit()

    with cmwq.Runtime() as runtime, cmwq.Executor(max_active=5, runtime=runtime) as executor:
        outcomes = [executor.submit(use, number).exception(HANG) for number in range(99)]
        failed = sum(isinstance(outcome, ZeroDivisionError) for outcome in outcomes)
        assert (failed, outcomes.count(None)) == (33, 66)
        assert in_use(example) == 0
        assert executor.submit(example.count).result(HANG) == 66
    assert found == []


def test_works_that_give_their_sessions_back_need_no_more_connections_than_may_be_active(example: Any) -> None:
    with cmwq.Runtime() as runtime, cmwq.Executor(max_active=5, runtime=runtime) as executor:
        assert list(executor.map(lambda _: example.count(), range(200))) == [0] * 200
        assert in_use(example) == 0


def test_the_example_runs() -> None:
    pytest.importorskip("sqlalchemy", reason="SQLAlchemy can't be imported here")
    assert run_example("sqlalchemy_sessions.py") == "100 visits, 0 connections in use\n"


# ----------------------------------------------------------------------------------- Django


def test_a_connection_of_django_stays_on_its_thread_until_it_is_closed(tmp_path: Path) -> None:
    pytest.importorskip("django.tasks", reason="the settings of these tests are for Django 6.0, Python 3.12 or newer")
    from contrib import django_tasks  # it sets Django up

    del django_tasks
    from django.db import connection, connections

    def use() -> tuple[bool, Any]:
        was_open = connection.connection is not None
        connection.ensure_connection()
        return was_open, connection.connection

    def use_and_close() -> tuple[bool, Any]:
        try:
            return use()
        finally:
            connections.close_all()

    with pytest.MonkeyPatch.context() as patch, cmwq.Executor(max_workers=1) as executor:
        patch.setitem(connections.databases["default"], "NAME", str(tmp_path / "django.db"))
        first = executor.submit(use).result(HANG)
        second = executor.submit(use_and_close).result(HANG)
        third = executor.submit(use_and_close).result(HANG)
        assert [was_open for was_open, _ in (first, second, third)] == [False, True, False]
        assert first[1] is second[1] is not third[1]
