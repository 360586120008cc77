"""`cmwq exec` and everything that ends a command or a run: no process stays, no command is forgotten."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import state_of

from .conftest import Cli, environment, ran, wait_until_full

Started = Callable[..., "subprocess.Popen[bytes]"]

STUCK = 'echo "$$" >> pids; sleep 1000 & echo "$!" >> pids; echo "$1" >> begun; wait'
"""A command that waits for a child of its own."""
STUBBORN = f"trap '' INT TERM HUP QUIT; {STUCK}; wait; wait; while :; do sleep 1; done"


@pytest.fixture
def start(folder: Path) -> Iterator[Started]:
    running = []

    def run(*args: str, **how: int) -> subprocess.Popen[bytes]:
        how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **how}
        command = [sys.executable, "-m", "cmwq", "exec", *args]
        # A group of its own whose parent is in this session: otherwise the kernel might not let Ctrl-Z stop it.
        process = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, env=environment(), process_group=0, **how
        )
        running.append(process)
        return process

    yield run
    for process in running:
        process.kill()
        process.communicate()


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def alive(pid: str) -> bool:
    """Whether that process runs; a zombie that nobody reaps doesn't."""
    try:
        return state_of(pid) not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def nothing_is_left(folder: Path) -> None:
    pids = lines(folder / "pids")
    assert len(pids) >= 2
    wait_until(lambda: not any(map(alive, pids)))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_a_signal_reaches_the_groups_and_nothing_is_left(start: Started, folder: Path, number: signal.Signals) -> None:
    process = start("--resume", "log", "a", "b", "c", "--", "sh", "-c", STUCK, "sh")
    wait_until(lambda: len(lines(folder / "begun")) == 3)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (-number, b"")
    assert not err or b"some commands do not end" in err  # on a machine with much to do
    nothing_is_left(folder)
    assert (folder / "log").read_bytes().count(b"\n") == 1  # none of them ended by itself


@pytest.mark.parametrize("options", [[], ["--line-buffer"]])
def test_no_full_pipe_makes_it_deaf(start: Started, folder: Path, unread: tuple[int, int], options: list[str]) -> None:
    _, writing = unread
    script = 'echo "$$" >> pids; yes | head -c 1000000; [ "$1" = 1 ] || exec sleep 1000'
    process = start(*options, "--kill-after", "1d", "1", "2", "--", "sh", "-c", script, "sh", stdout=writing)
    wait_until_full(writing)
    wait_until(lambda: len(lines(folder / "pids")) == 2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == -signal.SIGTERM
    nothing_is_left(folder)


def test_what_ignores_the_signal_is_killed_after_a_while(start: Started, folder: Path) -> None:
    process = start("--kill-after", "0.2", "a", "--", "sh", "-c", STUBBORN, "sh")
    wait_until(lambda: bool(lines(folder / "begun")))
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == -signal.SIGTERM
    nothing_is_left(folder)


def test_who_waits_for_what_ignores_the_signal_is_told_why(start: Started, folder: Path) -> None:
    process = start("--kill-after", "1d", "a", "--", "sh", "-c", STUBBORN, "sh")
    wait_until(lambda: bool(lines(folder / "begun")))
    process.send_signal(signal.SIGTERM)
    assert process.stderr is not None
    told = process.stderr.readline().decode()
    assert re.fullmatch(
        r"cmwq exec: some commands do not end; they are killed in .+, or at once by another signal\n", told
    )
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == -signal.SIGTERM
    nothing_is_left(folder)


def test_a_second_signal_kills_at_once(start: Started, folder: Path) -> None:
    process = start("--kill-after", "1d", "a", "b", "--", "sh", "-c", STUBBORN, "sh")
    wait_until(lambda: len(lines(folder / "begun")) == 2)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) in (-signal.SIGINT, -signal.SIGTERM)
    nothing_is_left(folder)


def test_a_signal_in_a_flood_of_starts_leaves_nothing(start: Started, folder: Path) -> None:
    """Processes that are being started at that moment are not missed."""
    items = [str(number) for number in range(3000)]
    process = start(*items, "--", "sh", "-c", 'echo "$$" >> pids; exec sleep 1000', "sh")
    wait_until(lambda: len(lines(folder / "pids")) > 5)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == -signal.SIGTERM
    nothing_is_left(folder)


