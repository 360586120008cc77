"""contrib.django: a backend of Django Tasks (Django 6.0 or newer) that runs tasks in this process, on the pools.

    TASKS = {"default": {"BACKEND": "cmwq.contrib.django.ThreadBackend", "QUEUES": ["default", "mail"]}}

IT IS NOT DURABLE. Tasks and results live in the memory of the process that enqueued them. If it crashes or is killed,
they are gone; no other process sees them. Django's system check says so as `cmwq.W001`.

Guarantees
- Each queue of Django is a work queue of cmwq. Tasks begin as the pool can run them, those of a higher priority first,
  and of one priority in order. A task with `run_after` joins them at that time, however many wait.
- `get_result` works on every thread of the process. The last `RESULTS` finished results are kept.
- The signals are sent: `task_enqueued` where the task is enqueued, the others on the worker. A receiver of
  `task_started` or `task_finished` that raises is logged by Django, and changes nothing.
- A task's database connections are closed when it has ended, so that no idle thread keeps one.
- At a normal exit the tasks that are due are run, and those whose time has not come are dropped, with a warning.
- The child of a fork begins with no tasks and no results.
"""

from __future__ import annotations

import copy
import heapq
import itertools
import logging
import os
import threading
from collections import deque
from functools import partial
from traceback import format_exception
from typing import Any

from django.core import checks  # type: ignore[import-untyped,unused-ignore]
from django.db import connections  # type: ignore[import-untyped,unused-ignore]
from django.tasks.backends.base import BaseTaskBackend  # type: ignore[import-not-found,import-untyped,unused-ignore]
from django.tasks.base import (  # type: ignore[import-not-found,import-untyped,unused-ignore]
    TaskContext,
    TaskError,
    TaskResult,
    TaskResultStatus,
)
from django.tasks.exceptions import (  # type: ignore[import-not-found,import-untyped,unused-ignore]
    TaskResultDoesNotExist,
)
from django.tasks.signals import (  # type: ignore[import-not-found,import-untyped,unused-ignore]
    task_enqueued,
    task_finished,
    task_started,
)
from django.utils import timezone  # type: ignore[import-untyped,unused-ignore]
from django.utils.crypto import get_random_string  # type: ignore[import-untyped,unused-ignore]
from django.utils.json import normalize_json  # type: ignore[import-not-found,import-untyped,unused-ignore]

import cmwq
from cmwq._core import checks as arguments
from cmwq.contrib._routes import Routes

__all__ = ("ThreadBackend",)

RESULTS = 10_000
"""How many finished results a backend keeps, unless its OPTIONS say otherwise. The oldest are forgotten first."""
OPTIONS = {"max_active", "results"}
DELIVERIES = 2**31 - 1
"""How many tasks whose time has come may be on their way to the others: what brings them there waits for nobody."""
_log = logging.getLogger("cmwq")


