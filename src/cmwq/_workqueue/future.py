"""Future: the result of one submitted call. It is also the queued item: `submit` makes one object.

A future is guarded by its pool's lock, which the worker takes between two items anyway, so no lock and no condition
variable is made until a thread waits (`Audience`). Guarantees: to its users it is a `concurrent.futures.Future`; each
thread that waits is told of the end once, after `done()` is true, and a flush returns only then. The letters are those
of `pool`.
"""

from __future__ import annotations

import concurrent.futures as cf
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures._base import (
    _STATE_TO_DESCRIPTION_MAP,
    CANCELLED,
    CANCELLED_AND_NOTIFIED,
    FINISHED,
    PENDING,
    RUNNING,
)
from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from cmwq._core import checks
from cmwq._core.held import holding, outside
from cmwq._core.naming import called, name_of
from cmwq._core.records import FutureRecord
from cmwq._core.surely import ask_for_depth, at_any_depth
from cmwq._errors import CmwqTimeout, Refused, own, refused_by_us
from cmwq._pool import events
from cmwq._pool.item import lay_out
from cmwq._pool.worker import current_worker
from cmwq._workqueue.audience import Audience, is_to_be_raised
from cmwq._workqueue.readers import Over, Readers, readers_of
from cmwq._workqueue.unfetched import Unfetched
from cmwq._workqueue.wait import check_may_wait, needs_of, park_until, wait_for

if TYPE_CHECKING:
    from cmwq._core.ports import Parker
    from cmwq._pool.item import Item
    from cmwq._pool.pool import WorkerPool
    from cmwq._pool.worker import Worker
    from cmwq._workqueue.phase import Phase
    from cmwq._workqueue.pwq import PoolWorkQueue
    from cmwq._workqueue.queue import WorkQueue
    from cmwq._workqueue.room import Room
    from cmwq._workqueue.wait import Target

T = TypeVar("T")
_DONE = (CANCELLED, CANCELLED_AND_NOTIFIED, FINISHED)


