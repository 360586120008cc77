"""Mending: what a pool does after an exception in the middle of one of its critical sections (F10).

Guarantees: afterwards no work is lost, listed twice or counted wrongly, no worker is forgotten, and every thread that
was to be woken is woken. What the section was about to do has happened completely, or not at all. Mending may itself be
interrupted: then it is done again, from the beginning, before any other thread gets the lock.

How: a pool's state is of two kinds. *What is*: which works are in which list, and the flags of workers and works. Each
critical section changes that in steps of one store or one call of a C function. The steps are in such an order that
after each of them the state shows here how far the section came; mostly a work is in its new place before it leaves the
old one. *What follows*: every count, `attends`, `gate`, and what the sensor is armed with. That is never read here,
and is made anew.

Costs O(workers + works waiting), and only after an interruption.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Protocol
from weakref import ref

from cmwq._core.held import holding
from cmwq._pool import blocking, lane, observed
from cmwq._pool.closing import dismiss_all

if TYPE_CHECKING:
    from cmwq._pool.item import Item
    from cmwq._pool.pool import WorkerPool
    from cmwq._workqueue.phase import Phase
    from cmwq._workqueue.pwq import PoolWorkQueue


class Mendable(Protocol):
    """An object with a lock that can settle what was begun when an exception was raised while the lock was held."""

    def mend(self) -> None:
        """Restore the state that the lock guards. Context: its lock held."""
        ...


def mending(owner: Mendable) -> Callable[[], None]:
    """Return a function that calls `owner.mend`, for the owner's lock. It refers to the owner weakly: no cycle."""
    return partial(_mend_if_there, ref(owner))


def _mend_if_there(owner: ref[Mendable]) -> None:
    there = owner()
    if there is not None:
        there.mend()


@holding("pool.lock")
def mend(pool: WorkerPool) -> None:
    """Restore everything that follows from what is."""
    if pool.relisting is not None:
        pool.relist(*pool.relisting)
    lane.put_back(pool)
    pwqs = list(pool.pwqs)
    _mend_workers(pool)
    _mend_lists(pool, pwqs)
    _count_works(pool, pwqs)
    for pwq in pwqs:
        if pwq.sealed and pwq.sealed[-1] is pwq.phase:
            pwq.new_phase()  # sealed, and its successor not made yet
        pwq.complete_phases()
        pwq.mend_limit()
        pwq.settle_gate()
        pwq.attend()
    if pool.closing:
        dismiss_all(pool)
    pool.disarm()
    pool.lookout.remind()
    if pool.alarms.cull.timer is None:
        pool.office.cull_later()
    pool.tell_drainers()
    pool.kick()
    if not (pool.idle_list or pool.office.taken or pool.office.refused or pool.closing or pool.nr_waking):
        pool.office.note_refusal("the last worker in reserve was lost")  # B1
    pool.settle()
    if pool.taps:
        observed.mended(pool)


@holding("pool.lock")
def _mend_workers(pool: WorkerPool) -> None:
    """Make the idle list and the counts agree with the workers' flags, and wake the workers that were to be woken."""
    idle = dict.fromkeys(pool.idle_list)
    idle.update((worker, None) for worker in pool.workers if worker.idle)
    pool.idle_list[:] = [worker for worker in idle if worker.idle and not (worker.kicked or worker.dying)]
    for worker in list(pool.workers):
        worker.listed = worker.listed or worker.idle
        if worker.kicked or worker.dying:
            worker.idle = False
            pool.lock.wake(worker.parker)  # once too often does no harm
        if worker.dying and not worker.item and worker.listed and not worker.kicked:
            pool.workers.discard(worker)  # on its way it is counted, until it is buried
    pool.nr_waking = sum(worker.kicked for worker in pool.workers)
    pool.nr_running, pool.nr_blocked, pool.nr_hogs = blocking.recount(pool)
    pool.children.parents = {worker for worker in pool.workers if worker.below is not None}
    pool.children.dozers &= pool.workers
    for worker in pool.children.strays.keys() - pool.workers:
        del pool.children.strays[worker]


@holding("pool.lock")
def _mend_lists(pool: WorkerPool, pwqs: list[PoolWorkQueue]) -> None:
    """Make each work be in one place. A work in two places was on its way from one to the other."""
    executing = {worker.item for worker in pool.workers if worker.item is not None and worker.item.begun}
    followers = {worker.item.follower for worker in pool.workers if worker.item is not None} - {None}
    listed = set(pool.worklist).union(*(pwq.inactive for pwq in pwqs))
    doubled = {
        item
        for item in (*listed, *followers, *pool.detained)
        if item not in executing and not item.settle_place(listed=item in listed, follows=item in followers)
    }
    elsewhere = executing | doubled
    worklist = [item for item in dict.fromkeys(pool.worklist) if item not in elsewhere]
    if len(worklist) != len(pool.worklist):
        some = pool.worklist[0].pwq
        pool.relist(worklist, some, list(some.inactive))
    elsewhere.update(worklist)
    for pwq in pwqs:
        waiting = [item for item in dict.fromkeys(pwq.inactive) if item not in elsewhere]
        if len(waiting) != len(pwq.inactive):
            pool.relist(worklist, pwq, waiting)


@holding("pool.lock")
def _count_works(pool: WorkerPool, pwqs: list[PoolWorkQueue]) -> None:
    """Count anew the works of each place and of each phase."""
    active = blocking.recount_active(pool)
    withdrawn: Counter[PoolWorkQueue] = Counter()
    phases: Counter[Phase] = Counter()
    for item in (*pool.worklist, *(item for pwq in pwqs for item in pwq.inactive)):
        if item.withdrawn:
            withdrawn[item.pwq] += 1
        else:
            phases[item.phase.counter] += 1
    for item in pool.detained:
        phases[item.phase.counter] += 1
    listed = set(pool.worklist)
    for worker in pool.workers:
        done: Item | None = worker.item
        if done is None or done in listed:
            continue
        phases[done.phase.counter] += 1
        if done.begun and not worker.announcing:
            done.be_executing()
        follower = done.follower
        if follower is not None and not follower.over:
            phases[follower.phase.counter] += 1
    for pwq in pwqs:
        pwq.nr_active, pwq.nr_withdrawn = active[pwq], withdrawn[pwq]
        for phase in (*pwq.sealed, pwq.phase):
            phase.queued = phase.ended + phases[phase]
