"""cmwq in other people's frameworks, beside the pools that they come with, and beside these tuned by hand.

    python bench/integrations [LOAD ...] [--rounds N] [--json FILE]

Every load runs with every setting in turn, in a fresh process each time; a row shows the medians of the rounds. "tuned"
is the best of the sizes that were tried, which are named. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import platform
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

from loads import Load, all_loads

TIMEOUT = 300
"""Seconds for one run."""


def child(load: str, setting: str) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parent), "--child", load, setting],
        stdout=subprocess.PIPE, timeout=TIMEOUT, check=True, text=True,
    )  # fmt: skip
    told: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return told


def measured(load: Load, rounds: int) -> dict[str, dict[str, float]]:
    rows: dict[str, list[dict[str, float]]] = {setting: [] for setting in load.settings}
    for number in range(rounds):
        order = load.settings[number % len(load.settings) :] + load.settings[: number % len(load.settings)]
        for setting in order:
            rows[setting].append(child(load.name, setting))
    return {
        setting: {key: statistics.median(row[key] for row in told) for key in told[0]} for setting, told in rows.items()
    }


def lines(load: Load, figures: dict[str, dict[str, float]]) -> list[str]:
    """The rows of the table: stock, the best that was tuned, cmwq."""
    sizes = [each for each in load.settings if each not in ("stock", "cmwq")]
    shown = [("stock", "stock")]
    if sizes:
        best = min(sizes, key=lambda size: (figures[size]["failed"], figures[size]["seconds"]))
        shown.append((best, f"best of {', '.join(sizes)}: {best}"))
    told = []
    for setting, title in [*shown, ("cmwq", "**cmwq**")]:
        if setting in figures:
            row = figures[setting]
            per_second = row["done"] / row["seconds"] if row["seconds"] else 0
            told.append(
                f"| {load.title if not told else ''} | {title} | {row['seconds']:.2f} | {per_second:.0f} | "
                f"{row['p50'] * 1e3:.1f} | {row['p99'] * 1e3:.1f} | {row['failed']:.0f} | {row['threads']:.0f} | "
                f"{row['rss']:.0f} |"
            )
    return told


def missing(load: Load) -> list[str]:
    """What the load needs and this machine has not."""
    modules = [f"the module {each}" for each in load.needs if not can_import(each)]
    return modules + [f"the program {each}" for each in load.programs if shutil.which(each) is None]


def can_import(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even the package that it would be in
        return False


def versions(loads: list[Load]) -> str:
    told = [f"CPython {platform.python_version()}"]
    names = importlib.metadata.packages_distributions()
    for module in sorted({each for load in loads for each in load.needs}):
        for name in names.get(module.partition(".")[0], ())[:1]:
            told.append(f"{name} {importlib.metadata.version(name)}")
    return ", ".join(told)


def main() -> int:
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(all_loads()[sys.argv[2]].run(sys.argv[3]).row()), flush=True)
        return 0
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("loads", nargs="*", metavar="LOAD", help="a name, or the beginning of some; default: all")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--json", type=Path)
    chosen = options.parse_args()
    every = all_loads()
    wanted = [load for name, load in every.items() if not chosen.loads or name.startswith(tuple(chosen.loads))]
    if not wanted:
        options.error(f"no such load; there are {', '.join(every)}")
    print("| load | pool | s | per s | p50 ms | p99 ms | failed | threads | MB |\n" + "| --- " * 9 + "|", flush=True)
    kept, notes = {}, []
    for load in wanted:
        if absent := missing(load):
            notes.append(f"{load.name}: left out, for want of {' and '.join(absent)}")
            continue
        kept[load.name] = figures = measured(load, chosen.rounds)
        if chosen.json:
            chosen.json.write_text(json.dumps(kept, indent=1))
        print("\n".join(lines(load, figures)), flush=True)
        if load.note:
            notes.append(f"{load.title}: {load.note}")
    print(f"\n{versions(wanted)}; medians of {chosen.rounds} rounds in turns.", *notes, sep="\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
