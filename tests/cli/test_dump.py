"""`cmwq dump`: a stalled program is explained from its picture alone."""

from __future__ import annotations

import argparse
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import HANG
from observing import pictures
from observing.pictures import picture, pool, queue, stall, worker

from cmwq.cli import dump
from cmwq.cli.blocks import plain
from cmwq.cli.output import Refusal
from cmwq.cli.sections import page
from cmwq.observing.findings import Level, findings

from .conftest import Cli

ALL = [pictures.picture, pictures.lock_held, pictures.at_max_active, pictures.threads_refused]


def text_of(picture: dict[str, Any], width: int = 80, *, stacks: bool = True) -> str:
    return plain(page(picture, stacks=stacks), width)


def told(picture: dict[str, Any]) -> str:
    """What is wrong, in one line."""
    head, _, rest = text_of(picture).partition("\nWHAT")
    assert head
    return " ".join(rest.partition("\nPOOLS")[0].split())


# ------------------------------------------------------------------------------------------- what is wrong


def test_workers_that_wait_for_a_lock_are_one_entry_and_its_holder_is_named() -> None:
    words = told(pictures.lock_held())
    assert (
        "1. 3 workers wait for a lock (futex), at ledger.py:22 in book (with ledger:), in these works for up to 32 s"
        in words
    )
    assert (
        "- probably for what this one has: cmwq/u0:3, which waits in recvfrom() for the TCP connection 10.0.0.2:40000 "
        "to 10.0.0.9:443 (fd 9), at line 24, in this work for 33 s"
    ) in words
    assert "2. cmwq/u0:3 waits in recvfrom()" in words


def test_where_nobody_is_past_the_line_and_works_failed_these_are_suspected() -> None:
    lost = pictures.lock_held()
    lost["workers"].pop()
    lost["queues"][0]["failed"] = 3
    assert "nobody is past that line" in told(lost)
    assert "3 works of queue 'orders' failed so far, and may have kept what these wait for" in told(lost)
    lost["queues"][0]["failed"] = 0
    assert "failed" not in told(lost)


def test_a_stall_of_a_queue_comes_first_with_those_who_have_its_places() -> None:
    words = told(pictures.at_max_active())
    assert words.startswith("IS WRONG 1. Stalled, as was reported 60 s ago: queue 'orders' on pool u0: 7 works wait")
    assert "max_active is 2, and 2 works have a place" in words
    assert "- cmwq/u0:0 and cmwq/u0:1 have places and wait for a lock (futex), at load.py:9 in load" in words
    assert "2. " not in words, "they are not told of twice"


def test_why_there_is_no_more_thread_is_told_once() -> None:
    words = told(pictures.threads_refused())
    assert words.count("no thread could be had 5 times in a row") == 1
    assert "- a thread was refused 12 times so far" in words


def test_a_reason_that_has_changed_since_the_report_is_told_too() -> None:
    changed = pictures.threads_refused()
    changed["pools"][0]["why"] = "memory is short"
    assert "- now: memory is short" in told(changed)


def test_a_stall_that_is_over_is_not_wrong_any_more() -> None:
    over = [stall("pool u0: 4 works wait"), stall("pool u0 goes on, after 31 s", over=True)]
    words = text_of(picture(stalls=over))
    assert "Nothing is seen to be wrong." in words
    assert "pool u0 goes on, after 31 s" in words.partition("STALLS SO FAR")[2]


def test_what_waits_for_a_moment_is_normal() -> None:
    busy = picture(
        pools=[pool(running=2, pending=90, why="as many run as may: 2 of 2")],
        queues=[queue(inactive=5, why="max_active is 2, and 2 works have a place")],
        workers=[worker(0, since=0.4), worker(1, since=1.5, state="running", waits_for="")],
    )
    assert {finding.level for finding in findings(busy)} == {Level.NORMAL}
    words = text_of(busy)
    assert "Nothing is seen to be wrong." not in words, "a person would read that and go"
    assert words.partition("\nWHAT ")[2].startswith(
        "WAITS\nNo stall so far (works that wait, of which none begins for 30 s)."
    )
    assert "90 works wait for a worker of pool u0: as many run as may: 2 of 2" in words.replace("\n    ", " ")


