"""The end of a pool: with its runtime, or in the child of a fork. The letters are those of `pool`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cmwq._core.held import holding, not_holding

if TYPE_CHECKING:
    from cmwq._pool.pool import WorkerPool
    from cmwq._pool.worker import Worker


def abandon(pool: WorkerPool) -> None:
    """Empty the pool in the child of a fork: its threads are the parent's, and may hold its lock for ever (G2).

    The forking thread may be a worker, in the middle of an item; it ends when that item ends.
    """
    pool.lost = pool.closing = True
    pool.detained.clear()
    pool.drainers.clear()
    pool.alarms.forget()
    pool.lending.forget()
    pool.children.forget()
    pool.memory.forget()
    pool.lock = pool.host.reinit_lock(pool.lock)
    for worker in pool.workers:
        worker.dying = True
    for pwq in list(pool.pwqs):
        pwq.inactive.clear()
        pwq.attends = pwq.careful  # the end of the forking thread's own item finds nobody to give its place to
    pool.worklist.clear()
    pool.lane.items.clear()
    pool.idle_list.clear()


@not_holding("pool.lock")
def close(pool: WorkerPool) -> list[Worker] | None:
    """Accept no more work, and end every worker. Returns the workers, for the caller to join.

    Returns None, and changes nothing, if the pool is not quiet.
    """
    with pool.lock:
        if not pool.is_quiet():
            return None
        pool.closing = True
        return dismiss_all(pool)


@holding("pool.lock")
def dismiss_all(pool: WorkerPool) -> list[Worker]:
    """Close the pool: no more work can be queued here, and every worker ends. Returns them. May be called twice.

    Context: `closing` is set.
    """
    for pwq in list(pool.pwqs):
        pwq.settle_gate()
    workers = [worker for worker in pool.workers if not worker.is_rescuer]  # a rescuer is about to leave by itself
    for worker in workers:
        worker.dying = True
        worker.idle = False
        pool.lock.wake(worker.parker)
    pool.idle_list.clear()
    pool.alarms.cancel()
    pool.lending.cancel()
    pool.children.cancel()
    pool.memory.cancel()
    pool.settle()
    return workers
