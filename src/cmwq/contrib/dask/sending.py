"""sending: how the works of a cluster's queue get to the scheduler, and how their outcomes come back.

Guarantees: works are sent in the order of `waiting`, and never more than `max_active` are with the cluster. Of each
item exactly one outcome is told. If the connection to the scheduler is lost, items of a repeatable queue go back to the
front of the list, and are sent once the client is connected again; the others end in `WorkLost`.

How: whoever adds something to the list calls `arrange`. The client's event loop then sends as many as there is room
for, in one message; what comes meanwhile goes with the next. It follows each until its outcome is known, and hands that
to a worker of this process's pools, where the callbacks of futures run. So no user code runs on the loop.

Letters: Q: `lock`; E: the client's event loop only; I: never changed; A: one atomic step.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError
from contextlib import suppress
from typing import Any

from dask import annotate  # type: ignore[attr-defined,unused-ignore]
from distributed.scheduler import KilledWorker

import cmwq
from cmwq.contrib.dask.calls import ONCE, perform
from cmwq.contrib.dask.errors import WorkLost
from cmwq.contrib.dask.work import ClusterWork, Item

_log = logging.getLogger("cmwq")

PER_WORKER = 256
"""So many works for each worker of the cluster are with it at a time, unless `max_active` says otherwise."""
LOOK = 2.0
"""Seconds for which the number of workers is taken as it was."""
BATCH = 1000
"""So many works are sent in one message at most."""


class Sending:
    """The works of one queue that have not ended."""

    def __init__(
        self,
        name: str,
        client: Any,
        limit: int | None,
        options: dict[str, Any],
        *,
        repeatable: bool,
        on_error: Callable[[ClusterWork, BaseException], object] | None,
    ) -> None:
        self.name = name  # I
        self.client = client  # I
        self.limit = limit  # Q
        self.repeatable = repeatable  # I
        self.closed = False  # Q
        self.lock = threading.Lock()  # I
        self.waiting: deque[Item] = deque()  # Q: not sent, in order
        self.with_cluster: set[Item] = set()  # Q: sent, and the outcome is not known
        self.unfinished: set[Item] = set()  # Q: those, those that wait, and those whose outcome is being told
        self.local = cmwq.WorkQueue(f"cluster {name}", delayed="cancel")  # I: outcomes and delays
        self._options = options  # I: for `Client.map`
        self._on_error = on_error  # I
        self._nr_workers, self._looked = 1, 0.0  # E
        self._due = False  # A

    def max_active(self) -> int:
        """The limit in force."""
        return self.limit or PER_WORKER * self._nr_workers

    def arrange(self) -> None:
        """Have what may be sent be sent soon, together with what comes meanwhile.

        A loop that stops drops the callbacks that come too late, without a word. The client says that it closes before
        its loop stops. So if it does not say so after the callback was handed over, the callback runs.
        """
        if not self._due:
            self._due = True
            try:
                self.client.loop.add_callback(self._pump)
            except RuntimeError:
                self._due = False
                self._lose_all("the client's event loop is closed")
        if self._client_is_over():
            self._lose_all(f"the client is {self.client.status}")

    def _client_is_over(self) -> bool:
        return self.client.status in ("closing", "closed")

    async def _pump(self) -> None:
        """Send as many as there is room for. Context: E."""
        self._due = False
        if self._client_is_over():
            self._lose_all(f"the client is {self.client.status}")
            return
        if self.limit is None and self.waiting and time.monotonic() - self._looked > LOOK:
            self._looked = time.monotonic()
            try:
                with suppress(OSError, asyncio.TimeoutError):
                    self._nr_workers = max(1, len(await self.client.scheduler.ncores()))
            except asyncio.CancelledError:  # the loop ends
                self._lose_all("the client was closed")
                raise
        items = self._take()
        while items:
            try:
                self._send(items)
            except Exception as exc:
                for item in items:
                    self.end(item, None, exc)
            items = self._take()

    def _take(self) -> list[Item]:
        """The works to be sent now, in order. Context: E."""
        items: list[Item] = []
        with self.lock:
            while self.waiting and len(items) < BATCH and len(self.with_cluster) < self.max_active():
                item = self.waiting.popleft()
                if not item.nr_sent and not item.future.set_running_or_notify_cancel():
                    self.unfinished.discard(item)
                    continue
                item.nr_sent += 1
                self.with_cluster.add(item)
                if item.work is not None:
                    item.work.waiting, item.work.sent = None, item
                items.append(item)
        return items

    def _send(self, items: list[Item]) -> None:
        # Sent once more, it is another task: the scheduler may still know the one before.
        keys = [item.key if item.nr_sent == 1 else f"{item.key}{item.nr_sent:x}" for item in items]
        with annotate(**({} if self.repeatable else {ONCE: True})):
            sent = self.client.map(
                perform,
                [item.call for item in items],
                key=keys,
                pure=False,
                **self._options,
            )
        for item, future in zip(items, sent, strict=True):
            item.sent = future
            self.client.loop.add_callback(self._follow, item, future)

    async def _follow(self, item: Item, sent: Any) -> None:
        """Wait for the outcome. Context: E."""
        result: Any = None
        error: BaseException | None = None
        try:
            result = await self.client.gather(sent, asynchronous=True)
        except CancelledError as exc:
            if self.repeatable and not self.closed and not self._client_is_over():
                self._send_again(item)
                return
            error = _lost(item, f"it was cancelled on the cluster, or the scheduler was lost: {exc}", exc)
        except asyncio.CancelledError as exc:
            self.end(item, None, _lost(item, "the client was closed", exc))
            raise
        except KilledWorker as exc:
            error = _lost(item, str(exc), exc)
        except BaseException as exc:
            error = exc
        item.sent = None  # from now on the cluster need not keep the result
        self.end(item, result, error)

    def _send_again(self, item: Item) -> None:
        """The connection to the scheduler was lost, and with it all that it knew. Context: E."""
        item.sent = None
        with self.lock:
            if item not in self.with_cluster:
                return
            self.with_cluster.discard(item)
            self.waiting.appendleft(item)
        self.arrange()

    # ------------------------------------------------------------------------------- ends

    def end(self, item: Item, result: Any, error: BaseException | None) -> None:
        """The outcome is known. Only the first one counts."""
        with self.lock:
            if item not in self.with_cluster:
                return
            self.with_cluster.discard(item)
            work = item.work
            if work is not None:
                work.sent = None
                if work.waiting is not None:
                    self.waiting.append(work.waiting)  # it was queued while it ran
            waits = bool(self.waiting)
        if waits:
            self.arrange()
        try:
            self.local.submit(self._tell, item, result, error)
        except cmwq.CmwqError:
            self._tell(item, result, error)  # the process ends

    def _tell(self, item: Item, result: Any, error: BaseException | None) -> None:
        """Context: a worker of this process."""
        try:
            if error is None:
                item.future.set_result(result)
            else:
                item.future.set_exception(error)
                if item.work is not None:
                    self._work_failed(item.work, error)
        finally:
            with self.lock:
                self.unfinished.discard(item)

    def _work_failed(self, work: ClusterWork, error: BaseException) -> None:
        if self._on_error is None:
            _log.error("%r of queue %r raised", work, self.name, exc_info=error)
            return
        try:
            self._on_error(work, error)
        except Exception:
            _log.exception("on_error of queue %r raised while it dealt with %r of %r", self.name, error, work)

    def _lose_all(self, why: str) -> None:
        """Nothing can be sent any more."""
        with self.lock:
            items = list(self.waiting)
            self.waiting.clear()
            for item in items:
                self.with_cluster.add(item)
                if item.work is not None:
                    item.work.waiting = None
        for item in items:
            if item.nr_sent or item.future.set_running_or_notify_cancel():
                self.end(item, None, WorkLost(f"{item.call.name} was not sent: {why}"))
            else:
                with self.lock:
                    self.with_cluster.discard(item)
                    self.unfinished.discard(item)


def _lost(item: Item, why: str, cause: BaseException) -> WorkLost:
    lost = WorkLost(f"{item.call.name}: {why}")
    lost.__cause__ = cause
    return lost