@pytest.mark.parametrize(
    ("after", "words"),
    [(2.0, "of which none begins for 2.0 s). This waits: 1. "), (0.0, "the watchdog is off. This waits: 1. ")],
)
def test_what_would_count_as_a_stall_is_said_before_what_waits(after: float, words: str) -> None:
    assert words in told(picture(queues=[queue(inactive=1, why="it is ordered")], stall_after=after))


def test_numbers_have_their_nouns() -> None:
    one = picture(
        pools=[pool(pending=1, refused=1, why="it has as many workers as it may have")],
        queues=[queue(inactive=1, active=1, max_active=1, why="", failed=1)],
        workers=[worker(0, ("/srv/shop/load.py", 9, "load", "pool.get()"))],
    )
    words = told(one)
    assert "1 work waits for a worker" in words
    assert "1 work waits for a place in queue 'orders': 1 is active, and max_active is 1" in words
    assert "a thread was refused 1 time so far" in words
    assert "1 work of queue 'orders' failed so far" in words


def test_for_how_long_a_worker_waits_is_not_made_up() -> None:
    """It is known for how long it has been in its work, within which it may have waited more than once."""
    here = ("/srv/shop/seats.py", 8, "book", "approval.wait(20)")
    words = text_of(picture(workers=[worker(0, here, since=35.0)]))
    assert "(approval.wait(20)), in this work for 35 s" in " ".join(words.split())
    assert "blocked: waits for a lock (futex); in this work for 35 s, CPU 2 ms" in words


def test_who_holds_the_lock_that_a_report_names_is_told_with_what_it_does() -> None:
    held = pictures.lock_held()
    for each in held["workers"][:3]:
        each["waits_for"] = "waits for the lock ledger (ledger.py:22, in book), held by cmwq/u0:3"
        each["held_by"] = held["workers"][3]["tid"]
    words = told(held)
    assert (
        "1. 3 workers wait for the lock ledger (ledger.py:22, in book), held by cmwq/u0:3, in these works for up to "
        "32 s - cmwq/u0:3 waits in recvfrom() for the TCP connection 10.0.0.2:40000 to 10.0.0.9:443 (fd 9), at "
        "card.py:7 in charge (answer = connection.recv(1000)), in this work for 33 s"
    ) in words
    assert "probably" not in words


def waiting(number: int, holder: int, *, guess: bool = False, since: float = 30.0) -> dict[str, Any]:
    """A worker in `with fork:` that waits for another, by their numbers."""
    held = f"{'probably ' * guess}held by cmwq/u0:{holder}"
    words = f"waits for the lock fork (table.py:8, in eat), {held}"
    here = ("/srv/table.py", 8, "eat", "with fork:")
    return worker(number, here, work="eat", waits_for=words, held_by=100 + holder, since=since)


def test_workers_that_wait_for_each_others_locks_are_a_deadlock_with_its_ring() -> None:
    """Also where all wait in the same line, for locks of the same name."""
    words = told(picture(workers=[waiting(1, 2), waiting(2, 3), waiting(3, 1), waiting(4, 1)]))
    assert words.startswith("IS WRONG 1. Deadlock: cmwq/u0:1, cmwq/u0:2 and cmwq/u0:3 wait for each other - ")
    for number, holder in ((1, 2), (2, 3), (3, 1)):
        line = (
            f"- cmwq/u0:{number} waits for the lock fork (table.py:8, in eat), held by cmwq/u0:{holder}, in this work"
        )
        assert line in words
    assert "2. cmwq/u0:3 and cmwq/u0:4 wait for the lock fork" in words, "one is not in the ring, but waits for it"


def test_two_rings_are_two_deadlocks() -> None:
    found = findings(picture(workers=[waiting(1, 2), waiting(2, 1), waiting(3, 4), waiting(4, 3)]))
    assert [finding.text for finding in found] == [
        "Deadlock: cmwq/u0:1 and cmwq/u0:2 wait for each other",
        "Deadlock: cmwq/u0:3 and cmwq/u0:4 wait for each other",
    ]


def test_a_worker_that_waits_for_its_own_lock_waits_for_itself() -> None:
    found = findings(picture(workers=[waiting(1, 1)]))
    assert [finding.text for finding in found] == ["Deadlock: cmwq/u0:1 waits for itself"]


