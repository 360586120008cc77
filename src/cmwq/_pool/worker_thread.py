"""The body of a worker's thread: idle, managing, working, dying.

Guarantees: a worker never dies of what its work does (B4). It leaves the idle list for work only while another worker
is in reserve, or after it created one as the manager, or when none can be had (B1, B2, B6). Manager is a role that a
thread has for a while, not a class.

A worker is counted as running by the thread that wakes it (`WorkerPool.kick`), or by itself if a sensor woke it. It
takes itself off the count before it goes idle. The letters are those of `pool`.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from cmwq._core.held import holding, outside
from cmwq._core.naming import name_of
from cmwq._pool import blocking, children, events, hogs, memory
from cmwq._pool.figures import bill, woken_for_a_blocked_one
from cmwq._pool.leaks import LEAKS_PERIOD, note_traits, undo_leaks
from cmwq._pool.policy import keep_working, need_more_worker, need_to_create_worker, slack
from cmwq._pool.recovery import bury, mourn, recover
from cmwq._pool.worker import Worker, attempt, be_worker, unknown

if TYPE_CHECKING:
    from cmwq._pool.item import Announcement, Item, Source
    from cmwq._pool.pool import WorkerPool
    from cmwq._workqueue.phase import Phase


def worker_thread(worker: Worker) -> None:
    """The body of every worker's thread.

    No exception of a work ends it (B4). An exception raised between two works, such as an asynchronous one or a
    `MemoryError`, does not end it either: see `recover`. If it ends all the same, before its first work or later, the
    item that it executed ends with the reason. Another worker takes its place only after the cool-down (B2), because
    there may be a cause that no worker survives. If exceptions keep coming while it handles the first, it may end
    without any of that, but never with the lock held: the timers' thread finds it (`recovery.bury_the_dead`).
    """
    pool = worker.pool
    try:
        with pool.lock.by_hand():
            try:
                begin(worker)
                while not worker.dying:
                    try:
                        serve(pool, worker)
                    except BaseException as exc:
                        recover(pool, worker, exc)
            except BaseException as exc:
                mourn(worker, exc)
    finally:
        try:
            with pool.lock:
                if worker.item is None:  # else it was interrupted again while it put that down: see `bury_the_dead`
                    bury(pool, worker)
        finally:
            pool.lookout.detach(worker)


@outside
def begin(worker: Worker) -> None:
    """Set up the thread: its name, CPUs, nice value and clock. Context: the worker's own thread."""
    pool, host = worker.pool, worker.pool.host
    be_worker(worker)
    pool.lookout.attach(worker)
    attempt(pool, "be named", partial(host.set_thread_name, worker.name))
    cpus = pool.cpus
    worker.bind()
    if pool.nice:
        pool.stats.niced = bool(attempt(pool, "be made nicer", partial(host.set_nice, pool.nice)))
    worker.cpu_time = attempt(pool, "have its CPU time read", host.cpu_clock) or unknown
    note_traits(worker, cpus)
    with pool.lock:
        if pool.office.nr_refused == worker.nr_refused:
            pool.office.nr_refusals = 0  # no thread was refused since this one was asked for, and it began


@outside
def serve(pool: WorkerPool, worker: Worker) -> None:
    """Park, work, and park again, until the worker is told to die."""
    lock = pool.lock
    spins = False
    while not worker.dying:
        worker.parker.park(-1, spins)
        lock.acquire()  # it is released around each item; after an exception `recover` releases it
        if not worker.dying and start_working(pool, worker):
            process_works(pool, worker)
            if not worker.dying:
                pool.enter_idle(worker)
        spins = not (pool.nr_running or pool.nr_blocked or pool.worklist)
        lock.release()
        if worker.last_active >= worker.look_again and worker.last is not None:
            worker.look_again = worker.last_active + LEAKS_PERIOD
            undo_leaks(worker)
        worker.last = worker.served = worker.stumbled = None  # an idle worker keeps no result or queue alive


