"""`cmwq map --resume`: nothing lost, nothing run twice, nobody else's file touched."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import Cli, environment


def effects(folder: Path) -> Counter[str]:
    return Counter((folder / "effects").read_text().splitlines())


def test_what_succeeded_is_printed_again_but_not_run(cli: Cli, folder: Path) -> None:
    first = cli("map", "--resume", "log", "targets:same", "a", "b", "a")
    again = cli("map", "--resume", "log", "--progress", "targets:same", "a", "b", "a", "c")
    assert first.stdout == b'"a"\n"b"\n"a"\n'
    assert again.stdout == b'"a"\n"b"\n"a"\n"c"\n'
    assert b"3 from the log" in again.stderr
    assert effects(folder) == {"a": 2, "b": 1, "c": 1}


def test_failures_are_retried(cli: Cli, folder: Path) -> None:
    assert cli("map", "--resume", "log", "targets:picky", "a", "bad").returncode == 1
    again = cli("map", "--resume", "log", "targets:picky", "a", "bad", env={"FORGIVE": "1"})
    assert (again.returncode, again.stdout) == (0, b'"a"\n"bad"\n')
    third = cli("map", "--resume", "log", "targets:picky", "a", "bad")
    assert (third.returncode, third.stdout) == (0, b'"a"\n"bad"\n')
    assert effects(folder) == {"a": 1, "bad": 2}


def test_killed_in_the_middle(cli: Cli, folder: Path) -> None:
    numbers = [str(number) for number in range(1000)]
    killed = cli("map", "--resume", "log", "targets:fatal", input="\n".join(numbers).encode())
    assert killed.returncode == -9
    logged = {json.loads(line)["item"] for line in (folder / "log").read_bytes().split(b"\n")[1:-1]}
    assert logged >= {json.loads(line) for line in killed.stdout.splitlines()}  # in the log first
    again = cli("map", "--resume", "log", "targets:fatal", input="\n".join(numbers).encode(), env={"FORGIVE": "1"})
    assert again.returncode == 0
    assert [json.loads(line) for line in again.stdout.splitlines()] == numbers
    count = effects(folder)
    assert all(count[item] == 1 for item in logged)
    assert set(count) == set(numbers)


@pytest.mark.parametrize("kept", ["half of the last line", "half of the header", "no newline"])
def test_log_cut_in_the_middle_of_a_line(cli: Cli, folder: Path, kept: str) -> None:
    cli("map", "--resume", "log", "targets:same", "a", "b")
    whole = (folder / "log").read_bytes()
    length, rerun = {
        "half of the last line": (len(whole) - 20, 1),
        "half of the header": (20, 2),
        "no newline": (len(whole) - 1, 1),
    }[kept]
    (folder / "log").write_bytes(whole[:length])
    (folder / "effects").unlink()
    again = cli("map", "--resume", "log", "targets:same", "a", "b")
    assert (again.returncode, again.stdout) == (0, b'"a"\n"b"\n')
    assert effects(folder).total() == rerun
    lines = (folder / "log").read_bytes().splitlines()
    assert len(lines) == 3
    assert all(json.loads(line) for line in lines)


def test_unordered_log_and_bytes(cli: Cli, folder: Path, unordered: Callable[..., bytes]) -> None:
    assert unordered("--resume", "log") == b'"2"\n"1"\n'
    assert cli("map", "--resume", "log", "targets:after_two", "1", "2").stdout == b'"1"\n"2"\n'
    cli("map", "--resume", "log2", "targets:same", input=b"\xff\n")
    assert cli("map", "--resume", "log2", "targets:same", input=b"\xff\n").stdout == b'"\\udcff"\n'
    assert (folder / "effects").read_bytes() == b"\xff\n"


@pytest.mark.parametrize(
    ("target", "items", "message"),
    [
        ("targets:picky", "a b c", "log 'log' belongs to another target: targets:same"),
        ("targets:same", "new x c", "log 'log' belongs to other items: item 1 is 'new', there 'a'"),
        ("targets:same", "a x new", "log 'log' belongs to other items: item 2 is 'x', there 'b'"),
        ("targets:same", "a", "log 'log' belongs to other items: it has item 2, the input has 1"),
    ],
)
def test_log_of_something_else_is_refused(cli: Cli, folder: Path, target: str, items: str, message: str) -> None:
    cli("map", "--resume", "log", "targets:same", "a", "b")
    before = (folder / "log").read_bytes(), (folder / "effects").read_bytes()
    done = cli("map", "--resume", "log", target, *items.split())
    assert done.returncode == 2
    assert done.stderr.decode() == f"cmwq map: error: {message}\n"
    assert done.stdout == b""
    assert before == ((folder / "log").read_bytes(), (folder / "effects").read_bytes())


@pytest.mark.parametrize(
    "content", [b"dear diary", b"dear diary\n", b'{"cmwq": "map", "version": 9}\n', b"\xff\0", b"{}\n"]
)
def test_a_file_that_is_no_log_is_left_alone(cli: Cli, folder: Path, content: bytes) -> None:
    (folder / "log").write_bytes(content)
    done = cli("map", "--resume", "log", "targets:same", "a")
    assert done.returncode == 2
    assert done.stderr.startswith(b"cmwq map: error: ")
    assert done.stderr.count(b"\n") == 1
    assert (folder / "log").read_bytes() == content
    assert not (folder / "effects").exists()


@pytest.mark.parametrize("line", [b"garbage\n", b'{"index": 0}\n', b"\n", b"[" * 100000 + b"\n", b"\0\0\0\n"])
def test_damaged_line_is_refused(cli: Cli, folder: Path, line: bytes) -> None:
    cli("map", "--resume", "log", "targets:same", "a")
    damaged = (folder / "log").read_bytes() + line
    (folder / "log").write_bytes(damaged)
    done = cli("map", "--resume", "log", "targets:same", "a", "b")
    assert done.returncode == 2
    assert b"line 3 is damaged" in done.stderr
    assert (folder / "log").read_bytes() == damaged


def test_two_runs_cannot_share_a_log(cli: Cli, folder: Path) -> None:
    cli("map", "--resume", "log", "targets:same", "a")
    with open(folder / "log", "rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        done = cli("map", "--resume", "log", "targets:same", "a")
    assert done.returncode == 2
    assert done.stderr == b"cmwq map: error: log 'log' is in use by another run\n"


def test_log_that_is_no_file(cli: Cli) -> None:
    assert cli("map", "--resume", "/dev/null", "targets:same", "a").stdout == b'"a"\n'


def test_after_a_cut_line_no_other_is_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cmwq.cli import log as module

    log = module.Log(str(folder / "log"), "map", "t:f")
    real = module.write_all

    def disk_fills(fd: int, *parts: bytes) -> None:
        real(fd, parts[0][:10])
        raise OSError("no space")

    monkeypatch.setattr(module, "write_all", disk_fills)
    with pytest.raises(OSError, match="no space"):
        log.record(0, "a", True, b'"result": 1')
    monkeypatch.setattr(module, "write_all", real)
    before = (folder / "log").read_bytes()
    with pytest.raises(OSError, match="no space"):
        log.record(1, "b", True, b'"result": 2')
    log.close()
    assert (folder / "log").read_bytes() == before


def test_a_file_that_cannot_be_locked_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cmwq.cli import log as module

    def no_locks(fd: int, operation: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(module.Refusal, match="can't be locked where it is: No locks available"):
        module.Log(str(folder / "log"), "map", "t:f")


def test_a_huge_file_of_another_kind_is_not_read(folder: Path) -> None:
    with open(folder / "log", "wb") as file:
        file.truncate(8 << 30)  # one line, and no space on the disk
    command = f"ulimit -v 2000000; exec {sys.executable} -m cmwq map --resume log targets:same a"
    done = subprocess.run(["bash", "-c", command], cwd=folder, capture_output=True, env=environment(), timeout=100)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr == b"cmwq map: error: 'log' is not a log of cmwq map; it was left as it is\n"
