"""WorkerPool: one worklist, the workers that serve it, and how many of them run.

Guarantees: `nr_running` is the number of workers that are counted and not asleep (A2); at most one manager (B2); nobody
is asleep while `need_more_worker` and an idle worker exists. A decision is made under the lock; the waking is the
lock's own business (`Lock.wake`), so nothing can come between the two.

Whatever is raised in the middle of a critical section, no work is lost and no count is wrong (F10): each section makes
few changes to what *is* (lists, and flags of workers and items), in an order in which each step leaves something legal;
all numbers follow from that, and `mend` counts them anew before anybody else has the lock.

# Locking legend. Each shared field names its guard:
#
#   I    set while being built, never rebound; read freely
#   L    pool.lock
#   S    the worker's own thread alone
#   Q    wq.lock
#   R    runtime.lock
#   F    written only in the child of a fork, while it has one thread
#   ~    statistic: changed under L, readers may see a stale value, never decides anything
#
# The order of locks is in `ranks`, and the locks keep it. No user's code runs under any.
# No letter stands for the GIL.
"""

from __future__ import annotations

import logging
from collections import deque
from functools import partial
from typing import TYPE_CHECKING

from cmwq._core import events, hogs, rescuer
from cmwq._core.config import HIGHPRI_NICE
from cmwq._core.lending import Lending
from cmwq._core.mend import mend, mending
from cmwq._core.policy import need_more_worker, need_rescuer, too_many_workers
from cmwq._core.watchdog import Progress
from cmwq._core.weakly import Weakly
from cmwq._core.worker import Worker, worker_thread
from cmwq._errors import ThreadLimit

if TYPE_CHECKING:
    from cmwq._core.config import Config
    from cmwq._core.item import Item
    from cmwq._core.ports import Host, Parker, Sensor, Thread, Timer
    from cmwq._core.pwq import PoolWorkQueue
    from cmwq._core.queued import Queued
    from cmwq._core.runtime import Runtime
    from cmwq._core.work import Work

_log = logging.getLogger("cmwq")

NAP = 1e-3
"""Seconds that a thread waits for a result that is being computed before it asks to be woken, while works wait."""


