"""ItemEnd: the end of one queueing of a work, as something to wait for (F2, F5). The letters are those of `pool`."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

from cmwq._workqueue.wait import needs_of

if TYPE_CHECKING:
    from cmwq._core.ports import Parker
    from cmwq._pool.item import Item
    from cmwq._pool.pool import WorkerPool
    from cmwq._workqueue.queue import WorkQueue
    from cmwq._workqueue.queued import Queued
    from cmwq._workqueue.wait import Target


class ItemEnd:
    """One queueing of a work ends, or is taken back. `verb` names the wait in messages."""

    __slots__ = ("item", "verb")

    def __init__(self, item: Queued, verb: str) -> None:
        self.item = item  # I
        self.verb = verb  # I

    def done(self) -> bool:
        return self.item.over

    def attach(self, parker: Parker) -> bool:
        with self.item.pwq.pool.lock:
            if self.item.over:
                return False
            if self.item.parkers is None:
                self.item.parkers = []
            self.item.parkers.append(parker)
            return True

    def detach(self, parker: Parker) -> None:
        with self.item.pwq.pool.lock:
            if self.item.parkers is not None and parker in self.item.parkers:
                self.item.parkers.remove(parker)

    def needs(self, waiting: dict[Item, Target]) -> Iterator[Item]:
        return needs_of(self.item, waiting)

    @property
    def queue(self) -> WorkQueue:
        return self.item.queue

    def lacks_workers(self) -> Collection[WorkerPool]:
        pool = self.item.pwq.pool
        with pool.lock:
            runs = any(worker.item is self.item for worker in pool.workers)
            return () if self.item.over or runs else (pool,)

    def describe_wait(self) -> str:
        return f"{self.verb} {self.item.describe()}"
