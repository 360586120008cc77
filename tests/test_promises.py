"""docs/promises.md can't rot: what it names exists, and what there is, it names."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "docs/promises.md"
TESTS, CODE = ROOT / "tests", ROOT / "src/cmwq"
OF_QUEUES = [f"E{n}" for n in range(1, 11)] + [f"F{n}" for n in range(1, 10)]

# Absent where only a part of the tree was copied (tools/trees.py).
pytestmark = pytest.mark.skipif(not TABLE.exists(), reason="no docs here")


def named_in(cell: str) -> set[tuple[str, str]]:
    """The pairs of file and name of one cell: `a.py`: `x`, `y`<br>`b.py`: `z`."""
    found = set()
    for line in cell.split("<br>"):
        words: list[str] = re.findall(r"`([^`]+)`", line)
        if words and words[0].endswith(".py"):
            found |= {(words[0], name) for name in words[1:]}
    return found


def rows() -> dict[str, tuple[str, set[tuple[str, str]], set[tuple[str, str]]]]:
    """What each promise says, its tests, its code."""
    found = {}
    for line in TABLE.read_text().splitlines():
        if match := re.match(r"\| ([A-H]\d+) \|", line):
            _, _, says, tests, code, _ = line.split("|")
            assert match[1] not in found, f"{match[1]} has two rows"
            found[match[1]] = (says.strip(), named_in(tests), named_in(code))
    return found


@cache
def names_in(path: Path) -> frozenset[str]:
    """Functions, classes and methods of a file: f, C, C.m."""
    names = set()

    def collect(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names.add(prefix + node.name)
            if isinstance(node, ast.ClassDef):
                collect(node.body, f"{node.name}.")

    collect(ast.parse(path.read_text()).body, "")
    return frozenset(names)


def missing(pairs: set[tuple[str, str]], root: Path) -> list[str]:
    return sorted(
        f"{file}: {name}" for file, name in pairs if not (root / file).is_file() or name not in names_in(root / file)
    )


def test_every_promise_of_queues_and_waits_has_words_tests_and_code() -> None:
    table = rows()
    for promise in OF_QUEUES:
        says, tests, code = table[promise]
        assert says, promise
        assert any(promise in name.split("_") for _, name in tests), f"no test is named after {promise}"
        assert code, f"no code is named for {promise}"


def test_every_test_and_every_function_named_exists() -> None:
    for promise, (_, tests, code) in rows().items():
        assert missing(tests, TESTS) == [], f"{promise} names tests that are not there"
        assert missing(code, CODE) == [], f"{promise} names code that is not there"


def test_every_test_named_after_a_promise_is_listed() -> None:
    table = rows()
    unlisted = []
    for path in sorted(TESTS.rglob("test_*.py")):
        file = path.relative_to(TESTS).as_posix()
        for name in sorted(names_in(path)):
            if match := re.match(r"test_((?:[A-H]\d+_)+)", name):
                for promise in match[1].strip("_").split("_"):
                    if promise not in table or (file, name) not in table[promise][1]:
                        unlisted.append(f"{promise}: `{file}`: `{name}`")
    assert unlisted == [], "add these to docs/promises.md"
