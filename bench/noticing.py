"""How soon a blocked worker is noticed, and how fast a pool grows on work that only waits."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from statistics import median

from latency import KINDS, cmwq_pool, distributions
from measure import Report, turns

import cmwq

WAITERS = 300
NAP = 0.05


def noticing(report: Report, quick: bool) -> None:
    report.heading("Noticing: from a worker's blocking to the next item's first line (a pool of one CPU)")
    with cmwq_pool(False) as (submit, target, title):
        report.say(title)
        for kind, line in distributions(submit, target, KINDS, 20 if quick else 400):
            first = line["ended_first"]
            note = f"p90 {line['p90']:.0f}, max {line['max']:.0f} us" + (
                f"; in {first} rounds the call had ended first" if first else ""
            )
            report.add(f"noticing.{kind}.p50", f"{kind}: median", line["p50"], "us", target=30.0, at_most=True)
            report.add(
                f"noticing.{kind}.p99", f"{kind}: 99 % within", line["p99"], "us", target=500.0, at_most=True, note=note
            )
    ramp(report, 3 if quick else 7)


def ramp(report: Report, rounds: int) -> None:
    """Work that only waits, on a pool that has no thread yet."""
    used: dict[str, list[float]] = {}

    def fresh(name: str, make: Callable[[], Executor]) -> float:
        cpu, began = time.process_time(), time.perf_counter()
        pool = make()
        for future in [pool.submit(time.sleep, NAP) for _ in range(WAITERS)]:
            future.result()
        took = time.perf_counter() - began
        used.setdefault(name, []).append(time.process_time() - cpu)
        pool.shutdown()
        return took

    def ours() -> float:
        with cmwq.Runtime() as runtime:
            return fresh("cmwq", lambda: cmwq.Executor(max_active=2 * WAITERS, runtime=runtime))

    took = turns(
        {"cmwq": ours, "stdlib": partial(fresh, "stdlib", lambda: ThreadPoolExecutor(WAITERS))}, rounds, "ramp"
    )
    times = {name: median(values) for name, values in took.items()}
    cpu = {name: median(values) * 1e3 for name, values in used.items()}
    report.add(
        "noticing.ramp", f"{WAITERS} sleeps of {NAP * 1e3:.0f} ms on a fresh pool: time, of one sleep (the ideal)",
        times["cmwq"] / NAP,
        note=f"{times['cmwq'] * 1e3:.0f} ms, {cpu['cmwq']:.0f} ms of CPU; a fresh ThreadPoolExecutor({WAITERS}): "
        f"{times['stdlib'] * 1e3:.0f} ms, {cpu['stdlib']:.0f} ms of CPU",
    )  # fmt: skip
