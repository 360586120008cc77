"""Rescuer: a thread that a queue owns from the start, for the time when no worker can be had (C).

Guarantees: the thread exists before anything can go wrong, or making the queue fails (C1), and one that exceptions end
has a successor (F10). When work waits and no worker could be created for `mayday_initial_timeout`, and again after
every `mayday_interval`, the rescuer of each queue with works on the pool is called (C2). It then runs the works of its
own queue there, in order, on that pool's CPUs, one at a time, under the same limits as every worker (C3, C5). So they
execute even if no thread can ever be created (C4).

A rescuer does not count as running (A8): it is called because the count cannot be relied on. Without an idle worker no
sensor looks, so a worker that blocked in the meantime may still be believed to run. Therefore a mayday asks only
whether work waits and no worker can be had, and not how many run (the kernel asks that as well). This costs one
runnable thread more.

A work that waits for something that no worker can begin would wait for ever. It gets `ThreadLimit` instead, so that its
rescuer, or its worker, goes on: `hopeless`. The letters are those of `pool`.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING
from weakref import ref

from cmwq._core import log
from cmwq._core.held import holding, not_holding, outside
from cmwq._core.surely import surely
from cmwq._errors import CmwqError, ThreadLimit
from cmwq._pool import blocking, events
from cmwq._pool.figures import bill_last
from cmwq._pool.policy import need_rescuer
from cmwq._pool.recovery import recover
from cmwq._pool.worker import RESCUER, Worker, be_worker, in_words
from cmwq._pool.worker_thread import announce, run_item

if TYPE_CHECKING:
    from cmwq._core.ports import Host, Thread
    from cmwq._pool.item import Item, Source
    from cmwq._pool.pool import WorkerPool
    from cmwq._workqueue.queue import WorkQueue
    from cmwq._workqueue.wait import Target


PATIENCE = 10
"""After this many refusals in a row, with a cool-down between each, a work that waits on a worker expects no thread any
more. For a rescuer, and for a pool that has reached its own cap, which is known to be permanent, two are enough.
"""
BATCH = 16
"""How many works a rescuer runs in one go, before the next pool that called it gets its turn."""


class Rescuer:
    """The rescuer of one queue. It refers to the queue weakly while it rests, so a queue that nobody uses can go."""

    def __init__(self, queue: WorkQueue, host: Host) -> None:
        self.name = f"cmwq/R-{queue.name}"  # I
        self.worker: Worker | None = None  # S to change: its role in the pool that it helps; None: it rests
        self._host = host  # I
        self._parker = host.parker()  # I
        # When the queue has gone the thread is woken, and ends. It looks by itself, because Python code in a weak
        # reference's callback can be interrupted, which would go unnoticed.
        self._queue = ref(queue, self._parker.unpark)  # I
        self._calls: deque[Source] = deque()  # L of the place's pool to append; S to take
        self._stopped = False  # ~
        self.thread: Thread | None = None  # S: the last thread that began to be the rescuer's

    def start(self) -> None:
        """Start the thread, which ends after `stop`, or with the queue. Raises ThreadLimit.

        Context: there is none, or it is the caller and ends, or it has ended.
        """
        self._host.spawn(self.name, self._run, self._began)

    def _began(self, thread: Thread) -> None:
        self.thread = thread  # on itself, and surely if it runs: so there are never two

    @holding("pwq.pool.lock")
    def call(self, pwq: Source) -> bool:
        """Call the rescuer to this place (mayday). Returns whether it has to be woken: False if called before."""
        if pwq.called:
            return False
        pwq.called = True
        pwq.note_mayday()
        if pwq.pool.taps:
            events.mayday(pwq)
        self._calls.append(pwq)
        return True

    def wake(self) -> None:
        """Wake the thread, to look at its calls."""
        self._parker.unpark()

    def stop(self) -> None:
        """Let the thread end when it has answered the calls that it has."""
        self._stopped = True
        self.wake()

    def _run(self) -> None:
        succeed = partial(self._succeed, self.thread)
        with surely(succeed), surely(succeed):
            with suppress(Exception):  # it works without the name
                self._host.set_thread_name(self.name)
            self._parker.unpark()  # look at the calls first: there may be some that its predecessor has left
            interruption: BaseException | None = None
            if self.worker is not None:
                interruption = CmwqError(f"the thread of rescuer {self.name} has ended")
            while self._is_needed():
                try:
                    if interruption is None:
                        self._parker.park()
                    else:
                        self._recover(interruption)
                        interruption = None
                    self._answer()
                except BaseException as exc:  # an asynchronous one, at any bytecode
                    interruption = exc

    def _is_needed(self) -> bool:
        return not self._stopped and self._queue() is not None

    def _succeed(self, ended: Thread | None) -> None:
        """If that thread is the rescuer's and ends although it is needed, as several exceptions at once may end it:
        start another, which puts down what this one had. If that is refused, the watchdog tries again.

        Context: that thread, or it has ended.
        """
        if self.thread is ended and self._is_needed():
            with suppress(ThreadLimit):
                self.start()

    def revive(self) -> None:
        """Start another thread if the rescuer's has ended without notice. Context: the watchdog."""
        thread = self.thread
        if thread is not None and not thread.is_alive():
            self._succeed(thread)

    def _answer(self) -> None:
        """Answer the calls. One that is interrupted is answered again, from the beginning."""
        while self._calls:
            if self._rescue(self._calls[0]):
                self._calls.rotate(-1)  # after the pools that called meanwhile
            elif self._calls:  # in the child of a fork there are none any more
                self._calls.popleft()

    def _rescue(self, pwq: Source) -> bool:
        """Go to the pool and run works of the queue there (C3). Returns whether more is to be done."""
        pool = pwq.pool
        self.worker = worker = Worker(pool, RESCUER, self._parker, self.name)
        worker.home = worker.thread = self.thread
        worker.cpu_time = pool.host.cpu_clock()
        worker.billed = worker.cpu_time() or 0.0  # what it used before is not this pool's
        worker.billed_to = pwq.figures
        with pool.lock:
            pool.workers.add(worker)  # before it binds: if the CPUs change now, it is bound again like all of them
        more = True  # for the case that it is interrupted
        with pool.lock.by_hand():
            try:
                worker.bind()
                be_worker(worker)
                pool.lock.acquire()  # it is released around each item; after an exception `recover` releases it
                pwq.called = False
                number = 0
                while more and number < BATCH and not worker.dying:
                    more = _run_next(pool, pwq, worker) and need_rescuer(pool)
                    number += 1
                pwq.called = more
                pool.lock.release()
            except BaseException as exc:
                recover(pool, worker, exc)
        self._retire(worker)
        if worker.dying:
            self._stopped = True  # in the child of a fork within the work: this thread is no rescuer there
            self._calls.clear()
        return more and not worker.dying

    def _recover(self, exc: BaseException) -> None:
        """Put down what it had, and leave the pool where it was."""
        worker = self.worker
        if worker is not None:
            recover(worker.pool, worker, exc)
            self._retire(worker)
        else:
            log.warning("rescuer %s was interrupted by %s, and goes on", self.name, in_words(exc))

    def _retire(self, worker: Worker) -> None:
        """Leave the pool that it has helped."""
        pool = worker.pool
        with pool.lock:
            bill_last(worker)
            pool.workers.discard(worker)
            pool.tell_drainers()
            pool.kick_or_settle()
        be_worker(None)
        self.worker = None


