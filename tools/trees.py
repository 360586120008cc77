"""The tree as tests run it, and copies of it to be changed and run.

It is compiled first: else, where the environment keeps Python from writing bytecode, each of the thousand programs that
tests start would compile all that it imports, which takes it longer than all the rest.
"""

from __future__ import annotations

import compileall
import os
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("src", "tests", "tools", "bench", "demo", "examples")


def compile_tree(root: Path = ROOT) -> None:
    """Compile cmwq and the tests."""
    for part in ("src", "tests"):
        compileall.compile_dir(root / part, quiet=2, workers=os.cpu_count() or 1)


def copy_tree(target: Path, *without: str) -> None:
    """Copy what tests run into a folder that is empty, all but documents. without: patterns of names to leave out.

    The copy is as compiled as the tree is, except for what is changed in it.
    """
    for part in PARTS:
        shutil.copytree(ROOT / part, target / part, ignore=shutil.ignore_patterns("*.egg-info", *without))
    shutil.copy(ROOT / "pyproject.toml", target)
