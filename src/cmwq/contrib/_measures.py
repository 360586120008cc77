"""What is measured of a process: one list for all exporters, and sums that only grow.

Guarantees
- A counter never falls as long as the process lives. Queues of the same name are added up; what one of them had counted
  when it was last looked at stays in the sum after it is gone, also where another of its name has taken its place
  (`QueueView.serial` tells them apart). What it counted after that look is lost.
- What is kept is as much as the names that are told apart, and the queues that there were at the last look.
- The number of names is bounded. A queue that comes when there are enough of them is counted as "(others)".
- A look takes a picture, starts nothing and waits for no work. Thread-safe: looks happen one after the other, so that
  an older picture never comes after a newer one.
- The child of a fork begins at zero, as its runtime does.

What a picture does not say (a field that is missing or None) is left out, and not reported as zero.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import cmwq

Picture = Mapping[str, Any]

OTHERS = "(others)"
"""The name that stands for all queues beyond the bound."""
NAMES = 100
"""So many names are told apart by default."""


class Measure(NamedTuple):
    """One number of a picture: the field that has it, what it is called, and what it says."""

    field: str
    name: str
    grows: bool
    unit: str
    text: str


def _gauge(field: str, name: str, text: str, unit: str = "") -> Measure:
    return Measure(field, name, False, unit, text)


def _counter(field: str, name: str, text: str, unit: str = "") -> Measure:
    return Measure(field, name, True, unit, text)


POOL = (
    _gauge("target", "target_workers", "How many workers may run at a time: the CPUs of the pool, at most the quota."),
    _gauge("workers", "workers", "Workers that exist."),
    _gauge("idle", "idle_workers", "Workers that have nothing to do."),
    _gauge("running", "running_workers", "Workers that count as running."),
    _gauge("blocked", "blocked_workers", "Workers that are known to be blocked within a work."),
    _gauge("peak_workers", "peak_workers", "The largest number of workers so far."),
    _gauge("pending", "pending_works", "Works that wait for a worker."),
    _gauge("inactive", "inactive_works", "Works that wait for their place under max_active, or in an order."),
    _gauge("held", "held", "1 while works are held back because memory is short."),
    _gauge("disassociated", "disassociated", "1 while the pool's CPU is gone."),
    _counter("created", "workers_created", "Workers that were created."),
    _counter("culled", "workers_culled", "Workers that ended because they had been idle for long."),
    _counter("refused", "workers_refused", "Workers that could not be created."),
    _counter("started", "works_started", "Works that began."),
    _counter("completed", "works_completed", "Works that ended, whatever their outcome."),
    _counter("wakeups", "wakeups", "Idle workers that were woken."),
    _counter("cpu_seconds", "cpu", "CPU time of the pool's workers.", "seconds"),
)
QUEUE = (
    _gauge("number", "queues", "Queues of this name that exist."),
    _gauge(
        "max_active", "max_active", "How many works may be active at a time on each pool; of several queues the sum."
    ),
    _gauge("active", "active_works", "Works that have a place: they run, or wait for a worker only."),
    _gauge("inactive", "inactive_works", "Works that wait for their place under max_active, or in an order."),
    _gauge("unfinished", "unfinished_works", "Works that were queued and have not ended."),
    _counter("started", "works_started", "Works that began."),
    _counter("completed", "works_completed", "Works that ended, whatever their outcome."),
    _counter("failed", "works_failed", "Works that raised."),
    _counter("cpu_seconds", "cpu", "CPU time of the queue's works.", "seconds"),
    _counter("hogs", "hogs", "Works that used the CPU for long without blocking, while others waited."),
    _counter("wakeups", "wakeups", "Workers that were woken because one blocked within a work of the queue."),
    _counter("maydays", "maydays", "Calls of the queue's rescuer, for want of workers."),
    _counter("rescued", "works_rescued", "Works that the rescuer began."),
)
TIMES = (
    Measure("waiting", "waiting", True, "seconds", "From queueing to the beginning. Of the works that were measured."),
    Measure("running", "running", True, "seconds", "From the beginning to the end. Of the works that were measured."),
)
PROCESS = (
    _gauge("started_at", "start_time", "When the runtime began, since the epoch.", "seconds"),
    _gauge("frozen", "frozen", "1 while freezable queues are frozen."),
    _gauge("stalls", "stalls", "Stalls that go on: pools or queues with works of which none begins."),
    _gauge("cpu_limit", "cpu_limit", "How many CPUs the process may use: those there are, at most the quota."),
    _gauge("memory_used", "memory_used", "Memory in use, as the runtime sees it.", "bytes"),
    _gauge("memory_limit", "memory_limit", "The limit to that.", "bytes"),
)


@dataclass
class Times:
    """A histogram: how many works fell between one bound and the next, and their seconds in all."""

    bounds: tuple[float, ...]
    counts: list[float]
    sum: float


@dataclass
class Row:
    """The numbers of one pool or of one name of queues, by the fields of the measures."""

    numbers: dict[str, float] = field(default_factory=dict)
    times: dict[str, Times] = field(default_factory=dict)


@dataclass
class Reading:
    """All numbers at one moment. Names that are gone still have their counters."""

    process: dict[str, float]
    pools: dict[str, Row]
    queues: dict[str, Row]
    sensor: str
    gil: bool


class Sums:
    """Reads pictures, and adds up. `look` is all that exporters need of it."""

    def __init__(self, take: Callable[[], Picture], names: int = NAMES) -> None:
        if names < 1:
            raise ValueError(f"names must be at least 1, not {names}")
        self._take = take
        self._most = names
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._pools = Kept(POOL, ())
        self._queues = Kept(QUEUE, TIMES)
        self._names: set[str] = set()

    def look(self) -> Reading:
        """Take a picture, and return the numbers. Raises what taking the picture raises; then nothing is changed."""
        if self._pid != os.getpid():
            self._begin()  # in the child of a fork, where another thread's lock may have been left taken
        with self._lock:
            picture = self._take()
            pools = [(pool["name"], None, pool) for pool in picture.get("pools", ())]
            queues = [
                (self._label(queue["name"]), queue.get("serial"), {**queue, "number": 1})
                for queue in picture.get("queues", ())
            ]
            return Reading(
                _of_process(picture),
                self._pools.add(pools),
                self._queues.add(queues),
                str(picture.get("sensor", "")),
                bool(picture.get("gil", True)),
            )

    def _label(self, name: str) -> str:
        """The name, or OTHERS. Who has a name of its own keeps it."""
        name = name.encode("utf-8", "backslashreplace").decode()  # half a character would break the whole scrape
        if name not in self._names:
            if len(self._names) >= self._most:
                return OTHERS
            self._names.add(name)
        return name


Key = tuple[str, int | None]
"""The name of a pool or a queue, and the queue's serial number. None: an older picture does not tell it."""