def test_a_ring_in_which_something_is_guessed_is_a_guess() -> None:
    found = findings(picture(workers=[waiting(1, 2), waiting(2, 1, guess=True)]))
    assert found[0].text == "Probably a deadlock: cmwq/u0:1 and cmwq/u0:2 wait for each other"
    assert found[0].level is Level.LONG


def test_a_ring_of_works_that_just_began_is_not_called_wrong_yet() -> None:
    assert findings(picture(workers=[waiting(1, 2), waiting(2, 1, since=0.2)]))[0].level is Level.LONG


def test_a_chain_without_a_ring_is_no_deadlock() -> None:
    text = told(picture(workers=[waiting(1, 2), waiting(2, 3), worker(3, ("/srv/t.py", 9, "eat", "f()"))]))
    assert "eadlock" not in text


def test_a_work_that_is_a_function_in_C_is_named_and_nothing_of_cmwq_is_shown() -> None:
    outer = ("/usr/lib/python3.11/site-packages/cmwq/_pool/worker_thread.py", 66, "run", "worker.item.run()")
    words = told(picture(workers=[worker(1, outer, work="sleep", waits_for="sleeps (clock_nanosleep)")]))
    assert "cmwq/u0:1 sleeps (clock_nanosleep), in sleep, in this work" in words


def test_a_queue_without_a_limit_shows_none() -> None:
    words = text_of(picture(queues=[queue("anyio", max_active=2**31 - 1)]))
    assert re.search(r"anyio +2 +unlimited +0 ", words)
    assert "2,147,483,647" not in words


def test_works_that_wait_for_a_worker_while_none_runs_are_wrong() -> None:
    found = findings(picture(pools=[pool(running=0, pending=3, why="memory is short")]))
    assert [(finding.level, "memory is short" in finding.text) for finding in found] == [(Level.WRONG, True)]


def test_a_worker_that_waits_alone_for_long_is_told_of() -> None:
    assert "cmwq/u0:0 waits for the result of call sum, in this work for 30 s" in told(
        picture(workers=[worker(0, waits_for="waits for the result of call sum")])
    )


@pytest.mark.parametrize(
    ("words", "one", "two"),
    [
        ("waits for a lock (futex)", "cmwq/u0:0 waits for a lock (futex)", "cmwq/u0:1 wait for a lock (futex)"),
        ("sleeps (clock_nanosleep)", "cmwq/u0:0 sleeps (clock_nanosleep)", "cmwq/u0:1 sleep (clock_nanosleep)"),
        ("asleep in the kernel's pipe_read", "cmwq/u0:0 is asleep in the", "cmwq/u0:1 are asleep in the"),
        ("is asleep", "cmwq/u0:0 is asleep", "cmwq/u0:1 are asleep"),
        ("says that it blocks", "cmwq/u0:0 says that it blocks", "cmwq/u0:1 say that each blocks"),
        ("the result of call sum", "cmwq/u0:0 waits for the result of", "cmwq/u0:1 wait for the result of"),
        ("", "cmwq/u0:0 is blocked, by what", "cmwq/u0:1 are blocked, by what"),
    ],
)
def test_what_a_worker_waits_for_is_a_sentence(words: str, one: str, two: str) -> None:
    """Whatever `Host.waits_in` and `picture` say."""
    here = ("/srv/shop/load.py", 9, "load", "f()")
    assert one in told(picture(workers=[worker(0, here, waits_for=words)]))
    assert two in told(picture(workers=[worker(n, here, waits_for=words) for n in range(2)]))


def test_where_a_worker_waits_is_a_line_of_the_program_also_where_cmwq_is_no_installed_package() -> None:
    stack = (
        ("/srv/shop/load.py", 9, "load", "future.result()"),
        ("/home/me/cmwq/src/cmwq/_workqueue/wait.py", 317, "_wait_hopefully", "parker.park(-1)"),
    )
    words = told(picture(workers=[worker(0, *stack, waits_for="waits for the result of call sum")]))
    assert "at load.py:9 in load (future.result())" in words


