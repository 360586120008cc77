"""Room: how many works of a queue may wait (E9, `max_pending`).

Guarantees: never more than `limit` works have a place; who waits for one gets it in order of arrival; a place given up
by a waiter that was interrupted goes to the next. Its lock is a leaf: it may be taken with any other held.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

from cmwq._core.ranks import Rank
from cmwq._core.wait import own_item, run_steps
from cmwq._errors import QueueFull

if TYPE_CHECKING:
    from cmwq._core.item import Item
    from cmwq._core.pool import WorkerPool
    from cmwq._core.ports import Parker
    from cmwq._core.queue import WorkQueue
    from cmwq._core.wait import Steps, Target

FULL = ("block", "raise")


class Room:
    """The places of one queue. Thread-safe."""

    def __init__(self, queue: WorkQueue, limit: int, full: str) -> None:
        self._queue = queue  # I
        self._lock = queue.runtime.host.lock(Rank.ROOM)
        self.limit = limit  # I
        self.full = full  # I
        self.taken = 0  # its own lock
        self._waiting: deque[_Turn] = deque()  # its own lock

    def take(self, timeout: float | None = None) -> None:
        """Take a place; wait for one if the queue was made to. Raises QueueFull, CmwqTimeout."""
        with self._lock:
            if self.taken < self.limit and not self._waiting:
                self.taken += 1
                return
        name = self._queue.name
        if self.full == "raise":
            raise QueueFull(f"queue {name!r}: {self.limit} works wait already (max_pending); try again later")
        if own_item(self._queue) is not None:
            raise QueueFull(
                f"queue {name!r} is full ({self.limit} works wait), and one of its own works would wait for room "
                "that only works behind it can make"
            )
        run_steps(self.steps(), self._queue.runtime, timeout, lambda: f"queue {name!r} is full: no room for one more")

    def steps(self) -> Steps[None]:
        """Wait for a place, as a waiting call."""
        turn = _Turn(self)
        with self._lock:
            if self.taken < self.limit and not self._waiting:
                self.taken += 1
                return
            self._waiting.append(turn)
        try:
            yield turn
        except BaseException:
            with self._lock:
                granted = turn.granted
                if not granted:
                    self._waiting.remove(turn)
            if granted:
                self.give()
            raise

    def give(self) -> None:
        """A work began, or was taken back. Its place goes to who waited longest."""
        parkers: list[Parker] = []
        with self._lock:
            if self._waiting:
                turn = self._waiting.popleft()
                turn.granted = True
                parkers = turn.parkers
            else:
                self.taken -= 1
        for parker in parkers:
            parker.unpark()


class _Turn:
    """One who waits for a place."""

    def __init__(self, room: Room) -> None:
        self.room = room
        self.granted = False
        self.parkers: list[Parker] = []

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
        return [pwq.pool for pwq in self.room._queue.places() if pwq.has_works_waiting()]

    def describe_wait(self) -> str:
        return f"waits for room in queue {self.room._queue.name!r}"
