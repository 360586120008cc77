"""Room: how many works of a queue may wait to begin (E9, `max_pending`).

Guarantees: never more than `limit` works have a place; deferred calls and delayed works are let in without one. Threads
that wait for a place get one in order of arrival. If a thread is interrupted while it waits, a place that it had got
goes to the next. The letters are those of `pool`; M: `Room._lock`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeAlias, TypeVar

from cmwq._core.held import holding
from cmwq._core.ranks import Rank
from cmwq._core.surely import surely
from cmwq._errors import QueueFull
from cmwq._pool.mend import mending
from cmwq._workqueue.wait import own_item, run_steps

if TYPE_CHECKING:
    from cmwq._core.ports import Parker
    from cmwq._pool.item import Item
    from cmwq._pool.pool import WorkerPool
    from cmwq._workqueue.queue import WorkQueue
    from cmwq._workqueue.wait import Steps, Target

T = TypeVar("T")
WhenFull: TypeAlias = Literal["block", "raise"]
FULL: tuple[WhenFull, ...] = ("block", "raise")


class Room:
    """The places of one queue. Thread-safe."""

    def __init__(self, queue: WorkQueue, limit: int, full: WhenFull) -> None:
        self._queue = queue  # I
        self.limit = limit  # I
        self.full: WhenFull = full  # I
        self.forget()

    def forget(self) -> None:
        """Be empty, in the child of a fork as at first (G2). It stays the same object, with another lock: works of the
        parent refer to it, and may be taken back in the child, while the lock is held for ever by a thread of the
        parent.
        """
        self._lock = self._queue.runtime.host.lock(Rank.ROOM, mending(self))  # F
        self._holders: set[object] = set()  # M: the works that have a place
        self._waiting: deque[_Turn] = deque()  # M: the threads that wait, the first in front
        self._tickets: dict[int, object] = {}  # M: by the system's number of a thread: see `admit`

    @property
    def taken(self) -> int:
        """How many places are taken."""
        return len(self._holders)

    def take(self, item: object) -> None:
        """Take a place for this work; if the queue was made with full="block", wait for one. Raises QueueFull.

        If this is interrupted, the work may have a place or not; the caller gives it back.
        """
        waits = self.full == "block"
        with self._lock:
            if self._tickets and (me := self._queue.runtime.host.thread_id()) in self._tickets:
                waits, ticket = False, self._tickets[me]
                if ticket in self._holders:
                    self._holders.discard(ticket)
                    self._holders.add(item)
                    return
            if len(self._holders) < self.limit and not self._waiting:
                self._holders.add(item)
                return
        name = self._queue.name
        if not waits:
            raise QueueFull(f"queue {name!r}: {self.limit} works wait already (max_pending); try again later")
        if own_item(self._queue) is not None:
            raise QueueFull(
                f"queue {name!r} is full ({self.limit} works wait), and one of its own works would wait for room "
                "that only works behind it can make"
            )
        run_steps(self.steps(item), self._queue.runtime, None, lambda: f"queue {name!r} is full: no room for one more")

    def take_at_once(self, item: object) -> bool:
        """Take a place for this work if there is one. Does not wait. As in `take`, the caller gives it back."""
        with self._lock:
            if len(self._holders) < self.limit and not self._waiting:
                self._holders.add(item)
                return True
            return False

    def steps(self, item: object) -> Steps[None]:
        """Wait for a place, as steps."""
        turn = _Turn(self, item)

        def leave() -> None:
            with self._lock:
                if turn in self._waiting:
                    self._waiting.remove(turn)

        with surely(leave), surely(leave):
            with self._lock:
                self._waiting.append(turn)
                self._grant()
            yield turn

    def admit(self, ticket: object, submit: Callable[[], T]) -> T:
        """Call `submit` on a thread that must not wait for room, such as that of an event loop, and return its result.

        The first work that asks for a place meanwhile gets that of the ticket, which has waited for one by `steps`;
        another gets one if there is one, or QueueFull. So whatever `submit` does, it does not wait here.
        """
        me = self._queue.runtime.host.thread_id()

        def forget() -> None:
            with self._lock:
                self._tickets.pop(me, None)

        with surely(forget), surely(forget):
            with self._lock:
                self._tickets[me] = ticket
            return submit()

    def give(self, item: object) -> None:
        """A work began, or was taken back: give its place to the thread that has waited longest. Harmless if it has
        none.
        """
        with self._lock:
            self._holders.discard(item)
            self._grant()

    def give_later(self, item: object) -> None:
        """`give`, as soon as this thread is out of all critical sections."""
        self._queue.runtime.host.defer(partial(self.give, item))

    @holding("self._lock")
    def mend(self) -> None:
        """Called after something was raised while M was held: grant what can be granted."""
        self._grant()

    @holding("self._lock")
    def _grant(self) -> None:
        """Give free places to those who wait. If this is interrupted, it is done again."""
        while self._waiting and (self._waiting[0].item in self._holders or len(self._holders) < self.limit):
            turn = self._waiting[0]
            self._holders.add(turn.item)
            turn.granted = True
            for parker in turn.parkers:
                parker.unpark()
            self._waiting.popleft()


class _Turn:
    """The wait of one thread for a place."""

    def __init__(self, room: Room, item: object) -> None:
        self.room = room  # I
        self.item = item  # I
        self.granted = False  # M
        self.parkers: list[Parker] = []  # M

    def done(self) -> bool:
        return self.granted

    def attach(self, parker: Parker) -> bool:
        with self.room._lock:
            if self.granted:
                return False
            self.parkers.append(parker)
            return True

    def detach(self, parker: Parker) -> None:
        with self.room._lock:
            if parker in self.parkers:
                self.parkers.remove(parker)

    def needs(self, waiting: dict[Item, Target]) -> Iterator[Item]:
        """Only works of the queue can make room. If it is ordered, the one that runs must end first."""
        queue = self.room._queue
        return (item for item in list(waiting) if item.queue is queue and queue.ordered)

    @property
    def queue(self) -> WorkQueue:
        return self.room._queue

    def lacks_workers(self) -> Collection[WorkerPool]:
        return [pwq.pool for pwq in self.room._queue.places() if pwq.count_pending()]

    def describe_wait(self) -> str:
        return f"waits for room in queue {self.room._queue.name!r}"