@holding("pool.lock")
def start_working(pool: WorkerPool, worker: Worker) -> bool:
    """Leave the idle list and be counted, with another worker in reserve. Returns False if the worker is not needed.

    The lock is released and retaken while the worker looks at others (A10), and while it is the manager.
    """
    if not worker.kicked:
        # Nobody called kick() for it: the sensor saw too few running, or park() returned for nothing.
        if not worker.idle:
            return False  # its creator has not listed it yet
        pool.lookout.deliver()
        if not need_more_worker(pool):
            if pool.armed_with is worker:
                pool.disarm()  # the sensor has used up its arming
                pool.settle()
            return False
        pool.leave_idle(worker)
        worker.kicked = True  # on its way, as if kick() had taken it
        pool.nr_running += 1
        pool.nr_waking += 1
        pool.nr_wakeups += 1
        woken_for_a_blocked_one(pool)
        if pool.taps:
            events.woken(pool, worker, "sensor")
        pool.settle()  # what follows may release the lock
    if pool.children.dozers:
        children.look_at_sleepers(pool)
    rests = memory.must_rest(pool)
    worker.kicked = False
    pool.nr_waking -= 1
    if worker.dying or rests:
        pool.nr_running -= 1
        if not worker.dying:
            pool.enter_idle(worker)
        return False
    worker.counted = True
    worker.ended()  # what a sensor saw of it while it waited for the lock is void
    if need_to_create_worker(pool):
        manage_workers(pool, worker)
        # It was not counted while it managed, so the reserve it made may have gone to work in its place (A3).
        if worker.dying or not need_more_worker(pool):
            if not worker.dying:
                pool.enter_idle(worker)
            return False
        pool.count(worker)
        worker.ended()
    return True


@holding("pool.lock")
def manage_workers(pool: WorkerPool, worker: Worker) -> None:
    """Be the manager and create the next reserve (B2). The other workers go on meanwhile.

    The lock is released and retaken, so the caller has to read everything again; the worker is not counted any more. On
    return a worker was seen idle, or the refusal is noted and a retry is due, or the pool is closing.
    """
    pool.uncount(worker)
    pool.office.holder = worker
    pool.settle()
    pool.lock.release()
    pool.office.create_reserve()
    pool.lock.acquire()


@holding("pool.lock")
def process_works(pool: WorkerPool, worker: Worker) -> None:
    """Run items one after the other while the rules allow it (A3, A5). This is the hot path.

    The lock is released around each item. The last item is left in `worker.last`, to be dropped without the lock,
    because finalisers are user code. No local variable refers to an item on return: an exception's traceback keeps
    frames alive.
    """
    worklist, lock, ended, records = pool.worklist, pool.lock, worker.ended, pool.lane.records
    last: Item | None = None
    item: Item | None = None
    follower: Item | None = None
    while worklist:
        running, target = pool.nr_running, pool.target
        if running > target and last is not None and not keep_working(pool):
            # While every CPU is busy no sensor looks, so a worker believed to run may have been asleep for long. If
            # this one went idle because of that, it would be missed at once.
            pool.lookout.review(worker, target + slack(pool))
            if not keep_working(pool):
                break
            running = pool.nr_running
        worker.item = item = worklist[0]  # the worker has it before the list loses it: it is never lost
        del worklist[0]
        if (records and hogs.set_aside(pool, worker, item)) or not item.claim(worker):
            worker.item = worker.record = None
            if not pool.kick():  # its place under max_active may have gone to other items
                pool.settle()
            lock.release()
            last = item = None  # without the lock: finalisers are user code
            lock.acquire()
            continue
        if worker.record is not None:
            running = hogs.begin_on_record(pool, worker)
        while True:
            if worklist:
                if running < target:
                    pool.kick()  # A6: the wake chain
                if pool.armed_with is None:
                    pool.settle()
            elif pool.armed_with is not None or pool.nappers:
                pool.settle()
            lock.release()
            last = follower = None
            if worker.served is item.phase:
                item.run()
            else:
                execute_specially(pool, worker)
            lock.acquire()
            ended()
            if worker.blocked is not None or worker.below is not None:
                blocking.over(worker)
            pool.nr_completed += 1
            announcement = item.end()
            if announcement is None:
                break
            announce(pool, worker, announcement)
            announcement, follower = None, item.follower
            if follower is None or not follower.claim(worker):
                break
            last, item = item, follower  # E3: behind its running self, on the same worker
            worker.item = item
            last.follower = None
            running, target = pool.nr_running, pool.target  # the lock was dropped
        worker.item = None
        last, item = item, None
    pool.uncount(worker)
    worker.last, last = last, None


