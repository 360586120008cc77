"""Snapshot: a typed picture of a runtime, for looking at and for JSON. How it is taken is in `picture`.

Guarantees: the part of each pool, and of each queue on a pool, is of one moment (H4). The whole is bounded in size,
however many workers, functions and stalls there are. `Snapshot.to_dict` is a contract with programs in other processes
and languages: a name keeps its meaning as long as `VERSION` stays, and new names may be added.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from itertools import repeat
from typing import Any, NamedTuple

VERSION = 1
MAX_WORKERS = 2_000
"""So many workers a picture holds at most. Those that execute something come first."""
MAX_WORDS = 50
"""So many arguments of the process a picture holds at most."""
MAX_FUNCTIONS = 50
"""So many functions a picture holds at most: those that took the most time."""
_PARTS = ("rows", "since", "stacks")
MAX_STALLS = 20
"""So many reports of stalls a picture holds at most: those of stalls that go on, and the last ones of others."""


class Histogram(NamedTuple):
    """How often a time fell into each class, of the works that were measured: see `QueueView.waiting`."""

    bounds: tuple[float, ...]
    """Seconds: the upper bounds of the classes. They never change while the process lives."""
    counts: tuple[int, ...]
    """How many works fell into each class: one more than there are bounds, because the last has none."""
    sum: float
    """Seconds: of all these works together."""
    sampled: int
    """How many works were measured."""


@dataclass(frozen=True, slots=True)
class MemoryView:
    """The limit on memory of which the least is left. None: it is not known."""

    held: bool
    """Memory is short, so pools start nobody new as long as one runs (A11)."""
    used: int | None
    """Bytes."""
    limit: int | None
    """Bytes."""
    source: str
    """Whose limit it is."""


@dataclass(frozen=True, slots=True)
class PoolView:
    """One pool. Its counters begin with the pool."""

    name: str
    """Followed by an H for a pool of high priority, as `Event.pool` and the names of its workers."""
    cpus: tuple[int, ...]
    target: int
    held: bool
    """True: memory is short, so nobody new is started as long as one runs (A11)."""
    disassociated: bool
    """True: its CPU left. Its works are done elsewhere, and all of its workers may run (D2)."""
    workers: int
    idle: int
    running: int
    """Workers that count as running (A2), and hogs (A9), which do not count: so it may be more than the target. Less
    those that were seen asleep, and more those that were seen to run.
    """
    blocked: int
    """Workers known to be blocked, and those that were seen asleep when the picture was taken."""
    pending: int
    inactive: int
    created: int
    culled: int
    refused: int
    peak_workers: int
    started: int
    """Works that have begun. That a source was asked for works (E12) counts here as well, but for no queue."""
    completed: int
    """Works that have ended; the same is true here."""
    wakeups: int
    nice: int
    """The nice value of its workers: 0, or what a highpri pool was granted (E7)."""
    cpu_seconds: float | None
    """CPU time that its workers have used, those that have ended included. None: the system does not tell."""
    why: str
    """Why no more worker was started just now, in one sentence. Empty: no work waits."""


@dataclass(frozen=True, slots=True)
class QueueView:
    """One queue, over all its pools. `active` and `inactive` count works with and without a place under max_active."""

    name: str
    scope: str
    state: str
    max_active: int
    learns: bool
    """max_active is learned, and is the limit in force now: the highest of its pools (E11)."""
    active: int
    inactive: int
    unfinished: int
    hogs: int
    """How many works used the CPU for long without blocking, while others waited (A9)."""
    rescuer: bool
    maydays: int
    """How often its rescuer was called, once for each pool (C2)."""
    rescued: int
    """How many works its rescuer began (C3)."""
    started: int
    """How many works have begun: exactly those that have completed and those that execute now."""
    completed: int
    """How many works have ended, by returning or by an exception."""
    failed: int
    """How many of them ended by an exception of their function."""
    cpu_seconds: float
    """CPU time of workers while they were at its works, the pool's own code between them included."""
    wakeups: int
    """How often a worker was woken for one of its works because another worker had blocked (concurrency-managed)."""
    why: str
    """Why works of it wait for their place. Empty: none does."""
    waiting: Histogram | None
    """How long works waited, from being queued to being started. At most one work in 10 ms is measured for each pool
    of the queue: of the works that come next, one of the first 64. Where fewer than a hundred come in a second, nearly
    all are measured. Not measured are works that a source gave (E12). None: none was measured yet.
    """
    running: Histogram | None
    """How long the same works took, from start to end."""
    serial: int
    """No other queue of the runtime has this number. Of two queues of one name, the later one has the higher number."""


