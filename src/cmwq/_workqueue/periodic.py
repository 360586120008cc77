"""PeriodicWork: a work that is executed again and again at a fixed rate (E13).

Guarantees: the nth execution is due n periods after the first, however long each one takes and however late one began:
due times are computed from the first, never from the last, so nothing drifts. A due time is missed if the previous
execution has still to begin or to end, or if several came while the process was stopped. Missed times are counted, and
not made up for. The work never runs twice at once (E3). What it raises ends that execution only.

How: `FixedRate` is a `Delay` that stays. When it fires it queues the work, unless that is queued or running, and sets
the timer for the next time. So a periodic work may have a delay and an item at once; to take it back is to take both
back. The letters are those of `pool`; W: work._lock.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from cmwq._core import checks
from cmwq._core.held import holding, outside
from cmwq._core.here import host_here
from cmwq._errors import REFUSALS, Refused, own
from cmwq._workqueue.delay import Delay
from cmwq._workqueue.queued import Queued
from cmwq._workqueue.work import Work

if TYPE_CHECKING:
    from cmwq._workqueue.pwq import PoolWorkQueue
    from cmwq._workqueue.queue import WorkQueue


class PeriodicWork(Work):
    """A `Work` that is executed at a fixed rate: `wq.queue_periodic(work, period)`.

    From then on it is pending, until it is stopped by `cancel`, `cancel_sync`, `disable` or `disable_sync`, or by the
    end of its queue, its runtime or the process. Its own function may stop it too, but not by the two that wait. In the
    child of a fork it is idle. `flush` waits for the execution that runs or is about to, and for no later one. `queue`
    returns False while it is pending, and otherwise executes it once. The rest is as in `Work`: it is thread-safe; what
    it raises goes to the queue's `on_error` or to the log, and it goes on.
    """

    __slots__ = ("_missed", "_stopping")

    def _begin(self) -> None:
        self._missed = 0  # W to change, read freely
        self._stopping = False  # W: its delay and its item are being taken back
        super()._begin()

    @property
    def missed(self) -> int:
        """How many due times since `queue_periodic` led to no execution, because the last one had still to begin or to
        end, the process did not run, or the queue was draining. They are not made up for.
        """
        return self._missed if self._born == Work.generation else 0

    def _take_back(self) -> Queued | Delay | None:
        self._stopping = True
        rate = self._take_back_delay()
        item = super()._take_back()
        self._stopping = False
        return item or rate

    def mend(self) -> None:
        super().mend()
        if self._stopping:
            self._take_back()
            host_here().defer(self._drop_taken)


class FixedRate(Delay):
    """The due times of a periodic work."""

    repeats = True

    __slots__ = ("_beat", "_begins", "_period", "_queued")

    def __init__(self, wq: WorkQueue, pwq: PoolWorkQueue, work: PeriodicWork, first: float, period: float) -> None:
        super().__init__(wq, pwq, work, first)
        self._period = period  # I
        self._begins = wq.runtime.host.monotonic() + first  # I: on the host's clock
        self._beat = 0  # W: the number of the next due time
        self._queued = 0  # W: how many due times led to a queueing

    def settle(self, item: Queued | None) -> None:
        if self._fired:
            self._wait_for_next()

    @outside
    def _be_due(self) -> None:
        work = self.work
        with work._lock:
            if work._delay is not self:
                return  # it was stopped at this very moment
            self._fired = True  # until the next timer is set; `settle` sets it after an interruption
            self._beat = self._latest_due() + 1
            goes_on = work._item is not None or work.running or self._try_to_queue()
            work._missed = self._beat - self._queued  # type: ignore[attr-defined]
            if goes_on:
                self._wait_for_next()
            else:  # nothing is logged: the closing of the queue is about to stop it (`drain.end_delays`)
                work._taken.append(self)
                work._delay = None
                self.stop()
        if not goes_on:
            work._drop_taken()

    @holding("self.work._lock")
    def _try_to_queue(self) -> bool:
        """Queue the work. False: its queue is being closed. A queue that drains refuses it, but only for now."""
        try:
            self.insert(accepted=False)
        except REFUSALS as exc:
            own(exc)
            try:
                self.wq.check_takes_delays()
            except REFUSALS as exc:
                own(exc)
                return False
        else:
            self._queued += 1
            self.futures = []  # they belong to this execution
        return True

    def _due(self, beat: int) -> float:
        return self._begins + beat * self._period

    @holding("self.work._lock")
    def _latest_due(self) -> int:
        """The number of the latest due time that has come. At least one has, as the timer has fired."""
        now = self.wq.runtime.host.monotonic()
        beat = max(self._beat, int((now - self._begins) / self._period))
        while beat > self._beat and self._due(beat) > now:  # the division was rounded
            beat -= 1
        while self._due(beat + 1) <= now:
            beat += 1
        return beat

    @holding("self.work._lock")
    def _wait_for_next(self) -> None:
        """Set the timer for the next due time. Raises ThreadLimit and QueueClosed at the end of the runtime."""
        host = self.wq.runtime.host
        self._timer = host.call_later(self._due(self._beat) - host.monotonic(), self.fire)
        self._fired = False

    def _next_context(self) -> Any:
        """A context of its own for each execution: what one changes the next does not see."""
        return None if self._context is None else self._context.copy()


def begin(wq: WorkQueue, work: PeriodicWork, period: float, first: float | None) -> bool:
    """`WorkQueue.queue_periodic`, where the promises are stated."""
    checks.instance("what is queued periodically", work, PeriodicWork)
    period = checks.seconds("period", period, checks.MIN_PERIOD, checks.ENDLESS)
    first = period if first is None else checks.seconds("first", first, most=checks.ENDLESS)
    return _begin(wq, work, period, max(0.0, first))


def _begin(wq: WorkQueue, work: PeriodicWork, period: float, first: float) -> bool:
    wq._check_open()
    try:
        pwq = wq._only or wq.place_here()
        with work._here():
            if not work.is_idle:
                return False
            wq._check_open()
            work._missed = 0
            FixedRate(wq, pwq, work, first, period).start()
    except Refused as exc:
        own(exc)
        wq.runtime.host.defer(partial(_begin, wq, work, period, first))
    return True
