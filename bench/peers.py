"""Other projects' thread pools on some of the suite's workloads, each as its documentation has it.

What is not installed, or does not work with this interpreter, is skipped, and that is said.
"""

from __future__ import annotations

import asyncio
import importlib.util
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from measure import Report, medians
from suite import watched
from workloads import WORKLOADS, Item, Workload, time_all

import cmwq

CHOSEN = ("sleep", "native", "no-op", "phases")
SIZES = (2, 8, 32, 64, 128, 256)  # for the best ThreadPoolExecutor
SHARE = 3  # of the suite's items, one in so many: some of the peers take their time

RunAll = Callable[[list[Item]], float]


@contextmanager
def to_thread() -> Iterator[RunAll]:
    """asyncio's default executor: min(32, CPUs + 4) threads."""

    async def run(items: list[Item]) -> float:
        began = time.perf_counter()
        await asyncio.gather(*[asyncio.to_thread(item) for item in items])
        return time.perf_counter() - began

    with asyncio.Runner() as runner:
        yield lambda items: runner.run(run(items))


@contextmanager
def anyio_to_thread() -> Iterator[RunAll]:
    """Its default limiter: 40 threads."""
    import anyio
    import anyio.to_thread

    async def run(items: list[Item]) -> float:
        began = time.perf_counter()
        async with anyio.create_task_group() as group:
            for item in items:
                group.start_soon(anyio.to_thread.run_sync, item)
        return time.perf_counter() - began

    # Its threads live as long as their event loop: one loop for all rounds.
    with asyncio.Runner() as runner:
        yield lambda items: runner.run(run(items))


@contextmanager
def gevent_threadpool() -> Iterator[RunAll]:
    """The hub's pool: 10 threads by default."""
    import gevent

    pool = gevent.get_hub().threadpool

    def run(items: list[Item]) -> float:
        began = time.perf_counter()
        for result in [pool.spawn(item) for item in items]:
            result.get()
        return time.perf_counter() - began

    yield run
    pool.kill()


@contextmanager
def joblib_threading() -> Iterator[RunAll]:
    """n_jobs=-1: as many as CPUs; its default, 1, is no pool."""
    import joblib

    with joblib.Parallel(n_jobs=-1, backend="threading") as parallel:

        def run(items: list[Item]) -> float:
            began = time.perf_counter()
            parallel(joblib.delayed(item)() for item in items)
            return time.perf_counter() - began

        yield run


@contextmanager
def futurist_dynamic() -> Iterator[RunAll]:
    """Grows and shrinks by how many are busy, up to its default number."""
    import futurist

    with futurist.DynamicThreadPoolExecutor() as pool:
        yield partial(time_all, pool)


PEERS: dict[str, tuple[str, Callable[[], Any]]] = {
    "asyncio.to_thread": ("asyncio", to_thread),
    "anyio.to_thread": ("anyio", anyio_to_thread),
    "gevent.threadpool": ("gevent", gevent_threadpool),
    "joblib threading": ("joblib", joblib_threading),
    "futurist dynamic": ("futurist", futurist_dynamic),
}

PROBE = """
import sys
before = getattr(sys, "_is_gil_enabled", lambda: True)()
import {module}
after = getattr(sys, "_is_gil_enabled", lambda: True)()
sys.exit("its extension modules turn the GIL on" if after and not before else 0)
"""


def why_not(module: str) -> str:
    """Why it can't be measured here; empty: it can."""
    if importlib.util.find_spec(module) is None:
        return "not installed"
    done = subprocess.run([sys.executable, "-c", PROBE.format(module=module)], capture_output=True, text=True)
    return done.stderr.strip().splitlines()[-1] if done.returncode else ""


def items_of(workload: Workload, share: int) -> list[Item]:
    """What it would submit."""
    recorder = Recorder()
    with contextmanager(workload.prepare)(workload.items // share) as run:
        run(recorder)
    return recorder.items


class Recorder(Executor):
    """Runs nothing."""

    def __init__(self) -> None:
        self.items: list[Item] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.items.append(fn)
        future: Future[Any] = Future()
        future.set_result(None)
        return future


def peers(report: Report, quick: bool) -> None:
    report.heading("Peers: their time, of cmwq's (above 1: cmwq is faster)")
    found = {}
    for name, (module, opened) in PEERS.items():
        reason = why_not(module)
        if reason:
            report.add(f"peers.{name.replace(' ', '-')}", name, None, note=reason)
        else:
            found[name] = opened
    lost = []
    for workload in CHOSEN:
        with watched():
            took = against_peers(workload, found, quick, report)
        cmwq_took = took.pop("cmwq")
        beside = {name: seconds / cmwq_took for name, seconds in took.items()}
        lost += [f"{workload}: {name} ({ratio:.2f})" for name, ratio in beside.items() if ratio < 1]
        for name, ratio in beside.items():
            id = "best" if name.startswith("ThreadPoolExecutor") else name.replace(" ", "-")
            report.add(f"peers.{workload}.{id}", f"{workload}: {name}", ratio)
    report.say("cmwq loses: " + (", ".join(lost) or "nowhere"))
    report.details["cmwq_loses"] = lost


def against_peers(workload: str, found: dict[str, Any], quick: bool, report: Report) -> dict[str, float]:
    """Median seconds of each that works, of cmwq, and of the best fixed pool."""
    items = items_of(WORKLOADS[workload], 10 if quick else SHARE)
    with ExitStack() as stack:
        ours = stack.enter_context(cmwq.Executor())
        fixed = {size: stack.enter_context(ThreadPoolExecutor(size)) for size in SIZES}
        times = {size: min(time_all(pool, items) for _ in range(2)) for size, pool in fixed.items()}
        best = min(times, key=times.__getitem__)
        contenders: dict[str, Callable[[], float]] = {
            "cmwq": partial(time_all, ours, items),
            f"ThreadPoolExecutor({best}), the best": partial(time_all, fixed[best], items),
        }
        time_all(ours, items)
        for name, opened in found.items():
            try:
                run_all = stack.enter_context(opened())
                run_all(items)  # warm, and does it work?
            except Exception as error:
                report.add(f"peers.{workload}.{name.replace(' ', '-')}", f"{workload}: {name}", None, note=repr(error))
                continue
            contenders[name] = partial(run_all, items)
        return medians(contenders, 2 if quick else 5, workload)
