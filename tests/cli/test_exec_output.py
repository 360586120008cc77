"""What commands print under `cmwq exec`: in one piece, in bounded memory, however much it is."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cmwq.cli import capture
from cmwq.cli.capture import SLOT, Spill, SpillError, Stream
from cmwq.cli.lines import Lines, Tagged, tag_of

from .conftest import Cli, environment, ran


def limited(folder: Path, limits: str, *args: str, **env: str) -> subprocess.CompletedProcess[bytes]:
    """The command under limits of the shell."""
    command = f'{limits}; exec {sys.executable} -m cmwq exec "$@"'
    return ran(
        ["bash", "-c", command, "bash", *args], cwd=folder, capture_output=True, env=environment(**env), timeout=100
    )


def test_two_streams_stay_apart_and_whole(cli: Cli) -> None:
    """Commands that print alternately on both, many times."""
    script = 'for i in $(seq 200); do echo "$1 $i"; echo "$1 $i!" >&2; done'
    done = cli("exec", "a", "b", "c", "--", "sh", "-c", script, "sh")
    assert done.stdout.decode().splitlines() == [f"{item} {i}" for item in "abc" for i in range(1, 201)]
    assert done.stderr.decode().splitlines() == [f"{item} {i}!" for item in "abc" for i in range(1, 201)]


def test_where_both_streams_are_one_a_command_is_in_one_piece(folder: Path) -> None:
    command = f"{sys.executable} -m cmwq exec a b -- sh -c 'echo out $1; echo err $1 >&2' sh 2>&1"
    done = ran(["bash", "-c", command], cwd=folder, stdout=subprocess.PIPE, env=environment(), timeout=100)
    assert done.stdout == b"out a\nerr a\nout b\nerr b\n"


@pytest.mark.parametrize("tag", [False, True])
def test_a_flood_needs_no_memory(cli: Cli, folder: Path, tag: bool) -> None:
    """Ten times 30 MB, in lines of a hundred, kept back by a first command that waits for the others."""
    script = 'if [ "$1" = 0 ]; then while [ $(ls ended-* 2>/dev/null | wc -l) -lt 9 ]; do sleep 0.1; done; fi; '
    script += 'yes "$(printf %099d "$1")" | head -c 30000000; touch "ended-$1"'
    option = ["--tag"] if tag else []
    measured = """
