"""Run each test on several threads at once, by pytest-run-parallel: what breaks then is shared where it must not be.

Its one job: `run_parallel.py [PYTEST OPTIONS]` runs the tests of `TESTS` with `THREADS` threads each. On a
free-threaded Python these run at the same time; with a GIL they take turns.

Guarantees: a test is left out only by name, with the reason, and such a name must still exist.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
THREADS = 4
TESTS = ("tests/sim",)
"""Tests that make all they need themselves. In the other folders a test shares its runtime with the fixture that made
it, or is about the process as a whole."""
_COUNTS = "it counts what was logged, and caplog has what all threads log"
NOT_AT_ONCE = {
    "tests/sim/test_rescuer.py::test_F7_a_rescuers_queue_that_flushes_one_without_is_warned_of_once": _COUNTS,
    "tests/sim/test_serving.py::test_E12_a_source_that_raises_is_asked_again_later_and_later": _COUNTS,
    "tests/sim/test_traps.py::test_trap_the_managers_role_is_left_by_one_who_failed": _COUNTS,
}
"""Tests that can't be run at the same time as themselves, and why."""


def main(argv: list[str]) -> int:
    gone = [name for name in NOT_AT_ONCE if not (ROOT / name.partition("::")[0]).exists()]
    if gone:
        print(f"no such tests any more: {', '.join(gone)}", file=sys.stderr)
        return 2
    left_out = [f"--deselect={name}" for name in NOT_AT_ONCE]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--parallel-threads={THREADS}"]
    if getattr(sys, "_is_gil_enabled", lambda: True)():
        print("this Python has a GIL: threads take turns, so less can be seen", flush=True)
    return subprocess.call([*command, *left_out, *(argv or TESTS)], cwd=ROOT)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
