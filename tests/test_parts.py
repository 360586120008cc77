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


NOW_AND_THEN = """
from pathlib import Path
import pytest
@pytest.mark.parametrize("test", {tests})
def test_it(test):
    tries = Path(__file__).with_suffix("." + test[0])
    tries.write_text(tries.read_text() + "x" if tries.exists() else "x")
    assert test == "good" or len(tries.read_text()) not in {fails}
"""


@pytest.fixture
def run(tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The tool, with a tree of its own: two parts, in one of which tests fail at those tries of theirs."""

    def run(*arguments: str, fails: tuple[int, ...], tests: str = "x", one: str = "", two: str = "") -> int:
        for part, text in (("one", f"def test_it(): pass\n{one}"), ("two", NOW_AND_THEN + two)):
            (tmp_path / part).mkdir()
            named = ["good", *(f"{each} [word] :: more" for each in tests)]
            (tmp_path / part / f"test_{part}.py").write_text(text.format(tests=named, fails=fails))
        (tmp_path / "pytest.ini").write_text("[pytest]\n")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # they take a second to import
        monkeypatch.setattr(tool, "PARTS", (("one",), ("two",)))
        monkeypatch.setattr(tool, "compile_tree", lambda: None)
        status = tool.main(list(arguments))
        assert isinstance(status, int)
        return status

    return run


@pytest.mark.parametrize("named", [(), ("two", "one")])
def test_few_that_fail_and_pass_alone_are_named_and_no_failure(
    run: Callable[..., int], named: tuple[str, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    assert run("--again", *named, fails=(1,)) == 0
    *_, told, last = capfd.readouterr().out.splitlines()
    assert told == "two/test_two.py::test_it[x [word] :: more]"
    assert last.strip("= ").startswith("2 passed, 1 rerun in ")


@pytest.mark.parametrize(
    ("arguments", "there"),
    [
        ((), {"fails": (1,)}),
        (["--again"], {"fails": (1, 4)}),
        (["--again"], {"fails": (1,), "tests": "abcd"}),
        (["--again"], {"fails": (1,), "one": "def test_end(): import os; os._exit(1)"}),
        (["--again"], {"fails": (1,), "one": "def test_end(): import os; os.abort()"}),
        (["--again"], {"fails": (1,), "two": "def test_end(): raise KeyboardInterrupt"}),
        (
            ["--again"],
            {
                "fails": (1,),
                "two": "def test_end(request): request.session.shouldfail = 'late'\ndef test_unseen(): pass",
            },
        ),
    ],
    ids=["not asked", "fails again", "many", "ends early", "crashes", "is interrupted", "out of time"],
)
def test_all_else_that_fails_is_a_failure(
    run: Callable[..., int], arguments: list[str], there: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments, **there) != 0
    assert "rerun" not in capfd.readouterr().out.splitlines()[-1]
