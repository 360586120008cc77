"""The C extension: what its folder has, and that it can be built for one Python and for all."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "src/cmwq/_sensor/_native"
COMPILER = (os.environ.get("CC") or "cc").split()

pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason="no source here")


def test_every_file_of_the_native_folder_is_a_part_of_the_module() -> None:
    """What module.c includes, and what that includes, is all there is; and module.c lists it."""
    included, todo = set[str](), ["module.c"]
    while todo:
        name = todo.pop()
        if name not in included:
            included.add(name)
            todo += re.findall(r'^#include "(\w+\.h)"$', (FOLDER / name).read_text(), re.MULTILINE)
    assert included == {path.name for path in FOLDER.iterdir() if path.suffix in (".c", ".h")}
    listed = re.findall(r"^       (\w+\.h) ", (FOLDER / "module.c").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(included - {"module.c"})


def test_its_files_and_functions_are_short() -> None:
    """So each can be read at a sitting: what grows beyond asks to be two."""
    for path in FOLDER.glob("*.[ch]"):
        lines = path.read_text().splitlines()
        assert len(lines) <= 450, path.name
        begins = [number for number, line in enumerate(lines) if line == "{"]
        for begin in begins:
            assert lines.index("}", begin) - begin < 60, f"{path.name}: {lines[begin - 1]}"


def compiled(*options: str) -> str:
    """What the compiler says of the module, warnings being errors; empty if it is content. Skips without a compiler."""
    include = sysconfig.get_path("include")
    if shutil.which(COMPILER[0]) is None or not (Path(include) / "Python.h").exists():
        pytest.skip("no compiler, or no headers of this Python")
    warnings = ["-Wall", "-Wextra", "-Werror", "-Wno-missing-field-initializers", "-Wno-cast-function-type"]
    # Headers of the system are those of Python too: what is wrong in them is not ours.
    command = [*COMPILER, "-std=gnu11", "-fsyntax-only", *warnings, "-isystem", include, *options, FOLDER / "module.c"]
    return subprocess.run(command, capture_output=True, text=True).stderr


linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the extension needs Linux")


@linux
def test_it_compiles_without_a_warning() -> None:
    assert compiled() == ""


@linux
@pytest.mark.skipif(bool(sysconfig.get_config_var("Py_GIL_DISABLED")), reason="free-threaded: there is no limited API")
@pytest.mark.parametrize("oldest", ["0x030B0000", "0x030C0000"])
def test_it_compiles_against_the_limited_API(oldest: str) -> None:
    """That of 3.11, which the wheel for all Pythons is built for; and that of 3.12, which has more to offer."""
    if int(oldest, 16) > sys.hexversion:
        pytest.skip("this Python is older")
    assert compiled(f"-DPy_LIMITED_API={oldest}") == ""