def test_what_ended_before_the_signal_is_logged_and_printed(start: Started, folder: Path) -> None:
    script = f'if [ "$1" = b ]; then {STUCK}; else echo "out $1"; fi'
    process = start("--resume", "log", "a", "b", "c", "--", "sh", "-c", script, "sh")
    wait_until(lambda: (folder / "log").exists() and (folder / "log").read_bytes().count(b"\n") == 3)
    wait_until(lambda: bool(lines(folder / "begun")))
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (-signal.SIGTERM, b"out a\nout c\n")
    nothing_is_left(folder)
    (folder / "begun").unlink()
    assert {json.loads(line)["item"] for line in lines(folder / "log")[1:]} == {"a", "c"}


def test_timeout_ends_the_whole_group(cli: Cli, folder: Path) -> None:
    done = cli("exec", "--timeout", "3", "--job-log", "jobs", "a", "--", "sh", "-c", f"echo early; {STUCK}", "sh")
    assert (done.returncode, done.stdout) == (1, b"early\n")
    assert done.stderr.splitlines()[0] == b"cmwq exec: item 1 'a': timed out after 3 s"
    nothing_is_left(folder)
    (job,) = map(json.loads, lines(folder / "jobs"))
    assert (job["ok"], job["signal"], job["timed_out"]) == (False, signal.SIGTERM, True)


@pytest.mark.parametrize("closing", ["", "exec 1>&- 2>&-; "])
def test_timeout_kills_what_ignores_it(cli: Cli, folder: Path, closing: str) -> None:
    script = f"{closing}{STUBBORN}"
    done = cli("exec", "--timeout", "3", "--kill-after", "0.2", "a", "--", "sh", "-c", script, "sh")
    assert done.returncode == 1
    assert b"timed out after 3 s" in done.stderr
    nothing_is_left(folder)


def test_timeout_does_not_wait_for_who_left_the_group(cli: Cli, folder: Path) -> None:
    """A daemon that keeps stdout open can neither be seen nor ended."""
    daemon = 'setsid sh -c "echo \\$\\$ > daemon; exec sleep 1000"'
    script = f"{daemon} & while [ ! -s daemon ]; do sleep 0.1; done; echo on; wait"
    done = cli("exec", "--timeout", "5", "--kill-after", "0.1", "a", "--", "sh", "-c", script, "sh")
    try:
        assert (done.returncode, done.stdout) == (1, b"on\n")
        assert b"timed out" in done.stderr
    finally:
        os.kill(int((folder / "daemon").read_text()), signal.SIGKILL)


def test_timeouts_are_retried_and_others_have_time(cli: Cli, folder: Path) -> None:
    script = 'echo "$1" >> begun; [ "$1" = quick ] || exec sleep 1000'
    done = cli("exec", "--timeout", "3", "--retries", "1", "quick", "slow", "--", "sh", "-c", script, "sh")
    assert done.returncode == 1
    assert sorted(lines(folder / "begun")) == ["quick", "slow", "slow"]
    assert b"timed out after 3 s, the last of 2 tries" in done.stderr


def test_a_command_has_ended_when_its_output_is_closed(cli: Cli) -> None:
    assert cli("exec", "a", "--", "sh", "-c", "(sleep 0.5; echo late) & echo early").stdout == b"early\nlate\n"


def test_halt_soon_lets_what_runs_end(cli: Cli, folder: Path) -> None:
    script = 'echo "$1" >> begun; [ "$1" -ge 3 ]'
    numbers = [str(number) for number in range(500)]
    for failures in (1, 3):
        (folder / "begun").unlink(missing_ok=True)
        done = cli("exec", "--halt", f"soon={failures}", "--max-active", "1", *numbers, "--", "sh", "-c", script, "sh")
        assert done.returncode == 1
        assert len(lines(folder / "begun")) < 10  # one more was perhaps begun before the failure was known
        what = "a failure" if failures == 1 else "3 failures"
        assert f"cmwq exec: halted after {what}: nothing after item ".encode() in done.stderr
    assert (
        cli("exec", "--halt", "soon=4", "--max-active", "1", *numbers[:9], "--", "sh", "-c", script, "sh").returncode
        == 1
    )
    assert cli("exec", "--halt", "soon", "5", "6", "--", "sh", "-c", script, "sh").returncode == 0