import re, sys
from cmwq.cli import main
status = main()
peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
# Without a GIL what is freed is given back later. (Kept in memory, what waits would be 270 MB.)
assert peak < (100_000 if getattr(sys, "_is_gil_enabled", lambda: True)() else 210_000), peak
sys.exit(status)
"""
    words = ["exec", *option, *map(str, range(10)), "--", "sh", "-c", script, "sh"]
    with open(folder / "out", "wb") as out:
        done = cli(*words, code=("-c", measured), stdout=out.fileno())
    assert (done.returncode, done.stderr) == (0, b"")
    with open(folder / "out", "rb") as file:
        for number in range(10):
            line = b"%d\t%099d\n" % (number, number) if tag else b"%099d\n" % number
            expected = line * (30_000_000 // 100)
            assert file.read(len(expected)) == expected
        assert file.read() == b""


def test_a_full_disk_under_the_output_that_waits(folder: Path) -> None:
    done = limited(folder, "ulimit -f 64", "a", "--", "sh", "-c", "yes | head -c 10000000")
    assert (done.returncode, done.stdout) == (2, b"")
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith("cmwq exec: error: output that waits is kept in ")
    assert line.endswith(": File too large (TMPDIR chooses another folder)")


def test_no_file_is_left_and_none_has_a_name(folder: Path, cli: Cli) -> None:
    (folder / "tmp").mkdir()
    script = "head -c 1000000 /dev/zero | wc -c; head -c 1000000 /dev/zero; ls -A tmp >&2"
    done = cli("exec", "a", "--", "sh", "-c", script, env={"TMPDIR": str(folder / "tmp")})
    assert (len(done.stdout), done.stderr) == (1_000_008, b"")
    assert os.listdir(folder / "tmp") == []


def test_tags(cli: Cli) -> None:
    script = "printf 'one\\n\\ntwo'; echo err >&2"
    done = cli("exec", "-0", "--tag", "--", "sh", "-c", script, input=b"a\n\tb\xff\0c\0")
    assert done.stdout == b"a\\n\\tb\xff\tone\na\\n\\tb\xff\t\na\\n\\tb\xff\ttwo\nc\tone\nc\t\nc\ttwo\n"
    assert done.stderr == b"a\\n\\tb\xff\terr\nc\terr\n"


def test_line_buffer_shows_lines_at_once(folder: Path) -> None:
    os.mkfifo(folder / "go")
    script = 'echo "$1 begins"; printf half; read x < go; echo " is whole"; printf end'
    command = [sys.executable, "-m", "cmwq", "exec", "--line-buffer", "--tag", "a", "--", "sh", "-c", script, "sh"]
    with subprocess.Popen(command, cwd=folder, env=environment(), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"a\ta begins\n"
        (folder / "go").write_text("now\n")
        assert process.stdout.read() == b"a\thalf is whole\na\tend\n"
        assert process.wait(60) == 0


def test_line_buffer_to_a_reader_that_goes_away_or_a_full_disk(folder: Path) -> None:
    command = f"{sys.executable} -m cmwq exec --line-buffer 1 2 3 -- yes"
    done = ran(
        ["bash", "-c", f"{command} | head -n 1 > /dev/null; echo ${{PIPESTATUS[0]}}"],
        cwd=folder, capture_output=True, env=environment(), timeout=100,
    )  # fmt: skip
    assert done.stdout == b"141\n"
    assert not done.stderr or b"some commands do not end" in done.stderr  # on a machine with much to do
    done = ran(
        ["bash", "-c", f"{command} > /dev/full"], cwd=folder, capture_output=True, env=environment(), timeout=100
    )
    assert done.returncode == 2
    assert done.stderr.endswith(b"cmwq exec: error: standard output: No space left on device\n")


def test_closed_and_full_descriptors(folder: Path) -> None:
    script = "$CMWQ exec a -- echo >&-; echo $?"
    env = environment(CMWQ=f"{sys.executable} -m cmwq")

    def shell(script: str) -> subprocess.CompletedProcess[bytes]:
        return ran(["bash", "-c", script], cwd=folder, capture_output=True, env=env, timeout=100)

    done = shell(script)
    assert (done.stdout, done.stderr) == (b"2\n", b"cmwq exec: error: standard output is closed\n")
    done = shell("$CMWQ exec -- echo <&-; echo $?")
    assert (done.stdout, done.stderr) == (
        b"2\n",
        b"cmwq exec: error: standard input is closed, and no items are given\n",
    )
    done = shell("$CMWQ exec a -- echo <&-; echo $?")
    assert (done.stdout, done.stderr) == (b"a\n0\n", b"")
    done = shell("$CMWQ exec a -- sh -c 'echo $1; echo err >&2; exit 1' sh 2>&-; echo $?")
    assert done.stdout == b"a\n1\n"
    done = shell("$CMWQ exec a -- sh -c 'echo $1; echo err >&2' sh 2>/dev/full; echo $?")
    assert done.stdout == b"a\n2\n"
    done = shell("echo a > list; $CMWQ exec -a list -- cat >> list")
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"the input is standard output as well" in done.stderr


# The parts


@pytest.fixture
def spill() -> Iterator[Spill]:
    spill = Spill()
    yield spill
    spill.close()


@pytest.mark.parametrize("sizes", [[], [1], [SLOT], [SLOT + 1], [3 * SLOT], [1000] * 500, [SLOT - 1, 2, SLOT]])
@pytest.mark.parametrize("packed", [False, True])
def test_a_stream_gives_back_what_it_got(spill: Spill, sizes: list[int], packed: bool) -> None:
    stream = Stream(spill)
    pieces = [os.urandom(size) for size in sizes]
    for piece in pieces:
        stream.add(piece)
        assert stream.held <= SLOT
    if packed:
        stream.pack()
        assert stream.held == 0
    assert stream.size == sum(sizes)
    for _ in range(2):
        assert b"".join(stream.blocks()) == b"".join(pieces)
    stream.drop()
    assert list(stream.blocks()) == []


def test_the_file_is_never_larger_than_what_waits_at_one_time(spill: Spill) -> None:
    for _ in range(20):
        streams = [Stream(spill) for _ in range(3)]
        for stream in streams:
            stream.add(bytes(5 * SLOT))
            stream.pack()
        for stream in streams:
            stream.drop()
            stream.drop()
    assert spill.nr_slots <= 3 * 5


def test_a_file_that_was_cut_short_is_told(spill: Spill, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Stream(spill)
    stream.add(bytes(2 * SLOT))
    assert spill._fd is not None
    os.ftruncate(spill._fd, 10)
    with pytest.raises(SpillError, match="cut short"):
        list(stream.blocks())


def test_tags_of_pieces_that_are_cut_anywhere() -> None:
    whole = b"one\ntwo\n\nthree"
    for cut in range(len(whole) + 1):
        parts = [(1, whole[:cut]), (1, whole[cut:]), (2, b"err\n"), (2, b"")]
        tagged = list(Tagged(b"t:").all(parts))
        assert b"".join(part for fd, part in tagged if fd == 1) == b"t:one\nt:two\nt:\nt:three\n"
        assert b"".join(part for fd, part in tagged if fd == 2) == b"t:err\n"


def test_lines_that_never_end_are_cut() -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as file:
        import threading

        got: list[bytes] = []
        reader = threading.Thread(target=lambda: got.append(file.read()))
        reader.start()
        with Lines((writing, writing)).of(tag_of("a")) as (out, _):
            for _ in range(40):
                out(b"x" * SLOT)
        os.close(writing)
        reader.join(60)
    (everything,) = got
    assert everything.replace(b"a\t", b"").replace(b"\n", b"") == b"x" * 40 * SLOT
    assert everything.count(b"\n") == 3


def test_descriptors_that_run_out_do_not_end_the_run(folder: Path) -> None:
    """Commands leave some: for the file of what waits, and for the import of what makes it."""
    script = "ulimit -n 40; exec $CMWQ exec $(seq 40) -- sh -c 'sleep 0.2; head -c 100000 /dev/zero; sleep 0.2' sh"
    env = environment(CMWQ=f"{sys.executable} -m cmwq")
    done = ran(["bash", "-c", script], cwd=folder, capture_output=True, env=env, timeout=100)
    assert (done.returncode, done.stderr, len(done.stdout)) == (0, b"", 4_000_000)


def test_a_system_without_descriptors_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    made, tries = tempfile.TemporaryFile, []

    def scarce(**how: int) -> object:
        tries.append(how)
        if len(tries) < 3:
            raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))
        return made(**how)  # type: ignore[call-overload]

    monkeypatch.setattr(tempfile, "TemporaryFile", scarce)
    spill = Spill()
    assert spill.get(spill.put(b"kept"), 4) == b"kept"
    monkeypatch.setattr(capture, "TRIES", 2)
    tries.clear()
    with pytest.raises(SpillError):
        Spill().put(b"x")
