"""A worker that is interrupted between two works, or dies (B4, F10).

Guarantees: the work that it had begun ends with that exception, one that it had not begun goes back to where it was,
and the worker goes on; if it can't, another takes its place, after the cool-down (B2). The letters are those of `pool`.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from cmwq._core.held import holding, not_holding
from cmwq._errors import CmwqError
from cmwq._pool import blocking, events
from cmwq._pool.worker import in_words

if TYPE_CHECKING:
    from cmwq._pool.pool import WorkerPool
    from cmwq._pool.worker import Worker

_log = logging.getLogger("cmwq")


def recover(pool: WorkerPool, worker: Worker, exc: BaseException) -> None:
    """Something was raised that is none of a work's. The worker puts down what it had, and rests.

    Context: the worker's thread, lock held or not: it has just been interrupted.
    """
    put_down(pool, worker, exc)
    with pool.lock:
        worker.ended()  # if that raises, the worker dies
    _log.warning("%r was interrupted by %s, and goes on", worker, in_words(exc))


def put_down(pool: WorkerPool, worker: Worker, exc: BaseException) -> None:
    """What the worker had begun ends with that exception, as if the work had raised it; what it had not begun goes back
    to where it was; then the worker rests, if it lives, and whoever is needed is woken.

    Context: as `recover`. If it is interrupted it may be called again.
    """
    lock = pool.lock
    if lock.held():
        pool.mend()  # before anybody else has it
        lock.release()
    with lock:
        item = worker.item
        if item is not None and not item.begun and worker.stumbled is not item:
            worker.stumbled = item  # a second time it is the item's own fault, and it ends
            worker.item = None
            if item not in pool.worklist and not item.withdrawn:
                pool.worklist.appendleft(item)
            item = None
            pool.kick_or_settle()
    if item is not None:
        item.abort(exc)
    with lock:
        if item is not None:
            worker.item = None
            item.be_over()
            if item.follower is not None:
                item.follower.relist()
                item.follower = None
        if pool.office.holder is worker:
            pool.office.holder = None
        blocking.over(worker)
        worker.kicked = worker.counted = worker.announcing = False
        worker.served = None
        if worker.fate:
            bury(pool, worker)
        elif not (worker.dying or worker.is_rescuer):
            worker.idle = True  # a rescuer rests elsewhere
        pool.mend()
    worker.last = None


def mourn(worker: Worker, exc: BaseException) -> None:
    """It died of this.  Context: its own thread, or that has ended; lock not held, unless by that."""
    pool = worker.pool
    worker.fate = in_words(exc)
    put_down(pool, worker, exc)
    pool.stats.deaths += 1
    if pool.stats.deaths & (pool.stats.deaths - 1) == 0:
        _log.error("%r died, and another takes its place; %d did so far", worker, pool.stats.deaths, exc_info=exc)


@not_holding("pool.lock")
def bury_the_dead(pool: WorkerPool) -> None:
    """Workers whose threads have ended without a word: C code ended them, or something was raised before or after all
    that `worker_thread` can see, as by a trace function at its call.
    """
    with pool.lock:
        workers = [(worker, worker.thread) for worker in pool.workers if worker.listed and not worker.dying]
    for worker, thread in workers:
        if thread is not None and not thread.is_alive() and worker in pool.workers:
            mourn(worker, CmwqError(f"the thread of worker {worker.name} has ended"))
            pool.lookout.detach(worker)


@holding("pool.lock")
def bury(pool: WorkerPool, worker: Worker) -> None:
    """It is gone, and so is what it counted for; if it is missing, another takes its place.

    If it isn't listed yet, who is just creating it sees its `fate`, and has been refused.
    Context: the worker's own thread.
    """
    missing = not worker.dying
    worker.dying = True
    on_its_way = worker.kicked
    worker.kicked = worker.counted = worker.idle = False
    worker.blocked = None
    pool.nr_waking -= on_its_way
    pool.nr_running -= on_its_way
    if pool.taps:
        events.died(pool, worker)
    pool.workers.discard(worker)
    if pool.office.holder is worker:
        pool.office.holder = None
    if worker in pool.idle_list:
        pool.idle_list.remove(worker)
    if missing:
        if worker.listed and not pool.idle_list:
            pool.office.note_refusal(f"worker {worker.name} died: {worker.fate}")
        pool.mend()
