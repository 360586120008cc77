"""cmwq against ThreadPoolExecutor tuned by hand: every workload, every size, in one process.

Its one job: for each workload find the best ThreadPoolExecutor size, and compare; and find the one size that is best
for all workloads together, and compare with that. How: (1) one screening round of every size on every workload; (2) for
each workload one round of cmwq in which the threads that ran items are counted, then the best 3 sizes, those that may
be the best single one, and cmwq take turns, in a new random (seeded) order each round; medians. Pools are made once per
workload and kept, so neither side pays for starting threads in the rounds that count. A ratio is ThreadPoolExecutor
time / cmwq time: above 1, cmwq was faster than the best number anyone could have chosen.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import json
import math
import os
import platform
import random
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

from measure import need_charts
from workloads import WORKLOADS, Run, Workload

FINALISTS = 3
SINGLES = 2  # sizes that may be the best one for all workloads together
QUIET = 0.05  # share of the machine's CPUs that other processes may use before the figures are doubtful
HANG = 120.0  # seconds one workload may take before all stacks are printed and the suite gives up


@dataclass
class Samples:
    """One contender on one workload."""

    name: str
    seconds: list[float] = field(default_factory=list)
    switches: list[int] = field(default_factory=list)
    threads: int = 0

    @property
    def time(self) -> float:
        return median(self.seconds)


@dataclass
class Comparison:
    workload: str
    summary: str
    items: int
    screening: dict[int, float]
    finalists: dict[int, Samples]
    cmwq: Samples

    best_sizes: tuple[int, ...]

    @property
    def best(self) -> int:
        """Among those that were the best when screened: the others are here for the sake of all workloads."""
        return min(self.best_sizes, key=lambda size: self.finalists[size].time)

    @property
    def ratio(self) -> float:
        return self.ratio_of(self.best)

    def ratio_of(self, size: int) -> float:
        return self.finalists[size].time / self.cmwq.time

    def to_dict(self) -> dict[str, Any]:
        best = self.finalists[self.best]
        return asdict(self) | {
            "best_size": self.best,
            "best_seconds": best.time,
            "cmwq_seconds": self.cmwq.time,
            "ratio": self.ratio,
        }


@dataclass
class Suite:
    comparisons: list[Comparison] = field(default_factory=list)

    @property
    def mean(self) -> float:
        return geometric_mean([c.ratio for c in self.comparisons])

    @property
    def worst(self) -> Comparison:
        return min(self.comparisons, key=lambda c: c.ratio)

    def single(self, *, all_workloads: bool) -> tuple[int, float] | None:
        """The one size that is best for everything, and the geometric mean of the ratios to it.

        Of all workloads, only sizes count that finish every one; without `all_workloads`, those are left out that hang
        with some size. None: no such size was measured.
        """
        which = [c for c in self.comparisons if all_workloads or len(c.screening) > 1]
        if not which:
            return None
        common = set.intersection(*(set(c.finalists) for c in which))
        means = {size: geometric_mean([c.ratio_of(size) for c in which]) for size in common}
        best = min(means, key=means.__getitem__, default=None)
        return None if best is None else (best, means[best])

    def to_dict(self) -> dict[str, Any]:
        singles = {"all": self.single(all_workloads=True), "without_hangs": self.single(all_workloads=False)}
        return {
            "geometric_mean": self.mean,
            "single": {key: found and {"size": found[0], "ratio": found[1]} for key, found in singles.items()},
            "workloads": [c.to_dict() for c in self.comparisons],
        }


class Census(Executor):
    """Counts the threads that run items. Used in an extra round only: it costs a little for each item."""

    def __init__(self, pool: Executor) -> None:
        self.pool, self.threads = pool, set[int]()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        def counted() -> Any:
            self.threads.add(threading.get_ident())
            return fn(*args, **kwargs)

        return self.pool.submit(counted)


def measure(run: Run, pool: Executor, samples: Samples) -> None:
    gc.collect()
    before = resource.getrusage(resource.RUSAGE_SELF)
    samples.seconds.append(run(pool))
    after = resource.getrusage(resource.RUSAGE_SELF)
    samples.switches.append(after.ru_nvcsw + after.ru_nivcsw - before.ru_nvcsw - before.ru_nivcsw)


@contextmanager
def watched() -> Iterator[None]:
    faulthandler.dump_traceback_later(HANG, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def screen(workload: Workload, quick: bool) -> dict[int, float]:
    """One round of every size, threads to be started included."""
    seconds = {}
    with watched(), workload.load(quick=quick) as run:
        for size in workload.sizes:
            with ThreadPoolExecutor(size) as pool:
                gc.collect()
                seconds[size] = run(pool)
    return seconds


def single_sizes(screenings: Iterable[dict[int, float]]) -> set[int]:
    """The sizes that may be the best single one: for the workloads that any size finishes, and for all."""
    screened = list(screenings)
    several = [seconds for seconds in screened if len(seconds) > 1]
    found = set.intersection(*map(set, screened))
    if several:
        means = {
            size: geometric_mean([seconds[size] / min(seconds.values()) for seconds in several]) for size in several[0]
        }
        found = {min(found, key=lambda size: means.get(size, 0.0))} if found else set()
        found |= set(sorted(means, key=means.__getitem__)[:SINGLES])
    return found


def compare(
    workload: Workload,
    screening: dict[int, float],
    singles: set[int],
    contender: Callable[[], Executor],
    rounds: int,
    quick: bool,
) -> Comparison:
    best = tuple(sorted(screening, key=screening.__getitem__)[:FINALISTS])
    pools = {size: ThreadPoolExecutor(size) for size in sorted({*best, *singles}.intersection(screening))}
    rng = random.Random(workload.name)
    try:
        with watched(), workload.load(quick=quick) as run, contender() as pool:
            for tpe in pools.values():
                run(tpe)  # starts its threads
            census = Census(pool)
            run(census)

            cmwq = Samples("cmwq", threads=len(census.threads))
            finalists = {size: Samples(f"ThreadPoolExecutor({size})") for size in pools}
            turns: list[tuple[Executor, Samples]] = [(pools[size], finalists[size]) for size in pools]
            turns.append((pool, cmwq))
            for _ in range(rounds):
                rng.shuffle(turns)
                for executor, samples in turns:
                    measure(run, executor, samples)
            for size, tpe in pools.items():
                finalists[size].threads = len(tpe._threads)
    finally:
        for tpe in pools.values():
            tpe.shutdown(cancel_futures=True)
    items = max(1, workload.items // 5) if quick else workload.items
    return Comparison(workload.name, workload.summary, items, screening, finalists, cmwq, best)


def run_suite(names: Iterable[str], contender: Callable[[], Executor], rounds: int, quick: bool) -> Suite:
    """All of it, printed row by row."""
    suite = Suite()
    screenings = {}
    for name in names:
        print(f"screening {name} ...", end="\r" if sys.stdout.isatty() else "\n", flush=True)
        screenings[name] = screen(WORKLOADS[name], quick)
    singles = single_sizes(screenings.values())
    print(HEADER + "\n" + "-" * len(HEADER), flush=True)
    for name, screening in screenings.items():
        suite.comparisons.append(compare(WORKLOADS[name], screening, singles, contender, rounds, quick))
        print(row(suite.comparisons[-1]), flush=True)
    print("-" * len(HEADER))
    print(f"geometric mean of the ratios {suite.mean:.3f}, lowest {suite.worst.ratio:.3f} ({suite.worst.workload})")
    for found, which in (
        (suite.single(all_workloads=True), "that finishes them all"),
        (suite.single(all_workloads=False), "but for those that hang with some size"),
    ):
        if found is not None:
            size, mean = found
            print(f"against the best single size for all workloads {which}, {size}: geometric mean {mean:.3f}")
    return suite


def contender_named(text: str) -> Callable[[], Executor]:
    """`cmwq`, or `threads:N` to see what the suite says of a fixed pool (`nested` deadlocks below 201 threads)."""
    if text == "cmwq":
        try:
            import cmwq
        except ImportError as error:
            raise argparse.ArgumentTypeError(f"cannot import cmwq: {error}") from None
        return lambda: cmwq.Executor()
    kind, _, number = text.partition(":")
    if kind != "threads" or not number.isdecimal() or not int(number):
        raise argparse.ArgumentTypeError(f"{text!r} is neither 'cmwq' nor 'threads:N'")
    return lambda: ThreadPoolExecutor(int(number))


def machine_busy() -> float:
    """CPU seconds used by anybody since boot; 0 where the system doesn't say."""
    try:
        with open("/proc/stat") as stat:
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, stat.readline().split()[1:9])
    except (OSError, ValueError):
        return 0.0
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def own_busy() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


