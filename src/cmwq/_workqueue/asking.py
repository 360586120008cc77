"""Asking: one item of the pool that is a source's place in line first, and then the call that the source gave (E12,
`serving`). Also `ServingEnd`, by which a thread waits for the end of a serving.

Guarantees: the answer passes from the source into `Ask.answers` within one call of a C function, with no bytecode in
between. From then on the item has it, and whatever ends the item, `abort` included, looks there.

A flush does not wait for a place in line, because what the source still has was not queued. So a place is counted in a
phase of its own (`Asking`), which is never sealed. When the source has answered, the item moves to the queue's current
phase, and is a work like others. An item that asks at the moment when its queue begins to drain or close moves too,
because nothing of the queue may run after that. (`mend` counts by `phase`, so the move is a single step.)

The letters are those of `pool`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator
from itertools import starmap
from typing import TYPE_CHECKING, Any

from cmwq._core import log
from cmwq._core.held import holding, outside
from cmwq._core.naming import name_of
from cmwq._core.surely import surely
from cmwq._pool import hogs
from cmwq._pool.item import lay_out
from cmwq._pool.worker import current_worker
from cmwq._workqueue.future import Future
from cmwq._workqueue.phase import Phase
from cmwq._workqueue.wait import needs_of

if TYPE_CHECKING:
    from cmwq._core.ports import Parker
    from cmwq._pool.item import Item
    from cmwq._pool.pool import WorkerPool
    from cmwq._workqueue.pwq import PoolWorkQueue
    from cmwq._workqueue.queue import WorkQueue
    from cmwq._workqueue.serving import Serving
    from cmwq._workqueue.wait import Target


class Asking(Phase):
    """The phase in which a place in line is counted. No flush waits for it."""

    __slots__ = ()
    asks = True

    def __init__(self, pwq: PoolWorkQueue) -> None:
        super().__init__(pwq, sys.maxsize)  # later than any phase that is flushed


class Ask(Future[None]):
    """A place in line, of one call that the source may give; then that call.

    It is a future so that it is taken back, counted and shown like all others. No caller waits for it.
    """

    _serving: Serving
    answers: list[Any]  # the running worker's own: empty, or what the source gave
    news: object = None  # V: the last news when the source was asked
    number: int = 0  # V: which call of the source it has, counted from 1; 0: none
    begins: bool = False  # S: its call is about to begin, so whatever is raised from now on is the call's
    over: bool = False  # S: its call has ended, or will never run
    heir: Ask | None = None  # V: the item that runs its call in its stead

    def __init__(self, serving: Serving, pwq: PoolWorkQueue) -> None:
        self._serving = serving  # I
        self.phase = Asking(pwq)  # L: where it is counted
        self._call = (serving.source,)  # S
        self._context = serving.context.copy()  # S
        self.answers = []  # S

    @outside
    def run(self) -> None:
        serving, context = self._serving, self._context
        assert context is not None
        waited = bool(self.answers)
        if not waited:
            if not serving.take_turn(self):
                return
            error: BaseException | None = None
            try:
                # This single call asks the source and stores its answer: see the module's docstring. StopIteration ends
                # it.
                self._context.run(self.answers.extend, starmap(serving.source, ((),)))  # type: ignore[union-attr]
            except BaseException as exc:
                error = exc
            try:
                runs = serving.settle(self, error)
            finally:
                error = None  # break the cycle through the traceback
            if not runs:
                return
        call = self.answers[0]
        self.begins = True
        if waited:
            serving.arrange()  # the source may be asked for one more
        try:
            self._context.run(call)  # type: ignore[union-attr]
        except BaseException as exc:
            self._context.run(serving.call_failed, call, exc)  # type: ignore[union-attr]
        self.over = True
        serving.call_ended(self)
        self._call = self._context = None

    @outside
    def abort(self, exc: BaseException) -> None:
        self._serving.recover(self, exc)
        super().abort(exc)

    def cancel(self) -> bool:
        """Take the place out of line. If it has a call, and waits in a frozen queue, that call is reported as lost."""
        cancelled = super().cancel()
        if self.cancelled() and self.answers and not self.over:  # else it is still to run, or was never given
            self.over = True
            self._serving.lose(self, "it was cancelled")
        return cancelled

    def describe(self) -> str:
        what = "call" if self.answers else "asking of source"
        return f"{what} {name_of(self.function)} of queue {self.queue.name!r}"


lay_out(Ask, "phase", "_call", "_context", "_state", "_serving", "answers", "news", "number", "begins", "over", "heir")


class ServingEnd:
    """The target of a wait for the end of a serving."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving  # I

    def done(self) -> bool:
        return self._serving.over

    def attach(self, parker: Parker) -> bool:
        with self._serving._lock:
            self._serving._parkers.append(parker)
        return not self.done()

    def detach(self, parker: Parker) -> None:
        with self._serving._lock:
            if parker in self._serving._parkers:
                self._serving._parkers.remove(parker)

    def _items(self) -> list[Ask]:
        """Each copy is one step, without V: who follows a chain of waits holds WAITS, and may not take V after that."""
        serving, asker = self._serving, self._serving._asker
        return [*serving._asks.copy().values(), *serving._calls.copy(), *([] if asker is None else [asker])]

    def needs(self, waiting: dict[Item, Target]) -> Iterator[Item]:
        for item in self._items():
            yield from needs_of(item, waiting)

    @property
    def queue(self) -> WorkQueue:
        return self._serving._wq

    def lacks_workers(self) -> Collection[WorkerPool]:
        return {item.pwq.pool for item in self._items() if item._state == "PENDING"}

    def describe_wait(self) -> str:
        return f"waits for the end of what is served to queue {self.queue.name!r}"


