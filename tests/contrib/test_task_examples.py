"""The programs in examples/ for joblib, APScheduler, taskiq, and the consumers, do what they say."""

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


@pytest.mark.parametrize(
    ("name", "needs", "says"),
    [
        ("joblib_backend", "joblib", r"threading: 40 naps .*\ncmwq: 40 naps .*\ncmwq: 4 levels .* 256 leaves\n"),
        ("apscheduler_jobs", "apscheduler", r"30 jobs of 0.2 s each in [\d.]+ s\n"),
        ("taskiq_app", "taskiq", r"40 tasks of 0.1 s each in [\d.]+ s\n"),
        ("kafka_like", "cmwq", r"400 messages .* each in order\n"),
        ("pubsub_like", "cmwq", r"400 messages .* 40 failed once and came again; at most \d+ were leased at a time\n"),
        (
            "dask_cluster",
            "distributed",
            r"Dask: 40 visits .*\ncmwq: 40 visits .* and 20540 in all\nin order: \[\(0, 0\), .*\]\n",
        ),
    ],
)
def test_the_program_says_what_it_shows(name: str, needs: str, says: str) -> None:
    pytest.importorskip(needs, reason=f"{needs} can't be imported here")
    command = [sys.executable, str(EXAMPLES / f"{name}.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG, check=False)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(says, done.stdout), done.stdout
