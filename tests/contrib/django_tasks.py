"""Tasks of Django for its tests: they have to be functions of a module. Importing it sets Django up."""

from __future__ import annotations

import threading
from contextvars import ContextVar
from typing import Any

import django
from django.conf import settings
from django.db import connection
from django.tasks import task

import cmwq

BACKEND = {"BACKEND": "cmwq.contrib.django.ThreadBackend", "QUEUES": ["default", "mail"]}
settings.configure(
    TASKS={
        "default": BACKEND,
        "single": {**BACKEND, "OPTIONS": {"max_active": 1}},
        "forgetful": {**BACKEND, "OPTIONS": {"results": 3}},
    },
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "/nowhere"}},
    USE_TZ=True,
)
django.setup()

VARIABLE: ContextVar[str] = ContextVar("VARIABLE", default="nothing")
ORDER: list[str] = []
GATES: dict[str, Any] = {}


@task
def add(a: int, b: int) -> int:
    return a + b


@task(takes_context=True)
def about(context: Any) -> dict[str, Any]:
    seen, _ = VARIABLE.get(), VARIABLE.set("the task's")
    return {
        "in_pool": cmwq.current_work() is not None,
        "attempt": context.attempt,
        "id": context.task_result.id,
        "seen": seen,
    }


@task
def fail() -> None:
    raise ZeroDivisionError("as it was asked")


@task
def leave() -> None:
    raise SystemExit(3)


@task
def unserialisable() -> object:
    return object()


@task
def hold(name: str) -> None:
    GATES[name]()


@task
def note(name: str) -> None:
    ORDER.append(name)


@task
async def asynchronous(a: int) -> int:
    return a * 2


@task
def query() -> list[Any]:
    """The rows, and whether the connection was new to this thread."""
    was_open = connection.connection is not None
    with connection.cursor() as cursor:
        cursor.execute("SELECT 6 * 7")
        row = cursor.fetchone()
    LEFT.append((threading.get_ident(), connection.connection))
    return [was_open, *row]


LEFT: list[tuple[int, Any]] = []
