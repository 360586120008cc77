"""The limit that is learned (`max_active="auto"`) beside every number, and beside none: a table, and plots over time.

Its one job: for each resource, run the same works under fixed limits, without a limit (256), and with "auto", in turns
within one run, and print the medians; then show limit and throughput over time where the capacity changes. Each run has
a queue of a new name, so nothing is remembered. `make bench-auto`.
"""

from __future__ import annotations

import argparse
import queue
import random
import sqlite3
import statistics
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import limited
from measure import CPUS, FREE_THREADED

import cmwq

FIXED = (2, 4, 8, 16, 32, 64)
NONE = 256
Limit = int | str
Work = Callable[[int], object]


@dataclass
class Resource:
    """Works of one kind. `made` yields the work, with everything that it needs, and is entered anew for each run."""

    name: str
    works: int
    made: Callable[[], Any]
    fixed: tuple[int, ...] = FIXED
    bounded: bool = True
    """It can take only so much, so the target is 0.9 of the best; else 0.95 of no limit."""


# ------------------------------------------------------------------------------------------- resources


@contextmanager
def sqlite_file() -> Iterator[Work]:
    with tempfile.TemporaryDirectory(prefix="cmwq-bench-") as folder:
        path = f"{folder}/test.db"
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("CREATE TABLE rows (number)")
            connection.commit()

        def work(number: int) -> None:
            with closing(sqlite3.connect(path, timeout=60)) as connection, connection:
                connection.execute("INSERT INTO rows VALUES (?)", (number,))

        yield work


@contextmanager
def server(kind: str, microseconds: int, places: int = limited.PLACES, knee: int = limited.KNEE) -> Iterator[Work]:
    """A server that each work asks once; there are as many connections as works run at a time."""
    with limited.running() as port:
        clients: queue.SimpleQueue[limited.Client] = queue.SimpleQueue()
        clients.put(limited.Client(port))
        set_capacity(port, places, knee)

        def work(number: int) -> None:
            try:
                client = clients.get_nowait()
            except queue.Empty:
                client = limited.Client(port)
            client.ask(kind, microseconds)
            clients.put(client)

        yield work
        while not clients.empty():
            clients.get().close()


def set_capacity(port: int, places: int, knee: int) -> None:
    client = limited.Client(port)
    client.ask("p", places)
    client.ask("k", knee)
    client.close()


@contextmanager
def connections() -> Iterator[Work]:
    """A pool of 8, as that of a database: a work waits for a connection, and then for the answer."""
    with limited.running() as port:
        pool: queue.SimpleQueue[limited.Client] = queue.SimpleQueue()
        for _ in range(8):
            pool.put(limited.Client(port))
        set_capacity(port, NONE, limited.KNEE)

        def work(number: int) -> None:
            client = pool.get()
            client.ask("s", 3000)
            pool.put(client)

        yield work
        for _ in range(8):
            pool.get().close()


@contextmanager
def plain(work: Work) -> Iterator[Work]:
    yield work


def sleeps(seconds: float) -> Callable[[], Any]:
    return lambda: plain(lambda number: time.sleep(seconds))


def mixed() -> Any:
    chance = random.Random(1)
    lengths = [0.005 if chance.random() < 0.5 else 0.2 for _ in range(10_000)]
    return plain(lambda number: time.sleep(lengths[number]))


DATA = random.Random(1).randbytes(100_000)

RESOURCES = [
    Resource("SQLite, one-row commits to one file (WAL)", 800, sqlite_file),
    Resource("a server with 20 places, 10 ms each", 1500, lambda: server("s", 10_000)),
    Resource("a server that slows down beyond 8, 4 ms alone", 800, lambda: server("w", 4000)),
    Resource("a pool of 8 connections, 3 ms each", 1500, connections),
    Resource("sleeps of 50 ms, 400", 400, sleeps(0.05), (16, 64), bounded=False),
    Resource("sleeps of 50 ms, 3000", 3000, sleeps(0.05), (16, 64), bounded=False),
    Resource("sleeps of 5 ms", 3000, sleeps(0.005), (16, 64), bounded=False),
    Resource("sleeps of 5 and 200 ms, mixed", 3000, mixed, (16, 64), bounded=False),
    Resource("computing: compression, 3 ms", 400, lambda: plain(lambda n: zlib.compress(DATA)), (2, 16), bounded=False),
    Resource("a server without a limit, 20 ms", 3000, lambda: server("s", 20_000, NONE), (16, 64), bounded=False),
    Resource("nothing", 30_000, lambda: plain(lambda number: None), (16, 64), bounded=False),
]


