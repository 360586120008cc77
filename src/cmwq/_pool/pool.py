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
#   S    one thread's own: the worker's, or that of whoever waits
#   T    the timer thread alone
#   W    the work's lock
#   V    the lock of `Serving`
#   Q    the queue's lock
#   R    the runtime's lock, which is that of `Pools`
#   E    the runtime's lock that freezing and thawing take
#   H    the lock of `Hotplug`
#   D    the lock of `Watchdog`
#   M    the lock of `Room`
#   A    none: each change is one step, which other threads see as a whole
#   F    written only in the child of a fork, while it has one thread
#   ~    read without a guard: the value may be stale, and whoever decides by it is right all the same
#
# What a function needs held is said by its decorator (`held`). The order of locks is in `ranks`, and the locks keep it.
# No user's code runs under any. No system call that may sleep is made under L, which is the hot one. Threads are
# started, the GIL is learnt, and the system's files are read under R, Q and H, and under the sensors' and the timers'
# own locks. No letter stands for the GIL.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from cmwq._core.config import HIGHPRI_NICE
from cmwq._core.held import holding, outside
from cmwq._core.weakly import Weakly
from cmwq._pool import blocking, events, hogs, rescuer
from cmwq._pool.alarm import Alarms
from cmwq._pool.lending import Lending
from cmwq._pool.manager import Office
from cmwq._pool.mend import mend, mending
from cmwq._pool.policy import need_more_worker, need_rescuer

if TYPE_CHECKING:
    from cmwq._core.ports import Parker, Sensor
    from cmwq._pool.item import Item
    from cmwq._pool.worker import Worker
    from cmwq._workqueue.pwq import PoolWorkQueue
    from cmwq._workqueue.queued import Queued
    from cmwq._workqueue.runtime import Runtime

NAP = 1e-3
"""Seconds that a thread waits for a result that is being computed before it asks to be woken, while works wait."""


class Statistics:
    """What became of a pool's workers. It never decides anything."""

    __slots__ = ("created", "culled", "deaths", "lacks", "niced", "peak_workers")

    def __init__(self) -> None:
        self.created = self.culled = self.deaths = self.peak_workers = 0  # ~
        self.niced = False  # ~: they got the nice value that they asked for
        self.lacks: set[str] = set()  # A: what workers go on without, and was said


