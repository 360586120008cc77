"""Works that each need much memory, in a cgroup that has little (A11): who gets them done, and who is killed?

100 works of 30 MB each (`--works`, `--megabytes`), which read what they allocated for a tenth of a second, in a cgroup
of 300 MB (`--limit`). Each executor has its turn in each round, in a fresh process. Prints a Markdown table: seconds
(median), the most memory that the cgroup had, and how the process ended. Needs root, and a cgroup controller for memory
(version 1 or 2); what it made it removes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import cmwq

MB = 1 << 20
PATIENCE = 120
"""Seconds for one run."""
VERSION_1, VERSION_2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")


class Run(NamedTuple):
    seconds: float | None
    """None: the process did not come to its end."""
    peak: float
    """MB."""
    end: str


def allocate(megabytes: int) -> int:
    """Have and use so much memory for a tenth of a second."""
    own = bytearray(os.urandom(4096) * (megabytes * MB // 4096))
    until = time.monotonic() + 0.1
    while time.monotonic() < until:
        total = own.count(0)
        time.sleep(0.01)
    return total


def child(kind: str, works: int, megabytes: int) -> None:
    sys.stdin.readline()  # now this process is in the cgroup
    executor: Executor = cmwq.Executor() if kind == "cmwq" else ThreadPoolExecutor(int(kind))
    began = time.perf_counter()
    with executor:
        for _ in executor.map(allocate, [megabytes] * works):
            pass
    print(time.perf_counter() - began, flush=True)


@contextmanager
def cgroup(limit: int) -> Iterator[Path]:
    first = (VERSION_1 / "memory.limit_in_bytes").exists()
    group = (VERSION_1 if first else VERSION_2) / f"cmwq-bench-{os.getpid()}"
    group.mkdir()
    try:
        (group / ("memory.limit_in_bytes" if first else "memory.max")).write_text(str(limit * MB))
        swap = group / ("memory.memsw.limit_in_bytes" if first else "memory.swap.max")
        if swap.exists():
            swap.write_text(str(limit * MB) if first else "0")
        yield group
    finally:
        for _ in range(100):
            try:
                group.rmdir()
                break
            except OSError:
                time.sleep(0.05)  # the last process is still on its way out


def run(kind: str, works: int, megabytes: int, limit: int) -> Run:
    with cgroup(limit) as group:
        process = subprocess.Popen(
            [sys.executable, __file__, "--child", kind, str(works), str(megabytes)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        (group / "cgroup.procs").write_text(str(process.pid))
        try:
            told = process.communicate("\n", timeout=PATIENCE)[0]
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            return Run(None, 0, f"not done after {PATIENCE} s")
        peaks = [group / "memory.max_usage_in_bytes", group / "memory.peak"]
        peak = next((int(path.read_text()) / MB for path in peaks if path.exists()), 0.0)
    if process.returncode == -signal.SIGKILL:
        return Run(None, peak, "killed")
    return Run(float(told), peak, "done") if process.returncode == 0 else Run(None, peak, "failed")


def main() -> int:
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
        return 0
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--works", type=int, default=100)
    options.add_argument("--megabytes", type=int, default=30)
    options.add_argument("--limit", type=int, default=300, help="MB")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--sizes", nargs="*", default=["2", "4", "6", "8", "32"], help="of ThreadPoolExecutor")
    options.add_argument("--json", type=Path)
    chosen = options.parse_args()
    kinds = ["cmwq", *chosen.sizes]
    runs: dict[str, list[Run]] = {kind: [] for kind in kinds}
    for number in range(chosen.rounds):
        for kind in kinds[number % len(kinds) :] + kinds[: number % len(kinds)]:
            runs[kind].append(run(kind, chosen.works, chosen.megabytes, chosen.limit))
    print(f"CPython {platform.python_version()}, {len(os.sched_getaffinity(0))} CPUs; {chosen.works} works of ", end="")
    print(f"{chosen.megabytes} MB in a cgroup of {chosen.limit} MB, {chosen.rounds} rounds\n")
    print("| executor | seconds | most MB | ends |\n| --- | --- | --- | --- |")
    for kind, told in runs.items():
        times = [each.seconds for each in told if each.seconds is not None]
        seconds = f"{statistics.median(times):.1f}" if times else ""
        ends = ", ".join(each.end for each in told)
        name = "cmwq" if kind == "cmwq" else f"ThreadPoolExecutor({kind})"
        print(f"| {name} | {seconds} | {max(each.peak for each in told):.0f} | {ends} |")
    if chosen.json:
        chosen.json.write_text(json.dumps({kind: [each._asdict() for each in told] for kind, told in runs.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
