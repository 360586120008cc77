"""Write the column of tests in docs/promises.md: every test that is named after a promise. `make promises`."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "docs/promises.md"


def tests_of_promises() -> dict[str, dict[str, list[str]]]:
    """Promise: file: names of the tests, in the order in which they stand there."""
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and (match := re.match(r"test_((?:[A-H]\d+_)+)", node.name)):
                for promise in match[1].strip("_").split("_"):
                    found[promise][path.relative_to(ROOT / "tests").as_posix()].append(node.name)
    return found


def main() -> None:
    found = tests_of_promises()
    lines = TABLE.read_text().splitlines()
    for number, line in enumerate(lines):
        if match := re.match(r"\| ([A-H]\d+) \|", line):
            cells = line.split("|")
            # Tests that defend the promise under another name stay where they are.
            kept = [part for part in cells[3].strip().split("<br>") if part.startswith("`")]
            own = {
                file: [name for name in re.findall(r"`(\w+)`", part) if match[1] not in name.split("_")]
                for part in kept
                for file in re.findall(r"^`([\w/]+\.py)`", part)
            }
            files = {file: [*found[match[1]].get(file, ()), *own.get(file, ())] for file in {*found[match[1]], *own}}
            cell = "<br>".join(
                f"`{file}`: " + ", ".join(f"`{name}`" for name in names)
                for file, names in sorted(files.items())
                if names
            )
            cells[3] = f" {cell or 'not yet'} "
            lines[number] = "|".join(cells)
    TABLE.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
