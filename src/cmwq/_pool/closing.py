"""The end of a pool: with its runtime, or in the child of a fork. The letters are those of `pool`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cmwq._core.held import holding, not_holding

if TYPE_CHECKING:
    from cmwq._pool.pool import WorkerPool
    from cmwq._pool.worker import Worker


def abandon(pool: WorkerPool) -> None:
    """In the child of a fork: the threads are the parent's, the locks may be held by them for ever (G2).

    The forking thread may be one of our workers, in the middle of an item: it ends when that ends.
    """
    pool.lost = pool.closing = True
    pool.detained.clear()
    pool.drainers.clear()
    pool.alarms.forget()
    pool.lending.forget()
    pool.lock = pool.host.reinit_lock(pool.lock)
    for worker in pool.workers:
        worker.dying = True
    for pwq in list(pool.pwqs):
        pwq.inactive.clear()
    pool.worklist.clear()
    pool.idle_list.clear()


@not_holding("pool.lock")
def close(pool: WorkerPool) -> list[Worker] | None:
    """Take no work any more; every worker ends. Returns them, for the caller to join.

    None: it is not quiet, nothing was done.
    """
    with pool.lock:
        if not pool.is_quiet():
            return None
        pool.closing = True
        return dismiss_all(pool)


@holding("pool.lock")
def dismiss_all(pool: WorkerPool) -> list[Worker]:
    """The pool closes: nobody queues here any more, and every worker ends. Returns them. May be said twice."""
    for pwq in list(pool.pwqs):
        pwq.gate = True
    workers = [worker for worker in pool.workers if not worker.is_rescuer]  # a rescuer is just about to leave
    for worker in workers:
        worker.dying = True
        worker.idle = False
        pool.lock.wake(worker.parker)
    pool.idle_list.clear()
    pool.alarms.cancel()
    pool.lending.cancel()
    pool.settle()
    return workers
