"""The log of `cmwq exec --resume`: what is missing in it or was changed is told, and a dry run only reads it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from .conftest import Cli

SIZE = 200_000
LONG = ("--", "sh", "-c", f'head -c {SIZE} /dev/zero | tr "\\0" "$1"', "sh")
DAMAGED = "cmwq exec: error: log 'log': line {} is damaged; repair or remove it, or use another log\n"


@pytest.fixture
def lines(cli: Cli, folder: Path) -> list[bytes]:
    """The log of a and b, which printed much: the header, four pieces, a line, four pieces, a line."""
    assert cli("exec", "--max-active", "1", "--resume", "log", "a", "b", *LONG).returncode == 0
    lines = (folder / "log").read_bytes().splitlines(keepends=True)
    assert ["piece" in json.loads(line) for line in lines] == [False, *([True] * 4 + [False]) * 2]
    return lines


@pytest.mark.parametrize(
    ("removed", "damaged"),
    [
        ([5], 6),  # the line of a: its pieces aren't b's
        ([1], 2),  # the first piece
        ([2], 3),
        ([4], 5),  # the last piece
        ([1, 2, 3, 4], 2),  # all of them
        ([5, 6, 7, 8, 9], 6),  # and b's line has as many before it as it says
    ],
)
def test_pieces_that_are_missing_or_another_items_are_told(
    cli: Cli, folder: Path, lines: list[bytes], removed: list[int], damaged: int
) -> None:
    left = b"".join(line for number, line in enumerate(lines) if number not in removed)
    (folder / "log").write_bytes(left)
    done = cli("exec", "--resume", "log", "a", "b", *LONG)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.decode() == DAMAGED.format(damaged)
    assert (folder / "log").read_bytes() == left


def test_an_item_that_is_removed_with_its_pieces_runs_again(cli: Cli, folder: Path, lines: list[bytes]) -> None:
    (folder / "log").write_bytes(b"".join(lines[:1] + lines[6:]))
    done = cli("exec", "--resume", "log", "a", "b", *LONG)
    assert (done.returncode, done.stdout) == (0, b"a" * SIZE + b"b" * SIZE)


def test_pieces_that_an_older_version_wrote_are_refused(cli: Cli, folder: Path, lines: list[bytes]) -> None:
    """It did not say how many there are. Lines without pieces are read."""
    old = []
    for line in lines:
        entry = json.loads(line)
        entry.pop("number", None)
        entry.pop("pieces", None)
        old.append(json.dumps(entry).encode() + b"\n")
    (folder / "log").write_bytes(b"".join(old))
    done = cli("exec", "--resume", "log", "a", "b", *LONG)
    assert (done.returncode, done.stdout) == (2, b"")
    assert (
        done.stderr
        == b"cmwq exec: error: log 'log': line 2 is of an older cmwq, and can't be checked; use another log\n"
    )


@pytest.mark.parametrize("value", ["5", "null", '"\\ud83d"', "[]"])
@pytest.mark.parametrize("name", ["stdout", "stderr", "text"])
def test_a_value_that_is_no_text_is_damage(cli: Cli, folder: Path, name: str, value: str) -> None:
    command = LONG if name == "text" else ("--", "sh", "-c", "echo out; echo err >&2")
    cli("exec", "--resume", "log", "a", *command)
    header, line, *rest = (folder / "log").read_text().splitlines(keepends=True)
    entry = json.loads(line)
    before = json.dumps(entry[name])
    (folder / "log").write_text("".join([header, line.replace(f'"{name}": {before}', f'"{name}": {value}'), *rest]))
    done = cli("exec", "--resume", "log", "a", *command)
    assert (done.returncode, done.stdout, done.stderr.decode()) == (2, b"", DAMAGED.format(2))


def test_output_that_was_not_kept_is_not_passed_over(cli: Cli, folder: Path) -> None:
    command = ("--", "sh", "-c", 'echo x >> effects; echo "out $1"; test "$1" != bad', "sh")
    assert cli("exec", "--line-buffer", "--resume", "log", "bad", "a", *command).returncode == 1
    done = cli("exec", "--resume", "log", "bad", "a", *command)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.decode() == (
        "cmwq exec: error: log 'log' lacks the output of item 2, which was printed with --line-buffer: "
        "give that again, or use another log\n"
    )
    assert (folder / "effects").read_text() == "x\n" * 2
    shown = cli("exec", "--resume", "log", "--dry-run", "bad", "a", *command)  # which prints no output
    assert (shown.returncode, shown.stdout.count(b"\n")) == (0, 1)
    done = cli("exec", "--line-buffer", "--resume", "log", "bad", "a", "b", *command)
    assert sorted(done.stdout.splitlines()) == [b"out b", b"out bad"]


def test_a_command_that_printed_nothing_is_not_one_whose_output_was_not_kept(cli: Cli) -> None:
    for _ in range(2):
        assert cli("exec", "--resume", "log", "a", "--", "true").returncode == 0


def test_a_dry_run_leaves_a_cut_log_as_it_is(cli: Cli, folder: Path, lines: list[bytes]) -> None:
    for cut in (b"".join(lines)[:-5], b"".join(lines[:-1]), lines[0][:20], b""):
        (folder / "log").write_bytes(cut)
        os.chmod(folder / "log", 0o444)
        done = cli("exec", "--dry-run", "--resume", "log", "a", "b", *LONG)
        assert (done.returncode, done.stderr) == (0, b"")
        assert [line[-1:] for line in done.stdout.splitlines()] == (
            [b"b"] if cut.startswith(lines[0]) else [b"a", b"b"]
        )
        assert (folder / "log").read_bytes() == cut
        os.chmod(folder / "log", 0o644)


def test_a_dry_run_waits_for_no_pipe_and_takes_no_folder(cli: Cli, folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    assert cli("exec", "--dry-run", "--resume", "pipe", "a", "--", "echo").stdout == b"echo a\n"
    done = cli("exec", "--dry-run", "--resume", ".", "a", "--", "echo")
    assert (done.returncode, done.stderr) == (2, b"cmwq exec: error: log '.': Is a directory\n")


def test_with_line_buffer_all_tries_are_shown(cli: Cli) -> None:
    """As the help says: lines that are printed can't be taken back."""
    command = ("--", "sh", "-c", "echo x >> effects; grep -c x effects; test $(grep -c x effects) = 3")
    assert cli("exec", "--retries", "2", "--line-buffer", "a", *command).stdout == b"1\n2\n3\n"
    assert "--line-buffer: all" in " ".join(cli("exec", "--help").stdout.decode().split())