class Future(cf.Future[T], FutureRecord):
    """The result of one submitted call. Use it as a `concurrent.futures.Future`; it is only lighter inside.

    Thread-safe. `cancel` takes back a call that has not begun. Timeouts are in seconds; `result` and `exception` raise
    TimeoutError after one, CancelledError if the call was cancelled, Abandoned if the runtime ended first, and, in the
    child of a fork, ForeignProcess if the parent's call had not ended. A worker that waits in `result()` counts as
    blocked at once and lends its place under `max_active`, so nested submit-and-wait does not deadlock. If it would
    wait for itself (for a later call of its own ordered queue, say) it gets FlushDeadlock. If no thread can be created
    to begin what it waits for, and every thread that could begin it waits in the same way, it gets ThreadLimit.

    Outside workers, `result()` of a call that runs while other calls wait may return up to a millisecond after its end:
    a thread that takes many results in a row is not woken for each.
    """

    # The fields are in `FutureRecord`, and so is their state in a new future.
    phase: Phase  # I once queued
    _state: str  # L to change; read freely
    _result: T | None  # S: set by the worker that runs it, before _state becomes FINISHED
    _exception: BaseException | None  # S: likewise
    _audience: Audience | None  # L
    _call: tuple[Any, ...] | None  # dropped when run or cancelled, so that nothing is kept alive
    _kwargs: dict[str, Any] | None  # likewise
    _context: Context | None  # likewise
    follower = None
    accepted = False
    answers: Sequence[Any] = ()
    work = None
    lent = False

    def __init__(self, phase: Phase, call: tuple[Any, ...], kwargs: dict[str, Any], context: Context) -> None:
        """call: the function and its positional arguments."""
        self.phase = phase  # I once queued
        self._call = call  # L
        self._context = context  # L
        if kwargs:
            self._kwargs = kwargs  # L

    @property
    def pwq(self) -> PoolWorkQueue:
        return self.phase.pwq

    @property
    def queue(self) -> WorkQueue:
        return self.phase.pwq.wq

    @property
    def function(self) -> object:
        call = self._call  # read once: the call may end at any moment
        return None if call is None else called(call)

    # ------------------------------------------------------------------------------- item

    @property
    def withdrawn(self) -> bool:
        return self._state != PENDING

    @holding("self.pwq.pool.lock")
    def claim(self, worker: Worker) -> bool:
        if self._state != PENDING:
            self.phase.pwq.pass_over()
            return False
        self._state = RUNNING
        return True

    @outside
    def run(self) -> None:
        try:
            if self._kwargs is None:
                self._result = self._context.run(*self._call)  # type: ignore
            else:
                self._result = self._context.run(*self._call, **self._kwargs)  # type: ignore
                self._kwargs = None
        except BaseException as exc:
            self._failed(exc)
            self = None  # type: ignore[assignment]  # break the cycle through the traceback
        else:
            self._call = self._context = None

    @outside
    def _failed(self, exc: BaseException) -> None:
        """The call raised this. Context: its worker."""
        if self._exception is None:  # else the call was abandoned, and the threads that wait have been told
            self._exception = exc
            if self.phase.pwq.wq.runtime.on_unfetched is not None:
                self._note_unfetched(exc)
        self.phase.pwq.note_failed()
        self._call = self._context = self._kwargs = None

    @property
    def begun(self) -> bool:
        return self._state in (RUNNING, FINISHED)

    @property
    def raised(self) -> type[BaseException] | None:
        return None if self._exception is None else type(self._exception)

    @holding("self.pwq.pool.lock")
    def end(self) -> Audience | None:
        audience = self._audience
        if audience is not None:
            if audience.callbacks or audience.readers is not None:
                return audience
            self._state = FINISHED  # first: `wake` may unpark at once, and that thread reads it without the lock
            lock = self.phase.pwq.pool.lock
            for parker in audience.parkers:
                lock.wake(parker)
        else:
            self._state = FINISHED
        self.phase.retire()
        return None

    @outside
    def abort(self, exc: BaseException) -> None:
        with self.phase.pwq.pool.lock:
            if self._call is not None and self._exception is None:
                self._exception = exc
            self._call = self._context = self._kwargs = None
            audience = self._audience
            if audience is None:
                self._state = FINISHED
        if audience is not None:
            audience.announce(self)

    @holding("self.pwq.pool.lock")
    def be_over(self) -> None:
        pass

    @holding("self.pwq.pool.lock")
    def settle_place(self, *, listed: bool, follows: bool) -> bool:
        return True

    @holding("self.pwq.pool.lock")
    def be_executing(self) -> None:
        pass

    @outside
    def be_abandoned(self, exc: BaseException) -> None:
        """The runtime has ended while the call runs: the threads that wait get this exception, whatever the call does
        later.
        """
        with self.phase.pwq.pool.lock:
            if self._state != RUNNING:
                return
            self._exception = exc
            audience = self._audience
            if audience is None:
                self._state = FINISHED
        if audience is not None:
            audience.announce(self)

    @outside
    def refuse(self, exc: BaseException) -> None:
        """The call was to be queued later and could not be: this exception is its outcome."""
        with self.phase.pwq.pool.lock:
            if self._state != PENDING:
                return
            self._state = RUNNING
        self.abort(exc)

    @holding("self.pwq.pool.lock")
    def retire(self) -> None:
        self.phase.retire()

    def describe(self) -> str:
        function = self.function
        name = "a call that has ended" if function is None else f"call {name_of(function)}"
        return f"{name} of queue {self.queue.name!r}"

    def _note_unfetched(self, exc: BaseException) -> None:
        """Remember the exception for `on_unfetched`, which is called if nobody looks at it."""
        unfetched = Unfetched(self.phase.pwq.wq.runtime, self.describe(), exc)
        self._result = unfetched  # type: ignore[assignment]  # the attribute is free, because the call failed
        audience = self._audience
        # Read last. `add_done_callback` sets `calls_back` before it looks for the `Unfetched`, so one of the two sees
        # what the other did.
        if audience is not None and audience.calls_back:
            unfetched.seen = True

    def _be_fetched(self) -> None:
        unfetched = self._result
        if type(unfetched) is Unfetched:
            unfetched.seen = True

    # ------------------------------------------------------------------------------- target of a wait

    def attach(self, parker: Parker) -> bool:
        with self.phase.pwq.pool.lock:
            if self._state in _DONE:
                return False
            self._listeners().parkers.append(parker)
            return True

    def detach(self, parker: Parker) -> None:
        with self.phase.pwq.pool.lock:
            if self._state not in _DONE and self._audience is not None and parker in self._audience.parkers:
                self._audience.parkers.remove(parker)

    def needs(self, waiting: dict[Item, Target]) -> Iterator[Item]:
        return needs_of(self, waiting)

    def lacks_workers(self) -> Collection[WorkerPool]:
        return (self.phase.pwq.pool,) if self._state == PENDING else ()

    def describe_wait(self) -> str:
        return f"waits for the result of {self.describe()}"

    # ------------------------------------------------------------------------------- concurrent.futures.Future

    @holding("self.pwq.pool.lock")
    def _listeners(self) -> Audience:
        if self._audience is None:
            self._audience = Audience()
        return self._audience

    @property
    def _condition(self) -> Readers | Over:  # type: ignore[override]  # an attribute in typeshed; here made when needed
        audience = self._audience
        return readers_of(self) if audience is None or audience.readers is None else audience.readers

    @property
    def _waiters(self) -> Readers | Over:  # type: ignore[override]  # likewise
        return self._condition

    def cancel(self) -> bool:
        """Take the call back if it has not begun. True: it will not run. False: it runs, or has ended. Does not wait.

        If a finaliser or a signal handler calls this in the middle of cmwq's own code on this thread, the cancelling is
        deferred until that code is done, and True means only that the call had not begun yet.
        """
        me = object()
        ask_for_depth()
        try:
            cancelled = self._decide_to_cancel(me)
            self._announce_cancelled(me)
        except BaseException as exc:
            if not refused_by_us(exc):
                at_any_depth(self._announce_cancelled, me)  # if this call decided, it finishes the job
                raise
            if self._state == PENDING:
                self.phase.pwq.pool.host.defer(self.cancel)
            return self._state not in (RUNNING, FINISHED)
        return cancelled

    def _decide_to_cancel(self, canceller: object) -> bool:
        with self.phase.pwq.pool.lock:
            if self._state in (RUNNING, FINISHED):
                return False
            if self._state != PENDING:
                return True
            audience = self._audience
            if audience is not None:
                audience.canceller = canceller
            self._state = CANCELLED_AND_NOTIFIED if audience is None else CANCELLED
            self._withdraw()
            held = self._call, self._kwargs, self._context  # dropped without the lock: finalisers are user code
            self._call = self._kwargs = self._context = None
        del held
        return True

    def _announce_cancelled(self, canceller: object) -> None:
        audience = self._audience
        if audience is not None and audience.canceller is canceller and self.cancelled():
            audience.announce(self)

    @holding("self.pwq.pool.lock")
    def _withdraw(self) -> None:
        if self.phase.pwq.observed:
            events.cancelled(self)
        self.phase.withdraw(self)

    def cancelled(self) -> bool:
        return self._state in (CANCELLED, CANCELLED_AND_NOTIFIED)

    def running(self) -> bool:
        return self._state == RUNNING

    def done(self) -> bool:
        return self._state in _DONE

    def add_done_callback(self, fn: Callable[[cf.Future[T]], object]) -> None:
        try:
            with self.phase.pwq.pool.lock:
                if self._state not in _DONE:
                    audience = self._listeners()
                    audience.calls_back = True
                    audience.callbacks.append(fn)
                    self._be_fetched()
                    return
        except Refused as exc:
            own(exc)
            self.phase.pwq.pool.host.defer(partial(self.add_done_callback, fn))
            return
        self._be_fetched()
        try:
            fn(self)
        except BaseException as exc:
            if is_to_be_raised(exc, self):
                raise

    def result(self, timeout: float | None = None) -> T:
        if self._state not in _DONE:
            self._wait(timeout)
        if self._state != FINISHED:
            raise cf.CancelledError()
        if self._exception is not None:
            self._be_fetched()
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
        if self._exception is not None:
            self._be_fetched()
        return self._exception

    # Users may not call these: they would change the state behind the back of the call and its worker.

    def set_running_or_notify_cancel(self) -> bool:
        raise cf.InvalidStateError(f"{self!r} is run by a worker, which alone says that it has begun")

    def set_result(self, result: T) -> None:
        raise cf.InvalidStateError(f"{self!r} gets the result of its call; make a concurrent.futures.Future to set one")

    def set_exception(self, exception: BaseException | None) -> None:
        raise cf.InvalidStateError(f"{self!r} gets what its call raises; make a concurrent.futures.Future to set one")

    def _wait(self, timeout: float | None) -> None:
        """Return once the call is done.

        Raises TimeoutError after `timeout` seconds, and ForeignProcess if the call can never be done in this process.
        """
        timeout = checks.timeout(timeout)
        pwq = self.phase.pwq
        runtime = pwq.wq.runtime
        runtime.check_alive(pwq.pool, self)
        host = runtime.host
        check_may_wait(host)
        parker = host.parker()
        if timeout is None and current_worker() is None:  # no work waits here, so this is the fast path
            try:
                if self._state == RUNNING and pwq.pool.worklist:
                    pwq.pool.nap(parker)
                if self.attach(parker):
                    park_until(self.done, parker, host, None, spins=pwq.pool.nr_running <= 1)
            except BaseException:
                at_any_depth(self.detach, parker)
                raise
            return
        deadline = None if timeout is None else host.monotonic() + timeout
        if not wait_for(self, parker, runtime, deadline):
            raise CmwqTimeout(f"no result within {timeout} s: {self!r}")

    def __repr__(self) -> str:
        return f"<cmwq.Future {_STATE_TO_DESCRIPTION_MAP[self._state]} of queue {self.queue.name!r}>"


ATTRIBUTES = "phase", "_call", "_context", "_state", "_result", "_kwargs", "_exception", "_audience"
"""The attributes that any future may have: see `lay_out`."""

lay_out(Future, *ATTRIBUTES)


class BoundedFuture(Future[T]):
    """A future of a queue with `max_pending`: until it begins, it has a place in the queue's room."""

    _room: Room

    @holding("self.pwq.pool.lock")
    def claim(self, worker: Worker) -> bool:
        if not super().claim(worker):
            return False
        self._room.give(self)
        return True

    @outside
    def abort(self, exc: BaseException) -> None:
        self._room.give(self)
        super().abort(exc)

    def _announce_cancelled(self, canceller: object) -> None:
        if self.cancelled():
            self._room.give(self)
        super()._announce_cancelled(canceller)


lay_out(BoundedFuture, *ATTRIBUTES, "_room")
