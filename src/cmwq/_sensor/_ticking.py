"""The frame of the pure-Python sensors: one thread, the tick, looks at the workers while work waits.

Guarantees
- The thread is not woken while no lookout is armed (G4): it is then parked without a timeout.
- Arming takes no lock: it sets a flag and unparks. So it may be done anywhere, even in a signal handler or a finaliser
  in the middle of another arming.
- The thread survives whatever is raised in it. If it ends all the same, it starts a successor.
- A verdict counts only if, under pool.lock, the worker still executes the item it was seen with.
- It starts workers by `pool.kick()` alone, so no more run than the target (A3).
- It is level-triggered: while armed it looks again and again. So blocking may be noticed late, but is never missed.

Assumes that `stop` is not called with a pool.lock held.

Why no arming is lost. `armed` is set before the unpark, and read after the thread has used up an unpark. If the thread
reads too early, that unpark is still to come, and ends the next `park` at once.

Why there is one thread. It is started with the first worker, and with later ones if it was refused. Two may be started
at once. Each tries to take `_post`, which it holds while it lives, and ends if it doesn't get it. So a thread that
starts one holds no lock, and an interruption leaves none taken.

What the tick sees is reported to the pool only if a worker may be woken for it. While a thread waits for the GIL (the
GIL rule) none may: if a sleeper were counted as such, the next thread that queues would wake another worker.

The ramp. The pause between looks bounds how fast waiting work is started: up to the target per look, with the wake
chain (A6), as more would break A3. So the pause is halved with every look that woke a worker (all that were started
before have blocked), and doubled, up to the period, with every look that didn't.

Compared with the sentinel, the tick needs the GIL, so it is as late as the GIL is contended (the switch interval for
every system call it makes), and its looks cost CPU time that the workers could have used.

Letters as in `_pool.pool`; T: the tick thread alone; A: each change is one atomic step.
"""

from __future__ import annotations

import enum
import os
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from cmwq._core import log
from cmwq._core.held import outside
from cmwq._core.ranks import Rank
from cmwq._errors import ThreadLimit

if TYPE_CHECKING:
    from cmwq._core.ports import Host, Lock, Parker, Thread
    from cmwq._pool.item import Item
    from cmwq._pool.pool import WorkerPool
    from cmwq._pool.worker import Worker


RELOOK = 4
"""How many workers believed asleep one look visits."""
RAMP = 16
"""The shortest pause is the period divided by this."""
SHORT_WAIT = 50e-6
"""Seconds that a lock wait must last, times (1 if any worker runs + young waits), to count as blocked."""
YOUNG = 10e-3
"""Seconds after which a lock wait no longer damps the next."""
STILL = 10e-3
"""Seconds for which the CPU clock of a thread must stand until it is taken to sleep, if nothing else is known of it. It
is longer than the switch interval, at which a waiter for the GIL stirs."""


class Doing(enum.Enum):
    """What a worker's thread does right now."""

    RUNS = enum.auto()
    WAITS_FOR_GIL = enum.auto()
    WAITS_FOR_LOCK = enum.auto()
    SLEEPS = enum.auto()
    GONE = enum.auto()


class Watched:
    """What a sensor remembers of a worker's thread. It must be made on that thread."""

    __slots__ = ("clock", "cpu", "exempt", "item", "key", "on_lock", "since", "tid", "window")

    def __init__(self) -> None:
        self.tid = threading.get_native_id()  # I
        # Got here because the thread must be alive for it; the clock itself may be read at any time.
        clock_of = getattr(time, "pthread_getcpuclockid", None)
        self.clock: int | None = clock_of(threading.get_ident()) if clock_of else None  # I
        self.exempt = False  # L
        self.item: Item | None = None  # T: what it executed when last looked at
        self.key = 0  # T: the futex it waits on
        self.cpu = 0.0  # T: its CPU time at `since`; if it is unchanged, the thread did not run in between
        self.since: float | None = None  # T: when that CPU time was first seen, in the wait for `key`
        self.window = (0.0, 0.0)  # T: a moment, and its CPU time then
        self.on_lock = False  # T: has_lasted() said that it is blocked

    def cpu_time(self) -> float:
        """The thread's CPU time in seconds. Raises OSError once the thread has ended. It needs a `clock`."""
        assert self.clock is not None
        return time.clock_gettime(self.clock)

    def still_for(self, now: float) -> float:
        """For how many seconds the thread has been seen not to run. Raises as `cpu_time` does."""
        cpu = self.cpu_time()
        if self.since is None or self.cpu != cpu:
            self.cpu, self.since = cpu, now
        return now - self.since

    def has_lasted(self, now: float, damping: int) -> bool:
        """The lasting-lock rule, for a thread that waits on `key`: whether it counts as blocked. See `_native/look.h`.

        A contended lock looks like a blocked worker, and starting another for it makes more contention. With no worker
        running and no young waits (damping 0) it counts at once. Raises as `cpu_time` does.
        """
        return self.still_for(now) >= SHORT_WAIT * damping


