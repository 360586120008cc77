"""A file that `cmwq exec` or `cmwq map` writes is given once: neither read, nor written for something else."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import environment, ran

Shell = Callable[[str], "subprocess.CompletedProcess[bytes]"]


@pytest.fixture
def shell(folder: Path) -> Shell:
    """Run a line in which $CMWQ is the command."""
    env = environment(CMWQ=f"{sys.executable} -m cmwq")
    return lambda line: ran(["sh", "-c", line], cwd=folder, capture_output=True, env=env, stdin=subprocess.DEVNULL)


TWICE = [  # options, redirection, what is said
    ("-a list --job-log list", "", "job log 'list' is the input as well"),
    ("-a list --resume list", "", "log 'list' is the input as well"),
    ("-a list --trace list", "", "trace 'list' is the input as well"),
    ("-a list --job-log link", "", "job log 'link' is the input as well"),
    ("-a list --job-log hard", "", "job log 'hard' is the input as well"),
    ("-a other -a list --job-log list", "", "job log 'list' is the input as well"),
    ("--job-log list", "< list", "job log 'list' is the input as well"),
    ("-a list", ">> list", "the input is standard output as well"),
    ("-a list", "2>> list", "the input is standard error as well"),
    ("--resume new --trace new", "< list", "trace 'new' is log 'new' as well"),
    ("--resume new --job-log ./new", "< list", "job log './new' is log 'new' as well"),
    ("--job-log new --trace new", "< list", "trace 'new' is job log 'new' as well"),
    ("--resume new", "< list > new", "log 'new' is standard output as well"),
    ("--job-log new", "< list > new", "job log 'new' is standard output as well"),
    ("--job-log new", "< list 2> new", "job log 'new' is standard error as well"),
    ("--trace new", "< list > new", "trace 'new' is standard output as well"),
]


@pytest.mark.parametrize(("options", "redirection", "said"), TWICE)
def test_a_file_that_is_given_twice_is_refused(
    shell: Shell, folder: Path, options: str, redirection: str, said: str
) -> None:
    for name in ("list", "other"):
        (folder / name).write_text("")  # a log would begin with a line of its own
    (folder / "link").symlink_to("list")
    os.link(folder / "list", folder / "hard")
    done = shell(f"$CMWQ exec {options} -- sh -c 'echo ran >> effects' sh {redirection}")
    place = (folder / redirection.split()[-1]).read_bytes() if "2>" in redirection else done.stderr
    assert (done.returncode, place.decode(), done.stdout) == (2, f"cmwq exec: error: {said}\n", b"")
    assert "2>> list" in redirection or (folder / "list").read_bytes() == b""
    assert not (folder / "effects").exists()


@pytest.mark.parametrize("files", ["--resume new --trace new", "-a list --resume list", "-a list --trace list"])
def test_map_refuses_it_too(shell: Shell, folder: Path, files: str) -> None:
    (folder / "list").write_text("a\n")
    done = shell(f"$CMWQ map {files} targets:same < list")
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.endswith(b" as well\n")
    assert (folder / "list").read_text() == "a\n"
    assert not (folder / "effects").exists()


def test_what_does_no_harm_is_allowed(shell: Shell, folder: Path) -> None:
    (folder / "list").write_text("a\n")
    done = shell("$CMWQ exec -a list -a list --job-log jobs -- sh -c 'echo out; echo err >&2' > both 2>&1")
    assert (done.returncode, (folder / "both").read_text().split()) == (0, ["out", "err"] * 2)
    done = shell("$CMWQ exec --job-log /dev/null --resume /dev/null --trace jobs -- echo < /dev/null > /dev/null")
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(("command", "status"), [("true", 2), ("false", 1)])
def test_a_trace_that_cannot_be_written_is_told_by_the_status(shell: Shell, command: str, status: int) -> None:
    done = shell(f"$CMWQ exec --trace /dev/full a -- {command}")
    assert done.returncode == status
    assert b"cmwq exec: no trace: /dev/full" in done.stderr
