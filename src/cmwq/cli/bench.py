"""`cmwq bench`: cmwq against ThreadPoolExecutor at several sizes, on this machine and interpreter.

How it is fair: all pools are made and warmed before the clock starts. The contestants take turns, in an order that is
rotated each time. A figure is the median of its repeats. The size of a workload is a number of items, not a time, so
all do the same work. If the machine is so slow that time runs out, there are fewer repeats, and the table says so.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import platform
import statistics
import sys
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.util import find_spec

import cmwq
from cmwq.cli.output import Refusal, reason, say

REPEATS = 5
BUDGET = 45.0  # seconds for everything; a quarter of it with --quick
TEXT = bytes(range(256)) * 64


@dataclass(frozen=True)
class Workload:
    name: str
    items: int
    item: Callable[[], object]


@dataclass
class Result:
    """The seconds of each repeat, by contestant. "cmwq" is one of these."""

    workload: str
    items: int
    seconds: dict[str, list[float]]

    def median(self, contestant: str) -> float:
        return statistics.median(self.seconds[contestant])

    def best(self) -> str:
        """The fastest size of ThreadPoolExecutor."""
        return min((name for name in self.seconds if name != "cmwq"), key=self.median)

    def ratio(self) -> float:
        """How many times as fast as the best size cmwq is."""
        return self.median(self.best()) / self.median("cmwq")


def noop() -> None:
    pass


def sleep() -> None:
    time.sleep(0.005)


def native() -> None:
    hashlib.pbkdf2_hmac("sha256", b"cmwq", b"bench", 800)
    zlib.compress(TEXT)


def mixed() -> None:
    native()
    time.sleep(0.004)


def python() -> int:
    return sum(number * number for number in range(8000))


WORKLOADS = (
    Workload("no-op", 10_000, noop),
    Workload("sleep 5 ms", 300, sleep),
    Workload("native CPU", 600, native),
    Workload("CPU + sleep 4 ms", 300, mixed),
    Workload("pure Python", 600, python),
)


def run(options: argparse.Namespace) -> int:
    if options.svg is not None and find_spec("matplotlib") is None:
        raise Refusal("--svg needs matplotlib, which is not installed: pip install 'cmwq[bench]'")
    for path in filter(None, (options.json, options.svg)):
        _writable(path)
    results = measure(quick=options.quick)
    print_table(results)
    try:
        if options.json is not None:
            with open(options.json, "w", encoding="utf-8") as file:
                json.dump(as_dict(results), file, indent=2)
                file.write("\n")
        if options.svg is not None:
            draw(results, options.svg)
    except OSError as error:
        raise Refusal(reason(error)) from error
    return 0


def sizes() -> list[int]:
    """The sizes of ThreadPoolExecutor: 2, its default, 32, 128."""
    return sorted({2, min(32, (os.cpu_count() or 1) + 4), 32, 128})


def measure(quick: bool) -> list[Result]:
    budget = BUDGET / 4 if quick else BUDGET
    results = []
    with cmwq.Executor("cmwq bench") as ours:
        pools = {"cmwq": ours, **{str(size): ThreadPoolExecutor(size) for size in sizes()}}
        try:
            for workload in WORKLOADS:
                items = workload.items // 4 if quick else workload.items
                results.append(compare(workload, items, pools, budget / len(WORKLOADS)))
                if sys.stderr is not None and sys.stderr.isatty():
                    say(f"cmwq bench: {workload.name}: done")
        finally:
            for pool in pools.values():
                pool.shutdown()
    return results


def compare(workload: Workload, items: int, pools: dict[str, ThreadPoolExecutor], budget: float) -> Result:
    deadline = time.monotonic() + budget
    names = list(pools)
    result = Result(workload.name, items, {name: [] for name in names})
    for name in names:
        timed(pools[name], workload.item, max(items // 10, 5))
    for turn in range(REPEATS):
        if turn and time.monotonic() > deadline:
            break
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            result.seconds[name].append(timed(pools[name], workload.item, items))
    return result


def timed(pool: ThreadPoolExecutor, item: Callable[[], object], items: int) -> float:
    begun = time.perf_counter()
    for future in [pool.submit(item) for _ in range(items)]:
        future.result()
    return time.perf_counter() - begun


def geometric_mean(results: list[Result]) -> float:
    return math.exp(statistics.fmean(math.log(result.ratio()) for result in results))


def as_dict(results: list[Result]) -> dict[str, object]:
    seen = cmwq.snapshot()
    return {
        "python": sys.version,
        "machine": platform.platform(),
        "gil": seen.gil,
        "cpus": len(seen.cpus),
        "cpu_limit": seen.cpu_limit,
        "sensor": seen.sensor,
        "unit": "seconds",
        "results": [
            {**asdict(result), "best": result.best(), "best_over_cmwq": round(result.ratio(), 4)} for result in results
        ],
        "geometric_mean": round(geometric_mean(results), 4),
    }


def rows(results: list[Result]) -> list[list[str]]:
    """The rows of the table, the headings first."""
    swept = [name for name in results[0].seconds if name != "cmwq"]
    table = [["workload", "items", "cmwq", *(f"TPE {size}" for size in swept), "best", "best/cmwq"]]
    for result in results:
        times = [f"{result.median(name) * 1000:.1f}" for name in ("cmwq", *swept)]
        table.append([result.workload, str(result.items), *times, result.best(), f"{result.ratio():.2f}"])
    return table


def turns(results: list[Result]) -> str:
    """Of how many turns the figures are the medians, in words."""
    counts = {len(times) for result in results for times in result.seconds.values()}
    least, most = min(counts), max(counts)
    if least == REPEATS:
        return f"{REPEATS} turns"
    return f"{least}{f' to {most}' if most > least else ''} turns, not {REPEATS}, because time ran out"


def print_table(results: list[Result]) -> None:
    heads, *body = rows(results)
    seen = cmwq.snapshot()
    title = (
        f"cmwq and ThreadPoolExecutor (TPE) by size: milliseconds, medians of {turns(results)}. "
        f"Python {platform.python_version()}, GIL {'on' if seen.gil else 'off'}, {seen.cpu_limit} CPUs, {seen.sensor}"
    )
    print(title)
    if not (sys.stdout.isatty() and _print_rich(heads, body)):
        _print_plain([heads, *body])
    print(f"geometric mean of best/cmwq: {geometric_mean(results):.2f} (over 1: cmwq is faster than the best size)")


def _print_plain(table: list[list[str]]) -> None:
    first, *others = (max(map(len, column)) for column in zip(*table, strict=True))
    for name, *cells in table:
        print("  ".join([f"{name:<{first}}", *(f"{c:>{w}}" for c, w in zip(cells, others, strict=True))]))


def _print_rich(heads: list[str], body: list[list[str]]) -> bool:
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        return False
    table = Table()
    for number, head in enumerate(heads):
        table.add_column(head, justify="right" if number else "left")
    for row in body:
        table.add_row(*row)
    Console().print(table)
    return True


def draw(results: list[Result], path: str) -> None:
    """Draw bars: the time of each contestant relative to the best size, by workload."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    names = list(results[0].seconds)
    figure, axes = pyplot.subplots(figsize=(10, 5))
    width = 0.8 / len(names)
    for position, name in enumerate(names):
        heights = [result.median(name) / result.median(result.best()) for result in results]
        places = [workload + position * width for workload in range(len(results))]
        axes.bar(places, heights, width, label="cmwq" if name == "cmwq" else f"ThreadPoolExecutor({name})")
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_yscale("log")
    axes.set_xticks([workload + 0.4 - width / 2 for workload in range(len(results))])
    axes.set_xticklabels([result.workload for result in results])
    axes.set_ylabel("time, relative to the best size (lower is better)")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, format="svg")
    pyplot.close(figure)


def _writable(path: str) -> None:
    """Refuse a file that cannot be written, before a minute is spent on measuring."""
    try:
        open(path, "ab").close()
    except OSError as error:
        raise Refusal(reason(error)) from error
