"""Placeholders, quoting, and how processes are had: the parts of `cmwq exec`, without the command around them."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import HANG, descriptors, state_of, until
from hypothesis import given, settings
from hypothesis import strategies as st

from cmwq.cli import child as module
from cmwq.cli import spawn
from cmwq.cli.child import Children, Closing, Ended, Unstartable, find
from cmwq.cli.command import template
from cmwq.cli.output import Refusal
from cmwq.cli.picture import BINS, Picture
from cmwq.cli.spawn import ByPython, Spawner, WithoutGil

SHELLS = [shell for shell in ("dash", "bash", "busybox") if shutil.which(shell)]

# Lines for a shell, each of which prints the item once, however it is quoted.
PLACES = [
    "printf %s {}",
    "printf %s '{}'",
    'printf %s "{}"',
    'printf %s "a{}b"',
    "printf %s a{}b",
    "printf %s x'{}'y",
    'printf %s "$(printf %s {})"',
    'printf %s "$(printf %s "{}")"',
    "printf %s \"$(printf %s '{}')\"",
    "printf %s `printf %s \"'{}'\"`",
    "printf %s \"it's {}\" # it's a comment",
    "# a comment that isn't closed '\nprintf %s {}",
    "printf %s {} | cat",
    "(printf %s {})",
    'x={}; printf %s "$x"',
    'x=$(printf %s {}); printf %s "$x"',
    'case {} in "{}") printf %s {};; esac',
    "printf %s \\' {}",
    'printf \'%s\' "\\"{}"',
]

items = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)
nasty = st.text(st.sampled_from("ab'\"`$(){};&|<>\\#*?[]~! \n\t-={}"), min_size=1, max_size=12)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("item", ["$(touch pwned)", "`touch pwned`", "'; touch pwned; '", '"; touch pwned; "', "\\"])
def test_no_item_is_executed_wherever_it_stands(tmp_path: Path, place: str, item: str) -> None:
    argv = template([place], True, None).argv(item, 1)
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, timeout=60)
    assert not (tmp_path / "pwned").exists()
    # Only what is within the user's own $(...) without quotes is split at spaces.
    assert item.encode().replace(b" ", b"") in done.stdout.replace(b" ", b"")


@settings(max_examples=60, deadline=None)
@given(item=st.one_of(items, nasty), place=st.sampled_from(PLACES[:9]))
def test_what_is_shown_does_the_same_when_typed(item: str, place: str) -> None:
    line = template([place], True, None)
    ran = subprocess.run(line.argv(item, 1), capture_output=True, timeout=60).stdout
    typed = subprocess.run(["sh", "-c", line.shown(item, 1)], capture_output=True, timeout=60).stdout
    assert ran == typed
    assert item.encode() in ran or item.rstrip("\n").encode() in ran  # $(...) drops newlines at the end


@pytest.mark.parametrize("shell", SHELLS)
def test_sums_and_here(shell: str) -> None:
    words = template(["echo $(( {#} + 1 )) $(( ({#}) * 10 )) {}"], True, None).argv("a b", 4)
    command = [shell, *(["sh"] if shell == "busybox" else []), *words[1:]]
    assert subprocess.run(command, capture_output=True, timeout=60).stdout == b"5 40 a b\n"


@settings(max_examples=200, deadline=None)
@given(item=st.one_of(items, nasty))
def test_paths_agree_with_the_shells_own_tools(item: str) -> None:
    argv = template(["{/}", "{//}"], False, None).argv(item, 1)
    if item.strip("/") and not item.startswith("//"):
        assert argv == [os.path.basename(item.rstrip("/")), os.path.dirname(item.rstrip("/")) or "."]


def test_only_a_command_without_placeholders_is_the_same_for_all() -> None:
    assert template(["echo", "{}"], False, None).word == "echo"
    assert template(["{.}"], False, None).word is None
    assert template(["a{}"], False, "b").word == "a{}"
    assert template(["echo {}"], True, None).word == "/bin/sh"


# Processes


def nothing(data: bytes) -> None:
    pass


class Instead:
    """A spawner that does something before or instead of starting a process."""

    def __init__(self, children: Children, before: Callable[[], None]) -> None:
        self._real, self._before = children._spawner, before
        children._spawner = self

    def spawn(self, path: str, argv: list[str], out: int, err: int) -> int:
        self._before()
        return self._real.spawn(path, argv, out, err)


def refuse() -> None:
    raise OSError(errno.EAGAIN, "Resource temporarily unavailable")


def test_a_command_that_is_just_being_started_is_stopped_with_the_others() -> None:
    """By Ctrl-Z: its process is there already, and its group is not known yet."""
    children = Children(1.0)
    stopping, ended = threading.Event(), threading.Event()

    class Late(Instead):
        def spawn(self, path: str, argv: list[str], out: int, err: int) -> int:
            pids.append(super().spawn(path, argv, out, err))
            assert stopping.wait(HANG)
            return pids[0]

    def run() -> None:
        children.run("/bin/sleep", ["sleep", "100"], (nothing, nothing), None)
        ended.set()

    pids: list[int] = []
    Late(children, lambda: None)
    threading.Thread(target=run).start()
    try:
        until(lambda: bool(pids))
        stop = threading.Thread(target=children.stop)
        stop.start()
        time.sleep(0.1)  # it is about to send the signal
        stopping.set()
        stop.join(HANG)
        until(lambda: state_of(pids[0]) == "T")
        children.go_on()
    finally:
        children.end(signal.SIGKILL)
    assert ended.wait(HANG)


def test_a_program_is_found_as_a_shell_finds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder, mode in (("one", 0o644), ("two", 0o755)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "tool").write_text("#!/bin/sh\n")
        (tmp_path / folder / "tool").chmod(mode)
    (tmp_path / "one" / "only").touch(mode=0o644)
    monkeypatch.setenv("PATH", f"/no/such/folder:{tmp_path}/one:{tmp_path}/two")
    assert find("tool") == f"{tmp_path}/two/tool"
    with pytest.raises(Unstartable) as raised:
        find("only")
    assert raised.value.status == 126
    with pytest.raises(Unstartable) as raised:
        find("none")
    assert raised.value.status == 127
    monkeypatch.setenv("PATH", "")
    monkeypatch.chdir(tmp_path / "two")
    assert find("./tool") == "./tool"


def test_no_command_takes_the_last_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are for what its output needs. It is as if there were none, and what was opened is closed again."""
    before = descriptors()
    monkeypatch.setattr(spawn, "_most_descriptors", lambda: spawn.RESERVED + 3)
    with pytest.raises(OSError, match="Too many open files") as raised:
        spawn.start(spawn.best(), "/bin/true", ["true"])
    assert raised.value.errno == errno.EMFILE
    assert descriptors() == before


