"""The rules of a worker pool, each a question with a name (ARCHITECTURE.md, A and B). No threads, no clock, no I/O.

Whoever decides one of these asks it here. A hot path may look at a part of a condition first, where that spares the
question (`kick_or_settle`, `insert`), and who explains what a pool lacks names the parts one by one (`hopeless`, the
watchdog); none of them decides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cmwq._core.held import holding

if TYPE_CHECKING:
    from cmwq._pool.pool import WorkerPool


@holding("pool.lock")
def need_more_worker(pool: WorkerPool) -> bool:
    """A3, A4: is there work that nobody is on the way to, and room to run it?

    Asked by whoever queued, woke, or saw one sleep. With the GIL, one worker on its way is enough: it will wait for the
    GIL, and a second could only wait behind it.
    """
    uncovered = len(pool.worklist) > pool.nr_waking
    return uncovered and pool.nr_running < pool.target and not (pool.nr_waking and pool.gil)


@holding("pool.lock")
def may_start_working(pool: WorkerPool) -> bool:
    """B1: is somebody left in reserve? Asked by a worker about to leave the idle list for work."""
    return bool(pool.idle_list)


@holding("pool.lock")
def need_to_create_worker(pool: WorkerPool) -> bool:
    """B2: must I become the manager? Not while there is one, nor within the cool-down after a refusal (B6)."""
    return not may_start_working(pool) and not pool.office.taken and not pool.office.refused


@holding("pool.lock")
def need_rescuer(pool: WorkerPool) -> bool:
    """C2: does work wait, with nobody idle and nobody to be created? Asked by a mayday, and by a rescuer at work."""
    stranded = bool(pool.worklist) and not pool.idle_list and not pool.closing
    return stranded and (pool.office.taken or pool.office.refused)


@holding("pool.lock")
def keep_working(pool: WorkerPool) -> bool:
    """A5: shall I take another item? Asked by a running worker that just ended one, itself counted."""
    return bool(pool.worklist) and pool.nr_running <= pool.target + slack(pool)


@holding("pool.lock")
def slack(pool: WorkerPool) -> int:
    """How many more than the target go on working rather than idle (A5): no more than are blocked in other than a lock.

    The kernel has none: it notices a blocked worker at once, and waking the next costs it a microsecond. Here that
    takes tens, in which the CPU idles. While works of the pool block, those that run are about to, and whoever is ahead
    then fills the gap. It vanishes with the last blocked work: a flood of computations runs on as many threads as there
    are CPUs, and one of works that contend for locks too. Nobody is ever *woken* for it (A3).
    """
    return min(pool.nr_blocked, pool.config.slack_per_cpu * pool.target)


@holding("pool.lock")
def too_many_workers(pool: WorkerPool) -> bool:
    """B3: more idle than the busy ones justify? Two may always stay; the manager counts as idle."""
    idle = len(pool.idle_list) + pool.office.taken
    busy = len(pool.workers) - idle
    return idle > 2 and (idle - 2) * pool.config.max_idle_workers_ratio >= busy
