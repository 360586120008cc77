"""The C file's folder: what a source distribution has of it, and what a change of it builds anew."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = "src/cmwq/_sensor/_native"


def test_every_file_of_the_native_folder_is_named_where_it_is_built() -> None:
    """One that is not would be missing in a source distribution, and editing it would build nothing."""
    (extension,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["ext-modules"]
    assert sorted(extension["sources"] + extension["depends"]) == sorted(
        f"{FOLDER}/{path.name}" for path in (ROOT / FOLDER).iterdir() if path.suffix in (".c", ".h")
    )


def test_its_files_and_functions_are_short() -> None:
    """So each can be read at a sitting: what grows beyond asks to be two."""
    for path in (ROOT / FOLDER).glob("*.[ch]"):
        lines = path.read_text().splitlines()
        assert len(lines) <= 450, path.name
        begins = [number for number, line in enumerate(lines) if line == "{"]
        for begin in begins:
            assert lines.index("}", begin) - begin < 60, f"{path.name}: {lines[begin - 1]}"
