"""calls: what a work is while it travels, and what runs it on a worker of the cluster.

Guarantees: a call is pickled when it is queued, on the thread that queues it, so an argument that can't be pickled is
refused there, and what is changed afterwards is not seen. It is unpickled on the worker's thread, where it runs, and
never by the scheduler. A worker that has another minor version of Python, or another version of cmwq, refuses it
before it unpickles anything (`VersionMismatch`). A call that may run only once, and comes to a worker a second time,
is refused there (`WorkLost`): `scheduler` marks it.

Whoever may queue works may run any code on the workers: unpickling is code execution. So may whoever can connect to the
scheduler, unless Dask is told to use TLS.
"""

from __future__ import annotations

import pickle
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from weakref import WeakKeyDictionary

import cloudpickle
from distributed.utils import thread_state  # type: ignore[attr-defined,unused-ignore]
from distributed.worker import get_worker

import cmwq
from cmwq.contrib.dask.errors import VersionMismatch, WorkLost

ONCE = "cmwq_once"
"""The annotation of a task that may run only once."""
AGAIN = "cmwq_again"
"""The annotation that the scheduler adds if such a task is to run again. Its value says why."""

Version = tuple[str, str]


def made_by() -> Version:
    """What calls from here, and calls that run here, are to agree on: the version of Python, and that of cmwq."""
    return f"{sys.version_info.major}.{sys.version_info.minor}", cmwq.__version__


class Call:
    """A function and its arguments, pickled. Immutable."""

    __slots__ = ("data", "name", "version")

    def __init__(self, name: str, data: bytes, version: Version) -> None:
        self.name, self.data, self.version = name, data, version

    @classmethod
    def of(cls, name: str, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """Pickle a call. Raises TypeError if it can't be pickled; the cause says why."""
        try:
            data = cloudpickle.dumps((fn, args, kwargs))
        except Exception as exc:
            raise TypeError(
                f"{name} can't be sent to another machine: its arguments, or what the function refers to, can't be "
                f"pickled ({type(exc).__name__}: {exc})"
            ) from exc
        return cls(name, data, made_by())

    def __reduce__(self) -> tuple[Any, ...]:
        return Call, (self.name, self.data, self.version)

    def __repr__(self) -> str:
        return f"<call of {self.name}, {len(self.data):,} bytes>"

    def load(self) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
        """Raises VersionMismatch, and whatever unpickling raises."""
        here = made_by()
        if here != self.version:
            raise VersionMismatch(
                f"{self.name} was not run: it was sent by Python {self.version[0]} with cmwq {self.version[1]}, and "
                f"this worker is Python {here[0]} with cmwq {here[1]}"
            )
        return pickle.loads(self.data)  # type: ignore[no-any-return]


def perform(call: Call) -> Any:
    """Run a call. Context: a task of Dask."""
    worker, key = get_worker(), thread_state.key
    task = worker.state.tasks.get(key)
    again = None if task is None else (task.annotations or {}).get(AGAIN)
    if again:
        raise WorkLost(f"{call.name} is not run again, because it is not repeatable, and {again}")
    fn, args, kwargs = call.load()
    return fn(*args, **kwargs)


# ----------------------------------------------------------------------------------- cancellation


class Cancellations:
    """The tasks of one worker that run, and whom to tell if Dask forgets one of them. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[Any, list[Callable[[], object]]] = {}  # guarded by the lock
        self._cancelled: set[Any] = set()  # likewise: those of them that were cancelled

    def begin(self, key: Any) -> None:
        with self._lock:
            self._running[key] = []

    def end(self, key: Any) -> None:
        with self._lock:
            self._running.pop(key, None)
            self._cancelled.discard(key)

    def cancel(self, key: Any) -> None:
        """Dask has forgotten this task, which goes on. Context: the worker's event loop."""
        with self._lock:
            if key not in self._running:
                return
            self._cancelled.add(key)
            told, self._running[key] = self._running[key], []
        for callback in told:
            with suppress(Exception):
                callback()

    def cancel_all(self) -> None:
        with self._lock:
            keys = list(self._running)
        for key in keys:
            self.cancel(key)

    def is_cancelled(self, key: Any) -> bool:
        with self._lock:
            return key in self._cancelled

    def add(self, key: Any, callback: Callable[[], object]) -> None:
        with self._lock:
            if key in self._running and key not in self._cancelled:
                self._running[key].append(callback)
                return
            cancelled = key in self._cancelled
        if cancelled:
            callback()


of_workers: WeakKeyDictionary[Any, Cancellations] = WeakKeyDictionary()
"""Those of each worker of this process that has, or had, the plugin. Changed on the worker's event loop only."""


def was_cancelled() -> bool:
    """Return whether nobody wants the result of this task any more: it was cancelled, its client is gone, or the worker
    closes. A long computation may ask now and then, and return early. False outside a task, and on a worker without the
    plugin. Thread-safe.
    """
    found = _here()
    return found is not None and found[0].is_cancelled(found[1])


def on_cancel(callback: Callable[[], object]) -> None:
    """Have `callback()` called when nobody wants the result of this task any more, or at once if that is so already.

    It is called on the worker's event loop, so it must not wait: it closes a socket, sets an event, sends a signal.
    What it raises is ignored. It is forgotten when the task ends. Does nothing outside a task, and on a worker without
    the plugin. Thread-safe.
    """
    found = _here()
    if found is not None:
        found[0].add(found[1], callback)


def _here() -> tuple[Cancellations, Any] | None:
    try:
        found = of_workers.get(get_worker())
    except ValueError:
        return None
    key = getattr(thread_state, "key", None)
    return None if found is None or key is None else (found, key)