@outside
def call_on_stop(serving: Serving) -> None:
    """Call the serving's `on_stop`, unless its source had no more, or another thread has taken the call upon itself.

    Of two threads that stop it at once, the one that has V first takes the call away from the other. Who is interrupted
    before the call has returned gives it back, and the next `stop` makes it (F10).
    """
    taken: list[Callable[[], object]] = []

    def give_back() -> None:
        if taken:
            serving._on_stop = taken[0]  # V is not needed: it is nobody else's
            taken.clear()

    with surely(give_back), surely(give_back):
        with serving._lock:
            if serving._on_stop is not None and not serving._exhausted:
                taken.append(serving._on_stop)
            serving._on_stop = None
        for on_stop in taken:
            try:
                on_stop()
            except Exception:
                log.exception("on_stop of a source of queue %r raised", serving._wq.name)
        taken.clear()


# ----------------------------------------------------------------------------------- what is done under L


def stand_in_line(pwq: PoolWorkQueue, ask: Ask) -> bool:
    """Insert a place in line, which no flush counts. False: the queue takes nothing now."""
    with pwq.pool.lock:
        if pwq.is_shut():
            return False
        pwq.place(ask)
        pwq.pool.kick_or_settle()
        return True


def stand_first(pwq: PoolWorkQueue, ask: Ask) -> bool:
    """Make it the queue's next work, before all that wait. False: the pool is closing and runs nothing any more."""
    with pwq.pool.lock:
        if pwq.pool.closing:
            return False
        ask.phase = pwq.phase
        pwq.inactive.appendleft(ask)
        pwq.phase.queued += 1
        pwq.activate()
        pwq.pool.kick_or_settle()
        return True


def count(ask: Ask) -> None:
    """Count it from now on as a work that a flush, a drain or a close waits for."""
    pwq = ask.pwq
    with pwq.pool.lock:
        if type(ask.phase) is Asking:
            ask.phase = pwq.phase
            pwq.phase.queued += 1


@holding("serving._lock")
def waiting(serving: Serving, pwq: PoolWorkQueue) -> list[Ask]:
    """Return the calls that wait there, because they compute for long and enough do (A9, A10)."""
    known = pwq.pool.lane.records
    return [ask for ask in serving._calls if ask.pwq is pwq and ask._state == "PENDING"] if known else []


def accept(ask: Ask) -> bool:
    """Make it a work of its queue: it has a call. False: the call must not begin here and now, because the queue is
    frozen, or because it will probably compute for long, and enough do (A9, A10).
    """
    pwq, pool = ask.pwq, ask.pwq.pool
    with pool.lock:
        worker = current_worker()
        if pwq.frozen or pool.closing:
            return False
        record = pool.lane.record_of(ask) if pool.lane.records else None
        if record is not None and worker is not None and not worker.is_rescuer:
            if not hogs.may_go_on(pool, worker, ask, record):
                return False
            pool.kick_or_settle()  # it may not count as running any more
        if type(ask.phase) is Asking:
            ask.phase = pwq.phase
            pwq.phase.queued += 1
        return True