def test_numbers_may_be_longer_than_int_reads() -> None:
    """In a worker's name, in a line of a stack, and in place of a process."""
    names = [f"cmwq/u0:{'9' * 5_000}", "cmwq/u0:10", "cmwq/u0:9", "cmwq/R-m²"]
    shown = text_of(picture(workers=[worker(1, name=name) for name in names]), 200)
    assert "4 workers, cmwq/R-m², cmwq/u0:9, cmwq/u0:10 and 1 more" in shown
    stack = [f'  File "a.py", line {"9" * 5_000}, in f\n']
    assert text_of(picture(workers=[worker(1) | {"stack": stack}]))
    with pytest.raises(Refusal, match=r"^there is no process 99999999999999999999\.\.\., a number of 5,000 digits$"):
        dump.take("9" * 5_000, stacks=False)


def test_a_frozen_runtime_is_told_of() -> None:
    assert "freezable queues start nothing until thaw() is called" in told(picture(frozen=True))


def test_addresses_in_which_waits_differ_do_not_keep_workers_apart() -> None:
    here = ("/srv/shop/ask.py", 5, "ask", "s.recv(1)")
    workers = [
        worker(n, here, waits_for=f"waits in recvfrom() for 10.0.0.2:{4000 + n} to 10.0.0.9:443 (fd {n})")
        for n in range(3)
    ]
    assert "3 workers wait in recvfrom() for 10.0.0.2:… to 10.0.0.9:443 (fd …), at ask.py:5" in told(
        picture(workers=workers)
    )


def test_where_a_worker_waits_is_not_told_twice() -> None:
    here = ("/srv/shop/load.py", 9, "load", "ready.wait()")
    words = told(picture(workers=[worker(0, here, waits_for="waits for an Event ready (load.py:9, in load)")]))
    assert "waits for an Event ready (load.py:9, in load), in the line 'ready.wait()', in this work for 30 s" in words


# ------------------------------------------------------------------------------------------- the rest


def test_workers_at_the_same_point_share_an_entry_with_the_stack_of_the_work() -> None:
    words = text_of(pictures.lock_held(100)).partition("\nWORKERS\n")[2]
    assert words.startswith("100 workers, cmwq/u0:0, cmwq/u0:1, cmwq/u0:2 and 97 more: book, queue orders\n")
    assert words.count("with ledger:") == 1
    assert "    /srv/shop/card.py:7 in charge\n        answer = connection.recv(1000)\n" in words
    assert "worker_thread.py" not in words, "what every worker calls says nothing"
    assert "with ledger:" not in text_of(pictures.lock_held(100), stacks=False).partition("\nWORKERS\n")[2]


def test_tables_show_what_there_is_and_leave_out_what_says_nothing() -> None:
    words = text_of(picture(queues=[queue(failed=2, hogs=0), queue("unused", started=0, unfinished=0)]), 160)
    assert re.search(r"queue +active +of +waiting +completed +failed +CPU +waits +runs +wake-ups +started\n", words)
    assert re.search(r"orders +2 +256 +0 +8 +2 +500 ms +50 ms +500 ms +3 +10\n", words)
    assert "unused" not in words
    assert "hogs" not in words
    assert re.search(r"function +queue +running +ended +failed +mean +time +CPU\n", words)
    assert re.search(r"book +orders +0 +8 +1 +500 ms +4.0 s +500 ms\n", words)


@pytest.mark.parametrize("make", ALL)
@pytest.mark.parametrize("width", [60, 80, 120])
def test_no_line_is_longer_than_the_width(make: Callable[[], dict[str, Any]], width: int) -> None:
    large = make()
    large["queues"].append(queue("a-queue-with-a-name-that-is-very-long-indeed-" * 3, inactive=10**9, why="x " * 200))
    large["workers"].append(worker(7, ("/very/long/path" * 20 + "/x.py", 1, "f" * 100, "code " * 50), work="w" * 50))
    assert max(map(len, text_of(large, width).splitlines())) <= width
    assert max(map(len, text_of(make(), width).splitlines())) <= width


