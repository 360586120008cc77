"""Gate: whether a queue takes work, and from whom (F3). What `WorkQueue` inherits of it is about that alone.

Guarantees: a closed queue accepts nothing, and nothing accepted is lost; while it drains only its own works may add to
it, and works that it had accepted before, with a delay; each change is known to all places of the queue at once, under
their pools' locks, so that each work is either seen by who drains, or refused. The letters are those of `pool`; Q is
`WorkQueue._lock`.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

from cmwq._core.held import holding, outside
from cmwq._errors import QueueClosed, Reentered
from cmwq._workqueue.wait import own_item

if TYPE_CHECKING:
    from cmwq._core.ports import Lock
    from cmwq._pool.pool import WorkerPool
    from cmwq._workqueue.pwq import PoolWorkQueue
    from cmwq._workqueue.runtime import Runtime
    from cmwq._workqueue.serving import Serving


class State(Enum):
    OPEN = "open"
    DRAINING = "draining"  # works of the queue's own works are still accepted, unless it is sealed
    CLOSED = "closed"


class Gate:
    """The part of a queue that refuses."""

    name: str
    runtime: Runtime
    _lock: Lock  # Q
    _pwqs: dict[WorkerPool, PoolWorkQueue]  # Q to change

    _chains = True
    """At exit its own works may queue to it for a while. An executor's may not: as the standard library's."""

    def __init__(self) -> None:
        self._state = State.OPEN  # Q and L to change; read under either
        self._shut = False  # Q to change: it is not open
        self._drainers: tuple[object, ...] = ()  # Q: drain() calls in progress
        self._closing = False  # Q: DRAINING is for good
        self._sealed = False  # Q to change: its own works are refused, too
        self._servings: tuple[Serving, ...] = ()  # Q to change: the sources that it is served from

    @property
    def is_open(self) -> bool:
        """It takes work from outside."""
        return self._state is State.OPEN

    @property
    def is_closed(self) -> bool:
        """It never takes work again."""
        return self._state is State.CLOSED

    @property
    def drains(self) -> bool:
        """It takes no work from outside for now, and will be open again."""
        return self._state is State.DRAINING and not self._closing

    # ------------------------------------------------------------------------------- opened and shut

    def begin_drain(self, drain: object) -> None:
        """From now on only its own works may queue to it, until all who drain have ended (F3)."""
        with self._lock:
            self._drainers = (*self._drainers, drain)
            self._change_state()
        self._tell_servings()

    def end_drain(self, drain: object) -> None:
        """That drain is over. May be called again."""
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
        """Accept nothing from outside any more; do not wait. `close` may follow."""
        try:
            with self._lock:
                self._closing = True
                self._change_state()
            self._tell_servings()
        except Reentered:
            self.runtime.host.defer(self.refuse)

    @outside
    def _tell_servings(self) -> None:
        """Its state changed: it takes works from its sources, or does not. Raises Reentered."""
        for serving in self._servings:
            serving.heed()

    def stop_servings(self) -> None:
        """It closes: no source is asked any more."""
        for serving in self._servings:
            serving.stop()

    def seal(self) -> bool:
        """It closes, and accepts nothing from its own works either. True: they had queued to it since it closes."""
        try:
            with self._lock:
                news, self._sealed = not self._sealed, True
                places = list(self._pwqs.values())
            return news and any(pwq.nr_admitted for pwq in places)
        except Reentered:
            self.runtime.host.defer(self.seal)
            return False

    def shut_down(self) -> None:
        """Accept nothing any more, from its own works neither; do not wait. `close` may follow."""
        self.refuse()
        self.seal()

    @holding("self._lock")
    def _change_state(self) -> None:
        """The gates of all places agree with the state from now on: a work is either seen by who drains, or refused."""
        if self._state is not State.CLOSED:
            self._state = State.DRAINING if self._drainers or self._closing else State.OPEN
        self._shut = self._state is not State.OPEN
        for pwq in self._pwqs.values():
            with pwq.pool.lock:
                pwq.gate = self._shut or pwq.pool.closing or pwq.observed

    def _forget_drains(self) -> None:
        """In the child of a fork: nobody drains it, and what closes it is closed."""
        self._drainers = ()
        self._servings = ()
        self._shut = self._closing
        if self._closing:
            self._state = State.CLOSED
        elif self._state is State.DRAINING:
            self._state = State.OPEN

    # ------------------------------------------------------------------------------- asked

    def _check_open(self) -> None:
        """Raise QueueClosed where a new work may not be queued. For one that is not to be listed yet."""
        if self._shut:
            self._check_admitted(None)

    def check_takes_delays(self) -> None:
        """Raise QueueClosed if it is being closed, or its runtime is: nobody would wait for the delay."""
        if self._closing or self.runtime.closed:
            raise QueueClosed(self._why_refused(None))

    def _check_admitted(self, pool: WorkerPool | None, *, accepted: bool = False) -> None:
        """The gate is shut. A draining queue lets its own works queue to it, and what it had accepted before."""
        outside = self.runtime.exiting and not accepted and own_item(self) is None
        if not (outside or (pool is not None and pool.closing)):
            if self._state is State.OPEN:
                return
            if self._state is State.DRAINING and (accepted or not (self._sealed or own_item(self) is None)):
                return
        raise QueueClosed(self._why_refused(pool))

    def _why_refused(self, pool: WorkerPool | None) -> str:
        """An executor's in the standard library's words, too, which programs look for."""
        runtime = self.runtime
        after = "interpreter shutdown" if runtime.exiting else "shutdown"
        words = "" if self._chains else f"cannot schedule new futures after {after}: "
        if runtime.exiting or runtime.closed or (pool is not None and pool.closing):
            return f"{words}queue {self.name!r}: its runtime {runtime.why_closed()}"
        if self.drains:
            return f"queue {self.name!r} is draining and takes no work from outside; queue again after drain()"
        return f"{words}queue {self.name!r} is closed and takes no more work; make a new one"
