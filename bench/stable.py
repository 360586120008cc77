"""Where fixed pools and naive ones go wrong: contended locks, long works beside short ones, cores without a GIL."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from statistics import median

from measure import CPUS, FREE_THREADED, Report, medians, percentile, turns
from workloads import WORKLOADS, Item, in_turn, native, pure, time_all

import cmwq


def stable(report: Report, quick: bool) -> None:
    report.heading("Stable: locks, long works beside short ones")
    lock_peak(report, quick)
    for longs in (CPUS, 2 * CPUS):
        for kind, part in (("native", native), ("pure", pure)):
            beside_long(
                report, f"{kind}.{longs // CPUS}", f"short works beside {longs} long {kind} ones", part, longs, quick
            )


def lock_peak(report: Report, quick: bool) -> None:
    """How many workers a pool comes to have for the work that needs the fewest."""
    peaks = []
    with WORKLOADS["locks"].load(quick=quick) as run:
        for _ in range(2 if quick else 5):
            with cmwq.Runtime() as runtime:
                with cmwq.Executor(runtime=runtime) as pool:
                    for _ in range(1 if quick else 3):
                        run(pool)
                peaks.append(max(pool.peak_workers for pool in runtime.snapshot().pools))
    report.add(
        "stable.locks.workers", "the locks workload: most workers there ever were", median(peaks), "",
        target=4.0 * CPUS, at_most=True, note=f"on {len(peaks)} fresh pools: {', '.join(map(str, sorted(peaks)))}",
    )  # fmt: skip


def beside_long(report: Report, id: str, title: str, part: Callable[[float], Item], longs: int, quick: bool) -> None:
    """Long works arrive first; then a short one every 2 ms: how long does each wait to begin?"""
    length, shorts, pause = (0.2, 50, 0.002) if quick else (1.0, 500, 0.002)
    long, short = in_turn(part(0.001), times=int(length * 1000)), part(0.0001)
    tails: dict[str, list[float]] = {"cmwq": [], "stdlib": []}

    def once(name: str, make: Callable[[], Executor]) -> float:
        waits: list[float] = []

        def timed(submitted: float) -> None:
            waits.append(time.perf_counter() - submitted)
            short()

        with make() as pool:
            pool.submit(int).result()
            futures: list[Future[object]] = [pool.submit(long) for _ in range(longs)]
            for _ in range(shorts):
                time.sleep(pause)
                futures.append(pool.submit(timed, time.perf_counter()))
            for future in futures:
                future.result()
        waits.sort()
        tails[name].append(percentile(waits, 0.5))
        return percentile(waits, 0.99)

    p99 = medians(
        {
            "cmwq": partial(once, "cmwq", cmwq.Executor),
            "stdlib": partial(once, "stdlib", partial(ThreadPoolExecutor, CPUS)),
        },
        1 if quick else 5,
        title,
    )
    middle = {name: median(values) * 1e3 for name, values in tails.items()}
    report.add(
        f"stable.mixed.{id}",
        f"{title}: p99 of the wait, ThreadPoolExecutor({CPUS})'s, of cmwq's",
        p99["stdlib"] / p99["cmwq"], target=10.0,
        note=f"cmwq {p99['cmwq'] * 1e3:.1f} ms (median {middle['cmwq']:.2f}), "
        f"ThreadPoolExecutor({CPUS}) {p99['stdlib'] * 1e3:.0f} ms (median {middle['stdlib']:.1f})",
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------- without a GIL


def cores(report: Report, quick: bool) -> None:
    report.heading("Cores: pure-Python computation on all of them")
    number, item = (40, pure(0.002)) if quick else (400, pure(0.002))

    def alone() -> float:
        began = time.perf_counter()
        for _ in range(number):
            item()
        return time.perf_counter() - began

    with cmwq.Executor() as ours, ThreadPoolExecutor(CPUS) as theirs:
        pools: dict[str, Executor] = {"cmwq": ours, "stdlib": theirs}
        contenders: dict[str, Callable[[], float]] = {
            name: partial(time_all, pool, [item] * number) for name, pool in pools.items()
        }
        for contender in contenders.values():
            contender()
        took = medians(contenders | {"alone": alone}, 3 if quick else 9, "cores")
    rounds = turns({"one": partial(processes, 1), "all": partial(processes, CPUS)}, 3 if quick else 9, "processes")
    gave = sorted(CPUS * one / every for one, every in zip(rounds["one"], rounds["all"], strict=True))
    report.add(
        "cores.processes", f"this machine: {CPUS} processes that share nothing, their speed, of one's", median(gave),
        note=f"from {gave[0]:.2f} to {gave[-1]:.2f}; more than that no pool can reach",
    )  # fmt: skip
    report.add(
        "cores.pure", f"pure-Python work, {number} x 2 ms: speed on {CPUS} CPUs, of one thread's",
        took["alone"] / took["cmwq"], target=0.95 * CPUS if FREE_THREADED else None,
        note=f"ThreadPoolExecutor({CPUS}): {took['alone'] / took['stdlib']:.2f}"
        + ("" if FREE_THREADED else "; with a GIL, 1 is the limit"),
    )  # fmt: skip


COMPUTES = """
import time
input()
began = time.perf_counter()
for _ in range(5_000_000):
    pass
print(time.perf_counter() - began)
"""


def processes(count: int) -> float:
    """Seconds that each of so many processes takes for the same loop, at the same time: the longest."""
    running = [
        subprocess.Popen([sys.executable, "-c", COMPUTES], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(count)
    ]
    time.sleep(0.1)  # until all have started
    for each in running:
        assert each.stdin is not None
        each.stdin.write("go\n")
        each.stdin.flush()
    return max(float(each.communicate()[0]) for each in running)
