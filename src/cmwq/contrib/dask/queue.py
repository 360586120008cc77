"""queue: a work queue that spans a cluster of Dask.

    client = distributed.Client("tcp://scheduler:8786")
    with ClusterWorkQueue("thumbnails", client=client, max_active=64) as queue:
        futures = [queue.submit(render, path) for path in paths]

Guarantees, with the numbers of ARCHITECTURE.md; `docs/integrations/dask.md` has the table of what is not promised.
- At most `max_active` works of this queue are with the cluster at a time; the others wait here, in order (E1). At most
  `per_worker` of them run on one worker, whichever clients they came from.
- An ordered queue has one work with the cluster, and sends the next when its end is known (E2).
- A work is run once at most, unless the queue is `repeatable`: then it is run again if its worker, its result or the
  scheduler was lost, and only then. What can't be known ends in `WorkLost`.
- `flush`, `drain`, `close`, delays and cancelling are decided here. Nothing is durable: works that wait are lost with
  this process, and works that were sent with the scheduler.

How works are sent and followed is in `sending`. Letters: Q: the lock there; I: never changed.
"""

from __future__ import annotations

import concurrent.futures as cf
import inspect
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from distributed import Client, get_client
from distributed.diagnostics.plugin import WorkerPlugin

import cmwq
from cmwq._workqueue.map import Rest
from cmwq.contrib.dask.calls import Call
from cmwq.contrib.dask.errors import WorkLost
from cmwq.contrib.dask.scheduler import CmwqSchedulerPlugin
from cmwq.contrib.dask.sending import Sending
from cmwq.contrib.dask.work import ClusterFuture, ClusterWork, Item

if TYPE_CHECKING:
    from types import TracebackType

P = ParamSpec("P")
T = TypeVar("T")
_STATES = {"draining": "is draining", "closed": "is closed"}


