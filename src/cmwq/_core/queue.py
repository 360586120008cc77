"""WorkQueue: what users queue to. A name, a limit on active works, and a place on each pool it uses.

Guarantees: at most `max_active` works of a queue are active on one pool, the rest wait in order (E1) and nothing waits
while there is room; a flush waits for exactly what was queued before it, at O(1) cost per work (F1); a closed queue
accepts nothing, and nothing accepted is lost.

How a flush knows: the works of one queue on one pool are counted in phases. A flush seals the current phase, a new one
begins, and the flush has happened when the sealed one and all before it have counted down to zero. (The kernel colours
works for the same purpose; a number of phases has no limit and needs no overflow list.) The letters are those of
`pool`; Q is `WorkQueue._lock`.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from contextvars import copy_context
from enum import Enum
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from cmwq._core.config import DFL_ACTIVE
from cmwq._core.wait import wait_until
from cmwq._core.work import Future, Queued, Work, insert
from cmwq._core.worker import current_worker
from cmwq._errors import CmwqTimeout, FlushDeadlock, QueueClosed

if TYPE_CHECKING:
    from types import TracebackType

    from cmwq._core.pool import WorkerPool
    from cmwq._core.ports import Parker
    from cmwq._core.runtime import Runtime
    from cmwq._core.work import Item

P = ParamSpec("P")
T = TypeVar("T")
_log = logging.getLogger("cmwq")

SCOPES = ("system", "cpu")


class State(Enum):
    OPEN = "open"
    DRAINING = "draining"  # works of the queue's own works are still accepted
    CLOSED = "closed"


class Phase:
    """The works of one queue on one pool between two flushes."""

    __slots__ = ("count", "done", "parkers", "pwq")

    def __init__(self, pwq: PoolWorkQueue) -> None:
        self.pwq = pwq  # I
        self.count = 0  # L: queued and not ended
        self.done = False  # L: sealed, and it and all before it have ended
        self.parkers: list[Parker] = []  # L: who flushes

    def retire(self) -> None:
        """One of its works ended, or was taken back.  Context: lock held."""
        pwq = self.pwq
        self.count -= 1
        pwq.nr_active -= 1
        if pwq.inactive:
            pwq.activate()
        if not self.count and self is not pwq.phase:
            pwq.complete_phases()


class PoolWorkQueue:
    """A queue's place on one pool (the kernel's pool_workqueue)."""

    __slots__ = ("__weakref__", "exempt", "inactive", "max_active", "nr_active", "phase", "pool", "sealed", "wq")

    def __init__(self, wq: WorkQueue, pool: WorkerPool) -> None:
        self.wq = wq  # I
        self.pool = pool  # I
        self.exempt = wq.cpu_intensive  # I
        self.max_active = wq._max_active  # L: the queue's, as this pool knows it
        self.nr_active = 0  # L: listed or executing, and not lent
        self.inactive: deque[Item] = deque()  # L: beyond max_active, in order
        self.phase = Phase(self)  # L: where new works are counted
        self.sealed: deque[Phase] = deque()  # L: phases that somebody flushes, oldest first

    def check_open(self) -> None:
        """Context: lock held, so that `close` either sees this work or prevents it."""
        if self.wq._state is not State.OPEN:
            self.wq._check_admitted()

    def activate(self) -> None:
        """List waiting works while there is room (E1).  Context: lock held. The caller wakes whom that needs."""
        while self.inactive and self.nr_active < self.max_active:
            self.nr_active += 1
            self.pool.worklist.append(self.inactive.popleft())

    def lend(self) -> None:
        """A work of the queue waits for another work: its place under max_active is free meanwhile."""
        with self.pool.lock:
            self.nr_active -= 1
            self.activate()
            woken = self.pool.kick_or_look_out()
        if woken is not None:
            woken.parker.unpark()

    def take_back(self) -> None:
        """It goes on, even if its place is taken: to make it wait for a place could wait for ever."""
        with self.pool.lock:
            self.nr_active += 1

    def set_max_active(self, limit: int) -> None:
        with self.pool.lock:
            self.max_active = limit
            self.activate()
            woken = self.pool.kick_or_look_out()
        if woken is not None:
            woken.parker.unpark()

    def seal(self) -> Phase | None:
        """Begin a new phase. Returns what to wait for so that all queued before has ended, or None: nothing.

        Context: lock held.
        """
        if self.phase.count:
            sealed = self.phase
            self.sealed.append(sealed)
            self.phase = Phase(self)
            return sealed
        return self.sealed[-1] if self.sealed else None

    def complete_phases(self) -> None:
        """Context: lock held."""
        while self.sealed and not self.sealed[0].count:
            phase = self.sealed.popleft()
            phase.done = True
            for parker in phase.parkers:
                parker.unpark()


class WorkQueue:
    """A named queue of work, served by the pools of its scope.

    name: shown in snapshots, logs and thread names. Need not be unique.
    max_active: works of this queue that may be active on one pool at a time (E1); the others wait, in order. A work
        that waits for another work's result does not count meanwhile.
    scope: "system": one pool for all CPUs. "cpu": a pool per CPU, its workers bound to it (A1).
    cpu_intensive: its works do not count against concurrency (A8): for long computations that must not hold up others.
    on_error: called as on_error(work, exception) for a queued `Work` that raised, on the worker; without it the
        exception is logged to the logger "cmwq". Exceptions of `submit`ted calls are in their futures.
    runtime: where the pools are; the process's default runtime if not given.

    All methods are thread-safe. The first work starts what is needed; making a queue starts nothing (G1).
    As a context manager it closes at the end. After a fork the child's queue is open and empty (G2).
    """

    def __init__(
        self,
        name: str,
        *,
        max_active: int = DFL_ACTIVE,
        scope: str = "system",
        cpu_intensive: bool = False,
        on_error: Callable[[Work, BaseException], object] | None = None,
        runtime: Runtime | None = None,
    ) -> None:
        if scope not in SCOPES:
            raise ValueError(f"queue {name!r}: scope {scope!r} is none of {', '.join(map(repr, SCOPES))}")
        if runtime is None:
            from cmwq._core.runtime import default_runtime

            runtime = default_runtime()
        self.name = name
        self.scope = scope
        self.cpu_intensive = cpu_intensive
        self.runtime = runtime
        self._on_error = on_error
        self._max_active = _checked_limit(name, max_active)  # Q
        self._lock = runtime.host.lock()
        self._state = State.OPEN  # Q to change; read under L
        self._pwqs: dict[WorkerPool, PoolWorkQueue] = {}  # Q to change
        self._only: PoolWorkQueue | None = None  # Q to change: the one to use, where the scope has but one pool
        runtime.adopt(self)

    def __repr__(self) -> str:
        return f"<cmwq.WorkQueue {self.name!r} {self._state.value}>"

    # ------------------------------------------------------------------------------- queueing

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """One call, one result: fn(*args, **kwargs) on a worker, in a copy of the caller's context.

        Raises QueueClosed, or ThreadLimit if not even a pool's first thread can be had.
        """
        pwq = self._only or self._pwq_here()
        future: Future[T] = Future(pwq.phase, fn, args, kwargs, copy_context())
        insert(pwq, future)
        return future

    def queue(self, work: Work) -> bool:
        """Queue a work. False: it was pending already, and this call is one with the earlier (E4).

        Raises as `submit` does, and leaves the work not pending then.
        """
        if not work._bit.acquire(False):
            return False
        try:
            pwq = self._only or self._pwq_here()
            # Only where it ran last can it still be running: nobody else can have begun it since, the bit is ours.
            last = work._last
            if last is not None and last is not pwq.pool and work.running:
                pwq = self._pwq_on(last)
            insert(pwq, Queued(work, pwq.phase))
        except BaseException:
            work._bit.release()
            raise
        return True

    @property
    def max_active(self) -> int:
        """Works that may be active on one pool. Settable at any time: raising it starts waiting works at once,
        lowering it lets what is active end."""
        return self._max_active

    @max_active.setter
    def max_active(self, limit: int) -> None:
        with self._lock:
            self._max_active = _checked_limit(self.name, limit)
            for pwq in self._pwqs.values():
                pwq.set_max_active(limit)

    def work_failed(self, work: Work, exc: BaseException) -> None:
        """A queued work raised (B4).  Context: its worker, no lock held."""
        try:
            if self._on_error is not None:
                self._on_error(work, exc)
            else:
                _log.error("%r of queue %r raised", work, self.name, exc_info=exc)
        except BaseException:
            _log.exception("on_error of queue %r raised while it dealt with %r of %r", self.name, exc, work)

    # ------------------------------------------------------------------------------- waiting

    def flush(self, timeout: float | None = None) -> None:
        """Return when every work queued before this call has ended (F1); those queued later do not matter.

        timeout: seconds. Raises CmwqTimeout (the works go on), FlushDeadlock from one of the queue's own works (F7).
        """
        self._refuse_own_work("flush")
        host = self.runtime.host
        deadline = None if timeout is None else host.monotonic() + timeout
        parker = host.parker()
        for pwq in self._all_pwqs():
            self.runtime.check_alive(pwq.pool, self)
            with pwq.pool.lock:
                phase = pwq.seal()
                if phase is None:
                    continue
                phase.parkers.append(parker)
            if not wait_until(lambda phase=phase: phase.done, parker, host, deadline):  # type: ignore[misc]
                raise CmwqTimeout(f"flush of queue {self.name!r}: {phase.count} works still there after {timeout} s")

    def close(self, timeout: float | None = None) -> None:
        """Drain, then gone: works from outside are refused from now on, those its own works queue are done first.

        timeout: seconds. Raises CmwqTimeout: the queue goes on draining, and close() may be called again;
        FlushDeadlock from one of the queue's own works. Closing twice is harmless.
        """
        self._refuse_own_work("close")
        host = self.runtime.host
        deadline = None if timeout is None else host.monotonic() + timeout
        with self._lock:
            if self._state is State.OPEN:
                self._state = State.DRAINING
        while self._has_works():
            self.flush(None if deadline is None else max(0.0, deadline - host.monotonic()))
        with self._lock:
            self._state = State.CLOSED
            pwqs = list(self._pwqs.values())
        for pwq in pwqs:
            with pwq.pool.lock:
                pwq.pool.pwqs.discard(pwq)

    def refuse(self) -> None:
        """Accept nothing from outside any more; do not wait. `close` may follow."""
        with self._lock:
            if self._state is State.OPEN:
                self._state = State.DRAINING

    def cancel_pending(self) -> None:
        """Cancel the future of every submitted call that has not begun. What was queued as a `Work` stays."""
        for pwq in self._all_pwqs():
            with pwq.pool.lock:
                items = [item for item in (*pwq.pool.worklist, *pwq.inactive) if item.queue is self]
            for item in items:
                if isinstance(item, Future):
                    item.cancel()

    @property
    def is_open(self) -> bool:
        """It takes work from outside."""
        return self._state is State.OPEN

    def nr_pending(self) -> int:
        """Works that have not begun."""
        pending = 0
        for pwq in self._all_pwqs():
            with pwq.pool.lock:
                pending += len(pwq.inactive) + sum(item.queue is self for item in pwq.pool.worklist)
        return pending

    def threads(self) -> set[Any]:
        """The threads that run its works right now."""
        found = set()
        for pwq in self._all_pwqs():
            with pwq.pool.lock:
                found |= {worker.thread for worker in pwq.pool.workers if worker.item and worker.item.queue is self}
        return found

    def __enter__(self) -> WorkQueue:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # ------------------------------------------------------------------------------- inside

    def _refuse_own_work(self, what: str) -> None:
        worker = current_worker()
        item = worker.item if worker is not None else None
        if item is not None and item.queue is self:
            raise FlushDeadlock(f"{what} of queue {self.name!r} from its own {item!r}: it would wait for itself")

    def _check_admitted(self) -> None:
        """The queue isn't open: only a work of its own may still add to it, while it drains."""
        worker = current_worker()
        item = worker.item if worker is not None else None
        if self._state is State.CLOSED or item is None or item.queue is not self:
            raise QueueClosed(f"queue {self.name!r} is closed and takes no more work; make a new one")

    def _pwq_here(self) -> PoolWorkQueue:
        """The queue's place on the pool for a work queued here and now."""
        pool = self.runtime.pool_here(self.scope)
        return self._pwqs.get(pool) or self._pwq_on(pool)

    def _pwq_on(self, pool: WorkerPool) -> PoolWorkQueue:
        with self._lock:
            pwq = self._pwqs.get(pool)
            if pwq is None:
                if self._state is not State.OPEN:
                    self._check_admitted()
                pwq = self._pwqs[pool] = PoolWorkQueue(self, pool)
                with pool.lock:
                    pool.pwqs.add(pwq)
                if self.scope == "system" and len(self._pwqs) == 1 and pool.runtime is self.runtime:
                    self._only = pwq
            return pwq

    def _all_pwqs(self) -> list[PoolWorkQueue]:
        with self._lock:
            return list(self._pwqs.values())

    def _has_works(self) -> bool:
        for pwq in self._all_pwqs():
            with pwq.pool.lock:
                if pwq.phase.count or pwq.sealed:
                    return True
        return False

    def forget(self) -> None:
        """In the child of a fork: as if nothing had ever been queued (G2)."""
        self._lock = self.runtime.host.lock()
        self._pwqs = {}
        self._only = None
        if self._state is State.DRAINING:
            self._state = State.CLOSED


def _checked_limit(name: str, limit: int) -> int:
    if limit < 1:
        raise ValueError(f"queue {name!r}: max_active is {limit}, and must be at least 1")
    return limit
