"""Rescuer: a thread that a queue owns from the start, for the time when no worker can be had (C).

Guarantees: it is there before anything can go wrong, or making the queue fails (C1); when work waits and no worker
could be created for `mayday_initial_timeout`, and every `mayday_interval` after, each queue with works on the pool is
asked to help (C2); the rescuer then runs the works of its own queue there, in order, on that pool's CPUs, one at a
time, under the same limits as every worker (C3, C5). So they execute even if nobody can ever create a thread (C4).

It doesn't count as running (A8): it comes to help because what counts can't be relied on. Without a reserve no sensor
looks, so a worker that blocked in the meantime may still be believed to run; therefore a mayday asks only whether work
waits and nobody can be had, not how many run (the kernel asks that too). What it costs is one runnable thread more.

A work that waits for something that nobody can begin would wait for ever. It is told (`ThreadLimit`), and so its
rescuer, or its worker, goes on: `hopeless`. The letters are those of `pool`.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING
from weakref import ref

from cmwq._core.held import holding, outside
from cmwq._errors import ThreadLimit
from cmwq._pool import blocking, events
from cmwq._pool.policy import need_rescuer
from cmwq._pool.recovery import recover
from cmwq._pool.worker import RESCUER, Worker, be_worker
from cmwq._pool.worker_thread import announce, run_observed

if TYPE_CHECKING:
    from cmwq._core.ports import Host, Thread
    from cmwq._pool.item import Item, Source
    from cmwq._pool.pool import WorkerPool
    from cmwq._workqueue.queue import WorkQueue
    from cmwq._workqueue.wait import Target

PATIENCE = 10
"""So many refusals in a row, a cool-down apart, and who waits on a worker expects no thread any more. (A rescuer is not
so patient, and the pool's own cap is known to be for good: there it is two.)"""
BATCH = 16
"""So many works in one go; then whoever else called gets its turn."""


class Rescuer:
    """One queue's. It knows the queue only while it works for it, so a queue that nobody has any more can go."""

    def __init__(self, queue: WorkQueue, host: Host) -> None:
        self.name = f"cmwq/R-{queue.name}"  # I
        self.worker: Worker | None = None  # S to change: its role in the pool it helps; None: it rests
        self._host = host  # I
        self._parker = host.parker()  # I
        # Nobody has the queue any more: nobody needs the thread. It looks itself, for what a weak reference's callback
        # does in Python can be interrupted, and nobody would hear of that.
        self._queue = ref(queue, self._parker.unpark)  # I
        self._calls: deque[Source] = deque()  # L of the place's pool to append; S to take
        self._stopped = False  # ~
        self.thread: Thread | None = None  # I once it is started

    def start(self) -> None:
        """Raises ThreadLimit. The thread ends after `stop`, or with the queue."""
        self.thread = self._host.spawn(self.name, self._run)

    @holding("pwq.pool.lock")
    def call(self, pwq: Source) -> bool:
        """Mayday. True: to be woken."""
        if pwq.called:
            return False
        pwq.called = True
        pwq.note_mayday()
        if pwq.pool.taps:
            events.mayday(pwq)
        self._calls.append(pwq)
        return True

    def wake(self) -> None:
        self._parker.unpark()

    def stop(self) -> None:
        """It ends when it has done what it was called for."""
        self._stopped = True
        self.wake()

    def _run(self) -> None:
        with suppress(Exception):  # it can do without
            self._host.set_thread_name(self.name)
        while not self._stopped and self._queue() is not None:
            self._parker.park()
            while self._calls:
                pwq = self._calls.popleft()
                if self._rescue(pwq):
                    self._calls.append(pwq)  # after those who called meanwhile
                pwq = None  # type: ignore[assignment]  # at rest it keeps nothing alive

    def _rescue(self, pwq: Source) -> bool:
        """C3. True: more is to be done."""
        pool = pwq.pool
        self.worker = worker = Worker(pool, RESCUER, self._parker, self.name)
        worker.thread = self.thread
        worker.cpu_time = pool.host.cpu_clock()
        with pool.lock:
            pool.workers.add(worker)  # before it binds: if the CPUs change now, it is bound anew like all of them
        more = True  # should it be interrupted
        try:
            worker.bind()
            be_worker(worker)
            pool.lock.acquire()  # by hand, for it is let go of around each item; `recover` lets go of it else
            pwq.called = False
            number = 0
            while more and number < BATCH and not worker.dying:
                more = _run_next(pool, pwq, worker) and need_rescuer(pool)
                number += 1
            pool.lock.release()
        except BaseException as exc:
            recover(pool, worker, exc)
        with pool.lock:
            pool.workers.discard(worker)
            pool.tell_drainers()
            if more:
                pwq.called = True
            pool.kick_or_settle()
        be_worker(None)
        self.worker = None
        if worker.dying:
            self._stopped = True  # in the child of a fork within the work: this thread is the parent's no more
            self._calls.clear()
        return more and not worker.dying


@holding("pool.lock")
def _run_next(pool: WorkerPool, pwq: Source, worker: Worker) -> bool:
    """Run the next listed work of that queue, as `process_works` would. False: there is none.

    The lock is released around the work.
    """
    lock = pool.lock
    item = _take(pool, pwq, worker)
    if item is None:
        return False
    if not item.claim(worker):
        worker.item = None
    else:
        pwq.note_rescued()
        if pool.taps:
            events.rescued(pool, worker)
        pool.settle()  # it may have been the last that waited
        lock.release()
        if pwq.observed:
            run_observed(pool, worker)
        else:
            item.run()
        lock.acquire()
        blocking.over(worker)
        pool.nr_completed += 1
        announcement = item.end()
        if announcement is not None:
            announce(pool, worker, announcement)
            announcement = None
        if item.follower is not None:
            item.follower.relist()  # E3: it may be another queue's, which a worker has to run
            item.follower = None
        worker.item = None  # last: `mend` finds the follower by it
    pool.kick_or_settle()
    lock.release()
    item = None  # without the lock: finalisers are user code
    lock.acquire()
    return True


@holding("pool.lock")
def _take(pool: WorkerPool, pwq: Source, worker: Worker) -> Item | None:
    """Off the list with the first work of that queue: it is the worker's. Costs O(works of others before it)."""
    worklist = pool.worklist
    for index, item in enumerate(worklist):
        if item.pwq is pwq:
            worker.item = item
            del worklist[index]
            return item
    return None


# ----------------------------------------------------------------------------------- maydays (C2)


@holding("pool.lock")
def set_alarm(pool: WorkerPool, delay: float) -> None:
    """Look after so long whether help is needed.  Context: the alarm is not set."""
    with suppress(ThreadLimit):  # never, once the runtime has begun
        pool.alarms.mayday.set(pool.host, delay, partial(mayday, pool))


@outside
def mayday(pool: WorkerPool) -> None:
    """Ask for help, if it is still needed.  Context: the timer."""
    called: list[Rescuer] = []
    with pool.lock:
        pool.alarms.mayday.cancel()
        if need_rescuer(pool):
            for pwq in pool.pwqs:
                rescuer = pwq.rescuer
                if rescuer is not None and pwq.nr_active and rescuer.call(pwq):
                    called.append(rescuer)
            set_alarm(pool, pool.config.mayday_interval)
    for rescuer in called:
        rescuer.wake()


# ----------------------------------------------------------------------------------- what nobody can do


def gets_no_threads(pool: WorkerPool) -> bool:
    """As far as is known, no worker will come in addition to those it has."""
    if pool.office.nr_refusals < 2:
        return False
    if pool.office.nr_refusals >= PATIENCE:
        return True
    with pool.lock:
        return sum(not worker.is_rescuer for worker in pool.workers) >= pool.office.max_workers


@outside
def hopeless(own: Item, target: Target, waiting: dict[Item, Target]) -> str | None:
    """Why the work `own` would wait for ever: something it waits for has not begun, no thread could be created, not
    even after a cool-down, and all who could begin it wait themselves. None: somebody may go on.

    waiting: the works that wait without a limit of time, this one among them. Context: its worker.
    """
    if not target.lacks_workers():
        return None
    stuck = _stuck(waiting, own)
    if own not in stuck or (not _is_rescued(own) and _a_rescuer_gives_up(stuck)):
        return None
    return _why(own, target)


@outside
def tell_who_waits_in_vain(pool: WorkerPool) -> None:
    """A thread was refused once more: if none is to be expected, and some wait for what nobody can begin, the last of
    them is told.

    One alone, for when that gives up, and its worker goes on, the others may have what they wait for; if not, the pool
    is refused again, and the next is told. Context: the timer.
    """
    if not gets_no_threads(pool):
        return
    waits = pool.runtime.waits
    stuck = _stuck(waits.for_ever())
    if _a_rescuer_gives_up(stuck):
        return
    for item in reversed(list(stuck)):
        target = stuck[item]
        if pool in target.lacks_workers():
            reason = _why(item, target)
            if reason is not None and waits.tell(item, reason):
                return


def _a_rescuer_gives_up(stuck: dict[Item, Target]) -> bool:
    """A rescuer among them finds out by itself: the first to be told, for it is there to do what others wait for."""
    return any(_is_rescued(item) and target.lacks_workers() for item, target in stuck.items())


def _is_rescued(item: Item) -> bool:
    """A rescuer executes it."""
    rescuer = item.pwq.rescuer
    helper = None if rescuer is None else rescuer.worker
    return helper is not None and helper.item is item


def _why(own: Item, target: Target) -> str | None:
    for pool in target.lacks_workers():
        return (
            f"{own.describe()} {target.describe_wait()}, which needs a worker of pool {pool.name}, and there is none: "
            f"a thread was refused {pool.office.nr_refusals} times in a row ({pool.office.refusal}), and whoever is "
            f"there waits likewise. Allow more threads, or queue what a work waits for before it"
        )
    return None  # it began in this very moment


def _stuck(waiting: dict[Item, Target], own: Item | None = None) -> dict[Item, Target]:
    """Those of them that can't go on before others of them do. It is enough to find out about `own`, if given.

    Whoever may go on is taken out, until nobody is found any more. The last to wait first: mostly the others wait for
    them. No recursion, for there may be a chain of as many as there are workers. Whether a pool has somebody free is
    asked of it once, and again only when one who was there was taken out.
    """
    stuck, found = dict(waiting), True
    free: dict[WorkerPool, bool] = {}
    while found:
        found = False
        for item in reversed(list(stuck)):
            if not _may_be_done(stuck[item], stuck, free):
                continue
            del stuck[item]
            if item is own:
                return stuck
            found = True
            if not free.get(item.pwq.pool):
                free.pop(item.pwq.pool, None)
    return stuck


def _may_be_done(target: Target, stuck: dict[Item, Target], free: dict[WorkerPool, bool]) -> bool:
    pools = target.lacks_workers()
    for pool in pools:
        if pool not in free:
            free[pool] = _somebody_is_free(pool, stuck)
    if pools and not any(free[pool] for pool in pools) and not _rescuer_is_free(target, stuck):
        return False
    return next(target.needs(stuck), None) is None


def _somebody_is_free(pool: WorkerPool, stuck: dict[Item, Target]) -> bool:
    with pool.lock:
        if pool.idle_list or pool.office.taken or pool.office.nr_refusals < 2:
            return True
        # Queues' rescuers help only with their own.
        return any(not worker.is_rescuer and worker.item not in stuck for worker in pool.workers)


def _rescuer_is_free(target: Target, stuck: dict[Item, Target]) -> bool:
    rescuer = target.queue.rescuer
    if rescuer is None:
        return False
    helper = rescuer.worker  # None: it rests, and will be called
    return helper is None or helper.item is None or helper.item not in stuck
