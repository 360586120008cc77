"""What happens when a worker is interrupted between two works, or dies (B4, F10).

Guarantees: a work that it had begun ends with that exception, and a work that it had not begun goes back to where it
was. The worker goes on; if it cannot, another takes its place after the cool-down (B2). The letters are those of
`pool`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cmwq._core import log
from cmwq._core.held import holding, not_holding
from cmwq._errors import CmwqError
from cmwq._pool import blocking, events
from cmwq._pool.figures import bill_last
from cmwq._pool.worker import in_words

if TYPE_CHECKING:
    from cmwq._pool.pool import WorkerPool
    from cmwq._pool.worker import Worker


def recover(pool: WorkerPool, worker: Worker, exc: BaseException) -> None:
    """Handle an exception that is not a work's: the worker puts down what it had, and becomes idle.

    Context: the worker's thread, lock held or not: it has just been interrupted.
    """
    put_down(pool, worker, exc)
    with pool.lock:
        worker.ended()  # if this raises, the worker dies
    log.warning("%r was interrupted by %s, and goes on", worker, in_words(exc))


def put_down(pool: WorkerPool, worker: Worker, exc: BaseException) -> None:
    """End the work that the worker had begun with `exc`, as if the work had raised it; put a work that it had not begun
    back to where it was. Then make the worker idle, if it lives, and wake the workers that are needed.

    A work at which the worker is interrupted a second time before it began ends with the exception. Context: as
    `recover`. If this is interrupted it may be called again.
    """
    lock = pool.lock
    if lock.held():
        pool.mend()  # before anybody else has it
        lock.release()
    with lock:
        item = worker.item
        if item is not None and not item.begun and worker.stumbled is not item:
            if item not in pool.listed() and not item.withdrawn:
                pool.worklist.appendleft(item)  # its new place first
            worker.item = None
            worker.stumbled = item  # the second time the item is taken to be the cause, and ends
            item = None
            pool.kick_or_settle()
    if item is not None:
        item.abort(exc)
    with lock:
        if item is not None:
            item.be_over()
            if item.follower is not None:
                item.follower.relist()
                item.follower = None
            worker.item = None  # last: `mend` and the next call of this find the item by it
        if pool.office.holder is worker:
            pool.office.holder = None
        blocking.over(worker)
        worker.record = None
        worker.kicked = worker.counted = worker.announcing = False
        worker.served = None
        if worker.fate:
            bury(pool, worker)
        elif not (worker.dying or worker.is_rescuer):
            worker.idle = True  # a rescuer rests with its queue
        pool.mend()
    worker.last = None


def mourn(worker: Worker, exc: BaseException) -> None:
    """Handle the death of a worker by `exc`. Context: its own thread, or any other once that has ended; lock not held,
    unless by the dead thread.
    """
    pool = worker.pool
    worker.fate = in_words(exc)
    put_down(pool, worker, exc)
    pool.stats.deaths += 1
    if pool.stats.deaths & (pool.stats.deaths - 1) == 0:
        log.error("%r died, and another takes its place; %d did so far", worker, pool.stats.deaths, exc_info=exc)


@not_holding("pool.lock")
def bury_the_dead(pool: WorkerPool) -> None:
    """Handle workers whose threads have ended without notice: C code ended them, or an exception was raised outside of
    all that `worker_thread` can catch, for example by a trace function at its call.
    """
    with pool.lock:
        workers = [(worker, worker.home) for worker in pool.workers if worker.listed and not worker.dying]
    for worker, thread in workers:
        if thread is not None and not thread.is_alive() and worker in pool.workers:
            mourn(worker, CmwqError(f"the thread of worker {worker.name} has ended"))
            pool.lookout.detach(worker)


@holding("pool.lock")
def bury(pool: WorkerPool, worker: Worker) -> None:
    """Remove a dead worker, and what it counted for. If it was not told to end, another takes its place.

    If it is not listed yet, the thread that is creating it sees its `fate`, and takes that for a refusal. Context: the
    worker's own thread, or mourning for it.
    """
    missing = not worker.dying
    worker.dying = True
    on_its_way = worker.kicked
    worker.kicked = worker.counted = worker.idle = False
    worker.blocked = worker.below = None
    pool.nr_waking -= on_its_way
    pool.nr_running -= on_its_way
    if pool.taps:
        events.died(pool, worker)
    bill_last(worker)
    pool.workers.discard(worker)
    pool.children.forget_worker(worker)
    if pool.office.holder is worker:
        pool.office.holder = None
    if worker in pool.idle_list:
        pool.idle_list.remove(worker)
    if missing:
        if worker.listed and not pool.idle_list:
            pool.office.note_refusal(f"worker {worker.name} died: {worker.fate}")
        pool.mend()
