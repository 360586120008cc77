"""`cmwq map` and streams that are full, stalled, closed or mixed up: it is never deaf, and never writes elsewhere."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .conftest import SCRIPT, Cli, environment, wait_until_full

TARGETS = """
import ctypes, os, sys

def large(item): return "x" * 100_000
def failing(item): raise ValueError("x" * 5000)
def shouting(item):
    while True: print("x" * 5000)
def past_python(item):
    sys.__stdout__.write("python\\n")
    ctypes.CDLL(None).printf(b"libc\\n")
    return item
def to_stderr(item):
    os.write(2, b"not for the log\\n")
    return item
"""

Started = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start(folder: Path) -> Iterator[Started]:
    """The command, running; killed at the end."""
    (folder / "streams.py").write_text(TARGETS)
    running = []

    def run(*args: str, code: tuple[str, ...] = ("-m", "cmwq"), **how: int) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, *code, *args], cwd=folder, stdin=subprocess.DEVNULL, env=environment(), **how
        )
        running.append(process)
        return process

    yield run
    for process in running:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("target", ["large", "failing", "shouting"])
def test_no_full_pipe_makes_it_deaf(
    start: Started, unread: tuple[int, int], target: str, number: signal.Signals
) -> None:
    _, writing = unread
    items = [str(item) for item in range(300)]
    process = start("map", f"streams:{target}", *items, stdout=writing, stderr=writing)
    wait_until_full(writing)
    process.send_signal(number)
    assert process.wait(60) == -number


def test_a_second_signal_is_not_kept_waiting(start: Started, folder: Path) -> None:
    patient = "import sys; from cmwq.cli import main, run; run.GRACE = 1e6; sys.exit(main())"
    process = start("map", "targets:stuck", "a", code=("-c", patient), stderr=subprocess.PIPE)
    assert process.stderr is not None
    assert process.stderr.readline() == b"started\n"
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) in (-signal.SIGTERM, -signal.SIGINT)  # whichever the kernel gave first


def test_ctrl_c_while_the_target_is_imported(start: Started, folder: Path) -> None:
    (folder / "slow.py").write_text(
        # In turns: free-threaded CPython 3.13 forgets a signal that comes just before one long wait for a lock.
        "import sys, time\nsys.stderr.write('importing\\n'); sys.stderr.flush()\nwhile True: time.sleep(0.05)\n"
    )
    process = start("map", "slow:f", "a", stderr=subprocess.PIPE)
    assert process.stderr is not None
    assert process.stderr.readline() == b"importing\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == -signal.SIGINT
    assert process.stderr.read() == b""


def test_what_goes_past_python_streams_is_kept_out_of_stdout(cli: Cli, start: Started) -> None:
    done = cli("map", "streams:past_python", "a")
    assert done.stdout == b'"a"\n'
    assert b"python" in done.stderr
    assert b"libc" in done.stderr


def test_a_closed_stderr_does_not_lead_into_the_log(start: Started, folder: Path) -> None:
    command = f"exec {sys.executable} -m cmwq map --resume log streams:to_stderr a b 2>&-"
    done = subprocess.run(["bash", "-c", command], cwd=folder, env=environment(), stdout=subprocess.PIPE, timeout=100)
    assert (done.returncode, done.stdout) == (0, b'"a"\n"b"\n')
    assert b"not for" not in (folder / "log").read_bytes()
    assert (folder / "log").read_bytes().count(b"\n") == 3


@pytest.mark.parametrize("command", ["--help", "map --help", "--version", "doctor", "bench"])
def test_closed_stdout_is_told(folder: Path, command: str) -> None:
    done = subprocess.run(
        ["bash", "-c", f"exec {sys.executable} -m cmwq {command} >&-"],
        cwd=folder,
        stderr=subprocess.PIPE,
        env=environment(),
        timeout=100,
    )
    assert done.returncode == 2
    assert done.stderr.endswith(b"error: standard output is closed\n")
    assert done.stderr.count(b"\n") == 1


def test_stdout_that_cannot_be_written(folder: Path) -> None:
    done = subprocess.run(
        ["bash", "-c", f"exec {sys.executable} -m cmwq map targets:same a 1<targets.py"],
        cwd=folder,
        stderr=subprocess.PIPE,
        env=environment(),
        timeout=100,
    )
    assert (done.returncode, done.stderr) == (2, b"cmwq map: error: standard output: Bad file descriptor\n")


def test_output_in_an_encoding_that_lacks_a_character(cli: Cli) -> None:
    done = cli("doctor", env={"PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (0, b"")
    assert rb"\xb5s" in done.stdout  # the micro sign


def test_output_into_the_log_or_the_input_is_refused(cli: Cli, folder: Path) -> None:
    with open(folder / "both", "ab") as both:
        done = cli("map", "--resume", "both", "targets:same", "a", stdout=both.fileno())
    assert (done.returncode, done.stderr) == (2, b"cmwq map: error: log 'both' is standard output as well\n")
    (folder / "list").write_bytes(b"a\n")
    with open(folder / "list", "ab") as both:
        done = cli("map", "targets:same", "-a", "list", stdout=both.fileno())
    assert done.returncode == 2
    assert b"the input is standard output as well" in done.stderr
    assert (folder / "list").read_bytes() == b"a\n"
    assert not (folder / "effects").exists()


def test_a_message_has_an_end(cli: Cli, folder: Path) -> None:
    (folder / "wordy.py").write_text("def f(item): raise ValueError('x' * 30_000_000)\n")
    done = cli("map", "--with-item", "wordy:f", "y" * 100_000)
    assert done.returncode == 1
    assert len(done.stderr) < 30_000
    assert b"30,000,012 characters" in done.stderr
    assert b"y" * 100_000 in done.stdout  # items are not cut there


def test_dashes_before_the_target(cli: Cli) -> None:
    assert cli("map", "--", "targets:same", "-x", "--").stdout == b'"-x"\n"--"\n'
    assert cli("map", "--quiet", "--", "targets:same", input=b"a\n").stdout == b'"a"\n'


@pytest.mark.parametrize("args", [["map"], ["map", "--"], ["map", "--quiet", "-0"], ["map", "-a", "list", "--"]])
def test_only_the_target_is_missing(cli: Cli, args: list[str]) -> None:
    done = cli(*args, code=SCRIPT)
    assert done.returncode == 2
    assert done.stderr == (b"cmwq map: error: the following arguments are required: TARGET (see cmwq map --help)\n")


OUT_OF_MEMORY = {
    "reading": "from cmwq.cli import items; items._read = fail",
    "encoding": "import json; map.json.dumps = fail",
    "logging": "from cmwq.cli import log; log.Log.record = fail",
    "printing": "run.write_all = fail",
    "starting": "map.load = fail",
}


@pytest.mark.parametrize("where", OUT_OF_MEMORY)
def test_out_of_memory_is_one_line_and_status_2(cli: Cli, where: str) -> None:
    code = f"""
