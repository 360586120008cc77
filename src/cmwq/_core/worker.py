"""A worker's life: idle, managing, working, dying.

Guarantees: a worker never dies of what its work does (B4); it leaves the idle list for work only when another is in
reserve, or after it created one as the manager, or when none can be had (B1, B2, B6). Manager is a role, not a class:
what a thread is doing now.

Who counts a worker as running: whoever wakes it (`WorkerPool.kick`); it takes itself off the count when it goes idle.
The letters are those of `pool`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from threading import local
from typing import TYPE_CHECKING, Any, TypeVar

from cmwq._core import events
from cmwq._core.policy import keep_working, need_more_worker, need_to_create_worker, slack
from cmwq._errors import CmwqError

if TYPE_CHECKING:
    from types import TracebackType
    from weakref import ref

    from cmwq._core.item import Announcement, Item
    from cmwq._core.pool import WorkerPool
    from cmwq._core.ports import Parker, Thread, Traits
    from cmwq._core.pwq import PoolWorkQueue

_log = logging.getLogger("cmwq")
T = TypeVar("T")

LEAKS_PERIOD = 0.05
"""Seconds between two looks at a worker of one queue for what its works left behind."""
MAX_LEAKS = 100
"""So many are reported, each once."""


class Worker:
    """A record of one thread's role in a pool. It *has* a thread."""

    __slots__ = (
        "announcing", "counted", "cpu_time", "dying", "ended", "fate", "hinted", "hog", "hog_item", "hog_since",
        "hog_used", "idle", "index", "item", "kicked", "last", "last_active", "lender", "listed", "look_again", "name",
        "nr_hints", "nr_refused", "on_lock", "parker", "pool", "served", "shown", "sleeping", "stray", "stumbled",
        "thread", "tid", "traits", "waiters", "watched",
    )  # fmt: skip

    def __init__(self, pool: WorkerPool, index: int, parker: Parker, name: str = "") -> None:
        self.pool = pool  # I
        self.index = index  # I: negative: a queue's rescuer, here for a while
        self.parker = parker  # I
        self.name = name or f"cmwq/{pool.name}:{index}{'H' * pool.highpri}"  # I
        self.thread: Thread | None = None  # I: set by the creator once it exists
        self.tid = 0  # L: the system's name for it, once it is bound to the pool's CPUs
        self.listed = False  # L: its thread exists, and it has been on the idle list
        self.idle = False  # L: on the idle list, or about to be put there
        self.kicked = False  # L: taken from the idle list by kick(), counted, and not yet arrived
        self.dying = False  # L: shall end
        self.fate = ""  # L: of what it died, if it wasn't told to
        self.counted = False  # L: executing, and not exempt (A8)
        self.sleeping = False  # L: counted, but known to be blocked
        self.on_lock = False  # L: if sleeping: for a lock
        self.hinted = False  # L: it said so itself; no sensor knows better
        self.item: Item | None = None  # L: what it is about to claim, or executes, until everybody has heard of its end
        self.lender: PoolWorkQueue | None = None  # L: where its item has lent its place under max_active
        self.cpu_time: Callable[[], float | None] = _unknown  # I: CPU seconds its thread has used
        self.hog_item: ref[Item] | None = None  # L: what it executed when last looked at for hogs (A9)
        self.hog_used: float | None = None  # L: if it is a hog, its CPU time when last looked at
        self.hog_since = 0.0  # L: its CPU time then
        self.hog = False  # L: its item is a hog, and let go of
        self.last: Item | None = None  # S: ended, to be dropped without the lock
        self.last_active = 0.0  # L: when it went idle
        self.stray = False  # ~: it is to bind itself again, before its next item
        self.announcing = False  # L: its item has ended, and those who wait are being told
        self.ended: Callable[[], None] = _nothing  # I once its thread runs: whatever a sensor saw of it is void
        self.stumbled: Item | None = None  # S: it was interrupted when it was about to claim this one
        self.served: PoolWorkQueue | None = None  # ~: its next item is run without ado if it came through the same
        self.nr_refused = pool.nr_refused  # I: so many threads had been refused before it was created
        self.nr_hints = 0  # S: depth of blocking()
        self.traits: Traits | None = None  # S: how its thread is to be
        self.look_again = 0.0  # S: not before that, on the host's clock, it is looked at for what works left behind
        self.shown = ""  # S: the queue the thread is named after
        self.waiters: tuple[ref[Any], ...] = ()  # S to change, read freely: see `lending.Waiters`
        self.watched: Any = None  # the sensor's own

    def __repr__(self) -> str:
        state = "idle" if self.idle else "blocked" if self.sleeping else "running" if self.counted else "preparing"
        return f"<Worker {self.name} {state}>"

    def bind(self) -> None:
        """Let its thread run on the CPUs that the pool has (A1).  Context: its own thread, lock not held."""
        pool = self.pool
        while True:
            cpus = pool.cpus
            _try(pool, "be bound to its CPUs", partial(pool.host.bind, cpus))
            with pool.lock:
                if pool.cpus is cpus:
                    self.tid = pool.host.thread_id()  # from now on whoever changes them binds it
                    return

    def forget_hints(self) -> None:
        """Its item ended: a `blocking()` that was entered and never left is over (B4).  Context: pool.lock held."""
        self.nr_hints = 0
        self.reclaim_place()
        if self.hinted:
            self.hinted = False
            self.pool.lookout.exempt(self, False)

    def reclaim_place(self) -> None:
        """Its item ended, or runs again: if it had lent its place, it holds one, even one too many.

        Context: pool.lock held.
        """
        if self.lender is not None:
            self.lender.nr_active += 1
            self.lender = None

    def discard_parker(self) -> None:
        """Give the parker's place back. For a worker whose thread ends or never came to be."""
        free = getattr(self.parker, "free", None)
        if free is not None:
            free()


