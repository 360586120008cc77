"""Future: the result to come of one submitted call. It *is* the queued item: one object per `submit`.

A future's lock is its pool's lock, which the worker takes anyway between two items; so no lock and no condition
variable is made until somebody waits (`Audience`). Guarantees: a `concurrent.futures.Future` to every consumer; whoever
waits hears of the end once, after `done()` is true; a flush returns only then. The letters are those of `pool`.
"""

from __future__ import annotations

import concurrent.futures as cf
import logging
from collections.abc import Callable, Collection, Iterator
from concurrent.futures._base import CANCELLED, CANCELLED_AND_NOTIFIED, FINISHED, PENDING, RUNNING
from contextvars import Context
from functools import partial
from itertools import repeat
from operator import call, methodcaller
from threading import Condition
from typing import TYPE_CHECKING, Any, TypeVar

from cmwq._core import checks, events
from cmwq._core.item import lay_out, name_of
from cmwq._core.lending import Waiters
from cmwq._core.unfetched import Unfetched
from cmwq._core.wait import check_may_wait, needs_of, park_until, wait_for
from cmwq._core.worker import current_worker
from cmwq._errors import CmwqTimeout, Reentered

if TYPE_CHECKING:
    from cmwq._core.item import Item
    from cmwq._core.pool import WorkerPool
    from cmwq._core.ports import Parker
    from cmwq._core.pwq import Phase, PoolWorkQueue
    from cmwq._core.queue import WorkQueue
    from cmwq._core.queued import Queued
    from cmwq._core.room import Room
    from cmwq._core.wait import Target
    from cmwq._core.work import Work
    from cmwq._core.worker import Worker

T = TypeVar("T")
_log = logging.getLogger("cmwq")
_DONE = (CANCELLED, CANCELLED_AND_NOTIFIED, FINISHED)


class Audience:
    """Who waits for one future: made when the first of them comes."""

    __slots__ = ("callbacks", "calls_back", "canceller", "condition", "parkers", "untold", "waiters")

    def __init__(self) -> None:
        self.parkers: list[Parker] = []  # L: threads in result() or exception()
        self.canceller: object = None  # L: which call of `cancel` decided, and is to announce it
        self.callbacks: list[Callable[[Any], object]] = []  # L: add_done_callback
        self.calls_back = False  # L: somebody called that
        self.condition: Condition | None = None  # L: made for concurrent.futures.wait and as_completed
        self.waiters: list[Any] | None = None  # its own condition's lock: theirs, made for the first
        self.untold: list[Any] | None = None  # the condition: those of them that are to be told; None: it is not done

    def announce(self, future: Any) -> None:
        """The call ended: let the future be done, and tell everybody once.  Context: lock not held.

        `concurrent.futures.wait` looks at the state several times while it holds the condition, and relies on its being
        the same. So where there is a condition the state changes under it. Order: condition < L.

        If it was interrupted it may be called again, and goes on where it was.
        """
        lock = future._phase.pwq.pool.lock
        final = CANCELLED_AND_NOTIFIED if future.cancelled() else FINISHED
        with lock:
            condition = self.condition
            if condition is None:
                future._state = final
        if condition is not None:
            holding = _Holding(condition)
            with holding, holding:
                holding.take()
                with lock:
                    future._state = final
                if self.untold is None:
                    self.untold = list(self.waiters or ())  # they take themselves off theirs, later
                told = "add_cancelled" if final is CANCELLED_AND_NOTIFIED else "add_result"
                if future._exception is not None:
                    told = "add_exception"
                telling = map(methodcaller(told, future), _taken(self.untold))
                while self.untold:
                    waiter = self.untold[0]
                    try:
                        next(telling)
                    except MemoryError as exc:
                        _put_back(exc, waiter, self.untold)
                        waiter.event.set()  # in its middle: let it look, rather than wait for ever
                        raise
        for parker in self.parkers:  # it is done, so nobody changes the list any more
            parker.unpark()
        if not self.callbacks:
            return
        raised: BaseException | None = None
        calling = map(call, _taken(self.callbacks), repeat(future))
        while self.callbacks:
            nr, callback = len(self.callbacks), self.callbacks[0]
            try:
                next(calling)
            except BaseException as exc:
                _put_back(exc, callback, self.callbacks)
                if len(self.callbacks) == nr:
                    raise  # it was not called; whoever calls this does so again
                if _is_to_be_raised(exc, future):
                    raised = exc  # when the others have been called
        if raised is not None:
            try:
                raise raised
            finally:
                raised = None  # break the cycle through the traceback


