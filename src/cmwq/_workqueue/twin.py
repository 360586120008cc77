"""Twin: the hot path in C, put in the place of the Python where it was built.

The Python is the truth: it is what the debug mode, and so the tests, run; what the simulator runs; what runs without a
compiler; and what the C calls in every case that is not the usual one. The C (`_sensor/_native/twin.h` and the files
that it names) does the same steps over the same state (`_core/records`), so either may take over from the other between
any two of them.

Guarantees: nothing is replaced with `CMWQ_TWIN=0` or `CMWQ_DEBUG=1` in the environment of the process. Users
see no difference but speed, tracebacks without our frames, and what Python says of methods and objects that are C:
`inspect.ismethod(queue.submit)` is False, and a `Work` can't be copied by `copy`.

What can interrupt it: nothing, as long as no bytecode runs in it. Where it calls the Python, that may be interrupted as
ever, and the section ends as a `with` does: it mends. Functions of users are called with no lock held. The letters are
those of `pool`.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from cmwq._core import records
from cmwq._core.held import holding, outside
from cmwq._pool import blocking, hogs, worker_thread
from cmwq._pool.policy import keep_working, slack
from cmwq._workqueue import inserting, map, queue, queued, queueing, submitting
from cmwq._workqueue.future import Future
from cmwq._workqueue.phase import Phase
from cmwq._workqueue.queue import WorkQueue
from cmwq._workqueue.queued import BEGUN, ENDED, LISTED, Queued
from cmwq._workqueue.work import Work

if TYPE_CHECKING:
    from cmwq._pool.item import Announcement
    from cmwq._pool.pool import WorkerPool
    from cmwq._pool.worker import Worker


@holding("pool.lock")
def goes_on(pool: WorkerPool, worker: Worker) -> bool:
    """Shall the worker go on although more run than the target? The head of the loop in `process_works`."""
    if keep_working(pool):
        return True
    pool.lookout.review(worker, pool.target + slack(pool))
    return keep_working(pool)


@outside
def execute_specially(pool: WorkerPool, worker: Worker) -> None:
    """Call what is in `worker_thread` now: a test may have put something in its place."""
    worker_thread.execute_specially(pool, worker)


@holding("pool.lock")
def announce(pool: WorkerPool, worker: Worker, announcement: Announcement) -> None:
    """Likewise."""
    worker_thread.announce(pool, worker, announcement)


def breathe() -> None:
    """Do nothing. As it begins, the interpreter does what it does now and then: see `breathe` in `twin_items.h`."""


@holding("pool.lock")
def be_watched(pool: WorkerPool) -> None:
    """A worker comes to an item for which nobody was woken."""
    if not pool.watchdog.on:
        pool.watchdog.begin()


def queue_later(wq: WorkQueue, work: Work) -> bool:
    """What `queue` does when it is `Reentered`."""
    wq.runtime.host.defer(partial(queueing.queue_specially, wq, work, accepted=True))
    return True


def install() -> bool:
    """Put the C in place, if the records are its own. Returns whether they are. To be called once, at import."""
    if not records.NATIVE:
        return False
    from cmwq._sensor import _sentinel

    if _sentinel.is_installed():  # this module was loaded anew: the classes that were replaced are those of before
        return False
    _sentinel.install(
        WorkQueue=WorkQueue,
        Future=Future,
        Queued=Queued,
        Work=Work,
        Phase=Phase,
        LISTED=LISTED,
        BEGUN=BEGUN,
        ENDED=ENDED,
        result=Future.result,
        insert=inserting.insert,
        insert_many=inserting.insert_many,
        insert_later=inserting.insert_later,
        submit_specially=submitting.submit_specially,
        submit_many=WorkQueue.submit_many,
        queue=queueing.queue,
        queue_specially=queueing.queue_specially,
        queue_later=queue_later,
        process_works=worker_thread.process_works,
        goes_on=goes_on,
        set_aside=hogs.set_aside,
        begin_on_record=hogs.begin_on_record,
        over=blocking.over,
        announce=announce,
        execute_specially=execute_specially,
        breathe=breathe,
        be_watched=be_watched,
    )
    for module in (inserting, queue, queued, submitting):
        module.insert = _sentinel.insert  # type: ignore[attr-defined]
    worker_thread.process_works = _sentinel.process_works  # type: ignore[assignment]
    map.take = _sentinel.take  # type: ignore[assignment]
    queue.OWN_SUBMITS.append(WorkQueue.submit)
    return True


installed = install()
"""Does the C serve in this process?"""