def _nothing() -> None:
    """No sensor sees it."""


def _unknown() -> None:
    """The CPU time of a thread that hasn't begun."""


_this_thread = local()


def current_worker() -> Worker | None:
    return getattr(_this_thread, "worker", None)


def be_worker(worker: Worker | None) -> None:
    """What the calling thread is from now on."""
    _this_thread.worker = worker


def worker_thread(worker: Worker) -> None:
    """The body of every worker's thread.

    Nothing that a work does ends it (B4). What is raised between works, by who sends exceptions to threads, say, or
    because memory ran out, doesn't either: see `recover`. And if it ends all the same, before its first work or later,
    what it executed ends with the reason, and its place is taken by another, after the cool-down (B2): there may be
    something that no worker survives.
    """
    pool = worker.pool
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
                pool.worker_died(worker)
        finally:
            pool.lookout.detach(worker)


def mourn(worker: Worker, exc: BaseException) -> None:
    """It died of this.  Context: its own thread, or that has ended; lock not held, unless by that."""
    pool = worker.pool
    worker.fate = _in_words(exc)
    put_down(pool, worker, exc)
    pool.nr_deaths += 1
    if pool.nr_deaths & (pool.nr_deaths - 1) == 0:
        _log.error("%r died, and another takes its place; %d did so far", worker, pool.nr_deaths, exc_info=exc)


def bury_the_dead(pool: WorkerPool) -> None:
    """Workers whose threads have ended without a word: C code ended them, or something was raised before or after all
    that `worker_thread` can see, as by a trace function at its call.  Context: lock not held.
    """
    with pool.lock:
        workers = [(worker, worker.thread) for worker in pool.workers if worker.listed and not worker.dying]
    for worker, thread in workers:
        if thread is not None and not thread.is_alive() and worker in pool.workers:
            mourn(worker, CmwqError(f"the thread of worker {worker.name} has ended"))
            pool.lookout.detach(worker)


def begin(worker: Worker) -> None:
    """Context: its own thread, lock not held."""
    pool, host = worker.pool, worker.pool.host
    be_worker(worker)
    pool.lookout.attach(worker)
    _try(pool, "be named", partial(host.set_thread_name, worker.name))
    worker.bind()
    if pool.nice:
        pool.niced = bool(_try(pool, "be made nicer", partial(host.set_nice, pool.nice)))
    worker.cpu_time = _try(pool, "have its CPU time read", host.cpu_clock) or _unknown
    worker.traits = host.traits()
    with pool.lock:
        if pool.nr_refused == worker.nr_refused:
            pool.nr_refusals = 0  # none was refused after this one, which could begin