# ------------------------------------------------------------------------------------------- the table


def run_once(resource: Resource, limit: Limit, number: int) -> tuple[float, int]:
    """The seconds that all works take, and the limit in the end."""
    with resource.made() as work, cmwq.WorkQueue(f"run {number}", max_active=limit) as wq:  # type: ignore[arg-type]
        wq.submit(int).result()
        began = time.perf_counter()
        for future in wq.submit_many(work, range(resource.works)):
            future.result()
        return time.perf_counter() - began, wq.max_active


@dataclass
class Row:
    resource: Resource
    seconds: dict[Limit, list[float]] = field(default_factory=dict)
    learned: list[int] = field(default_factory=list)

    def median(self, limit: Limit) -> float:
        return statistics.median(self.seconds[limit])

    def best(self) -> Limit:
        return min((limit for limit in self.seconds if limit != "auto"), key=self.median)

    def cells(self) -> str:
        best, auto, none = self.best(), self.median("auto"), self.median(NONE)
        target = f"{self.median(best) / auto:.2f}" + (" (0.90)" if self.resource.bounded else "")
        beside_none = f"{none / auto:.2f}" + ("" if self.resource.bounded else " (0.95)")
        fixed = [f"{limit}: {self.median(limit) * 1e3:.0f}" for limit in (*self.resource.fixed, NONE)]
        learned = ", ".join(map(str, sorted(self.learned)))
        cells = (self.resource.name, self.resource.works, ", ".join(fixed), best, f"{auto * 1e3:.0f}", target)
        return f"| {' | '.join(map(str, (*cells, beside_none, learned)))} |"


def measure(resources: list[Resource], rounds: int, chance: random.Random) -> Iterator[Row]:
    number = 0
    for resource in resources:
        row = Row(resource)
        limits: list[Limit] = [*resource.fixed, NONE, "auto"]
        for _ in range(rounds):
            for limit in chance.sample(limits, len(limits)):
                number += 1
                seconds, learned = run_once(resource, limit, number)
                row.seconds.setdefault(limit, []).append(seconds)
                if limit == "auto":
                    row.learned.append(learned)
        yield row


# ------------------------------------------------------------------------------------------- over time


@dataclass
class Course:
    """Limit and throughput over time, while works always wait. `changes`: what happens when, in words."""

    title: str
    changes: list[tuple[float, str]]
    limits: list[tuple[float, int]] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)

    def rates(self, width: float = 0.25) -> tuple[list[float], list[float]]:
        """The middles of intervals, and works per second in each."""
        last = self.limits[-1][0]
        counts = [0] * int(last / width)
        for end in self.ends:
            if end / width < len(counts):
                counts[int(end / width)] += 1
        return [(n + 0.5) * width for n in range(len(counts))], [count / width for count in counts]


def follow(course: Course, work: Work, seconds: float, acts: list[tuple[float, Callable[[], object]]]) -> Course:
    """Keep works waiting for so long, and write down what becomes of the limit. acts: what is done when."""
    with cmwq.WorkQueue(f"course {course.title}", max_active="auto") as wq:
        began = time.monotonic()

        def noted(number: int) -> None:
            work(number)
            course.ends.append(time.monotonic() - began)

        futures: list[Any] = []
        while (now := time.monotonic() - began) < seconds:
            course.limits.append((now, wq.max_active))
            while acts and acts[0][0] <= now:
                acts.pop(0)[1]()
            if wq.nr_pending() < 1500:
                futures = wq.submit_many(noted, range(3000))
            time.sleep(0.01)
        for future in futures:
            future.cancel()
    return course


