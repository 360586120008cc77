"""Dask with its own threads, swept over their number, and with cmwq: the same tasks, in turns within one run.

Each setting is a cluster of its own on this machine: a scheduler, and worker processes. All of them are started first.
Then each round runs one load on each cluster, one after the other, so that whatever else the machine does hits all of
them. A figure is the median of the rounds; a ratio is the median of the ratios within a round.

    make bench-dask ARGS="--rounds 7"
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import random
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

SWEEP = (2, 4, 8, 16, 32)
"""Threads of a worker of plain Dask."""
AHEAD = (4, 16)
"""Arguments of AheadPlugin."""


def sleep(_: int) -> None:
    time.sleep(0.1)


def derive(_: int) -> int:
    """Some 20 ms of a CPU, without the GIL."""
    return len(hashlib.pbkdf2_hmac("sha256", b"password", b"salt", 60_000))


def count(_: int) -> int:
    """Some 20 ms of a CPU, with the GIL."""
    total = 0
    for number in range(400_000):
        total += number
    return total


def nap(_: int) -> None:
    time.sleep(0.05)


def sleeps(client: Any) -> list[Any]:
    return list(client.map(sleep, range(32), pure=False))


def deriving(client: Any) -> list[Any]:
    return list(client.map(derive, range(60), pure=False))


def counting(client: Any) -> list[Any]:
    return list(client.map(count, range(60), pure=False))


def mixed(client: Any) -> list[Any]:
    """Two sorts of tasks in no order, as a program would hand them over."""
    kinds = [derive] * 60 + [nap] * 120
    random.Random(7).shuffle(kinds)
    return [client.submit(kind, number, pure=False) for number, kind in enumerate(kinds)]


LOADS: dict[str, tuple[str, Callable[[Any], list[Any]]]] = {
    "sleeps": ("32 tasks that sleep 0.1 s", sleeps),
    "native": ("60 tasks that derive a key, without the GIL", deriving),
    "python": ("60 tasks that count to 400,000", counting),
    "mixed": ("60 that derive a key among 120 that sleep 50 ms", mixed),
}


class Setting:
    """One cluster. ahead: the argument of AheadPlugin; 0: without it."""

    def __init__(self, threads: int, cmwq: bool = False, ahead: int = 0) -> None:
        self.threads, self.cmwq, self.ahead = threads, cmwq, ahead

    @property
    def name(self) -> str:
        ahead = f", {self.ahead} ahead" if self.ahead else ""
        return f"{'cmwq' if self.cmwq else 'dask'} {self.threads}{ahead}"

    def start(self, stack: ExitStack, workers: int) -> Any:
        import distributed

        cluster = stack.enter_context(
            distributed.LocalCluster(
                n_workers=workers,
                threads_per_worker=self.threads,
                processes=True,
                dashboard_address=":0",
                silence_logs=logging.ERROR,
                memory_limit=0,
            )
        )
        client = stack.enter_context(distributed.Client(cluster, set_as_default=False))
        if self.cmwq:
            from cmwq.contrib.dask import AheadPlugin, CmwqPlugin

            client.register_plugin(CmwqPlugin())
            if self.ahead:
                client.register_plugin(AheadPlugin(self.ahead))
        client.gather(client.map(abs, range(20)))
        return client


def run(client: Any, submit: Callable[[Any], list[Any]]) -> float:
    """Seconds until all results are known to the client."""
    import distributed

    begun = time.perf_counter()
    with client.as_current():
        distributed.wait(submit(client))
    return time.perf_counter() - begun


def measure(rounds: int, workers: int, loads: list[str], settings: list[Setting]) -> dict[str, dict[str, list[float]]]:
    found: dict[str, dict[str, list[float]]] = {load: {each.name: [] for each in settings} for load in loads}
    with ExitStack() as stack:
        clients = [(each.name, each.start(stack, workers)) for each in settings]
        for load in loads:
            for _, client in clients:
                run(client, LOADS[load][1])  # the scheduler learns how long they take, the pool what they are
            for number in range(rounds):
                order = clients if number % 2 == 0 else clients[::-1]
                for name, client in order:
                    found[load][name].append(run(client, LOADS[load][1]))
    return found


def ratio(over: list[float], under: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def report(found: dict[str, dict[str, list[float]]]) -> None:
    for load, times in found.items():
        print(f"\n{LOADS[load][0]}")
        best = min((name for name in times if name.startswith("dask")), key=lambda name: statistics.median(times[name]))
        for name, seconds in times.items():
            line = f"  {name:<18}{statistics.median(seconds) * 1000:8.0f} ms  ({min(seconds) * 1000:.0f} to "
            line += f"{max(seconds) * 1000:.0f})"
            if name.startswith("cmwq"):
                line += f"   {ratio(times['dask 2'], seconds):.2f} times as fast as dask 2"
                line += f", {ratio(times[best], seconds):.2f} as the best, {best}"
            print(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1, help="worker processes of each cluster")
    parser.add_argument("--only", choices=LOADS, action="append")
    parser.add_argument("--threads", type=int, action="append", help=f"of plain Dask; 2 is always there {SWEEP}")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    sweep = sorted({2, *(options.threads or SWEEP)})
    settings = [*map(Setting, sweep), *(Setting(2, cmwq=True, ahead=each) for each in (0, *AHEAD))]
    found = measure(options.rounds, options.workers, options.only or list(LOADS), settings)
    print(f"{options.workers} worker process(es) each, {len(os.sched_getaffinity(0))} CPUs, {options.rounds} rounds")
    report(found)
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