def _try(pool: WorkerPool, what: str, step: Callable[[], T]) -> T | None:
    """A worker goes on without, which is said once. A pool without workers would be worse."""
    try:
        return step()
    except Exception as exc:
        if what not in pool.lacks:
            pool.lacks.add(what)
            _log.warning("pool %s: a worker could not %s (%s), and works all the same", pool.name, what, _in_words(exc))
    return None


def _in_words(exc: BaseException) -> str:
    """An exception in a message. What it has to say of itself is the user's code.  Context: lock not held."""
    try:
        words = f"{type(exc).__name__}: {exc}"
    except Exception:
        words = type(exc).__name__
    return words if len(words) <= 200 else words[:197] + "..."


def serve(pool: WorkerPool, worker: Worker) -> None:
    """Rest, work, and rest again, until it dies.  Context: lock not held."""
    lock = pool.lock
    spins = False
    while not worker.dying:
        worker.parker.park(-1, spins)
        lock.acquire()  # by hand, for it is let go of around each item; `recover` lets go of it else
        if not worker.dying and start_working(pool, worker):
            process_works(pool, worker)
            if not worker.dying:
                pool.enter_idle(worker)
        spins = not (pool.nr_running or pool.nr_blocked or pool.worklist)
        lock.release()
        if worker.last_active >= worker.look_again and worker.last is not None:
            worker.look_again = worker.last_active + LEAKS_PERIOD
            undo_leaks(worker)
        worker.last = worker.served = worker.stumbled = None  # an idle worker must not keep a result alive, nor a queue


def recover(pool: WorkerPool, worker: Worker, exc: BaseException) -> None:
    """Something was raised that is none of a work's. The worker puts down what it had, and rests.

    Context: the worker's thread, lock held or not: it has just been interrupted.
    """
    put_down(pool, worker, exc)
    with pool.lock:
        worker.ended()  # if that raises, the worker dies
    _log.warning("%r was interrupted by %s, and goes on", worker, _in_words(exc))


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
            pool.kick_or_look_out()
    if item is not None:
        item.abort(exc)
    with lock:
        if item is not None:
            worker.item = None
            item.be_over()
            if item.follower is not None:
                item.follower.relist()
                item.follower = None
        if pool.manager is worker:
            pool.manager = None
        worker.kicked = worker.counted = worker.sleeping = worker.announcing = False
        if worker.hog:
            worker.hog = False
        worker.forget_hints()
        worker.served = None
        if worker.fate:
            pool.worker_died(worker)
        elif not worker.dying and worker.index >= 0:
            worker.idle = True  # a rescuer rests elsewhere
        pool.mend()
    worker.last = None


def start_working(pool: WorkerPool, worker: Worker) -> bool:
    """Leave the idle list, counted, with another in reserve; or stay, if not needed after all.

    Context: lock held; dropped and retaken while managing.
    """
    if worker.kicked:
        worker.kicked = False
        pool.nr_waking -= 1
    elif not worker.idle:
        return False  # its creator has not listed it yet
    else:
        # Nobody called kick() for it: the sensor saw too few running, or park() returned for nothing.
        if pool.armed_with is not worker:
            pool.lookout.deliver()
            if not need_more_worker(pool):
                return False
            pool.leave_idle(worker)
        else:
            pool.leave_idle(worker)
            pool.lookout.deliver()
            if not need_more_worker(pool):
                pool.enter_idle(worker)
                return False
        pool.nr_running += 1
        pool.nr_wakeups += 1
        if pool.taps:
            events.woken(pool, worker, "sensor")
    worker.counted = True
    worker.ended()  # what was seen of it while it waited for the lock is void
    if need_to_create_worker(pool):
        manage_workers(pool, worker)
        # While it managed it was not counted, and the reserve it made may have gone to work in its place (A3).
        if worker.dying or not need_more_worker(pool):
            if not worker.dying:
                pool.enter_idle(worker)
            return False
        pool.count(worker)
        worker.ended()
    return True