class TickingSensor:
    """A Sensor, whose subclasses say what a worker is doing. `period` is in seconds. Thread-safe."""

    name = "ticking"
    period = 1e-3

    def __init__(self, host: Host, reason: str = "") -> None:
        self.host = host  # I
        self.reason = reason  # I: why this sensor and not another
        self._pid = os.getpid()  # I
        self._bell = host.parker()  # I: where the thread rests
        self._lookouts: list[TickingLookout] = []  # A: appended to only
        self._post = threading.Lock()  # taken by the thread while it lives, without waiting
        self._thread: Thread | None = None  # T to change; read freely
        self._stopped = False  # A

    @outside
    def doing(self, worker: Worker, watched: Watched) -> Doing:
        """What the worker's thread does. On WAITS_FOR_LOCK, reset `watched.since` if the lock is not that of before.

        Context: the tick thread; or, if the worker is exempt, the timers' thread.
        """
        raise NotImplementedError

    @outside
    def learn(self) -> None:
        """Called before each tick, because the GIL may be enabled later.  Context: the tick thread."""

    def lookout(self, pool: WorkerPool) -> TickingLookout:
        lookout = TickingLookout(self, pool)
        self._lookouts.append(lookout)
        return lookout

    def cpus_changed(self) -> None:
        pass

    def stop(self) -> None:
        if os.getpid() != self._pid:
            return  # in the child of a fork there is no thread
        self._stopped = True
        self._bell.unpark()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def ring(self) -> None:
        """Wake the tick, because a lookout was armed; its flag is set already.  Context: its pool.lock held."""
        self._bell.unpark()

    @outside
    def post(self) -> None:
        """Start the thread if there is none, unless the caps leave too few for the pool's first worker and its
        reserve."""
        if self._post.locked() or self._stopped or self.host.thread_headroom(needed=True) <= 2:
            return
        with suppress(ThreadLimit):
            self.host.spawn("cmwq/tick", self._run)

    def _run(self) -> None:
        if not self._post.acquire(blocking=False):
            return
        try:
            self._thread = threading.current_thread()
            self.host.set_thread_name("cmwq/tick")
            while not self._stopped:
                try:
                    self._tick_until_stopped()
                except BaseException:  # SystemExit too: what others raise in it must not end a sensor
                    with suppress(BaseException):
                        log.exception("the tick of sensor %s raised", self.name)
        except BaseException:
            with suppress(BaseException):
                log.exception("the tick of sensor %s ended, and has a successor", self.name)
        finally:
            self._post.release()
            if not self._stopped:
                self.post()

    def _tick_until_stopped(self) -> None:
        pause = self.period
        while not self._stopped:
            if not self._armed():
                self._bell.park()
                continue
            # Pause first: arming says that work waits, not that a worker blocked; often it is disarmed again at once.
            time.sleep(pause)
            self.learn()
            started = [lookout.look() for lookout in tuple(self._lookouts) if lookout.armed]
            if started:  # else disarmed meanwhile: a woken worker is on its way, and the ramp goes on when it is there
                pause = max(pause / 2, self.period / RAMP) if any(started) else min(pause * 2, self.period)

    def _armed(self) -> bool:
        return any(lookout.armed for lookout in tuple(self._lookouts))


