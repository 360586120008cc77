"""`cmwq ps`: the processes that can be asked."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import stop

from cmwq.observing.places import folders

from .conftest import Cli

Start = Callable[..., "subprocess.Popen[bytes]"]
PROGRAM = """
import cmwq, sys, threading
event, begun = threading.Event(), threading.Semaphore(0)
def wait():
    begun.release()
    event.wait()
queue = cmwq.WorkQueue("q", max_active=2)
for _ in range(5): queue.submit(wait)
for _ in range(2): begun.acquire()
print("here", flush=True)
sys.stdin.readline()
event.set()
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "runtime"
    home.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(home))
    sockets = [name for folder in folders(os.geteuid()) for name in os.listdir(folder)]
    if any(os.path.exists(f"/proc/{name.partition('-')[0]}") for name in sockets):
        pytest.skip("another process of this user has a monitor: `cmwq ps` would list it, too")
    return home


@pytest.fixture
def start(home: Path) -> Iterator[Start]:
    """Start a process with a monitor, in which two works are active and three wait."""
    started: list[subprocess.Popen[bytes]] = []

    def run(*args: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "CMWQ_MONITOR": "1"},
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"here\n"
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def test_it_lists_each_process_with_its_command_and_its_counts(cli: Cli, start: Start) -> None:
    first, second = start("one", "x" * 300), start("two")
    done = cli("ps", env={"COLUMNS": "150"})
    head, *rows = done.stdout.decode().splitlines()
    assert head.split()[:3] == ["PID", "age", "pools"]
    assert head.split()[-2:] == ["pending", "command"]
    assert [int(row.split()[0]) for row in rows] == sorted([first.pid, second.pid])
    for row in rows:
        assert f" {Path(sys.executable).name} -c " in row, "where the program is says little"
        assert len(row) <= 150
    listed = json.loads(cli("ps", "--json").stdout)
    assert [each["pid"] for each in listed] == sorted([first.pid, second.pid])
    for each in listed:
        assert (each["pools"], each["pending"], each["answers"]) == (1, 3, True)
        assert each["workers"] >= 2
        assert os.path.exists(each["path"])
        assert each["command"][:2] == [sys.executable, "-c"]
        assert max(map(len, each["command"])) <= 200


def test_it_fits_80_columns(cli: Cli, start: Start) -> None:
    start("argument " * 30)
    head, row = cli("ps", env={"COLUMNS": "80"}).stdout.decode().splitlines()
    assert head.split()[:3] == ["PID", "age", "pools"]
    assert len(row) <= 80
    assert re.fullmatch(r" +\d+ +[\d.]+ m?s +1 +\d+ .* 3 +\S.{20,}…", row)


def test_without_any_it_says_what_helps(cli: Cli, home: Path) -> None:
    done = cli("ps")
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"CMWQ_MONITOR=1" in done.stdout
    assert json.loads(cli("ps", "--json").stdout) == []


def test_it_does_not_list_itself(cli: Cli, home: Path) -> None:
    assert json.loads(cli("ps", "--json", env={"CMWQ_MONITOR": "1"}).stdout) == []


def test_a_process_that_does_not_answer_is_listed_all_the_same(cli: Cli, start: Start) -> None:
    silent, talking = start(), start()
    stop(silent.pid)
    try:
        listed = {each["pid"]: each for each in json.loads(cli("ps", "--json").stdout)}
        assert listed.keys() == {silent.pid, talking.pid}
        assert (listed[silent.pid]["answers"], listed[silent.pid]["workers"]) == (False, None)
        assert listed[talking.pid]["answers"]
        assert b"(does not answer)" in cli("ps", env={"COLUMNS": "120"}).stdout
    finally:
        os.kill(silent.pid, signal.SIGCONT)


@pytest.mark.parametrize(
    ("who", "picture"),
    [
        ('{"pid":1,"command":["x"],"since":1}', '{"pools":[{"workers":1e400,"pending":NaN}]}'),
        ('{"pid":1,"command":["x"],"since":1}', '{"pools":5}'),
        ('{"pid":1,"command":["x"],"since":1}', "5"),
        ('{"pid":1,"command":["x"],"since":NaN}', "{}"),
        ('{"pid":1,"command":["x"],"since":1e400}', "[]"),
        ("5", "null"),
    ],
)
def test_whatever_one_process_answers_the_others_are_listed(
    cli: Cli, start: Start, home: Path, who: str, picture: str
) -> None:
    """For root that may be a process of anybody's."""
    sane = start()
    path = home / "cmwq" / f"{os.getpid()}-00000000.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def answer() -> None:
            with suppress(OSError):
                while True:
                    caller, _ = listener.accept()
                    with caller, caller.makefile("rb") as lines:
                        for line in lines:
                            ask = "who" if b"who" in line else "picture"
                            said = f'{{"version":1,"{ask}":{who if ask == "who" else picture}}}\n'
                            caller.sendall(said.encode())

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        done = cli("ps")
        listed = json.loads(cli("ps", "--json").stdout)
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert done.stderr == b""
    assert str(sane.pid).encode() in done.stdout
    assert {each["pid"] for each in listed} == {sane.pid, os.getpid()}
