"""Recording: the subscription of a trace. It keeps the newest of what happens, where others drop the newest.

Guarantees: its works are recorded by `_pool.ring`, and cost little. Of a pool it gets the events that are rarer than
works, each with the numbers of the pool at that moment. Nothing of a user is kept alive, and no thread is woken. What
was recorded stays there when the recording is over, be it by `Events.drop` or with its runtime.

It does without the events of workers that are woken and go idle. There are as many of them as works when works come one
at a time, and to note them would take longer than to hand over a work. `sample`, now and again, tells what they told.

The letters are those of `_pool.events`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from cmwq._core.held import holding, not_holding
from cmwq._pool.events import Kind, Note, Tap, name_of_pool
from cmwq._pool.observed import observe_places
from cmwq._pool.ring import Ring
from cmwq._workqueue.subscriptions import ALWAYS, Subscription

if TYPE_CHECKING:
    from cmwq._core.ports import Lock
    from cmwq._pool.pool import WorkerPool
    from cmwq._workqueue.queue import WorkQueue
    from cmwq._workqueue.report import Stall
    from cmwq._workqueue.runtime import Runtime

KINDS = ALWAYS | {
    Kind.BLOCKED, Kind.RUNNING, Kind.CREATED, Kind.CULLED, Kind.DIED, Kind.REFUSED, Kind.MAYDAY, Kind.RESCUED, Kind.HOG,
    Kind.CPU_LEFT, Kind.CPU_RETURNED, Kind.STALL,
}  # fmt: skip
"""What is recorded of pools and their workers."""


class Happened(NamedTuple):
    """Something happened in a pool; or, without a kind, this is how it was when somebody looked. See `Event`.

    In a ring it is a plain tuple, which is made in a third of the time.
    """

    kind: Kind | None
    time: float
    pool: str
    worker: str
    queue: str
    work: str
    item: int
    why: str
    where: str
    cpus: tuple[int, ...]
    stall: Stall | None
    running: int
    blocked: int
    idle: int
    pending: int
    completed: int
    """How many works of the pool have ended so far."""
    records: bool
    """Whether its works are recorded from now on."""
    cpu_seconds: float | None
    """What the process has used so far, where somebody looked."""


class Recording(Subscription):
    """A subscription whose events are kept in a ring."""

    def __init__(
        self, runtime: Runtime, limit: int, begin_to_look: Callable[[], object], stalled: Callable[[], object]
    ) -> None:
        """begin_to_look: see `Ring`. It may be called with the lock of a pool held.

        stalled: called after a stall was recorded, and not after its end, with the lock of the pool held. It must not
            raise.
        """
        super().__init__(runtime.events, None, KINDS, None, limit, False)
        self.ring = Ring(limit, begin_to_look)  # I
        self.stalled = stalled  # I
        self.at_end: Callable[[], object] | None = None  # ~: called once when the runtime ends

    def tap(self, pool: WorkerPool) -> Tap:
        return RingTap(self, pool)

    @not_holding("pool.lock")
    def look_at(self, pool: WorkerPool, cpu_seconds: float) -> tuple[int, bool]:
        """Record how it is in the pool now. Returns how many works have ended, and whether there is anything to do."""
        with pool.lock:
            self.ring.put_note(_numbered(pool, _QUIET, self._tap_of(pool) is not None, cpu_seconds))
            return pool.nr_completed, not pool.is_quiet()

    @not_holding("pool.lock")
    def record(self, pool: WorkerPool, wanted: bool) -> None:
        """Record the works of the pool from now on, or do not."""
        with pool.lock:
            for tap in pool.taps:
                if tap.subscription is self:
                    tap.ring = self.ring if wanted else None
            observe_places(pool)
            self.ring.put_note(_numbered(pool, _QUIET, wanted, None))

    @holding("pool.lock")
    def _tap_of(self, pool: WorkerPool) -> Ring | None:
        return next((tap.ring for tap in pool.taps if tap.subscription is self), None)

    def join(self, timeout: float) -> None:
        """The runtime has ended, or the recording alone. There is no thread to be waited for."""
        call, self.at_end = self.at_end, None
        if call is not None:
            call()


class RingTap(Tap):
    """One pool's end of a recording."""

    __slots__ = ("pool", "recording")

    def __init__(self, recording: Recording, pool: WorkerPool) -> None:
        super().__init__(recording)
        self.pool = pool  # I
        self.recording = recording  # I
        self.ring = recording.ring  # L

    def wants(self, kind: Kind, wq: WorkQueue | None) -> bool:
        return kind in KINDS

    @holding("lock")
    def put(self, note: Note, lock: Lock) -> None:
        what = (*note[:1], *note[3:9], note[12], note[14])
        self.recording.ring.put_note(_numbered(self.pool, what, self.ring is not None, None))
        if note[0] is Kind.STALL and not note[14].over:
            self.recording.stalled()


_QUIET = (None, "", "", "", 0, "", "", (), None)


@holding("pool.lock")
def _numbered(
    pool: WorkerPool, what: tuple[object, ...], records: bool, cpu_seconds: float | None
) -> tuple[object, ...]:
    """The fields of `Happened`. what: those of the event, without time and pool."""
    running, pending = pool.nr_running + pool.nr_hogs, len(pool.lane.items) + len(pool.worklist)
    return (
        what[0], pool.host.monotonic(), name_of_pool(pool), *what[1:],
        running, pool.nr_blocked, len(pool.idle_list), pending, pool.nr_completed, records, cpu_seconds,
    )  # fmt: skip
