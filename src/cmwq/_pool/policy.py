"""The rules of a worker pool, each a question with a name (ARCHITECTURE.md, A and B). No threads, no clock, no I/O.

Code that has to decide one of these questions asks it here. Three hot paths first compare `nr_running` with `target`,
to spare the call (`kick_or_settle`, `insert`, `process_works`). C has the same comparisons again: the sentinel's rule
of waking (`_native/look.h`: `is_decided`), and those of the hot path's twin (`twin_insert.h`, `twin_loop.h`). They
agree with `need_more_worker`: whoever changes it changes them. Code that explains what a pool lacks names the parts one
by one (`hopeless`, the watchdog), and decides nothing by that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cmwq._core.held import holding

if TYPE_CHECKING:
    from cmwq._pool.pool import WorkerPool


@holding("pool.lock")
def need_more_worker(pool: WorkerPool) -> bool:
    """Is there work for which no worker is on its way, and room to run it (A3, A4)?

    It is asked after a work was queued, a worker was woken, or one was seen asleep. With a GIL one worker on its way is
    enough: it waits for the GIL, and a second could only wait behind it.
    """
    if len(pool.worklist) <= pool.nr_waking or (pool.nr_waking and pool.gil):
        return False
    if pool.memory.held:  # A11: at least one always runs
        return pool.memory.passes > 0 or nr_executing(pool) + pool.nr_waking <= 0
    return pool.nr_running < pool.target


@holding("pool.lock")
def nr_executing(pool: WorkerPool) -> int:
    """How many workers of the pool execute something, or are being created? This costs O(1)."""
    return len(pool.workers) - len(pool.idle_list) - pool.nr_waking - pool.office.has_worker


@holding("pool.lock")
def may_start_working(pool: WorkerPool) -> bool:
    """Is another worker left in reserve (B1)? A worker asks it when it has left the idle list and is about to work."""
    return bool(pool.idle_list)


@holding("pool.lock")
def need_to_create_worker(pool: WorkerPool) -> bool:
    """Must the calling worker become the manager (B2)? Not while there is one, nor soon after a refusal (B6)."""
    return not may_start_working(pool) and not pool.office.taken and not pool.office.refused


@holding("pool.lock")
def need_rescuer(pool: WorkerPool) -> bool:
    """Does work wait while no worker is idle and none can be created (C2)? A mayday asks it, and a rescuer at work."""
    stranded = bool(pool.worklist) and not pool.idle_list and not pool.closing
    return stranded and (pool.office.taken or pool.office.refused)


@holding("pool.lock")
def keep_working(pool: WorkerPool) -> bool:
    """Shall the worker take another item (A5)? A running worker asks it when it has ended one; it is itself counted."""
    if pool.memory.held:
        return bool(pool.worklist) and nr_executing(pool) <= 1
    return bool(pool.worklist) and pool.nr_running <= pool.target + slack(pool)


@holding("pool.lock")
def slack(pool: WorkerPool) -> int:
    """How many workers beyond the target go on working instead of going idle (A5): as many as are blocked in anything
    but a lock, up to `slack_per_cpu` for each CPU of the target.

    The kernel has no slack: it notices a blocked worker at once, and waking the next costs it a microsecond. Here that
    takes tens of microseconds, during which the CPU idles. While works of the pool block, those that run are likely to
    block as well, and the workers in excess then fill the gap. The slack vanishes with the last blocked work, so a
    flood of computations runs on as many threads as there are CPUs, and so does a flood of works that contend for
    locks. No worker is ever *woken* for the slack (A3).
    """
    return min(pool.nr_blocked, pool.config.slack_per_cpu * pool.target)


@holding("pool.lock")
def too_many_workers(pool: WorkerPool) -> bool:
    """Are there more idle workers than the busy ones justify (B3)? Two may always stay. A manager counts as idle."""
    idle = len(pool.idle_list) + pool.office.taken
    busy = len(pool.workers) - idle
    return idle > 2 and (idle - 2) * pool.config.max_idle_workers_ratio >= busy
