"""`cmwq map` and all that a user, a disk or a pipe can do to it: one line, an exit status, never a traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import Cli, environment


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["no_such_module:f", "a"], "no module named 'no_such_module'"),
        (["os.nothing:f", "a"], "no module named 'os.nothing'"),
        (["needy:f", "a"], "importing 'needy' raised ModuleNotFoundError: No module named 'no_such_dependency'"),
        (["raising:f", "a"], "importing 'raising' raised RuntimeError: broken\\nmodule"),
        (["leaving:f", "a"], "importing 'leaving' raised SystemExit: 0"),
        (["targets:nope", "a"], "'targets' has no attribute 'nope'"),
        (["targets:Text.nope", "a"], "'targets:Text' has no attribute 'nope'"),
        (["targets:Text.number", "a"], "target 'targets:Text.number' is not callable: it is an int"),
        (["targets:coroutine", "a"], "is a coroutine function"),
        (["targets", "a"], "target 'targets' is not of the form module:function"),
        (["targets:", "a"], "is not of the form module:function"),
        ([":same", "a"], "is not of the form module:function"),
        (["..:same", "a"], "is not of the form module:function"),
        (["targets:same", "-a", "missing"], "missing: No such file or directory"),
        (["targets:same", "-a", "."], "Is a directory"),
        (["targets:same", "-a", "/proc/self/mem"], "reading items: Input/output error"),
        (["targets:same", "-a", "missing", "a"], "one of them, please"),
        (["targets:same", "--resume", "no/such/log", "a"], "log 'no/such/log': No such file or directory"),
        (["targets:same", "--resume", ".", "a"], "log '.': Is a directory"),
        (["targets:same", "--resume", "/dev/full", "a"], "log '/dev/full': No space left on device"),
        (["targets:same", "--quiet", "--progress", "a"], "not allowed with argument"),
        (["--no-such-option"], "unrecognized arguments: --no-such-option"),
        ([], "required: TARGET"),
    ],
)
def test_one_line_and_status_2(cli: Cli, folder: Path, args: list[str], message: str) -> None:
    done = cli("map", *args)
    assert done.returncode == 2
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith("cmwq map: error: ")
    assert message in line
    assert done.stdout == b""
    assert not (folder / "effects").exists()


def test_unknown_command(cli: Cli) -> None:
    done = cli("mop")
    assert done.returncode == 2
    assert done.stderr.startswith(b"cmwq: error: ")
    assert done.stderr.count(b"\n") == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_file_without_permission(cli: Cli, folder: Path) -> None:
    (folder / "secret").touch(mode=0)
    assert b"secret: Permission denied" in cli("map", "targets:same", "-a", "secret").stderr


def test_endless_line(cli: Cli) -> None:
    done = cli("map", "targets:same", "-a", "/dev/zero")
    assert done.returncode == 2
    assert done.stderr == b"cmwq map: error: line 1 of the input is longer than 64 MiB\n"


def test_what_was_read_before_the_input_broke_is_done(cli: Cli, folder: Path) -> None:
    (folder / "list").write_bytes(b"a\nb\n" + b"x" * (65 << 20))
    done = cli("map", "targets:same", "-a", "list")
    assert done.returncode == 2
    assert done.stdout == b'"a"\n"b"\n'
    assert b"line 3 of the input" in done.stderr


def test_unknown_sensor(cli: Cli) -> None:
    done = cli("map", "targets:same", "a", env={"CMWQ_SENSOR": "crystal ball"})
    assert done.returncode == 2
    assert b"crystal ball" in done.stderr
    assert done.stderr.count(b"\n") == 1


def shell(script: str, folder: Path, **more: str) -> subprocess.CompletedProcess[bytes]:
    """bash, with the command as $CMWQ."""
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=folder,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        timeout=100,
        env=environment(CMWQ=f"{sys.executable} -m cmwq", **more),
    )
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr
    return done


def test_reader_of_stdout_goes_away(folder: Path) -> None:
    done = shell("yes | $CMWQ map targets:size | head -n 3; echo ${PIPESTATUS[1]}", folder)
    assert done.stdout == b"1\n1\n1\n141\n"
    assert done.stderr == b""


@pytest.mark.parametrize("command", ["map --help", "doctor"])
def test_reader_goes_away_from_the_others(folder: Path, command: str) -> None:
    done = shell(f"$CMWQ {command} | true; echo ${{PIPESTATUS[0]}}", folder)
    assert done.stdout in (b"141\n", b"0\n")  # 0: it was all written before the reader had gone
    assert done.stderr == b""


def test_closed_descriptors(folder: Path) -> None:
    done = shell("$CMWQ map targets:same a >&-; echo $?", folder)
    assert (done.stdout, done.stderr) == (b"2\n", b"cmwq map: error: standard output is closed\n")
    done = shell("$CMWQ map targets:same <&-; echo $?", folder)
    assert done.stdout == b"2\n"
    assert done.stderr == b"cmwq map: error: standard input is closed, and no items are given\n"
    done = shell("$CMWQ map targets:picky a bad 2>&-; echo $?", folder)
    assert done.stdout == b'"a"\n1\n'
    done = shell("$CMWQ map targets:picky a bad 2>/dev/full; echo $?", folder)
    assert done.stdout == b'"a"\n1\n'


def test_full_disk_under_stdout(folder: Path) -> None:
    done = shell("$CMWQ map --resume log targets:same a > /dev/full; echo $?", folder)
    assert done.stdout == b"2\n"
    assert done.stderr == b"cmwq map: error: standard output: No space left on device\n"
    # It had run, and it is in the log: it is printed, not run, the next time.
    done = shell("$CMWQ map --resume log targets:same a", folder)
    assert done.stdout == b'"a"\n'
    assert (folder / "effects").read_bytes() == b"a\n"


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", ["--help", "map --help", "doctor --json"])
def test_full_disk_under_the_others(folder: Path, command: str, unbuffered: str) -> None:
    done = shell(f"$CMWQ {command} > /dev/full; echo $?", folder, PYTHONUNBUFFERED=unbuffered)
    assert done.stdout == b"2\n"
    assert done.stderr.count(b"\n") == 1
    assert b"No space left on device" in done.stderr


def test_full_disk_under_the_log(folder: Path) -> None:
    # 8 KiB is the largest file that may be written: about 7 lines of the log.
    done = shell("(ulimit -f 8; $CMWQ map --resume log targets:long {1..50}); echo $?", folder)
    *results, status = done.stdout.splitlines()
    assert status == b"2"
    assert done.stderr == b"cmwq map: error: log 'log': File too large\n"
    logged = (folder / "log").read_bytes().splitlines(keepends=True)
    complete = [line for line in logged[1:] if line.endswith(b"\n")]
    assert 0 < len(complete) < 50
    # What was printed had been logged before.
    assert len(results) <= len(complete)
    again = shell("$CMWQ map --progress --resume log targets:long {1..50}", folder)
    assert again.returncode == 0
    assert len(again.stdout.splitlines()) == 50
    assert f"{len(complete)} from the log".encode() in again.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ctrl_c_stops_at_once_and_keeps_the_log(folder: Path, cli: Cli, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "cmwq", "map", "--resume", "log", "targets:stuck"]
    items = ["quick1", "quick2", "stuck", *(f"stuck{n}" for n in range(500))]
    pipe = subprocess.PIPE
    with subprocess.Popen([*command, *items], cwd=folder, stderr=pipe, stdout=pipe, env=environment()) as p:
        assert p.stdout is not None
        assert p.stderr is not None
        assert [p.stdout.readline() for _ in range(2)] == [b'"quick1"\n', b'"quick2"\n']
        assert p.stderr.readline() == b"started\n"
        p.send_signal(number)
        try:
            out, err = p.communicate(timeout=60)
        finally:
            p.kill()
    assert p.returncode == -number  # a shell shows 128 + number, and stops its loop after Ctrl-C only then
    assert out == b""
    assert set(err.splitlines()) <= {b"started"}
    log = (folder / "log").read_bytes()
    assert log.count(b'"ok": true') == 2
    assert log.endswith(b"\n")


STOPPING = """
import argparse, sys
from cmwq.cli import map, news, run
from cmwq.cli.log import Log
from cmwq.cli.progress import Silent, Tally

def call(item):
    if item == "b":
        open("ran", "w")
    mapping.news.put(news.Signalled(2))
    while not mapping.stopped:  # ends only after the run was stopped
        pass
    mapping.window.enter(0)
    mapping.carry_out(1, "b")  # it was read, and comes to its turn only now
    return item

run.GRACE = 60
options = argparse.Namespace(unordered=False, with_item=False, repr=False, resume="log", quiet=True)
mapping = map.Mapping(options, call, iter(["a"]), 1, Log("log", "map", "t:f"), Silent(), Tally())
mapping.run()
"""


def test_when_stopped_what_runs_may_end_and_nothing_starts(cli: Cli, folder: Path) -> None:
    done = cli(code=("-c", STOPPING))
    assert (done.returncode, done.stdout) == (-2, b'"a"\n')
    assert b'"item": "a", "ok": true' in (folder / "log").read_bytes()
    assert not (folder / "ran").exists()
