"""The examples of docs/events.md do what it says they do."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from cmwq.events import Kind

PAGE = Path(__file__).resolve().parent.parent.parent / "docs/events.md"

# Absent where only a part of the tree was copied (tools/trees.py).
pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="no docs here")


def examples() -> list[tuple[str, str]]:
    """Programs, and what they print."""
    if not PAGE.exists():
        return []
    return re.findall(r"```python\n(.*?)```\n```output\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.mark.parametrize(("program", "output"), examples())
def test_H2_the_examples_run(
    python: Callable[..., subprocess.CompletedProcess[str]], program: str, output: str
) -> None:
    done = python(program)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", output)


def test_H2_the_page_names_every_kind() -> None:
    table = [line.split("|")[1] for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    assert sorted(re.findall(r"`(\w+)`", " ".join(table))) == sorted(Kind)
    assert len(examples()) == 2
