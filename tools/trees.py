"""Copies of the tree, to be changed and run: whatever is done to one, the tree itself is not touched."""

from __future__ import annotations

import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("src", "tests", "tools", "bench", "demo", "examples")


def copy_tree(target: Path, *without: str) -> None:
    """Copy what tests run into a folder that is empty, all but documents. without: patterns of names to leave out."""
    for part in PARTS:
        shutil.copytree(
            ROOT / part, target / part, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", *without)
        )
    shutil.copy(ROOT / "pyproject.toml", target)
