"""The examples of asyncio and FastAPI do what they say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import HANG

EXAMPLES = Path(__file__).parents[2] / "examples"

pytestmark = pytest.mark.skipif(not EXAMPLES.is_dir(), reason="the examples are not here")


def output_of(name: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, *arguments], stdout=subprocess.PIPE, text=True, timeout=2 * HANG, check=True
    )
    return done.stdout


def test_event_loop() -> None:
    lines = output_of("event_loop.py").splitlines()
    assert len(lines) == 4
    assert all("the look-up took" in line for line in lines[:2])
    assert lines[2] == "20 calls awaited, ten at a time"


def test_fastapi_deadlock() -> None:
    for name in ("fastapi", "uvicorn", "httpx"):
        pytest.importorskip(name, reason=f"{name} is not installed")
    stock, ours = output_of("fastapi_deadlock.py", "150").splitlines()
    assert int(re.findall(r"(\d+) failed", stock)[0]) > 0
    assert "150 of 150 requests answered, 0 failed" in ours
