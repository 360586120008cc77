"""Where `cmwq map` imports from: the target from the current directory, nothing else that isn't asked for."""

from __future__ import annotations

import fcntl
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import SCRIPT, Cli, environment

HOSTILE = sorted(name for name in sys.stdlib_module_names if not name.startswith("__"))
THIRD = ["rich", "pygments", "markdown_it", "mdurl"]


@pytest.fixture
def hostile(folder: Path) -> Path:
    """A folder with a module for each of the standard library's names, and rich's: whoever imports one is noted."""
    for name in [*HOSTILE, *THIRD]:
        (folder / f"{name}.py").write_text(
            f"with open({str(folder / 'hijacked')!r}, 'a') as f: f.write('{name}\\n')\nraise RuntimeError\n"
        )
    (folder / "victim.py").write_text("def f(item): return 1 / len(item.strip('0'))\n")
    return folder


def hijacked(folder: Path) -> str:
    noted = folder / "hijacked"
    return noted.read_text() if noted.exists() else ""


@pytest.mark.parametrize("options", [["--resume", "log"], ["--progress", "--unordered", "--with-item", "--repr"]])
def test_a_foreign_directory_answers_no_import_of_ours(cli: Cli, hostile: Path, options: list[str]) -> None:
    for _ in range(2):
        done = cli("map", *options, "victim:f", "a", "0", "b", code=SCRIPT)
        assert done.returncode == 1
        assert done.stdout.count(b"\n") >= 2
        assert b"ZeroDivisionError" in done.stderr
    assert hijacked(hostile) == ""


def test_nor_of_the_display_on_a_terminal(hostile: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, *SCRIPT, "map", "--progress", "victim:f", "a", "0"]
    with subprocess.Popen(
        command, cwd=hostile, stdin=theirs, stdout=subprocess.PIPE, stderr=theirs, env=environment(TERM="xterm")
    ) as process:
        os.close(theirs)
        shown = b""
        try:
            while chunk := os.read(ours, 65536):
                shown += chunk
        except OSError:  # Linux's way to say that the terminal's last user is gone
            pass
        out, _ = process.communicate(timeout=60)
    os.close(ours)
    assert (process.returncode, out) == (1, b"1.0\n")
    assert b"1 failed" in shown
    assert hijacked(hostile) == ""


def test_logs_are_locked_in_a_foreign_directory(cli: Cli, hostile: Path) -> None:
    cli("map", "--resume", "log", "victim:f", "a", code=SCRIPT)
    with open(hostile / "log", "rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        done = cli("map", "--resume", "log", "victim:f", "a", code=SCRIPT)
    assert (done.returncode, done.stderr) == (2, b"cmwq map: error: log 'log' is in use by another run\n")
    assert hijacked(hostile) == ""


@pytest.mark.parametrize("code", [("-m", "cmwq"), SCRIPT])
def test_safe_path_is_honoured(cli: Cli, hostile: Path, code: tuple[str, ...]) -> None:
    safe = {"PYTHONSAFEPATH": "1"}
    done = cli("map", "targets:same", "a", code=code, env=safe)
    assert done.returncode == 2
    assert done.stderr == (
        b"cmwq map: error: no module named 'targets' (safe path: the current directory is not searched)\n"
    )
    done = cli("map", "--resume", "log", "posixpath:basename", "/x/y", code=code, env=safe)
    assert (done.returncode, done.stdout) == (0, b'"y"\n')
    assert hijacked(hostile) == ""


@pytest.mark.parametrize("name", ["queue", "os", "sys", "statistics"])  # loaded, frozen, built in, not loaded
def test_a_target_named_like_a_module_of_pythons_is_refused_in_words(cli: Cli, folder: Path, name: str) -> None:
    (folder / f"{name}.py").write_text("def f(item): return 'mine'\n")
    done = cli("map", f"{name}:f", "a", code=SCRIPT)
    assert (done.returncode, done.stdout) == (2, b"")
    (line,) = done.stderr.decode().splitlines()
    assert f"{folder / name}.py' can't be imported: Python's own module '{name}' comes first" in line


def test_a_module_that_comes_first_is_the_target(cli: Cli, folder: Path) -> None:
    (folder / "statistics.py").write_text("def f(item): return 'mine'\n")
    assert cli("map", "statistics:f", "a", code=("-m", "cmwq")).stdout == b'"mine"\n'


def test_a_folder_named_like_a_module_hides_nothing(cli: Cli, folder: Path) -> None:
    (folder / "os").mkdir()
    assert cli("map", "os.path:basename", "/x/y", code=SCRIPT).stdout == b'"y"\n'


def test_the_current_directory_comes_before_installed_packages(cli: Cli, folder: Path) -> None:
    pytest.importorskip("hypothesis")
    (folder / "hypothesis.py").write_text("def f(item): return 'mine'\n")
    assert cli("map", "hypothesis:f", "a", code=SCRIPT).stdout == b'"mine"\n'


def test_a_directory_that_is_gone(folder: Path) -> None:
    script = folder / SCRIPT[0]
    command = f"mkdir gone; cd gone; rmdir ../gone; exec {sys.executable} {script} map os.path:basename /x/y"
    done = subprocess.run(["bash", "-c", command], cwd=folder, capture_output=True, env=environment(), timeout=100)
    assert (done.returncode, done.stdout, done.stderr) == (0, b'"y"\n', b"")
