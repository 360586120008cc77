"""What can be queued: a call with a result (`Future`), and a `Work`, made once and queued many times.

An item is one queueing of something on one pool. `Item` is what the worker loop needs of it. A future *is* its item:
one object per `submit`. A future's lock is its pool's lock, which the worker takes anyway between two items; so no lock
and no condition variable is made until somebody waits (`Audience`). The letters are those of `pool`.
"""

from __future__ import annotations

import concurrent.futures as cf
import logging
from collections.abc import Callable
from concurrent.futures._base import CANCELLED, CANCELLED_AND_NOTIFIED, FINISHED, PENDING, RUNNING
from contextvars import Context, copy_context
from threading import Condition
from threading import Lock as _Bit
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from cmwq._core.wait import wait_until
from cmwq._core.worker import current_worker
from cmwq._errors import CmwqTimeout

if TYPE_CHECKING:
    from cmwq._core.pool import WorkerPool
    from cmwq._core.ports import Parker
    from cmwq._core.queue import Phase, PoolWorkQueue, WorkQueue
    from cmwq._core.worker import Worker

T = TypeVar("T")
_log = logging.getLogger("cmwq")
_DONE = (CANCELLED, CANCELLED_AND_NOTIFIED, FINISHED)


class Item(Protocol):
    """One queueing, as the worker loop sees it."""

    @property
    def pwq(self) -> PoolWorkQueue:
        """Through which queue it came, to which pool."""
        ...

    @property
    def queue(self) -> WorkQueue: ...
    @property
    def exempt(self) -> bool:
        """It doesn't count as running (A8)."""
        ...

    def claim(self, worker: Worker) -> bool:
        """About to run. False: it is not to be run, and was retired.  Context: lock held."""
        ...

    def run(self) -> None:
        """Call the function. Never raises.  Context: lock not held."""
        ...

    def retire(self) -> Audience | None:
        """It ended. Returns who waits to hear of it.  Context: lock held."""
        ...


class Audience:
    """Who waits for one future: made when the first of them comes."""

    __slots__ = ("callbacks", "condition", "parkers", "waiters")

    def __init__(self) -> None:
        self.parkers: list[Parker] = []  # L: threads in result() or exception()
        self.callbacks: list[Callable[[Any], object]] = []  # L: add_done_callback
        self.condition: Condition | None = None  # L: made for concurrent.futures.wait and as_completed
        self.waiters: list[Any] = []  # its own condition's lock: theirs

    def announce(self, future: Any) -> None:
        """The future is done, and everybody hears of it once.  Context: lock not held."""
        for parker in self.parkers:
            parker.unpark()
        if self.condition is not None:
            with self.condition:
                for waiter in self.waiters:
                    if future._state == FINISHED and future._exception is None:
                        waiter.add_result(future)
                    elif future._state == FINISHED:
                        waiter.add_exception(future)
                    else:
                        waiter.add_cancelled(future)
                self.condition.notify_all()
        for callback in self.callbacks:
            _call_back(callback, future)


def _call_back(callback: Callable[[Any], object], future: Any) -> None:
    try:
        callback(future)
    except Exception:
        _log.exception("exception calling callback for %r", future)


