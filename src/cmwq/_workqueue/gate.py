"""Gate: whether a queue takes works, and from whom (F3). `WorkQueue` inherits this, and nothing else, from it.

Guarantees: a closed queue accepts nothing, and nothing that was accepted is lost. While the queue drains, only its own
works, and delayed works that it accepted before, may be added to it. Each change of state reaches every place of the
queue under the lock of that place's pool, so that each work is either seen by the thread that drains, or refused. The
letters are those of `pool`; Q is `WorkQueue._lock`.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

from cmwq._core.held import holding, outside
from cmwq._core.records import QueueRecord
from cmwq._errors import QueueClosed, Refused, own
from cmwq._workqueue.wait import own_item

if TYPE_CHECKING:
    from cmwq._core.ports import Lock
    from cmwq._pool.pool import WorkerPool
    from cmwq._workqueue.pwq import PoolWorkQueue
    from cmwq._workqueue.runtime import Runtime
    from cmwq._workqueue.serving import Serving


class State(Enum):
    OPEN = "open"
    DRAINING = "draining"  # the queue's own works may still queue to it, unless it is sealed
    CLOSED = "closed"


class Gate(QueueRecord):
    """The part of a queue that accepts and refuses works."""

    name: str
    runtime: Runtime
    _lock: Lock  # Q
    _pwqs: dict[WorkerPool, PoolWorkQueue]  # Q to change

    _chains = True
    """At exit the queue's own works may queue to it for a while. An executor's may not, as in the standard library."""

    def __init__(self) -> None:
        self._state = State.OPEN  # Q to change, read freely; each place has its `gate` beside it
        self._shut = False  # Q to change: the queue is not open
        self._drainers: tuple[object, ...] = ()  # Q: drain() calls in progress
        self._closing = False  # Q to change: it is closing for good
        self._sealed = False  # Q to change: its own works are refused too
        self._servings: tuple[Serving, ...] = ()  # Q to change: the sources served to it

    @property
    def is_open(self) -> bool:
        """The queue takes works from outside."""
        return self._state is State.OPEN

    @property
    def is_closed(self) -> bool:
        """The queue will never take works again."""
        return self._state is State.CLOSED

    @property
    def drains(self) -> bool:
        """The queue takes no works from outside for now, but will be open again."""
        return self._state is State.DRAINING and not self._closing

    # ------------------------------------------------------------------------------- opened and shut

    def begin_drain(self, drain: object) -> None:
        """From now on only the queue's own works may queue to it, until every drain has ended (F3)."""
        with self._lock:
            self._drainers = (*self._drainers, drain)
            self._change_state()
        self._tell_servings()

    def end_drain(self, drain: object) -> None:
        """That drain is over. May be called more than once."""
        with self._lock:
            self._drainers = tuple(other for other in self._drainers if other is not drain)
            self._change_state()
        self._tell_servings()

    def be_closed(self) -> None:
        """From now on nobody may queue to it."""
        with self._lock:
            self._closing = True
            self._state = State.CLOSED
            self._change_state()

    def refuse(self) -> None:
        """Accept nothing from outside any more, without waiting. `close` may follow."""
        try:
            with self._lock:
                self._closing = True
                self._change_state()
            self._tell_servings()
        except Refused as exc:
            own(exc)
            self.runtime.host.defer(self.refuse)

    @outside
    def _tell_servings(self) -> None:
        """The state changed: tell the sources whether the queue takes their works. Raises Reentered."""
        for serving in self._servings:
            serving.heed()

    def stop_servings(self) -> None:
        """The queue closes: no source is asked any more."""
        for serving in self._servings:
            serving.stop()

    def seal(self) -> bool:
        """Refuse the closing queue's own works too. True: some of them had queued to it since it began to close."""
        try:
            with self._lock:
                news, self._sealed = not self._sealed, True
                places = list(self._pwqs.values())
            return news and any(pwq.nr_admitted for pwq in places)
        except Refused as exc:
            own(exc)
            self.runtime.host.defer(self.seal)
            return False

    def shut_down(self) -> None:
        """Accept nothing any more, from the queue's own works either, without waiting. `close` may follow."""
        self.refuse()
        self.seal()

    @holding("self._lock")
    def _change_state(self) -> None:
        """Compute the state anew and set the gate of every place to match it."""
        if self._state is not State.CLOSED:
            self._state = State.DRAINING if self._drainers or self._closing else State.OPEN
        self._shut = self._state is not State.OPEN
        for pwq in self._pwqs.values():
            with pwq.pool.lock:
                pwq.settle_gate()

    def _forget_drains(self) -> None:
        """In the child of a fork: nobody drains the queue any more. If it was closing, it is closed."""
        self._drainers = ()
        self._servings = ()
        self._shut = self._closing
        if self._closing:
            self._state = State.CLOSED
        elif self._state is State.DRAINING:
            self._state = State.OPEN

    # ------------------------------------------------------------------------------- asked

    def _check_open(self) -> None:
        """Raise QueueClosed if a new work may not be queued. For works that will be put in a list only later."""
        if self._shut:
            self._check_admitted(None)

    def check_takes_delays(self) -> None:
        """Raise QueueClosed if the queue or its runtime is closing: then nobody would wait for the delay."""
        if self._closing or self.runtime.closed:
            raise QueueClosed(self._why_refused(None))

    def _check_admitted(self, pool: WorkerPool | None, *, accepted: bool = False) -> None:
        """Called while the gate is shut: raise QueueClosed unless the work is let through.

        A draining queue lets in its own works, and those that it accepted before.
        """
        outside = self.runtime.exiting and not accepted and own_item(self) is None
        if not (outside or (pool is not None and pool.closing)):
            if self._state is State.OPEN:
                return
            if self._state is State.DRAINING and (accepted or not (self._sealed or own_item(self) is None)):
                return
        raise QueueClosed(self._why_refused(pool))

    def _why_refused(self, pool: WorkerPool | None) -> str:
        """The message of QueueClosed. An executor's also has the standard library's words, which programs look for."""
        runtime = self.runtime
        after = "interpreter shutdown" if runtime.exiting else "shutdown"
        words = "" if self._chains else f"cannot schedule new futures after {after}: "
        if runtime.exiting or runtime.closed or (pool is not None and pool.closing):
            return f"{words}queue {self.name!r}: its runtime {runtime.why_closed(words=not words)}"
        if self.drains:
            return f"queue {self.name!r} is draining and takes no work from outside; queue again after drain()"
        return f"{words}queue {self.name!r} is closed and takes no more work; make a new one"
