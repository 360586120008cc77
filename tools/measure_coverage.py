"""How much of the code the tests reach, by line and by branch.

Its one job: `measure_coverage.py [TEST ...]` runs the tests under coverage.py, programs that they start included, and
prints a table of the core's modules (`_core`, `_pool`, `_workqueue`), one line for each of the other packages, and last
the core's share of branches. The status is 1 if that is below `ENOUGH`, or if tests fail.

Guarantees: what is measured is this tree's source. Figures are of the whole run only: with tests given, or with -k,
nothing is asked of them.

Left out: tests that need the trace function for themselves (`tests/interrupted`, tracing and profiling of works);
commands and frameworks (`tests/cli`, `tests/contrib`, `tests/observing`), programs around the same core; tests of real
faults, which need root. What only these reach counts as not reached.

--html: a page for each file in out/coverage/html, too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "out/coverage"
CORE = ("_core", "_pool", "_workqueue")
ENOUGH = 95.0
"""Per cent of the core's branches."""
FOLDERS = ("door", "end", "events", "faces", "host", "model", "queues", "real", "sensors", "sim", "waits")
TESTS = [*(f"tests/{name}" for name in FOLDERS), "--ignore=tests/door/test_tracing.py"]
TOO_LONG = ["--deselect=tests/sim/test_rescuer.py::test_C4_10_000_works_in_chains_on_one_thread"]
"""With a trace function they take many minutes."""


def coverage(*arguments: str) -> int:
    """Run coverage.py. Its status."""
    environment = {**os.environ, "COVERAGE_FILE": str(OUT / "data")}
    return subprocess.call([sys.executable, "-m", "coverage", *arguments], cwd=ROOT, env=environment)


def package_of(file: str) -> str:
    """Of a file of the source: `_pool`; of one that lies in no package, its own name."""
    return file.partition("src/cmwq/")[2].partition("/")[0]


def share(summaries: list[dict[str, Any]], covered: str, number: str) -> float:
    """Per cent; 100 of nothing."""
    whole = sum(each[number] for each in summaries)
    return 100 * sum(each[covered] for each in summaries) / whole if whole else 100.0


def row(name: str, summaries: list[dict[str, Any]], missing: str = "") -> str:
    lines = share(summaries, "covered_lines", "num_statements")
    branches = share(summaries, "covered_branches", "num_branches")
    return f"{name:34} {lines:6.1f} {branches:9.1f}  {missing}".rstrip()


def table(files: dict[str, Any]) -> Iterator[str]:
    yield f"{'':34} {'lines':>6} {'branches':>9}  not taken, from line to line (negative: out of the function)"
    for file, entry in sorted(files.items()):
        if package_of(file) in CORE:
            missing = " ".join(f"{a}>{b}" for a, b in entry["missing_branches"])
            yield row(file.partition("src/cmwq/")[2], [entry["summary"]], missing)
    yield ""
    for package in sorted({package_of(file) for file in files}):
        yield row(package, [entry["summary"] for file, entry in files.items() if package_of(file) == package])


def main(argv: list[str]) -> int:
    html = "--html" in argv
    chosen = [each for each in argv if each != "--html"]
    OUT.mkdir(parents=True, exist_ok=True)
    coverage("erase")
    tests = [
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--timeout=300",
        "--timeout-method=signal",
        *TOO_LONG,
        *(chosen or TESTS),
    ]
    status = coverage("run", *tests)
    if coverage("combine", "--quiet") or coverage("json", "--quiet", "-o", str(OUT / "coverage.json")):
        return 1
    if html:
        coverage("html", "--quiet", "-d", str(OUT / "html"))
    files = json.loads((OUT / "coverage.json").read_text())["files"]
    print("\n".join(table(files)))
    core = [entry["summary"] for file, entry in files.items() if package_of(file) in CORE]
    reached = share(core, "covered_branches", "num_branches")
    print(f"\ncore: {reached:.1f} % of {sum(each['num_branches'] for each in core)} branches, {ENOUGH:g} % is enough")
    return status or (0 if chosen or reached >= ENOUGH else 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
