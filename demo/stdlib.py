"""The main job on real input: every source file of the standard library, read, worked on, waited for, written.

Its one job: show, side by side, what `cmwq.Executor()` and `ThreadPoolExecutor` of four sizes do with the same items in
the same order, in several rounds in which they take turns; and draw it (`picture`). It guarantees that all contenders
produced identical results (else exit status 1), that nothing is left out silently (a sample is announced, with its
reason), and that server and temporary files are gone at the end. It assumes nothing beyond the standard library and
cmwq; rich, if present, draws the progress on a terminal.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import http.client
import io
import json
import os
import random
import resource
import shutil
import sys
import sysconfig
import tempfile
import threading
import time
import tokenize
import warnings
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import NamedTuple
from urllib.parse import quote

import picture
import slow_http

BUDGET = 45.0  # seconds all contenders together may be expected to take, in all rounds; the promise is 60
ROUNDS = 3
PICTURE = Path("out/demo.svg")
TOKENISE_SHARE = 2.5  # of it, CPU seconds of tokenising per contender
TOKENISE_CHOICES = (16384, 8192, 4096, 2048, 1024)
QUICK_FILES = 250


class Source(NamedTuple):
    path: Path
    name: str  # relative to the library, with /
    size: int


class Result(NamedTuple):
    name: str
    size: int
    sha256: str
    compressed: int
    tokens: int
    receipt: str


def find_sources() -> tuple[list[Source], int]:
    """All readable *.py of the standard library, site-packages left out; and how many could not be read."""
    root = Path(sysconfig.get_path("stdlib"))
    found, unreadable = [], 0
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if {"site-packages", "dist-packages"} & set(name.parts) or not path.is_file():
            continue
        if os.access(path, os.R_OK):
            found.append(Source(path, name.as_posix(), path.stat().st_size))
        else:
            unreadable += 1
    return found, unreadable


def evenly(sources: list[Source], count: int) -> list[Source]:
    """`count` of them, evenly spread by size and in the original order: the same ones every time."""
    if count >= len(sources):
        return sources
    by_size = sorted(sources, key=lambda source: (source.size, source.name))
    picked = {by_size[i * len(by_size) // count].name for i in range(count)}
    return [source for source in sources if source.name in picked]


def count_tokens(source: bytes, limit: int) -> int:
    """Tokens in the first `limit` bytes, up to where they stop being Python (a cut string, a test's bad file)."""
    tokens = 0
    try:
        for _ in tokenize.tokenize(io.BytesIO(source[:limit]).readline):
            tokens += 1
    except (tokenize.TokenError, SyntaxError, UnicodeError, ValueError):
        pass
    return tokens


def os_threads() -> int:
    """Threads of this process as the system counts them; where it doesn't say, as Python does."""
    try:
        with open("/proc/self/stat", "rb") as stat:
            return int(stat.read().rpartition(b")")[2].split()[17])
    except OSError:
        return threading.active_count()


class Job:
    """What is done to one file. One per contender: connections and the count of threads are not shared."""

    def __init__(self, port: int, folder: Path, tokenise: int) -> None:
        self.port, self.folder, self.tokenise = port, folder, tokenise
        self.local = threading.local()
        self.threads_seen: list[int] = []
        self.spans: list[tuple[float, float]] = []

    def __call__(self, source: Source) -> Result:
        self.threads_seen.append(os_threads())
        began = time.perf_counter()
        data = source.path.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        compressed = len(zlib.compress(data))
        tokens = count_tokens(data, self.tokenise)
        result = Result(source.name, len(data), digest, compressed, tokens, self.ask(source.name))
        self.write(result)
        self.spans.append((began, time.perf_counter()))
        return result

    def ask(self, name: str) -> str:
        connection = getattr(self.local, "connection", None)
        if connection is None:
            connection = self.local.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request("GET", "/" + quote(name))
        return str(connection.getresponse().read(), "ascii")

    def write(self, result: Result) -> None:
        fd = os.open(self.folder / (result.name.replace("/", "+") + ".json"), os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            os.write(fd, json.dumps(result).encode() + b"\n")
            os.fsync(fd)
        finally:
            os.close(fd)


@dataclass(frozen=True)
class Contender:
    name: str
    make: Callable[[], Executor]
    size: int  # for the estimate; 0: sizes itself
    waiting: Callable[[], int] = lambda: 0  # threads that it has from a round before, and that wait for the next


def cmwq_contender() -> Contender:
    try:
        import cmwq
    except ImportError as error:
        sys.exit(f"demo: cannot import cmwq ({error}); `make demo` installs it first")
    return Contender("cmwq.Executor()", cmwq.Executor, 0, lambda: sum(pool.workers for pool in cmwq.snapshot().pools))


def threads_contender(size: int | None) -> Contender:
    if size is not None:
        return Contender(f"ThreadPoolExecutor({size})", lambda: ThreadPoolExecutor(size), size)
    pool = ThreadPoolExecutor()
    return Contender(f"ThreadPoolExecutor() = {pool._max_workers}", ThreadPoolExecutor, pool._max_workers)


class Outcome(NamedTuple):
    contender: str
    digest: str
    items: int
    size: int
    seconds: float
    cpu: float
    switches: int
    threads: int
    spans: tuple[tuple[float, float], ...]
    """From when to when each item was under way, in seconds since the beginning."""


class Progress:
    """Where a contender is. A bar on a terminal (rich if it is there), a line now and then elsewhere.

    Drawn by the thread that collects results, at most ten times a second: no thread of its own that would be counted.
    """

    def __init__(self, total: int) -> None:
        self.total, self.label, self.due, self.bar = total, "", 0.0, None
        self.tty = sys.stderr.isatty()
        if self.tty:
            try:
                from rich.console import Console
                from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
                from rich.progress import Progress as Bar
            except ImportError:
                return
            columns = (TextColumn("{task.description:<26}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self.bar = Bar(*columns, console=Console(stderr=True), auto_refresh=False)
            self.bar.start()

    def begin(self, label: str) -> None:
        self.label, self.began = label, time.monotonic()
        self.due = self.began + (0.1 if self.tty else 3.0)
        if self.bar:
            self.task = self.bar.add_task(label, total=self.total)

    def done(self, count: int, threads: int) -> None:
        now = time.monotonic()
        if now < self.due and count < self.total:
            return
        self.due = now + (0.1 if self.tty else 3.0)
        if self.bar:
            self.bar.update(self.task, completed=count, refresh=True)
        else:
            text = f"{self.label:<26} {count:>5}/{self.total}  {now - self.began:5.1f} s  {threads} threads"
            end = "\r" if self.tty and count < self.total else "\n"
            print(text, end=end, file=sys.stderr, flush=True)

    def end(self) -> None:
        if self.bar:
            self.bar.stop()


def settled_threads() -> int:
    """The number of threads once those of the contender before have left (join returns a little before they do)."""
    count = os_threads()
    deadline = time.monotonic() + 0.5
    while time.monotonic() < deadline:
        time.sleep(0.02)
        before, count = count, os_threads()
        if count == before:
            break
    return count


def run(contender: Contender, sources: list[Source], job: Job, progress: Progress) -> Outcome:
    gc.collect()
    present = settled_threads() - contender.waiting()
    progress.begin(contender.name)
    digest = hashlib.sha256()
    size = count = 0
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    pool = contender.make()
    try:
        for result in pool.map(job, sources):
            digest.update(json.dumps(result).encode() + b"\n")
            size += result.size
            count += 1
            progress.done(count, job.threads_seen[-1] - present)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
    written = hashlib.sha256()
    for source in sources:
        written.update((job.folder / (source.name.replace("/", "+") + ".json")).read_bytes())
    if written.digest() != digest.digest():
        sys.exit(f"demo: what {contender.name} wrote to disk is not what it returned")
    return Outcome(
        contender.name,
        digest.hexdigest(),
        count,
        size,
        seconds,
        after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        after.ru_nvcsw + after.ru_nivcsw - before.ru_nvcsw - before.ru_nivcsw,
        max(job.threads_seen, default=present) - present,
        tuple((begin - began, end - began) for begin, end in job.spans),
    )


def typical(rounds: list[Outcome]) -> Outcome:
    """The rounds of one contender as one outcome: each figure is the median, and the course that of a median round."""
    middle = sorted(rounds, key=lambda outcome: outcome.seconds)[len(rounds) // 2]
    return middle._replace(
        seconds=median(outcome.seconds for outcome in rounds),
        cpu=median(outcome.cpu for outcome in rounds),
        switches=round(median(outcome.switches for outcome in rounds)),
        threads=round(median(outcome.threads for outcome in rounds)),
    )


@dataclass(frozen=True)
class Plan:
    sources: list[Source]
    tokenise: int
    notes: list[str]


def make_plan(sources: list[Source], contenders: list[Contender], folder: Path, rounds: int) -> Plan:
    """Read every file once (the page cache is then warm for all) and fit the work to BUDGET by measurement."""
    for source in sources:
        source.path.read_bytes()
    sample = [(source, source.path.read_bytes()) for source in evenly(sources, 60)]
    scale = len(sources) / max(1, len(sample))

    def cost(work: Callable[[Source, bytes], object]) -> float:
        began = time.perf_counter()
        for source, data in sample:
            work(source, data)
        return (time.perf_counter() - began) * scale

    probe = Job(0, folder, 0)
    tokenise, python = TOKENISE_CHOICES[-1], 0.0
    for tokenise in TOKENISE_CHOICES:
        python = cost(lambda _, data: count_tokens(data, tokenise))  # noqa: B023 -- called within this turn
        if python <= TOKENISE_SHARE:
            break
    native = cost(lambda _, data: (hashlib.sha256(data).digest(), zlib.compress(data)))
    disk = cost(lambda source, _: probe.write(Result(source.name, 0, "0" * 64, 0, 0, "0" * 16)))
    waits = sum(slow_http.latency_of("/" + quote(source.name)) for source in sources)
    request = 0.0004 * len(sources)  # CPU of one request with http.client
    cpus = os.cpu_count() or 1
    expected = 0.0
    for contender in contenders:
        size = contender.size or 32
        cpu = max(python + request, (python + request + native) / min(cpus, size))
        expected += rounds * max(1.2 * cpu, (waits + disk + python + request + native) / size)
    notes = [
        f"waits of {waits / len(sources) * 1000:.1f} ms, fsync of {disk / len(sources) * 1000:.2f} ms on average; "
        f"the first {tokenise // 1024} KiB of each file are tokenised (fits {TOKENISE_SHARE} s of CPU per contender)"
    ]
    if expected > BUDGET:
        count = max(1, int(len(sources) * BUDGET / expected))
        notes.append(
            f"all {len(sources)} files would take about {expected:.0f} s here: {count} of them are used, evenly spread "
            "by size"
        )
        sources = evenly(sources, count)
    return Plan(sources, tokenise, notes)


def print_table(outcomes: list[Outcome], rounds: int) -> None:
    width = max(len(outcome.contender) for outcome in outcomes)
    heads = f"{'items':>6} {'MB':>6} {'seconds':>8} {'items/s':>8} {'threads':>8} {'switches':>9} {'CPU s':>6}"
    print(f"\n{'':{width}} {heads}")
    for o in sorted(outcomes, key=lambda outcome: outcome.seconds):
        print(
            f"{o.contender:{width}} {o.items:>6} {o.size / 1e6:>6.1f} {o.seconds:>8.2f} {o.items / o.seconds:>8.0f} "
            f"{o.threads:>8} {o.switches:>9} {o.cpu:>6.2f}"
        )
    print(
        "\nthreads: most at once, beyond those present before. switches: context switches of the whole process.\n"
        f"Fastest first; medians of {rounds} rounds, in which they took turns in a new order."
    )


def draw(outcomes: list[Outcome], path: Path) -> None:
    """The picture: to the terminal, and as an SVG to that file."""
    rows = [picture.Row(o.contender, o.seconds, o.threads, o.switches, o.spans) for o in outcomes]
    print("\nHow many files were under way at each moment, from the beginning to the end:\n")
    print(picture.terminal(rows, shutil.get_terminal_size((100, 24)).columns))
    gil = "" if getattr(sys, "_is_gil_enabled", lambda: True)() else " free-threaded"
    title = f"{outcomes[0].items} files read, hashed, compressed, tokenised, reported to a server and written"
    machine = f"Python {sys.version.split()[0]}{gil}, {os.cpu_count()} CPUs"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(picture.svg(rows, f"{title}; {machine}"))
    print(f"\nThe same as a picture: {path}")


@contextmanager
def temporary_folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="cmwq-demo-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help=f"only {QUICK_FILES} files, evenly spread by size")
    parser.add_argument("--limit", type=positive, metavar="N", help="only N files, evenly spread by size")
    parser.add_argument("--rounds", type=positive, default=ROUNDS, metavar="N", help="turns of each (%(default)s)")
    parser.add_argument("--picture", type=Path, default=PICTURE, metavar="FILE", help="drawn there (%(default)s)")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # the tokeniser has opinions on the library's own test files

    found, unreadable = find_sources()
    if not found:
        sys.exit(f"demo: no source files under {sysconfig.get_path('stdlib')}")
    wanted = options.limit or (QUICK_FILES if options.quick else len(found))
    sources = evenly(found, wanted)
    # cmwq in the middle: whatever a first or last place brings, it is not cmwq that gets it.
    threads = [threads_contender(size) for size in (32, 2, None, 128)]
    contenders = [*threads[:2], cmwq_contender(), *threads[2:]]

    gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    print(
        f"Python {sys.version.split()[0]}{'' if gil else ' free-threaded'}, {os.cpu_count()} CPUs, "
        f"{len(sources)} of {len(found)} standard library files, {sum(s.size for s in sources) / 1e6:.1f} MB"
        + (f", {unreadable} unreadable left out" if unreadable else "")
    )
    with temporary_folder() as folder, slow_http.running() as port:
        plan = make_plan(sources, contenders, folder, options.rounds)
        for note in plan.notes:
            print(note, flush=True)
        progress = Progress(len(plan.sources))
        ran: dict[str, list[Outcome]] = {contender.name: [] for contender in contenders}
        chance = random.Random(1)
        try:
            for number in range(options.rounds):
                for contender in contenders:
                    own = folder / f"{number} {contender.name}"
                    own.mkdir()
                    outcome = run(contender, plan.sources, Job(port, own, plan.tokenise), progress)
                    ran[contender.name].append(outcome)
                    shutil.rmtree(own)
                chance.shuffle(contenders)
        finally:
            progress.end()
    outcomes = [typical(rounds) for rounds in ran.values()]
    print_table(outcomes, options.rounds)
    draw(outcomes, options.picture)
    digests = {outcome.digest for rounds in ran.values() for outcome in rounds}
    if len(digests) != 1:
        print("demo: the contenders' results differ:", file=sys.stderr)
        for outcome in outcomes:
            print(f"  {outcome.digest[:16]}  {outcome.contender}", file=sys.stderr)
        return 1
    print(f"All {len(outcomes)} produced the same results, in every round: sha256 {outcomes[0].digest[:16]}…")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
