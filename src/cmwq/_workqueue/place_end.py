"""What a thread waits for at a queue's place on one pool: PhaseEnd in a flush (F1), Quiet in a freeze (E8).

The letters are those of `pool`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

from cmwq._workqueue.wait import pending_of

if TYPE_CHECKING:
    from cmwq._core.ports import Parker
    from cmwq._pool.item import Item
    from cmwq._pool.pool import WorkerPool
    from cmwq._workqueue.phase import Phase
    from cmwq._workqueue.pwq import PoolWorkQueue
    from cmwq._workqueue.queue import WorkQueue
    from cmwq._workqueue.wait import Target


class PhaseEnd:
    """Done when everything has ended that was queued to a queue's place on one pool before a flush (F1)."""

    def __init__(self, phase: Phase) -> None:
        self.phase = phase  # I

    def done(self) -> bool:
        return self.phase.which().done

    def attach(self, parker: Parker) -> bool:
        with self.phase.pwq.pool.lock:
            phase = self.phase.which()
            if phase.done:
                return False
            phase.parkers.append(parker)
            return True

    def detach(self, parker: Parker) -> None:
        with self.phase.pwq.pool.lock:
            phase = self.phase.which()
            if parker in phase.parkers:
                phase.parkers.remove(parker)

    def needs(self, waiting: dict[Item, Target]) -> Iterator[Item]:
        for item in list(waiting):
            for each in (item, pending_of(item, self.phase.pwq.wq)):
                if each is not None and each.pwq is self.phase.pwq and each.phase.number <= self.phase.number:
                    yield item

    @property
    def queue(self) -> WorkQueue:
        return self.phase.pwq.wq

    def lacks_workers(self) -> Collection[WorkerPool]:
        return (self.phase.pwq.pool,) if self.phase.pwq.count_pending(self.phase.number) else ()

    def describe_wait(self) -> str:
        return f"flushes queue {self.phase.pwq.wq.name!r}"


class Quiet:
    """Done when no work of a queue executes on one pool, or when the queue was thawed (E8)."""

    def __init__(self, pwq: PoolWorkQueue) -> None:
        self.pwq = pwq  # I
        self.thaws = pwq.nr_thaws  # I

    def done(self) -> bool:
        return self.pwq.nr_thaws != self.thaws or not self.pwq.is_executing()

    def attach(self, parker: Parker) -> bool:
        with self.pwq.pool.lock:
            self.pwq.freezers.append(parker)
        return not self.done()

    def detach(self, parker: Parker) -> None:
        with self.pwq.pool.lock:
            if parker in self.pwq.freezers:
                self.pwq.freezers.remove(parker)

    def needs(self, waiting: dict[Item, Target]) -> Iterator[Item]:
        return (item for item in list(waiting) if item.pwq is self.pwq)

    @property
    def queue(self) -> WorkQueue:
        return self.pwq.wq

    def lacks_workers(self) -> Collection[WorkerPool]:
        return ()

    def describe_wait(self) -> str:
        return f"freezes queue {self.pwq.wq.name!r}"
