"""The suite's figures: against the best number anybody could have chosen, per workload and for all together."""

from __future__ import annotations

from measure import Report
from suite import draw, run_suite
from workloads import SIZES, WORKLOADS

import cmwq


def oracle(report: Report, quick: bool) -> None:
    report.heading(f"Against ThreadPoolExecutor(N), N = {', '.join(map(str, SIZES))}")
    suite = run_suite(WORKLOADS, cmwq.Executor, 2 if quick else 5, quick)
    report.details["suite"] = suite.to_dict()
    for c in suite.comparisons:
        best = c.finalists[c.best]
        report.add(
            f"oracle.{c.workload}", f"{c.workload}: the best N's time, of cmwq's", c.ratio, target=1.0,
            note=f"N = {c.best}: {best.time * 1e3:.1f} ms, cmwq {c.cmwq.time * 1e3:.1f} ms on {c.cmwq.threads} threads",
        )  # fmt: skip
    report.add("oracle.mean", "geometric mean over all workloads", suite.mean, target=1.2)
    finishing, any_size = (suite.single(all_workloads=which) for which in (True, False))
    if finishing is not None:
        report.add(
            "oracle.single.all", "one N for all workloads: geometric mean", finishing[1], target=1.5,
            note=f"N = {finishing[0]}, the best that finishes all: with fewer than 201 threads, nested hangs",
        )  # fmt: skip
    if any_size is not None:
        report.add(
            "oracle.single.any", "one N for all but nested: geometric mean", any_size[1], target=1.5,
            note=f"N = {any_size[0]}",
        )  # fmt: skip
    if report.chart:
        draw(suite.comparisons, report.chart)
