"""`bench/figures.py` looks into private parts: it still finds them, and `bench/performance.py` what it writes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).parents[2] / "bench"


def test_figures_become_a_document(tmp_path: Path) -> None:
    figures, document = tmp_path / "figures.json", tmp_path / "performance.md"
    sections = ["--only", "profile", "--only", "cores"]
    done = subprocess.run(
        [sys.executable, BENCH / "figures.py", "--quick", "--json", figures, *sections], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(json.loads(figures.read_text())["sections"]) == {"profile", "cores"}
    done = subprocess.run(
        [sys.executable, BENCH / "performance.py", figures, "--output", document], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "## All cores, without a GIL" in document.read_text()
    assert "| submit, whole |" in document.read_text()
