"""`cmwq exec` on a terminal: commands have none, and what is typed there reaches all of them all the same."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import HANG, state_of

from .conftest import environment
from .test_exec_end import STUCK, alive, lines, nothing_is_left, wait_until

CMWQ = (sys.executable, "-m", "cmwq", "exec")


class Terminal:
    """A terminal with a process whose session it is."""

    def __init__(self, folder: Path, *command: str, **env: str) -> None:
        self.seen = b""
        self.status: int | None = None
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            os.execvpe(command[0], command, environment(**{"TERM": "xterm", **env}))

    def type(self, keys: bytes) -> None:
        os.write(self.fd, keys)

    def read_until(self, condition: Callable[[], bool]) -> None:
        """Read what is shown, or else its writers would wait for that."""
        deadline = time.monotonic() + HANG
        while not condition():
            assert time.monotonic() < deadline, self.seen
            self._read(0.02)

    def ended(self) -> int:
        """Its status. None of what it said is lost: a terminal that goes away early is a failed run, and rightly so."""
        self.read_until(self._has_ended)
        while self._read(0):
            pass
        assert self.status is not None
        return self.status

    def _has_ended(self) -> bool:
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = os.waitstatus_to_exitcode(status) if pid else None
        return self.status is not None

    def _read(self, seconds: float) -> bool:
        if not select.select([self.fd], [], [], seconds)[0]:
            return False
        with contextlib.suppress(OSError):
            self.seen += (some := os.read(self.fd, 1 << 16))
            return bool(some)
        time.sleep(seconds)  # nobody has it open
        return False

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                if stat.read_text().rpartition(")")[2].split()[3] == str(self.pid):
                    os.kill(int(stat.parent.name), signal.SIGKILL)
        if self.status is None:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.pid, 0)


@pytest.fixture
def terminal(folder: Path) -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def run(*command: str, **env: str) -> Terminal:
        opened.append(Terminal(folder, *command, **env))
        return opened[-1]

    yield run
    for one in opened:
        one.close()


@pytest.mark.parametrize(
    "script",
    [
        "if (exec < /dev/tty); then echo read; else echo none; fi",
        "if stty -echo < /dev/tty; then echo changed; else echo none; fi",
        "bash -ic 'echo none'",  # it would be stopped, until it is in the foreground
    ],
)
def test_a_command_has_no_terminal(terminal: Callable[..., Terminal], script: str) -> None:
    """What would ask a question there fails at once. It isn't stopped for ever, nor does it ask for ever."""
    shown = terminal(*CMWQ, "--quiet", "a", "--", "sh", "-c", script)
    assert shown.ended() == 0
    assert b"none" in shown.seen
    assert not {b"read", b"changed"} & set(shown.seen.split())


@pytest.mark.parametrize(("key", "number"), [(b"\x03", signal.SIGINT), (b"\x1c", signal.SIGQUIT)])
def test_keys_that_end_reach_all_commands(
    terminal: Callable[..., Terminal], folder: Path, key: bytes, number: int
) -> None:
    shown = terminal(*CMWQ, "--quiet", "a", "b", "--", "sh", "-c", STUCK, "sh")
    shown.read_until(lambda: len(lines(folder / "begun")) == 2)
    shown.type(key)
    assert shown.ended() == -number
    nothing_is_left(folder)


def test_a_terminal_that_goes_away_ends_all_commands(terminal: Callable[..., Terminal], folder: Path) -> None:
    shown = terminal(*CMWQ, "--quiet", "a", "b", "--", "sh", "-c", STUCK, "sh")
    shown.read_until(lambda: len(lines(folder / "begun")) == 2)
    os.close(shown.fd)
    shown.fd = -1
    nothing_is_left(folder)
    assert os.waitstatus_to_exitcode(os.waitpid(shown.pid, 0)[1]) == -signal.SIGHUP
    shown.status = -signal.SIGHUP


WAITS = 'echo "$$" >> pids; until [ -e go ]; do sleep 0.05; done; echo on'


def test_ctrl_z_and_fg(terminal: Callable[..., Terminal], folder: Path) -> None:
    command = shlex.join([*CMWQ, "--quiet", "a", "b", "--", "sh", "-c", WAITS])
    # bash's own job control, as one has it at the prompt.
    shown = terminal("bash", "-m", "-c", f"{command}; echo $? > stopped; read x; fg; echo $? > ended")
    shown.read_until(lambda: len(lines(folder / "pids")) == 2)
    shown.type(b"\x1a")
    shown.read_until(lambda: bool(lines(folder / "stopped")))
    assert lines(folder / "stopped") == [str(128 + signal.SIGTSTP)]
    wait_until(lambda: {state_of(pid) for pid in lines(folder / "pids")} <= {"T", "D"})
    (folder / "go").touch()
    shown.type(b"\n")
    assert shown.ended() == 0
    assert lines(folder / "ended") == ["0"]
    assert shown.seen.split().count(b"on") == 2


