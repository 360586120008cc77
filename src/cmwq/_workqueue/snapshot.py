"""Snapshot: a typed picture of a runtime, for looking at and for JSON.

The part of each pool, and of each queue on a pool, is consistent in itself (H4).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cmwq._pool.pool import WorkerPool
    from cmwq._workqueue.queue import WorkQueue


@dataclass(frozen=True, slots=True)
class PoolView:
    """One pool. Its counters begin with the pool."""

    name: str
    cpus: tuple[int, ...]
    target: int
    held: bool
    """True: memory is short, so nobody new is started as long as one runs (A11)."""
    disassociated: bool
    """True: its CPU left. Its works are done elsewhere, and all of its workers may run (D2)."""
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
    """The nice value of its workers: 0, or what a highpri pool was granted (E7)."""


@dataclass(frozen=True, slots=True)
class QueueView:
    """One queue, over all its pools. `active` and `inactive` count works with and without a place under max_active."""

    name: str
    scope: str
    state: str
    max_active: int
    learns: bool
    """max_active is learned, and is the limit in force now: the highest of its pools (E11)."""
    active: int
    inactive: int
    unfinished: int
    hogs: int
    """How many works used the CPU for long without blocking, while others waited (A9)."""
    rescuer: bool
    maydays: int
    """How often its rescuer was called, once for each pool (C2)."""
    rescued: int
    """How many works its rescuer began (C3)."""


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
        """The same as dicts, lists, strings and numbers, ready for JSON."""
        plain = asdict(self)
        plain["pools"], plain["queues"] = list(plain["pools"]), list(plain["queues"])
        return plain


def view_of_pool(pool: WorkerPool) -> PoolView:
    with pool.lock:
        return PoolView(
            name=pool.name,
            cpus=pool.cpus,
            target=pool.full_target,
            held=pool.memory.held,
            disassociated=pool.disassociated,
            workers=len(pool.workers),
            idle=len(pool.idle_list),
            running=pool.nr_running,
            blocked=sum(worker.sleeping for worker in pool.workers),
            pending=pool.nr_listed(),
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
        learns=wq.learns,
        active=active,
        inactive=inactive,
        unfinished=unfinished,
        hogs=wq.nr_hogs,
        rescuer=wq.rescuer is not None,
        maydays=wq.nr_maydays,
        rescued=wq.nr_rescued,
    )
