"""What a load of this table is, and what is measured of it."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil


@dataclass(frozen=True)
class Outcome:
    """Of one run of a load, with one setting."""

    seconds: float
    """From the first request to the last answer."""
    latencies: Sequence[float] = ()
    """Seconds of each request that did not fail."""
    failed: int = 0
    threads: int = 0
    """The most that the process with the pool had at a time."""
    rss: float = 0.0
    """MB, the most of that process."""

    def row(self) -> dict[str, float]:
        cuts = statistics.quantiles(self.latencies, n=100) if len(self.latencies) > 1 else [0.0] * 99
        told = {**asdict(self), "p50": cuts[49], "p99": cuts[98], "done": len(self.latencies)}
        del told["latencies"]
        return told


@dataclass(frozen=True)
class Load:
    """One load on one framework. Each run has a fresh process."""

    name: str
    title: str
    """For the table: the framework, and what is asked of it."""
    settings: tuple[str, ...]
    """What takes turns: "stock" (the framework as it comes), "32" and the like (its own pool of that size: the best of
    these is the best that tuning by hand can do), "cmwq"."""
    run: Callable[[str], Outcome]
    note: str = ""
    """What a reader has to know, above all where cmwq is not the best, and why."""
    needs: tuple[str, ...] = field(default=())
    """Modules without which it is left out."""
    programs: tuple[str, ...] = ()
    """Programs without which it is left out. `make test-services` installs them."""


class Peak:
    """The most threads and memory that a process had, looked at every few milliseconds meanwhile."""

    def __init__(self, pid: int | None = None, period: float = 0.005) -> None:
        self._process = psutil.Process(pid)
        self._period = period
        self._over = threading.Event()
        self.threads, self.rss = 0, 0.0

    def _look(self) -> None:
        while not self._over.wait(self._period):
            try:
                with self._process.oneshot():
                    self.threads = max(self.threads, self._process.num_threads())
                    self.rss = max(self.rss, self._process.memory_info().rss / 1e6)
            except psutil.NoSuchProcess:
                return

    def __enter__(self) -> Peak:
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


@contextmanager
def timed(latencies: list[float]) -> Iterator[None]:
    """Note how long the block took, if it did not raise."""
    began = time.perf_counter()
    yield
    latencies.append(time.perf_counter() - began)


def all_loads() -> dict[str, Load]:
    """Every module beside this one has LOADS."""
    import importlib

    found: dict[str, Load] = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if path.stem not in ("loads", "__main__"):
            module: Any = importlib.import_module(path.stem)
            found.update({load.name: load for load in module.LOADS})
    return found