def test_halt_soon_does_not_wait_for_input(folder: Path) -> None:
    """The input stays open, and nothing comes."""
    reading, writing = os.pipe()
    command = [sys.executable, "-m", "cmwq", "exec", "--halt", "soon", "--", "sh", "-c", "sleep 0.1; exit 3"]
    with subprocess.Popen(command, cwd=folder, stdin=reading, stderr=subprocess.PIPE, env=environment()) as process:
        os.write(writing, b"a\n")
        assert process.stderr is not None
        said = process.stderr.read().decode()
        assert process.wait(60) == 1
    os.close(reading)
    os.close(writing)
    assert said.splitlines()[:2] == [
        "cmwq exec: item 1 'a': exit status 3",
        "cmwq exec: halted after a failure: nothing after item 1 was begun",
    ]


def test_halt_now_ends_what_runs(cli: Cli, folder: Path) -> None:
    script = f'if [ "$1" = bad ]; then while [ ! -s begun ]; do sleep 0.05; done; exit 1; fi; {STUCK}'
    done = cli("exec", "--halt", "now", "--resume", "log", "a", "bad", "--", "sh", "-c", script, "sh")
    assert done.returncode == 1
    assert b"item 2 'bad': exit status 1\n" in done.stderr
    assert b"cmwq exec: halted after a failure" in done.stderr
    nothing_is_left(folder)
    assert {json.loads(line)["item"] for line in lines(folder / "log")[1:]} == {"bad"}


def test_ctrl_z_stops_the_groups_until_it_goes_on(start: Started, folder: Path) -> None:
    process = start("a", "--", "sh", "-c", 'echo "$$" >> pids; while [ ! -e go ]; do sleep 0.05; done; echo on', "sh")
    wait_until(lambda: bool(lines(folder / "pids")))
    (pid,) = lines(folder / "pids")

    process.send_signal(signal.SIGTSTP)
    wait_until(lambda: state_of(process.pid) == "T" and state_of(pid) in "TD")  # D: its child is, before exec
    (folder / "go").touch()
    process.send_signal(signal.SIGCONT)
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, b"on\n")


def test_the_end_of_the_reader_ends_the_commands(folder: Path) -> None:
    script = f'if [ "$1" = 2 ]; then {STUCK}; fi; yes "$1" | head -n 100000'
    command = (
        f"{sys.executable} -m cmwq exec --unordered 1 2 3 4 -- sh -c '{script}' sh | head -n 1; echo ${{PIPESTATUS[0]}}"
    )
    done = ran(["bash", "-c", command], cwd=folder, capture_output=True, env=environment(), timeout=100)
    assert done.stdout.splitlines()[-1] == b"141"
    assert not done.stderr or b"some commands do not end" in done.stderr  # on a machine with much to do
    if (folder / "pids").exists():
        wait_until(lambda: not any(map(alive, lines(folder / "pids"))))


def test_a_full_log_ends_the_commands(cli: Cli, folder: Path) -> None:
    script = f'if [ "$1" = a ]; then {STUCK}; fi; while [ ! -s begun ]; do sleep 0.05; done'
    done = cli("exec", "--job-log", "/dev/full", "a", "b", "--", "sh", "-c", script, "sh")
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.endswith(b"cmwq exec: error: job log '/dev/full': No space left on device\n")
    nothing_is_left(folder)


def test_a_child_that_something_else_reaped_ends_the_run(cli: Cli) -> None:
    """No unforeseen error leaves the run waiting for ever."""
    code = """
import signal, sys
from cmwq.cli import exec, main
exec._arrange_signals = lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN)
sys.exit(main())
"""
    done = cli("exec", "a", "--", "true", code=("-c", code))
    assert done.returncode == 2
    assert done.stderr == b"cmwq exec: error: ChildProcessError: [Errno 10] No child processes\n"


def test_an_item_without_an_outcome_ends_the_run(cli: Cli) -> None:
    """Nothing would ever end the wait for its turn."""
    code = """
import sys
from cmwq.cli import exec, main
exec.Executing.outcome = lambda self, index, item: None
sys.exit(main())
"""
    done = cli("exec", "a", "--", "true", code=("-c", code))
    assert done.returncode == 2
    assert done.stderr == b"cmwq exec: error: item 1 ended without an outcome, which is a fault of cmwq\n"