def _taken(things: list[Any]) -> Iterator[Any]:
    """Takes the first of the things off the list at each step. For `map` to call what is taken, or something with it.

    There is no bytecode in between: wherever a step of that map is interrupted, either the thing is on the list still,
    or the call was made. Where there was no memory for the call, `_put_back` sees to that.
    """
    return map(things.pop, repeat(0))


def _put_back(exc: BaseException, thing: Any, things: list[Any]) -> None:
    """A step ended with that exception: if it could not make its call, the thing is the first of the list again.

    Context: the function that took the step.
    """
    unmade = isinstance(exc, MemoryError) and exc.__traceback__ is not None and exc.__traceback__.tb_next is None
    if unmade and not (things and things[0] is thing):
        things.insert(0, thing)


CONDITION = 0.25
"""Seconds for which who announces a result waits for its condition."""


class _Holding:
    """The condition held, if it can be had within `CONDITION`. Written twice in one `with`, see `surely`.

    `concurrent.futures.wait` holds it for microseconds. But one Ctrl-C in its loop that takes the conditions of many
    futures, and it never lets go of those it had; nobody who announces is to hang for that.
    """

    __slots__ = ("_condition", "_theirs")

    def __init__(self, condition: Condition) -> None:
        self._condition = condition
        self._theirs = condition._is_owned()  # type: ignore[attr-defined]  # by a frame of this thread that we interrupt

    def __enter__(self) -> None:
        pass

    def take(self) -> None:
        if not self._condition._is_owned():  # type: ignore[attr-defined]
            self._condition.acquire(timeout=CONDITION)

    def __exit__(self, *exc_info: object) -> None:
        if not self._theirs and self._condition._is_owned():  # type: ignore[attr-defined]
            self._condition.notify_all()
            self._condition.release()


def _is_to_be_raised(exc: BaseException, future: Any) -> bool:
    """Of what a callback raised: Ctrl-C in the main thread, say. Whatever else it is is nobody's but the log's (B4)."""
    if not isinstance(exc, Exception) and current_worker() is None:
        return True
    _log.error("exception calling callback for %r", future, exc_info=exc)
    return False


