"""Fine-grained works: how small a work pays, and how quiet a flood of them is, beside `ThreadPoolExecutor`.

What handing one over costs is in `dispatch`. *Grain* is the smallest work at which the pool is 1.8 times as fast as a
plain loop on one core; without a GIL, since with one two cores never are. Two plain threads that are handed nothing
show what the machine has to give.
"""

from __future__ import annotations

import resource
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from itertools import pairwise
from typing import Any

from dispatch import flood
from measure import CPUS, FREE_THREADED, Report, medians, seconds

import cmwq

SPEEDUP = 1.8
SIZES = (1, 2, 3, 5, 7, 10, 15, 20, 30, 40, 60, 80, 120, 160, 240, 320, 640)
"""Microseconds of a work."""
NR_STEPS = 100_000
ENOUGH = 0.15
"""Seconds of work in one measurement of a grain."""


def fine(report: Report, quick: bool) -> None:
    report.heading("Fine-grained works: switches in a flood, grain")
    rounds, number = (3, 2_000) if quick else (5, 20_000)
    with ExitStack() as stack:
        ours = stack.enter_context(cmwq.Executor())
        theirs = {n: stack.enter_context(ThreadPoolExecutor(n)) for n in (CPUS, 32)}
        switching(report, ours, theirs, number, rounds)
        if FREE_THREADED:
            grains(report, ours, theirs[CPUS], 3)


def switching(report: Report, ours: Executor, theirs: dict[int, ThreadPoolExecutor], n: int, rounds: int) -> None:
    """Context switches of the whole process in a flood, for each 1,000 works."""

    def switches(pool: Executor) -> float:
        before = resource.getrusage(resource.RUSAGE_SELF)
        flood(pool, n)
        after = resource.getrusage(resource.RUSAGE_SELF)
        return (after.ru_nvcsw + after.ru_nivcsw - before.ru_nvcsw - before.ru_nivcsw) / n * 1000

    pools: dict[str, Executor] = {"cmwq": ours, **{str(number): pool for number, pool in theirs.items()}}
    counted = medians({name: partial(switches, pool) for name, pool in pools.items()}, rounds, "switches")
    note = "per 1,000 works: " + ", ".join(f"{name} {count:.1f}" for name, count in counted.items())
    for number, target in ((32, 0.1), (CPUS, 3.0)):
        report.add(f"fine.switches.{number}", f"context switches in a flood, of ThreadPoolExecutor({number})'s",
                   counted["cmwq"] / max(counted[str(number)], 1e-9),
                   target=target, at_most=True, note=note)  # fmt: skip


def spin(steps: int) -> None:
    for _ in range(steps):
        pass


def grains(report: Report, ours: cmwq.Executor, theirs: ThreadPoolExecutor, rounds: int) -> None:
    per_step = min(seconds(partial(spin, NR_STEPS)) for _ in range(9)) / NR_STEPS

    def one_by_one(pool: Executor, steps: int, n: int) -> None:
        futures = [pool.submit(spin, steps) for _ in range(n)]
        for future in futures:
            future.result()

    def through_map(pool: Any, steps: int, n: int) -> None:
        deque(pool.map(spin, [steps] * n), 0)

    def in_threads(steps: int, n: int) -> None:
        def share() -> None:
            for _ in range(n // CPUS):
                spin(steps)

        threads = [threading.Thread(target=share) for _ in range(CPUS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    ways: dict[str, tuple[str, Callable[[int, int], None], float | None]] = {
        "submit": ("submitted one by one", partial(one_by_one, ours), 40.0),
        "map": ("through map", partial(through_map, ours), 10.0),
        "theirs": (f"submitted to ThreadPoolExecutor({CPUS})", partial(one_by_one, theirs), None),
        "threads": (f"handed to nobody: {CPUS} plain threads, an equal share of the works each", in_threads, None),
    }
    for name, (title, way, target) in ways.items():
        grain, tried = _grain(way, per_step, rounds)
        report.add(f"fine.grain.{name}", f"smallest work at which {CPUS} cores are {SPEEDUP} times one, {title}",
                   grain, "us", target=target, at_most=True, note=tried)  # fmt: skip


def _grain(way: Callable[[int, int], None], per_step: float, rounds: int) -> tuple[float | None, str]:
    """The smallest size at which it is fast enough, and at the next larger one, too; and what was found, in words."""
    found: list[tuple[float, float]] = []
    for size in SIZES:
        steps, number = max(1, round(size * 1e-6 / per_step)), int(ENOUGH / (size * 1e-6))

        def plainly(steps: int = steps, number: int = number) -> None:
            for _ in range(number):
                spin(steps)

        took = medians(
            {"plain": partial(seconds, plainly), "pool": partial(seconds, partial(way, steps, number))},
            rounds, f"grain {size}",
        )  # fmt: skip
        found.append((size, took["plain"] / took["pool"]))
        if len(found) > 1 and min(found[-1][1], found[-2][1]) >= SPEEDUP:
            break
    words = ", ".join(f"{size:g} us {speedup:.2f}" for size, speedup in found)
    enough = [size for (size, speedup), (_, after) in pairwise(found) if min(speedup, after) >= SPEEDUP]
    return (enough[0] if enough else None), f"speed-up by size: {words}"


if __name__ == "__main__":
    began = time.perf_counter()
    fine(Report(), quick=False)
    print(f"{time.perf_counter() - began:.0f} s")