@pytest.mark.parametrize("make", ALL)
def test_a_picture_that_lacks_fields_is_shown_without_them(make: Callable[[], dict[str, Any]]) -> None:
    """As those of older versions do: any one of them, at any place."""
    whole = make()
    for key in whole:
        if key != "pools":
            assert "POOLS" in text_of({name: value for name, value in whole.items() if name != key})
    for part in ("pools", "queues", "workers", "functions", "stalls"):
        for key in {name for each in whole[part] for name in each}:
            less = [{name: value for name, value in each.items() if name != key} for each in whole[part]]
            assert "POOLS" in text_of({**whole, part: less}), (part, key)
    old = {key: whole[key] for key in ("pools", "queues", "sensor", "sensor_reason", "gil", "cpus", "cpu_limit", "pid")}
    for each in old["pools"]:
        del each["cpu_seconds"], each["why"]
    assert "u0" in text_of(old)


def test_what_a_process_says_can_neither_move_the_cursor_nor_break_a_line() -> None:
    evil = "\x1b[2J\r\n\x07evil\u202e"
    shown = text_of(
        picture(
            command=["python", evil],
            pools=[pool(name=evil, pending=1, why=evil)],
            queues=[queue(evil, inactive=1, why=evil)],
            workers=[worker(0, ("/x.py", 1, "f", evil), work=evil, name=evil, waits_for=evil)],
            stalls=[stall(evil)],
        )
    )
    assert "evil" in shown
    assert {character for character in shown if not character.isprintable()} == {"\n"}
    assert "\nevil" not in shown


def test_thousands_of_workers_at_different_points_are_cut(capsys: pytest.CaptureFixture[str]) -> None:
    many = [worker(n, ("/x.py", n, f"f{n}", "wait()")) for n in range(2000)]
    shown = text_of(picture(workers=many, workers_left_out=500))
    assert shown.count("\n") < 1000
    assert "and workers at 1,900 more points" in shown
    assert "and 500 more, which the picture leaves out" in shown


# ------------------------------------------------------------------------------------------- the command


def test_a_saved_picture_is_shown_as_the_process_would_be(cli: Cli, folder: Path) -> None:
    saved = json.dumps(pictures.lock_held())
    (folder / "picture.json").write_text(saved)
    envelope = json.dumps({"version": 1, "picture": pictures.lock_held()}).encode()
    shown = [
        cli("dump", "picture.json"),
        cli("dump", "-", input=saved.encode()),
        cli("dump", "-", input=envelope),
    ]
    for done in shown:
        assert (done.returncode, done.stderr) == (0, b"")
        assert done.stdout == shown[0].stdout
    assert b"3 workers wait for a lock" in shown[0].stdout
    done = cli("dump", "--json", "picture.json")
    assert json.loads(done.stdout) == pictures.lock_held()
    assert b"with ledger:" not in cli("dump", "--no-stacks", "picture.json").stdout.partition(b"WORKERS")[2]


def test_a_picture_of_a_newer_version_is_shown_with_a_note(cli: Cli, folder: Path) -> None:
    done = cli("dump", "-", input=json.dumps(picture(version=2, news={"x": [1]})).encode())
    assert b"made by a newer cmwq (version 2)" in done.stdout
    assert b"POOLS" in done.stdout


@pytest.mark.parametrize(
    ("target", "given", "words"),
    [
        ("-", b"not json", b"it is not JSON"),
        ("-", b"[" * 100_000, b"it is not JSON"),
        ("-", b"[1]", b"no picture of cmwq"),
        ("-", b'{"pools": 3}', b"no picture of cmwq"),
        ("missing", b"", b"missing: No such file or directory (a process is given by its number)"),
        (".", b"", b"Is a directory"),
        ("99999999", b"", b"there is no process 99999999"),
    ],
)
def test_what_cannot_be_dumped_is_told_in_one_line(cli: Cli, target: str, given: bytes, words: bytes) -> None:
    done = cli("dump", target, input=given)
    assert (done.returncode, done.stdout) == (2, b"")
    assert words in done.stderr
    assert done.stderr.startswith(b"cmwq dump: error: ")
    assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("field", ["pools", "queues", "workers", "functions", "stalls", "memory", "command", "cpus"])