def manage_workers(pool: WorkerPool, worker: Worker) -> None:
    """B2: be the manager: create the next reserve. The others go on working meanwhile.

    Context: lock held; dropped and retaken, so re-read everything. The worker is not counted any more.
    Promise: somebody was idle since, or the refusal is noted and a retry is due.
    """
    pool.uncount(worker)
    pool.manager = worker
    pool.look_out()
    pool.lock.release()
    pool.create_reserve(worker)
    pool.lock.acquire()


def process_works(pool: WorkerPool, worker: Worker) -> None:
    """Run items back to back while the rules allow it (A3, A5). The hot path.

    The last item is left in `worker.last`, to be dropped without the lock: finalisers are user code. No frame keeps one
    when it is left: an exception's traceback holds on to frames.
    Context: lock held; released around each item.
    """
    worklist, lock, ended = pool.worklist, pool.lock, worker.ended
    last: Item | None = None
    item: Item | None = None
    follower: Item | None = None
    while worklist:
        running, target = pool.nr_running, pool.target
        if running > target and last is not None and not keep_working(pool):
            # While every CPU is busy nobody looks, and one of those believed running may long sleep: a worker that
            # went idle for it would be missed at once.
            pool.lookout.review(worker, target + slack(pool))
            if not keep_working(pool):
                break
            running = pool.nr_running
        worker.item = item = worklist[0]  # first its, then no more the list's: never lost in between
        del worklist[0]
        if not item.claim(worker):
            worker.item = None
            pool.kick()  # its place may have gone to others
            pool.look_out()
            lock.release()
            last = item = None  # without the lock: finalisers are user code
            lock.acquire()
            continue
        while True:
            if worklist:
                if running < target:
                    pool.kick()  # A6: the wake chain
                if pool.armed_with is None:
                    pool.look_out()
            elif pool.armed_with is not None or pool.nappers:
                pool.look_out()
            lock.release()
            last = follower = None
            if worker.served is item._phase.pwq:
                item.run()
            else:
                execute_specially(pool, worker)
            lock.acquire()
            ended()
            if worker.sleeping:
                pool.worker_running(worker)
                worker.forget_hints()
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


def announce(pool: WorkerPool, worker: Worker, announcement: Announcement) -> None:
    """Tell those who wait that the worker's item has ended, and then those who flush.

    Context: lock held; dropped and retaken.
    """
    item, worker.announcing = worker.item, True
    if pool.worklist:
        pool.kick_or_look_out()  # callbacks may take their time
    pool.lock.release()
    announcement.announce(item)  # type: ignore[arg-type]
    pool.lock.acquire()
    worker.ended()
    if worker.sleeping:
        pool.worker_running(worker)
        worker.forget_hints()
    item.retire()  # type: ignore[union-attr]
    worker.announcing = False


def execute_specially(pool: WorkerPool, worker: Worker) -> None:
    """Run the worker's item, of another queue than the last (B5: name the thread), or one that does not count (A8).

    Context: lock not held.
    """
    pwq = worker.item._phase.pwq  # type: ignore[union-attr]
    if worker.stray:
        worker.stray = False
        worker.bind()
    if worker.shown != pwq.wq.name:
        if worker.shown:
            undo_leaks(worker)
        worker.shown = pwq.wq.name
        if worker.thread is not None:
            worker.thread.name = pwq.wq.thread_name(worker)  # before the system's: since 3.14 it sets that, too
        _try(pool, "be named", partial(pool.host.set_thread_name, f"{worker.name}-{worker.shown}"))
    if not pwq.exempt:
        worker.served = pwq
        if pwq.observed:  # looked at after `served` was set: see `events.observe_places`
            events.run(pool, worker)
        else:
            worker.item.run()  # type: ignore[union-attr]
        return
    with pool.lock:
        pool.uncount(worker)
        pool.lookout.exempt(worker, True)
        pool.kick()
    try:
        if pwq.observed:
            events.run(pool, worker)
        else:
            worker.item.run()  # type: ignore[union-attr]
    finally:
        with pool.lock:
            pool.count(worker)
            pool.lookout.exempt(worker, False)
            worker.forget_hints()


