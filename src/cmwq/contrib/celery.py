"""celery: a pool for Celery's workers, in which `-c` is a bound and not a number of threads.

    CELERY_CUSTOM_WORKER_POOL=cmwq.contrib.celery:TaskPool celery -A app worker -P custom -c 256

Or the setting `worker_pool = "cmwq.contrib.celery:TaskPool"`. Guarantees:
- Tasks wait in the pool until they could run, and are accepted only when they begin. Until then their messages are not
  acknowledged, with early acknowledgement too. So the broker sees the backlog, and gets back what has not begun at a
  shutdown, at a lost connection, or if the process dies.
- A task that is revoked, or expires, while it waits is not run.
- A warm shutdown waits for the tasks that run. A cold one leaves them behind, and the process ends.
- Tasks are told apart by their names, so that short ones do not wait behind those that compute for long (A9).
- What a task sets of its context variables is not seen by the next one.

What threads can't do is said in the log, once, and not passed over: time limits, `max-tasks-per-child`,
`max-memory-per-child`. `revoke(terminate=True)` of a task that runs is answered with an error. Assumes Celery 5.3 or
newer.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import get_native_id
from typing import Any

from celery.concurrency.base import (  # type: ignore[import-untyped,import-not-found,unused-ignore]
    BasePool,
    apply_target,
)
from celery.utils import log  # type: ignore[import-untyped,import-not-found,unused-ignore]
from celery.worker import state  # type: ignore[import-untyped,import-not-found,unused-ignore]
from kombu.asynchronous import get_event_loop  # type: ignore[import-untyped,import-not-found,unused-ignore]

import cmwq
from cmwq.contrib._routes import InsteadOf, Routes

__all__ = ("TaskPool",)

_log = log.get_logger("celery.pool")

ROUND = 0.5
"""Seconds between two looks, while a shutdown waits for tasks: heartbeats are sent, acknowledgements too."""


class _Submitted:
    """What Celery gets for a task that it handed over. It keeps only a weak reference to it."""

    __slots__ = ("__weakref__", "future")

    def __init__(self, future: cmwq.Future[None]) -> None:
        self.future = future

    def get(self, timeout: float | None = None) -> None:
        self.future.result(timeout)

    def wait(self, timeout: float | None = None) -> None:
        self.future.exception(timeout)

    def terminate(self, signal: object) -> None:
        """Nothing: a task that has not begun finds that it is revoked; one that runs can't be stopped."""