class Kept:
    """The rows of pools or of queues, whose counters only grow.

    By how much a sum of several queues has fallen does not tell what has gone: a queue may go and another of its name
    come between two looks. So the last look is kept for each queue on its own.
    """

    def __init__(self, measures: tuple[Measure, ...], times: tuple[Measure, ...]) -> None:
        self._gauges = [measure.field for measure in measures if not measure.grows]
        self._counters = [measure.field for measure in measures if measure.grows]
        self._times = [measure.field for measure in times]
        self._last: dict[Key, Row] = {}
        """What existed at the last look."""
        self._gone: dict[str, Row] = {}
        """For each name ever seen, what had been counted by what is gone."""

    def add(self, found: Iterable[tuple[str, int | None, Picture]]) -> dict[str, Row]:
        """What existed at this look: name, serial number, and numbers. Returns the rows of all names ever seen."""
        now: dict[Key, Row] = {}
        for name, serial, each in found:
            row = now.setdefault((name, serial), Row())
            for key in (*self._gauges, *self._counters):
                if each.get(key) is not None:
                    row.numbers[key] = row.numbers.get(key, 0) + each[key]
            for key in self._times:
                if each.get(key) is not None:
                    _add_times(row.times, key, each[key])
        for (name, serial), last in self._last.items():
            self._keep(self._gone.setdefault(name, Row()), last, now.get((name, serial), Row()))
        self._last = now
        rows = {name: _added(Row(), gone) for name, gone in self._gone.items()}
        for (name, _), row in now.items():
            rows[name] = _added(row, rows.get(name))
        return rows

    def _keep(self, gone: Row, last: Row, now: Row) -> None:
        """Add to `gone` by how much each counter has fallen since the last look: so much is gone with its queue, or
        with one of those that an older picture does not tell apart. Gauges are zero for who is gone.
        """
        for key in self._gauges:
            if key in last.numbers:
                gone.numbers[key] = 0
        for key in self._counters:
            if key in last.numbers:
                fallen = max(last.numbers[key] - now.numbers.get(key, 0), 0)
                gone.numbers[key] = gone.numbers.get(key, 0) + fallen
        for key, times in last.times.items():
            current = now.times.get(key, Times(times.bounds, [0] * len(times.counts), 0))
            if current.bounds == times.bounds:
                counts = [max(before - after, 0) for before, after in zip(times.counts, current.counts, strict=True)]
                lost = {"bounds": times.bounds, "counts": counts, "sum": max(times.sum - current.sum, 0)}
                _add_times(gone.times, key, lost)


def _add_times(times: dict[str, Times], key: str, more: Picture) -> None:
    bounds = tuple(map(float, more["bounds"]))
    there = times.setdefault(key, Times(bounds, [0] * (len(bounds) + 1), 0))
    if there.bounds == bounds:
        there.counts = [a + b for a, b in zip(there.counts, more["counts"], strict=True)]
        there.sum += more["sum"]


def _added(row: Row, gone: Row | None) -> Row:
    """Both together, without touching either."""
    numbers = dict(row.numbers)
    times = {key: Times(each.bounds, list(each.counts), each.sum) for key, each in row.times.items()}
    if gone is not None:
        for name, number in gone.numbers.items():
            numbers[name] = numbers.get(name, 0) + number
        for name, each in gone.times.items():
            _add_times(times, name, {"bounds": each.bounds, "counts": each.counts, "sum": each.sum})
    return Row(numbers, times)


def _of_process(picture: Picture) -> dict[str, float]:
    numbers: dict[str, float] = {}
    for key in ("frozen", "cpu_limit"):
        if picture.get(key) is not None:
            numbers[key] = float(picture[key])
    if "time" in picture and "uptime" in picture:
        numbers["started_at"] = picture["time"] - picture["uptime"]
    if "stalls" in picture:
        over = {(stall["pool"], stall["queue"]): bool(stall["over"]) for stall in picture["stalls"]}
        numbers["stalls"] = sum(not each for each in over.values())
    for key in ("used", "limit"):
        if (picture.get("memory") or {}).get(key) is not None:
            numbers[f"memory_{key}"] = float(picture["memory"][key])
    return numbers


def pictures(runtime: cmwq.Runtime | None, picture: Callable[[], Picture] | None) -> Callable[[], Picture]:
    """Who takes the pictures. Raises TypeError if both are given."""
    if picture is not None:
        if runtime is not None:
            raise TypeError("give a runtime, or a function that takes pictures, but not both")
        return picture
    return lambda: (cmwq.default_runtime() if runtime is None else runtime).snapshot().to_dict()
