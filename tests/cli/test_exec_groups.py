"""`cmwq exec` and the process groups of its commands: who is in one ends with its command, if that is being ended."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
from conftest import HANG, state_of

from cmwq.cli import child, exits
from cmwq.cli.child import Children, Clock
from cmwq.cli.exits import has_exited
from cmwq.cli.groups import living
from cmwq.cli.spawn import Spawner

from .conftest import Cli
from .test_exec_end import Started, alive, lines, nothing_is_left, start, wait_until

__all__ = ["start"]

STAYS = """
sh -c 'trap "" INT TERM HUP QUIT; echo "$$" >> pids; exec sleep 1000' > /dev/null 2>&1 &
echo "$$" >> pids
until [ "$(wc -l < pids)" = 2 ]; do sleep 0.05; done
"""
"""Something in the background that ignores signals, and holds no output open."""
HEEDS = f'{STAYS}echo "$1" >> begun; exec sleep 1000'


def nothing(data: bytes) -> None:
    pass


def test_timeout_ends_who_has_no_output_open(cli: Cli, folder: Path) -> None:
    """The leader heeds SIGTERM; the other one doesn't, and is killed."""
    done = cli("exec", "--timeout", "3", "--kill-after", "0.5", "a", "--", "sh", "-c", HEEDS, "sh")
    assert (done.returncode, b"timed out after 3 s" in done.stderr) == (1, True)
    nothing_is_left(folder)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_who_has_no_output_open(start: Started, folder: Path, number: signal.Signals) -> None:
    process = start("--kill-after", "0.5", "a", "--", "sh", "-c", HEEDS, "sh")
    wait_until(lambda: bool(lines(folder / "begun")))
    process.send_signal(number)
    assert process.wait(60) == -number
    nothing_is_left(folder)


def test_a_second_signal_ends_who_has_no_output_open(start: Started, folder: Path) -> None:
    process = start("--kill-after", "1d", "a", "--", "sh", "-c", HEEDS, "sh")
    wait_until(lambda: bool(lines(folder / "begun")))
    process.send_signal(signal.SIGTERM)
    wait_until(lambda: sum(map(alive, lines(folder / "pids"))) == 1)
    time.sleep(0.3)
    assert sum(map(alive, lines(folder / "pids"))) == 1  # it has its day
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == -signal.SIGTERM
    nothing_is_left(folder)


def test_halt_now_ends_who_has_no_output_open(cli: Cli, folder: Path) -> None:
    script = f'if [ "$1" = bad ]; then while [ ! -s begun ]; do sleep 0.05; done; exit 1; fi; {HEEDS}'
    done = cli("exec", "--halt", "now", "--kill-after", "0.5", "a", "bad", "--", "sh", "-c", script, "sh")
    assert done.returncode == 1
    nothing_is_left(folder)


def test_all_of_the_group_may_clean_up(cli: Cli, folder: Path) -> None:
    """What the leader started has --kill-after as well, and no more of it than it needs."""
    member = "trap 'sleep 0.5; echo clean > cleaned; exit' TERM; echo on > ready; while :; do sleep 0.1; done"
    (folder / "member").write_text(member)
    script = "sh member > /dev/null 2>&1 & while [ ! -s ready ]; do sleep 0.05; done; exec sleep 1000"
    begun = time.monotonic()
    done = cli("exec", "--timeout", "5", "--kill-after", "1d", "a", "--", "sh", "-c", script)
    assert (done.returncode, lines(folder / "cleaned")) == (1, ["clean"])
    assert time.monotonic() - begun < HANG


def test_who_is_missed_by_a_look_is_killed(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Processes that come and go can't be listed at once; a signal to the group misses none."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr("cmwq.cli.groups.living", lambda: frozenset[int]())
    ended = Children(1000.0).run("/bin/sh", ["sh", "-c", HEEDS, "sh", "a"], (nothing, nothing), 3.0)
    assert ended.late
    nothing_is_left(folder)


def test_what_a_command_leaves_behind_when_it_ends_by_itself_is_let_be(cli: Cli, folder: Path) -> None:
    done = cli("exec", "--timeout", "50", "a", "--", "sh", "-c", STAYS)
    assert (done.returncode, done.stderr) == (0, b"")
    background, leader = sorted(lines(folder / "pids"), key=alive, reverse=True)
    try:
        assert (alive(background), alive(leader)) == (True, False)
    finally:
        os.kill(int(background), signal.SIGKILL)


def test_groups_that_live_are_seen_and_zombies_are_not() -> None:
    assert os.getpgid(0) in living()
    pid = os.posix_spawn("/bin/true", ["true"], {}, setpgroup=0)
    try:
        wait_until(lambda: state_of(pid) == "Z")
        assert pid not in living()
    finally:
        os.waitpid(pid, 0)


# A daemon: it has left the group, and holds its stdout open.
DAEMON = "setsid sh -c 'echo \"$$\" > daemon; exec sleep 1000' & until [ -s daemon ]; do sleep 0.05; done; exit 0"


@pytest.fixture
def daemon(folder: Path) -> Path:
    return folder / "daemon"


@pytest.mark.parametrize("halting", [False, True])
def test_a_daemon_costs_no_output_and_no_failure_of_others(
    start: Started, folder: Path, daemon: Path, halting: bool
) -> None:
    """Its command is waited for when the run ends, and has only left the group: nothing there can still end."""
    script = f"""
if [ "$1" = 1 ]; then {DAEMON}; fi
echo "out $1"
if [ "$1" = 3 ]; then until [ "$(wc -l < jobs)" = 1 ] && [ -s daemon ]; do sleep 0.05; done; exit 7; fi
"""
    options = ["--halt", "now"] if halting else []
    process = start("--kill-after", "1d", "--job-log", "jobs", *options, "1", "2", "3", "--", "sh", "-c", script, "sh")
    if not halting:
        wait_until(lambda: len(lines(folder / "jobs")) == 2)
        process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    try:
        assert (process.returncode, out) == (1 if halting else -signal.SIGTERM, b"out 2\nout 3\n")
        assert b"cmwq exec: item 3 '3': exit status 7\n" in err
        os.kill(int(daemon.read_text()), 0)
    finally:
        os.kill(int(daemon.read_text()), signal.SIGKILL)


def test_a_command_whose_background_was_ended_is_run_again(start: Started, folder: Path) -> None:
    """Its leader had ended, and the rest, which had its stdout open, was ended: it is not done."""
    script = 'echo "$$" >> pids; sleep 1000 & echo "$!" >> pids; echo early'
    process = start("--resume", "log", "a", "--", "sh", "-c", script)
    wait_until(lambda: len(lines(folder / "pids")) == 2 and state_of(lines(folder / "pids")[0]) == "Z")
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, out, len(lines(folder / "log"))) == (-signal.SIGTERM, b"", 1)
    nothing_is_left(folder)