class ThreadBackend(BaseTaskBackend):  # type: ignore[misc,unused-ignore]
    """Django's tasks on the pools of this process. Not durable.

    OPTIONS: `max_active`, how many tasks of one queue may be active at a time (an integer or "auto", as for
    `cmwq.WorkQueue`); `results`, how many finished results are kept. Thread-safe.
    """

    supports_defer = True
    supports_async_task = True
    supports_get_result = True
    supports_priority = True

    def __init__(self, alias: str, params: dict[str, Any]) -> None:
        super().__init__(alias, params)
        if unknown := set(self.options) - OPTIONS:
            raise ValueError(f"task backend {alias!r} has no option {', '.join(sorted(map(str, unknown)))}")
        most, kept = self.options.get("max_active"), self.options.get("results", RESULTS)
        if most is not None and most != "auto":
            arguments.integer(f"the option max_active of task backend {alias!r}", most, 1)
        arguments.integer(f"the option results of task backend {alias!r}", kept, 0)
        # Django makes a backend for each thread, so what they share is elsewhere.
        self._key = (alias, *sorted(self.options.items()))

    def enqueue(self, task: Any, args: Any, kwargs: Any) -> Any:
        """Have the task run when the pool can run it, or at its `run_after`. Returns its result as it is now.

        Raises InvalidTask; TypeError if the arguments are not JSON; QueueClosed at the end of the process.
        """
        self.validate_task(task)
        result = TaskResult(
            task=task, id=get_random_string(32), status=TaskResultStatus.READY, enqueued_at=timezone.now(),
            started_at=None, last_attempted_at=None, finished_at=None, args=args, kwargs=kwargs, backend=self.alias,
            errors=[], worker_ids=[],
        )  # fmt: skip
        store = self._store()
        store.add(result)
        try:
            task_enqueued.send(type(self), task_result=result)
            store.queue(task.queue_name).put(result)
        except BaseException:
            store.forget(result)
            raise
        return store.copy(result)

    async def aenqueue(self, task: Any, args: Any, kwargs: Any) -> Any:
        """Do what `enqueue` does, which blocks on nothing."""
        return self.enqueue(task, args, kwargs)

    def get_result(self, result_id: str) -> Any:
        """Return the result as it is now. Raises TaskResultDoesNotExist if this process does not have it (any more)."""
        return self._store().get(result_id)

    async def aget_result(self, result_id: str) -> Any:
        """Do what `get_result` does, which blocks on nothing."""
        return self.get_result(result_id)

    def check(self, **kwargs: Any) -> list[Any]:
        """Say loudly that it is not durable."""
        hint = "If tasks must survive that, use a backend with a database or a broker; else silence cmwq.W001."
        told = f"Tasks of the backend {self.alias!r} live in the memory of one process and are lost when it is killed."
        return [*super().check(**kwargs), checks.Warning(told, hint=hint, id="cmwq.W001")]

    def _store(self) -> _Store:
        with _lock:
            store = _stores.get(self._key)
            if store is None:
                store = _stores[self._key] = _Store(type(self), self.alias, self.options)
            return store


class _Store:
    """The tasks and results of one backend, for all threads."""

    def __init__(self, sender: type, alias: str, options: dict[str, Any]) -> None:
        self.sender = sender
        self._alias = alias
        self._max_active = options.get("max_active")
        self._most = options.get("results", RESULTS)
        self._lock = threading.Lock()  # around each use of what follows, and each change of a result
        self._results: dict[str, Any] = {}
        self._finished: deque[str] = deque()
        self._queues: dict[str, _Queue] = {}

    def queue(self, name: str) -> _Queue:
        with self._lock:
            queue = self._queues.get(name)
            if queue is None:
                queue = self._queues[name] = _Queue(self, f"{self._alias}/{name}", self._max_active)
            return queue

    def add(self, result: Any) -> None:
        with self._lock:
            self._results[result.id] = result

    def forget(self, result: Any) -> None:
        with self._lock:
            self._results.pop(result.id, None)

    def get(self, result_id: str) -> Any:
        result = self._results.get(result_id)
        if result is None:
            raise TaskResultDoesNotExist(result_id)
        return self.copy(result)

    def copy(self, result: Any) -> Any:
        """A copy that does not change, and by whose change nothing changes here."""
        with self._lock:
            copied = copy.copy(result)
            for field in ("args", "kwargs", "errors", "worker_ids", "_return_value"):
                object.__setattr__(copied, field, copy.deepcopy(getattr(result, field)))
            return copied

    def change(self, result: Any, **fields: Any) -> None:
        with self._lock:
            for field, value in fields.items():
                object.__setattr__(result, field, value)
            if result.is_finished:
                self._finished.append(result.id)
                while len(self._finished) > self._most:
                    self._results.pop(self._finished.popleft(), None)

    def run(self, result: Any) -> None:
        """Run the task, and note its outcome. Never raises: what fails beside it is logged.  Context: a worker."""
        try:
            self._run(result)
        except BaseException:  # nobody fetches what this call raises
            _log.exception("the outcome of task %s (%s) could not be noted", result.id, result.task.module_path)

    def _run(self, result: Any) -> None:
        now = timezone.now()
        worker_ids = [*result.worker_ids, threading.current_thread().name]
        self.change(
            result, status=TaskResultStatus.RUNNING, started_at=now, last_attempted_at=now, worker_ids=worker_ids
        )
        task_started.send_robust(self.sender, task_result=result)
        task = result.task
        context = (TaskContext(task_result=result),) if task.takes_context else ()
        try:
            value = normalize_json(task.call(*context, *result.args, **result.kwargs))
        except BaseException as exc:  # the thread serves others: nothing that a task raises may end it
            kind = type(exc)
            error = TaskError(
                exception_class_path=f"{kind.__module__}.{kind.__qualname__}",
                traceback="".join(format_exception(exc)),
            )
            self._finish(result, status=TaskResultStatus.FAILED, errors=[*result.errors, error])
        else:
            self._finish(result, status=TaskResultStatus.SUCCESSFUL, _return_value=value)

    def _finish(self, result: Any, **outcome: Any) -> None:
        """Context: the handler of the task's exception, if there is one, for receivers that log it."""
        _close_connections()
        self.change(result, finished_at=timezone.now(), **outcome)
        task_finished.send_robust(self.sender, task_result=result)
        _close_connections()  # receivers may have used some