@pytest.mark.parametrize("make", [ByPython, WithoutGil])
def test_both_ways_to_start_a_process_do_the_same(make: Callable[[], Spawner], tmp_path: Path) -> None:
    """A session of its own, the mask of this process, and no signal that only Python ignores."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
    try:
        spawner = make()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    grep = shutil.which("grep") or "grep"

    def run(*argv: str) -> tuple[bytes, bytes, int]:
        (reading, out), (errors, err) = os.pipe(), os.pipe()
        try:
            pid = spawner.spawn(argv[0], list(argv), out, err)
        except BaseException:
            os.close(reading)
            os.close(errors)
            raise
        finally:
            os.close(out)
            os.close(err)
        with os.fdopen(reading, "rb") as printed, os.fdopen(errors, "rb") as said:
            assert os.getsid(pid) == os.getpgid(pid) == pid
            return printed.read(), said.read(), os.waitpid(pid, 0)[1]

    blocked, ignored = run(grep, "-E", "SigBlk|SigIgn", "/proc/self/status")[0].splitlines()
    assert int(blocked.split()[1], 16) == 1 << signal.SIGUSR2 - 1
    assert not int(ignored.split()[1], 16) & (1 << signal.SIGPIPE - 1 | 1 << signal.SIGXFSZ - 1)
    script = 'printf %s "$1"; printf err >&2; kill -TERM 0'  # to its group, which isn't that of the tests
    assert run("/bin/sh", "-c", script, "sh", "\udcff '") == (b"\xff '", b"err", signal.SIGTERM)
    fds = descriptors()
    (tmp_path / "plain").touch()
    for path, number in (("/no/such", errno.ENOENT), (str(tmp_path / "plain"), errno.EACCES)):
        with pytest.raises(OSError, match=os.strerror(number)) as raised:
            run(path)
        assert raised.value.errno == number
    with pytest.raises(OSError, match="too long"):
        run("/bin/echo", "x" * 3_000_000)
    with pytest.raises(ValueError, match="null"):
        run("/bin/echo", "a\0b")
    assert descriptors() == fds


def test_a_process_that_cannot_be_had_now_is_asked_for_again(tmp_path: Path) -> None:
    """A limit on processes: once a command ends, another can start. Nothing fails, and nothing runs twice."""
    children = Children(5)
    refused = threading.Event()

    def limited() -> None:
        if children._running:
            refused.set()
            refuse()

    Instead(children, limited)
    results: list[Ended] = []

    def run(*argv: str) -> None:
        results.append(children.run(find(argv[0]), list(argv), (nothing, nothing), None))

    os.mkfifo(tmp_path / "go")
    threads = [
        threading.Thread(target=run, args=("cat", str(tmp_path / "go")), daemon=True),
        threading.Thread(target=run, args=("true",), daemon=True),
    ]
    threads[0].start()
    while not children._running:
        time.sleep(0.001)
    threads[1].start()
    assert refused.wait(60)
    (tmp_path / "go").write_text("now")
    for thread in threads:
        thread.join(60)
    assert [ended.error for ended in results] == [None, None]


def test_a_process_that_is_never_to_be_had_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE", 0.001)
    children = Children(5)
    fds = descriptors()
    Instead(children, refuse)
    with pytest.raises(Refusal, match="no process can be started: Resource temporarily unavailable"):
        children.run("/bin/true", ["true"], (nothing, nothing), None)
    assert not children.any
    assert descriptors() == fds


def test_no_descriptor_to_be_had_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = os.pipe2, []

    def scarce(flags: int) -> tuple[int, int]:
        calls.append(1)
        if len(calls) in (1, 3):  # the first pipe, then the second
            raise OSError(errno.EMFILE, "Too many open files")
        return real(flags)

    children = Children(5)
    monkeypatch.setattr(os, "pipe2", scarce)
    monkeypatch.setattr(module, "PAUSE", 0.001)
    fds = descriptors()
    assert children.run("/bin/true", ["true"], (nothing, nothing), None).error is None
    assert descriptors() == fds


def test_after_the_end_nothing_starts() -> None:
    children = Children(5)
    children.end(signal.SIGTERM)
    with pytest.raises(Closing):
        children.run("/bin/true", ["true"], (nothing, nothing), None)


def test_what_is_being_started_at_the_end_is_ended() -> None:
    children = Children(5)
    Instead(children, lambda: children.end(signal.SIGTERM))  # it sees no process yet
    ended = children.run("/bin/sleep", ["sleep", "1000"], (nothing, nothing), None)
    assert (ended.signal, ended.given_up) == (signal.SIGTERM, True)


def test_a_sink_that_fails_ends_the_command() -> None:
    children = Children(5)

    def full(data: bytes) -> None:
        raise OSError(errno.ENOSPC, "full")

    fds = descriptors()
    with pytest.raises(OSError, match="full"):
        children.run("/usr/bin/env", ["env", "yes"], (full, full), None)
    assert not children.any
    assert descriptors() == fds


def test_without_pidfd_a_timeout_works_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(pid: int) -> int:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(os, "pidfd_open", absent)
    ended = Children(0.1).run("/bin/sh", ["sh", "-c", "exec 1>&- 2>&-; exec sleep 1000"], (nothing, nothing), 0.2)
    assert ended.late


# The picture


def test_the_picture_shows_how_many_ran_when() -> None:
    picture = Picture()
    now = picture._begun
    for number in range(8):
        picture.add(now, now + 4.0)
        picture.add(now + 4.0 + number / 2, now + 4.5 + number / 2)
    said, *rows = picture.lines()
    assert said.startswith("ran at the same time: 4.5 on average, about 8 at most")
    assert rows[0].startswith("     8 |")
    tops = rows[0].partition("|")[2].rstrip()
    assert 0.4 < len(tops) / len(rows[-2].partition("|")[2]) < 0.6  # all eight in the first half only


def test_the_picture_of_a_long_run_is_as_small() -> None:
    picture = Picture()
    now = picture._begun
    for number in range(1000):
        picture.add(now + number * 100.0, now + number * 100.0 + 50.0)
    said, *rows = picture.lines()
    assert "0.5 on average" in said
    assert max(map(len, rows)) <= BINS + 12
    assert Picture().lines() == []
