"""How little a pool does beside the work: context switches, what the sensor costs, memory."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from measure import CPUS, Report, medians, seconds
from workloads import Item, native, pure

import cmwq
from cmwq._sensor import why_not

CROWD = 32
WORKERS = 200
SIZES = (100_000, 1_000_000, 5_000_000)
ROOM = 0.5  # the share of the free memory that queued items may take


def quiet(report: Report, quick: bool) -> None:
    report.heading("Quiet: what a pool does beside the work")
    switches(report, 300 if quick else 3_000, 3 if quick else 9)
    sensor(report, 200 if quick else 2_000, 3 if quick else 15)
    memory(report, quick)


def flood(pool: Executor, item: Item, number: int) -> None:
    """The last is waited for first: so who waits is woken a few times, not once for each item."""
    for future in reversed([pool.submit(item) for _ in range(number)]):
        future.result()


# ------------------------------------------------------------------------------------------------- context switches


def switches(report: Report, number: int, rounds: int) -> None:
    item = native(0.0002)

    def counted(pool: Executor) -> float:
        before = resource.getrusage(resource.RUSAGE_SELF)
        flood(pool, item, number)
        after = resource.getrusage(resource.RUSAGE_SELF)
        return after.ru_nvcsw + after.ru_nivcsw - before.ru_nvcsw - before.ru_nivcsw

    with cmwq.Executor() as ours, ThreadPoolExecutor(CROWD) as crowd, ThreadPoolExecutor(CPUS) as few:
        pools: dict[str, Executor] = {"cmwq": ours, "crowd": crowd, "few": few}
        for pool in pools.values():
            flood(pool, item, number)
        count = medians({name: partial(counted, pool) for name, pool in pools.items()}, rounds, "switches")
    report.add(
        "quiet.switches", f"context switches, {number:,} x 0.2 ms native CPU: ThreadPoolExecutor({CROWD})'s, of cmwq's",
        count["crowd"] / max(1.0, count["cmwq"]), target=10.0,
        note=f"cmwq {count['cmwq']:.0f}, ThreadPoolExecutor({CROWD}) {count['crowd']:.0f}, "
        f"ThreadPoolExecutor({CPUS}) {count['few']:.0f}; the whole process, sensor threads included",
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------- the sensor's cost


def sensor(report: Report, number: int, rounds: int) -> None:
    """The same flood with the sentinel armed, and with a sensor that needs nothing; that one twice, for the noise."""
    reason = why_not("sentinel")
    for kind, item in (("native", native(0.0002)), ("pure", pure(0.0002))):
        id, title = f"quiet.sentinel.{kind}", f"what the sentinel costs a flood of 0.2 ms {kind} CPU"
        if reason:
            report.add(id, title, None, "%", target=1.0, at_most=True, note=reason)
            continue
        runtimes = {"sentinel": "sentinel", "hints": "hints", "hints again": "hints"}
        made = {name: cmwq.Runtime(sensor=sensor) for name, sensor in runtimes.items()}
        pools = {name: cmwq.Executor(runtime=runtime) for name, runtime in made.items()}
        for pool in pools.values():
            flood(pool, item, number // 10)
        took = medians(
            {name: partial(seconds, partial(flood, pool, item, number)) for name, pool in pools.items()}, rounds, kind
        )
        for name, pool in pools.items():
            pool.shutdown()
            made[name].close(30)
        cost, noise = ((took[name] / took["hints"] - 1) * 100 for name in ("sentinel", "hints again"))
        report.add(
            id, title, cost, "%", target=1.0, at_most=True,
            note=f"beside sensor=\"hints\", which against itself differed by {noise:+.2f} % in the same turns",
        )  # fmt: skip


# ------------------------------------------------------------------------------------------------- memory


def memory(report: Report, quick: bool) -> None:
    """In processes of their own, which measure how they grow."""
    room = free_memory() * ROOM
    sizes = [size // 100 if quick else size for size in SIZES]
    grown = in_child("items", sizes, room)
    each = {row["items"]: row["bytes"] / row["items"] for row in grown}
    last, first = grown[-1]["items"], grown[0]["items"]
    theirs = in_child("stdlib_items", sizes[:2], room)[-1]
    short = "" if last == sizes[-1] else f"; no more than {last:,}: this machine's memory is too small"
    by_size = "; ".join(f"{row['items']:,}: {each[row['items']]:.0f} bytes, {row['us']:.2f} us each" for row in grown)
    beside = f"{theirs['items']:,}: {theirs['bytes'] / theirs['items']:.0f} bytes"
    report.add(
        "quiet.memory.item", f"memory per queued call, {last:,} of them", each[last], "bytes",
        note=f"{by_size}; ThreadPoolExecutor, {beside}{short}",
    )  # fmt: skip
    report.add(
        "quiet.memory.linear", f"the same, of that with {first:,}: is it linear?", each[last] / each[first],
        target=1.1, at_most=True,
    )  # fmt: skip
    workers = 20 if quick else WORKERS
    ours, stdlib = (in_child(kind, [workers], room)[0] for kind in ("workers", "threads"))
    report.add(
        "quiet.memory.worker", f"memory per idle worker, {ours['items']} of them", ours["bytes"] / ours["items"] / 1024,
        "KiB", note=f"ThreadPoolExecutor: {stdlib['bytes'] / stdlib['items'] / 1024:.1f} KiB per thread",
    )  # fmt: skip
    report.details["memory"] = {"items": grown, "stdlib_items": theirs, "workers": ours, "threads": stdlib}


def free_memory() -> float:
    """Bytes; no limit known: a gigabyte."""
    found = [1 << 30]
    try:
        with open("/proc/meminfo") as file:
            found = [int(line.split()[1]) << 10 for line in file if line.startswith("MemAvailable:")]
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if limit.isdecimal():
            found.append(int(limit) - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    except (OSError, ValueError):
        pass
    return min(found)


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def in_child(kind: str, sizes: list[int], room: float) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, __file__, kind, str(room), *map(str, sizes)], stdout=subprocess.PIPE, text=True, check=True
    )
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


def grow(submit: Callable[[], object], sizes: list[int], room: float) -> list[dict[str, Any]]:
    """How the process grows by what is queued and does not run."""
    rows: list[dict[str, Any]] = []
    began, queued = resident(), 0
    for size in sizes:
        if rows and rows[-1]["bytes"] / rows[-1]["items"] * size > room:
            break
        more = size - queued

        def fill(more: int = more) -> None:
            for _ in range(more):
                submit()

        took = seconds(fill)
        queued = size
        rows.append({"items": size, "bytes": resident() - began, "us": took / more * 1e6})
    return rows


def nothing() -> None:
    pass


def items(sizes: list[int], room: float) -> list[dict[str, Any]]:
    wq = cmwq.WorkQueue("blocked", max_active=1)
    started, gate = threading.Event(), threading.Event()

    def block() -> None:
        started.set()
        gate.wait()

    wq.submit(block)
    started.wait()
    return grow(lambda: wq.submit(nothing), sizes, room)


def stdlib_items(sizes: list[int], room: float) -> list[dict[str, Any]]:
    pool, gate = ThreadPoolExecutor(1), threading.Event()
    pool.submit(gate.wait)
    return grow(lambda: pool.submit(nothing), sizes, room)


def crowd(pool: Executor, number: int) -> None:
    """So many at once, and when all are there, all go idle."""
    barrier = threading.Barrier(number + 1)
    futures: list[Future[int]] = [pool.submit(barrier.wait) for _ in range(number)]
    barrier.wait()
    for future in futures:
        future.result()


def workers(sizes: list[int], room: float) -> list[dict[str, Any]]:
    runtime = cmwq.Runtime()
    pool = cmwq.Executor(max_active=2 * sizes[0], runtime=runtime)
    pool.submit(nothing).result()
    before, had = resident(), runtime.snapshot().pools[0].workers
    crowd(pool, sizes[0])
    return [{"items": runtime.snapshot().pools[0].workers - had, "bytes": resident() - before}]


def threads(sizes: list[int], room: float) -> list[dict[str, Any]]:
    pool = ThreadPoolExecutor(sizes[0])
    pool.submit(nothing).result()
    before = resident()
    crowd(pool, sizes[0])
    return [{"items": len(pool._threads) - 1, "bytes": resident() - before}]


if __name__ == "__main__":
    kinds = {"items": items, "stdlib_items": stdlib_items, "workers": workers, "threads": threads}
    print(json.dumps(kinds[sys.argv[1]]([int(size) for size in sys.argv[3:]], float(sys.argv[2]))), flush=True)
    os._exit(0)  # what is queued shall not run