@not_holding("pool.lock")
def revive_the_dead(pool: WorkerPool) -> None:
    """Give every rescuer of a queue with a place on the pool a thread, if its own has ended without notice."""
    with pool.lock:
        rescuers = [pwq.rescuer for pwq in pool.pwqs]
    for rescuer in rescuers:
        if rescuer is not None:
            rescuer.revive()


@holding("pool.lock")
def _run_next(pool: WorkerPool, pwq: Source, worker: Worker) -> bool:
    """Run the next listed work of that queue, as `process_works` would. Returns False if there is none.

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
        pool.settle()  # this may have been the last waiting work
        lock.release()
        run_item(pool, worker)
        lock.acquire()
        blocking.over(worker)
        pool.nr_completed += 1
        announcement = item.end()
        if announcement is not None:
            announce(pool, worker, announcement)
            announcement = None
        if item.follower is not None:
            item.follower.relist()  # E3: it may be of another queue, and then a worker has to run it
            item.follower = None
        worker.item = None  # last: `mend` finds the follower by it
    pool.kick_or_settle()
    lock.release()
    item = None  # without the lock: finalisers are user code
    lock.acquire()
    return True


@holding("pool.lock")
def _take(pool: WorkerPool, pwq: Source, worker: Worker) -> Item | None:
    """Take the first work of that queue off the list, for the worker. Costs O(works of other queues before it)."""
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
    """Look after `delay` seconds whether help is needed. Context: the alarm is not set."""
    with suppress(ThreadLimit):  # never, once the runtime has begun
        pool.alarms.mayday.set(pool.host, delay, partial(mayday, pool))


@outside
def mayday(pool: WorkerPool) -> None:
    """Call the rescuers, if help is still needed. Context: the timer."""
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
    """Return whether, as far as is known, the pool will get no further worker."""
    if pool.office.nr_refusals < 2:
        return False
    if pool.office.nr_refusals >= PATIENCE:
        return True
    with pool.lock:
        return sum(not worker.is_rescuer for worker in pool.workers) >= pool.office.max_workers


@outside
def hopeless(own: Item, target: Target, waiting: dict[Item, Target]) -> str | None:
    """Return why the work `own` would wait for ever, in words; None if it may still go on.

    It would if something that it waits for has not begun, no thread could be created, even after a cool-down, and all
    threads that could begin it wait themselves.

    waiting: the works that wait without a timeout, `own` among them. Context: the worker of `own`.
    """
    if not target.lacks_workers():
        return None
    stuck = _stuck(waiting, own)
    if own not in stuck or (not _is_rescued(own) and _a_rescuer_gives_up(stuck)):
        return None
    return _why(own, target)


@outside
def tell_who_waits_in_vain(pool: WorkerPool) -> None:
    """To be called after a thread was refused once more. If no thread is to be expected, and works wait for something
    that no worker can begin, give up the wait of the last of them.

    Only one work is told: when its worker goes on, the others may get what they wait for. If they do not, the pool is
    refused again, and the next work is told. Context: the timer.
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
    """Return whether a rescuer runs one of the works that wait for something that lacks a worker.

    The rescuer finds that out by itself. Its work is the first to be told, because a rescuer is there to do what others
    wait for.
    """
    return any(_is_rescued(item) and target.lacks_workers() for item, target in stuck.items())


def _is_rescued(item: Item) -> bool:
    """Return whether a rescuer executes the work."""
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
    return None  # the target began in the meantime


def _stuck(waiting: dict[Item, Target], own: Item | None = None) -> dict[Item, Target]:
    """Return those works that cannot go on before others of them do. With `own`, the result is exact only for `own`.

    Works that may go on are taken out until no more are found. The last to wait is looked at first, because mostly the
    others wait for it. There is no recursion: a chain may be as long as there are workers. Whether a pool has a free
    worker is asked once per pool, and again only after a work of that pool was taken out.
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
        # Rescuers do not count: each runs only the works of its own queue.
        return any(not worker.is_rescuer and worker.item not in stuck for worker in pool.workers)


def _rescuer_is_free(target: Target, stuck: dict[Item, Target]) -> bool:
    rescuer = target.queue.rescuer
    if rescuer is None:
        return False
    helper = rescuer.worker  # None: the rescuer rests, and will be called
    return helper is None or helper.item is None or helper.item not in stuck
