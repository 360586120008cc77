"""WorkFuture: the result of one execution of a queued `Work`. The letters are those of `pool`."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from concurrent.futures._base import FINISHED, PENDING, RUNNING
from typing import TYPE_CHECKING, Any

from cmwq._core.held import holding, outside
from cmwq._pool.item import lay_out
from cmwq._workqueue.future import ATTRIBUTES, Future
from cmwq._workqueue.wait import needs_of

if TYPE_CHECKING:
    from cmwq._pool.item import Item
    from cmwq._pool.pool import WorkerPool
    from cmwq._workqueue.phase import Phase
    from cmwq._workqueue.queued import Queued
    from cmwq._workqueue.wait import Target
    from cmwq._workqueue.work import Work


class WorkFuture(Future[Any]):
    """The result of the execution of a queued `Work` that is to come.

    It is not the queued item. Cancelling it leaves the work alone.
    """

    _item: Queued | None = None

    def __init__(self, phase: Phase, work: Work) -> None:
        self.phase = phase  # I
        self._work = work  # I

    def of(self, item: Queued) -> None:
        """It gets the result of this item.  Context: lock of the item's pool held, or not queued yet."""
        self._item = item

    @outside
    def settle(self, result: Any, exception: BaseException | None) -> None:
        """Set the outcome, unless the future was cancelled. If this is interrupted, it may be called again.

        Context: the worker, or whoever mourns for it.
        """
        with self.phase.pwq.pool.lock:
            audience = self._audience
            if self._state == PENDING:
                self._result, self._exception = result, exception
                if exception is not None and self.phase.pwq.wq.runtime.on_unfetched is not None:
                    self._note_unfetched(exception)
                self._state = FINISHED if audience is None else RUNNING
                self._item = None  # last: without an item it counts as delayed until its state says that it is done
            elif self._state not in (RUNNING, FINISHED):
                return
        if audience is not None:
            audience.announce(self)

    @holding("self.pwq.pool.lock")
    def _withdraw(self) -> None:
        pass

    def needs(self, waiting: dict[Item, Target]) -> Iterator[Item]:
        item = self._item
        if item is not None:
            yield from needs_of(item, waiting)
        elif self._state == PENDING:  # delayed: it runs after the current execution of its work, which may be waiting
            yield from (other for other in list(waiting) if other.work is self._work)

    def lacks_workers(self) -> Collection[WorkerPool]:
        item = self._item
        return () if item is None or not item.is_awaited else (item.phase.pwq.pool,)

    def describe(self) -> str:
        return "a work" if self._item is None else self._item.describe()


lay_out(WorkFuture, *ATTRIBUTES, "_work", "_item")
