"""The programs in examples/ do what they say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import HANG

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

# Absent where only a part of the tree was copied (tools/trees.py).
pytestmark = pytest.mark.skipif(not EXAMPLES.exists(), reason="no examples here")


def test_E12_a_table_of_jobs() -> None:
    command = [sys.executable, str(EXAMPLES / "jobs.py"), "50"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG, check=False)
    assert done.stderr == ""
    found = re.fullmatch(r"50 jobs of 0.1 s each in ([\d.]+) s; the table was asked (\d+) times\n", done.stdout)
    assert found, done.stdout
    assert 51 <= int(found[2]) <= 101, "asked more often than there were jobs and notifications"


def test_H2_a_trace_of_a_service(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "trace.py"), "t.json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=HANG, check=False)
    assert done.stderr == ""
    found = re.fullmatch(
        r"(answered: 20\n){3}t\.json: 120 works, 120 arrows\nblocked for longest: [\d.]+ ms, waits .*\n", done.stdout
    )
    assert found, done.stdout
