"""Runtime: a set of pools, and everything that belongs to them.

It owns all state. The process has a default one; tests and libraries may have their own.

Guarantees: nothing is started before the first work (G1). The child of a fork begins anew, without a trace of the
parent's works (G2). `end` says how a runtime ends (G3).

The letters are those of `pool`; R is `Pools.lock`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Unpack

from cmwq._core import checks
from cmwq._core.config import Config
from cmwq._core.weakly import Weakly
from cmwq._errors import Abandoned, ForeignProcess
from cmwq._pool.events import Event, Kind
from cmwq._pool.hogs import HogReports
from cmwq._pool.hotplug import Hotplug
from cmwq._pool.invariants import check
from cmwq._pool.pools import Pools
from cmwq._pool.worker import be_worker, current_worker
from cmwq._workqueue.end import close, close_at_exit
from cmwq._workqueue.freezer import Freezer
from cmwq._workqueue.picture import Photographer
from cmwq._workqueue.settings import FIELDS, SensorName, Settings, checked_call, checked_exit_timeout
from cmwq._workqueue.subscriptions import Events
from cmwq._workqueue.wait import run_steps, waits_of
from cmwq._workqueue.watchdog import Watchdog
from cmwq._workqueue.work import Work

if TYPE_CHECKING:
    from types import TracebackType

    from cmwq._core.ports import Host, Parker, Sensor
    from cmwq._pool.pool import WorkerPool
    from cmwq._workqueue.queue import WorkQueue
    from cmwq._workqueue.report import Stall
    from cmwq._workqueue.snapshot import Snapshot


class Runtime:
    """A private set of pools, with its own CPUs, sensor, clock and caps.

    host: supplies threads, locks and time (default: the real ones).
    sensor: notices blocked workers; a `Sensor`, or a name as in CMWQ_SENSOR (default: the best that works here).
    cpus: which CPUs to use (default: those the process may use).
    max_workers: the cap on the workers of one pool (B6); at least 2.
    config: the constants of the rules.
    exit_timeout: seconds. At interpreter exit, works that have not ended by then are left behind, as by `close` with
        `abandon`; None: exit waits for all.
    on_stall, on_unfetched: called when works stall, or when nobody fetched the exception of a call: see the attributes
        of these names, which can be set later, too.

    Thread-safe. Close it, or use it as a context manager; else it is closed at interpreter exit.
    """

    on_unfetched: Callable[[str, BaseException], object] | None
    """Called as on_unfetched(name, exception) when the future of a failed call is dropped and nobody has seen the
    exception: by `result()`, by `exception()`, or through a callback. name: says in words which call of which queue
    failed. It can be set at any time, and applies to calls that fail from then on; None, the default: nobody is told,
    as in the standard library. It is called on whichever thread drops the last reference, between any two steps of its
    program. So it must not wait, nor take a lock that this thread may hold. What it raises is logged.
    """

    def __init__(
        self,
        *,
        host: Host | None = None,
        sensor: Sensor | SensorName | None = None,
        cpus: Iterable[int] | None = None,
        max_workers: int = 1024,
        config: Config | None = None,
        exit_timeout: float | None = None,
        on_stall: Callable[[Stall], object] | None = None,
        on_unfetched: Callable[[str, BaseException], object] | None = None,
    ) -> None:
        max_workers = checks.integer("max_workers", max_workers, 2, checks.MAX_THREADS)  # one works, one is in reserve
        if config is not None:
            checks.instance("config", config, Config)
        self._owns_host = host is None  # I
        # Import now whatever will be needed: a fork in the middle of an import leaves the lock of that module taken in
        # the child, for good (G2).
        if host is None:
            from cmwq._host import ThreadHost

            host = ThreadHost()
        else:
            checks.port("host", host, "monotonic")
        self.choose_sensor = _chooser(host, sensor)  # R
        self.host = host  # I
        # R to change, before the first use (`configure`), then I; so are hotplug and choose_sensor.
        self.config = config or Config()  # R
        self.max_workers = max_workers  # R
        self.exit_timeout = checked_exit_timeout(exit_timeout)  # ~
        self.on_unfetched = checked_call("on_unfetched", on_unfetched)  # A
        self._pools = Pools(self, host)  # I
        self.hotplug = Hotplug(self._pools, cpus)  # R
        self.events = Events(self)  # I
        self.watchdog = Watchdog(self)  # I
        self.watchdog.on_stall = checked_call("on_stall", on_stall)
        self.events.clients[Kind.STALL] = self.watchdog.hear
        self._queues: Weakly[WorkQueue] = Weakly()  # A: those that somebody still references
        self.serials = itertools.count(1)  # A: the numbers of its queues
        self._photographer = Photographer(self)  # I
        self.freezer = Freezer(self)  # I
        self.waits = waits_of(host)  # I
        self.hogs = HogReports()  # I
        self.events.clients[Kind.HOG] = self._hear_of_hog
        self.limits: dict[tuple[str, str], int] = {}  # A: what queues of which name and scope have learned (E11)
        self.leaks: set[tuple[str, str]] = set()  # A: what works of which queue left behind on a thread
        self._turn = itertools.count()  # A: where the next per-CPU work goes if this thread's CPU is unknown
        self.exiting = False  # ~: interpreter exit closes it, or did
        self.abandoned = False  # ~: it is closed, and works may still run
        self.waiters: set[Parker] = set()  # A: threads in a waiting call
        host.watch_process(self)  # last: the host may call back at once

    # ------------------------------------------------------------------------------- settings

    def configure(self, **settings: Unpack[Settings]) -> None:
        """Change the given settings: all of them or, if it raises, none. The others stay as they are.

        The child of a fork has the parent's settings, and may change them until its own first use. Raises RuntimeError
        after the first use, TypeError for a setting that does not exist, TypeError or ValueError for a value that is
        not allowed. Thread-safe.
        """
        given: dict[str, Any] = dict(settings)
        unknown = sorted(given.keys() - Settings.__annotations__.keys())
        if unknown:
            raise TypeError(f"no such setting: {', '.join(unknown)}; there are {', '.join(Settings.__annotations__)}")
        changes: dict[str, Any] = {}
        on_stall = checked_call("on_stall", given.get("on_stall", self.on_stall))
        if "on_unfetched" in given:
            changes["on_unfetched"] = checked_call("on_unfetched", given["on_unfetched"])
        if "max_workers" in given:
            changes["max_workers"] = checks.integer("max_workers", given["max_workers"], 2, checks.MAX_THREADS)
        if "exit_timeout" in given:
            changes["exit_timeout"] = checked_exit_timeout(given["exit_timeout"])
        if "sensor" in given:
            changes["choose_sensor"] = _chooser(self.host, given["sensor"])
        if "cpus" in given:
            hotplug = changes["hotplug"] = Hotplug(self._pools, given["cpus"])
            hotplug.take_over(self.hotplug)
        constants = {name: value for name, value in given.items() if name in FIELDS}
        with self._pools.lock:
            if self._pools.sensor is not None or self.closed:
                raise RuntimeError(
                    f"{', '.join(given)} can't be set any more: the runtime {'is closed' if self.closed else 'began'}; "
                    "configure it before its first use, or make a Runtime of your own"
                )
            changes["config"] = replace(self.config, **constants)
            vars(self).update(changes)  # a single step, so all or none (F10)
            self.watchdog.on_stall = on_stall

    # ------------------------------------------------------------------------------- pools

    @property
    def closed(self) -> bool:
        """True once the runtime accepts no work any more; False again if a `close` times out and leaves it open."""
        return self._pools.closed

    def cpus(self) -> tuple[int, ...]:
        """The CPUs in use: present, wanted, not taken offline by `cpu_offline`; as noticed last (`check_cpus`)."""
        return self.hotplug.cpus()

    def cpu_offline(self, cpu: int) -> None:
        """Stop using this CPU (D2). Works queued from now on go elsewhere, works that wait there are done elsewhere,
        and no worker stays bound to it. Returns at once. Does no harm if it was called before.

        A CPU that really leaves is noticed without this call, within a second while work is unfinished (D1). Raises
        ValueError if this CPU is not in use, or is the last one. Thread-safe.
        """
        self.hotplug.take(checks.cpu(cpu))

    def cpu_online(self, cpu: int) -> None:
        """Use this CPU again (D4). Does no harm if it is in use. Raises ValueError if it can't be used. Thread-safe."""
        self.hotplug.give_back(checks.cpu(cpu))

    def limit_cpus(self, most: int | None) -> None:
        """Use at most so many CPUs' worth of time, as under a quota: at most so many workers of a pool run at a time.

        None: as many as the system allows. It may be set at any time and takes effect at once; works that run go on.
        For a process that shares its machine by agreement, such as one of several workers of Dask. Raises TypeError or
        ValueError for anything but None and a number from 1. Thread-safe.
        """
        self.hotplug.restrict(None if most is None else checks.integer("most", most, 1))

    def check_cpus(self) -> bool:
        """Look at once whether CPUs or the CPU quota changed; without this call it is noticed within a second. True:
        they did.
        """
        return self.hotplug.check()

    @property
    def on_stall(self) -> Callable[[Stall], object] | None:
        """Called as on_stall(stall) on the timer thread when a pool or a queue stalls, and when it goes on (H3).

        It may be set at any time. It must not wait for works: retries, maydays and delayed works need that thread.
        """
        return self.watchdog.on_stall

    @on_stall.setter
    def on_stall(self, call: Callable[[Stall], object] | None) -> None:
        if call is not None:
            checks.function("on_stall", call)
        self.watchdog.on_stall = call

    def adopt(self, queue: WorkQueue) -> None:
        """Count the queue among this runtime's, as long as somebody references it. May be repeated.

        It is repeated where a work is accepted to which only `queues` leads: a finaliser may use a queue whose weak
        references the collector has cleared, as it does before it calls finalisers.
        """
        self._queues.add(queue)

    def pool_here(self, scope: str, *, highpri: bool = False) -> WorkerPool:
        """The pool for a work that this thread queues; started if need be. Raises ThreadLimit, QueueClosed."""
        first = -1 if scope == "system" else self.hotplug.home(scope, self._cpu_here())
        return self._pools.get((scope, first, highpri)) or self._pools.start((scope, first, highpri))

    def pool_at(self, scope: str, cpu: int, *, highpri: bool = False) -> WorkerPool:
        """The pool that serves this CPU, or `pool_here` if the runtime does not use the CPU. Raises ThreadLimit,
        QueueClosed.
        """
        if scope == "system" or not self.hotplug.uses(cpu):
            return self.pool_here(scope, highpri=highpri)
        first = self.hotplug.home(scope, cpu)
        return self._pools.get((scope, first, highpri)) or self._pools.start((scope, first, highpri))

    def pools(self) -> list[WorkerPool]:
        """The pools that were started so far."""
        return list(self._pools.values())

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
        """Start what every pool relies on, before anything can go wrong. Raises ThreadLimit, QueueClosed."""
        with self._pools.lock:
            self._pools.begin()

    # ------------------------------------------------------------------------------- freezer (E8)

    def freeze(self, timeout: float | None = None) -> None:
        """Let freezable queues finish the works that run, and start none until `thaw`. Returns when none of them runs.

        timeout: seconds. Raises CmwqTimeout (then this call has frozen nothing), FlushDeadlock if a work of a freezable
        queue calls it, QueueClosed while the runtime is being closed or the interpreter ends, Reentered in a finaliser
        or a signal handler that interrupted cmwq's own code. Freezing twice is freezing once. Works may be queued
        meanwhile; they wait, in order. If another thread thaws before, this returns, and nothing is frozen.
        """
        run_steps(self.freezer.steps(), self, timeout, lambda: "freeze: works of freezable queues still run")

    def thaw(self) -> None:
        """Let freezable queues go on, in order and under their `max_active`. Does no harm if nothing is frozen. In a
        finaliser or a signal handler that interrupted cmwq's own code it is deferred until that code is done.
        """
        self.freezer.thaw()

    @property
    def frozen(self) -> bool:
        """Whether freezable queues start nothing (E8)."""
        return self.freezer.frozen

    def queues(self) -> list[WorkQueue]:
        """The queues of this runtime that somebody still references."""
        return list(self._queues)

    # ------------------------------------------------------------------------------- to be seen

    def snapshot(self, stacks: bool = False) -> Snapshot:
        """Return a picture of pools, queues, workers and sensor; the part of each pool is of one moment (H4).

        stacks: with the Python stack of each worker, and with a new look at what each one waits for. Without them it
        takes about a millisecond for a thousand workers, and most words about waits are those of earlier looks:
        `picture` says which. The first picture begins nothing, and counters are as old as what they count. Starts
        nothing, waits for nothing but short locks, and works after the end of the runtime. Thread-safe. Raises
        Reentered in a finaliser or a signal handler that interrupted cmwq's own code.
        """
        return self._photographer.take(stacks=bool(stacks))

    def check_invariants(self) -> None:
        """Raise InvariantError if a rule of a pool is broken. For tests."""
        for pool in list(self._pools.values()):
            with pool.lock:
                check(pool)

    def _hear_of_hog(self, event: Event) -> None:
        self.hogs.report((event.queue, event.work), self.config.cpu_intensive_thresh)

    # ------------------------------------------------------------------------------- end

    def close(self, timeout: float | None = None, *, abandon: bool = False) -> None:
        """Do all pending works, then end every thread. Works that running works queue meanwhile are done too. Delayed
        works run or are cancelled, as their queues were made to do.

        timeout: seconds for the works. Raises CmwqTimeout after it: the runtime stays open, unless some of its pools
        had ended by then. Raises FlushDeadlock on one of its own workers, Abandoned if another thread abandoned it
        meanwhile, Reentered in a finaliser or a signal handler that interrupted cmwq's own code.

        abandon: do not raise CmwqTimeout, but leave behind what has not ended by then. Works that have not begun are
        cancelled. Each work that runs is named in a warning, with what it waits for; its thread goes on for as long as
        the work does, and threads that wait for it get `Abandoned`.
        """
        close(self, timeout, abandon=abandon)
        self.events.end()

    def begin_to_close(self) -> None:
        """From now on start no pool, and accept no delayed work."""
        with self._pools.lock:
            self._pools.closed = True

    def reopen(self) -> None:
        """Accept works again."""
        with self._pools.lock:
            self._pools.closed = False

    def stop_services(self) -> None:
        """Stop the sensor and the timers.  Context: every worker has ended."""
        if self._pools.sensor is not None:
            self._pools.sensor.stop()
        self.stop_timers()

    def stop_timers(self) -> None:
        if self._owns_host:
            self.host.stop_timers()

    def __enter__(self) -> Runtime:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def check_alive(self, pool: WorkerPool, what: object) -> None:
        """Raise ForeignProcess if the pool was the parent process's, Abandoned if works were left behind."""
        if pool.lost:
            raise ForeignProcess(
                f"{what!r} was queued before this process was forked, or by a hook of the fork that came before cmwq's "
                "own; what becomes of it the parent alone can know. Queue it anew"
            )
        if self.abandoned:
            raise Abandoned(f"{what!r} had not ended when its runtime did, and is not waited for any more")

    def process_exits(self) -> None:
        """At interpreter exit: do what is pending, accept nothing from outside, end every thread; within `exit_timeout`
        if it is set (G3).
        """
        close_at_exit(self)
        self.events.end()

    def why_closed(self, *, words: bool = True) -> str:
        """Why it accepts no work, in words that follow its name. words: with the standard library's, which programs
        look for; False: the caller has said them.
        """
        if self.exiting:
            return "ended with the interpreter" + ": cannot schedule new futures after interpreter shutdown" * words
        return "is closed and takes no more work"

    def process_forked(self) -> None:
        """Begin anew in the child of a fork, as if nothing was ever started or queued (G2)."""
        Work.process_forked()
        worker = current_worker()
        if worker is not None and worker.pool.runtime is self:
            self.host.bind(self.cpus())  # it becomes the main thread, so it loses its worker's binding
            be_worker(None)
        self.hotplug.forget()
        self.events.forget()
        self.watchdog.forget()
        self.waits.forget()
        self.waiters = set()
        self.freezer.forget()
        self._pools.forget()
        self.host.forget()
        for queue in self.queues():
            queue.forget()


def _chooser(host: Host, sensor: Sensor | str | None) -> Callable[[], Sensor]:
    """A function that returns the sensor when it is needed. Raises ValueError for an unknown name."""
    if sensor is not None and not isinstance(sensor, str):
        checks.port("sensor", sensor, "lookout")
        return partial(_given, sensor)
    from cmwq._sensor import NAMES, choose

    if sensor is not None:
        checks.choice("sensor", sensor, NAMES)
    return partial(choose, host, sensor)


def _given(sensor: Sensor) -> Sensor:
    return sensor


_default: dict[str, Runtime] = {}


def default_runtime() -> Runtime:
    """The default runtime of this process, made at the first call. Making it starts nothing. Thread-safe."""
    runtime = _default.get("runtime")
    if runtime is None:
        # Of two that are made at the same time one is kept. The other has started nothing, and is dropped.
        runtime = _default.setdefault("runtime", Runtime())
    return runtime
