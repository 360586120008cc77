"""work: what users hold of a work on a cluster: the future of a call, and a work that is queued many times.

The states are kept and changed by its queue (`queue`), whose lock guards them. Letter Q: `ClusterWorkQueue._lock`.
"""

from __future__ import annotations

import concurrent.futures as cf
from collections.abc import Callable
from concurrent.futures._base import _STATE_TO_DESCRIPTION_MAP
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from uuid import uuid4

import cmwq

if TYPE_CHECKING:
    from cmwq.contrib.dask.calls import Call
    from cmwq.contrib.dask.queue import ClusterWorkQueue

T = TypeVar("T")


class ClusterFuture(cf.Future[T], Generic[T]):
    """The result of a call on the cluster: a `concurrent.futures.Future`, which `wait`, `as_completed` and
    `asyncio.wrap_future` accept. Thread-safe.

    Its callbacks run on a worker of this process's pools, so they may wait. `running()` is True once the call was sent
    to the scheduler.
    """

    _item: Item | None = None

    def cancel(self) -> bool:
        """Take the call back. True: it was not sent yet, and will not be run. False: it was sent, and goes on."""
        cancelled = super().cancel()
        item = self._item
        if cancelled and item is not None and item.queue._take_back(item):
            self.set_running_or_notify_cancel()
        return cancelled

    def __repr__(self) -> str:
        item = self._item
        return (
            f"<cmwq cluster future of {item.call.name if item else 'nothing'} {_STATE_TO_DESCRIPTION_MAP[self._state]}>"
        )


class Item:
    """One call, or one queueing of a work: from when it is queued until its outcome is known."""

    __slots__ = ("call", "future", "key", "nr_sent", "queue", "sent", "work")

    def __init__(self, queue: ClusterWorkQueue, call: Call, work: ClusterWork | None) -> None:
        self.queue = queue  # I
        self.call = call  # I
        self.work = work  # I
        self.future: ClusterFuture[Any] = ClusterFuture()  # I
        self.future._item = self
        self.key = f"{_plain(call.name)}-{uuid4().hex}"  # I; Dask's dashboards show what is before the last dash
        self.sent: Any = None  # E: Dask's future, while it has one
        self.nr_sent = 0  # E: how often it was sent


def _plain(name: str) -> str:
    """A name without the signs that Dask splits keys at."""
    return "".join(sign if sign.isalnum() or sign in "._" else "_" for sign in name)[:80] or "work"


class ClusterWork:
    """A call that is queued many times: the cluster's `cmwq.Work`. While it is pending, queueing it again does nothing.

    fn, args, kwargs: pickled each time it is queued. It belongs to the queue to which it is first queued. Its results
    are discarded, and what it raises goes to the queue's `on_error`, or to the log.

    It never runs twice at the same time, as far as the scheduler knows: queued while it runs, it follows. Thread-safe.
    """

    def __init__(self, fn: Callable[..., object], /, *args: Any, **kwargs: Any) -> None:
        if not callable(fn):
            raise TypeError(f"a work calls a function, not {fn!r:.100}")
        self.call = (fn, args, kwargs)  # I
        self.queue: ClusterWorkQueue | None = None  # Q: I once it is set
        self.waiting: Item | None = None  # Q: the queueing that was not sent yet
        self.sent: Item | None = None  # Q: the queueing that was sent and has not ended
        self.timer: cmwq.DelayedWork | None = None  # Q
        self.is_delayed = False  # Q: its time has not come
        self.nr_cancelling = 0  # Q: threads in cancel_sync

    @property
    def name(self) -> str:
        fn = self.call[0]
        return str(getattr(fn, "__qualname__", type(fn).__qualname__))

    @property
    def pending(self) -> bool:
        """True from when it is queued until it is sent to the scheduler, which may be long before it begins there."""
        return self.waiting is not None or self.is_delayed

    @property
    def running(self) -> bool:
        """True from when it is sent until its end is known here."""
        return self.sent is not None

    def flush(self, timeout: float | None = None) -> bool:
        """Wait for the last queueing before this call (F2). Returns whether there was one that had not ended. A delay
        is not waited for. timeout: seconds; then CmwqTimeout.
        """
        queue = self.queue
        return queue is not None and queue._flush_work(self, timeout)

    def cancel(self) -> bool:
        """Take it back (F4). True: it was pending. What was sent goes on. Does not wait."""
        queue = self.queue
        return queue is not None and queue._cancel_work(self)

    def cancel_sync(self, timeout: float | None = None) -> bool:
        """Take it back, and wait until what was sent has ended; meanwhile it can't be queued (F5). True: it was
        pending.

        timeout: seconds; then CmwqTimeout. What runs on a worker that was cut off, and is given up by the scheduler,
        counts as ended.
        """
        queue = self.queue
        return queue is not None and queue._cancel_work_sync(self, timeout)

    def __repr__(self) -> str:
        state = "pending" if self.pending else "running" if self.running else "idle"
        return f"<cmwq.ClusterWork {self.name} {state}>"