class Load:
    """How busy others kept the machine since this was made."""

    def __init__(self) -> None:
        self.began, self.busy, self.own = time.monotonic(), machine_busy(), own_busy()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    @property
    def others(self) -> float:
        """Their share of all CPUs. Of this process's children, those count as others that have not ended yet."""
        theirs = machine_busy() - self.busy - (own_busy() - self.own)
        return max(0.0, theirs) / self.seconds / (os.cpu_count() or 1)

    def __str__(self) -> str:
        return f"{self.seconds:.0f} s in all; others used {self.others:.0%} of the CPUs"


def machine() -> dict[str, Any]:
    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "gil": getattr(sys, "_is_gil_enabled", lambda: True)(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    if "cmwq" in sys.modules:
        snapshot = sys.modules["cmwq"].snapshot()
        facts |= {"sensor": snapshot.sensor, "sensor_reason": snapshot.sensor_reason}
    return facts


HEADER = f"{'workload':<14} {'items':>6} | {'best N':>6} {'ms':>7} {'thr':>4} {'switches':>8} | " + (
    f"{'cmwq ms':>7} {'thr':>4} {'switches':>8} | {'ratio':>6}"
)


def row(c: Comparison) -> str:
    best = c.finalists[c.best]
    return (
        f"{c.workload:<14} {c.items:>6} | {c.best:>6} {best.time * 1e3:>7.1f} {best.threads:>4} "
        f"{median(best.switches):>8.0f} | {c.cmwq.time * 1e3:>7.1f} {c.cmwq.threads:>4} "
        f"{median(c.cmwq.switches):>8.0f} | {c.ratio:>6.3f}"
    )


def draw(comparisons: list[Comparison], path: Path) -> None:
    """Left: the ratio per workload. Right: what every fixed size costs, relative to cmwq."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(13, 0.42 * len(comparisons) + 2.2), layout="constrained")
    names = [c.workload for c in comparisons]
    bars = left.barh(names, [c.ratio for c in comparisons], color="#4477aa")
    labels = [f" {c.ratio:.2f} (N={c.best}, {c.cmwq.threads} threads here)" for c in comparisons]
    left.bar_label(bars, labels=labels, fontsize=8)
    left.axvline(1.0, color="black", linewidth=0.8)
    left.set_xlim(0, 1.6 * max(c.ratio for c in comparisons))
    left.invert_yaxis()
    left.set_title("best hand-tuned ThreadPoolExecutor time / cmwq time (higher: cmwq faster)", fontsize=9)
    for c in comparisons:
        right.plot(
            list(c.screening),
            [s / c.cmwq.time for s in c.screening.values()],
            marker=".",
            linewidth=1,
            label=c.workload,
        )
    right.axhline(1.0, color="black", linewidth=0.8)
    right.set_xscale("log", base=2)
    right.set_yscale("log")
    right.set_xlabel("ThreadPoolExecutor size N (screening round)")
    right.set_title("time of every fixed size / cmwq time (above 1: N was the wrong number)", fontsize=9)
    right.legend(fontsize=7, ncols=2)
    figure.savefig(path)
    pyplot.close(figure)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", action="append", choices=list(WORKLOADS), metavar="NAME", help=", ".join(WORKLOADS))
    parser.add_argument("--rounds", type=int, default=5, help="alternating rounds (default 5)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--chart", type=Path, metavar="FILE", help="svg or png, by its name (needs matplotlib)")
    parser.add_argument("--quick", action="store_true", help="a fifth of the items: a smoke test, not a measurement")
    parser.add_argument("--contender", type=contender_named, default="cmwq", metavar="cmwq|threads:N")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    if options.chart:
        if options.chart.suffix not in (".svg", ".png"):
            parser.error("--chart must end in .svg or .png")
        need_charts(parser)
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    with options.contender() as pool:
        pool.submit(int).result()  # starts the runtime: only then is it known which sensor serves
    load = Load()
    facts = machine()
    print(", ".join(f"{key} {value}" for key, value in facts.items()), flush=True)
    suite = run_suite(options.only or WORKLOADS, options.contender, options.rounds, options.quick)
    print(f"medians of {options.rounds} alternating rounds; {load}")
    if load.others > QUIET:
        print("warning: the machine was not quiet; repeat on a quieter one before believing small differences")
    if options.json:
        document = {
            "machine": facts,
            "rounds": options.rounds,
            "quick": options.quick,
            "others_cpu_share": load.others,
        }
        options.json.write_text(json.dumps(document | suite.to_dict(), indent=1) + "\n")
    if options.chart:
        draw(suite.comparisons, options.chart)
    return 0 if math.isfinite(suite.mean) else 1


if __name__ == "__main__":
    sys.exit(main())
