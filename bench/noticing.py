"""How soon a blocked worker is noticed, and how fast a pool grows on work that only waits."""

from __future__ import annotations

import json
import time
import timeit
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from statistics import median
from threading import Event, Lock, Thread

from latency import KINDS, cmwq_pool, distributions
from measure import Report, turns

import cmwq

WAITERS = 300
NAP = 0.05
SMALL = {"a": [1, 2, 3, {"b": "c"}]}


def noticing(report: Report, quick: bool) -> None:
    report.heading("Noticing: from a worker's blocking to the next item's first line (a pool of one CPU)")
    floor(report, 20 if quick else 200)
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


def floor(report: Report, rounds: int) -> None:
    """What the machine itself takes, without cmwq. On virtual machines it differs from day to day by ten times."""
    go, done, woken = Lock(), Event(), []

    def wait_and_note() -> None:
        for _ in range(rounds):
            go.acquire()
            woken.append(time.perf_counter_ns())
            done.set()

    go.acquire()
    thread = Thread(target=wait_and_note)
    thread.start()
    waking, calling = [], []
    for _ in range(rounds):
        time.sleep(0.01)
        began = time.perf_counter_ns()
        json.dumps(SMALL)
        calling.append((time.perf_counter_ns() - began) / 1e3)
        done.clear()
        began = time.perf_counter_ns()
        go.release()
        done.wait()
        waking.append((woken[-1] - began) / 1e3)
    thread.join()
    again = min(timeit.repeat(partial(json.dumps, SMALL), number=100)) * 1e4
    report.add(
        "noticing.floor.lock", "this machine: from a lock's release to a plain thread's next line", median(waking), "us"
    )
    note = f"{again:.1f} us if it is made again and again"
    report.add(
        "noticing.floor.cold",
        "this machine: a small call in Python after 10 ms of sleep",
        median(calling),
        "us",
        note=note,
    )


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
