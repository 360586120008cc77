"""The command, as a user runs it: a process of its own, in a folder with a module of targets."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

SCRIPT = ("bin/cmwq",)  # as installed: Python puts the script's folder on the path, not the current directory
Cli = Callable[..., subprocess.CompletedProcess[bytes]]

TARGETS = '''
import asyncio, os, signal, subprocess, sys, threading, time

def note(item):
    """An effect that can be counted: one line in the file `effects`."""
    fd = os.open("effects", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.write(fd, os.fsencode(item) + b"\\n")
    os.close(fd)

def same(item):
    note(item)
    return item

def size(item): return len(item)
def hexed(item): return os.fsencode(item).hex()
class Text:
    @staticmethod
    def upper(item): return item.upper()
    number = 7
async def coroutine(item): pass

def picky(item):
    note(item)
    if item.startswith("bad") and not os.environ.get("FORGIVE"):
        raise ValueError("no such\\nluck: " + item)
    return item

def leaving(item): sys.exit(3)
class Rude(Exception):
    def __str__(self): raise KeyError("rude")
def rude(item): raise Rude
def unjsonable(item): return {"nan": float("nan"), "bytes": b"x", "set": {1}, "fine": [1, None]}[item]
class Unreprable:
    def __repr__(self): raise KeyError("no repr")
def unreprable(item): return Unreprable()
def chatty(item):
    print("chat", item)
    subprocess.run(["echo", "child", item])
    return item
def thief(item):
    return subprocess.run(["cat"], stdout=subprocess.PIPE).stdout.decode() + item
def backwards(item):
    """Item 1 ends only after item 2 has."""
    if item == "1": assert second.wait(60)
    else: second.set()
    return item
second = threading.Event()
def after_two(item):
    """Item 1 ends only after item 2's result was printed, to the file `out`."""
    end = time.monotonic() + 60
    while item == "1" and not os.path.getsize("out"):
        assert time.monotonic() < end
        time.sleep(0.01)
    return item
def stuck(item):
    note(item)
    if item.startswith("quick"): return item
    sys.stderr.write("started\\n"); sys.stderr.flush()
    threading.Event().wait()
def fatal(item):
    note(item)
    if item == "500" and not os.environ.get("FORGIVE"): os.kill(os.getpid(), signal.SIGKILL)
    return item
def long(item): return "x" * 1000
def threads(item): return threading.current_thread() is threading.main_thread()
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "targets.py").write_text(TARGETS)
    (tmp_path / "raising.py").write_text("raise RuntimeError('broken\\nmodule')\n")
    (tmp_path / "leaving.py").write_text("raise SystemExit(0)\n")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "cmwq").write_text("import sys\nfrom cmwq.cli import main\nsys.exit(main())\n")
    (tmp_path / "needy.py").write_text("import no_such_dependency\n")
    return tmp_path


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "", **more}


def ran(
    command: list[Any], *, input: bytes | None = None, timeout: float = 100, capture_output: bool = False, **more: Any
) -> subprocess.CompletedProcess[bytes]:
    """As `subprocess.run`, but that a command which takes too long is asked to end before it is killed: a `cmwq exec`
    that is killed can't end the commands that it runs, and what waits for one another then goes on for ever.
    """
    if capture_output:
        more |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    if input is not None:
        more["stdin"] = subprocess.PIPE
    with subprocess.Popen(command, **more) as process:
        try:
            out, err = process.communicate(input, timeout)
        except BaseException:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=10)
            process.kill()
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)


@pytest.fixture
def cli(folder: Path) -> Cli:
    """Run `cmwq ARGS`; its stdin is empty unless given."""

    def run(
        *args: str,
        input: bytes | None = None,
        env: dict[str, str] | None = None,
        stdout: int | None = None,
        python: tuple[str, ...] = (),
        code: tuple[str, ...] = ("-m", "cmwq"),
    ) -> subprocess.CompletedProcess[bytes]:
        done = ran(
            [sys.executable, *python, *code, *args],
            cwd=folder,
            stdout=subprocess.PIPE if stdout is None else stdout,
            stderr=subprocess.PIPE,
            env=environment(**(env or {})),
            **({"stdin": subprocess.DEVNULL} if input is None else {"input": input}),  # type: ignore[arg-type]
        )
        assert b"Traceback" not in done.stderr
        assert b"Exception ignored" not in done.stderr
        return done

    return run


@pytest.fixture
def unordered(cli: Cli, folder: Path) -> Callable[..., bytes]:
    """What `cmwq map --unordered OPTIONS` prints for the items 1 and 2, of which 2 is done first."""

    def run(*options: str) -> bytes:
        with open(folder / "out", "wb") as out:
            done = cli("map", "--unordered", *options, "targets:after_two", "1", "2", stdout=out.fileno())
        assert done.returncode == 0
        return (folder / "out").read_bytes()

    return run


def wait_until_full(pipe: int) -> None:
    """Whoever writes more than a little to it next is stuck in `write`."""
    end = time.monotonic() + 60
    while select.select([], [pipe], [], 0)[1]:
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture
def unread() -> Iterator[tuple[int, int]]:
    """A pipe that nobody reads: both ends."""
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)
