"""`cmwq doctor`: what works on this machine, how fast, and what limits it.

Each fact comes with the place it was read from. Measuring takes a few seconds and needs the CPUs for itself. On a busy
machine it measures the latency of a busy machine, which is what a program would get there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import statistics
import sys
import sysconfig
import time
from concurrent.futures import Executor
from typing import Any

import cmwq
from cmwq._host import caps, memory, processes, topology
from cmwq._sensor import NAMES, why_not
from cmwq.cli.output import Refusal, one_line

ROUNDS = 50
WARM_UP = 5
NAP = 0.05  # seconds; a sensor that has noticed nothing by then counts as not noticing
Report = dict[str, Any]


def run(options: argparse.Namespace) -> int:
    report = examine()
    print(json.dumps(report, indent=2) if options.json else text(report))
    return 0


def examine() -> Report:
    """Examine everything. The report is ready for JSON."""
    with cmwq.Executor("cmwq doctor") as pool:
        try:
            pool.submit(int).result()
            cmwq.system_highpri.submit(int).result()
        except (ValueError, RuntimeError) as error:  # CMWQ_SENSOR asks for what isn't there, or no thread can be had
            raise Refusal(str(error)) from error
        seen = cmwq.snapshot()
        target = max((view.target for view in seen.pools), default=seen.cpu_limit)
        nice = min((view.nice for view in seen.pools), default=0)
        latencies, missed = measure(pool, target)
    quota = topology.cpu_quota()
    return {
        "cmwq": cmwq.__version__,
        "python": {
            "version": platform.python_version(),
            "implementation": platform.python_implementation(),
            "executable": sys.executable,
            "gil": seen.gil,
            "gil_reason": _gil_reason(seen.gil),
        },
        "memory": _memory(),
        "sensor": {
            "name": seen.sensor,
            "reason": seen.sensor_reason,
            "sensors": {name: why_not(name) or "works" for name in NAMES},
            "children": processes.why_not() or "seen, those that a work's own thread started and all below them",
            "latency": {
                "what": "from a worker entering time.sleep to the start of the next item",
                "sleepers": target,
                "rounds": len(latencies) + missed,
                "not_noticed": missed,
                "p50_us": _microseconds(latencies, 0.50),
                "p99_us": _microseconds(latencies, 0.99),
            },
        },
        "cpu": {
            "cpus": list(seen.cpus),
            "quota": quota,
            "limit": seen.cpu_limit,
            "limited_by": _limited_by(quota),
        },
        "highpri": {
            "nice": nice,
            "reason": "as asked for" if nice else "a nicer value is not permitted here (CAP_SYS_NICE, RLIMIT_NICE)",
        },
        "threads": {
            "caps": [
                *({"name": c.name, "limit": c.limit, "used": c.used, "source": c.source} for c in caps.thread_caps()),
                {
                    "name": "max_workers",
                    "limit": cmwq.default_runtime().max_workers,
                    "used": max((view.workers for view in seen.pools), default=0),
                    "source": "cmwq.Runtime, per pool",
                },
            ],
        },
    }


def measure(pool: Executor, sleepers: int, rounds: int = ROUNDS) -> tuple[list[float], int]:
    """Return the latencies in seconds, and the number of rounds in which the sensor did not notice.

    In a round the worker of every CPU computes (without the GIL, long enough that all have begun), then sleeps. The
    next item can start only when one of them is known to sleep. The latency counts from the first to fall asleep.
    """
    chunk = _burn_size()
    latencies: list[float] = []
    missed = 0
    for number in range(WARM_UP + rounds):
        naps = [pool.submit(_nap, chunk) for _ in range(sleepers)]
        started = pool.submit(time.perf_counter).result()
        slept = [nap.result() for nap in naps]
        if number < WARM_UP:
            continue
        latency = started - min(begun for begun, _ in slept)
        if started >= min(ended for _, ended in slept):
            missed += 1
        elif latency >= 0:  # if negative, the machine gave a sleeper's CPU away before it fell asleep
            latencies.append(latency)
    return latencies, missed


def _nap(rounds: int) -> tuple[float, float]:
    hashlib.pbkdf2_hmac("sha256", b"cmwq", b"doctor", rounds)
    begun = time.perf_counter()
    time.sleep(NAP)
    return begun, time.perf_counter()


def _burn_size() -> int:
    """How many rounds of the hash take about 2 ms."""
    begun = time.perf_counter()
    hashlib.pbkdf2_hmac("sha256", b"cmwq", b"doctor", 1000)
    return max(1, int(1000 * 0.002 / max(time.perf_counter() - begun, 1e-6)))


def _microseconds(latencies: list[float], quantile: float) -> float | None:
    if not latencies:
        return None
    if len(latencies) == 1 or quantile == 0.5:
        return round(statistics.median(latencies) * 1e6, 1)
    return round(sorted(latencies)[min(len(latencies) - 1, int(len(latencies) * quantile))] * 1e6, 1)


def _memory() -> Report | None:
    """The limit of which the least is left, in bytes (A11)."""
    seen = memory.Meter(time.monotonic)()
    return seen and {"left": seen.limit - seen.used, "used": seen.used, "limit": seen.limit, "source": seen.source}


def _gil_reason(gil: bool) -> str:
    if not sysconfig.get_config_var("Py_GIL_DISABLED"):
        return "this build of Python has it"
    return "switched on: by PYTHON_GIL, -X gil, or an extension that needs it" if gil else "a free-threaded build"


def _limited_by(quota: float | None) -> str:
    if quota is not None and topology.cpu_limit() < len(topology.cpus()):
        return "the cgroup's CPU quota"
    return "the CPUs this process may run on (affinity)"


def text(report: Report) -> str:
    python, sensor, cpu = report["python"], report["sensor"], report["cpu"]
    latency = sensor["latency"]
    rows = [
        ("Python", f"{python['version']}, {python['implementation']}, {python['executable']}"),
        ("GIL", f"{'on' if python['gil'] else 'off'}: {python['gil_reason']}"),
        ("Sensor", f"{sensor['name']}: {sensor['reason']}"),
        *(("", f"{name}: {state}") for name, state in sensor["sensors"].items()),
        ("", f"child processes: {sensor['children']}"),
        ("Latency", _latency_line(latency)),
        ("", f"({latency['what']}; {latency['sleepers']} sleepers, {latency['rounds']} rounds)"),
        ("CPUs", f"{len(cpu['cpus'])}: {_ranges(cpu['cpus'])}"),
        ("Quota", "none" if cpu["quota"] is None else f"{cpu['quota']:g} CPUs"),
        ("Highpri", f"nice {report['highpri']['nice']}: {report['highpri']['reason']}"),
        ("CPU limit", f"{cpu['limit']}, by {cpu['limited_by']}"),
    ]
    if report["memory"] is not None:
        left, limit, source = (report["memory"][key] for key in ("left", "limit", "source"))
        rows.append(("Memory", f"{left >> 20:,} MiB left of {limit >> 20:,} ({source})"))
    caps_known = [cap for cap in report["threads"]["caps"] if cap["limit"] is not None]
    tightest = min((cap["limit"] - (cap["used"] or 0) for cap in caps_known), default=None)
    for number, cap in enumerate(report["threads"]["caps"]):
        limit = "no limit" if cap["limit"] is None else f"{cap['limit']:,}"
        used = "" if cap["used"] is None else f", {cap['used']:,} used"
        first = cap["limit"] is not None and cap["limit"] - (cap["used"] or 0) == tightest
        mark = "  <- reached first" if first else ""
        rows.append(("" if number else "Threads", f"{cap['name']}: {limit}{used} ({cap['source']}){mark}"))
    return "\n".join(f"{name:<10} {one_line(value)}".rstrip() for name, value in rows)


def _latency_line(latency: Report) -> str:
    count = latency["not_noticed"]
    missed = f"; not noticed within {NAP * 1000:g} ms in {count} rounds" if count else ""
    if latency["p50_us"] is None:
        return f"nothing measured{missed}"
    return f"p50 {latency['p50_us']:,.0f} µs, p99 {latency['p99_us']:,.0f} µs{missed}"


def _ranges(numbers: list[int]) -> str:
    """The numbers in the kernel's notation: [0, 1, 2, 5] -> "0-2,5"."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in ranges)
