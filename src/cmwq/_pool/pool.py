"""WorkerPool: one worklist, the workers that serve it, and the count of those that run.

Guarantees: `nr_running` is the number of workers that are counted and not asleep (A2). There is at most one manager
(B2). No idle worker stays parked while `need_more_worker` is true, unless another worker is already on its way (A4). A
decision to wake a worker is made under the lock; the lock itself wakes the thread as it is released (`Lock.wake`), so
nothing can come between the two.

If an exception is raised in the middle of a critical section, no work is lost and no count is wrong (F10). Each section
makes few changes to what *is* (lists, and the flags of workers and items), in an order in which each step leaves a
legal state. All numbers follow from that state, and `mend` counts them anew before any other thread gets the lock.

# Locking legend. Each shared field names its guard:
#
#   I    set while the object is built, never rebound; read freely
#   L    pool.lock
#   S    used by one thread alone: the worker's, or the thread that waits
#   T    the timer thread alone
#   W    the work's lock
#   V    the lock of `Serving`
#   Q    the queue's lock
#   R    the runtime's lock, which is that of `Pools`
#   E    the runtime's lock that freezing and thawing take
#   H    the lock of `Hotplug`
#   D    the lock of `Watchdog`
#   M    the lock of `Room`
#   A    none: each change is one atomic step, which other threads see as a whole
#   F    written only in the child of a fork, while it has one thread
#   ~    read without a guard: the value may be stale, and a decision made by it is right all the same
#
# The decorators of `held` say which locks a function needs held. The order of locks is in `ranks`, and the locks
# enforce it. No user code runs under any lock. No system call that may sleep is made under L, which is the hot one.
# Threads are started, the GIL is queried, and system files are read under R, Q and H, and under the sensors' and the
# timers' own locks. No letter stands for the GIL.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING

from cmwq._core.config import HIGHPRI_NICE
from cmwq._core.held import holding, outside
from cmwq._core.records import PoolRecord
from cmwq._core.weakly import Weakly
from cmwq._pool import blocking, children, events, figures, hogs, rescuer
from cmwq._pool.alarm import Alarms
from cmwq._pool.children import Children
from cmwq._pool.lane import Lane
from cmwq._pool.lending import Lending
from cmwq._pool.manager import Office
from cmwq._pool.memory import Gate
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
"""Seconds for which a thread that waits for a result naps before it asks to be woken. It naps only while works wait."""


class Statistics:
    """Figures about a pool's workers. No decision depends on them."""

    __slots__ = ("cpu_seconds", "created", "culled", "deaths", "lacks", "niced", "peak_workers")

    def __init__(self) -> None:
        self.created = self.culled = self.deaths = self.peak_workers = 0  # ~
        self.cpu_seconds = 0.0  # L: CPU time of all its workers, up to their last readings
        self.niced = False  # ~: its workers got the nice value that they asked for
        self.lacks: set[str] = set()  # A: what workers go on without; each was logged once


