"""`cmwq exec` beside `xargs -P N` and GNU parallel: the same commands, in turns, swept over the number of processes.

Its one job: a table of seconds, per kind of command and contender, in markdown. `make bench-exec`. GNU parallel is left
out where it isn't installed. Everything is started as a user would start it, so each figure has the contender's
start-up in it, and it has the output of all commands.

Commands that compute are loops of the shell, calibrated so that one takes the same time on any machine. How many
compute at a time is looked up ten times a second in /proc, and is therefore rough: short peaks are missed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from measure import CPUS, turns

SIZES = (1, 2, 4, 8, 16, 64, 128)
LOOP = 'i=0; while [ "$i" -lt {rounds} ]; do i=$((i+1)); done'
LOOK = 0.1  # seconds between looks at how many compute


@dataclass(frozen=True)
class Workload:
    """So many commands. Each is a program with arguments; the item is appended."""

    name: str
    items: int
    command: tuple[str, ...]
    item: str = "item"


@dataclass
class Run:
    seconds: float
    computing: int
    """The most commands that were seen computing at a time."""


def workloads(scale: float, rounds_per_second: float) -> list[Workload]:
    """Computing, sleeping, both, and commands that do nothing. scale: of the numbers of commands."""

    def burn(seconds: float) -> str:
        return LOOP.format(rounds=int(seconds * rounds_per_second))

    def number(n: int) -> int:
        return max(4, int(n * scale))

    mixed = f"{burn(0.1)}; sleep 0.2; {burn(0.1)}"
    return [
        Workload("nothing", number(300), ("true",)),
        Workload("computing 0.2 s", number(60), ("sh", "-c", burn(0.2), "sh")),
        Workload("sleeping 0.5 s", number(100), ("sleep",), item="0.5"),
        Workload("0.1 s, sleeping 0.2 s, 0.1 s", number(60), ("sh", "-c", mixed, "sh")),
    ]


def calibrated() -> float:
    """Rounds of the loop per second of CPU time: the best of some, for others may be working."""
    best = 0.0
    for _ in range(5):
        before = os.times()
        subprocess.run(["sh", "-c", LOOP.format(rounds=300_000)], check=True)
        after = os.times()
        spent = after.children_user + after.children_system - before.children_user - before.children_system
        best = max(best, 300_000 / max(spent, 0.01))
    return best


def contenders(sizes: Sequence[int]) -> dict[str, list[str]]:
    found = {"cmwq exec": [sys.executable, "-m", "cmwq", "exec", "--"]}
    found |= {f"xargs -P{size}": ["xargs", "-n1", f"-P{size}"] for size in sizes}
    if shutil.which("parallel"):
        found |= {f"parallel -j{size}": ["parallel", "--will-cite", f"-j{size}", "-q"] for size in sizes}
    return found


def run(command: list[str], workload: Workload, folder: Path) -> Run:
    """One run of a contender, from its start to its end."""
    (folder / "items").write_text(f"{workload.item}\n" * workload.items)
    counting = Counting()
    with open(folder / "items") as items, open(folder / "out", "w") as out:
        with counting:
            began = time.perf_counter()
            process = subprocess.Popen([*command, *workload.command], stdin=items, stdout=out, env=environment())
            counting.root = process.pid
            status = process.wait()
            took = time.perf_counter() - began
    if status:
        raise SystemExit(f"{' '.join(command)} ended with status {status}")
    return Run(took, counting.most)


def environment() -> dict[str, str]:
    """A user's: with compiled modules kept, as after an installation."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


class Counting:
    """Looks, from time to time, how many processes below `root` are runnable."""

    def __init__(self) -> None:
        self.root = 0
        self.most = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(LOOK):
            if self.root:
                self.most = max(self.most, sum(map(is_computing, children(self.root))))


def children(pid: int) -> list[int]:
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
        listed = [Path(f"/proc/{pid}/task/{task}/children").read_text() for task in tasks]
    except OSError:
        return []
    return [int(child) for line in listed for child in line.split()]


def is_computing(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] == "R"


def measure(options: argparse.Namespace) -> dict[str, dict[str, list[Run]]]:
    """The runs, by workload and contender. After Ctrl-C: those of the workloads that are done."""
    results: dict[str, dict[str, list[Run]]] = {}
    names = contenders(options.sizes)
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(KeyboardInterrupt):
        for workload in workloads(options.scale, calibrated()):
            runs: dict[str, list[Run]] = {name: [] for name in names}
            once = {name: partial(add_run, runs[name], names[name], workload, Path(folder)) for name in names}
            turns(once, options.rounds, workload.name)
            results[f"{workload.items} x {workload.name}"] = runs
            print(f"measured: {workload.name}", file=sys.stderr, flush=True)
    return results


def add_run(runs: list[Run], command: list[str], workload: Workload, folder: Path) -> float:
    runs.append(run(command, workload, folder))
    return runs[-1].seconds


def table(results: dict[str, dict[str, list[Run]]]) -> list[str]:
    """Medians in seconds, and in parentheses the most commands that were seen computing."""
    names = list(next(iter(results.values())))
    lines = [f"| seconds (computing at a time) | {' | '.join(results)} |", "|---" * (len(results) + 1) + "|"]
    for name in names:
        cells = []
        for runs in results.values():
            seconds = statistics.median(each.seconds for each in runs[name])
            cells.append(f"{seconds:.2f} ({max(each.computing for each in runs[name])})")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    for kind in ("xargs", "parallel"):
        rivals = [name for name in names if name.startswith(kind)]
        if not rivals:
            continue
        cells = []
        for runs in results.values():
            times = {name: statistics.median(each.seconds for each in runs[name]) for name in names}
            best = min(rivals, key=times.__getitem__)
            cells.append(f"{times['cmwq exec'] / times[best]:.2f} x {best.split()[1]}")
        lines.append(f"| cmwq exec by the best {kind} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5, help="how often each takes its turn (5)")
    parser.add_argument("--scale", type=float, default=1.0, help="more or fewer commands (1.0)")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="numbers of processes to try")
    parser.add_argument("--json", metavar="FILE", help="write all times there too")
    options = parser.parse_args()
    results = measure(options)
    if not results:
        raise SystemExit("nothing was measured")
    load = os.getloadavg()[0]
    print(f"{CPUS} CPUs, Linux {platform.release()}, Python {platform.python_version()}, {version('xargs')}, "
          f"{version('parallel')}; median of {options.rounds}, in turns; load at the end {load:.1f}\n")  # fmt: skip
    print("\n".join(table(results)))
    if options.json:
        plain = {
            workload: {name: [vars(each) for each in runs] for name, runs in rows.items()}
            for workload, rows in results.items()
        }
        Path(options.json).write_text(json.dumps(plain, indent=1) + "\n")


def version(program: str) -> str:
    if shutil.which(program) is None:
        return f"no {program}"
    return subprocess.run([program, "--version"], capture_output=True, text=True).stdout.partition("\n")[0]


if __name__ == "__main__":
    main()
