"""What each decision of the core costs while it runs in the simulator: real time, and lines of code executed.

How: the functions that decide are wrapped. Every so many calls one is timed, and another is traced line by line.
A decision's figures are its own: without decisions it calls (they have rows of their own), without the simulator's
locks, wake-ups and thread starts, and without the time in which other simulated threads had their turn. The lines are
those of the core, so a loop over workers, pools or works shows in them exactly, whatever else the machine does; a
loop inside a C function (`list.remove`) shows in the time alone.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from importlib import import_module
from pathlib import Path
from statistics import fmean
from time import perf_counter_ns
from types import CodeType, FrameType, SimpleNamespace
from typing import Any, NamedTuple

import cmwq
from cmwq._workqueue.place_end import PhaseEnd
from cmwq.testing.sim_host import SimThread

CORE = tuple(f"{Path(cmwq.__file__).parent / folder}/" for folder in ("_core", "_pool", "_workqueue"))


class Decision(NamedTuple):
    """What is decided, and where.

    paths: module:name of each function of the core that does it. stride: one of so many calls is a sample; None: as
    the run says. each: so many things a call looks at, given its arguments. through: that grows by as many works or
    workers as a call deals with, given its first argument and the thread. timed: else its lines are counted only.
    """

    name: str
    paths: tuple[str, ...]
    stride: int | None = None
    each: Callable[..., int] | None = None
    through: Callable[[Any, Any], int] | None = None
    timed: bool = True


def of_pool(pool: Any, *others: object) -> int:
    return len(pool.workers)


def of_runtime(hotplug: Any) -> int:
    pools = hotplug._pools.values()
    return len(hotplug.cpus()) + len(pools) + sum(len(pool.workers) * len(pool.cpus) for pool in pools)


def waiting(waits: Any, item: object, target: object) -> int:
    return len(waits._waiting) if isinstance(target, PhaseEnd) else 0


def works_before(pool: Any, pwq: Any, *others: object) -> int:
    return next((n for n, item in enumerate(pool.worklist, 1) if item.pwq is pwq), len(pool.worklist))


def dozing(pool: Any, worker: object) -> int:
    return len(pool.children.dozers)


def created(office: Any, thread: object) -> int:
    return int(office._pool.stats.created)


def culled(office: Any, thread: object) -> int:
    return int(office._pool.stats.culled)


def works_of(pool: object, thread: Any) -> int:
    return int(thread.nr_works)


DECISIONS = (
    Decision("submit", ("_workqueue.queue:WorkQueue.submit",)),
    Decision("queue", ("_workqueue.queueing:queue_specially",)),
    Decision("which pool", ("_workqueue.runtime:Runtime.pool_here",)),
    Decision("a new place", ("_workqueue.queue:WorkQueue._pwq_on",)),
    Decision("a new pool", ("_pool.pools:Pools.start",), stride=1),
    Decision("insert", ("_workqueue.queue:insert",)),
    Decision("cancel", ("_workqueue.future:Future.cancel",)),
    Decision("kick", ("_pool.pool:WorkerPool.kick",)),
    Decision("settle", ("_pool.pool:WorkerPool.settle",)),
    Decision("it sleeps", ("_pool.pool:WorkerPool.worker_sleeping",)),
    Decision("it runs", ("_pool.pool:WorkerPool.worker_running",)),
    Decision("start", ("_pool.worker_thread:start_working",), each=dozing),
    Decision("leave idle", ("_pool.pool:WorkerPool.leave_idle",)),
    Decision("work loop", ("_pool.worker_thread:process_works",), stride=17, through=works_of, timed=False),
    Decision("claim", ("_workqueue.future:Future.claim", "_workqueue.queued:Queued.claim")),
    Decision("end", ("_workqueue.future:Future.end", "_workqueue.queued:Queued.end")),
    Decision("retire", ("_workqueue.phase:Phase.retire",)),
    Decision("activate", ("_workqueue.pwq:PoolWorkQueue.activate",)),
    Decision("go idle", ("_pool.pool:WorkerPool.enter_idle",)),
    Decision("quiet?", ("_pool.pool:WorkerPool.is_quiet",)),
    Decision("create", ("_pool.manager:Office.create_worker",), stride=1),
    Decision("manage", ("_pool.manager:Office.create_reserve",), stride=1, through=created),
    Decision("cull", ("_pool.manager:Office._cull",), stride=1, through=culled),
    Decision("hogs", ("_pool.hogs:check",), stride=1, each=of_pool),
    Decision("begin a wait", ("_workqueue.wait:Waits.begin",), each=waiting),
    Decision("step aside", ("_workqueue.wait:step_aside",)),
    Decision("step back", ("_workqueue.wait:step_back",)),
    Decision("seal", ("_workqueue.pwq:PoolWorkQueue.seal",), stride=1),
    Decision("phase ends", ("_workqueue.pwq:PoolWorkQueue.complete_phases",), stride=1),
    Decision("check CPUs", ("_pool.hotplug:Hotplug.check",), stride=1, each=of_runtime),
    Decision("serve CPUs", ("_pool.pool:WorkerPool.serve",), stride=1, each=of_pool),
    Decision(
        "watchdog", ("_workqueue.watchdog:Watchdog._look_at",), stride=1, each=lambda _, pool, *others: of_pool(pool)
    ),
    Decision("mayday", ("_pool.rescuer:mayday",), stride=1, each=lambda pool: len(pool.pwqs)),
    Decision("rescue", ("_pool.rescuer:_take",), stride=1, each=works_before),
)
"""Per call; but "work loop" per work, "manage" and "cull" per worker, and where `each` is given per thing looked at:
the call counts as OFFSET of them. "start": workers seen asleep since the last one, each of which is looked at once.
"hogs", "serve CPUs", "watchdog": workers of a pool. "check CPUs": CPUs, pools, and CPUs of each worker. "mayday":
queues. "rescue": works passed over. "begin a wait", if it is a flush: works that wait.
"""
OFFSET = 10
SEAMS = (
    "cmwq.testing.sim_host:SimHost._check",
    "cmwq.testing.sim_host:SimHost._hand_over",
    "cmwq.testing.sim_host:SimHost.spawn",
    "cmwq.testing.sim_host:SimHost.call_later",
    "cmwq.testing.sim_host:SimLock.acquire",
    "cmwq.testing.sim_host:SimLock.release",
    "cmwq.testing.sim_host:SimParker.unpark",
)


class Cost:
    """Of one decision in one run. Own: without other decisions, and without seams."""

    def __init__(self) -> None:
        self.calls = 0
        self._figures: dict[str, list[float]] = {"us": [], "lines": [], "rounds": []}

    def timed(self, nanoseconds: float, units: int) -> None:
        self._figures["us"].append(max(nanoseconds, 0.0) / 1e3 / units)

    def traced(self, lines: int, most: int, units: int) -> None:
        """most: so often the line was executed that was executed most often."""
        self._figures["lines"].append(lines / units)
        self._figures["rounds"].append(max(1.0, most / units))

    def samples(self, name: str) -> int:
        return len(self._figures[name])

    def mean(self, name: str) -> float | None:
        """Of the microseconds that of the middle half: in the others the machine did something else."""
        figures = self._figures[name]
        if name == "us":
            quarter = len(figures) // 4
            figures = sorted(figures)[quarter : len(figures) - quarter]
        return fmean(figures) if figures else None

    def to_dict(self) -> dict[str, Any]:
        means = {name: {"mean": self.mean(name), "samples": self.samples(name)} for name in self._figures}
        return {"calls": self.calls} | means


class Section:
    """A call that is timed."""

    __slots__ = ("elsewhere",)

    def __init__(self) -> None:
        self.elsewhere = 0.0  # ns in decisions and seams that it called


class Probe:
    """Wraps what decides in one simulation. stride: one of so many calls is a sample.

    A thread's state is in attributes of its SimThread: `section` while it is timed, `lines` while it is traced, and
    `nr_works`, for works to count themselves.
    """

    def __init__(self, host: Any, stride: int) -> None:
        self.costs: dict[str, Cost] = {}
        self.host = host
        self.stride = stride
        self.overhead = self.around = self.around_seam = 0.0  # ns that a wrapper adds to its figure, and its caller's
        self._core: dict[CodeType, bool] = {}

    @contextmanager
    def wrapping(self) -> Iterator[None]:
        self._calibrate()
        for name, value in (("section", None), ("lines", None), ("nr_works", 0)):
            setattr(SimThread, name, value)
        undo = []
        try:
            for path, wrapper in (*self._wrappers(), *((path, self._seam) for path in SEAMS)):
                owner, name = _find(path)
                fn = getattr(owner, name)
                undo.append((owner, name, fn))
                setattr(owner, name, wrapper(fn))
            yield
        finally:
            for owner, name, fn in reversed(undo):
                setattr(owner, name, fn)

    def _wrappers(self) -> Iterator[tuple[str, Callable[[Any], Any]]]:
        for decision in DECISIONS:
            for path in decision.paths:
                cost = self.costs.setdefault(decision.name, Cost())
                yield f"cmwq.{path}", partial(self._decision, decision, cost)

    def _decision(self, decision: Decision, cost: Cost, fn: Callable[..., Any]) -> Callable[..., Any]:
        stride, timed, host = decision.stride or self.stride, decision.timed, self.host

        @wraps(fn)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            cost.calls += 1
            me: Any = host.current
            if me is None:
                return fn(*args, **kwargs)
            if sys.gettrace() is not None:
                return self._trace(decision, cost, me, fn, args, kwargs)
            if timed and me.section is not None:
                return self._time(decision, cost, me, fn, args, kwargs)
            if cost.calls % stride:
                return fn(*args, **kwargs)
            if timed and cost.calls // stride % 2:
                return self._time(decision, cost, me, fn, args, kwargs)
            return self._trace(decision, cost, me, fn, args, kwargs)

        return wrapper

    def _time(self, decision: Decision, cost: Cost, me: Any, fn: Any, args: Any, kwargs: Any) -> Any:
        enter = perf_counter_ns()  # all that is done here is no part of the caller's figure
        units = _Units(decision, args, me) if decision.each or decision.through else None
        outer: Section | None = me.section
        me.section = section = Section()
        begin = perf_counter_ns()
        try:
            return fn(*args, **kwargs)
        finally:
            own = perf_counter_ns() - begin - section.elsewhere - self.overhead
            cost.timed(own, units() if units is not None else 1)
            me.section = outer
            if outer is not None:
                outer.elsewhere += perf_counter_ns() - enter + self.around

    def _trace(self, decision: Decision, cost: Cost, me: Any, fn: Any, args: Any, kwargs: Any) -> Any:
        sys.settrace(None)
        units = _Units(decision, args, me)
        outer = me.lines
        me.lines = lines = Counter[tuple[CodeType, int]]()
        sys.settrace(self._enter)
        try:
            return fn(*args, **kwargs)
        finally:
            sys.settrace(None)
            me.lines = outer
            most = max(lines.values(), default=0)
            if decision.through is not None:
                most -= 1  # the line that finds the end of the loop
            cost.traced(lines.total(), most, units())
            if outer is not None:
                sys.settrace(self._enter)

    def _seam(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        host = self.host

        @wraps(fn)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            me: Any = host.current
            if me is not None and me.section is not None:
                enter = perf_counter_ns()
                section, me.section = me.section, None
                try:
                    return fn(*args, **kwargs)
                finally:
                    me.section = section
                    section.elsewhere += perf_counter_ns() - enter + self.around_seam
            if me is None or me.lines is None:
                return fn(*args, **kwargs)
            trace = sys.gettrace()
            sys.settrace(None)
            try:
                return fn(*args, **kwargs)
            finally:
                sys.settrace(trace)

        return wrapper

    def _enter(self, frame: FrameType, event: str, arg: object) -> Any:
        """A function is called, or a generator goes on."""
        code = frame.f_code
        core = self._core.get(code)
        if core is None:
            core = self._core[code] = code.co_filename.startswith(CORE)
        return self._line if core else None

    def _line(self, frame: FrameType, event: str, arg: object) -> Any:
        if event == "line":
            self.host.current.lines[frame.f_code, frame.f_lineno] += 1
        return self._line

    def _calibrate(self) -> None:
        """Time nothing, and what calls nothing."""
        host, self.host = self.host, SimpleNamespace(current=SimpleNamespace(section=None, lines=None))
        nothing, inner = Decision("", (), stride=1), Cost()

        def time_ten(fn: Callable[[], None]) -> float:
            def ten() -> None:
                for _ in range(10):
                    fn()

            outer = Cost()
            for _ in range(2_000):
                self._time(nothing, outer, self.host.current, ten, (), {})
            return (outer.mean("us") or 0.0) * 1e3 / 10

        self.around = time_ten(self._decision(nothing, inner, lambda: None))
        self.around_seam = time_ten(self._seam(lambda: None))
        self.overhead = (inner.mean("us") or 0.0) * 1e3
        self.host = host


class _Units:
    """How many units of cost a call has: to be asked after it."""

    def __init__(self, decision: Decision, args: Any, thread: Any) -> None:
        self._each = decision.each(*args) + OFFSET if decision.each is not None else 1
        self._through = partial(decision.through, args[0], thread) if decision.through is not None else None
        self._before = self._through() if self._through is not None else 0

    def __call__(self) -> int:
        return max(1, self._each if self._through is None else self._through() - self._before)


def _find(path: str) -> tuple[Any, str]:
    """module:name as the object that has it, and its name there."""
    module, _, name = path.partition(":")
    *outer, name = name.split(".")
    owner: Any = import_module(module)
    for each in outer:
        owner = getattr(owner, each)
    getattr(owner, name)  # or say what is missing, rather than measure nothing
    return owner, name
