"""The core in the simulator, at up to 1,024 CPUs and 1,000,000 works: what does each of its decisions cost there?

One thing at a time is varied: CPUs, queues, works, blocked workers; with one pool for all CPUs, with a pool for each,
and with one for four. Each run is a flood, all works at once, and then a stream at half of what the CPUs can do. Works
burn a CPU, block, do both, wait for others, flush, are cancelled; threads take their time to start and to wake, and for
a while none can be had; CPUs leave and come back. Invariants are checked every so many steps.

Everything but the microseconds is the same in every run. Exit status 1 if a decision's cost is not flat.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from decisions import DECISIONS, Cost, Probe

import cmwq
from cmwq.testing import Simulation

MS = 1e-3
SPAWN, WAKE = 50e-6, 5e-6  # virtual seconds: until a thread exists; from an unpark until the sleeper runs
LEVELS = {
    "CPUs": (1, 16, 128, 1_024),
    "queues": (1, 16, 256),
    "works": (10_000, 100_000, 1_000_000),
    "blocked": (0, 4_096),
}
SCOPES = {"system": ("CPUs", "queues", "works", "blocked"), "cpu": ("CPUs", "queues", "works"), "cache": ("CPUs",)}
QUICK = {"CPUs": (1, 1_024), "queues": (1, 16, 64), "works": (2_000, 10_000, 20_000), "blocked": (0, 1_024)}
QUICK_SCOPES = {"system": ("CPUs", "queues", "works", "blocked"), "cpu": ("CPUs",), "cache": ("CPUs",)}
BASE = {"CPUs": -1, "queues": 1, "works": 1, "blocked": 0}  # which of them, where another is varied
FLAT = {"us": 3.5, "lines": 4.0, "rounds": 1.25}
"""A cost is flat if at the last point it is no more than so many times that at the first. Time: caches are colder.
Lines: other branches are taken. Rounds, how often a call executed the line that it executed most: no loop may grow."""
LEAST = {"us": 0.5, "lines": 0.0, "rounds": 3.0}
"""What is less is taken for so much: so short a time can't be told from none, and so short a loop is none."""
OFTEN = 0.02
"""Calls a work. The time of what is rarer is not judged: its caches are cold, the colder the more CPUs there are."""
FLAT_IN_ALL = 2.0
"""The same for the lines of all that a work needs: how often it needs a worker to be woken or made depends."""
SAMPLES = 4_000  # of each decision that every work needs, about
ENOUGH = {"us": 20, "lines": 5, "rounds": 5}  # samples, for a figure
SETTLED = 50
"""Works per CPU: then most of a flood is after its workers were made. With fewer a time is not judged: most calls, of
`kick` above all, find nothing to do yet, and cost a quarter."""


class Point(NamedTuple):
    scope: str
    cpus: int
    queues: int
    works: int
    blocked: int  # works besides, each of which holds a worker all the time


class Result(NamedTuple):
    point: Point
    costs: dict[str, Cost]
    works: int  # that ran
    rate: float  # works per virtual second, of the flood
    share: float  # of what so many CPUs can do at best
    steady: float | None  # the same, when all workers were there; None: the flood was over too soon
    virtual: float  # seconds in all
    real: float
    threads: int
    wakeups: int
    refused: int
    rescued: int

    def to_dict(self) -> dict[str, Any]:
        figures = self._asdict() | {"point": self.point._asdict()}
        figures["costs"] = {name: cost.to_dict() for name, cost in self.costs.items()}
        return figures


