"""Measured: the phase of a work whose times are taken (H1). `_pool.figures` says which works these are.

Guarantees: it counts as the phase in which it is counted: flushes, mending and the queue's place see no difference. A
work that is taken back leaves no figures. Works that are not measured pay nothing, since a worker compares the phase of
each item with the last one's anyway (`Worker.served`), and one that differs takes the slow way. Where works are
recorded for a trace, the measured ones are both.

The letters are those of `pool`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cmwq._core.held import holding, outside
from cmwq._pool.figures import see
from cmwq._workqueue.phase import Phase

if TYPE_CHECKING:
    from cmwq._pool.item import Item
    from cmwq._pool.ring import Recorder
    from cmwq._pool.worker import Worker


class Measured(Phase):
    """Stands in the place of a phase for one work."""

    __slots__ = ("_began", "_name", "_phase", "_queued_at", "_stands_for", "_used")
    measures = True

    def __init__(self, phase: Phase, stands_for: int) -> None:
        self.pwq = phase.pwq  # I
        self.number = phase.number  # I
        self._phase = phase  # I
        self._stands_for = stands_for  # I
        self._queued_at = phase.pwq.pool.host.monotonic()  # I: seconds, on the host's clock
        self._began = 0.0  # S
        self._used: float | None = None  # S
        self._name = ""  # S

    @property
    def counter(self) -> Phase:
        return self._phase

    @outside
    def run(self, worker: Worker, recorder: Recorder | None) -> None:
        """Run the item and note what it took. A trace records it as well, by a clock of its own."""
        pool, figures, item = self.pwq.pool, self.pwq.figures, worker.item
        assert item is not None
        began, used = pool.host.monotonic(), worker.cpu_time()
        with pool.lock:
            seen = see(worker, began)
            if seen is not None:
                seen.used, self._name = used, seen.work
        try:
            self._phase.run(worker, recorder)
        finally:
            ran, used_now = pool.host.monotonic() - began, worker.cpu_time()
            cost = None if used is None or used_now is None else used_now - used
            with pool.lock:
                waited = max(0.0, began - self._queued_at)
                figures.note(pool, self._name, waited, ran, cost, item.raised is not None, self._stands_for)
            del item  # the traceback of what it raised keeps this frame

    @holding("self.pwq.pool.lock")
    def retire(self) -> None:
        self._phase.retire()

    @holding("self.pwq.pool.lock")
    def leave(self) -> None:
        self._phase.leave()

    @holding("self.pwq.pool.lock")
    def withdraw(self, item: Item) -> None:
        self._phase.withdraw(item)
