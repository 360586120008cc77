"""A folder for sockets of the test's own, clients that misbehave, and stalls that are soon reported."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import HANG, until

import cmwq

SOON_REPORTED = cmwq.Config(watch_period=0.02, watchdog_thresh=0.3, create_cooldown=0.05)
Program = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's runtime directory, for this process and its children."""
    home = tmp_path / "runtime"
    home.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(home))
    monkeypatch.delenv("CMWQ_MONITOR", raising=False)
    return home


@pytest.fixture
def program() -> Iterator[Program]:
    """Start a program in a new interpreter. Its end comes with the test's."""
    started: list[subprocess.Popen[str]] = []

    def start(*parts: str, **options: Any) -> subprocess.Popen[str]:
        command = [sys.executable, "-X", "faulthandler", "-u", "-c", "".join(map(textwrap.dedent, parts))]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen(command, text=True, **{**pipes, **options})
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def line(process: subprocess.Popen[str]) -> str:
    """The next line that it prints."""
    assert process.stdout is not None
    found = process.stdout.readline().rstrip("\n")
    if not found:
        process.kill()
        raise AssertionError(f"it ended: {process.communicate()}")
    return found


def say(process: subprocess.Popen[str], words: str = "") -> None:
    assert process.stdin is not None
    process.stdin.write(words + "\n")
    process.stdin.flush()


def dial(path: str) -> socket.socket:
    """A client without manners: whatever is sent is up to the test."""
    caller = socket.socket(socket.AF_UNIX)
    caller.connect(path)
    caller.settimeout(HANG)
    return caller


def read_line(caller: socket.socket) -> dict[str, Any]:
    """What it is told next. Fails if it is hung up on instead."""
    received = b""
    while not received.endswith(b"\n"):
        more = caller.recv(1 << 16)
        assert more, f"hung up after {received!r}"
        received += more
    answer: dict[str, Any] = json.loads(received)
    return answer


def ask(caller: socket.socket, question: bytes) -> dict[str, Any]:
    caller.sendall(question)
    return read_line(caller)


def stall_of(told: list[cmwq.Stall], words: str = "") -> cmwq.Stall:
    """The first report with these words of a stall that goes on, when there is one.

    On a slow machine there may be one before, while threads are still being started.
    """

    def fitting() -> list[cmwq.Stall]:
        return [stall for stall in told if not stall.over and words in stall.reason]

    until(lambda: bool(fitting()))
    return fitting()[0]