def test_ctrl_z_stops_nothing_where_nobody_could_go_on_with_it(terminal: Callable[..., Terminal], folder: Path) -> None:
    """As `ssh -t HOST cmwq exec`: it is the terminal's first process, and there is no shell to say `fg`."""
    shown = terminal(*CMWQ, "--quiet", "a", "--", "sh", "-c", WAITS)
    shown.read_until(lambda: bool(lines(folder / "pids")))
    shown.type(b"\x1a")
    shown.read_until(lambda: b"^Z" in shown.seen)
    time.sleep(0.3)
    (folder / "go").touch()
    assert shown.ended() == 0
    assert shown.seen.endswith(b"on\r\n")


def test_in_the_background_it_stops_when_it_reads_the_terminal(terminal: Callable[..., Terminal], folder: Path) -> None:
    """As every job does, so that `fg` goes on with it; the user's next line is not its."""
    command = shlex.join([*CMWQ, "--quiet", "--", "echo", "got"])
    # fg again: it may read once more before bash has given it the terminal.
    script = f"{command} & echo $! > pid; until [ -e go ]; do sleep 0.05; done; until fg; [ $? != 149 ]; do :; done"
    shown = terminal("bash", "-m", "-c", script)
    shown.read_until(lambda: bool(lines(folder / "pid")))
    (pid,) = lines(folder / "pid")
    shown.read_until(lambda: not alive(pid) or state_of(pid) == "T")
    assert alive(pid)
    (folder / "go").touch()
    shown.type(b"one\n\x04")
    assert shown.ended() == 0
    assert b"got one" in shown.seen


# The display

WITHOUT_RICH = "import sys; sys.modules['rich'] = None; from cmwq.cli import main; sys.exit(main())"
DISPLAYS = pytest.mark.parametrize("how", [("-m", "cmwq"), ("-c", WITHOUT_RICH)], ids=["rich", "text"])


@DISPLAYS
def test_nothing_is_drawn_over_a_line_that_has_not_ended(
    terminal: Callable[..., Terminal], how: tuple[str, str]
) -> None:
    script = "sleep 0.4; printf '{%s}' \"$1\"; [ $1 != 3 ]"
    shown = terminal(sys.executable, *how, "exec", "--max-active", "1", *"123", "--", "sh", "-c", script, "sh")
    assert shown.ended() == 1
    drawn, _, rest = shown.seen.partition(b"{1}")
    assert b"0 of 3 items" in drawn
    assert rest.startswith(b"{2}{3}")
    assert b"cmwq exec: item 3 '3': exit status 1" in rest
    assert b"cmwq exec: 3 of 3 items, 1 failed" in rest.splitlines()[-1]


@DISPLAYS
def test_the_cursor_is_never_hidden(terminal: Callable[..., Terminal], how: tuple[str, str]) -> None:
    """After a second Ctrl-C, or SIGKILL, nobody would show it again."""
    script = "trap '' INT; echo $$ >> pids; while :; do sleep 1; done"
    shown = terminal(sys.executable, *how, "exec", "--kill-after", "1d", "a", "--", "sh", "-c", script)
    shown.read_until(lambda: b"0 of 1 items" in shown.seen)
    shown.type(b"\x03")
    shown.read_until(lambda: b"do not end" in shown.seen)  # else the two may come as one
    shown.type(b"\x03")
    assert shown.ended() == -signal.SIGINT
    assert b"\x1b[?25l" not in shown.seen


@DISPLAYS
def test_nothing_is_drawn_in_the_background(terminal: Callable[..., Terminal], how: tuple[str, str]) -> None:
    command = shlex.join([sys.executable, *how, "exec", "1", "1", "--", "sleep"])
    shown = terminal("bash", "-m", "-c", f"{command} & wait")
    assert shown.ended() == 0
    assert shown.seen.count(b" items") == 1, shown.seen  # the summary


def test_a_terminal_that_cannot_draw_gets_whole_lines(terminal: Callable[..., Terminal]) -> None:
    shown = terminal(*CMWQ, "1", "1", "--", "sleep", TERM="dumb")
    assert shown.ended() == 0
    assert shown.seen.count(b" of 2 items") >= 2
    assert shown.seen.count(b"\r") == shown.seen.count(b"\r\n")
    assert b"\x1b" not in shown.seen