def undo_leaks(worker: Worker) -> None:
    """What a work changed of its thread is no matter of the next queue's works (B4): affinity, nice value, signal mask.

    Looked at when the worker goes on to another queue, and when it goes idle, at most every `LEAKS_PERIOD`: it costs
    system calls. A lock that a work took and kept can't be seen.  Context: the worker's thread, lock not held.
    """
    pool, host, wanted = worker.pool, worker.pool.host, worker.traits
    found = host.traits()
    if found == wanted or found is None or wanted is None:
        return
    if found.mask is not None and found.mask != wanted.mask:
        host.set_mask(wanted.mask or ())
        _report_leak(worker, "its signal mask", undone=True)
    if found.nice is not None and wanted.nice is not None and found.nice != wanted.nice:
        _report_leak(worker, "its nice value", undone=host.set_nice(wanted.nice))
    if found.cpus is not None and found.cpus != set(pool.cpus):
        worker.bind()
        now = host.traits()
        if now is not None and now.cpus != found.cpus:  # else CPUs left
            _report_leak(worker, "its affinity", undone=True)
    worker.traits = host.traits()


def _report_leak(worker: Worker, what: str, *, undone: bool) -> None:
    told, leak = worker.pool.runtime.leaks, (worker.shown, what)
    if leak not in told and len(told) < MAX_LEAKS:
        told.add(leak)
        then = "it was undone" if undone else "to undo it is not permitted here"
        _log.warning("a work of queue %r changed %s and left it so on its worker's thread; %s", *leak, then)


class blocking:
    """What follows blocks: let another worker run meanwhile.

    A context manager, for code that knows it will wait: `with cmwq.blocking(): ...`. Exact, instantaneous, on every
    platform. Nests. Outside a worker it does nothing. Reusable, not to be shared between threads while entered.
    """

    __slots__ = ("_item", "_worker")

    def __init__(self) -> None:
        self._worker: Worker | None = None
        self._item: Item | None = None

    def __enter__(self) -> None:
        self._worker = worker = current_worker()
        if worker is None:
            return
        self._item = worker.item
        worker.nr_hints += 1
        if worker.nr_hints > 1 or not worker.counted:
            return
        pool = worker.pool
        with pool.lock:
            _hint(pool, worker)
            pool.kick()

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        worker, item, self._item = self._worker, self._item, None
        if worker is None or worker.item is not item or not worker.nr_hints:
            return  # no worker, or left only after its item had ended
        worker.nr_hints -= 1
        if worker.nr_hints or not worker.hinted:
            return
        pool = worker.pool
        with pool.lock:
            _unhint(pool, worker)


def step_aside(worker: Worker, lender: PoolWorkQueue | None) -> bool:
    """Its work waits for something: it is known to be blocked at once (A4), and lends its place under `max_active`.

    lender: where it has that place; None: it lends none. Returns whether it lent it now, for `step_back`.
    Context: lock not held.
    """
    pool = worker.pool
    with pool.lock:
        lends = lender is not None and worker.lender is None
        if lender is not None and lends:
            worker.lender = lender
            lender.nr_active -= 1
            if lender.attends:
                lender.activate()
        worker.nr_hints += 1
        if worker.nr_hints == 1 and worker.counted:
            _hint(pool, worker)
        pool.kick_or_look_out()
    return lends


def step_back(worker: Worker, lent: bool) -> None:
    """It goes on, even if its place is taken: to wait for one could be to wait for ever.  Context: lock not held."""
    pool = worker.pool
    with pool.lock:
        if lent:
            worker.reclaim_place()
        worker.nr_hints -= 1
        if not worker.nr_hints and worker.hinted:
            _unhint(pool, worker)


def _hint(pool: WorkerPool, worker: Worker) -> None:
    """It blocks, by its own word: no sensor knows better.  Context: lock held."""
    worker.hinted = True
    if worker.hog:
        pool.worker_running(worker)  # its place among the hogs is free
    pool.lookout.exempt(worker, True)
    pool.worker_sleeping(worker)
    pool.lookout.deliver()


def _unhint(pool: WorkerPool, worker: Worker) -> None:
    """Context: lock held."""
    worker.hinted = False
    pool.lookout.exempt(worker, False)
    pool.worker_running(worker)