@pytest.mark.parametrize("value", [7, "x", None, [None], [[]], [{"name": []}], {"limit": "much", "used": {}}])
def test_a_picture_that_makes_no_sense_ends_in_no_traceback(tmp_path: Path, field: str, value: object) -> None:
    """It is shown without what makes none, or refused."""
    path = tmp_path / "nonsense"
    path.write_text(json.dumps(picture(**{field: value})))
    with suppress(Refusal):
        dump.run(argparse.Namespace(target=str(path), json=False, no_stacks=False))


def test_a_process_is_dumped_by_its_number_and_by_its_socket(cli: Cli, folder: Path, tmp_path: Path) -> None:
    home = tmp_path / "runtime"
    home.mkdir(mode=0o700)
    env = {**os.environ, "XDG_RUNTIME_DIR": str(home), "CMWQ_MONITOR": "1"}
    program = "import cmwq, sys; cmwq.system.submit(int).result(); print('here', flush=True); sys.stdin.readline()"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"here\n"
        (path,) = (home / "cmwq").iterdir()
        for target in (str(process.pid), str(path)):
            done = cli("dump", target, env={"XDG_RUNTIME_DIR": str(home)})
            assert f"Process {process.pid}".encode() in done.stdout, done.stderr
            assert b"POOLS" in done.stdout
            saved = cli("dump", "--json", target, env={"XDG_RUNTIME_DIR": str(home)})
            assert json.loads(saved.stdout)["pid"] == process.pid
        process.kill()
    done = cli("dump", str(process.pid), env={"XDG_RUNTIME_DIR": str(home)})
    assert f"there is no process {process.pid}".encode() in done.stderr


def test_a_socket_of_something_else_is_told_of(cli: Cli, folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(folder / "other"))
        done = cli("dump", "other")
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"has ended, and has left its socket behind" in done.stderr


# ------------------------------------------------------------------------------------------- on a terminal


def on_terminal(folder: Path, columns: int, **env: str) -> str:
    """What it prints there."""
    import fcntl
    import pty
    import struct
    import termios

    (folder / "picture.json").write_text(json.dumps(pictures.lock_held()))
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    clean = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "COLUMNS", "LINES")}
    process = subprocess.Popen(
        [sys.executable, "-m", "cmwq", "dump", "picture.json"],
        cwd=folder,
        stdout=theirs,
        stdin=subprocess.DEVNULL,
        env={**clean, "TERM": "xterm-256color", **env},
    )
    os.close(theirs)
    shown = b""
    try:
        while more := os.read(ours, 1 << 16):
            shown += more
    except OSError:  # it has ended
        pass
    os.close(ours)
    assert process.wait(HANG) == 0
    return shown.decode().replace("\r\n", "\n")


@pytest.mark.parametrize("columns", [50, 80, 132])
def test_on_a_terminal_it_is_as_wide_as_that_and_coloured_with_rich(folder: Path, columns: int) -> None:
    pytest.importorskip("rich")
    shown = on_terminal(folder, columns)
    assert "\x1b[1;31m" not in shown, "nothing is wrong that was reported"
    assert "\x1b[1;36mWhat waits" in shown
    bare = re.sub(r"\x1b\[[0-9;]*m", "", shown)
    assert max(map(len, bare.splitlines())) == columns
    assert "3 workers wait for a lock" in bare


def test_NO_COLOR_is_respected(folder: Path) -> None:
    pytest.importorskip("rich")
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", on_terminal(folder, 80, NO_COLOR="1"))
    assert re.search(r"\x1b\[[0-9;]*3[0-9]", on_terminal(folder, 80, NO_COLOR="")), "empty is as if it were not set"


def test_without_rich_the_text_is_the_plain_one(folder: Path) -> None:
    (folder / "rich.py").write_text("raise ImportError('not here')\n")
    shown = on_terminal(folder, 80, PYTHONPATH=str(folder))
    assert "\x1b" not in shown
    assert shown == text_of(pictures.lock_held(), 80) + "\n"


def test_rich_is_not_imported_where_it_is_not_used(cli: Cli, folder: Path) -> None:
    (folder / "rich.py").write_text("raise RuntimeError('imported')\n")
    (folder / "picture.json").write_text(json.dumps(pictures.lock_held()))
    assert b"POOLS" in cli("dump", "picture.json", env={"PYTHONPATH": str(folder)}).stdout
