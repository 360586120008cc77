"""The manager's office of a pool: it creates workers, copes with refusals, and dismisses surplus workers (B).

Guarantees: there is at most one manager (B2). While anything executes there is an idle worker, one on its way, a
manager, or a retry due (B1). If no thread can be had, the pool goes on with the workers it has, and tries again after
the cool-down (B6). Surplus idle workers die, the coldest first (B3). Manager is a role that a thread has for a while: a
worker, the thread that starts the pool, or the timer. The letters are those of `pool`.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from cmwq._core import log
from cmwq._core.held import holding, not_holding, outside
from cmwq._core.surely import surely
from cmwq._errors import ThreadLimit
from cmwq._pool import events, rescuer
from cmwq._pool.policy import too_many_workers
from cmwq._pool.worker import Worker
from cmwq._pool.worker_thread import worker_thread

if TYPE_CHECKING:
    from cmwq._core.ports import Thread
    from cmwq._pool.pool import WorkerPool


class Office:
    """The manager's office of one pool."""

    __slots__ = (
        "_next_number", "_pool", "holder", "max_workers", "nr_refusals", "nr_refused", "refusal", "refused",
    )  # fmt: skip

    def __init__(self, pool: WorkerPool, max_workers: int) -> None:
        self._pool = pool  # I
        self.max_workers = max_workers  # I: the runtime's own cap (B6)
        self.holder: object | None = None  # L: the manager: a worker, or a stand-in for another thread; None: nobody
        self.refused = False  # L: no thread could be had; a retry is due (B2)
        self.nr_refusals = 0  # L: refusals in a row
        self.refusal = ""  # L: the reason of the last refusal
        self.nr_refused = 0  # L: refusals in all
        self._next_number = 0  # L

    @property
    @holding("self._pool.lock")
    def taken(self) -> bool:
        """Whether there is a manager at present."""
        return self.holder is not None

    @property
    @holding("self._pool.lock")
    def has_worker(self) -> bool:
        """Whether the manager is a worker, which executes nothing meanwhile."""
        return isinstance(self.holder, Worker)

    # ------------------------------------------------------------------------------------- creating

    @not_holding("self._pool.lock")
    def create_worker(self) -> None:
        """Create one more worker, which is idle, or taken for work at once.

        Raises ThreadLimit if the thread is refused, or a cap is reached (B6).
        """
        pool = self._pool
        with pool.lock:
            room = self.max_workers - len(pool.workers)
            if room <= 0:
                room += sum(worker.is_rescuer for worker in pool.workers)  # rescuers do not count for the cap
            number = self._next_number
            self._next_number += 1
            pool.gil = pool.host.gil_enabled()
        if room <= 0 or pool.host.thread_headroom(needed=len(pool.workers) < 2) <= 0:
            raise ThreadLimit(f"pool {pool.name}: no room for one more thread below the caps; see `cmwq doctor`")
        worker = Worker(pool, number, pool.lookout.parker())
        try:
            # It joins the set before its thread exists, so that the thread finds itself there; it is idle only after.
            with pool.lock:
                pool.workers.add(worker)
            pool.host.spawn(worker.name, partial(worker_thread, worker), partial(_note_thread, worker))
            if not self._list(worker):
                raise ThreadLimit(f"worker {worker.name} died as it began: {worker.fate}")
        except BaseException:
            # Its thread was refused, or it exists and the calling thread was interrupted before it listed the worker.
            if worker.thread is None:
                with pool.lock:
                    pool.workers.discard(worker)
                    pool.lookout.take_back(worker.parker)
            else:
                self._list(worker)
            raise

    @not_holding("self._pool.lock")
    def _list(self, worker: Worker) -> bool:
        """Put a new worker, whose thread exists, on the idle list, or take it for work at once.

        Returns False if it died before. A second call for the same worker changes nothing. Setting its flag `idle` is
        the step that decides: if what follows is interrupted, it is idle and `listed` when the lock is released
        (`mend`).
        """
        pool = self._pool
        with pool.lock:
            if worker.listed:
                return True
            if worker.fate:
                return False
            worker.idle = True
            worker.listed = True
            pool.stats.created += 1
            pool.stats.peak_workers = max(pool.stats.peak_workers, len(pool.workers))
            if pool.taps:
                events.created(pool, worker)
            if pool.closing or worker.dying:
                if pool.taps:
                    events.died(pool, worker)
                pool.dismiss(worker)
            else:
                pool.enter_idle(worker)
                pool.lookout.deliver()
                pool.kick()
            return True

    @not_holding("self._pool.lock")
    def create_reserve(self) -> None:
        """Do what the manager does: create workers until one stays idle, or none can be had; then leave the office.

        The worker just created may be taken for work at once. It then finds a manager in office and relies on it to
        create the next (B1). So the office is left in the very critical section in which the reserve was seen. Context:
        the caller has set `holder`, and sees to it that the office does not stay taken if this is interrupted: a worker
        by `recover`, any other thread by `vacate`.
        """
        pool = self._pool
        while True:
            refusal = self._try_to_create()
            with pool.lock:
                if refusal is not None:
                    self.note_refusal(refusal)
                if refusal is not None or pool.idle_list or pool.closing or self.refused:
                    self.holder = None
                    pool.settle()
                    return

    @not_holding("self._pool.lock")
    def vacate(self, manager: object) -> None:
        """Leave the office if the thread for which `manager` stands in was interrupted and has not left it."""
        with self._pool.lock:
            if self.holder is manager:
                self.holder = None
                self.note_refusal("interrupted")

    @not_holding("self._pool.lock")
    def _try_to_create(self) -> str | None:
        """Create a worker. Returns why it could not be created; None if it was."""
        try:
            self.create_worker()
        except ThreadLimit as exc:
            return str(exc)
        except Exception as exc:
            log.exception("pool %s could not create a worker", self._pool.name)
            return repr(exc)
        return None

    @holding("self._pool.lock")
    def note_refusal(self, why: str) -> None:
        """Note that no thread could be had: go on with the workers there are, and retry later (B2, B6)."""
        pool = self._pool
        self.nr_refused += 1
        self.nr_refusals = 0 if pool.idle_list else self.nr_refusals + 1  # 0: there is a reserve, so no retry follows
        self.refusal = why
        if pool.taps:
            events.refused(pool, why)
        if not (self.refused or pool.idle_list or pool.closing):
            if not pool.watchdog.on:
                pool.watchdog.begin()
            pool.host.call_later(pool.config.create_cooldown, self._retry)
            self.refused = True  # last: it is never set without a retry that is due
        pool.settle()

    @outside
    def _retry(self) -> None:
        """Try again when the cool-down is over, unless a worker is idle by now. Context: the timer.

        The worker that was refused has gone to work, so the timer is the manager meanwhile. If no thread were left to
        try, an item that waits for a second one would wait for ever, although threads can be had again.
        """
        pool, stand_in = self._pool, object()
        vacate = partial(self.vacate, stand_in)
        with surely(vacate), surely(vacate):
            with pool.lock:
                self.refused = False
                if pool.idle_list:
                    self.nr_refusals = 0  # the next refusal begins a new row
                if pool.idle_list or self.taken or pool.closing:
                    return
                self.holder = stand_in
                pool.settle()
            self.create_reserve()
        rescuer.tell_who_waits_in_vain(pool)

    # ------------------------------------------------------------------------------------- culling

    @holding("self._pool.lock")
    def cull_later(self) -> None:
        """Set the alarm if there are too many idle workers. Context: the alarm is not set."""
        pool = self._pool
        if too_many_workers(pool) and not pool.closing:
            pool.alarms.cull.set(pool.host, pool.config.idle_worker_timeout, self._cull)

    @outside
    def _cull(self) -> None:
        """Let the coldest idle workers die, one by one, while there are too many (B3). Context: the timer."""
        pool = self._pool
        with pool.lock:
            pool.alarms.cull.cancel()
            now = pool.host.monotonic()
            while too_many_workers(pool) and pool.idle_list and not pool.closing:
                coldest = pool.idle_list[0]
                expires = coldest.last_active + pool.config.idle_worker_timeout
                if expires > now:
                    pool.alarms.cull.set(pool.host, expires - now, self._cull)
                    break
                self.dismiss_coldest()
            pool.settle()

    @holding("self._pool.lock")
    def dismiss_coldest(self) -> None:
        """Let the coldest idle worker die. The caller calls `settle`."""
        pool = self._pool
        if pool.taps:
            events.culled(pool, pool.idle_list[0])
        pool.dismiss(pool.idle_list[0])
        pool.stats.culled += 1


def _note_thread(worker: Worker, thread: Thread) -> None:
    worker.home = worker.thread = thread
