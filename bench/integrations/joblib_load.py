"""joblib: its threads, and cmwq's backend."""

from __future__ import annotations

import random
import time
import zlib
from collections.abc import Callable
from typing import Any

from loads import Load, Outcome, Peak, timed


def _run(setting: str, task: Callable[..., Any], arguments: list[tuple[Any, ...]]) -> Outcome:
    import joblib

    import cmwq.contrib.joblib

    cmwq.contrib.joblib.register()
    backend, n_jobs = ("cmwq", -1) if setting == "cmwq" else ("threading", -1 if setting == "stock" else int(setting))
    latencies: list[float] = []

    def timed_task(*args: Any) -> None:
        with timed(latencies):
            task(*args)

    with joblib.parallel_config(backend=backend, n_jobs=n_jobs):
        joblib.Parallel()(joblib.delayed(abs)(number) for number in range(10))
        with Peak() as peak:
            begun = time.perf_counter()
            joblib.Parallel()(joblib.delayed(timed_task)(*each) for each in arguments)
            seconds = time.perf_counter() - begun
    return Outcome(seconds, latencies, len(arguments) - len(latencies), peak.threads, peak.rss)


def sleeps(setting: str) -> Outcome:
    return _run(setting, time.sleep, [(0.05,)] * 200)


def compression(setting: str) -> Outcome:
    data = [random.Random(number).randbytes(1 << 18) for number in range(60)]
    return _run(setting, zlib.compress, [(each,) for each in data])


def _nested(depth: int) -> int:
    import joblib

    if depth == 0:
        time.sleep(0.02)
        return 1
    return sum(joblib.Parallel(n_jobs=-1)(joblib.delayed(_nested)(depth - 1) for _ in range(3)))


def nested(setting: str) -> Outcome:
    return _run(setting, _nested, [(2,)] * 8)


SETTINGS = ("stock", "4", "8", "32", "cmwq")
NEEDS = ("joblib",)

LOADS = [
    Load("joblib-sleeps", "joblib: 200 tasks that sleep 50 ms", SETTINGS, sleeps, needs=NEEDS),
    Load(
        "joblib-zlib",
        "joblib: 60 texts of 256 KiB, compressed",
        SETTINGS,
        compression,
        "the worst case for cmwq: nothing waits, as many threads as CPUs are right, and joblib's default is just that. "
        "What cmwq does for each task costs time, and gains nothing.",
        needs=NEEDS,
    ),
    Load(
        "joblib-nested",
        "joblib: Parallel in Parallel in Parallel, 72 sleeps of 20 ms in all",
        SETTINGS,
        nested,
        needs=NEEDS,
    ),
]