class TickingLookout:
    """A Lookout. It reports what it sees itself and calls `pool.kick()`; there are no marks to deliver."""

    def __init__(self, sensor: TickingSensor, pool: WorkerPool) -> None:
        self.sensor = sensor  # I
        self.pool = pool  # I
        self.armed = False  # L to change; the tick thread reads it freely, and kick() may find nothing to do
        self.cursor = 0  # T: where the next re-look starts

    def lock(self) -> Lock:
        return self.sensor.host.lock(Rank.POOL)

    def parker(self) -> Parker:
        self.sensor.post()
        return self.sensor.host.parker()

    def take_back(self, parker: Parker) -> None:
        pass

    def attach(self, worker: Worker) -> None:
        worker.watched = Watched()  # needs no word of an item's end, because the verdict's item is compared

    def detach(self, worker: Worker) -> None:
        worker.watched = None

    def arm(self, reserve: Worker | None) -> None:
        before, self.armed = self.armed, reserve is not None
        if self.armed and not before:
            self.sensor.ring()

    def deliver(self) -> None:
        pass

    def remind(self) -> None:
        pass  # it looks again anyway

    def review(self, worker: Worker, enough: int) -> None:
        pass

    def sleeps(self, worker: Worker) -> bool:
        watched: Watched | None = worker.watched
        return watched is None or self.sensor.doing(worker, watched) not in (Doing.RUNS, Doing.WAITS_FOR_GIL)

    def exempt(self, worker: Worker, flag: bool) -> None:
        watched: Watched | None = worker.watched
        if watched is not None:
            watched.exempt = flag
            watched.since = None

    def set_target(self, target: int) -> None:
        pass  # kick() knows

    def set_cpus(self, cpus: tuple[int, ...]) -> None:
        pass

    @outside
    def look(self) -> bool:
        """Take one look at the pool's workers. Returns whether one was woken.  Context: the tick thread."""
        pool = self.pool
        with pool.lock:
            workers = [w for w in pool.workers if w.item is not None and w.counted]
        verdicts, gil = self._judge(workers)
        with pool.lock:
            for worker, item, sleeps in verdicts:
                watched: Watched | None = worker.watched
                if worker.item is not item or watched is None or watched.exempt:
                    continue
                if not sleeps:
                    pool.worker_running(worker)
                elif not gil:
                    pool.worker_sleeping(worker, on_lock=watched.on_lock)
            # The GIL rule: while a thread waits for the GIL, another could only queue behind it. One worker is enough:
            # while it is on its way the pool disarms, and when it is there the wake chain (A6) goes on.
            woke = bool(self.armed and not gil and pool.kick())
            if woke:
                pool.woken_for_a_blocked_one()
            return woke

    def _judge(self, workers: list[Worker]) -> tuple[list[tuple[Worker, Item, bool]], bool]:
        """The verdicts (worker, the item it was seen with, whether it sleeps), and whether one waits for the GIL."""
        now = self.sensor.host.monotonic()
        verdicts: list[tuple[Worker, Item, bool]] = []
        waiting: list[tuple[Worker, Item, Watched]] = []
        gil, running, young = False, 0, 0
        asleep = [w for w in workers if w.sleeping]
        first = self.cursor % len(asleep) if asleep else 0
        self.cursor = first + RELOOK
        visited = {*asleep[first : first + RELOOK], *asleep[: max(0, first + RELOOK - len(asleep))]}
        for worker in workers:
            item, watched, slept = worker.item, worker.watched, worker.sleeping
            if item is None or watched is None or watched.exempt:
                continue
            doing = None if slept and worker not in visited else self.sensor.doing(worker, watched)
            if doing is Doing.RUNS or doing is Doing.WAITS_FOR_GIL:
                gil |= doing is Doing.WAITS_FOR_GIL
                running += 1
                watched.on_lock = False
                if slept:
                    verdicts.append((worker, item, False))
            elif slept:
                young += watched.on_lock and watched.since is not None and now - watched.since < YOUNG
            elif doing is Doing.WAITS_FOR_LOCK:
                waiting.append((worker, item, watched))
            elif doing is Doing.SLEEPS:
                watched.on_lock = False
                verdicts.append((worker, item, True))
        damping = running > 0
        for worker, item, watched in waiting:
            try:
                lasted = watched.has_lasted(now, damping + young)
            except OSError:
                continue
            if lasted:
                watched.on_lock = True
                young += 1
                verdicts.append((worker, item, True))
        return verdicts, gil