class Future(cf.Future[T]):
    """The result to come of one submitted call. A `concurrent.futures.Future` to every consumer; lighter inside.

    Thread-safe. Cancelling takes back a call that has not begun. A worker that waits in `result()` is known to be
    blocked at once and lends its place under `max_active`, so nested submit-and-wait does not deadlock.
    """

    # Class attributes are the state of a future nobody has touched: creating one stores only what differs.
    _state: str = PENDING  # L to change; read freely
    _result: T | None = None  # the running worker, before _state becomes FINISHED
    _exception: BaseException | None = None  # likewise
    _audience: Audience | None = None  # L

    def __init__(
        self, phase: Phase, fn: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any], context: Context
    ) -> None:
        self._phase = phase  # I once queued
        self._fn: Callable[..., T] | None = fn  # dropped when run or cancelled, and what it refers to with it
        self._args: tuple[Any, ...] = args
        self._kwargs: dict[str, Any] | None = kwargs
        self._context: Context | None = context

    @property
    def pwq(self) -> PoolWorkQueue:
        return self._phase.pwq

    @property
    def queue(self) -> WorkQueue:
        return self._phase.pwq.wq

    @property
    def exempt(self) -> bool:
        return self._phase.pwq.exempt

    # ------------------------------------------------------------------------------- item

    def claim(self, worker: Worker) -> bool:
        if self._state != PENDING:
            self._phase.retire()
            return False
        self._state = RUNNING
        return True

    def run(self) -> None:
        try:
            self._result = self._context.run(self._fn, *self._args, **self._kwargs)  # type: ignore
        except BaseException as exc:
            self._exception = exc
        self._fn = self._context = self._kwargs = None
        self._args = ()

    def retire(self) -> Audience | None:
        self._state = FINISHED
        self._phase.retire()
        return self._audience

    # ------------------------------------------------------------------------------- concurrent.futures.Future

    def _listeners(self) -> Audience:
        """Context: pool lock held."""
        if self._audience is None:
            self._audience = Audience()
        return self._audience

    @property
    def _condition(self) -> Condition:  # type: ignore[override]  # made on demand: there an attribute, only read
        with self._phase.pwq.pool.lock:
            audience = self._listeners()
            if audience.condition is None:
                audience.condition = Condition()
            return audience.condition

    @property
    def _waiters(self) -> list[Any]:  # type: ignore[override]  # likewise
        with self._phase.pwq.pool.lock:
            return self._listeners().waiters

    def cancel(self) -> bool:
        with self._phase.pwq.pool.lock:
            if self._state in (RUNNING, FINISHED):
                return False
            if self._state != PENDING:
                return True
            # It stays in its list, as a place that claim() passes over.
            self._state = CANCELLED_AND_NOTIFIED
            self._fn = self._context = self._kwargs = None
            self._args = ()
            audience = self._audience
        if audience is not None:
            audience.announce(self)
        return True

    def cancelled(self) -> bool:
        return self._state in (CANCELLED, CANCELLED_AND_NOTIFIED)

    def running(self) -> bool:
        return self._state == RUNNING

    def done(self) -> bool:
        return self._state in _DONE

    def add_done_callback(self, fn: Callable[[cf.Future[T]], object]) -> None:
        with self._phase.pwq.pool.lock:
            if self._state not in _DONE:
                self._listeners().callbacks.append(fn)
                return
        _call_back(fn, self)

    def result(self, timeout: float | None = None) -> T:
        if self._state not in _DONE:
            self._wait(timeout)
        if self._state != FINISHED:
            raise cf.CancelledError()
        if self._exception is not None:
            try:
                raise self._exception
            finally:
                self = None  # type: ignore[assignment]  # break the cycle through the traceback
        return self._result  # type: ignore[return-value]

    def exception(self, timeout: float | None = None) -> BaseException | None:
        if self._state not in _DONE:
            self._wait(timeout)
        if self._state != FINISHED:
            raise cf.CancelledError()
        return self._exception

    def _wait(self, timeout: float | None) -> None:
        """Return once done.

        Raises TimeoutError after `timeout` seconds, ForeignProcess if it can never be done here.
        """
        pwq = self._phase.pwq
        host = pwq.pool.host
        pwq.wq.runtime.check_alive(pwq.pool, self)
        with pwq.pool.lock:
            if self._state in _DONE:
                return
            parker = host.parker()
            self._listeners().parkers.append(parker)
        deadline = None if timeout is None else host.monotonic() + timeout
        if not wait_until(self.done, parker, host, deadline):
            raise CmwqTimeout(f"no result within {timeout} s: {self!r}")

    def __repr__(self) -> str:
        return f"<cmwq.Future {self._state.lower()} of queue {self.queue.name!r}>"


