"""Placeholders, quoting, and how processes are had: the parts of `cmwq exec`, without the command around them."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmwq.cli import child as module
from cmwq.cli.child import Children, Closing, Ended, Unstartable, find
from cmwq.cli.command import template
from cmwq.cli.output import Refusal
from cmwq.cli.picture import BINS, Picture

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


def test_a_process_that_cannot_be_had_now_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit on processes: once a command ends, another can start. Nothing fails, and nothing runs twice."""
    children = Children(5)
    real, refused = os.posix_spawn, []
    begun = threading.Event()

    def limited(*args: object, **more: object) -> int:
        if children._running:
            refused.append(1)
            begun.set()
            raise OSError(errno.EAGAIN, "Resource temporarily unavailable")
        return real(*args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "posix_spawn", limited)
    results: list[Ended] = []

    def run(*argv: str) -> None:
        results.append(children.run(find(argv[0]), list(argv), (nothing, nothing), None))

    os.mkfifo(fifo := Path(os.environ.get("TMPDIR", "/tmp")) / f"cmwq-test-{os.getpid()}")
    try:
        first = threading.Thread(target=run, args=("cat", str(fifo)))
        first.start()
        while not children.any:
            pass
        second = threading.Thread(target=run, args=("true",))
        second.start()
        assert begun.wait(60)
        fifo.write_text("go")
        first.join(60)
        second.join(60)
    finally:
        fifo.unlink()
    assert [ended.error for ended in results] == [None, None]
    assert refused


def test_a_process_that_is_never_to_be_had_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE", 0.001)
    fds = len(os.listdir("/proc/self/fd"))

    def refuse(*args: object, **more: object) -> int:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "posix_spawn", refuse)
    children = Children(5)
    with pytest.raises(Refusal, match="no process can be started: Resource temporarily unavailable"):
        children.run("/bin/true", ["true"], (nothing, nothing), None)
    assert not children.any
    assert len(os.listdir("/proc/self/fd")) == fds


def test_no_descriptor_to_be_had_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = os.pipe2, []

    def scarce(flags: int) -> tuple[int, int]:
        calls.append(1)
        if len(calls) in (1, 3):  # the first pipe, then the second
            raise OSError(errno.EMFILE, "Too many open files")
        return real(flags)

    monkeypatch.setattr(os, "pipe2", scarce)
    monkeypatch.setattr(module, "PAUSE", 0.001)
    fds = len(os.listdir("/proc/self/fd"))
    assert Children(5).run("/bin/true", ["true"], (nothing, nothing), None).error is None
    assert len(os.listdir("/proc/self/fd")) == fds


def test_after_the_end_nothing_starts() -> None:
    children = Children(5)
    children.end(signal.SIGTERM)
    with pytest.raises(Closing):
        children.run("/bin/true", ["true"], (nothing, nothing), None)


def test_what_is_being_started_at_the_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    children = Children(5)
    real = os.posix_spawn

    def late(*args: object, **more: object) -> int:
        children.end(signal.SIGTERM)  # it sees no process yet
        return real(*args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "posix_spawn", late)
    ended = children.run("/bin/sleep", ["sleep", "1000"], (nothing, nothing), None)
    assert (ended.signal, ended.given_up) == (signal.SIGTERM, True)


def test_a_sink_that_fails_ends_the_command() -> None:
    children = Children(5)

    def full(data: bytes) -> None:
        raise OSError(errno.ENOSPC, "full")

    fds = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="full"):
        children.run("/usr/bin/env", ["env", "yes"], (full, full), None)
    assert not children.any
    assert len(os.listdir("/proc/self/fd")) == fds


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
    assert said.startswith("ran at the same time: 4.5 on average, 8.0 at most")
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