class TaskPool(BasePool):  # type: ignore[misc,unused-ignore]
    """The pool of one worker. Its tasks are works of a queue `celery`, on the process's pools.

    limit: how many tasks may be active at a time (`-c`, `worker_concurrency`); none of them costs anything while it is
    not used. A task that waits for the result of another work of cmwq does not count meanwhile.

    Tasks begin on any thread of cmwq, and as many run as pays: all that wait for something, but only about as many as
    there are CPUs of those that compute. `apply_async` is called by Celery; it raises QueueClosed after a warm
    shutdown.
    """

    limit: int
    body_can_be_buffer = True
    signal_safe = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._queue: cmwq.WorkQueue | None = None
        self._unfinished: set[cmwq.Future[None]] = set()
        self._said: set[str] = set()
        self._routes = Routes()

    def on_start(self) -> None:
        """Begin. Nothing is started before the first task."""
        self._queue = cmwq.WorkQueue("celery", max_active=max(self.limit, 1))
        for option in ("timeout", "soft_timeout", "maxtasksperchild", "max_memory_per_child"):
            if self.options.get(option):
                self._say_once(option, f"the option {option}={self.options[option]}")

    def on_apply(
        self,
        target: Callable[..., Any],
        args: Any = None,
        kwargs: Any = None,
        callback: Callable[..., Any] | None = None,
        accept_callback: Callable[..., Any] | None = None,
        timeout: float | None = None,
        soft_timeout: float | None = None,
        **_: Any,
    ) -> _Submitted:
        """Let a task wait until it could run. Does not block. Raises QueueClosed before the start and after a
        warm shutdown.

        timeout, soft_timeout: seconds that the task may take; they have no effect, and the log says so.
        """
        if timeout or soft_timeout:
            self._say_once("timeout", f"the time limit of {timeout or soft_timeout} s")
        queue = self._queue
        if queue is None:
            raise cmwq.QueueClosed("the pool of this Celery worker was not started, or has been stopped")
        begin = self._routes.call(InsteadOf(target, self._begin), _task_of, accept_callback)
        future = queue.submit(begin, target, args, kwargs, callback, accept_callback)
        self._unfinished.add(future)
        future.add_done_callback(self._unfinished.discard)
        return _Submitted(future)

    @staticmethod
    def _begin(target: Any, args: Any, kwargs: Any, callback: Any, accept: Any) -> None:
        """Accept a task and run it, unless it was given back, revoked, or expired since it was handed over."""
        request: Any = getattr(accept, "__self__", None)
        try:
            if not (_is_given_back(request) or (hasattr(request, "revoked") and request.revoked())):
                apply_target(target, args, kwargs, callback, accept, pid=get_native_id())
        except BaseException:
            _log.exception("the outcome of %s could not be handled", request or target)

    def _say_once(self, what: str, limit: str) -> None:
        if what not in self._said:
            self._said.add(what)
            _log.warning("%s has no effect: tasks run on threads, which can't be stopped", limit)

    # ------------------------------------------------------------------------------- size

    def grow(self, n: int = 1) -> None:
        """Let n more tasks be active (`pool_grow`, `--autoscale`)."""
        self._limit_to(self.limit + n)

    def shrink(self, n: int = 1) -> None:
        """Let n fewer tasks be active. Those that run go on."""
        self._limit_to(max(self.limit - n, 0))

    def _limit_to(self, limit: int) -> None:
        self.limit = limit
        if self._queue is not None:
            self._queue.max_active = max(limit, 1)

    def _get_info(self) -> dict[str, Any]:
        """What `celery inspect stats` shows of it."""
        info: dict[str, Any] = super()._get_info()
        queue = self._queue
        waiting = queue.nr_pending() if queue is not None else 0
        running = queue.nr_unfinished() - waiting if queue is not None else 0
        return {
            **info,
            "max-concurrency": self.limit,
            "running": max(running, 0),
            "waiting": waiting,
            "threads": sum(pool.workers for pool in cmwq.snapshot().pools),
        }

    # ------------------------------------------------------------------------------- end

    def terminate_job(self, pid: int, signal: Any = None) -> None:
        """At a cold shutdown, leave the task to it. Otherwise raise NotImplementedError: a thread can't be stopped."""
        if not (_is_cold() or getattr(log, "_in_sighandler", False)):
            raise NotImplementedError(
                "this task runs on a thread, which can't be terminated: it goes on to its end. Revoking without "
                "terminate=True keeps tasks that have not begun from running; use the prefork pool for others"
            )

    def flush(self) -> None:
        """Take back what has not begun: the connection is lost, and its messages will be delivered again."""
        for future in self._unfinished.copy():  # one step, while others end
            future.cancel()

    def on_stop(self) -> None:
        """Give back what has not begun, and wait for what runs, unless the shutdown is a cold one, or becomes one.

        A cold shutdown calls it from a signal handler, which may have interrupted this very call, or `on_apply`, or the
        steps from the end of the event loop to here. So whoever finds that the shutdown is cold does what that takes,
        and it may be done more than once.
        """
        queue = self._queue
        if queue is None:
            return
        if not _is_cold():
            self.flush()
            _log.info("tasks that had not begun were given back; waiting for %d that run", queue.nr_unfinished())
        while not _is_cold():
            try:
                queue.close(ROUND)
            except cmwq.CmwqTimeout:
                _keep_connected()
            else:
                self._queue = None
                return
        self.on_terminate()

    def on_terminate(self) -> None:
        """Leave behind what runs. The process is to end, and ends without it; acknowledged late, it is done again."""
        if self._queue is not None:
            self.flush()
            cmwq.default_runtime().exit_timeout = 0.0


def _task_of(accept: Any) -> str | None:
    """The name of the task that is handed over. None: it is no task of Celery's own machinery."""
    name = getattr(getattr(accept, "__self__", None), "name", None)  # that of the request
    return name if isinstance(name, str) else None


def _is_given_back(request: Any) -> bool:
    """Is the channel closed on which its message came, so that the broker delivers it again?

    Celery closes the channel, which gives back the messages, and calls `flush` some time later. A task that ended in
    between would let one begin here that is begun elsewhere, too.
    """
    channel = getattr(getattr(request, "message", None), "channel", None)
    if channel is None:
        return False
    return bool(getattr(channel, "closed", False)) or getattr(channel, "connection", channel) is None


def _is_cold() -> bool:
    """Has a cold shutdown begun? The exit status that is noted then may be 0."""
    return state.should_terminate is not None and state.should_terminate is not False


def _keep_connected() -> None:
    """Send heartbeats and acknowledgements while a shutdown waits. The event loop does not run any more."""
    hub: Any = get_event_loop()
    if hub is None:
        return
    try:
        hub.fire_timers()
        from celery.concurrency import prefork  # type: ignore[import-untyped,import-not-found,unused-ignore]

        acknowledge = getattr(prefork, "_run_ready_callbacks", None)  # since 5.7; before, the hub does it at its end
        if acknowledge is not None:
            acknowledge(hub)
    except Exception:
        _log.warning("a heartbeat or an acknowledgement failed while a shutdown waits for tasks", exc_info=True)
