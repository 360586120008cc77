"""What type checkers make of cmwq's public names.

Its one job: run pyright, beside the mypy of `make types`:
1. over `tests/surface`, whose functions assert by `assert_type` what users get;
2. with `--verifytypes`: does every public name have a type that is known, written down and not inferred?

Exit status: 1 if anything is wrong.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SURFACE = "tests/surface"


def pyright(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, text=True, capture_output=True)


def check_surface() -> bool:
    done = pyright("--project", SURFACE)
    print(done.stdout, end="")
    return done.returncode == 0


def check_completeness() -> bool:
    """Print each name that lacks something."""
    done = pyright("--verifytypes", "cmwq", "--ignoreexternal", "--outputjson")
    try:
        found = json.loads(done.stdout)["typeCompleteness"]
    except (ValueError, KeyError):
        print(done.stdout, done.stderr, "pyright said nothing of the public names")
        return False
    lacking = [each for each in found["symbols"] if each["isExported"] and not each["isTypeKnown"]]
    for each in lacking:
        print(each["name"], *(said["message"] for said in each["diagnostics"]), sep="\n    ")
    counts = found["exportedSymbolCounts"]
    print(
        f"public names: {counts['withKnownType']} known, {counts['withAmbiguousType']} ambiguous, "
        f"{counts['withUnknownType']} unknown"
    )
    return not lacking


def main() -> int:
    return 0 if all([check_surface(), check_completeness()]) else 1


if __name__ == "__main__":
    sys.exit(main())