class WorkerPool:
    """The workers of one scope (A1): one CPU or several."""

    def __init__(
        self,
        name: str,
        cpus: tuple[int, ...],
        target: int,
        *,
        highpri: bool,
        host: Host,
        sensor: Sensor,
        config: Config,
        max_workers: int,
        runtime: Runtime,
    ) -> None:
        self.name = name  # I
        self.cpus = cpus  # L to change, read freely: what its workers are bound to
        self.disassociated = False  # L to change, read freely: its CPU left (D2)
        self.highpri = highpri  # I
        self.nice = HIGHPRI_NICE if highpri else 0  # I: the nice value its workers ask for (E7)
        self.niced = False  # ~: they got it
        self.host = host  # I
        self.runtime = runtime  # I
        self.config = config  # I
        self.watchdog = runtime.watchdog  # I
        self.progress = Progress()  # the watchdog's
        self.max_workers = max_workers  # I: the runtime's own cap (B6)
        self.target = target  # L: how many may run
        self.gil = host.gil_enabled()  # L: looked at again with each new worker
        self.worklist: deque[Item] = deque()  # L: active items in order of activation (E10)
        self.idle_list: list[Worker] = []  # L: last in, first woken (A7); the coldest at the front
        self.workers: set[Worker] = set()  # L
        self.pwqs: Weakly[PoolWorkQueue] = Weakly()  # L: to be seen; kept alive by its queue, or by its works
        self.busy_works: dict[Work, Queued] = {}  # L: which queueing of a Work runs here (E3)
        self.nr_running = 0  # L: counted and not asleep; whoever wakes a worker counts it
        self.nr_blocked = 0  # L: counted, and asleep, but not for a lock
        self.nr_waking = 0  # L: counted, woken by us, and not yet arrived
        self.manager: object | None = None  # L: who is creating a worker: a worker, or a stand-in for another thread
        self.refused = False  # L: no thread could be had; a retry is due (B2)
        self.nr_refusals = 0  # L: so many times in a row
        self.refusal = ""  # L: what the last was for
        self.rescued = False  # L: a queue with a rescuer has a place here
        self.mayday_timer: Timer | None = None  # L: exists only while work waits and no worker can be had (C2)
        self.closing = False  # L: the runtime ends: no worker is created any more
        self.lost = False  # F: it was the parent's
        self.parked: set[Queued] = set()  # L: works that are active and in no list: they run elsewhere first (E3)
        self.relisting: tuple[list[Item], PoolWorkQueue, list[Item]] | None = None  # L: see `relist`
        self.drainers: list[Parker] = []  # L: who waits for quiet
        self.nappers: set[Parker] = set()  # L: who looks again in a moment, or when no work waits any more
        self.nr_hogs = 0  # L: workers whose item is a hog, and let go of (A9)
        self.hog_timer: Timer | None = None  # L: exists only while work waits, and for a moment after
        self.hog_rests = 0  # L: periods since work waited
        self.lending = Lending()  # works that wait inactive, maybe for themselves (E1)
        self.armed_with: Worker | None = None  # L: the reserve the sensor was given
        self.cull_timer: Timer | None = None  # L: exists only while there is something to cull (B3)
        self.trustee_timer: Timer | None = None  # L: exists only once its CPU left, until it has drained (D2)
        self.taps: tuple[events.Tap, ...] = ()  # L: who hears of what happens here
        self.next_worker = 0  # L
        self.nr_created = self.nr_culled = self.nr_wakeups = self.nr_completed = 0  # ~
        self.nr_refused = self.peak_workers = self.nr_deaths = 0  # ~
        self.lacks: set[str] = set()  # what workers go on without, and was said; each change is atomic
        self.lookout = sensor.lookout(self)  # I
        self.lock = self.lookout.lock()  # I
        self.lock.mend = mending(self)

    @property
    def managing(self) -> bool:
        """Somebody is the manager.  Context: lock held."""
        return self.manager is not None

    def __repr__(self) -> str:
        flags = " managing" * self.managing + " refused" * self.refused
        return (
            f"<WorkerPool {self.name} workers={len(self.workers)} idle={len(self.idle_list)} "
            f"running={self.nr_running} pending={len(self.worklist)}{flags}>"
        )

    def nr_started(self) -> int:
        """Works that have begun so far.  Context: lock held."""
        return self.nr_completed + sum(worker.item is not None and not worker.announcing for worker in self.workers)

    def count_started(self) -> int:
        with self.lock:
            return self.nr_started()

    # ------------------------------------------------------------------------------------- waking

    def kick(self) -> bool:
        """Take the warmest idle worker if one is needed, count it, and wake it as soon as the lock is free.

        That it is `kicked` is what decides; the rest follows from it (`mend`).  Context: lock held.
        """
        if not (self.idle_list and need_more_worker(self)):
            return False
        worker = self.idle_list[-1]
        worker.kicked = True
        self.lock.wake(worker.parker)
        self.idle_list.pop()
        worker.idle = False
        self.nr_running += 1
        self.nr_waking += 1
        self.nr_wakeups += 1
        if self.taps:
            events.woken(self, worker, "pool")
        if not self.watchdog.on:
            self.watchdog.begin()
        self.look_out()
        return True

    def kick_or_look_out(self) -> None:
        """The worklist grew: take whom that needs, or leave it to the sensor to see when that changes.

        Context: lock held. At the target (A3) this costs two comparisons: the sensor is armed already.
        """
        if self.nr_running < self.target:
            if not self.kick():
                self.look_out()
        elif self.armed_with is None:
            self.look_out()

    def look_out(self) -> None:
        """Tell the sensor whom to wake when it sees that fewer run than may: the warmest idle worker, while work waits
        that nobody is on the way to. Where none is to be had, see to it that the rescuers are called (C2).

        Context: lock held. Called after every change of the worklist's emptiness, the idle list's top, nr_waking, and
        of what `need_rescuer` asks for.
        """
        reserve = self.idle_list[-1] if self.worklist and self.idle_list and not self.nr_waking else None
        if reserve is not self.armed_with:
            self.armed_with = reserve
            self.lookout.arm(reserve)
            if reserve is not None and self.hog_timer is None:
                self.hog_rests = 0
                hogs.watch(self)
        if self.rescued and self.mayday_timer is None and need_rescuer(self):
            rescuer.watch(self, self.config.mayday_initial_timeout)
        if self.nappers and not self.worklist:
            for napper in self.nappers:
                napper.unpark()
            self.nappers.clear()

    def nap(self, parker: Parker) -> None:
        """Wait a moment, if works wait; less if the last of them begins.  Context: no worker; lock not held.

        Who takes results one after the other, as fast as they come, would be woken for each, and take a CPU from a
        worker each time: two or more switches per work. While works wait nobody is short of them; so such a thread
        looks again by itself, and finds many.
        """
        with self.lock:
            if not self.worklist:
                return
            self.nappers.add(parker)
        try:
            parker.park(NAP)
        finally:
            with self.lock:
                self.nappers.discard(parker)

    def count(self, worker: Worker) -> None:
        """It runs, from now on (A2).  Context: lock held."""
        worker.counted = True
        self.nr_running += 1
        if self.taps:
            events.counted(self, worker, True)

    def uncount(self, worker: Worker) -> None:
        """It is none of those that run, from now on (A8).  Context: lock held."""
        self.worker_running(worker)
        worker.counted = False
        self.nr_running -= 1
        if self.taps:
            events.counted(self, worker, False)

    def worker_sleeping(self, worker: Worker, *, on_lock: bool = False) -> None:
        """The kernel's wq_worker_sleeping. May be told twice, and of one that isn't counted.  Context: lock held."""
        if worker.counted and not worker.sleeping:
            worker.sleeping = True
            worker.on_lock = on_lock
            worker.hog_item = None
            self.nr_running -= 1
            self.nr_blocked += not on_lock
            if self.taps:
                events.blocked(self, worker)

    def worker_running(self, worker: Worker) -> None:
        """The kernel's wq_worker_running.  Context: lock held."""
        if worker.sleeping:
            if not worker.hinted:
                worker.reclaim_place()
            worker.sleeping = False
            self.nr_running += 1
            self.nr_blocked -= not worker.on_lock
            if self.taps:
                events.running(self, worker)
            if worker.hog:
                hogs.ended(self, worker)

    def serve(self, cpus: tuple[int, ...], target: int) -> None:
        """D6: from now on these CPUs. Its workers are bound to them, wherever they are; so many may run."""
        with self.lock:
            changed = cpus != self.cpus
            if changed:
                self.cpus = cpus
                self.lookout.set_cpus(cpus)
            self.target = target
            self.lookout.set_target(target)
            self.kick_or_look_out()
            threads = [worker.tid for worker in self.workers if worker.tid] if changed else []
        for tid in threads:
            self.host.bind(cpus, tid)

    # ------------------------------------------------------------------------------------- idle list

    def enter_idle(self, worker: Worker) -> None:
        """Context: lock held."""
        worker.last_active = self.host.monotonic()
        worker.idle = True
        self.idle_list.append(worker)
        if self.taps:
            events.idle(self, worker)
        self.tell_drainers()
        if self.cull_timer is None:
            self.cull_later()
        self.look_out()

    def cull_later(self) -> None:
        """Context: lock held, no timer is set."""
        if too_many_workers(self) and not self.closing:
            self.cull_timer = self.host.call_later(self.config.idle_worker_timeout, self.cull)

    def leave_idle(self, worker: Worker) -> None:
        """Context: lock held. The worker is not the one kick() took: the sensor woke it, or nobody did."""
        if self.armed_with is worker:
            self.armed_with = None
            self.lookout.arm(None)
        worker.idle = False
        if self.idle_list[-1] is worker:  # nearly always: the sensor wakes the warmest
            self.idle_list.pop()
        else:
            self.idle_list.remove(worker)

    def cull(self) -> None:
        """B3: the coldest idle workers die, one by one, while there are too many.  Context: the timer."""
        with self.lock:
            timer, self.cull_timer = self.cull_timer, None
            if timer is not None:
                timer.cancel()  # not the one that fired, if an interruption left two
            now = self.host.monotonic()
            while too_many_workers(self) and self.idle_list and not self.closing:
                coldest = self.idle_list[0]
                expires = coldest.last_active + self.config.idle_worker_timeout
                if expires > now:
                    self.cull_timer = self.host.call_later(expires - now, self.cull)
                    break
                self.dismiss_coldest()
            self.look_out()

    def dismiss_coldest(self) -> None:
        """It dies.  Context: lock held. The caller sees to the sensor."""
        if self.taps:
            events.culled(self, self.idle_list[0])
        self.dismiss(self.idle_list[0])
        self.nr_culled += 1

    def dismiss(self, worker: Worker) -> None:
        """An idle worker dies as soon as the lock is free.  Context: lock held."""
        worker.dying = True
        self.lock.wake(worker.parker)
        if worker in self.idle_list:
            self.idle_list.remove(worker)
        worker.idle = False
        self.workers.discard(worker)

    # ------------------------------------------------------------------------------------- creating

    def create_worker(self) -> None:
        """One more worker, idle.  Context: lock not held.  Raises ThreadLimit: refused, or a cap is reached (B6)."""
        with self.lock:
            room = self.max_workers - len(self.workers)
            if room <= 0:
                room += sum(worker.index < 0 for worker in self.workers)  # rescuers are none of them
            number = self.next_worker
            self.next_worker += 1
            self.gil = self.host.gil_enabled()
        if room <= 0 or self.host.thread_headroom(needed=len(self.workers) < 2) <= 0:
            raise ThreadLimit(f"pool {self.name}: no room for one more thread below the caps; see `cmwq doctor`")
        worker = Worker(self, number, self.lookout.parker())
        try:
            # In the set before the thread is there, so that the thread finds itself listed; idle only once it exists.
            with self.lock:
                self.workers.add(worker)
            self.host.spawn(worker.name, partial(worker_thread, worker), partial(_note_thread, worker))
            if not self.list_new(worker):
                raise ThreadLimit(f"worker {worker.name} died as it began: {worker.fate}")
        except BaseException:
            # Its thread was refused; or it exists, and this one was interrupted before the new one was listed.
            if worker.thread is None:
                with self.lock:
                    self.workers.discard(worker)
                worker.discard_parker()
            else:
                self.list_new(worker)
            raise

    def list_new(self, worker: Worker) -> bool:
        """Its thread exists: it is idle now, or is taken for work at once. False: it died before that.

        Once for each.  Context: lock not held.
        """
        with self.lock:
            if worker.listed:
                return True
            if worker.fate:
                return False
            worker.listed = True
            self.nr_created += 1
            self.peak_workers = max(self.peak_workers, len(self.workers))
            if self.taps:
                events.created(self, worker)
            if self.closing or worker.dying:
                if self.taps:
                    events.died(self, worker)
                self.dismiss(worker)
            else:
                self.enter_idle(worker)
                self.lookout.deliver()
                self.kick()
            return True

    def worker_died(self, worker: Worker) -> None:
        """It is gone, and so is what it counted for; if it is missing, another takes its place.

        If it isn't listed yet, who is just creating it sees its `fate`, and has been refused.
        Context: lock held, the worker's own thread.
        """
        missing = not worker.dying
        worker.dying = True
        worker.kicked = worker.counted = worker.sleeping = worker.idle = False
        if self.taps:
            events.died(self, worker)
        self.workers.discard(worker)
        if self.manager is worker:
            self.manager = None
        if worker in self.idle_list:
            self.idle_list.remove(worker)
        if missing:
            if worker.listed and not self.idle_list:
                self.creation_refused(f"worker {worker.name} died: {worker.fate}")
            self.mend()

    def create_reserve(self, manager: object) -> None:
        """What the manager does: create workers until one stays idle, or none can be had; then leave the office.

        The worker just created may be taken for work at once. It then finds a manager in office and relies on it to
        create the next (B1). So the office is left in the very critical section in which the reserve was seen.
        Context: lock not held, `pool.manager` set by the caller.
        """
        try:
            while True:
                refusal = self.try_to_create()
                with self.lock:
                    if refusal is not None:
                        self.creation_refused(refusal)
                    if refusal is not None or self.idle_list or self.closing or self.refused:
                        self.manager = None
                        self.look_out()
                        return
        except BaseException:  # Ctrl-C: the office must not stay taken by nobody
            with self.lock:
                if self.manager is manager:
                    self.manager = None
                    self.creation_refused("interrupted")
            raise

    def try_to_create(self) -> str | None:
        """Why no worker could be created; None: one was.  Context: lock not held."""
        try:
            self.create_worker()
        except ThreadLimit as exc:
            return str(exc)
        except Exception as exc:
            _log.exception("pool %s could not create a worker", self.name)
            return repr(exc)
        return None

    def creation_refused(self, why: str) -> None:
        """B2, B6: go on with what there is, and try again after the cool-down.  Context: lock held."""
        self.nr_refused += 1
        self.nr_refusals = 0 if self.idle_list else self.nr_refusals + 1  # 0: nobody will try again
        self.refusal = why
        if self.taps:
            events.refused(self, why)
        if not (self.refused or self.idle_list or self.closing):
            if not self.watchdog.on:
                self.watchdog.begin()
            self.host.call_later(self.config.create_cooldown, self.retry_creation)
            self.refused = True  # last: never without a retry that is due
        self.look_out()

    def retry_creation(self) -> None:
        """The cool-down is over. Stops when an idle worker appeared.  Context: the timer.

        The worker that was refused went on to work, so the timer is the manager meanwhile: were nobody left to try, a
        first item waiting for a second would wait for ever although threads can be had again.
        """
        with self.lock:
            self.refused = False
            if self.idle_list:
                self.nr_refusals = 0  # the next refusal begins a new row
            if self.idle_list or self.managing or self.closing:
                return
            self.manager = office = object()
            self.look_out()
        self.create_reserve(office)
        rescuer.tell_who_waits_in_vain(self)

    # ------------------------------------------------------------------------------------- end

    def is_quiet(self) -> bool:
        """No work waits or runs, nor a callback of one. (What waits inactive has an active one before it.)

        Context: lock held. Asked whenever a worker goes idle while somebody drains: so the workers are looked at only
        if the numbers don't tell.
        """
        if self.parked or self.nr_blocked or self.nr_running > self.nr_waking or self.has_work():
            return False
        if len(self.idle_list) + self.nr_waking == len(self.workers):
            return True
        return not any(worker.item or worker.counted for worker in self.workers)

    def has_work(self) -> bool:
        """Work waits that wasn't taken back. (What was is passed over by who comes, but maybe nobody can.) It may wait
        inactive, behind what was taken back.

        Context: lock held.
        """
        return any(
            not item.withdrawn or any(not behind.withdrawn for behind in item.pwq.inactive) for item in self.worklist
        )

    def quiet_or_tell(self, parker: Parker | None) -> bool:
        """Whether it is quiet; if not, `parker` is unparked when it may be."""
        with self.lock:
            if self.is_quiet():
                return True
            if parker is not None and parker not in self.drainers:
                self.drainers.append(parker)
            return False

    def tell_drainers(self) -> None:
        """A worker or a rescuer has nothing more to do, or a work was taken back.  Context: lock held."""
        if self.drainers and self.is_quiet():
            for drainer in self.drainers:
                drainer.unpark()

    def tell_no_more(self, parker: Parker) -> None:
        with self.lock:
            if parker in self.drainers:
                self.drainers.remove(parker)

    def abandon(self) -> None:
        """In the child of a fork: the threads are the parent's, the locks may be held by them for ever (G2).

        The forking thread may be one of our workers, in the middle of an item: it ends when that ends.
        """
        self.lost = self.closing = True
        self.busy_works.clear()
        self.parked.clear()
        self.drainers.clear()
        self.cull_timer = self.hog_timer = self.mayday_timer = self.trustee_timer = self.lending.timer = None
        self.lock = self.host.reinit_lock(self.lock)
        for worker in self.workers:
            worker.dying = True
        for pwq in list(self.pwqs):
            pwq.inactive.clear()
        self.worklist.clear()
        self.idle_list.clear()

    def close(self) -> list[Worker] | None:
        """Take no work any more; every worker ends. Returns them, for the caller to join.

        None: it is not quiet, nothing was done.
        """
        with self.lock:
            if not self.is_quiet():
                return None
            self.closing = True
            return self.dismiss_all()

    def dismiss_all(self) -> list[Worker]:
        """The pool closes: nobody queues here any more, and every worker ends. Returns them. May be said twice.

        Context: lock held.
        """
        for pwq in list(self.pwqs):
            pwq.gate = True
        workers = [worker for worker in self.workers if worker.index >= 0]  # a rescuer is just about to leave
        for worker in workers:
            worker.dying = True
            worker.idle = False
            self.lock.wake(worker.parker)
        self.idle_list.clear()
        for timer in (self.cull_timer, self.hog_timer, self.mayday_timer, self.trustee_timer):
            if timer is not None:
                timer.cancel()
        self.cull_timer = self.hog_timer = self.mayday_timer = self.trustee_timer = None
        self.lending.cancel()
        self.look_out()
        return workers

    def relist(self, listed: list[Item], pwq: PoolWorkQueue, waiting: list[Item]) -> None:
        """From now on these are on the worklist, in this order, and those wait inactive.

        Noted first: should it be interrupted between emptying a list and filling it, `mend` does it again.
        Context: lock held.
        """
        self.relisting = listed, pwq, waiting
        self.worklist.clear()
        self.worklist.extend(listed)
        pwq.inactive.clear()
        pwq.inactive.extend(waiting)
        self.relisting = None

    def mend(self) -> None:
        """Something was raised in the middle of a critical section.  Context: lock held."""
        mend(self)

    def check_invariants(self) -> None:
        """Raise InvariantError if a rule is broken. For tests: costs O(workers).  Context: lock held."""
        from cmwq._errors import InvariantError

        running = sum(w.counted and not w.sleeping for w in self.workers) + self.nr_waking
        facts = {
            "A2: nr_running is the recount": self.nr_running == running,
            "A5: nr_blocked is the recount": self.nr_blocked == sum(w.sleeping and not w.on_lock for w in self.workers),
            "idle workers are not counted": not any(w.counted for w in self.idle_list),
            "idle flags agree with the idle list": {w for w in self.workers if w.idle} == set(self.idle_list),
            "B1, B2: while anything executes there is an idle worker, a manager, or a retry due": bool(
                self.idle_list or self.managing or self.refused or self.closing or self.nr_waking
            )
            or not any(w.item for w in self.workers),
            # Who is on the way wakes the next (A6).
            "A4: nobody rests while needed": not (need_more_worker(self) and self.idle_list and not self.nr_waking),
            "E1: whoever waits inactive is attended to": all(p.attends or not p.inactive for p in self.pwqs),
            "C2: whoever can be had for the works is called": not (self.rescued and need_rescuer(self))
            or self.mayday_timer is not None,
            "A9: nr_hogs is the recount": self.nr_hogs == sum(w.hog for w in self.workers),
            "E1: nothing waits inactive while there is room": all(
                not p.inactive or p.frozen or p.nr_active >= p.max_active for p in self.pwqs
            ),
        }
        for rule, holds in facts.items():
            if not holds:
                raise InvariantError(f"{rule}: {self!r}")


def _note_thread(worker: Worker, thread: Thread) -> None:
    worker.thread = thread