class Load:
    """What is done in one run. Each work burns 1 ms of CPU in all."""

    def __init__(self, sim: Simulation, runtime: cmwq.Runtime, point: Point) -> None:
        self.sim = sim
        self.runtime = runtime
        self.point = point
        self.done = 0
        active = max(4, 4 * point.cpus // point.queues) if point.scope == "system" else 4
        self.queues = [
            cmwq.WorkQueue(f"q{n}", scope=point.scope, max_active=active, rescuer=not n, runtime=runtime)
            for n in range(point.queues)
        ]
        self.flushers = cmwq.WorkQueue("flushers", runtime=runtime)
        self.blocked = cmwq.WorkQueue("blocked", max_active=10**6, runtime=runtime)
        # In a flood what a work waits for would come last, and workers pile up: only those of the stream wait.
        self.kinds: list[Callable[[], None]] = [self.burn, self.both, self.burn, self.late, self.burn]
        self.queued = 0
        self.times: list[float] = []  # when so many had begun, for each thousandth of the flood
        self.thousandth = max(1, point.works * 3 // 4_000)

    def burn(self) -> None:
        self.count()
        self.sim.burn(MS)

    def both(self) -> None:
        self.count()
        self.sim.burn(MS / 2)
        self.sim.sleep(2 * MS)
        self.sim.burn(MS / 2)

    def late(self) -> None:
        self.count()
        self.sim.sleep(MS)
        self.sim.burn(MS)

    def parent(self) -> None:
        self.count()
        child = self.queues[self.done % len(self.queues)].submit(self.burn)
        self.sim.burn(MS)
        child.result()

    def count(self) -> None:
        self.done += 1
        if self.done % self.thousandth == 0:
            self.times.append(self.sim.host.now)
        self.sim.host.me().nr_works += 1  # type: ignore[attr-defined]

    def queue(self, works: int) -> None:
        """So many, round robin."""
        for n in range(self.queued, self.queued + works):
            fn, queue = self.kinds[n % len(self.kinds)], self.queues[n % len(self.queues)]
            self.sim.host.here = n % self.point.cpus
            if n % 8:
                queue.submit(fn)
            else:
                queue.queue(cmwq.Work(fn))
            if n % 64 == 63:
                queue.submit(fn).cancel()
        self.queued += works

    def flush(self) -> None:
        for queue in (*self.queues, self.flushers):
            queue.flush()

    def flood(self) -> tuple[float, float]:
        """All at once. Returns the seconds that all took, and those that 4 of 10 took when it was in full flow."""
        host = self.sim.host
        for _ in range(self.point.blocked):
            self.blocked.submit(self.sim.sleep, 10.0)
        host.sleep(1.0 * bool(self.point.blocked))
        begin = host.now
        self.queue(self.point.works * 3 // 4)
        host.refuse_during((host.now + MS, host.now + 6 * MS))
        self.flush()
        return host.now - begin, self.times[900] - self.times[500]

    def stream(self) -> None:
        """The others, in bursts: as many at a time as keep half of the CPUs busy."""
        cpus = self.point.cpus
        self.kinds += [self.parent, self.both, self.late, self.burn, self.burn, self.both]
        burst = max(1, cpus // 2)
        flush_every = 64 if self.point.scope == "system" else max(64, cpus)
        flushed = self.queued // flush_every
        ended: list[bool] = []
        self.sim.host.refuse_during()
        plugging = self.sim.host.spawn("plugging", partial(self.plug, ended))
        while self.queued < self.point.works:
            self.queue(min(burst, self.point.works - self.queued))
            if self.queued // flush_every > flushed:
                flushed = self.queued // flush_every
                self.flushers.submit(self.queues[flushed % len(self.queues)].flush)
            self.sim.sleep(MS * burst * 2 / cpus)
        ended.append(True)
        plugging.join()
        self.flush()

    def plug(self, ended: list[bool]) -> None:
        """A quarter of the CPUs is taken away and brought back, again and again."""
        host, cpus = self.sim.host, self.point.cpus
        while not ended:
            for there in (cpus - cpus // 4, cpus):
                self.sim.sleep(5 * MS)
                host.set_cpus(range(there))
                self.runtime.check_cpus()


def run(point: Point) -> Result:
    gc.collect()
    sim = Simulation(cpus=point.cpus, marks=True)
    host = sim.host
    host.spawn_cost, host.wake_cost = SPAWN, WAKE
    config = cmwq.Config(
        idle_worker_timeout=100 * MS, create_cooldown=5 * MS, mayday_initial_timeout=MS, mayday_interval=MS
    )
    probe = Probe(host, stride=next(n for n in (1, 3, 7, 13, 31, 61, 127, 251) if n * SAMPLES >= point.works))

    def main() -> tuple[Load, tuple[float, float], list[Any]]:
        runtime = sim.runtime(max_workers=16_384, config=config, check_every=5 * point.works, watchdog=True)
        load = Load(sim, runtime, point)
        flood = load.flood()
        load.stream()
        runtime.close()
        return load, flood, list(runtime._pools.values())

    with probe.wrapping():
        begin = time.perf_counter()
        load, (whole, part), pools = sim.run(main)
        real = time.perf_counter() - begin
    best = point.cpus / MS
    return Result(
        point=point,
        costs=probe.costs,
        works=load.done,
        rate=point.works * 0.75 / whole,
        share=point.works * 0.75 / whole / best,
        steady=400 * load.thousandth / part / best if point.works >= SETTLED * point.cpus else None,
        virtual=host.now,
        real=real,
        threads=sum(pool.stats.created for pool in pools),
        wakeups=sum(pool.nr_wakeups for pool in pools),
        refused=sum(pool.office.nr_refused for pool in pools),
        rescued=sum(queue.nr_rescued for queue in load.queues),
    )


# --------------------------------------------------------------------------------------------------- reports

HEAD = (
    "                                        | works/s, of what CPUs can do |   threads    by wake-ups |        us\n"
    "scope    CPUs queues     works  blocked | flood    in all   full flow | made refused resc. a work | real s a work"
)


def line_of(result: Result) -> str:
    point, works = result.point, result.works
    steady = "-" if result.steady is None else f"{result.steady:.0%}"
    return (
        f"{point.scope:6} {point.cpus:6,} {point.queues:6} {works:9,} {point.blocked:8,} |"
        f" {result.rate:9,.0f} {result.share:6.0%} {steady:>11} |"
        f" {result.threads:6,} {result.refused:6} {result.rescued:5} {result.wakeups / works:5.2f} |"
        f" {result.real:6.1f} {result.real / works * 1e6:6.1f}"
    )


def report(title: str, results: Sequence[Result]) -> list[str]:
    """Print how each decision's cost grows along these, and return what is not flat."""
    wrong = []
    forms = {"us": ".2f", "lines": ".1f", "rounds": ".1f"}
    width = 8 * len(results) - 1
    heads = "   ".join(f"{name:>{width}}" for name in (*forms, "calls a work"))
    print(f"\n{title}\n{'':12} {heads}   times: us, lines, rounds")
    for decision in DECISIONS:
        costs = [result.costs.get(decision.name) or Cost() for result in results]
        calls = [cost.calls / result.works for cost, result in zip(costs, results, strict=True)]
        if not any(calls):
            continue
        figures = {
            name: [cost.mean(name) if cost.samples(name) >= ENOUGH[name] else None for cost in costs] for name in forms
        }
        growth = {name: growth_of(figures[name], LEAST[name]) for name in forms}
        settled = [us if result.steady else None for us, result in zip(figures["us"], results, strict=True)]
        growth["us"] = growth_of(settled, LEAST["us"])
        if decision.each is not None:
            growth["lines"] = None  # a loop of more rounds has more lines to each of them; rounds tell
        judged = [name for name in forms if name != "us" or calls[-1] >= OFTEN]
        faults = [name for name in judged if (growth[name] or 0) > FLAT[name]]
        cells = "   ".join(row(figures[name], form) for name, form in forms.items())
        times = row(growth.values(), ".2f", 5)
        print(f"{decision.name:12} {cells}   {row(calls, '.3f')}   {times}{'  NOT FLAT' if faults else ''}")
        wrong += [f"{decision.name}, {name}: {title}" for name in faults]
    in_all = [lines_in_all(result) for result in results]
    growth_in_all = growth_of(in_all, 0) or 0
    print(f"{'a work in all':{width + 13}}   {row(in_all, '.1f')} {growth_in_all:{2 * width + 18}.2f}")
    if growth_in_all > FLAT_IN_ALL:
        wrong.append(f"a work in all, lines: {title}")
    return wrong


def lines_in_all(result: Result) -> float:
    """Lines of these decisions for a work, without what is done once in a while."""
    lines = 0.0
    for decision in DECISIONS:
        cost = result.costs.get(decision.name) or Cost()
        if decision.each is None and decision.stride != 1:
            times = 1.0 if decision.through is not None else cost.calls / result.works
            lines += times * (cost.mean("lines") or 0.0)
    return lines


def growth_of(figures: Iterable[float | None], least: float) -> float | None:
    """The last to the first of those that are there."""
    there = [max(figure, least) for figure in figures if figure is not None]
    return there[-1] / there[0] if len(there) > 1 and there[0] else None


def row(figures: Iterable[float | None], form: str, width: int = 7) -> str:
    return " ".join(f"{'-' if figure is None else format(figure, form):>{width}}" for figure in figures)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="smaller points: 15 s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="all figures")
    options = parser.parse_args()
    levels = QUICK if options.quick else LEVELS
    base = {axis: values[BASE[axis]] for axis, values in levels.items()}
    with suppress(AttributeError, OSError):  # one thread runs at a time: to hand over is cheapest on one CPU
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    logging.getLogger("cmwq").setLevel(logging.ERROR)  # that threads are refused is part of it
    threading.stack_size(256 * 1024)
    gc.disable()

    results: dict[Point, Result] = {}

    def measured(point: Point) -> Result:
        if point not in results:
            results[point] = run(point)
            print(line_of(results[point]), flush=True)
        return results[point]

    axes = []
    print(HEAD)
    for scope, varied in (QUICK_SCOPES if options.quick else SCOPES).items():
        for axis in varied:
            values = levels[axis]
            points = [Point(scope, *(base | {axis: value}).values()) for value in values]
            fixed = ", ".join(f"{value:,} {name}" for name, value in base.items() if name != axis and value)
            title = f"scope {scope}: {axis} {', '.join(format(value, ',') for value in values)} ({fixed})"
            axes.append((title, [measured(point) for point in points]))
    wrong = [fault for title, along in axes for fault in report(title, along)]
    if options.json:
        options.json.write_text(json.dumps([result.to_dict() for result in results.values()], indent=1))
    print(f"\nflat: {'every decision' if not wrong else 'all but these'}")
    for fault in wrong:
        print("NOT FLAT:", fault)
    return bool(wrong)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        sys.exit(main())
    sys.exit(130)
