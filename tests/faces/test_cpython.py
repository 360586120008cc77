"""CPython's own tests of ThreadPoolExecutor hold for `cmwq.Executor`, but for those that `tools` names, with why."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "run_cpython_tests.py"
HANGS = 300  # seconds; it takes 25

THERE = bool(importlib.util.find_spec("test")) and bool(importlib.util.find_spec("test.test_concurrent_futures"))


@pytest.mark.timeout(3 * HANGS + 10)
@pytest.mark.skipif(not THERE, reason="this Python came without its tests")
def test_CPythons_own_tests_pass_with_our_executor() -> None:
    """A few fail as they must. One of these that passes by chance is no fault here; `make cpython-tests` tells it.

    Some rely on the time that things take, so one that fails is run again, as CPython's own runner does.
    """
    failed, words = fails()
    for _ in range(2):
        if failed:
            failed, words = fails(*failed)
    assert failed == [], words


def fails(*names: str) -> tuple[list[str], str]:
    """Which of the tests of these names, or of all, fail though they should not, and what is said of them."""
    done = subprocess.run(
        [sys.executable, str(TOOL), *names],
        capture_output=True,
        text=True,
        timeout=HANGS,
        env={**os.environ, "PYTHONPATH": ""},
    )
    lines = done.stdout.splitlines()
    assert "failed as expected" in lines[-1], done.stderr
    return [line.removeprefix("FAILED: ") for line in lines if line.startswith("FAILED: ")], done.stderr
