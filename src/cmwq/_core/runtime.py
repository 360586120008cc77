"""Runtime: a universe of pools.

It owns all state; the process has a default one, tests and libraries may have their own.

Guarantees: nothing starts before the first work (G1); a forked child begins anew, without a trace of the parent's works
(G2); at interpreter exit pending works are done first, then every thread ends, and a Ctrl-C there leaves at once (G3).

The letters are those of `pool`; R is `Runtime._lock`, F: written only in the child of a fork, while it has one thread.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, TypeAlias
from weakref import ref

from cmwq._core import checks
from cmwq._core.config import Config
from cmwq._core.hogs import HogReports
from cmwq._core.hotplug import UNMANAGED, Hotplug
from cmwq._core.pool import WorkerPool
from cmwq._core.ranks import Rank
from cmwq._core.snapshot import Snapshot, view_of_pool, view_of_queue
from cmwq._core.wait import Quiet, Waits, run_steps, surely
from cmwq._core.watchdog import Watchdog
from cmwq._core.work import Work
from cmwq._core.worker import be_worker, current_worker
from cmwq._errors import CmwqTimeout, FlushDeadlock, ForeignProcess, QueueClosed, Reentered

if TYPE_CHECKING:
    from types import TracebackType

    from cmwq._core.ports import Host, Sensor
    from cmwq._core.queue import WorkQueue
    from cmwq._core.wait import Steps
    from cmwq._core.watchdog import Stall
    from cmwq._core.worker import Worker

PoolKey: TypeAlias = tuple[str, int, bool]
"""Scope, first CPU of the group (-1: all), highpri."""


class Runtime:
    """A private universe of pools, with its own CPUs, sensor, clock and caps.

    host: threads, locks, time (default: the real ones). sensor: who notices blocking: a `Sensor`, or a name as in
    CMWQ_SENSOR (default: the best that works here). cpus: which CPUs to use (default: those the process may use).
    max_workers: cap on the workers of a pool (B6). config: the constants of the rules.

    Thread-safe. Close it, or use it as a context manager; else it is closed at interpreter exit.
    """

    def __init__(
        self,
        *,
        host: Host | None = None,
        sensor: Sensor | str | None = None,
        cpus: Iterable[int] | None = None,
        max_workers: int = 1024,
        config: Config | None = None,
    ) -> None:
        max_workers = checks.integer("max_workers", max_workers, 2, checks.MAX_THREADS)  # one to work, one in reserve
        wanted = None if cpus is None else checks.cpus(cpus)
        if config is not None:
            checks.instance("config", config, Config)
        self._owns_host = host is None  # I
        # Whatever will be needed is imported now: a fork in the middle of an import leaves that module's lock taken in
        # the child, for good (G2).
        if host is None:
            from cmwq._host import ThreadHost

            host = ThreadHost()
        else:
            checks.port("host", host, "monotonic")
        if sensor is None or isinstance(sensor, str):
            from cmwq._sensor import NAMES, choose

            if sensor is not None:
                checks.choice("sensor", sensor, NAMES)
            self._choose_sensor: Callable[[], Sensor] = partial(choose, host, sensor)  # I
        else:
            checks.port("sensor", sensor, "lookout")
            self._choose_sensor = partial(_given, sensor)
        if wanted is not None and not set(wanted) & set(host.cpus()):
            raise ValueError(f"cpus is {wanted}, and this process may use none of them, but {tuple(host.cpus())}")
        self.host = host  # I
        self.config = config or Config()  # I
        self.max_workers = max_workers  # I
        self._lock = host.lock(Rank.RUNTIME)
        self.hotplug = Hotplug(self, wanted)  # I
        self.watchdog = Watchdog(self)  # I
        self._pools: dict[PoolKey, WorkerPool] = {}  # R to change; read freely
        self._queues: set[ref[WorkQueue]] = set()  # each change is atomic
        self._freezer = host.lock(Rank.FREEZER)  # freezing and thawing exclude each other; before R, Q and L
        self.frozen = False  # that lock to change; a queue's new place looks at it with Q held (E8)
        self.waits = Waits(host)  # I
        self.hogs = HogReports()  # I
        self.leaks: set[tuple[str, str]] = set()  # what works of which queue left behind; each change is atomic
        self._sensor: Sensor | None = None  # R
        self._turn = itertools.count()  # where the next per-CPU work goes when nobody knows this thread's CPU
        self.closed = False  # R: takes no work any more

    # ------------------------------------------------------------------------------- pools

    def cpus(self) -> tuple[int, ...]:
        """Those in use: there, not taken offline by hand, and wanted. As far as noticed: see `check_cpus`."""
        return self.hotplug.cpus()

    def cpu_offline(self, cpu: int) -> None:
        """Use this CPU no more (D2): works queued from now on go elsewhere, those there are done elsewhere, and nobody
        is bound to it. Returns at once. Harmless if that was said before.

        CPUs that really leave are noticed without it, within a second while work is unfinished (D1). Raises ValueError:
        it is none of those in use, or the last. Thread-safe.
        """
        self.hotplug.take(checks.cpu(cpu))

    def cpu_online(self, cpu: int) -> None:
        """Use it again (D4). Harmless if it is in use. Raises ValueError if the process may not. Thread-safe."""
        self.hotplug.give_back(checks.cpu(cpu))

    def check_cpus(self) -> bool:
        """Notice at once what else is noticed within a second: CPUs or a CPU quota that changed. True: they did."""
        return self.hotplug.check()

    @property
    def on_stall(self) -> Callable[[Stall], object] | None:
        """Called as on_stall(stall), on the timer thread, when a pool stalls, and when it goes on (H3). Settable.

        It must not wait for works: retries, maydays and delayed works need that thread.
        """
        return self.watchdog.on_stall

    @on_stall.setter
    def on_stall(self, call: Callable[[Stall], object] | None) -> None:
        if call is not None:
            checks.function("on_stall", call)
        self.watchdog.on_stall = call

    def adopt(self, queue: WorkQueue) -> None:
        """It is one of this runtime's, as long as somebody has it."""
        self._queues.add(ref(queue, self._queues.discard))

    def pool_here(self, scope: str, *, highpri: bool = False) -> WorkerPool:
        """The pool for a work queued by the calling thread. Starts it if need be: raises ThreadLimit, QueueClosed."""
        first = -1 if scope == "system" else self.hotplug.home(scope, self._cpu_here())
        return self._pools.get((scope, first, highpri)) or self._start_pool(scope, first, highpri)

    def pool_at(self, scope: str, cpu: int, *, highpri: bool = False) -> WorkerPool:
        """The pool that serves this CPU;

        of a CPU that is not there, the one for the calling thread. Raises as `pool_here`.
        """
        if scope == "system" or not self.hotplug.uses(cpu):
            return self.pool_here(scope, highpri=highpri)
        first = self.hotplug.home(scope, cpu)
        return self._pools.get((scope, first, highpri)) or self._start_pool(scope, first, highpri)

    def _cpu_here(self) -> int:
        worker, uses = current_worker(), self.hotplug.uses
        if worker is not None and worker.pool.runtime is self and len(worker.pool.cpus) == 1:
            own = worker.pool.cpus[0]
            if uses(own):
                return own
        cpu = self.host.current_cpu()
        if cpu is not None and uses(cpu):
            return cpu
        cpus = self.cpus()
        return cpus[next(self._turn) % len(cpus)]

    def begin(self) -> None:
        """Have what every pool relies on, before anything can go wrong. Raises ThreadLimit, QueueClosed."""
        with self._lock:
            self._begin()

    def _begin(self) -> Sensor:
        """Context: R held."""
        if self.closed:
            raise QueueClosed("the runtime is closed and takes no more work")
        if self._sensor is None:
            self.host.start_timers()
            sensor = self._choose_sensor()
            self.hotplug.begin()
            self.host.watch_process(self)
            self._sensor = sensor  # last: what was begun and interrupted is begun again
        return self._sensor

    def _start_pool(self, scope: str, first: int, highpri: bool) -> WorkerPool:
        """first: the first CPU of its group; -1 for all."""
        with self._lock:
            pool = self._pools.get((scope, first, highpri))
            if pool is not None:
                return pool
            sensor = self._begin()
            cpus = self.hotplug.served_by((scope, first, highpri))  # none: it has just left (D2)
            pool = WorkerPool(
                "u0" if first < 0 else str(first) if scope == "cpu" else f"{scope}{first}",
                cpus or self.cpus(),
                self.hotplug.target(cpus) if cpus else UNMANAGED,
                highpri=highpri,
                host=self.host,
                sensor=sensor,
                config=self.config,
                max_workers=self.max_workers,
                runtime=self,
            )
            pool.disassociated = not cpus
            pool.manager = office = object()
            self._pools[scope, first, highpri] = pool
        # B1: the first reserve. If it is refused, works wait for the retry, or for a rescuer.
        try:
            self.watchdog.begin()  # who waits for the first worker is to be seen, too
        finally:
            pool.create_reserve(office)
        return pool

    # ------------------------------------------------------------------------------- freezer (E8)

    def freeze(self, timeout: float | None = None) -> None:
        """Freezable queues finish what runs and start nothing until `thaw`; returns when nothing of them runs.

        timeout: seconds. Raises CmwqTimeout (and nothing is frozen then), FlushDeadlock from a freezable queue's own
        work. Freezing twice is freezing once. Works may be queued meanwhile; they wait, in order.
        """
        run_steps(self.freeze_steps(), self, timeout, lambda: "freeze: works of freezable queues still run")

    def freeze_steps(self) -> Steps[None]:
        """`freeze`, for whoever drives it."""
        done = False

        def undo() -> None:
            if not done:
                self.thaw()

        with surely(undo), surely(undo):
            with self._freezer:
                self.frozen = True
                # A place made from now on is frozen from the start: who makes it holds Q, and looks after we let go of
                # it.
                pwqs = [pwq for queue in self._all_queues() if queue.freezable for pwq in queue.places()]
                targets = [Quiet(pwq) for pwq in pwqs]
                for pwq in pwqs:
                    pwq.freeze()
            yield from targets
            done = True

    def thaw(self) -> None:
        """Let freezable queues go on, in order and under their `max_active`. Harmless if nothing is frozen."""
        try:
            with self._freezer:
                self.frozen = False
                for queue in self._all_queues():
                    if queue.freezable:
                        for pwq in queue.places():
                            pwq.thaw()
        except Reentered:
            self.host.defer(self.thaw)

    def _all_queues(self) -> list[WorkQueue]:
        return [queue for weak in self._queues.copy() if (queue := weak()) is not None]

    # ------------------------------------------------------------------------------- to be seen

    def snapshot(self) -> Snapshot:
        """A picture of pools, queues and sensor. Each pool's part is consistent in itself. Starts nothing."""
        with self._lock:
            pools = list(self._pools.values())
            queues = self._all_queues()
            sensor = self._sensor
        return Snapshot(
            pools=tuple(map(view_of_pool, pools)),
            queues=tuple(sorted(map(view_of_queue, queues), key=lambda q: q.name)),
            sensor=sensor.name if sensor else "",
            sensor_reason=sensor.reason if sensor else "nothing has run yet",
            gil=self.host.gil_enabled(),
            cpus=self.cpus(),
            cpu_limit=self.hotplug.limit(),
            pid=os.getpid(),
        )

    def check_invariants(self) -> None:
        """Raise InvariantError if a rule of a pool is broken. For tests."""
        for pool in list(self._pools.values()):
            with pool.lock:
                pool.check_invariants()

    # ------------------------------------------------------------------------------- end

    def close(self, timeout: float | None = None) -> None:
        """Do what is pending, then end every thread. Works queued meanwhile by running ones are done too.

        timeout: seconds for the works. Raises CmwqTimeout (the runtime stays open), FlushDeadlock on one of its own
        workers.
        """
        timeout = checks.timeout(timeout)
        worker = current_worker()
        if worker is not None and worker.pool.runtime is self:
            raise FlushDeadlock("close of a runtime from one of its own works: it would wait for itself")
        deadline = None if timeout is None else self.host.monotonic() + timeout
        self.thaw()
        for queue in self._all_queues():
            queue.take_back_delays()
        while True:
            if not self._drain(deadline):
                raise CmwqTimeout(f"close of a runtime: works still there after {timeout} s")
            workers = self._end()
            if workers is not None:
                break
        self.watchdog.stop()
        for queue in self._all_queues():
            thread = queue.end_rescuer()
            if thread is not None:
                thread.join()
        # The last a manager was just creating may have no thread noted yet: it has once the manager has ended.
        for worker in sorted(workers, key=lambda worker: worker.thread is None):
            if worker.thread is not None:
                worker.thread.join()
        if self._sensor is not None:
            self._sensor.stop()
        if self._owns_host:
            self.host.stop_timers()

    def _drain(self, deadline: float | None) -> bool:
        """Until every pool was found quiet in one round, in which nothing began. False: the deadline passed."""
        parker = self.host.parker()
        started = -1
        try:
            while True:
                pools = list(self._pools.values())
                before, started = started, sum(map(WorkerPool.count_started, pools))
                if before == started and all(pool.quiet_or_tell(None) for pool in pools):
                    return True
                for pool in pools:
                    while not pool.quiet_or_tell(parker):
                        if deadline is None:
                            parker.park()
                        elif (left := deadline - self.host.monotonic()) <= 0 or not parker.park(left):
                            return False
        finally:
            for pool in self._pools.values():
                pool.tell_no_more(parker)

    def _end(self) -> list[Worker] | None:
        """Close the pools. None: one had got work meanwhile, which is to be done first; those closed before stay so."""
        with self._lock:
            self.closed = True
            pools = list(self._pools.values())
        found: list[Worker] = []
        for pool in pools:
            workers = pool.close()
            if workers is None:
                return None
            found.extend(workers)
        return found

    def __enter__(self) -> Runtime:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def check_alive(self, pool: WorkerPool, what: object) -> None:
        """Raise ForeignProcess if the pool was the parent's: nobody here will ever end what is on it."""
        if pool.lost:
            raise ForeignProcess(
                f"{what!r} was queued before this process was forked; its result is the parent's alone"
            )

    def process_exits(self) -> None:
        """Do what is pending, take nothing new from outside, end every thread (G3)."""
        for queue in self._all_queues():
            queue.refuse()
        self.close()

    def process_forked(self) -> None:
        """In the child: nothing was ever started or queued (G2)."""
        Work.process_forked()
        worker = current_worker()
        if worker is not None and worker.pool.runtime is self:
            self.host.bind(self.cpus())  # to be the main thread, free of what it was bound to
            be_worker(None)
        self.hotplug.forget()
        self.watchdog.forget()
        self.waits = Waits(self.host)
        self._freezer = self.host.lock(Rank.FREEZER)
        self.frozen = False
        pools, self._pools = self._pools, {}
        for pool in pools.values():
            pool.abandon()
        self._lock = self.host.lock(Rank.RUNTIME)
        self._sensor = None
        self.host.forget()
        for queue in self._all_queues():
            queue.forget()


def _given(sensor: Sensor) -> Sensor:
    return sensor


_default: dict[str, Runtime] = {}


def default_runtime() -> Runtime:
    """The process's runtime, made when first asked for. Making it starts nothing."""
    runtime = _default.get("runtime")
    if runtime is None:
        # Of two that are made at the same time one is kept. The other has started nothing, and is forgotten.
        runtime = _default.setdefault("runtime", Runtime())
    return runtime
