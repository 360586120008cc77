"""What type checkers make of cmwq's public names.

Its one job: run pyright, beside the mypy of `make types`:
1. over `tests/surface`, whose functions assert by `assert_type` what users get;
2. with `--verifytypes`: does every public name have a type that is known? Names of commands and integrations are only
   counted: what they are depends on which frameworks are installed. A class with an attribute whose type is inferred,
   and not written down, counts as ambiguous; that is told, and is no error.

Exit status: 1 if anything is wrong.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SURFACE = "tests/surface"
COUNTED_ONLY = ("cmwq.cli.", "cmwq.contrib.", "cmwq.observing.")


def pyright(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, *arguments]
    # --verifytypes does not follow the link by which an editable install is found.
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    return subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True)


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
    unknown = [each for each in found["symbols"] if each["isExported"] and not each["isTypeKnown"]]
    unknown = [each for each in unknown if not each["isTypeAmbiguous"]]
    lacking = [each for each in unknown if not each["name"].startswith(COUNTED_ONLY)]
    for each in lacking:
        print(each["name"], *(said["message"] for said in each["diagnostics"]), sep="\n    ")
    counts = found["exportedSymbolCounts"]
    print(
        f"public names: {counts['withKnownType']} known, {counts['withAmbiguousType']} ambiguous, "
        f"{counts['withUnknownType']} unknown"
    )
    return bool(counts["withKnownType"]) and not lacking


def main() -> int:
    return 0 if all([check_surface(), check_completeness()]) else 1


if __name__ == "__main__":
    sys.exit(main())