@pytest.mark.parametrize("given_up", [False, True])
def test_a_command_that_is_just_being_started_when_the_run_ends_is_judged_with_its_group(
    monkeypatch: pytest.MonkeyPatch, *, given_up: bool
) -> None:
    """On a busy machine a leader may have ended before its starter goes on."""
    children, starts = Children(5.0), child.start

    def start_late(spawner: Spawner, path: str, argv: list[str]) -> tuple[int, int, int]:
        started = starts(spawner, path, argv)
        wait_until(lambda: has_exited(started[0]))
        children.end(signal.SIGTERM)
        return started

    monkeypatch.setattr(child, "start", start_late)
    script = "sleep 1000 & echo early" if given_up else "echo early"
    assert children.run("/bin/sh", ["sh", "-c", script], (nothing, nothing), HANG).given_up == given_up


# ------------------------------------------------------------------------------------------- limits


@pytest.mark.parametrize("time_limit", ["25d", "11000d"])
def test_limits_may_be_longer_than_the_kernel_counts(cli: Cli, folder: Path, time_limit: str) -> None:
    done = cli("exec", "--timeout", time_limit, "a", "--", "sh", "-c", "sleep 0.2; exec 1>&- 2>&-; sleep 0.2")
    assert (done.returncode, done.stderr) == (0, b"")
    script = "trap 'sleep 0.3; exit' TERM; echo early; while :; do sleep 0.1; done"
    for closing in ("", "exec 1>&- 2>&-; "):
        done = cli("exec", "--timeout", "0.5", "--kill-after", time_limit, "a", "--", "sh", "-c", closing + script)
        assert (done.returncode, b"timed out after 0.5 s" in done.stderr) == (1, True)


@pytest.mark.parametrize("closing", ["", "exec 1>&- 2>&-; "])
def test_a_wait_that_the_kernel_cuts_short_is_taken_up_again(monkeypatch: pytest.MonkeyPatch, closing: str) -> None:
    monkeypatch.setattr(exits, "LONGEST_POLL", 0.01)
    script = ["sh", "-c", f"{closing}sleep 0.3"]
    assert Children(5.0).run("/bin/sh", script, (nothing, nothing), HANG).error is None


@pytest.mark.parametrize("closing", ["", "exec 1>&- 2>&-; "])
def test_time_that_ctrl_z_took_is_not_the_commands(start: Started, folder: Path, closing: str) -> None:
    script = f'{closing}echo "$$" >> pids; until [ -e go ]; do sleep 0.05; done'
    process = start("--timeout", "6", "--job-log", "jobs", "a", "--", "sh", "-c", script)
    wait_until(lambda: bool(lines(folder / "pids")))
    (pid,) = lines(folder / "pids")
    process.send_signal(signal.SIGTSTP)
    wait_until(lambda: state_of(process.pid) == "T" and state_of(pid) in "TD")  # D: its child is, before exec
    time.sleep(6.2)
    (folder / "go").touch()
    process.send_signal(signal.SIGCONT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, b"")
    (job,) = map(json.loads, lines(folder / "jobs"))
    assert "timed_out" not in job


def test_the_clock_of_limits_stands_while_commands_do(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    clock = Clock()
    clock.go_on()  # nothing was stopped
    clock.stop()
    now = 150.0
    assert clock.time() == 100.0
    clock.stop()
    now = 160.0
    clock.go_on()
    now = 163.0
    assert clock.time() == 103.0


def test_a_stop_in_the_middle_of_a_look_at_the_clock_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything may be stopped between two lines of it."""
    clock, now, calls = Clock(), 100.0, []

    def monotonic() -> float:
        nonlocal now
        calls.append(now)
        if len(calls) == 1:
            clock.stop()
            now += 1000
            clock.go_on()
        return now

    monkeypatch.setattr(time, "monotonic", monotonic)
    assert clock.time() == 100.0