class WorkerPool:
    """The workers of one scope (A1): one CPU or several."""

    def __init__(
        self,
        name: str,
        cpus: tuple[int, ...],
        target: int,
        *,
        highpri: bool,
        sensor: Sensor,
        runtime: Runtime,
    ) -> None:
        self.name = name  # I
        self.cpus = cpus  # L to change, read freely: what its workers are bound to
        self.disassociated = False  # L to change, read freely: its CPU left (D2)
        self.nice = HIGHPRI_NICE if highpri else 0  # I: the nice value its workers ask for (E7)
        self.host = host = runtime.host  # I
        self.runtime = runtime  # I
        self.config = runtime.config  # I
        self.watchdog = runtime.watchdog  # I
        self.target = target  # L: how many may run
        self.gil = host.gil_enabled()  # L: looked at again with each new worker
        self.worklist: deque[Item] = deque()  # L: active items in order of activation (E10)
        self.idle_list: list[Worker] = []  # L: last in, first woken (A7); the coldest at the front
        self.workers: set[Worker] = set()  # L
        self.office = Office(self, runtime.max_workers)  # I: who creates them
        self.nr_running = 0  # L: counted and not asleep; whoever wakes a worker counts it
        self.nr_blocked = 0  # L: counted, and asleep, but not for a lock
        self.nr_hogs = 0  # L: counted, and let go of (A9)
        self.nr_waking = 0  # L: counted, woken by us, and not yet arrived
        self.armed_with: Worker | None = None  # L: the reserve the sensor was given
        self.alarms = Alarms()  # I
        self.pwqs: Weakly[PoolWorkQueue] = Weakly()  # L: to be seen; kept alive by its queue, or by its works
        self.rescued = False  # L: a queue with a rescuer has a place here
        self.lending = Lending()  # I: works that wait inactive, maybe for themselves (E1)
        self.detained: set[Queued] = set()  # L: works that are active and in no list: they run elsewhere first (E3)
        self.relisting: tuple[list[Item], PoolWorkQueue, list[Item]] | None = None  # L: see `relist`
        self.drainers: list[Parker] = []  # L: who waits for quiet
        self.taps: tuple[events.Tap, ...] = ()  # L: who hears of what happens here
        self.nappers: set[Parker] = set()  # L: who looks again in a moment, or when no work waits any more
        self.closing = False  # L: the runtime ends: no worker is created any more
        self.lost = False  # F: it was the parent's
        self.nr_wakeups = self.nr_completed = 0  # ~
        self.stats = Statistics()  # I
        self.lookout = sensor.lookout(self)  # I
        self.lock = self.lookout.lock()  # I
        self.lock.mend = mending(self)

    def __repr__(self) -> str:
        flags = " managing" * self.office.taken + " refused" * self.office.refused
        return (
            f"<WorkerPool {self.name} workers={len(self.workers)} idle={len(self.idle_list)} "
            f"running={self.nr_running} pending={len(self.worklist)}{flags}>"
        )

    @holding("self.lock")
    def nr_started(self) -> int:
        """Works that have begun so far."""
        return self.nr_completed + sum(worker.item is not None and not worker.announcing for worker in self.workers)

    def count_started(self) -> int:
        with self.lock:
            return self.nr_started()

    # ------------------------------------------------------------------------------------- waking

    @holding("self.lock")
    def kick(self) -> bool:
        """Take the warmest idle worker if one is needed, count it, and wake it as soon as the lock is free.

        That it is `kicked` is what decides; the rest follows from it (`mend`).
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
        self.settle()
        return True

    @holding("self.lock")
    def kick_or_settle(self) -> None:
        """The worklist grew: take whom that needs, or leave it to the sensor to see when that changes.

        At the target (A3) this costs two comparisons: the sensor is armed already.
        """
        if self.nr_running < self.target:
            if not self.kick():
                self.settle()
        elif self.armed_with is None:
            self.settle()

    @holding("self.lock")
    def settle(self) -> None:
        """Have all that looks after waiting work agree with what waits and who is idle.

        The sensor is armed with whom it is to wake when it sees that fewer run than may: the warmest idle worker, while
        work waits that nobody is on the way to. Where nobody is to be had, an alarm sees to it that the rescuers are
        called (C2). When nothing waits any more, those who nap are woken.

        It belongs to the end of every section that changes whether the worklist is empty, the top of the idle list,
        `nr_waking`, or what `need_rescuer` asks for; `kick`, `kick_or_settle`, `enter_idle` and `note_refusal` do it.
        `invariants` names who forgets.
        """
        reserve = self.idle_list[-1] if self.worklist and self.idle_list and not self.nr_waking else None
        if reserve is not self.armed_with:
            self.armed_with = reserve
            self.lookout.arm(reserve)
            if reserve is not None and self.alarms.hogs.timer is None:
                hogs.begin(self)
        if self.rescued and self.alarms.mayday.timer is None and need_rescuer(self):
            rescuer.set_alarm(self, self.config.mayday_initial_timeout)
        if self.nappers and not self.worklist:
            for napper in self.nappers:
                napper.unpark()
            self.nappers.clear()

    @holding("self.lock")
    def disarm(self) -> None:
        """The sensor wakes nobody until `settle`."""
        self.armed_with = None
        self.lookout.arm(None)

    @outside
    def nap(self, parker: Parker) -> None:
        """Wait a moment, if works wait; less if the last of them begins. Context: no worker.

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

    @holding("self.lock")
    def count(self, worker: Worker) -> None:
        """It runs, from now on (A2)."""
        worker.counted = True
        self.nr_running += 1
        if self.taps:
            events.counted(self, worker, True)

    @holding("self.lock")
    def uncount(self, worker: Worker) -> None:
        """It is none of those that run, from now on (A8)."""
        blocking.over(worker)
        worker.counted = False
        self.nr_running -= 1
        if self.taps:
            events.counted(self, worker, False)

    @holding("self.lock")
    def worker_sleeping(self, worker: Worker, *, on_lock: bool = False) -> None:
        """A sensor reports: see `blocking`."""
        blocking.worker_sleeping(worker, on_lock=on_lock)

    @holding("self.lock")
    def worker_running(self, worker: Worker) -> None:
        """A sensor reports: see `blocking`."""
        blocking.worker_running(worker)

    def serve(self, cpus: tuple[int, ...], target: int) -> None:
        """D6: from now on these CPUs. Its workers are bound to them, wherever they are; so many may run."""
        with self.lock:
            changed = cpus != self.cpus
            if changed:
                self.cpus = cpus
                self.lookout.set_cpus(cpus)
            self.target = target
            self.lookout.set_target(target)
            self.kick_or_settle()
            threads = [worker.tid for worker in self.workers if worker.tid] if changed else []
        for tid in threads:
            self.host.bind(cpus, tid)

    # ------------------------------------------------------------------------------------- idle list

    @holding("self.lock")
    def enter_idle(self, worker: Worker) -> None:
        worker.last_active = self.host.monotonic()
        worker.idle = True
        self.idle_list.append(worker)
        if self.taps:
            events.idle(self, worker)
        self.tell_drainers()
        if self.alarms.cull.timer is None:
            self.office.cull_later()
        self.settle()

    @holding("self.lock")
    def leave_idle(self, worker: Worker) -> None:
        """The worker is not the one kick() took: the sensor woke it, or nobody did."""
        if self.armed_with is worker:
            self.disarm()
        worker.idle = False
        if self.idle_list[-1] is worker:  # nearly always: the sensor wakes the warmest
            self.idle_list.pop()
        else:
            self.idle_list.remove(worker)

    @holding("self.lock")
    def dismiss(self, worker: Worker) -> None:
        """An idle worker dies as soon as the lock is free."""
        worker.dying = True
        self.lock.wake(worker.parker)
        if worker in self.idle_list:
            self.idle_list.remove(worker)
        worker.idle = False
        self.workers.discard(worker)

    # ------------------------------------------------------------------------------------- end

    @holding("self.lock")
    def is_quiet(self) -> bool:
        """No work waits or runs, nor a callback of one. (What waits inactive has an active one before it.)

        Asked whenever a worker goes idle while somebody drains: so the workers are looked at only if the numbers don't
        tell.
        """
        if self.detained or self.nr_blocked or self.nr_running > self.nr_waking or self.has_work():
            return False
        if len(self.idle_list) + self.nr_waking == len(self.workers):
            return True
        return not any(worker.item or worker.counted for worker in self.workers)

    @holding("self.lock")
    def has_work(self) -> bool:
        """Work waits that wasn't taken back. (What was is passed over by who comes, but maybe nobody can.) It may wait
        inactive, behind what was taken back.
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

    @holding("self.lock")
    def tell_drainers(self) -> None:
        """A worker or a rescuer has nothing more to do, or a work was taken back."""
        if self.drainers and self.is_quiet():
            for drainer in self.drainers:
                drainer.unpark()

    def tell_no_more(self, parker: Parker) -> None:
        with self.lock:
            if parker in self.drainers:
                self.drainers.remove(parker)

    @holding("self.lock")
    def relist(self, listed: list[Item], pwq: PoolWorkQueue, waiting: list[Item]) -> None:
        """From now on these are on the worklist, in this order, and those wait inactive.

        Noted first: should it be interrupted between emptying a list and filling it, `mend` does it again.
        """
        self.relisting = listed, pwq, waiting
        self.worklist.clear()
        self.worklist.extend(listed)
        pwq.inactive.clear()
        pwq.inactive.extend(waiting)
        self.relisting = None

    @holding("self.lock")
    def mend(self) -> None:
        """Something was raised in the middle of a critical section."""
        mend(self)