class WorkerView(NamedTuple):
    """One worker, or a queue's rescuer that helps in a pool."""

    name: str
    pool: str
    tid: int
    """The system's identifier of its thread; 0: it has just been created."""
    state: str
    """"idle"; "running"; "blocked"; "waking": on its way to work, or beginning; "creating": it creates a thread."""
    rescuer: bool
    queue: str
    work: str
    """The name of the function that it executes. Empty: none."""
    item: int
    """Identifies the queueing, as `Event.item` does. 0: none."""
    since: float
    """Seconds that it executes this work, or is idle. A work whose start was not measured counts from the moment when
    it was first seen: at most 10 ms late while works wait, and a second late otherwise.
    """
    cpu_seconds: float | None
    """CPU time that it used for this work, since that was first read. None: not read yet, or not known."""
    waits_for: str
    """What it waits for, in words, as it was last looked at. Empty: nothing, or not known."""
    stack: tuple[str, ...]
    """In the form of `traceback.format_stack`, the innermost calls. Empty, unless stacks were asked for."""
    held_by: int
    """The `tid` of the worker that has the lock for which it waits, or probably has it: the words of `waits_for` say
    so. 0: that is none of the workers, or is not known, or stacks were not asked for.
    """


class FunctionView(NamedTuple):
    """What the works of one function came to. All but `running` is estimated from the measured works: each of them
    stands for all that were queued to its place since the one before it.
    """

    name: str
    queue: str
    ended: int
    failed: int
    seconds: float
    """From start to end, of all that have ended."""
    cpu_seconds: float
    running: int
    """How many workers execute it now."""


class StallView(NamedTuple):
    """A report of the watchdog (H3)."""

    time: float
    """When, in seconds since the epoch."""
    over: bool
    text: str
    """The report as it was logged."""
    pool: str
    queue: str
    """Empty: the stall is the pool's."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A runtime. `sensor` is empty as long as nothing has run."""

    pools: tuple[PoolView, ...]
    queues: tuple[QueueView, ...]
    sensor: str
    sensor_reason: str
    gil: bool
    cpus: tuple[int, ...]
    cpu_limit: int
    pid: int
    version: int
    """Of the form that `to_dict` gives."""
    time: float
    """When it was taken, in seconds since the epoch."""
    uptime: float
    """Seconds since the runtime began; 0: nothing has run."""
    command: tuple[str, ...]
    """The first 50 arguments of the process, each cut to 200 characters."""
    python: str
    cpu_seconds: float
    """CPU time of the process."""
    frozen: bool
    """Freezable queues are frozen (E8)."""
    memory: MemoryView
    rows: tuple[dict[str, Any], ...] = field(repr=False)
    """What `workers` is made of, for each worker: all but `since` and `stack`. Not to be changed."""
    since: tuple[float, ...] = field(repr=False)
    """The workers' `since`."""
    stacks: tuple[tuple[str, ...], ...] = field(repr=False)
    """The workers' stacks; empty, unless they were asked for."""
    workers_left_out: int
    functions: tuple[FunctionView, ...]
    """Those that took the most time, the busiest first."""
    stalls: tuple[StallView, ...]
    """Reports of stalls, the latest at the end: those that go on, and the last that are over. In the child of a fork
    and after the runtime's end none goes on.
    """
    stall_after: float
    """Seconds for which none of the works that wait began, after which the watchdog reports that; 0: it never does."""

    @property
    def workers(self) -> tuple[WorkerView, ...]:
        """The workers of all pools, pool by pool in the order of their numbers."""
        stacks = self.stacks or repeat(())
        known = zip(self.rows, self.since, stacks, strict=False)
        return tuple(WorkerView(**{**row, "since": since, "stack": stack}) for row, since, stack in known)

    def to_dict(self) -> dict[str, Any]:
        """The same as dicts, lists, strings and numbers, ready for JSON. Its form is that of `version`."""
        plain = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in _PARTS}
        plain["pools"] = [_as_dict(pool) for pool in self.pools]
        plain["queues"] = [_queue_as_dict(queue) for queue in self.queues]
        plain["cpus"], plain["command"] = list(self.cpus), list(self.command)
        plain["memory"] = asdict(self.memory)
        plain["workers"] = workers = []
        stacks = self.stacks or repeat(())
        for row, since, stack in zip(self.rows, self.since, stacks, strict=False):
            worker = row.copy()  # there may be thousands, so nothing is made twice
            worker["since"], worker["stack"] = since, list(stack)
            workers.append(worker)
        plain["functions"] = [function._asdict() for function in self.functions]
        plain["stalls"] = [stall._asdict() for stall in self.stalls]
        return plain


def _as_dict(view: PoolView) -> dict[str, Any]:
    plain = asdict(view)
    plain["cpus"] = list(view.cpus)
    return plain


def _queue_as_dict(view: QueueView) -> dict[str, Any]:
    plain = {field.name: getattr(view, field.name) for field in fields(view)}
    for name in ("waiting", "running"):
        histogram: Histogram | None = plain[name]
        if histogram is not None:
            plain[name] = {
                "bounds": list(histogram.bounds),
                "counts": list(histogram.counts),
                "sum": histogram.sum,
                "sampled": histogram.sampled,
            }
    return plain