class Work:
    """A call made once and queued many times: `wq.queue(work)`.

    From queueing until just before the call it is pending, and queueing it again is coalesced (E4). It never runs twice
    at the same time, wherever it is queued (E3). It may be requeued or dropped by its own function (E5).
    `fn(*args, **kwargs)` runs in a copy of the context of whoever queued it; its exception is logged, or handed to the
    queue's `on_error`. Thread-safe.
    """

    __slots__ = ("__weakref__", "_args", "_bit", "_fn", "_kwargs", "_last")

    def __init__(self, fn: Callable[..., object], /, *args: Any, **kwargs: Any) -> None:
        if not callable(fn):
            raise TypeError(f"Work takes a callable, not {fn!r}")
        self._fn = fn
        self._args = args
        self._kwargs = kwargs
        # The pending bit. A lock that is never waited for is a test-and-set with the memory order of E6.
        self._bit = _Bit()
        self._last: WorkerPool | None = None  # where it ran last: only there can it still be running (E3)

    @property
    def pending(self) -> bool:
        """Queued, and not begun since."""
        return self._bit.locked()

    @property
    def running(self) -> bool:
        """Being executed right now."""
        pool = self._last
        if pool is None:
            return False
        with pool.lock:
            return self in pool.busy_works

    def __repr__(self) -> str:
        name = getattr(self._fn, "__qualname__", repr(self._fn))
        return f"<cmwq.Work {name}{' pending' * self.pending}{' running' * self.running}>"


class Queued:
    """One queueing of a Work."""

    __slots__ = ("_context", "_phase", "follower", "work")

    def __init__(self, work: Work, phase: Phase) -> None:
        self.work = work  # I
        self._phase = phase  # I
        self._context = copy_context()  # I
        self.follower: Queued | None = None  # L: the next queueing, which collided with this execution (E3)

    @property
    def pwq(self) -> PoolWorkQueue:
        return self._phase.pwq

    @property
    def queue(self) -> WorkQueue:
        return self._phase.pwq.wq

    @property
    def exempt(self) -> bool:
        return self._phase.pwq.exempt

    def claim(self, worker: Worker) -> bool:
        pool = worker.pool
        busy = pool.busy_works.get(self.work)
        if busy is not None and isinstance(busy.item, Queued):
            # At most one can be waiting: the pending bit is still set.
            busy.item.follower = self
            return False
        pool.busy_works[self.work] = worker
        self.work._last = pool
        self.work._bit.release()  # E4: cleared before the function runs
        return True

    def run(self) -> None:
        work = self.work
        try:
            self._context.run(work._fn, *work._args, **work._kwargs)
        except BaseException as exc:
            self.queue.work_failed(work, exc)

    def retire(self) -> Audience | None:
        pool = self._phase.pwq.pool
        del pool.busy_works[self.work]
        if self.follower is not None:
            pool.worklist.appendleft(self.follower)
            self.follower = None
        self._phase.retire()
        return None


def current_work() -> Any:
    """What this thread is executing: a `Work`, the `Future` of a submitted call, or None outside a worker."""
    worker = current_worker()
    item = worker.item if worker is not None else None
    return item.work if isinstance(item, Queued) else item


def insert(pwq: PoolWorkQueue, item: Future[Any] | Queued) -> None:
    """Hand an item to the pool: listed if `max_active` allows it (E1), a worker woken if one is needed (A4)."""
    pool = pwq.pool
    with pool.lock:
        pwq.check_open()
        phase = item._phase = pwq.phase
        phase.count += 1
        if pwq.nr_active >= pwq.max_active or pwq.inactive:
            pwq.inactive.append(item)
            return
        pwq.nr_active += 1
        pool.worklist.append(item)
        woken = pool.kick_or_look_out()
    if woken is not None:
        woken.parker.unpark()