class ClusterWorkQueue:
    """A named queue of works that run on the workers of a Dask cluster.

    name: shown in Dask's keys and in messages.
    client: a `distributed.Client` that is not asynchronous; by default the current one.
    max_active: how many works of this queue may be with the cluster at a time. None: 256 for each worker there is. May
        be set at any time. It counts this queue only: another process's queue of the same name has a limit of its own.
    per_worker: how many works of queues of this name may run on one worker at a time, whoever sent them; a work that is
        blocked counts. It is a resource of Dask, `cmwq:NAME`, which each worker gets.
    ordered: one work at a time, in queueing order (E2). Then `max_active` is 1.
    repeatable: works may be run more than once, so one that was lost is run again. `retries`: so many times a work
        that *raises* is run again, too.
    priority: works of a queue of a higher number go first, where they wait for the same worker.
    on_error: called as on_error(work, exception) when a queued `ClusterWork` fails.

    Making a queue has the scheduler load `CmwqSchedulerPlugin`; so cmwq must be installed there, and on the workers.
    Workers need no `CmwqPlugin`, but with it they run as many works as pays. Raises ValueError, TypeError, and what
    Dask raises if the scheduler can't be reached or does not allow plugins.

    Thread-safe. It may be used in a task of Dask. As a context manager it is closed at the end of the block. Exit of
    the interpreter does not wait for it. It is not for the child of a fork, as a client is not.
    """

    def __init__(
        self,
        name: str,
        *,
        client: Client | None = None,
        max_active: int | None = None,
        per_worker: int | None = None,
        ordered: bool = False,
        repeatable: bool = False,
        retries: int = 0,
        priority: int = 0,
        on_error: Callable[[ClusterWork, BaseException], object] | None = None,
    ) -> None:
        client = get_client() if client is None else client
        if client.asynchronous:
            raise ValueError(
                f"queue {name!r} needs a client that is not asynchronous: it calls it from its own threads"
            )
        if ordered and max_active not in (None, 1):
            raise ValueError(f"queue {name!r} is ordered: its max_active is 1")
        if retries and not repeatable:
            raise ValueError(f"queue {name!r} has retries, so its works must be repeatable=True")
        if retries < 0:
            raise ValueError(f"queue {name!r}: retries is {retries}, and must not be negative")
        if per_worker is not None and per_worker < 1:
            raise ValueError(f"queue {name!r}: per_worker is {per_worker}, and must be at least 1")
        options: dict[str, Any] = {"priority": priority}
        if retries:
            options["retries"] = retries
        if per_worker is not None:
            options["resources"] = {f"cmwq:{name}": 1}
        limit = _checked(name, 1 if ordered else max_active)
        self.name = name  # I, as are the next
        self.ordered = ordered
        self.repeatable = repeatable
        self.priority = priority
        self._sending = Sending(name, client, limit, options, repeatable=repeatable, on_error=on_error)
        self._lock = self._sending.lock
        self._delayed: set[ClusterWork] = set()  # Q: works whose time has not come
        self._state = "open"  # Q: "draining", "closed"
        client.register_plugin(CmwqSchedulerPlugin())
        if per_worker is not None:
            client.register_plugin(_Places(name, per_worker))

    def __repr__(self) -> str:
        waiting, sent = len(self._sending.waiting), len(self._sending.with_cluster)
        return f"<cmwq.ClusterWorkQueue {self.name!r} {self._state} waiting={waiting} sent={sent}>"

    @property
    def max_active(self) -> int:
        """How many works may be with the cluster at a time. Settable. Raises ValueError, TypeError."""
        return self._sending.max_active()

    @max_active.setter
    def max_active(self, limit: int | None) -> None:
        if self.ordered and limit != 1:
            raise ValueError(f"queue {self.name!r} is ordered: its max_active is 1 and stays so")
        with self._lock:
            self._sending.limit = _checked(self.name, limit)
        self._sending.arrange()

    # ------------------------------------------------------------------------------- calls

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> ClusterFuture[T]:
        """Run fn(*args, **kwargs) on the cluster. Returns its future. Does not wait.

        The call is pickled now. Raises TypeError if it can't be, or if `fn` is a coroutine function; QueueClosed.
        """
        call = _pickled(fn, args, kwargs)
        item = Item(self, call, None)
        with self._lock:
            self._check_open()
            self._sending.unfinished.add(item)
            self._sending.waiting.append(item)
        self._sending.arrange()
        return item.future

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """Like `map(fn, *iterables)`, but on the cluster; results come in order.

        timeout: seconds from this call until each result must be there, else CmwqTimeout. buffersize: at most this many
        calls are submitted ahead of the results taken; None: all at once. A call's exception is raised when its result
        is taken; what the input or the queue raises later than in this call, after the results of all earlier calls.
        Leaving the iterator after some results cancels calls that have not been sent.
        """
        if buffersize is not None and buffersize < 1:
            raise ValueError(f"buffersize is {buffersize}, and must be at least 1")
        last = None if timeout is None else time.monotonic() + timeout
        calls = zip(*iterables)  # noqa: B905  # as map() does
        ahead = deque(self.submit(fn, *args) for args in islice(calls, buffersize))
        return self._results(ahead, Rest(calls, fn, self.submit), last)

    def _results(self, ahead: Any, rest: Rest[Any], last: float | None) -> Iterator[Any]:
        try:
            while ahead:
                future = ahead.popleft()
                try:
                    result = [future.result(None if last is None else max(0.0, last - time.monotonic()))]
                except TimeoutError:
                    if future.done():
                        raise  # the call itself raised it
                    future.cancel()
                    raise cmwq.CmwqTimeout(f"map: a result is not there in time: {future!r}") from None
                rest.submit_next(ahead)
                yield result.pop()
            if rest.error is not None:
                raise rest.error
        finally:
            for future in ahead:
                future.cancel()

    # ------------------------------------------------------------------------------- works

    def queue(self, work: ClusterWork) -> bool:
        """Queue a work. False: it was pending already, or is being cancelled, and nothing changed (E4). Raises
        TypeError if its call can't be pickled, ValueError if it belongs to another queue, QueueClosed.
        """
        if not self._claim(work) or work.pending:
            return False
        call = _pickled(*work.call)
        with self._lock:
            self._check_open()
            if work.pending or work.nr_cancelling:
                return False
            self._insert(work, call)
        self._sending.arrange()
        return True

    def queue_delayed(self, work: ClusterWork, delay: float) -> bool:
        """Queue the work after `delay` seconds, no earlier (F9); at once with 0 or less. False: it was pending, and
        stays as it was. Raises as `queue`. The delay runs in this process.
        """
        if delay <= 0:
            return self.queue(work)
        if not self._claim(work):
            return False
        _pickled(*work.call)  # refused now, if at all
        with self._lock:
            self._check_open()
            if work.pending or work.nr_cancelling:
                return False
            self._delay(work)
        self._start_timer(work, delay)
        return True

    def mod_delayed(self, work: ClusterWork, delay: float) -> bool:
        """Have the work queued `delay` seconds from now, at once with 0 or less, whether or not it is pending. True: it
        was. Raises as `queue`.
        """
        if not self._claim(work):
            return False
        _pickled(*work.call)
        was_pending = self._cancel_work(work)
        return self.queue_delayed(work, delay) and was_pending

    def _claim(self, work: ClusterWork) -> bool:
        """Make it a work of this queue. False: it is being cancelled. Raises ValueError, TypeError."""
        if not isinstance(work, ClusterWork):
            raise TypeError(f"what is queued to queue {self.name!r} is a ClusterWork, not {work!r:.100}")
        with self._lock:
            if work.queue is None:
                work.queue = self
                work.timer = cmwq.DelayedWork(self._due, work)
        if work.queue is not self:
            raise ValueError(f"{work!r} belongs to queue {work.queue.name!r}, and can't be queued to {self.name!r}")
        return not work.nr_cancelling

    def _insert(self, work: ClusterWork, call: Call) -> None:
        """The caller has Q. While it runs, it is kept aside."""
        item = work.waiting = Item(self, call, work)
        self._sending.unfinished.add(item)
        if work.sent is None:
            self._sending.waiting.append(item)

    def _delay(self, work: ClusterWork) -> None:
        """The caller has Q."""
        work.is_delayed = True
        self._delayed.add(work)

    def _start_timer(self, work: ClusterWork, delay: float) -> None:
        assert work.timer is not None
        try:
            self._sending.local.mod_delayed(work.timer, delay)
        except BaseException:
            self._cancel_work(work)
            raise

    def _due(self, work: ClusterWork) -> None:
        """Its time has come. Context: a worker of this process."""
        call = _pickled(*work.call)
        with self._lock:
            if not work.is_delayed or self._state == "closed":
                return
            work.is_delayed = False
            self._delayed.discard(work)
            self._insert(work, call)
        self._sending.arrange()

    def _cancel_work(self, work: ClusterWork) -> bool:
        """What `ClusterWork.cancel` promises."""
        with self._lock:
            delayed, work.is_delayed = work.is_delayed, False
            self._delayed.discard(work)
            item, work.waiting = work.waiting, None
            if item is not None:
                with suppress(ValueError):  # kept aside
                    self._sending.waiting.remove(item)
                self._sending.unfinished.discard(item)
        if delayed and work.timer is not None:
            work.timer.cancel()
        if item is not None:
            item.future.cancel()
            item.future.set_running_or_notify_cancel()
        return delayed or item is not None

    def _cancel_work_sync(self, work: ClusterWork, timeout: float | None) -> bool:
        """What `ClusterWork.cancel_sync` promises."""
        with self._lock:
            work.nr_cancelling += 1
        try:
            pending = self._cancel_work(work)
            sent = work.sent
            if sent is not None:
                self._wait([sent.future], timeout, f"{work!r} still runs")
            return pending
        finally:
            with self._lock:
                work.nr_cancelling -= 1

    def _flush_work(self, work: ClusterWork, timeout: float | None) -> bool:
        """What `ClusterWork.flush` promises."""
        with self._lock:
            item = work.waiting or work.sent
        if item is None:
            return False
        self._wait([item.future], timeout, f"{work!r} has not ended")
        return True

    # ------------------------------------------------------------------------------- waiting

    def flush(self, timeout: float | None = None) -> None:
        """Return when every work queued before this call has ended (F1). Delayed works whose time has not come are not
        waited for. timeout: seconds; then CmwqTimeout.
        """
        self._wait(self._futures(), timeout, f"flush of queue {self.name!r}")

    def drain(self, timeout: float | None = None) -> None:
        """Refuse works until the queue is empty, then open it again (F3). Works of the cluster have no part in that: to
        queue works to this queue, they would need a queue of their own.

        timeout: seconds; then CmwqTimeout, and it is open again. Raises QueueClosed.
        """
        with self._lock:
            self._check_open()
            self._state = "draining"
        try:
            self._wait(self._futures(), timeout, f"drain of queue {self.name!r}")
        finally:
            with self._lock:
                if self._state == "draining":
                    self._state = "open"

    def close(self, timeout: float | None = None, *, abandon: bool = False) -> None:
        """Refuse works from now on, and return when the queue is empty. Delayed works whose time has not come are
        cancelled. May be called again.

        timeout: seconds; then CmwqTimeout, and the works go on. abandon: wait for nothing. What was not sent is
        cancelled; what was sent ends here in WorkLost. On the cluster it is cancelled if it has not begun, and if it
        has, it goes on to its end, and is told (`on_cancel`).
        """
        with self._lock:
            self._state, self._sending.closed = "closed", True
            delayed = list(self._delayed)
        for work in delayed:
            self._cancel_work(work)
        if abandon:
            self._abandon()
        self._wait(self._futures(), timeout, f"close of queue {self.name!r}")
        self._sending.local.close(timeout)

    def _abandon(self) -> None:
        with self._lock:
            items = [item for item in self._sending.unfinished if item not in self._sending.with_cluster]
            sent = list(self._sending.with_cluster)
        for item in items:
            if item.work is not None:
                self._cancel_work(item.work)
            else:
                item.future.cancel()
        for item in sent:
            self._sending.end(item, None, WorkLost(f"{item.call.name} was left to the cluster: its queue was closed"))
        futures = [item.sent for item in sent if item.sent is not None]
        if futures and self._sending.client.status == "running":
            self._sending.client.cancel(futures, force=True)

    def _futures(self) -> list[ClusterFuture[Any]]:
        with self._lock:
            return [item.future for item in self._sending.unfinished]

    def _wait(self, futures: list[ClusterFuture[Any]], timeout: float | None, what: str) -> None:
        left = cf.wait(futures, timeout).not_done
        if left:
            raise cmwq.CmwqTimeout(f"{what}: {len(left)} works still there after {timeout:g} s")

    def __enter__(self) -> ClusterWorkQueue:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def nr_pending(self) -> int:
        """How many works have not been sent. Works whose time has not come are not counted."""
        with self._lock:
            return len(self._sending.unfinished) - len(self._sending.with_cluster)

    def nr_unfinished(self) -> int:
        """How many works have neither ended nor been taken back. Works whose time has not come are not counted."""
        with self._lock:
            return len(self._sending.unfinished)

    def _check_open(self) -> None:
        """The caller has Q. Raises QueueClosed."""
        if self._state != "open":
            raise cmwq.QueueClosed(f"queue {self.name!r} {_STATES[self._state]}, and takes no work")

    def _take_back(self, item: Item) -> bool:
        """Remove an item whose future was cancelled. False: it is about to be sent, or was never there."""
        with self._lock:
            try:
                self._sending.waiting.remove(item)
            except ValueError:
                return False
            self._sending.unfinished.discard(item)
            return True


class _Places(WorkerPlugin):  # type: ignore[misc,unused-ignore]
    """Gives each worker its places for works of one name."""

    idempotent = False

    def __init__(self, name: str, places: int) -> None:
        self.name = f"cmwq:{name}"
        self._places = places

    async def setup(self, worker: Any) -> None:
        await worker.set_resources(**{self.name: self._places})


def _pickled(fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    if not callable(fn):
        raise TypeError(f"a work calls a function, not {fn!r:.100}")
    if inspect.iscoroutinefunction(fn):
        raise TypeError(f"{fn!r:.100} is a coroutine function; works are calls of plain functions, on threads")
    return Call.of(str(getattr(fn, "__qualname__", type(fn).__qualname__)), fn, args, kwargs)


def _checked(name: str, limit: int | None) -> int | None:
    if limit is None:
        return None
    if isinstance(limit, bool) or not isinstance(limit, int):
        raise TypeError(f"queue {name!r}: max_active is {limit!r:.50}, and must be an integer or None")
    if limit < 1:
        raise ValueError(f"queue {name!r}: max_active is {limit}, and must be at least 1")
    return limit
