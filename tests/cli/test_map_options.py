"""What `cmwq map` shares with `cmwq exec`: retries, halting, a bound, several files, a picture, what time is left."""

from __future__ import annotations

import signal
from pathlib import Path

from cmwq.cli.items import Source
from cmwq.cli.progress import Tally, duration

from .conftest import Cli

FLAKY = """
import os, threading
calls = {}
def third(item):
    calls[item] = calls.get(item, 0) + 1
    if calls[item] < 3: raise ValueError(f"call {calls[item]}")
    return calls[item]
def bad(item):
    with open("effects", "a") as file: file.write(item + "\\n")
    if item >= "3": raise ValueError("no")
def good_or_stuck(item):
    if item == "bad":
        started.wait(60)
        raise ValueError("no")
    started.set()
    threading.Event().wait()
started = threading.Event()
inside = 0
def alone(item):
    global inside
    inside += 1
    try: return inside
    finally: inside -= 1
"""


def test_retries(cli: Cli, folder: Path) -> None:
    (folder / "flaky.py").write_text(FLAKY)
    assert cli("map", "--retries", "2", "flaky:third", "a", "b").stdout == b"3\n3\n"
    done = cli("map", "--retries", "1", "--resume", "log", "flaky:third", "a")
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"ValueError: call 2" in done.stderr
    assert (folder / "log").read_bytes().count(b"\n") == 2


def test_halt_soon_and_now(cli: Cli, folder: Path) -> None:
    (folder / "flaky.py").write_text(FLAKY)
    numbers = [str(number) for number in range(10)] * 50
    done = cli("map", "--halt", "soon=2", "--max-active", "1", "flaky:bad", *numbers)
    assert done.returncode == 1
    assert b"cmwq map: halted after 2 failures: nothing after item " in done.stderr
    assert 5 <= (folder / "effects").read_bytes().count(b"\n") < 12
    done = cli("map", "--halt", "now", "flaky:good_or_stuck", "a", "bad")
    assert done.returncode == 1
    failure, halted, *_ = done.stderr.splitlines()
    assert failure == b"cmwq map: item 2 'bad': ValueError: no"  # whose turn never came
    assert halted.startswith(b"cmwq map: halted after a failure: ")
    assert done.stderr.count(b"item 2 'bad'") == 1


def test_a_failure_out_of_turn_is_named_once_at_any_end(cli: Cli, folder: Path) -> None:
    """The writer names it, or the last words do, whoever comes first."""
    (folder / "flaky.py").write_text(FLAKY)
    script = """
import os, signal, threading, time
from cmwq.cli import run
real = run.Run.heed_failure
def heed(self, outcome):
    real(self, outcome)
    os.kill(os.getpid(), signal.SIGTERM)
run.Run.heed_failure = heed
import sys
from cmwq.cli import main
sys.exit(main())
"""
    done = cli("map", "flaky:good_or_stuck", "a", "bad", code=("-c", script))
    assert done.returncode == -signal.SIGTERM
    assert done.stderr == b"cmwq map: item 2 'bad': ValueError: no\n"
    done = cli("map", "--unordered", "--halt", "now", "flaky:good_or_stuck", "a", "bad")
    assert done.stderr.count(b"item 2 'bad'") == 1


def test_a_number_that_is_too_large_is_one_line(cli: Cli) -> None:
    done = cli("map", "--max-active", "2147483648", "targets:same", "a")
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (2, b"", 1)
    assert b"'2147483648' is too large: at most 2147483647" in done.stderr


def test_max_active_and_summary(cli: Cli, folder: Path) -> None:
    (folder / "flaky.py").write_text(FLAKY)
    done = cli("map", "--max-active", "1", "--summary", "flaky:alone", *map(str, range(50)))
    assert set(done.stdout.split()) == {b"1"}
    assert b"ran at the same time: " in done.stderr


def test_several_files(cli: Cli, folder: Path) -> None:
    (folder / "one").write_bytes(b"a\nb")
    (folder / "two").write_bytes(b"c\n")
    done = cli("map", "--progress", "-a", "one", "-a", "-", "-a", "two", "targets:same", input=b"x\n")
    assert done.stdout == b'"a"\n"b"\n"x"\n"c"\n'
    assert b"4 of 4 items" in done.stderr


def test_items_are_counted_without_reading_them(tmp_path: Path) -> None:
    for content, end, number in ((b"", b"\n", 0), (b"a\n\nb\n", b"\n", 3), (b"a\nb", b"\n", 2), (b"a\0b\nc", b"\0", 2)):
        (tmp_path / "list").write_bytes(content)
        with open(tmp_path / "list", "rb", buffering=0) as file:
            source = Source((), [file.fileno()], end)
            assert source.count() == number
            assert len(list(source.items)) == number
    assert Source(["a", "b"]).count() == 2
    with open("/dev/null", "rb", buffering=0) as file:
        assert Source((), [file.fileno()]).count() is None


def test_the_time_that_is_left() -> None:
    tally = Tally(100)
    tally.begun -= 10
    assert "left" not in tally.line()
    tally.done, tally.again = 60, 40  # 2 a second; those from the log took no time
    assert tally.line().endswith(", 2/s, 10.0 s, 20 s left")
    assert tally.line(over=True).endswith(", 2/s, 10.0 s"), "after --halt, say"
    tally.done = 100
    assert "left" not in tally.line()
    assert [duration(seconds) for seconds in (7.4, 99, 125, 11_520)] == ["7 s", "99 s", "2 min 5 s", "3 h 12 min"]