class WorkerPool(PoolRecord):
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
        self.cpus = cpus  # L to change, read freely: its workers are bound to these
        self.disassociated = False  # L to change, read freely: its last CPU left (D2)
        self.nice = HIGHPRI_NICE if highpri else 0  # I: the nice value its workers ask for (E7)
        self.host = host = runtime.host  # I
        self.runtime = runtime  # I
        self.config = runtime.config  # I
        self.watchdog = runtime.watchdog  # I
        self.target = self.full_target = target  # L: how many may run; and how many if memory is not short (A11)
        self.gil = host.gil_enabled()  # L: queried again with each new worker
        self.worklist: deque[Item] = deque()  # L: active items in order of activation (E10)
        self.idle_list: list[Worker] = []  # L: last in, first woken (A7); the coldest at the front
        self.workers: set[Worker] = set()  # L
        self.office = Office(self, runtime.max_workers)  # I: the role of the manager, which creates workers
        self.nr_running = 0  # L: workers counted and not asleep; the thread that wakes a worker counts it
        self.nr_blocked = 0  # L: workers counted and asleep, but not waiting for a lock
        self.nr_hogs = 0  # L: workers counted, but let go of as hogs (A9)
        self.nr_waking = 0  # L: workers counted and woken by `kick`, but not yet arrived
        self.armed_with: Worker | None = None  # L: the idle worker that the sensor is to wake
        self.alarms = Alarms()  # I
        self.memory = Gate()  # I: what is known of memory (A11)
        self.lane = Lane()  # I: where works wait that will probably compute for long (A9)
        self.children = Children()  # I: what is known of workers' child processes (A10)
        self.pwqs: Weakly[PoolWorkQueue] = Weakly()  # L: each is kept alive by its queue, or by its works
        self.rescued = False  # L: a queue with a rescuer has a place here
        self.lending = Lending()  # I: looks after inactive works that may be waiting for one another (E1)
        self.detained: set[Queued] = set()  # L: active works that are in no list, for they still run elsewhere (E3)
        self.relisting: tuple[list[Item], PoolWorkQueue, list[Item]] | None = None  # L: see `relist`
        self.drainers: list[Parker] = []  # L: threads that wait until the pool is quiet
        self.taps: tuple[events.Tap, ...] = ()  # L: the subscriptions that observe this pool
        self.nappers: set[Parker] = set()  # L: threads in `nap`
        self.closing = False  # L: the runtime ends: no worker is created any more
        self.lost = False  # F: it belonged to the parent of a fork
        self.nr_wakeups = self.nr_completed = 0  # ~
        self.choose_at = 0.0  # L: when a place may choose a work to be measured, on the host's clock (`figures`)
        self.stats = Statistics()  # I
        self.lookout = sensor.lookout(self)  # I
        self.lock = self.lookout.lock()  # I
        self.lock.mend = mending(self)

    def __repr__(self) -> str:
        flags = " managing" * (self.office.holder is not None) + " refused" * self.office.refused
        return (
            f"<WorkerPool {self.name} workers={len(self.workers)} idle={len(self.idle_list)} "
            f"running={self.nr_running} pending={len(self.worklist)}{flags}>"
        )

    @holding("self.lock")
    def nr_started(self) -> int:
        """Return how many works have begun so far."""
        return self.nr_completed + sum(worker.item is not None and not worker.announcing for worker in self.workers)

    def count_started(self) -> int:
        """Return how many works have begun so far. Takes the lock."""
        with self.lock:
            return self.nr_started()

    # ------------------------------------------------------------------------------------- waking

    @holding("self.lock")
    def kick(self) -> bool:
        """Take the warmest idle worker if one is needed, count it, and have it woken when the lock is released.

        Returns whether a worker was taken. Setting its flag `kicked` is the step that decides; the rest follows from
        the flag (`mend`).
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
        """To be called when the worklist has grown: wake a worker if one is needed, else arm the sensor.

        At the target (A3) this costs two comparisons, because the sensor is armed already.
        """
        if self.nr_running < self.target:
            if not self.kick():
                self.settle()
        elif self.armed_with is None and not (self.memory.held and self.kick()):
            self.settle()

    @holding("self.lock")
    def settle(self) -> None:
        """Make everything that looks after waiting work agree with what waits and which workers are idle.

        The sensor is armed with the worker it is to wake when it sees that fewer run than may: the warmest idle worker,
        while work waits and no worker is on its way. If no worker can be had, an alarm is set that calls the rescuers
        (C2). When no work waits any more, napping threads are woken.

        It belongs at the end of every section that changes whether the worklist is empty, the top of the idle list,
        `nr_waking`, or anything that `need_rescuer` reads. `kick`, `kick_or_settle`, `enter_idle` and `note_refusal`
        call it. `invariants` detects a section that forgot.
        """
        reserve = self.worker_to_arm()
        if reserve is not self.armed_with:
            self.armed_with = reserve
            self.lookout.arm(reserve)
            if reserve is not None and self.alarms.hogs.timer is None:
                hogs.begin(self)
        if self.children.timer is None and self.children.must_look(self):
            children.begin(self)
        if self.rescued and self.alarms.mayday.timer is None and need_rescuer(self):
            rescuer.set_alarm(self, self.config.mayday_initial_timeout)
        if self.nappers and not self.worklist:
            for napper in self.nappers:
                napper.unpark()
            self.nappers.clear()

    @holding("self.lock")
    def worker_to_arm(self) -> Worker | None:
        """Return the idle worker that the sensor is to wake; None: no work waits for one."""
        waits = self.worklist and self.idle_list and not self.nr_waking and not self.memory.held
        return self.idle_list[-1] if waits else None

    @holding("self.lock")
    def set_target(self, target: int) -> None:
        """Let so many run. While memory is short the target is 0: nobody new is woken unless nobody runs, and whoever
        ends an item rests unless it is the last. The caller wakes the workers that this needs.
        """
        self.full_target = target
        self.target = 0 if self.memory.held else target
        self.lookout.set_target(self.target)

    @holding("self.lock")
    def disarm(self) -> None:
        """Keep the sensor from waking any worker until the next `settle`."""
        self.armed_with = None
        self.lookout.arm(None)

    @outside
    def nap(self, parker: Parker) -> None:
        """Park the calling thread for at most `NAP` seconds while works wait. Context: a thread that is no worker.

        It returns at once if no work waits, and early if the last waiting work is taken. A thread that takes results
        one after the other, as fast as they come, would otherwise be woken for each, and would take a CPU from a worker
        each time: two or more switches per work. While works wait the workers have enough to do, so such a thread can
        look again by itself, and then finds many results at once.
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
    def listed(self) -> Iterator[Item]:
        """Return the active works that have not begun, those in the lane first."""
        return chain(self.lane.items, self.worklist)

    @holding("self.lock")
    def nr_listed(self) -> int:
        """Return how many active works have not begun."""
        return len(self.lane.items) + len(self.worklist)

    @holding("self.lock")
    def count(self, worker: Worker) -> None:
        """Count the worker as running from now on (A2)."""
        worker.counted = True
        self.nr_running += 1
        if self.taps:
            events.counted(self, worker, True)

    @holding("self.lock")
    def uncount(self, worker: Worker) -> None:
        """Do not count the worker as running any more (A8)."""
        blocking.over(worker)
        worker.counted = False
        self.nr_running -= 1
        if self.taps:
            events.counted(self, worker, False)

    @holding("self.lock")
    def worker_sleeping(self, worker: Worker, *, on_lock: bool = False) -> None:
        """A sensor reports that the worker sleeps: see `blocking`."""
        blocking.worker_sleeping(worker, on_lock=on_lock)

    @holding("self.lock")
    def worker_running(self, worker: Worker) -> None:
        """A sensor reports that the worker runs again: see `blocking`."""
        blocking.worker_running(worker)

    @holding("self.lock")
    def woken_for_a_blocked_one(self) -> None:
        """A sensor that wakes workers by `kick` says that it did: see `figures`."""
        figures.woken_for_a_blocked_one(self)

    def serve(self, cpus: tuple[int, ...], target: int) -> None:
        """Serve these CPUs from now on, with `target` workers running at most (D6).

        If the CPUs changed, the threads of all workers are bound to them, whatever they execute.
        """
        with self.lock:
            changed = cpus != self.cpus
            if changed:
                self.cpus = cpus
                self.lookout.set_cpus(cpus)
            self.set_target(target)
            self.kick_or_settle()
            threads = [worker.tid for worker in self.workers if worker.tid] if changed else []
        for tid in threads:
            self.host.bind(cpus, tid)

    # ------------------------------------------------------------------------------------- idle list

    @holding("self.lock")
    def enter_idle(self, worker: Worker) -> None:
        """Put the worker on the idle list, as the warmest. The caller has taken it off the count."""
        worker.last_active = now = self.host.monotonic()
        if now >= self.choose_at:
            figures.choose_more(self, now)
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
        """Take a worker off the idle list that a sensor woke, or whose `park` returned for nothing."""
        if self.armed_with is worker:
            self.disarm()
        worker.idle = False
        if self.idle_list[-1] is worker:  # nearly always: the sensor wakes the warmest
            self.idle_list.pop()
        else:
            self.idle_list.remove(worker)

    @holding("self.lock")
    def dismiss(self, worker: Worker) -> None:
        """Let an idle worker die; it is woken for that when the lock is released."""
        worker.dying = True
        self.lock.wake(worker.parker)
        figures.bill_last(worker)
        if worker in self.idle_list:
            self.idle_list.remove(worker)
        worker.idle = False
        self.workers.discard(worker)
        self.children.forget_worker(worker)

    # ------------------------------------------------------------------------------------- end

    @holding("self.lock")
    def is_quiet(self) -> bool:
        """Return whether no work waits or runs, and no callback of one runs. Inactive works need no look: an active one
        is always before them, but in a frozen queue, and none is frozen while a runtime ends (`freezer`).

        It is asked whenever a worker goes idle during a drain, so the workers are looked at one by one only if the
        numbers do not settle the question.
        """
        if self.detained or self.nr_blocked or self.nr_running > self.nr_waking or self.has_work():
            return False
        if len(self.idle_list) + self.nr_waking == len(self.workers):
            return True
        return not any(worker.item or worker.counted for worker in self.workers)

    @holding("self.lock")
    def has_work(self) -> bool:
        """Return whether a work waits that was not withdrawn. A worker passes over the withdrawn ones, but perhaps no
        worker can come. Works may also wait inactive behind a withdrawn one.
        """
        return any(
            not item.withdrawn or any(not behind.withdrawn for behind in item.pwq.inactive) for item in self.listed()
        )

    def quiet_or_tell(self, parker: Parker | None) -> bool:
        """Return whether the pool is quiet. If not, `parker`, if given, is unparked when the pool becomes quiet."""
        with self.lock:
            if self.is_quiet():
                return True
            if parker is not None and parker not in self.drainers:
                self.drainers.append(parker)
            return False

    @holding("self.lock")
    def tell_drainers(self) -> None:
        """To be called when a worker or a rescuer has nothing more to do, or a work was cancelled: wake the threads
        that drain if the pool is quiet now.
        """
        if self.drainers and self.is_quiet():
            for drainer in self.drainers:
                drainer.unpark()

    def tell_no_more(self, parker: Parker) -> None:
        """Undo `quiet_or_tell`. Harmless if there is nothing to undo."""
        with self.lock:
            if parker in self.drainers:
                self.drainers.remove(parker)

    @holding("self.lock")
    def relist(self, listed: list[Item], pwq: PoolWorkQueue, waiting: list[Item]) -> None:
        """Replace the contents of both lists: `listed` is on the worklist in this order, and `waiting` is inactive.

        The new contents are noted first: if an exception comes between emptying a list and filling it, `mend` repeats
        the call.
        """
        self.relisting = listed, pwq, waiting
        self.worklist.clear()
        self.worklist.extend(listed)
        pwq.inactive.clear()
        pwq.inactive.extend(waiting)
        self.relisting = None

    @holding("self.lock")
    def mend(self) -> None:
        """Restore the pool's state after an exception in the middle of a critical section. The lock calls it."""
        mend(self)
