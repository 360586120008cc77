"""Every figure that cmwq is measured by, on the interpreter that runs this: printed, and written as JSON.

Its one job: run the sections, each in a process of its own, so that none inherits another's threads and memory, and
collect their figures. A section that fails or hangs is a figure without a value; the others go on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

from cycle import profile
from dispatch import dispatch
from fine import fine
from measure import CPUS, Figure, Report, need_charts
from noticing import noticing
from oracle import oracle
from peers import peers
from quiet import quiet
from stable import cores, stable
from suite import QUIET, Load, machine

import cmwq

SECTIONS = {
    "oracle": oracle,
    "dispatch": dispatch,
    "fine": fine,
    "noticing": noticing,
    "quiet": quiet,
    "stable": stable,
    "cores": cores,
    "peers": peers,
    "profile": profile,
}
LIMIT = 900.0  # seconds for one section


def tag() -> str:
    """3.11, 3.13t."""
    return f"{sys.version_info[0]}.{sys.version_info[1]}{'t' if 't' in sys.abiflags else ''}"


def facts() -> dict[str, Any]:
    with cmwq.Executor() as pool:
        pool.submit(int).result()  # only then is it known which sensor serves
    return machine()


def here(name: str, quick: bool, chart: Path | None) -> dict[str, Any]:
    """One section, in this process."""
    report, load = Report(chart=chart), Load()
    try:
        SECTIONS[name](report, quick)
    except Exception as error:
        traceback.print_exc()
        report.figures.append(Figure(f"{name}.failed", f"section {name}", None, note=f"failed: {error!r}"))
    print(f"  ({load})", flush=True)
    return {
        "figures": [figure.to_dict() for figure in report.figures],
        "details": report.details,
        "cpus": CPUS,
        "others_cpu_share": load.others,
        "seconds": load.seconds,
    }


def in_child(name: str, quick: bool, chart: Path | None) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "section.json"
        command = [sys.executable, __file__, "--part", "--only", name, "--json", str(path)]
        command += ["--quick"] if quick else []
        command += ["--chart", str(chart)] if chart else []
        try:
            subprocess.run(command, timeout=LIMIT)
            sections: dict[str, dict[str, Any]] = json.loads(path.read_text())["sections"]
            return sections[name]
        except (OSError, ValueError, subprocess.TimeoutExpired) as error:
            failed = Figure(f"{name}.failed", f"section {name}", None, note=f"failed: {type(error).__name__}")
            print(f"section {name} {failed.note}", flush=True)
            return {"figures": [failed.to_dict()], "details": {}, "cpus": CPUS, "others_cpu_share": 0.0, "seconds": 0.0}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--only", action="append", choices=list(SECTIONS), help="repeatable; default: all")
    parser.add_argument("--quick", action="store_true", help="little of everything: a smoke test, not a measurement")
    parser.add_argument("--json", type=Path, metavar="FILE", help="{tag} in it stands for the interpreter")
    parser.add_argument("--chart", type=Path, metavar="FILE", help="the suite's, svg or png (needs matplotlib)")
    parser.add_argument("--part", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.chart:
        need_charts(parser)
    names = list(dict.fromkeys(options.only or SECTIONS))
    about, load = {} if options.part else facts(), Load()
    if about:
        print(", ".join(f"{key} {value}" for key, value in about.items()), flush=True)
    run = here if len(names) == 1 else in_child
    sections = {name: run(name, options.quick, options.chart) for name in names}
    if options.json:
        path = Path(str(options.json).replace("{tag}", tag()))
        document = {"tag": tag(), "machine": about, "quick": options.quick, "seconds": load.seconds}
        path.write_text(json.dumps(document | {"sections": sections}, indent=1) + "\n")
    figures = [figure for section in sections.values() for figure in section["figures"]]
    failed = [figure for figure in figures if figure["id"].endswith(".failed")]
    if not options.part:
        verdicts = [figure["verdict"] for figure in figures if figure["verdict"]]
        print(
            f"\n{len(verdicts)} targets: " + ", ".join(f"{verdicts.count(v)} {v}" for v in ("met", "noise", "missed"))
        )
        print(f"missed: {', '.join(f['id'] for f in figures if f['verdict'] == 'missed') or 'none'}")
        for figure in failed:
            print(f"FAILED: {figure['title']}: {figure['note']}")
        print(load)
        for name, section in sections.items():
            if section["cpus"] != CPUS:
                print(f"warning: section {name} ran on {section['cpus']} CPUs; they changed meanwhile")
        if max(section["others_cpu_share"] for section in sections.values()) > QUIET:
            print("warning: the machine was not quiet; repeat on a quieter one before believing small differences")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
