"""Short works beside long computations (A9): how long do the short ones wait, and what does that cost the long ones?

Some native computations of about `--long` seconds each, which release the GIL, are submitted at once. From then on a
short work is submitted every few milliseconds until the last long one has ended. Measured are what the short ones wait,
from `submit` to their beginning, the time until all long ones have ended, and the context switches of the process.
With `--python` the long ones are loops in Python, which hold the GIL for a switch interval at a time.

Each executor has its turn in each round, and each figure is the median of the rounds. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import cmwq

PERIOD = 5e-3
"""Seconds between two short works."""


class Figures(NamedTuple):
    p50: float
    """Milliseconds that half of the short works waited at most."""
    p99: float
    total: float
    """Seconds until the last long work had ended."""
    switches: float
    """Context switches of all threads."""


def calibrated(seconds: float) -> Callable[[], object]:
    """A native computation that takes about so many seconds of CPU, and releases the GIL."""
    probe = 200_000
    began = time.perf_counter()
    hashlib.pbkdf2_hmac("sha256", b"password", b"salt", probe)
    rounds = int(probe * seconds / (time.perf_counter() - began))
    return lambda: hashlib.pbkdf2_hmac("sha256", b"password", b"salt", rounds)


def in_python(seconds: float) -> Callable[[], object]:
    """A loop in Python that uses so many seconds of CPU."""

    def loop() -> None:
        end = time.thread_time() + seconds
        while time.thread_time() < end:
            sum(range(1000))

    return loop


def switches() -> int:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_nvcsw + usage.ru_nivcsw


def measure(executor: Executor, long: Callable[[], object], number: int) -> Figures:
    executor.submit(int).result()
    waits: list[float] = []

    def short(submitted: float) -> None:
        waits.append(time.perf_counter() - submitted)

    before, began = switches(), time.perf_counter()
    longs = [executor.submit(long) for _ in range(number)]
    shorts: list[Future[None]] = []
    while not all(future.done() for future in longs):
        shorts.append(executor.submit(short, time.perf_counter()))
        time.sleep(PERIOD)
    total = time.perf_counter() - began
    for future in shorts:
        future.result()
    waits.sort()
    return Figures(
        waits[len(waits) // 2] * 1e3,
        waits[min(len(waits) - 1, len(waits) * 99 // 100)] * 1e3,
        total,
        switches() - before,
    )


def executors(sizes: list[int]) -> dict[str, Callable[[], Executor]]:
    made: dict[str, Callable[[], Executor]] = {"cmwq": cmwq.Executor}
    for size in sizes:
        made[f"ThreadPoolExecutor({size})"] = lambda size=size: ThreadPoolExecutor(size)  # type: ignore[misc]
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--long", type=float, default=0.2, help="seconds of a long work (%(default)s)")
    parser.add_argument("--numbers", type=int, nargs="+", default=[2, 4, 16, 64], help="how many long works")
    parser.add_argument("--sizes", type=int, nargs="*", default=[2, 6, 32, 128], help="of ThreadPoolExecutor")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--python", action="store_true", help="long works in Python")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    long = in_python(args.long) if args.python else calibrated(args.long)
    made = executors(args.sizes)
    found: dict[int, dict[str, Figures]] = {}
    gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    print(f"Python {platform.python_version()}{'' if gil else ' without a GIL'}, {os.cpu_count()} CPUs, ", end="")
    print(f"long works of {args.long:g} s {'in Python' if args.python else 'in C'}, medians of {args.rounds} rounds\n")
    print("| long works | executor | p50 ms | p99 ms | total s | switches |\n|---|---|---|---|---|---|")
    for number in args.numbers:
        rounds: dict[str, list[Figures]] = {name: [] for name in made}
        for _ in range(args.rounds):
            for name, make in made.items():
                with make() as executor:
                    rounds[name].append(measure(executor, long, number))
        found[number] = {
            name: Figures(*map(statistics.median, zip(*figures, strict=True))) for name, figures in rounds.items()
        }
        for name, figures in found[number].items():
            print(f"| {number} | {name} | {figures.p50:.2f} | {figures.p99:.1f} | {figures.total:.2f} ", end="")
            print(f"| {figures.switches:,.0f} |", flush=True)
    if args.json:
        args.json.write_text(json.dumps({n: {k: f._asdict() for k, f in row.items()} for n, row in found.items()}))


if __name__ == "__main__":
    main()