@holding("pool.lock")
def announce(pool: WorkerPool, worker: Worker, announcement: Announcement) -> None:
    """Tell the threads that wait for the worker's item that it has ended, and then those that flush.

    The lock is released and retaken.
    """
    item, worker.announcing = worker.item, True
    if pool.worklist:
        pool.kick_or_settle()  # callbacks may take long
    pool.lock.release()
    announcement.announce(item)  # type: ignore[arg-type]
    pool.lock.acquire()
    worker.ended()
    if worker.blocked is not None or worker.below is not None:
        blocking.over(worker)
    item.retire()  # type: ignore[union-attr]
    worker.announcing = False


@outside
def run_item(pool: WorkerPool, worker: Worker) -> None:
    """Run the worker's item: recorded, if its place is; measured, if it was chosen for that; and note its beginning and
    end, if its place is observed.

    Beginning and end are noted under the lock, so both have their place in the pool's order. The worker's `served` is
    cleared, so its next item comes here as well. The end is noted even if the worker is interrupted in between.
    """
    phase: Phase = worker.item.phase  # type: ignore[union-attr]
    pwq: Source = phase.pwq
    recorder = pwq.recorder
    if recorder is not None and worker.served is phase:
        worker.served = recorder  # its next item of this place takes the shortest way to the recorder
    if not pwq.observed:
        phase.run(worker, recorder)  # the item is in no variable: the traceback of what it raises keeps this frame
        return
    item, host = worker.item, pool.host
    assert item is not None
    with pool.lock:
        worker.served = None
        work = events.note(pool, events.Kind.STARTED, worker, item)[5]  # the item forgets its function when it has run
    began, used = host.monotonic(), worker.cpu_time()
    try:
        phase.run(worker, recorder)
    finally:
        with pool.lock:
            worker.ended()  # what a sensor saw of it is void, and so is its reason to be blocked
            blocking.over(worker)
            used_now, raised = worker.cpu_time(), item.raised
            events.note(
                pool,
                events.Kind.ENDED,
                worker,
                item,
                work=work,
                why="" if raised is None else name_of(raised),
                seconds=host.monotonic() - began,
                cpu_seconds=None if used is None or used_now is None else used_now - used,
            )
        del item


@outside
def execute_specially(pool: WorkerPool, worker: Worker) -> None:
    """Run the worker's item if it is from another queue than the last (B5: rename the thread), or exempt (A8)."""
    phase: Phase = worker.item.phase  # type: ignore[union-attr]
    pwq: Source = phase.pwq
    recorder = pwq.recorder
    if recorder is not None and worker.served is recorder and not phase.measures:
        recorder.run(worker)  # it is of the same place as the last, so nothing below applies to it
        return
    if worker.billed_to is not pwq.figures:
        with pool.lock:
            bill(worker, pwq.figures)
    if worker.stray:
        worker.stray = False
        worker.bind()
    if worker.shown[1] != pwq.wq.serial:  # and not its name: another queue of that name may name the thread otherwise
        if worker.shown[1]:
            undo_leaks(worker)
        worker.shown = pwq.name, pwq.wq.serial
        if worker.thread is not None:
            worker.thread.name = pwq.thread_name(worker)  # before the system's name: since 3.14 this sets that one, too
        attempt(pool, "be named", partial(pool.host.set_thread_name, f"{worker.name}-{pwq.name}"))
    worker.served = phase if worker.record is None and not pwq.exempt else None
    if not pwq.exempt:
        run_item(pool, worker)  # after `served` was set: see `observed`
        if worker.record is not None:
            hogs.observe(pool, worker)
        return
    with pool.lock:
        pool.uncount(worker)
        pool.lookout.exempt(worker, True)
        pool.kick()
    try:
        run_item(pool, worker)
    finally:
        with pool.lock:
            pool.lookout.exempt(worker, False)  # first: if this is interrupted, the sensor sees the worker all the same
            blocking.over(worker)  # before it counts: from then on who runs holds its place
            pool.count(worker)
