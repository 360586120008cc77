"""WorkQueue: what users queue to. A name, a limit on active works, and a place on each pool it uses.

Guarantees: an ordered queue executes one work at a time, in queueing order, whatever happens to CPUs and pools (E2): it
has one place, on one pool. Whether it takes work is told in `gate`, what it is to queue a work in `queueing`, how it is
flushed, drained and closed in `drain`: what waits is written as steps (`wait`). The letters are those of `pool`; Q is
`WorkQueue._lock`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextvars import Context, copy_context
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

from cmwq._core import checks
from cmwq._core.held import holding, outside
from cmwq._core.ranks import Rank
from cmwq._errors import FlushDeadlock, Reentered, ThreadLimit
from cmwq._pool import events
from cmwq._pool.mend import mending
from cmwq._pool.rescuer import Rescuer
from cmwq._workqueue import queueing
from cmwq._workqueue.drain import close_steps, drain_steps, flush_steps
from cmwq._workqueue.future import Future
from cmwq._workqueue.gate import Gate
from cmwq._workqueue.map import map_calls
from cmwq._workqueue.options import QueueOptions, checked_delayed, checked_runtime
from cmwq._workqueue.periodic import PeriodicWork
from cmwq._workqueue.periodic import begin as begin_periodic
from cmwq._workqueue.pwq import PoolWorkQueue, insert, insert_later, insert_many
from cmwq._workqueue.room import Room
from cmwq._workqueue.serving import Serving
from cmwq._workqueue.serving import begin as begin_serving
from cmwq._workqueue.submitting import submit_specially
from cmwq._workqueue.wait import own_item, run_steps
from cmwq._workqueue.work import DelayedWork, Work

if TYPE_CHECKING:
    from types import TracebackType

    from cmwq._core.ports import Thread
    from cmwq._pool.pool import WorkerPool
    from cmwq._pool.worker import Worker
    from cmwq._workqueue.delay import Delay
    from cmwq._workqueue.runtime import Runtime

P = ParamSpec("P")
T = TypeVar("T")
_log = logging.getLogger("cmwq")


class WorkQueue(Gate):
    """A named queue of work, served by the pools of its scope.

    name: shown in snapshots, logs and thread names. Need not be unique.
    max_active: works of this queue that may be active on one pool at a time (E1); the others wait, in order. A work
        that waits for another's result does not count meanwhile, nor does one in `concurrent.futures.wait`. Without a
        number it is 256; then one that rests while nothing of the queue moves doesn't count either, whatever for.
    ordered: exactly one work at a time, in queueing order (E2). Then max_active is 1, and scope must be "system".
    scope: "system": one pool for all CPUs. "cpu": a pool per CPU, its workers bound to it; "smt", "cache", "numa": a
        pool per set of CPUs that share a core, their largest cache, their memory (A1).
    highpri: its works go to pools of their own, which normal works can't delay; their threads are nicer where the
        system allows it (E7).
    cpu_intensive: its works do not count against concurrency (A8): for long computations that must not hold up others.
    freezable: `cmwq.freeze()` stops it (E8).
    max_pending, full: at most so many works may wait to begin; beyond, "block": who queues waits for room (a work of
        the queue itself gets QueueFull instead), or "raise": QueueFull (E9). Works whose delay ends are let in.
    rescuer: it has a thread of its own from the start, which runs its works, one at a time, when no worker can be
        created: it keeps moving whatever happens (C). Making the queue then raises ThreadLimit if that thread, or the
        runtime's own, can't be had. A work that the rescuer runs and that waits for one that nobody could begin is
        told by ThreadLimit; but not if it waits in a way unknown here (an Event, `concurrent.futures.wait`).
    delayed: what becomes of delayed works whose time has not come when the queue closes, be it by `close`, as a context
        manager, with its runtime or at exit. "run": they run then, before their time; for works that are delayed to
        spare some of them, as a debounced save. "cancel": they don't run; for works that must not come early, as a
        reminder, a time limit or a retry. Not given: as "cancel", and a warning names those that were lost.
    on_error: called as on_error(work, exception) for a queued `Work` that raised, on the worker; without it the
        exception is logged to the logger "cmwq". Exceptions of `submit`ted calls are in their futures.
    context: the context that calls run in a copy of (default: a copy of the caller's, taken as they are submitted).
    runtime: where the pools are; the process's default runtime if not given.

    What a work changes of its thread (affinity, nice value, signal mask) is undone before a work of another queue runs
    there. A lock that it takes and keeps, or a trace function that it sets, stays: neither can be seen.

    All methods are thread-safe. The first work starts what is needed; making a queue starts nothing (G1), unless it is
    to have a rescuer. Methods that queue raise QueueClosed after `close`, during `drain`, and after the runtime's end,
    and ThreadLimit if not even the runtime's own thread, which tries again later, can be had. A pool that gets no
    worker is no error: works wait until it does. As a context manager it closes at the end. After a fork the child's
    queue is open and empty (G2).
    """

    def __init__(
        self,
        name: str,
        *,
        max_active: int | None = None,
        ordered: bool = False,
        scope: str = "system",
        highpri: bool = False,
        cpu_intensive: bool = False,
        freezable: bool = False,
        max_pending: int | None = None,
        full: str = "block",
        rescuer: bool = False,
        delayed: str | None = None,
        on_error: Callable[[Work, BaseException], object] | None = None,
        context: Context | None = None,
        runtime: Runtime | None = None,
    ) -> None:
        options = QueueOptions(
            name, max_active, ordered, scope, highpri, cpu_intensive, freezable, max_pending, full, rescuer, delayed,
            on_error, context,
        )  # fmt: skip
        super().__init__()
        self.name = options.name  # I
        self.scope = options.scope  # I
        self.ordered = ordered  # I
        self.highpri = highpri  # I
        self.cpu_intensive = cpu_intensive  # I
        self.freezable = freezable  # I
        self.runtime = runtime = checked_runtime(runtime)  # I
        self.delayed = options.delayed  # I: what becomes of works whose time has not come when it closes
        self._on_error = on_error  # I
        self._context = context  # I
        self._max_active = options.limit()  # Q
        self.has_explicit_limit = max_active is not None  # Q to change, read freely: it is a bound, not a default
        self._lock = runtime.host.lock(Rank.QUEUE, mending(self))  # F
        self.nr_hogs = 0  # ~: works that were CPU hogs (A9)
        self._pwqs: dict[WorkerPool, PoolWorkQueue] = {}  # Q to change
        self._only: PoolWorkQueue | None = None  # Q to change: the one to use, where the scope has but one pool
        self._delays: set[Delay] = set()  # A: works whose time has not come
        self._room = None if options.max_pending is None else Room(self, options.max_pending, options.full)  # F
        self._special = max_pending is not None or context is not None  # I: submitting takes more than the usual
        self.nr_maydays = self.nr_rescued = 0  # ~
        self._wants_rescuer = rescuer  # I
        self.rescuer: Rescuer | None = None  # Q to change
        if rescuer:
            self._have_rescuer()
        runtime.adopt(self)
        if runtime.closed or runtime.exiting:  # looked at last: else the runtime, which then lists its queues, finds it
            self.refuse()

    def __repr__(self) -> str:
        return f"<cmwq.WorkQueue {self.name!r} {self._state.value}>"

    def thread_name(self, worker: Worker) -> str:
        """What `threading` calls the worker's thread while it runs works of this queue."""
        return worker.name

    # ------------------------------------------------------------------------------- calls with a result

    @overload
    def submit(self, fn: Work, /) -> Future[Any]: ...
    @overload
    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]: ...
    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        """One call, one result: fn(*args, **kwargs) on a worker, in a copy of the caller's context.

        A `Work` given instead of a function is queued; the future is that of the execution to come, and cancelling it
        leaves the work alone. Raises WorkDisabled if it is disabled.
        """
        # As `submit_call`, word for word: a call more is a twentieth of the time of it all.
        if self._special or isinstance(fn, Work):
            return submit_specially(self, fn, args, kwargs)
        pwq = self._only or self.place_here()
        future: Future[Any] = Future(pwq.outside, (fn, *args), kwargs, copy_context())
        try:
            insert(pwq, future)
        except Reentered:
            insert_later(pwq, future)
        return future

    def submit_call(self, fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Future[Any]:
        """`submit` for callers whose arguments are packed already: to pack them again costs a tenth of it all."""
        if self._special or isinstance(fn, Work):
            return submit_specially(self, fn, args, kwargs)
        pwq = self._only or self.place_here()
        future: Future[Any] = Future(pwq.outside, (fn, *args), kwargs, copy_context())
        try:
            insert(pwq, future)
        except Reentered:
            insert_later(pwq, future)
        return future

    def submit_many(self, fn: Callable[..., T], /, *iterables: Iterable[Any]) -> list[Future[T]]:
        """`submit(fn, *args)` for each of zip(*iterables), at a fraction of the cost.

        All are accepted, or none; with `max_pending` each for itself, as there is room.
        """
        calls = list(zip(*iterables))  # noqa: B905  # as map() does
        if self._special or isinstance(fn, Work):
            return [self.submit(fn, *args) for args in calls]
        pwq = self._only or self.place_here()
        futures: list[Future[T]] = [Future(pwq.outside, (fn, *args), {}, copy_context()) for args in calls]
        try:
            insert_many(pwq, futures)
        except Reentered:
            for future in futures:
                insert_later(pwq, future)
        return futures

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """Like `map(fn, *iterables)`, concurrently, results in order.

        timeout: seconds from this call until each result must be there, else TimeoutError. buffersize: at most so many
        calls are submitted ahead of what has been taken, and the iterables are read only so far; None: all at once. A
        call's exception is raised when its result is taken; leaving the iterator early cancels what hasn't begun.
        """
        return map_calls(self, fn, iterables, timeout, buffersize)

    def offload(self, fn: Callable[P, T]) -> Callable[P, Future[T]]:
        """A decorator: calls of the function are submitted here, and return their Future at once."""

        @wraps(fn)
        def submitting(*args: P.args, **kwargs: P.kwargs) -> Future[T]:
            return self.submit(fn, *args, **kwargs)

        return submitting

    def serve(
        self,
        source: Callable[[], Callable[[], object] | None] | Iterable[Callable[[], object] | None],
        *,
        on_stop: Callable[[], object] | None = None,
    ) -> Serving:
        """Pull works from a source, whenever the pool could run one more, and only then (E12): for a broker, a
        scheduler, a table of jobs, a pipe, which keep their works back until they are asked.

        source: a function without arguments, or an iterable. It answers with the next call (a function without
        arguments: `functools.partial(f, x)`); with None, "nothing now": it is not asked again before
        `Serving.notify()`; or with StopIteration, "no more". It is asked by one thread at a time, on a worker, with no
        lock held and in the context of its call: a copy of the caller's. While it blocks it takes one worker, and a
        place under `max_active`; others go on. If it raises, that is logged, and it is asked again after 0.1 s, then
        0.2 s, ... at most 30 s; an iterator that raised has no more.
        on_stop: called when it is to be asked no more, unless that was its own word, to let an ask return that
        blocks: `inbox.shutdown`, say. On the thread that stops it; what it raises is logged.

        Calls are works of this queue: `max_active`, order, freezing, rescuers and CPUs that leave matter to them as
        to others. What one raises goes to `on_error`, with a Work of the same call that may be queued again, or to the
        log. None counts under `max_pending`. `flush` waits for the calls given before it, not for what the source has.
        `drain` pauses it, `close`, the runtime's end and exit end it; all of them, like `freeze`, wait for an ask that
        is under way, and but for `freeze`, which keeps it for later, for the call that it brings. What a source gave is
        run, unless the time limit of the runtime's end passed first: then its name is logged as an error. In the child
        of a fork nothing is served.

        Returns the `Serving`: `notify`, `stop`, `wait`, `close`, counters. Raises QueueClosed, ThreadLimit, TypeError.
        Several sources may be served to one queue.
        """
        return begin_serving(self, source, on_stop)

    # ------------------------------------------------------------------------------- works

    # That function itself, and not a method that calls it, as the others: a call more would be a third of what it takes
    # to queue a work that is pending.
    queue = queueing.queue

    def queue_on(self, cpu: int, work: Work) -> bool:
        """`queue` on the pool that serves this CPU. That of an absent CPU runs elsewhere in the queue's scope (D3)."""
        checks.instance(f"what is queued to queue {self.name!r}", work, Work)
        return queueing.queue_specially(self, work, checks.cpu(cpu))

    def queue_delayed(self, work: DelayedWork, delay: float) -> bool:
        """Queue it after `delay` seconds, no earlier (F9); 0 or less: `queue`.

        False: it was pending, and stays as it was, or it is disabled.
        """
        return queueing.queue_specially(self, work, delay=queueing.checked_delay(work, delay))

    def queue_periodic(self, work: PeriodicWork, period: float, first: float | None = None) -> bool:
        """Carry it out every `period` seconds from now on, at a fixed rate (E13), for the first time in `first` seconds
        (default: a period). It is due at first + n * period on the monotonic clock, and begins no earlier; a time that
        comes while it still waits or runs is missed (`work.missed`), not made up for.

        True: it begins. False: it is pending already, and goes on as it was, or it is disabled. period: at least 1 ms.
        `cancel` and its like stop it; so do `close` and exit, after what is due; a drain pauses it. It goes to the pool
        of who calls this. Raises QueueClosed, ThreadLimit.
        """
        return begin_periodic(self, work, period, first)

    def mod_delayed(self, work: DelayedWork, delay: float) -> bool:
        """Let it begin `delay` seconds from now: moved if it is pending (True), else queued (False).

        A disabled one is left alone (False). 0 or less: it is queued at once.
        """
        return queueing.mod_delayed(self, work, delay)

    def new_context(self) -> Context:
        """In which a work queued now is to run."""
        return copy_context() if self._context is None else self._context.copy()

    @property
    def max_active(self) -> int:
        """Works that may be active on one pool. Settable at any time: raising it starts waiting works at once,
        lowering it lets what is active end. That of an ordered queue is 1 and stays so (ValueError)."""
        return self._max_active

    @max_active.setter
    def max_active(self, limit: int) -> None:
        limit = checks.integer(f"queue {self.name!r}: max_active", limit, 1)
        if self.ordered and limit != 1:
            raise ValueError(f"queue {self.name!r} is ordered: its max_active is 1 and stays so")
        with self._lock:
            self._max_active = limit
            self.has_explicit_limit = True
            for pwq in self._pwqs.values():
                pwq.set_max_active(limit)

    @property
    def max_pending(self) -> int | None:
        """Works that may wait to begin; None: no limit."""
        return None if self._room is None else self._room.limit

    @outside
    def work_failed(self, work: Work, exc: BaseException) -> None:
        """A queued work raised (B4).  Context: its worker."""
        try:
            if self._on_error is not None:
                self._on_error(work, exc)
            else:
                _log.error("%r of queue %r raised", work, self.name, exc_info=exc)
        except BaseException:
            _log.exception("on_error of queue %r raised while it dealt with %r of %r", self.name, exc, work)

    # ------------------------------------------------------------------------------- waiting

    def flush(self, timeout: float | None = None) -> None:
        """Return when every work queued before this call has ended (F1); those queued later do not matter, nor do
        delayed works whose time has not come.

        timeout: seconds. Raises CmwqTimeout (the works go on), FlushDeadlock where a work would wait for itself (F7).
        """
        run_steps(flush_steps(self), self.runtime, timeout, lambda: self._still_there("flush"))

    def drain(self, timeout: float | None = None) -> None:
        """Flush until it is empty; meanwhile only its own works may queue to it (F3), others get QueueClosed. Then it
        is open again. Delayed works whose time comes meanwhile are let through, the others are not waited for.

        timeout: seconds. Raises CmwqTimeout (it is open again), FlushDeadlock.
        """
        run_steps(drain_steps(self), self.runtime, timeout, lambda: self._still_there("drain"))

    def close(self, timeout: float | None = None, *, delayed: str | None = None) -> None:
        """Drain, then gone.

        timeout: seconds. delayed: "run" or "cancel" delayed works whose time has not come; not given: as the queue was
        made to. Raises CmwqTimeout: the queue goes on draining, and close() may be called again; FlushDeadlock from one
        of the queue's own works. Closing twice is harmless.
        """
        delayed = checked_delayed(self.name, delayed)
        run_steps(close_steps(self, delayed), self.runtime, timeout, lambda: self._still_there("close"))

    def delays(self) -> list[Delay]:
        """Works whose time has not come."""
        return list(self._delays)

    def nr_unfinished(self) -> int:
        """Works that have neither ended nor been taken back. Delayed ones whose time has not come are not counted."""
        return sum(pwq.count_unfinished() for pwq in self.places())

    def nr_pending(self) -> int:
        """Works that have not begun. Delayed ones whose time has not come are not counted."""
        return sum(pwq.count_unfinished(begun=False) for pwq in self.places())

    def threads(self) -> set[Any]:
        """The threads that run its works right now."""
        found = set()
        for pwq in self.places():
            with pwq.pool.lock:
                found |= {worker.thread for worker in pwq.executing()}
        return found

    def __enter__(self) -> WorkQueue:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # ------------------------------------------------------------------------------- inside

    def _still_there(self, what: str) -> str:
        """Of a timeout: what was to be done, and what is left."""
        return f"{what} of queue {self.name!r}: {self.nr_unfinished()} works still there"

    @holding("self._lock")
    def mend(self) -> None:
        """Something was raised while Q was held: all places agree with what the queue says."""
        self._change_state()
        for pwq in self._pwqs.values():
            if pwq.max_active != self._max_active:
                pwq.set_max_active(self._max_active)
        if self.scope == "system" and self._only is None:
            self._only = next((pwq for pwq in self._pwqs.values() if pwq.pool.runtime is self.runtime), None)

    def refuse_own_work(self, verb: str) -> None:
        """Raises FlushDeadlock if one of its own works is the caller (F7)."""
        item = own_item(self)
        if item is not None:
            raise FlushDeadlock(f"{item.describe()} {verb} its own queue {self.name!r}: it would wait for itself")

    def place_here(self) -> PoolWorkQueue:
        """The queue's place on the pool for a work queued here and now."""
        pool = self.runtime.pool_here(self.scope, highpri=self.highpri)
        return self._pwqs.get(pool) or self._pwq_on(pool)

    def place_at(self, cpu: int) -> PoolWorkQueue:
        """The queue's place on the pool that serves this CPU."""
        pool = self.runtime.pool_at(self.scope, cpu, highpri=self.highpri)
        return self._pwqs.get(pool) or self._pwq_on(pool)

    def _pwq_on(self, pool: WorkerPool) -> PoolWorkQueue:
        if self._wants_rescuer and self.rescuer is None:
            self._have_rescuer()  # the child of a fork has none yet
        with self._lock:
            pwq = self._pwqs.get(pool)
            if pwq is None:
                gate = self._shut
                if gate:
                    self._check_admitted(pool)
                frozen = self.freezable and self.runtime.frozen
                pwq = PoolWorkQueue(self, pool, frozen=frozen, gate=gate)
                with pool.lock:
                    pool.pwqs.add(pwq)
                    pwq.gate |= pool.closing
                    if pool.taps:
                        events.observe(pwq)
                    if self._wants_rescuer:
                        pool.rescued = True
                        pool.settle()
                self._pwqs[pool] = pwq  # last: from here on it is known to all who look after places
                if self.scope == "system" and pool.runtime is self.runtime:
                    self._only = pwq
            return pwq

    def _have_rescuer(self) -> None:
        """C1. Raises ThreadLimit."""
        try:
            self.runtime.begin()
            with self._lock:
                if self.rescuer is None and not self.is_closed:
                    rescuer = Rescuer(self, self.runtime.host)
                    rescuer.start()
                    self.rescuer = rescuer
        except ThreadLimit as exc:
            raise ThreadLimit(f"queue {self.name!r} was to have a rescuer: {exc}") from exc

    def end_rescuer(self) -> Thread | None:
        """It has no works any more. Returns the thread that ends, for the caller to join."""
        with self._lock:
            rescuer, self.rescuer = self.rescuer, None
        if rescuer is None:
            return None
        rescuer.stop()
        return rescuer.thread

    def place_on(self, pool: WorkerPool) -> PoolWorkQueue | None:
        """Its place on that pool, if it has used it."""
        return self._pwqs.get(pool)

    def places(self) -> list[PoolWorkQueue]:
        """Its place on each pool it has used."""
        with self._lock:
            return list(self._pwqs.values())

    def has_works(self) -> bool:
        """On any pool. Delayed ones whose time has not come are not counted."""
        return self.nr_unfinished() > 0

    def forget(self) -> None:
        """In the child of a fork: as if nothing had ever been queued (G2)."""
        self._lock = self.runtime.host.lock(Rank.QUEUE, mending(self))
        self._pwqs = {}
        self._only = None
        self._delays = set()
        self.rescuer = None
        self._forget_drains()
        if self._room is not None:
            self._room = Room(self, self._room.limit, self._room.full)
