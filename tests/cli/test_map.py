"""`cmwq map` where all goes well, and where items fail."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import cmwq

from .conftest import SCRIPT, Cli, environment


def values(output: bytes) -> list[object]:
    return [json.loads(line) for line in output.splitlines()]


def test_results_in_input_order(cli: Cli) -> None:
    done = cli("map", "targets:same", "b", "a", "b")
    assert (done.returncode, done.stdout, done.stderr) == (0, b'"b"\n"a"\n"b"\n', b"")


def test_ordered_and_unordered(cli: Cli, unordered: Callable[..., bytes]) -> None:
    assert cli("map", "targets:backwards", "1", "2").stdout == b'"1"\n"2"\n'
    assert unordered() == b'"2"\n"1"\n'


def test_attribute_path_and_builtin(cli: Cli) -> None:
    assert cli("map", "targets:Text.upper", "a").stdout == b'"A"\n'
    assert cli("map", "os.path:basename", "/x/y").stdout == b'"y"\n'


def test_current_directory_can_be_imported_from_by_the_installed_script(cli: Cli) -> None:
    assert cli("map", "targets:size", "abc", code=SCRIPT).stdout == b"3\n"


def test_items_from_stdin(cli: Cli) -> None:
    done = cli("map", "targets:same", input=b"a\n\nb c\r\nlast")
    assert values(done.stdout) == ["a", "", "b c\r", "last"]


def test_options_between_items_and_items_like_options(cli: Cli) -> None:
    done = cli("map", "targets:same", "a", "--quiet", "b", "--", "--quiet", "--", "-x")
    assert values(done.stdout) == ["a", "b", "--quiet", "--", "-x"]


def test_many_items(cli: Cli) -> None:
    numbers = [str(number) for number in range(5000)]
    done = cli("map", "targets:same", input="\n".join(numbers).encode())
    assert done.returncode == 0
    assert values(done.stdout) == numbers


def test_no_items(cli: Cli) -> None:
    done = cli("map", "targets:same")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_items_from_file_and_null(cli: Cli, folder: Path) -> None:
    (folder / "list").write_bytes(b"a\nb\0c")
    assert values(cli("map", "targets:same", "-a", "list").stdout) == ["a", "b\0c"]
    assert values(cli("map", "-0", "targets:same", "-a", "list").stdout) == ["a\nb", "c"]
    assert values(cli("map", "targets:same", "-a", "-", input=b"x\n").stdout) == ["x"]


def test_results_come_while_the_input_is_still_open(folder: Path) -> None:
    command = [sys.executable, "-m", "cmwq", "map", "targets:same"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=folder, stdin=pipe, stdout=pipe, env=environment()) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for word in (b"one", b"two"):
            process.stdin.write(word + b"\n")
            process.stdin.flush()
            assert process.stdout.readline() == b'"%s"\n' % word
        process.stdin.close()
        assert process.wait(60) == 0


def test_bytes_that_are_not_utf8_come_back(cli: Cli) -> None:
    done = cli("map", "targets:hexed", input=b"\xff\xfe\n\xc3\xa4\n")
    assert values(done.stdout) == ["fffe", "c3a4"]
    echoed = cli("map", "targets:same", input=b"\xff\n")
    assert echoed.stdout == b'"\\udcff"\n'
    assert os.fsencode(json.loads(echoed.stdout)) == b"\xff"


def test_failing_items_are_reported_and_counted(cli: Cli) -> None:
    done = cli("map", "targets:picky", "a", "bad1", "b", "bad2\x1b")
    assert done.returncode == 1
    assert values(done.stdout) == ["a", "b"]
    first, second, summary = done.stderr.decode().splitlines()
    assert first == "cmwq map: item 2 'bad1': ValueError: no such\\nluck: bad1"
    assert second.startswith("cmwq map: item 4 'bad2\\x1b'")
    assert "4 of 4 items, 2 failed" in summary


def test_quiet_keeps_failures(cli: Cli) -> None:
    done = cli("map", "--quiet", "targets:picky", "bad", "b")
    assert done.returncode == 1
    assert done.stderr.decode().splitlines() == ["cmwq map: item 1 'bad': ValueError: no such\\nluck: bad"]


def test_with_item(cli: Cli) -> None:
    assert values(cli("map", "--with-item", "targets:picky", "bad", "b").stdout) == [
        {"item": "bad", "error": "ValueError: no such\\nluck: bad"},
        {"item": "b", "result": "b"},
    ]


def test_an_item_may_raise_anything(cli: Cli) -> None:
    left = cli("map", "targets:leaving", "a", "b")
    assert left.returncode == 1
    assert left.stderr.count(b"SystemExit: 3") == 2
    rude = cli("map", "targets:rude", "a")
    assert rude.returncode == 1
    assert b"Rude: <str() raised KeyError>" in rude.stderr


def test_result_that_json_cannot_express(cli: Cli) -> None:
    done = cli("map", "targets:unjsonable", "nan", "bytes", "set", "fine")
    assert done.returncode == 1
    assert values(done.stdout) == [[1, None]]
    assert done.stderr.count(b"result is not JSON-able") == 3
    with_repr = cli("map", "--repr", "targets:unjsonable", "nan", "bytes", "set", "fine")
    assert with_repr.returncode == 0
    assert values(with_repr.stdout) == ["nan", "b'x'", "{1}", [1, None]]
    assert b"no repr" in cli("map", "--repr", "targets:unreprable", "a").stderr


def test_what_the_target_prints_is_kept_out_of_stdout(cli: Cli) -> None:
    done = cli("map", "targets:chatty", "a")
    assert done.stdout == b'"a"\n'
    assert b"chat a" in done.stderr
    assert b"child a" in done.stderr


def test_child_processes_cannot_take_items(cli: Cli) -> None:
    assert values(cli("map", "targets:thief", input=b"a\nb\nc\n").stdout) == ["a", "b", "c"]


def test_progress_is_asked_for_or_not_there(cli: Cli) -> None:
    done = cli("map", "--progress", "targets:same", "a", "b")
    assert b"workers:" in done.stderr
    assert b"2 of 2 items" in done.stderr
    assert done.stdout == b'"a"\n"b"\n'


@pytest.mark.parametrize("without_rich", [False, True])
def test_progress_on_a_terminal(folder: Path, without_rich: bool) -> None:
    if without_rich:
        (folder / "rich.py").write_text("raise ImportError\n")
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "cmwq", "map", "targets:picky", "bad", "b"]
    with subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=theirs, env=environment(TERM="xterm", COLUMNS="200")
    ) as process:
        os.close(theirs)
        shown = b""
        try:
            while chunk := os.read(ours, 65536):
                shown += chunk
        except OSError:  # Linux's way to say that the terminal's last user is gone
            pass
        out, _ = process.communicate(timeout=60)
    os.close(ours)
    assert out == b'"b"\n'
    assert process.returncode == 1
    assert b"item 1 'bad': ValueError" in shown
    assert b"2 of 2 items, 1 failed" in shown
    assert b"\x1b[" in shown
    assert b"Traceback" not in shown


def test_endless_input_is_read_only_as_fast_as_it_is_printed(tmp_path: Path) -> None:
    import argparse

    from cmwq.cli.map import Mapping
    from cmwq.cli.progress import Silent, Tally
    from cmwq.cli.window import COUNT as WINDOW

    full = threading.Event()
    tally = Tally()

    def source() -> Iterator[str]:
        for number in range(3 * WINDOW):
            assert number - tally.done < WINDOW, "read too far ahead"
            if number == WINDOW - 1:
                full.set()
            yield str(number)

    def first_waits(item: str) -> str:
        if item == "0":
            assert full.wait(60)
        return item

    options = argparse.Namespace(unordered=False, with_item=False, repr=False, resume=None, quiet=True)
    with open(tmp_path / "out", "wb") as out:
        assert Mapping(options, first_waits, source(), out.fileno(), None, Silent(), tally).run() == 0
    assert (tmp_path / "out").read_text() == "".join(f'"{number}"\n' for number in range(3 * WINDOW))


def test_rich_is_not_imported_without_a_terminal(cli: Cli, folder: Path) -> None:
    (folder / "spy.py").write_text("import sys\ndef rich(item): return 'rich' in sys.modules\n")
    assert cli("map", "spy:rich", "a", "--progress").stdout == b"false\n"


def test_nothing_is_read_before_it_can_be_run(tmp_path: Path) -> None:
    """Items that compute, on every CPU: what runs was read, and one more for each CPU at most."""
    import argparse

    from cmwq.cli.map import Mapping
    from cmwq.cli.progress import Silent, Tally

    begun = 0
    ahead: list[int] = []

    def source() -> Iterator[str]:
        for number in range(300):
            ahead.append(number - begun)
            yield str(number)

    def compute(item: str) -> int:
        nonlocal begun
        begun += 1  # a race that loses some makes the test stricter, not looser
        return sum(range(20_000))

    options = argparse.Namespace(unordered=False, with_item=False, repr=False, resume=None, quiet=True)
    with open(tmp_path / "out", "wb") as out:
        assert Mapping(options, compute, source(), out.fileno(), None, Silent(), Tally()).run() == 0
    lost = 300 - begun
    threads = cmwq.snapshot().pools[0].peak_workers
    assert max(ahead) <= threads + lost