def _close_connections() -> None:
    try:
        connections.close_all()
    except Exception:  # a server that is gone, say; the task has an outcome all the same
        _log.exception("the database connections of a task could not be closed")


class _Queue:
    """One queue of Django. For each task that is due there is one call in the work queue; which task it runs is decided
    when it begins.
    """

    def __init__(self, store: _Store, name: str, max_active: Any) -> None:
        self._store = store
        self._works = cmwq.WorkQueue(f"django {name}", max_active=max_active)
        # A queue of its own: behind the tasks that wait, a task whose time has come would have no priority. At exit the
        # works of both may queue others for a while, so what is being delivered then is run.
        self._deliveries = cmwq.WorkQueue(f"django {name} (run_after)", max_active=DELIVERIES, highpri=True)
        self._lock = threading.Lock()
        self._due: list[tuple[int, int, Any]] = []  # a heap
        self._numbers = itertools.count()
        self._kinds = Routes()

    def put(self, result: Any) -> None:
        """Have the task run, or have it wait for its time."""
        run_after = result.task.run_after
        delay = 0.0 if run_after is None else (run_after - _now(run_after)).total_seconds()
        if delay > 0:
            self._deliveries.queue_delayed(cmwq.DelayedWork(partial(self._be_due, result)), delay)
        else:
            self._be_due(result)

    def _be_due(self, result: Any) -> None:
        entry = (-result.task.priority, next(self._numbers), result)
        with self._lock:
            heapq.heappush(self._due, entry)
        path = result.task.module_path
        try:
            self._works.submit(self._kinds.call(self._run_next, str, path))
        except BaseException:
            with self._lock:
                self._due.remove(entry)
                heapq.heapify(self._due)
            raise

    def _run_next(self) -> None:
        with self._lock:
            result = heapq.heappop(self._due)[2]
        self._store.run(result)


def _now(like: Any) -> Any:
    """Now, in local time if that is what the other time is in."""
    now = timezone.now()
    if timezone.is_aware(like) == timezone.is_aware(now):
        return now
    return timezone.make_naive(now) if timezone.is_aware(now) else timezone.make_aware(now)


_lock = threading.Lock()
_stores: dict[tuple[Any, ...], _Store] = {}


def _forget_all() -> None:
    """In the child of a fork."""
    global _lock
    _lock = threading.Lock()
    _stores.clear()


os.register_at_fork(after_in_child=_forget_all)
