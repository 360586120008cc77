"""`cmwq exec --resume`: nothing lost, nothing run twice; and what the logs say."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from .conftest import Cli, environment, ran

NOTE = ("sh", "-c", 'echo "$1" >> effects; echo "out $1"; echo "err $1" >&2; case $1 in bad*) [ -e fine ];; esac', "sh")


def effects(folder: Path) -> Counter[str]:
    return Counter((folder / "effects").read_text().splitlines())


def logged(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_what_succeeded_is_printed_again_but_not_run(cli: Cli, folder: Path) -> None:
    first = cli("exec", "--resume", "log", "a", "bad", "b", "--", *NOTE)
    assert (first.returncode, first.stdout) == (1, b"out a\nout bad\nout b\n")
    (folder / "fine").touch()
    again = cli("exec", "--resume", "log", "a", "bad", "b", "c", "--", *NOTE)
    assert (again.returncode, again.stdout) == (0, b"out a\nout bad\nout b\nout c\n")
    assert again.stderr == b"err a\nerr bad\nerr b\nerr c\n"
    assert effects(folder) == {"a": 1, "bad": 2, "b": 1, "c": 1}
    third = cli("exec", "--resume", "log", "--tag", "--progress", "a", "bad", "b", "c", "--", *NOTE)
    assert third.stdout == b"a\tout a\nbad\tout bad\nb\tout b\nc\tout c\n"
    assert b"4 from the log" in third.stderr
    assert effects(folder).total() == 5


def test_what_the_logs_say(cli: Cli, folder: Path) -> None:
    (folder / "jobs").write_bytes(b"mine\n")
    begun = time.time()
    cli("exec", "--retries", "1", "--resume", "log", "--job-log", "jobs", "a b", "bad", "--", *NOTE)
    header, *entries = logged(folder / "log")
    assert header == {"cmwq": "exec", "version": 1, "target": shlex.join(NOTE)}
    good, bad = sorted(entries, key=lambda entry: entry["index"])
    assert good["item"] == "a b"
    assert good["command"].endswith(" sh 'a b'")
    assert begun - 1 < good["start"] < time.time() + 1
    assert 0 < good["seconds"] < 60
    assert (good["ok"], good["status"], good["signal"], good["tries"]) == (True, 0, None, 1)
    assert (good["stdout"], good["stderr"]) == ("out a b\n", "err a b\n")
    assert (bad["ok"], bad["status"], bad["signal"], bad["tries"]) == (False, 1, None, 2)
    assert "stdout" not in bad
    mine, *jobs = (folder / "jobs").read_bytes().splitlines()
    assert mine == b"mine"  # what was there stays
    del good["stdout"], good["stderr"]
    assert sorted(map(json.loads, jobs), key=lambda entry: int(entry["index"])) == [good, bad]


def test_large_and_binary_output_comes_back(cli: Cli, folder: Path) -> None:
    data = os.urandom(300_000)
    (folder / "data").write_bytes(data)
    for _ in range(2):
        done = cli(
            "exec", "--resume", "log", "data", "--", "sh", "-c", 'echo x >> effects; tee /dev/stderr < "$1"', "sh"
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, data, data)
    assert effects(folder).total() == 1
    assert max(map(len, (folder / "log").read_bytes().splitlines())) < 500_000  # no line is long


def test_pieces_without_their_item_are_dropped(cli: Cli, folder: Path) -> None:
    """cmwq died in the middle of writing a large output."""
    command = ("--", "sh", "-c", 'head -c 200000 /dev/zero | tr "\\0" "$1"', "sh")
    cli("exec", "--resume", "log", "a", *command)
    whole = (folder / "log").read_bytes()
    pieces = [line for line in whole.splitlines(keepends=True) if b'"piece"' in line]
    assert len(pieces) > 2
    for torn in (pieces[0], pieces[0] + pieces[1][:50], whole.splitlines(keepends=True)[-1][:-5]):
        (folder / "log").write_bytes(whole.splitlines(keepends=True)[0] + torn)
        assert cli("exec", "--resume", "log", "a", *command).stdout == b"a" * 200_000
        assert cli("exec", "--resume", "log", "a", *command).stdout == b"a" * 200_000
        assert (folder / "log").read_bytes().count(b'"piece"') == len(pieces)


def test_killed_in_the_middle(cli: Cli, folder: Path) -> None:
    numbers = [str(number) for number in range(300)]
    kill = 'echo "$1" >> effects; if [ "$1" = 150 ] && ! [ -e fine ]; then kill -9 $PPID; fi; echo "out $1"'
    command = ("--", "sh", "-c", kill, "sh")
    killed = cli("exec", "--resume", "log", *command, input="\n".join(numbers).encode())
    assert killed.returncode == -signal.SIGKILL
    done_before = {entry["item"] for entry in logged(folder / "log")[1:]}
    assert done_before >= {line.split()[1] for line in killed.stdout.decode().splitlines()}  # in the log first
    (folder / "fine").touch()
    again = cli("exec", "--resume", "log", *command, input="\n".join(numbers).encode())
    assert again.returncode == 0
    assert again.stdout.decode().splitlines() == [f"out {number}" for number in numbers]
    count = effects(folder)
    assert all(count[item] == 1 for item in done_before)
    assert set(count) == set(numbers)


@pytest.mark.skipif(shutil.which("gzip") is None, reason="needs gzip")
def test_the_example_of_the_help_can_be_resumed(cli: Cli, folder: Path) -> None:
    """As it stands there: a folder called like a log makes it fail at first."""
    shown = cli("exec", "--help").stdout.decode()
    [line] = [line.strip() for line in shown.splitlines() if "--resume" in line and "| cmwq exec" in line]
    command = ["bash", "-c", f'cmwq() {{ "{sys.executable}" -m cmwq "$@"; }}; {line}']
    for name in ("a", "c", "d"):
        (folder / f"{name}.log").write_text(name)
    (folder / "b.log").mkdir()
    assert ran(command, cwd=folder, capture_output=True, env=environment()).returncode == 1
    for name in ("a", "c", "d"):
        (folder / f"{name}.log.gz").unlink()  # whoever is run again makes it again
    (folder / "b.log").rmdir()
    (folder / "b.log").write_text("b")
    again = ran(command, cwd=folder, capture_output=True, env=environment())
    assert (again.returncode, again.stderr) == (0, b"")
    assert [path.name for path in folder.glob("*.gz")] == ["b.log.gz"]
    assert [(entry["item"], entry["ok"]) for entry in logged(next(folder.glob("*.jsonl")))[1:]][-1] == ("./b.log", True)


def test_full_disk_under_the_log(cli: Cli, folder: Path) -> None:
    """8 KiB is the largest file that may be written."""
    script = "(ulimit -f 8; $CMWQ exec --resume log $(seq 100) -- printf '%50s\\n'); echo $?"
    env = environment(CMWQ=f"{sys.executable} -m cmwq")
    done = ran(["bash", "-c", script], cwd=folder, capture_output=True, env=env, timeout=100)
    *printed, status = done.stdout.splitlines()
    assert status == b"2"
    assert done.stderr == b"cmwq exec: error: log 'log': File too large\n"
    complete = [line for line in (folder / "log").read_bytes().splitlines(keepends=True)[1:] if line.endswith(b"\n")]
    assert 0 < len(complete) < 100
    assert len(printed) <= len(complete)
    again = cli("exec", "--progress", "--resume", "log", *map(str, range(1, 101)), "--", "printf", "%50s\\n")
    assert (again.returncode, len(again.stdout.splitlines())) == (0, 100)
    assert f"{len(complete)} from the log".encode() in again.stderr


def test_full_disk_under_stdout(cli: Cli, folder: Path) -> None:
    with open("/dev/full", "wb") as full:
        done = cli("exec", "--resume", "log", "a", "--", *NOTE, stdout=full.fileno())
    assert (done.returncode, done.stderr) == (2, b"cmwq exec: error: standard output: No space left on device\n")
    done = cli("exec", "--resume", "log", "a", "--", *NOTE)
    assert done.stdout == b"out a\n"
    assert effects(folder) == {"a": 1}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["a", "--", "echo", "x"], "log 'log' belongs to another target: echo"),
        (["--shell", "a", "--", "echo"], "log 'log' belongs to another target: echo"),
        (["b", "--", "echo"], "log 'log' belongs to other items: item 1 is 'b', there 'a'"),
    ],
)
def test_log_of_something_else_is_refused(cli: Cli, folder: Path, args: list[str], message: str) -> None:
    cli("exec", "--resume", "log", "a", "--", "echo")
    before = (folder / "log").read_bytes()
    done = cli("exec", "--resume", "log", *args)
    assert (done.returncode, done.stderr.decode()) == (2, f"cmwq exec: error: {message}\n")
    done = cli("map", "--resume", "log", "os.path:basename", "a")
    assert (done.returncode, done.stderr) == (2, b"cmwq map: error: log 'log' is one of cmwq exec\n")
    assert (folder / "log").read_bytes() == before


def test_dry_run_leaves_out_what_succeeded_and_changes_no_log(cli: Cli, folder: Path) -> None:
    assert cli("exec", "--resume", "log", "--dry-run", "a", "--", "echo").stdout == b"echo a\n"
    assert not (folder / "log").exists()
    cli("exec", "--resume", "log", "a", "bad", "--", *NOTE)
    before = (folder / "log").read_bytes()
    shown = cli("exec", "--resume", "log", "--dry-run", "a", "bad", "--", *NOTE).stdout
    assert shown.endswith(b" sh bad\n")
    assert shown.count(b"\n") == 1
    assert (folder / "log").read_bytes() == before


def test_line_buffer_keeps_no_output_in_the_log(cli: Cli, folder: Path) -> None:
    assert cli("exec", "--line-buffer", "--resume", "log", "a", "--", *NOTE).stdout == b"out a\n"
    assert cli("exec", "--line-buffer", "--resume", "log", "a", "b", "--", *NOTE).stdout == b"out b\n"
    assert effects(folder) == {"a": 1, "b": 1}
    assert all("stdout" not in entry for entry in logged(folder / "log"))


@pytest.mark.parametrize("tag", [(), ("--tag",)])
@pytest.mark.parametrize("streams", ["1", "2", "1 2", "2 1"])
@pytest.mark.parametrize("end", ["", "\n"])
def test_what_is_printed_again_is_what_was_printed_first(
    cli: Cli, tag: tuple[str, ...], streams: str, end: str
) -> None:
    """Long output stands in pieces in the log, those of one stream after those of the other."""
    script = f"""for fd in {streams}; do seq 100000 | head -c 200000 >&$fd; printf '{end}' >&$fd; done"""
    args = ("exec", *tag, "--resume", "log", "a", "b", "--", "sh", "-c", script, "sh")
    first, again = cli(*args), cli(*args)
    assert (first.returncode, again.returncode) == (0, 0)
    assert (first.stdout, first.stderr) == (again.stdout, again.stderr)
    assert len(first.stdout + first.stderr) >= 400_000
