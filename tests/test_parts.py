"""`make test` runs its tests in parts, side by side: every test is in one of them, whatever is left out."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOOL = ROOT / "tools/run_tests.py"

# Absent where only a part of the tree was copied (tools/trees.py).
pytestmark = pytest.mark.skipif(not TOOL.exists(), reason="no tools here")


@pytest.fixture
def tool(tool: Callable[[str], ModuleType]) -> ModuleType:
    return tool(TOOL.stem)


def test_a_directory_is_in_one_part_and_the_first_has_what_no_other_has(tool: ModuleType) -> None:
    first, *others = tool.PARTS
    named = [each for part in others for each in part]
    assert sorted(each.partition("=")[2] for each in first) == sorted(set(named)) == sorted(named)
    assert [each for each in named if not (ROOT / each).is_dir()] == []


def test_what_is_to_be_ignored_is_in_no_part(tool: ModuleType) -> None:
    """pytest would run a directory that is named, though it is to be ignored, too."""
    assert tool.selections(["-q", "--ignore=tests/cli/x.py"]) == [list(part) for part in tool.PARTS]
    gone = tool.PARTS[1]
    left = tool.selections([f"--ignore={each}/" for each in gone])
    assert left[1:] == [list(part) for part in tool.PARTS[2:]]
    some = tool.selections([f"--ignore={gone[0]}"])
    assert some[1] == list(gone[1:])


def test_only_what_exists_names_tests(tool: ModuleType) -> None:
    assert tool.names_tests(["tests/sim"])
    assert tool.names_tests(["-q", "tests/test_parts.py::test_only_what_exists_names_tests"])
    assert not tool.names_tests(["-q", "--ignore=tests/cli", "--deselect=tests/test_parts.py::x", "-k", "no_such"])


def test_closing_lines_are_added_up(tool: ModuleType) -> None:
    one = tool.counts("=== 1 failed, 20 passed, 1 skipped in 1.50s ===")
    other = tool.counts("3 passed, 1 error, 1 warning in 61.00s (0:01:01)")
    assert not tool.counts("tests/sim/test_rules.py ....")
    assert tool.closing(one + other, 61.0).strip("= ") == (
        "1 failed, 23 passed, 1 skipped, 1 warnings, 1 errors in 61.00s (0:01:01)"
    )


def test_programs_find_bytecode_though_none_may_be_written(tool: ModuleType, tmp_path: Path) -> None:
    package = tmp_path / "src"
    package.mkdir()
    (tmp_path / "tests").mkdir()
    (package / "some.py").write_text("print(__cached__)\n")
    tool.compile_tree(tmp_path)
    done = subprocess.run(
        [sys.executable, "-B", "-c", "import some"], cwd=package, capture_output=True, text=True, timeout=60, check=True
    )
    assert Path(done.stdout.strip()).exists(), done.stdout
