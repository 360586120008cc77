"""WorkQueue: what users queue works to. It has a name, a limit on active works, and a place on each pool that it uses.

Guarantees: an ordered queue executes one work at a time, in queueing order, whatever happens to CPUs and pools (E2),
because it has one place, on one pool. `gate` decides whether it takes a work, `queueing` queues works, `drain` flushes,
drains and closes; waits are written as steps (`wait`). The letters are those of `pool`; Q is `WorkQueue._lock`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextvars import Context, copy_context
from functools import wraps
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, overload

from cmwq._core import checks, log
from cmwq._core.held import holding, outside
from cmwq._core.ranks import Rank
from cmwq._core.tables import lookup
from cmwq._errors import Refused, ThreadLimit, own
from cmwq._pool.mend import mending
from cmwq._pool.observed import observe
from cmwq._pool.rescuer import Rescuer
from cmwq._pool.worker import current_worker
from cmwq._workqueue import queueing
from cmwq._workqueue.drain import close_steps, drain_steps, flush_steps
from cmwq._workqueue.future import Future
from cmwq._workqueue.gate import Gate
from cmwq._workqueue.inserting import insert, insert_later, insert_many
from cmwq._workqueue.learning import learned_limit
from cmwq._workqueue.map import map_calls
from cmwq._workqueue.options import AtClose, QueueOptions, Scope, checked_delayed, checked_limit, checked_runtime
from cmwq._workqueue.periodic import PeriodicWork
from cmwq._workqueue.periodic import begin as begin_periodic
from cmwq._workqueue.pwq import PoolWorkQueue
from cmwq._workqueue.room import Room, WhenFull
from cmwq._workqueue.serving import Serving
from cmwq._workqueue.serving import begin as begin_serving
from cmwq._workqueue.submitting import submit_specially
from cmwq._workqueue.wait import run_steps
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


class WorkQueue(Gate):
    """A named queue of works, served by the pools of its scope.

    name: shown in snapshots, logs and thread names. It need not be unique.
    max_active: how many works of this queue may be active on one pool at a time (E1); the others wait, in order. A work
        does not count while it waits for another's result or in `concurrent.futures.wait`. The default is 256; with it,
        a work that sleeps for any other reason does not count either while no work of the queue moves. "auto": the
        limit is learned from what gets done, between 1 and 256 on each pool (E11; docs/adaptive.md).
    ordered: exactly one work at a time, in queueing order (E2). Then max_active is 1, and scope must be "system".
    scope: "system": one pool for all CPUs. "cpu": a pool per CPU, with its workers bound to it. "smt", "cache", "numa":
        a pool per set of CPUs that share a core, their largest cache, or their memory (A1).
    highpri: its works go to pools of their own, which normal works cannot delay. Their threads get a lower nice value
        where the system allows it (E7).
    cpu_intensive: its works do not count against concurrency (A8). For long computations that must not hold up others.
    freezable: `cmwq.freeze()` stops it (E8).
    max_pending, full: at most `max_pending` works may wait to begin (E9). When the queue is full, `full` decides: with
        "block", the default, the caller waits for room, but a work of the queue itself gets QueueFull; with "raise"
        every caller gets QueueFull. Delayed works whose time has come are let in even so.
    rescuer: the queue has a thread of its own from the start. It runs the queue's works, one at a time, when no worker
        can be created, so that the queue always makes progress (C). Making the queue raises ThreadLimit if that thread
        or the runtime's own cannot be started. If a work that the rescuer runs waits for a work that no thread can
        begin, its wait raises ThreadLimit, unless cmwq cannot see the wait (an Event, `concurrent.futures.wait`).
    delayed: what happens to delayed works whose time has not come when the queue closes: by `close`, as a context
        manager, with its runtime or at exit. "run": they run then, early; for works that are delayed to save effort,
        such as a debounced save. "cancel": they do not run; for works that must not come early, such as a reminder, a
        time limit or a retry. Not given: as "cancel", and a warning names the works that were lost.
    on_error: called on the worker as on_error(work, exception) when a queued `Work` raised. Without it the exception is
        logged to the logger "cmwq". The exception of a `submit`ted call is in its future.
    context: calls run in a copy of it. The default is a copy of the caller's context, taken when the call is submitted.
    runtime: where the pools are; by default the process's default runtime.

    What a work changes of its thread (affinity, nice value, signal mask) is undone before a work of another queue runs
    there. A lock that it keeps or a trace function that it sets stays, because neither can be seen.

    All methods are thread-safe. The first work starts what is needed; making a queue starts nothing (G1), unless it is
    to have a rescuer. Methods that queue raise QueueClosed after `close`, during `drain` and after the runtime's end,
    and ThreadLimit if even the runtime's own thread, which retries later, cannot be started. A pool that gets no worker
    is no error: its works wait until it does. As a context manager the queue closes at the end. After a fork the
    child's queue is empty, and open unless it was closing or closed (G2).
    """

    def __init__(
        self,
        name: str,
        *,
        max_active: int | Literal["auto"] | None = None,
        ordered: bool = False,
        scope: Scope = "system",
        highpri: bool = False,
        cpu_intensive: bool = False,
        freezable: bool = False,
        max_pending: int | None = None,
        full: WhenFull = "block",
        rescuer: bool = False,
        delayed: AtClose | None = None,
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
        self.serial = next(runtime.serials)  # I: tells it from others of its name
        self.delayed = options.delayed  # I: what happens to delayed works when it closes
        self._on_error = on_error  # I
        self._context = context  # I
        self._limit = options.limit()  # Q to change: None, if each place learns its own (E11)
        self.has_explicit_limit = isinstance(options.max_active, int)  # Q to change, read freely: a bound, no default
        self._lock = runtime.host.lock(Rank.QUEUE, mending(self))  # F
        self.nr_hogs = 0  # ~: works that were CPU hogs (A9)
        self._pwqs: dict[WorkerPool, PoolWorkQueue] = {}  # Q to change
        self._only: PoolWorkQueue | None = None  # Q to change: the place to use, where the scope has only one pool
        self._delays: set[Delay] = set()  # A: works whose time has not come
        self._room = None if options.max_pending is None else Room(self, options.max_pending, options.full)  # F
        self._special = max_pending is not None or context is not None  # I: `submit_specially` has to submit
        self.nr_maydays = self.nr_rescued = 0  # ~
        self._wants_rescuer = rescuer  # I
        self.rescuer: Rescuer | None = None  # Q to change
        if rescuer:
            self._have_rescuer()
        runtime.adopt(self)
        if runtime.closed or runtime.exiting:  # last: if it ends after this, it finds the queue in its list
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
        """Submit one call, fn(*args, **kwargs); it runs on a worker, in a copy of the caller's context.

        A `Work` may be given instead of a function (with arguments: TypeError). It is queued, and the future is that of
        the execution to come; cancelling the future leaves the work alone. Raises WorkDisabled if the work is disabled.

        What a coroutine function returns is never awaited, as in the standard library, and Python warns of that. It is
        not refused here, because a look at each function would cost a twenty-fifth of the time; the calls that look
        once for many calls (`map`, `submit_many`, `offload`, `Work`, `cmwq.aio.run`) refuse it.
        """
        # The body of `submit_call`, repeated: one more call would add a twentieth to the total time.
        if self._special or isinstance(fn, Work):
            return submit_specially(self, fn, args, kwargs)
        pwq = self._only or self.place_here()
        future: Future[Any] = Future(pwq.outside, (fn, *args), kwargs, copy_context())
        try:
            insert(pwq, future)
        except Refused as exc:
            own(exc)
            insert_later(pwq, future)
        return future

    def submit_call(self, fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Future[Any]:
        """`submit` for callers whose arguments are packed already: packing them again would take a tenth longer."""
        if self._special or isinstance(fn, Work):
            return submit_specially(self, fn, args, kwargs)
        pwq = self._only or self.place_here()
        future: Future[Any] = Future(pwq.outside, (fn, *args), kwargs, copy_context())
        try:
            insert(pwq, future)
        except Refused as exc:
            own(exc)
            insert_later(pwq, future)
        return future

    def submit_many(self, fn: Callable[..., T], /, *iterables: Iterable[Any]) -> list[Future[T]]:
        """`submit(fn, *args)` for each tuple of zip(*iterables), at a fraction of the cost.

        Either all calls are accepted or none; with `max_pending`, each is submitted on its own, as there is room.
        """
        self.refuse_coroutine_function(fn)
        calls = list(zip(*iterables))  # noqa: B905  # as map() does
        if self._special or isinstance(fn, Work):
            return [self.submit(fn, *args) for args in calls]
        pwq = self._only or self.place_here()
        futures: list[Future[T]] = [Future(pwq.outside, (fn, *args), {}, copy_context()) for args in calls]
        try:
            insert_many(pwq, futures)
        except Refused as exc:
            own(exc)
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
        """Like `map(fn, *iterables)`, but the calls run concurrently; results come in order.

        timeout: seconds from this call until each result must be there, else TimeoutError. buffersize: at most this
        many calls are submitted ahead of the results taken, and the iterables are read only that far; None: all at
        once. A call's exception is raised when its result is taken. An iterator that is left after some results cancels
        calls that have not begun; one that is never asked for a result cancels nothing.
        """
        self.refuse_coroutine_function(fn)
        ours = type(self).submit in OWN_SUBMITS and "submit" not in self.__dict__ and not isinstance(fn, Work)
        at_once = self.submit_many if ours else None
        return map_calls(self, fn, iterables, timeout, buffersize, submit_many=at_once)

    def offload(self, fn: Callable[P, T]) -> Callable[P, Future[T]]:
        """A decorator: each call of the function is submitted to this queue and returns its Future at once."""
        self.refuse_coroutine_function(fn)

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
        """Pull calls from a source, only when the pool could run one more (E12): for a broker, a scheduler, a table of
        jobs or a pipe, which keep their works until they are asked.

        source: a function without arguments, or an iterable. It answers with the next call (a function without
        arguments, e.g. `functools.partial(f, x)`), with None for "nothing now" (it is not asked again before
        `Serving.notify()`), or with StopIteration for "no more". It is asked by one thread at a time, on a worker, with
        no lock held, and in the context of its call: a copy of the caller's. While it blocks it occupies one worker and
        a place under `max_active`; others go on. If it raises, that is logged, and it is asked again after 0.1 s, then
        0.2 s, ... at most 30 s; an iterator that raised has no more.
        on_stop: called on the stopping thread when the source is to be asked no more, unless the source said "no more"
        itself. It lets an ask that blocks return (e.g. `inbox.shutdown`). What it raises is logged.

        Calls are works of this queue: `max_active`, order, freezing, rescuers and CPUs that leave apply to them. What
        one raises goes to `on_error`, with a Work of the same call that may be queued again, or to the log. They do not
        count under `max_pending`. `flush` waits for calls given before it, not for what the source still has. `drain`
        pauses the serving; `close`, the runtime's end and exit end it. All of them wait for an ask under way
        and for the call that it brings; `freeze` waits for the ask, and keeps its call for later. What a source gave is
        run, unless the time limit of the runtime's end passes first: then its name is logged as an error. A forked
        child serves nothing.

        Returns the `Serving`. Raises QueueClosed, ThreadLimit, TypeError. Several sources may be served to one queue.
        """
        return begin_serving(self, source, on_stop)

    # ------------------------------------------------------------------------------- works

    # The function itself and not a method that calls it: queueing a work that is pending would take a third longer.
    queue = queueing.queue

    def queue_on(self, cpu: int, work: Work) -> bool:
        """`queue` on the pool of this CPU. If the CPU is absent, the work runs elsewhere in the queue's scope (D3)."""
        queueing.check_work(self, work)
        return queueing.queue_specially(self, work, checks.cpu(cpu))

    def queue_delayed(self, work: DelayedWork, delay: float) -> bool:
        """Queue the work after `delay` seconds, no earlier (F9); at once, as by `queue`, with 0 or less.

        False: it was pending, and stays as it was, or is disabled. Raises QueueClosed, ThreadLimit, TypeError,
        ValueError.
        """
        return queueing.queue_specially(self, work, delay=queueing.checked_delay(work, delay))

    def queue_periodic(self, work: PeriodicWork, period: float, first: float | None = None) -> bool:
        """Execute the work every `period` seconds (at least 1 ms) at a fixed rate (E13), for the first time in `first`
        seconds (default: one period). It is due at first + n * period on the monotonic clock and begins no earlier. A
        time that comes while the work still waits or runs is missed (`work.missed`) and not made up for.

        True: it begins. False: it was pending and goes on as it was, or is disabled. `cancel` and its like stop it; so
        do `close` and exit, after what is due; a drain pauses it. It runs on the caller's pool. Raises as
        `queue_delayed`.
        """
        return begin_periodic(self, work, period, first)

    def mod_delayed(self, work: DelayedWork, delay: float) -> bool:
        """Let the work begin `delay` seconds from now, or at once with 0 or less. Raises as `queue_delayed`.

        True: it was pending and was moved. False: it was queued, or it is disabled and was left alone.
        """
        return queueing.mod_delayed(self, work, delay)

    def new_context(self) -> Context:
        """The context in which a work queued now is to run."""
        return copy_context() if self._context is None else self._context.copy()

    @property
    def max_active(self) -> int:
        """How many works may be active on one pool; settable at any time. Raising it starts waiting works at once;
        lowering it lets active works end. "auto": from now on it is learned; a number ends that, and reading it gives
        the limit in force, the highest of the pools. An ordered queue's is 1 and stays 1. Raises TypeError, ValueError.
        """
        limit = self._limit
        return learned_limit(self) if limit is None else limit

    @max_active.setter
    def max_active(self, limit: int | Literal["auto"]) -> None:
        checked = checked_limit(self.name, limit)
        if self.ordered and checked != 1:
            raise ValueError(f"queue {self.name!r} is ordered: its max_active is 1 and stays so")
        with self._lock:
            self._limit = checked if isinstance(checked, int) else None
            self.has_explicit_limit = self._limit is not None
            for pwq in self._pwqs.values():
                pwq.adopt_limit()

    @property
    def learns(self) -> bool:
        """Whether `max_active` is learned."""
        return self._limit is None

    @property
    def max_pending(self) -> int | None:
        """How many works may wait to begin; None: no limit."""
        return None if self._room is None else self._room.limit

    @outside
    def work_failed(self, work: Work, exc: BaseException) -> None:
        """Report what a queued work raised (B4).  Context: its worker."""
        try:
            if self._on_error is not None:
                self._on_error(work, exc)
            else:
                log.error("%r of queue %r raised", work, self.name, exc_info=exc)
        except BaseException:
            log.exception("on_error of queue %r raised while it dealt with %r of %r", self.name, exc, work)

    # ------------------------------------------------------------------------------- waiting

    def flush(self, timeout: float | None = None) -> None:
        """Return when every work queued before this call has ended (F1). Works queued later and delayed works whose
        time has not come are not waited for.

        timeout: seconds. Raises CmwqTimeout (the works go on), and FlushDeadlock if a work would wait for itself (F7).
        """
        run_steps(flush_steps(self), self.runtime, timeout, lambda: self._still_there("flush"))

    def drain(self, timeout: float | None = None) -> None:
        """Flush until the queue is empty, then open it again. Meanwhile only its own works may queue to it (F3), and
        delayed works whose time comes; others get QueueClosed. Delayed works whose time has not come are not waited
        for.

        timeout: seconds. Raises CmwqTimeout (the queue is open again), and FlushDeadlock.
        """
        run_steps(drain_steps(self), self.runtime, timeout, lambda: self._still_there("drain"))

    def close(self, timeout: float | None = None, *, delayed: AtClose | None = None) -> None:
        """Drain the queue, then refuse all works for good. Closing twice is harmless.

        timeout: seconds. delayed: "run" or "cancel" the delayed works whose time has not come (default: as the queue
        was made). Raises CmwqTimeout (the queue goes on draining; close() may be called again), and FlushDeadlock from
        one of its own works.
        """
        delayed = checked_delayed(self.name, delayed)
        run_steps(close_steps(self, delayed), self.runtime, timeout, lambda: self._still_there("close"))

    def delays(self) -> list[Delay]:
        """The delays of works whose time has not come."""
        return list(self._delays)

    def nr_unfinished(self) -> int:
        """How many works have neither ended nor been taken back. Works whose time has not come are not counted."""
        return sum(pwq.count_unfinished() for pwq in self.places())

    def nr_pending(self) -> int:
        """How many works have not begun. Works whose time has not come are not counted."""
        return sum(pwq.count_pending() for pwq in self.places())

    def threads(self) -> set[Any]:
        """The threads that run its works right now."""
        found = set()
        for pwq in self.places():
            with pwq.pool.lock:
                found |= {worker.thread for worker in pwq.executing()}
        return found

    def blocked(self) -> list[Any]:
        """The works of this queue that are known to be blocked (A4), without those whose child processes compute (A10).
        A call is in it as its Future.

        Sensors look only as far as they need to. On a worker of the pool they look anew at all others, if they can (the
        sentinel), so this is to be called from a source (`serve`), which is asked when there is room.
        """
        found, here = [], current_worker()
        for pwq in self.places():
            with pwq.pool.lock:
                if here is not None and here.pool is pwq.pool:
                    here.pool.lookout.review(here, len(here.pool.workers))
                found += [worker.item for worker in pwq.executing() if worker.blocked and not worker.blocked.computes]
        return found

    def __enter__(self) -> WorkQueue:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # ------------------------------------------------------------------------------- inside

    def _still_there(self, what: str) -> str:
        """The message of a timeout: what was to be done, and how much is left."""
        return f"{what} of queue {self.name!r}: {self.nr_unfinished()} works still there"

    @holding("self._lock")
    def mend(self) -> None:
        """Called after something was raised while Q was held: make all places agree with what the queue says."""
        self._change_state()
        for pwq in self._pwqs.values():
            if (pwq.learning is None and pwq.max_active) != (self._limit or False):
                pwq.adopt_limit()
        if self.scope == "system" and self._only is None:
            self._only = next((pwq for pwq in self._pwqs.values() if pwq.pool.runtime is self.runtime), None)

    def refuse_coroutine_function(self, fn: object) -> None:
        """Raise TypeError if nobody would await what the function returns."""
        checks.no_coroutine_function(f"what is submitted to queue {self.name!r}", fn)

    def place_here(self) -> PoolWorkQueue:
        """The queue's place on the pool that takes a work queued by this thread now."""
        pool = self.runtime.pool_here(self.scope, highpri=self.highpri)
        return lookup(self._pwqs, pool) or self._pwq_on(pool)

    def place_at(self, cpu: int) -> PoolWorkQueue:
        """The queue's place on the pool that serves this CPU."""
        pool = self.runtime.pool_at(self.scope, cpu, highpri=self.highpri)
        return lookup(self._pwqs, pool) or self._pwq_on(pool)

    def _pwq_on(self, pool: WorkerPool) -> PoolWorkQueue:
        if self._wants_rescuer and self.rescuer is None:
            self._have_rescuer()  # in the child of a fork it has none yet
        with self._lock:
            pwq = lookup(self._pwqs, pool)
            if pwq is None:
                if self._shut:
                    self._check_admitted(pool)
                self.runtime.adopt(self)
                frozen = self.freezable and self.runtime.frozen
                pwq = PoolWorkQueue(self, pool, frozen=frozen)
                with pool.lock:
                    pool.pwqs.add(pwq)
                    pwq.settle_gate()
                    if pool.taps:
                        observe(pwq)
                    if self._wants_rescuer:
                        pool.rescued = True
                        pool.settle()
                self._pwqs[pool] = pwq  # last: from here on all who go through the places see it
                if self.scope == "system" and pool.runtime is self.runtime:
                    self._only = pwq
            return pwq

    def _have_rescuer(self) -> None:
        """Start the rescuer if there is none (C1). Raises ThreadLimit."""
        try:
            self.runtime.begin()
            with self._lock:
                if self.rescuer is None and not self.is_closed:
                    rescuer = Rescuer(self, self.runtime.host)
                    rescuer.start()
                    self.rescuer = rescuer
        except ThreadLimit as exc:
            own(exc)
            raise ThreadLimit(f"queue {self.name!r} was to have a rescuer: {exc}") from exc

    def end_rescuer(self) -> Thread | None:
        """Stop the rescuer; the queue has no more works. Returns the thread that ends, for the caller to join."""
        with self._lock:
            rescuer, self.rescuer = self.rescuer, None
        if rescuer is None:
            return None
        rescuer.stop()
        return rescuer.thread

    def place_on(self, pool: WorkerPool) -> PoolWorkQueue | None:
        """The queue's place on that pool, or None if the queue has not used it."""
        return lookup(self._pwqs, pool)

    def places(self) -> list[PoolWorkQueue]:
        """The queue's place on each pool that it has used."""
        with self._lock:
            return list(self._pwqs.values())

    def has_works(self) -> bool:
        """Is any work unfinished, on any pool? Works whose time has not come are not counted."""
        return self.nr_unfinished() > 0

    def forget(self) -> None:
        """In the child of a fork: make the queue as if nothing had ever been queued to it (G2)."""
        self._lock = self.runtime.host.lock(Rank.QUEUE, mending(self))
        self._pwqs = {}
        self._only = None
        self._delays = set()
        self.rescuer = None
        self._forget_drains()
        if self._room is not None:
            self._room.forget()


OWN_SUBMITS: list[Any] = [WorkQueue.submit]
"""`WorkQueue.submit`, as it is here and in the twin: whoever puts another in its place wants `map` to call that."""
