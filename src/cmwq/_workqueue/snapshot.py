"""Snapshot: a typed picture of a runtime, to look at and to turn into JSON.

Each pool's and queue's part is consistent in itself (H4).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cmwq._pool.pool import WorkerPool
    from cmwq._workqueue.queue import WorkQueue


@dataclass(frozen=True, slots=True)
class PoolView:
    """One pool. Counters count from the pool's start."""

    name: str
    cpus: tuple[int, ...]
    target: int
    disassociated: bool
    """Its CPU left: its works are done elsewhere, and all of them may run (D2)."""
    workers: int
    idle: int
    running: int
    blocked: int
    pending: int
    inactive: int
    created: int
    culled: int
    refused: int
    peak_workers: int
    started: int
    completed: int
    wakeups: int
    nice: int
    """At which its workers run: 0, or what a highpri pool was granted (E7)."""


@dataclass(frozen=True, slots=True)
class QueueView:
    """One queue, over all its pools. `pending` waits for a worker, `inactive` for a place under max_active."""

    name: str
    scope: str
    state: str
    max_active: int
    active: int
    inactive: int
    unfinished: int
    hogs: int
    """Works that used the CPU for long without blocking, while others waited (A9)."""
    rescuer: bool
    maydays: int
    """How often its rescuer was called, for each pool (C2)."""
    rescued: int
    """Works that its rescuer began (C3)."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A runtime. `sensor` is empty as long as nothing has run."""

    pools: tuple[PoolView, ...]
    queues: tuple[QueueView, ...]
    sensor: str
    sensor_reason: str
    gil: bool
    cpus: tuple[int, ...]
    cpu_limit: int
    pid: int

    def to_dict(self) -> dict[str, Any]:
        """Nothing but dicts, lists, strings and numbers: ready for JSON."""
        plain = asdict(self)
        plain["pools"], plain["queues"] = list(plain["pools"]), list(plain["queues"])
        return plain


def view_of_pool(pool: WorkerPool) -> PoolView:
    with pool.lock:
        return PoolView(
            name=pool.name,
            cpus=pool.cpus,
            target=pool.target,
            disassociated=pool.disassociated,
            workers=len(pool.workers),
            idle=len(pool.idle_list),
            running=pool.nr_running,
            blocked=sum(worker.sleeping for worker in pool.workers),
            pending=len(pool.worklist),
            inactive=sum(len(pwq.inactive) for pwq in pool.pwqs),
            created=pool.stats.created,
            culled=pool.stats.culled,
            refused=pool.office.nr_refused,
            peak_workers=pool.stats.peak_workers,
            started=pool.nr_started(),
            completed=pool.nr_completed,
            wakeups=pool.nr_wakeups,
            nice=pool.nice if pool.stats.niced else 0,
        )


def view_of_queue(wq: WorkQueue) -> QueueView:
    active = inactive = unfinished = 0
    for pwq in wq.places():
        with pwq.pool.lock:
            active += pwq.nr_active
            inactive += len(pwq.inactive)
            unfinished += pwq.nr_unfinished()
    return QueueView(
        name=wq.name,
        scope=wq.scope,
        state=wq._state.value,
        max_active=wq.max_active,
        active=active,
        inactive=inactive,
        unfinished=unfinished,
        hogs=wq.nr_hogs,
        rescuer=wq.rescuer is not None,
        maydays=wq.nr_maydays,
        rescued=wq.nr_rescued,
    )