import sys
from cmwq.cli import main, map, run
def fail(*args, **more):
    raise MemoryError
{OUT_OF_MEMORY[where]}
sys.exit(main())
"""
    done = cli("map", "targets:same", "--resume", "log", input=b"a\nb\n", code=("-c", code))
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr == b"cmwq map: error: out of memory\n"


def test_out_of_memory_for_real(folder: Path) -> None:
    # The target needs a megabyte, its result as JSON four thousand.
    (folder / "wide.py").write_text("def f(item): return ['x' * 1_000_000] * 4000\n")
    command = f"ulimit -v 1000000; exec {sys.executable} -m cmwq map wide:f a"
    done = subprocess.run(["bash", "-c", command], cwd=folder, capture_output=True, env=environment(), timeout=100)
    assert (done.returncode, done.stdout, done.stderr) == (2, b"", b"cmwq map: error: out of memory\n")


def test_no_thread_to_be_had_is_one_line_and_status_2(cli: Cli) -> None:
    code = """
import sys, threading
from cmwq.cli import main
def refused(self):
    raise RuntimeError("can't start new thread")
threading.Thread.start = refused
sys.exit(main())
"""
    done = cli("map", "targets:same", "a", code=("-c", code))
    assert (done.returncode, done.stderr) == (2, b"cmwq map: error: can't start new thread\n")
