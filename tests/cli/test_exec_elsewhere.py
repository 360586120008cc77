"""`cmwq exec` with what some Pythons lack taken away: those of uv, those of macOS, builds without ctypes."""

from __future__ import annotations

import os

import pytest

from .conftest import Cli

LACKING = sorted(
    name
    for name in dir(os)
    if name.startswith(("pidfd", "pipe2", "posix_spawn", "POSIX_SPAWN", "memfd", "eventfd", "splice", "copy_file"))
    or name in ("O_TMPFILE", "getrandom", "posix_fallocate", "posix_fadvise", "setns", "unshare")
)
"""What a Python has if the system it was built on did. uv's are built for an old glibc; macOS has none of it."""
CLOSED = ("sh", "-c", 'echo "out $1"; exec 1>&- 2>&-; sleep 0.1', "sh")
"""A command that still runs when its output is closed, so that its end has to be waited for."""


def without(*names: str, modules: tuple[str, ...] = ()) -> tuple[str, str]:
    """The command, in a Python that lacks these."""
    return (
        "-c",
        f"""
import os, sys
for name in {names!r}:
    if hasattr(os, name):
        delattr(os, name)
sys.modules.update(dict.fromkeys({modules!r}))
from cmwq.cli import main
sys.exit(main())
""",
    )


@pytest.mark.parametrize("names", [("pidfd_open",), ("pipe2",), tuple(LACKING)], ids=["pidfd", "pipe2", "all"])
@pytest.mark.parametrize("modules", [(), ("ctypes", "resource")], ids=["", "no ctypes"])
def test_exec_runs_without_what_some_pythons_lack(cli: Cli, names: tuple[str, ...], modules: tuple[str, ...]) -> None:
    code = without(*names, modules=modules)
    numbers = [str(number) for number in range(10)]
    done = cli("exec", "--timeout", "60", *numbers, "--", *CLOSED, code=code)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode().splitlines() == [f"out {number}" for number in numbers]
    done = cli("exec", "--timeout", "0.3", "a", "--", "sh", "-c", "exec 1>&- 2>&-; sleep 100", code=code)
    assert (done.returncode, b"timed out after 0.3 s" in done.stderr) == (1, True)
    done = cli("exec", "--shell", "a", "--", "head -c 1000000 /dev/zero | wc -c; exit 3", code=code)
    assert (done.returncode, done.stdout) == (1, b"1000000\n")


def test_without_waitid_exec_is_refused_in_one_line(cli: Cli) -> None:
    names = ("waitid", "waitid_result", "P_PID", "P_ALL", "WEXITED", "WNOWAIT")
    done = cli("exec", "a", "--", "echo", code=without(*names))
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"cmwq exec: error: commands need os.waitid")
    assert done.stderr.count(b"\n") == 1
    assert cli("exec", "--dry-run", "a", "--", "echo", code=without(*names)).stdout == b"echo a\n"