class Future(cf.Future[T]):
    """The result to come of one submitted call. A `concurrent.futures.Future` to every consumer; lighter inside.

    Thread-safe. Cancelling takes back a call that has not begun. A worker that waits in `result()` is known to be
    blocked at once and lends its place under `max_active`, so nested submit-and-wait does not deadlock; where it would
    wait for itself (a later call of its own ordered queue, say) it gets FlushDeadlock, and ThreadLimit where no thread
    can be had to begin what it waits for, and all who could wait likewise. Outside workers, `result()` of a
    call that runs already while others wait may return up to a millisecond after its end: who takes many results in a
    row is not woken for each.
    """

    # Class attributes are the state of a future nobody has touched: creating one stores only what differs.
    _state: str = PENDING  # L to change; read freely
    _result: T | None = None  # the running worker, before _state becomes FINISHED
    _exception: BaseException | None = None  # likewise
    _audience: Audience | None = None  # L
    _call: tuple[Any, ...] | None = None  # dropped when run or cancelled, and what it refers to with it
    _kwargs: dict[str, Any] | None = None  # likewise
    _context: Context | None = None  # likewise
    follower = None
    accepted = False
    work = None
    lent = parked = False

    def __init__(self, phase: Phase, call: tuple[Any, ...], kwargs: dict[str, Any], context: Context) -> None:
        """call: the function and its positional arguments."""
        self._phase = phase  # I once queued
        self._call = call
        self._context = context
        if kwargs:
            self._kwargs = kwargs

    @property
    def pwq(self) -> PoolWorkQueue:
        return self._phase.pwq

    @property
    def queue(self) -> WorkQueue:
        return self._phase.pwq.wq

    @property
    def function(self) -> object:
        call = self._call  # it may end at any moment
        return None if call is None else call[0]

    @property
    def exempt(self) -> bool:
        return self._phase.pwq.exempt

    # ------------------------------------------------------------------------------- item

    @property
    def withdrawn(self) -> bool:
        return self._state != PENDING

    def claim(self, worker: Worker) -> bool:
        if self._state != PENDING:
            self._phase.pwq.pass_over()
            return False
        self._state = RUNNING
        return True

    def run(self) -> None:
        try:
            if self._kwargs is None:
                self._result = self._context.run(*self._call)  # type: ignore
            else:
                self._result = self._context.run(*self._call, **self._kwargs)  # type: ignore
                self._kwargs = None
        except BaseException as exc:
            if self._exception is None:  # else it was left behind, and whoever waits has been told so
                self._exception = exc
                if self._phase.pwq.wq.runtime.on_unfetched is not None:
                    self._note_unfetched(exc)
            self._call = self._context = self._kwargs = None
            self = None  # type: ignore[assignment]  # break the cycle through the traceback
        else:
            self._call = self._context = None

    @property
    def begun(self) -> bool:
        return self._state in (RUNNING, FINISHED)

    @property
    def raised(self) -> type[BaseException] | None:
        return None if self._exception is None else type(self._exception)

    def end(self) -> Audience | None:
        audience = self._audience
        if audience is not None:
            if audience.callbacks or audience.condition is not None:
                return audience
            lock = self._phase.pwq.pool.lock
            for parker in audience.parkers:
                lock.wake(parker)
        self._state = FINISHED
        self._phase.retire()
        return None

    def abort(self, exc: BaseException) -> None:
        with self._phase.pwq.pool.lock:
            if self._call is not None and self._exception is None:
                self._exception = exc
            self._call = self._context = self._kwargs = None
            audience = self._audience
            if audience is None:
                self._state = FINISHED
        if audience is not None:
            audience.announce(self)

    def be_over(self) -> None:
        pass

    def be_abandoned(self, exc: BaseException) -> None:
        """Its runtime has ended and left it behind: whoever waits is told this, whatever becomes of the call.

        Context: lock not held.
        """
        with self._phase.pwq.pool.lock:
            if self._state != RUNNING:
                return
            self._exception = exc
            audience = self._audience
            if audience is None:
                self._state = FINISHED
        if audience is not None:
            audience.announce(self)

    def refuse(self, exc: BaseException) -> None:
        """It was to be queued later, and could not: that is its end.  Context: lock not held."""
        with self._phase.pwq.pool.lock:
            if self._state != PENDING:
                return
            self._state = RUNNING
        self.abort(exc)

    def retire(self) -> None:
        self._phase.retire()

    def describe(self) -> str:
        return f"call {name_of(self.function)} of queue {self.queue.name!r}"

    def _note_unfetched(self, exc: BaseException) -> None:
        """There is a hook that wants to know if nobody looks."""
        unfetched = Unfetched(self._phase.pwq.wq.runtime, self.describe(), exc)
        self._result = unfetched  # type: ignore[assignment]  # a place that is free: it failed
        audience = self._audience
        # Looked at last; who adds a callback says so first, and looks for the other then: one of the two sees it.
        if audience is not None and audience.calls_back:
            unfetched.seen = True

    def _be_fetched(self) -> None:
        unfetched = self._result
        if type(unfetched) is Unfetched:
            unfetched.seen = True

    # ------------------------------------------------------------------------------- target of a wait

    def attach(self, parker: Parker) -> bool:
        with self._phase.pwq.pool.lock:
            if self._state in _DONE:
                return False
            self._listeners().parkers.append(parker)
            return True

    def detach(self, parker: Parker) -> None:
        with self._phase.pwq.pool.lock:
            if self._state not in _DONE and self._audience is not None and parker in self._audience.parkers:
                self._audience.parkers.remove(parker)

    def needs(self, waiting: dict[Item, Target]) -> Iterator[Item]:
        return needs_of(self, waiting)

    def lacks_workers(self) -> Collection[WorkerPool]:
        return (self._phase.pwq.pool,) if self._state == PENDING else ()

    def describe_wait(self) -> str:
        return f"waits for the result of {self.describe()}"

    # ------------------------------------------------------------------------------- concurrent.futures.Future

    def _listeners(self) -> Audience:
        """Context: pool lock held."""
        if self._audience is None:
            self._audience = Audience()
        return self._audience

    @property
    def _condition(self) -> Condition:  # type: ignore[override]  # typeshed: an attribute; here made when first asked for
        with self._phase.pwq.pool.lock:
            audience = self._listeners()
            if audience.condition is None:
                audience.condition = Condition()
            return audience.condition

    @property
    def _waiters(self) -> list[Any]:  # type: ignore[override]  # likewise
        with self._phase.pwq.pool.lock:
            audience = self._listeners()
            if audience.waiters is None:
                audience.waiters = Waiters()
            return audience.waiters

    def cancel(self) -> bool:
        """Take the call back if it has not begun. True: it won't run; False: it runs, or has ended.

        Called by a finaliser or a signal handler in the middle of cmwq's own code on this thread, it is carried out
        when that is over, and True means: it had not begun yet.
        """
        me = object()
        try:
            cancelled = self._decide_to_cancel(me)
            self._announce_cancelled(me)
        except Reentered:
            if self._state == PENDING:
                self._phase.pwq.pool.host.defer(self.cancel)
            return self._state not in (RUNNING, FINISHED)
        except BaseException:
            self._announce_cancelled(me)  # if it was decided here: to the end
            raise
        return cancelled

    def _decide_to_cancel(self, canceller: object) -> bool:
        with self._phase.pwq.pool.lock:
            if self._state in (RUNNING, FINISHED):
                return False
            if self._state != PENDING:
                return True
            audience = self._audience
            if audience is not None:
                audience.canceller = canceller
            self._state = CANCELLED_AND_NOTIFIED if audience is None else CANCELLED
            self._withdraw()
            held = self._call, self._kwargs, self._context  # dropped outside the lock: finalisers are user code
            self._call = self._kwargs = self._context = None
        del held
        return True

    def _announce_cancelled(self, canceller: object) -> None:
        audience = self._audience
        if audience is not None and audience.canceller is canceller and self.cancelled():
            audience.announce(self)

    def _withdraw(self) -> None:
        """Context: lock held."""
        if self._phase.pwq.observed:
            events.cancelled(self)
        self._phase.withdraw()

    def cancelled(self) -> bool:
        return self._state in (CANCELLED, CANCELLED_AND_NOTIFIED)

    def running(self) -> bool:
        return self._state == RUNNING

    def done(self) -> bool:
        return self._state in _DONE

    def add_done_callback(self, fn: Callable[[cf.Future[T]], object]) -> None:
        try:
            with self._phase.pwq.pool.lock:
                if self._state not in _DONE:
                    audience = self._listeners()
                    audience.calls_back = True
                    audience.callbacks.append(fn)
                    self._be_fetched()
                    return
        except Reentered:
            self._phase.pwq.pool.host.defer(partial(self.add_done_callback, fn))
            return
        self._be_fetched()
        try:
            fn(self)
        except BaseException as exc:
            if _is_to_be_raised(exc, self):
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

    # Not one of these may be called by others: the state would say what the call and its worker don't know.

    def set_running_or_notify_cancel(self) -> bool:
        raise cf.InvalidStateError(f"{self!r} is run by a worker, which alone says that it has begun")

    def set_result(self, result: T) -> None:
        raise cf.InvalidStateError(f"{self!r} gets the result of its call; make a concurrent.futures.Future to set one")

    def set_exception(self, exception: BaseException | None) -> None:
        raise cf.InvalidStateError(f"{self!r} gets what its call raises; make a concurrent.futures.Future to set one")

    def _wait(self, timeout: float | None) -> None:
        """Return once done.

        Raises TimeoutError after `timeout` seconds, ForeignProcess if it can never be done here.
        """
        timeout = checks.timeout(timeout)
        pwq = self._phase.pwq
        runtime = pwq.wq.runtime
        runtime.check_alive(pwq.pool, self)
        host = runtime.host
        check_may_wait(host)
        parker = host.parker()
        if timeout is None and current_worker() is None:  # nobody's work waits: the short way
            try:
                if self._state == RUNNING and pwq.pool.worklist:
                    pwq.pool.nap(parker)
                if self.attach(parker):
                    park_until(self.done, parker, host, None, spins=pwq.pool.nr_running <= 1)
            except BaseException:
                self.detach(parker)
                raise
            return
        deadline = None if timeout is None else host.monotonic() + timeout
        if not wait_for(self, parker, runtime, deadline):
            raise CmwqTimeout(f"no result within {timeout} s: {self!r}")

    def __repr__(self) -> str:
        return f"<cmwq.Future {self._state.lower()} of queue {self.queue.name!r}>"


