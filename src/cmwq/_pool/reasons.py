"""Reasons: why no more worker was started just now, and why works wait for their place, in words.

The picture and the watchdog's reports use these words, and no other code has them. Nothing here decides anything: the
rules are in `policy`, and each reason names the part of a rule that holds just now. The reason given is the first that
would have to go before another worker starts.

A reason is of the moment at which the lock was held. It names what the pool knows; what sensors see later, such as a
thread that waits for the GIL, is passed in by whoever looked. The letters are those of `pool`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cmwq._core.checks import MAX_COUNT
from cmwq._core.held import holding
from cmwq._core.naming import counted, noun
from cmwq._pool.policy import nr_executing

if TYPE_CHECKING:
    from cmwq._core.ports import Memory
    from cmwq._pool.item import Source
    from cmwq._pool.pool import WorkerPool

MOST_NAMES = 5
"""So many names stand in one reason; further ones are counted."""


@holding("pool.lock")
def why_no_more(pool: WorkerPool, gil_waiter: str = "") -> str:
    """Return why no more worker was started just now, in a sentence without a full stop; empty: no work waits.

    gil_waiter: the name of a worker that was seen to wait for the GIL.
    """
    if pool.nr_listed():
        return why_nobody_comes(pool, gil_waiter)
    waiting = {pwq.name: pwq for pwq in list(pool.pwqs) if pwq.inactive and not all_withdrawn(pwq)}
    if not waiting:
        return ""
    name = min(waiting)  # of thousands of queues only this one's reason is put in words
    more = f" (and {counted(len(waiting) - 1, 'queue more', 'queues more')})" if len(waiting) > 1 else ""
    return (
        f"nothing waits for a worker; works of queue {name!r} wait for their place: {why_inactive(waiting[name])}{more}"
    )


@holding("pool.lock")
def why_nobody_comes(pool: WorkerPool, gil_waiter: str = "") -> str:
    """Return why no further worker comes to works that wait for one, although some may."""
    office = pool.office
    if pool.closing:
        return "its runtime ends"
    if not pool.idle_list and not pool.nr_waking:
        if office.refused:
            return _why_refused(pool)
        if office.taken:
            return "a thread is being created"
    if pool.memory.held and pool.memory.view is not None:
        return _why_held(pool.memory.view)
    seen = _as_seen(pool)
    if pool.nr_waking:
        alone = ", and with the GIL one at a time is enough" if pool.gil else ""
        return f"a worker is on its way{alone}; {seen}"
    if pool.disassociated:
        run = counted(pool.nr_running, "is", "are")
        return f"its CPU left, and all may run; {run} believed to, {nr_asleep(pool)} to block"
    if pool.lane.items and not pool.worklist:
        return _why_in_lane(pool)
    if pool.nr_running < pool.target and gil_waiter:
        return f"{gil_waiter} waits for the GIL, and another could only wait behind it; {seen}"
    if pool.nr_running < pool.target:
        return f"one more may run and will be woken; {seen}"
    also = f"; {gil_waiter} waits for the GIL" if gil_waiter else ""
    return f"{'as many run as may' if pool.nr_running == pool.target else 'more run than may'}: {seen}{also}"


@holding("pool.lock")
def _as_seen(pool: WorkerPool) -> str:
    hogs = f", {pool.nr_hogs} to compute for long" if pool.nr_hogs else ""
    are = noun(pool.nr_running, "is", "are")
    return f"{pool.nr_running} of {pool.target} that may run {are} believed to run, {nr_asleep(pool)} to block{hogs}"


@holding("pool.lock")
def nr_asleep(pool: WorkerPool) -> int:
    """Return how many workers are believed to be blocked: those that wait for a lock or a child process included, which
    `nr_blocked` leaves out.
    """
    return len([None for worker in pool.workers if worker.blocked is not None]) - pool.nr_hogs


@holding("pool.lock")
def _why_refused(pool: WorkerPool) -> str:
    """Threads are refused: by what, and which queues have nobody else."""
    office = pool.office
    own = sum(not worker.is_rescuer for worker in pool.workers)
    if own >= office.max_workers:
        why = f"it has as many workers as it may have (max_workers is {office.max_workers})"
    else:
        row = "when last tried" if office.nr_refusals == 1 else f"{office.nr_refusals} times in a row"
        why = f"no thread could be had {row} ({office.refusal})"
    stranded = sorted({repr(item.pwq.name) for item in pool.listed() if item.pwq.rescuer is None})
    return f"{why}; without a rescuer: {some(stranded)}" if stranded else why


def _why_held(view: Memory) -> str:
    used, limit, source = view
    return f"memory is short ({used >> 20:,} of {limit >> 20:,} MiB are used, the limit of {source})"


@holding("pool.lock")
def _why_in_lane(pool: WorkerPool) -> str:
    """All that waits was set aside: it will probably compute for long, or its child processes do."""
    first = pool.lane.first(pool)
    record = pool.lane.record_of(first)
    name = "works" if record is None else f"works of {record.name}"
    what = "child processes of such works" if record is not None and record.parent else "works that compute for long"
    return (
        f"{name} wait aside, for {what} use the CPUs already: {counted(nr_executing(pool), 'executes', 'execute')} "
        f"something, {counted(pool.nr_hogs, 'of them computes', 'of them compute')} for long"
    )


@holding("pwq.pool.lock")
def why_inactive(pwq: Source) -> str:
    """Return why works of the queue wait for their place on the pool; empty: none does."""
    if all_withdrawn(pwq):
        return ""
    if pwq.frozen:
        return "it is frozen"
    return f"{limit_of(pwq)}, and {counted(pwq.nr_active, 'work has', 'works have')} a place"


@holding("pwq.pool.lock")
def all_withdrawn(pwq: Source) -> bool:
    """Whether all works that wait for their place were cancelled, or none does."""
    return all(item.withdrawn for item in pwq.inactive)


@holding("pwq.pool.lock")
def limit_of(pwq: Source) -> str:
    """Return what limits the queue's works on the pool, in words."""
    if pwq.ordered:
        return "it is ordered"
    limit = "it has no limit" if pwq.max_active >= MAX_COUNT else f"max_active is {pwq.max_active}"
    return f"{limit}{', learned' * pwq.wq.learns}"


def some(words: list[str]) -> str:
    """Return the words in no more than a line."""
    more = f" and {len(words) - MOST_NAMES} more" if len(words) > MOST_NAMES else ""
    return ", ".join(words[:MOST_NAMES]) + more