def courses(seconds: float) -> Iterator[Course]:
    third = seconds / 3
    with limited.running() as port:
        local = threading.local()

        def ask(kind: str, microseconds: int) -> Work:
            def work(number: int) -> None:
                if not hasattr(local, "client"):
                    local.client = limited.Client(port)
                local.client.ask(kind, microseconds)

            return work

        def places(number: int) -> Callable[[], None]:
            return lambda: set_capacity(port, number, limited.KNEE)

        def knee(number: int) -> Callable[[], None]:
            return lambda: set_capacity(port, limited.PLACES, number)

        places(40)()
        changes = [(0.0, "40 places"), (third, "5 places"), (2 * third, "40 places")]
        acts = [(third, places(5)), (2 * third, places(40))]
        yield follow(Course("a server of 40, 5 and 40 places, 20 ms each", changes), ask("s", 20_000), seconds, acts)
        knee(30)()
        changes = [(0.0, "beyond 30"), (third, "beyond 6"), (2 * third, "beyond 30")]
        acts = [(third, knee(6)), (2 * third, knee(30))]
        yield follow(Course("a server that slows down beyond 30, 6 and 30", changes), ask("w", 20_000), seconds, acts)
    with sqlite_file() as work:
        yield follow(Course("one-row commits to one SQLite file", []), work, third, [])
    yield follow(Course("sleeps of 50 ms", []), lambda number: time.sleep(0.05), third, [])


def draw(found: list[Course], path: Path) -> None:
    """One panel for each course: the limit as a line, what gets done as an area."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(len(found), 1, figsize=(10, 2.4 * len(found)), layout="constrained", squeeze=False)
    for panel, course in zip(panels[:, 0], found, strict=True):
        times, rates = course.rates()
        panel.fill_between(times, rates, step="mid", color="#4477aa", alpha=0.3)
        panel.set_ylim(0, max(rates) * 1.15)
        panel.set_ylabel("works per second", color="#4477aa")
        panel.set_title(course.title, fontsize=10, loc="left")
        limits = panel.twinx()
        limits.step(
            [at for at, _ in course.limits], [limit for _, limit in course.limits], where="post", color="#cc3311"
        )
        limits.set_yscale("log", base=2)
        limits.set_ylim(0.8, 330)
        limits.set_yticks([1, 4, 16, 64, 256], ["1", "4", "16", "64", "256"])
        limits.set_ylabel("limit", color="#cc3311")
        for at, words in course.changes:
            panel.axvline(at, color="black", linewidth=0.8, linestyle=":")
            panel.annotate(words, (at, 1), (4, -4), xycoords=("data", "axes fraction"), textcoords="offset points",
                           fontsize=8, va="top")  # fmt: skip
        panel.set_xlim(0, course.limits[-1][0])
    panels[-1, 0].set_xlabel("seconds")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="runs under each limit (default 3)")
    parser.add_argument("--only", default="", metavar="WORDS", help="only resources whose name contains these words")
    parser.add_argument("--seconds", type=float, default=24.0, help="of each course with changes (default 24; 0: none)")
    parser.add_argument("--seed", type=int, default=1, help="of the order of the runs")
    parser.add_argument("--chart", type=Path, metavar="FILE", help="svg or png, by its name (needs matplotlib)")
    options = parser.parse_args()
    version = sys.version.split()[0] + ("t" if FREE_THREADED else "")
    print(f"CPython {version}, {CPUS} CPUs, medians of {options.rounds} runs, in ms; targets in brackets\n")
    print(
        "| resource | works | under each number (256: no limit) | best | auto | best ÷ auto | none ÷ auto | learned |"
    )
    print("|---|---|---|---|---|---|---|---|")
    chosen = [resource for resource in RESOURCES if options.only in resource.name]
    for row in measure(chosen, options.rounds, random.Random(options.seed)):
        print(row.cells(), flush=True)
    if options.chart and options.seconds:
        draw(list(courses(options.seconds)), options.chart)
    return 0


if __name__ == "__main__":
    sys.exit(main())