_ATTRIBUTES = "_phase", "_call", "_context", "_state", "_result", "_kwargs", "_exception", "_audience"

lay_out(Future, *_ATTRIBUTES)


class BoundedFuture(Future[T]):
    """A future of a queue with `max_pending`: it has a place in the queue's room until it begins."""

    _room: Room

    def claim(self, worker: Worker) -> bool:
        if not super().claim(worker):
            return False
        self._room.give(self)
        return True

    def abort(self, exc: BaseException) -> None:
        self._room.give(self)
        super().abort(exc)

    def _announce_cancelled(self, canceller: object) -> None:
        if self.cancelled():
            self._room.give(self)
        super()._announce_cancelled(canceller)


lay_out(BoundedFuture, *_ATTRIBUTES, "_room")


class WorkFuture(Future[Any]):
    """The result of a queued `Work`'s execution to come.

    Not an item: the work's is. Cancelling it leaves the work alone.
    """

    _item: Queued | None = None

    def __init__(self, phase: Phase, work: Work) -> None:
        self._phase = phase
        self._work = work

    def of(self, item: Queued) -> None:
        """That execution's it is.  Context: lock of the item's pool held, or not queued yet."""
        self._item = item

    def settle(self, result: Any, exception: BaseException | None) -> None:
        """Context: the worker, no lock held."""
        with self._phase.pwq.pool.lock:
            if self._state != PENDING:
                return
            self._result, self._exception = result, exception
            if exception is not None and self._phase.pwq.wq.runtime.on_unfetched is not None:
                self._note_unfetched(exception)
            audience = self._audience
            self._item = None
            self._state = FINISHED if audience is None else RUNNING
        if audience is not None:
            audience.announce(self)

    def _withdraw(self) -> None:
        pass

    def needs(self, waiting: dict[Item, Target]) -> Iterator[Item]:
        item = self._item
        if item is not None:
            yield from needs_of(item, waiting)
        else:  # delayed: it will run behind an execution that waits now
            yield from (other for other in list(waiting) if getattr(other, "work", None) is self._work)

    def lacks_workers(self) -> Collection[WorkerPool]:
        item = self._item
        return () if item is None or self._work._item is not item else (item._phase.pwq.pool,)

    def describe(self) -> str:
        return "a work" if self._item is None else self._item.describe()


lay_out(WorkFuture, *_ATTRIBUTES, "_work", "_item")
