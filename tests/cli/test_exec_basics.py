"""`cmwq exec`: items, placeholders, order, statuses: where all goes well, and where commands fail."""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from conftest import until

from cmwq._host.processes import why_not

from .conftest import Cli, environment, ran

NOTE = ("sh", "-c", 'echo "$1" >> effects; echo "out $1"; echo "err $1" >&2', "sh")


def effects(folder: Path) -> list[str]:
    return sorted((folder / "effects").read_text().splitlines())


def test_each_item_is_run_once_and_printed_in_order(cli: Cli, folder: Path) -> None:
    numbers = [str(number) for number in range(40)]
    done = cli("exec", "--", *NOTE, input="\n".join(numbers).encode())
    assert done.returncode == 0
    assert done.stdout.decode().splitlines() == [f"out {number}" for number in numbers]
    assert done.stderr.decode().splitlines() == [f"err {number}" for number in numbers]
    assert effects(folder) == sorted(numbers)


@pytest.mark.parametrize("unordered", [False, True])
def test_ordered_and_unordered(folder: Path, unordered: bool) -> None:
    """Item 1 ends only after item 2 did, or after item 2's output was printed."""
    os.mkfifo(folder / "go")
    script = 'if [ "$1" = 1 ]; then read x < go; else echo > go; fi; echo "$1"'
    option = ["--unordered"] if unordered else []
    command = [sys.executable, "-m", "cmwq", "exec", *option, "1", "2", "--", "sh", "-c", script, "sh"]
    done = ran(command, cwd=folder, env=environment(), stdout=subprocess.PIPE, timeout=100)
    assert done.returncode == 0
    assert sorted(done.stdout.split()) == [b"1", b"2"]
    if not unordered:
        assert done.stdout == b"1\n2\n"


def test_unordered_output_comes_before_that_of_earlier_items(folder: Path) -> None:
    os.mkfifo(folder / "go")
    script = 'if [ "$1" = 1 ]; then read x < go; fi; echo "$1"'
    command = [sys.executable, "-m", "cmwq", "exec", "--unordered", "1", "2", "--", "sh", "-c", script, "sh"]
    with subprocess.Popen(command, cwd=folder, env=environment(), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"2\n"
        (folder / "go").write_text("now\n")
        assert process.stdout.readline() == b"1\n"
        assert process.wait(60) == 0


def test_items_from_arguments_files_and_stdin(cli: Cli, folder: Path) -> None:
    (folder / "one").write_bytes(b"a\n\nb c\n")
    (folder / "two").write_bytes(b"last")
    lines = [b"a", b"", b"b c", b"last"]
    assert cli("exec", "-a", "one", "-a", "two", "--", "printf", "%s\\n").stdout.splitlines() == lines
    assert cli("exec", "a", "", "b c", "last", "--", "printf", "%s\\n").stdout.splitlines() == lines
    done = cli("exec", "-a", "two", "-a", "-", "--", "printf", "%s\\n", input=b"x\ny\n")
    assert done.stdout == b"last\nx\ny\n"
    assert cli("exec", "-0", "--", "printf", "%s,", input=b"a\nb\0-c\0").stdout == b"a\nb,-c,"
    assert cli("exec", "--", "echo").stdout == b""


@pytest.mark.parametrize(
    "item", [b"a\nb", b"'", b'"', b"-rf", b"$(id)", b"\xff\xfe", b"", b" ", b"*", b"\\", b"`id`;&"]
)
def test_an_item_arrives_as_it_is(cli: Cli, item: bytes) -> None:
    both = (("--", "printf", "%s", "{}"), ("--shell", "--", "printf %s {}"), ("--shell", "--", 'printf "%s" "{}"'))
    for how in both:
        done = cli("exec", "-0", *how, input=item + b"\0")
        assert (done.returncode, done.stdout, done.stderr) == (0, item, b"")


def test_placeholders(cli: Cli) -> None:
    words = ["{}", "{.}", "{/}", "{//}", "{/.}", "{#}", "x{/}y{/}", "{ }", "{#x}"]
    done = cli("exec", "a b/c.tar.gz", "/top", "./.bashrc", "d/e/", "/", "--", "printf", "%s|", *words)
    assert done.stdout.decode().split("|")[:-1] == [
        *("a b/c.tar.gz", "a b/c.tar", "c.tar.gz", "a b", "c.tar", "1", "xc.tar.gzyc.tar.gz", "{ }", "{#x}"),
        *("/top", "/top", "top", "/", "top", "2", "xtopytop", "{ }", "{#x}"),
        *("./.bashrc", "./.bashrc", ".bashrc", ".", ".bashrc", "3", "x.bashrcy.bashrc", "{ }", "{#x}"),
        *("d/e/", "d/e", "e", "d", "e", "4", "xeye", "{ }", "{#x}"),
        *("/", "/", "/", "/", "/", "5", "x/y/", "{ }", "{#x}"),
    ]


def test_a_mark_of_ones_own(cli: Cli) -> None:
    assert cli("exec", "-I", "%", "a", "--", "echo", "{} %", "%%").stdout == b"{} a aa\n"
    assert cli("exec", "-I", "%", "a", "--", "echo", "{}").stdout == b"{} a\n"


def test_the_command_may_depend_on_the_item(cli: Cli) -> None:
    done = cli("exec", "echo", "no-such-command", "/", "printf", "--", "{}", "x")
    assert done.stdout == b"x\nx"
    assert done.stderr.decode().splitlines()[:2] == [
        "cmwq exec: item 2 'no-such-command': no such command: 'no-such-command'",
        "cmwq exec: item 3 '/': '/' is no program: it can't be executed",
    ]
    assert done.returncode == 1


def test_each_item_may_be_a_command_line(cli: Cli) -> None:
    done = cli("exec", "--shell", input=b"echo a; exit 3\nprintf 'b\\n' | cat\n")
    assert (done.returncode, done.stdout) == (1, b"a\nb\n")
    assert done.stderr.splitlines()[0] == b"cmwq exec: item 1 'echo a; exit 3': exit status 3"


@pytest.mark.parametrize(
    ("args", "status", "message"),
    [
        (["a", "--", "no-such-command"], 127, "no such command: 'no-such-command'"),
        (["a", "--", "echo a"], 127, "no such command: 'echo a' (--shell is for command lines)"),
        (["a", "--", "./plain"], 126, "'./plain' is no program: it can't be executed"),
        (["a", "--", "."], 126, "'.' is no program"),
        (["a", "--", ""], 127, "no such command: ''"),
        (["a"], 2, "the command is missing"),
        (["a", "--"], 2, "the command is missing"),
        (["a", "-x", "--", "echo"], 2, "'-x' after an item: options come first"),
        (["a", "--dry-run", "--", "echo"], 2, "'--dry-run' after an item"),
        (["-x", "--", "echo"], 2, "unrecognized arguments: -x"),
        (["-j4", "--", "echo"], 2, "how many run at a time is found out; --max-active is a limit"),
        (["-P", "4", "--", "echo"], 2, "--max-active is a limit"),
        (["-a", "missing", "--", "echo"], 2, "missing: No such file or directory"),
        (["-a", "plain", "a", "--", "echo"], 2, "one of them, please"),
        (["--halt", "later", "a", "--", "echo"], 2, "'later' is not now, soon, now=N or soon=N"),
        (["--retries", "-1", "a", "--", "echo"], 2, "retries"),
        (["--timeout", "0", "a", "--", "echo"], 2, "'0' is not a time"),
        (["--max-active", "0", "a", "--", "echo"], 2, "'0' is not a number"),
        (["--max-active", "2147483648", "a", "--", "echo"], 2, "'2147483648' is too large: at most 2147483647"),
        (["--retries", "9" * 5000, "a", "--", "echo"], 2, "999...' is too large: at most 2147483647"),
        (["--halt", "now=" + "9" * 5000, "a", "--", "echo"], 2, "999...' is too large: at most 2147483647"),
        (["--line-buffer", "--unordered", "a", "--", "echo"], 2, "not allowed with"),
        (["--shell", "a", "--", "echo \\{}"], 2, "backslash"),
        (["--resume", ".", "a", "--", "echo"], 2, "log '.': Is a directory"),
        (["--job-log", "no/such", "a", "--", "echo"], 2, "job log 'no/such': No such file or directory"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_a_status(
    cli: Cli, folder: Path, args: list[str], status: int, message: str
) -> None:
    (folder / "plain").write_text("a\n")
    done = cli("exec", *args)
    assert done.returncode == status
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith("cmwq exec: error: ")
    assert message in line
    assert len(line) < 300
    assert done.stdout == b""


def test_how_a_command_can_fail(cli: Cli, folder: Path) -> None:
    (folder / "orphan").write_text("#!/no/such/interpreter\n")
    (folder / "orphan").chmod(0o755)
    items = [
        "exit 0",
        "exit 7",
        "kill -SEGV $$",
        "kill -TERM $$",
        "exec 1>&- 2>&-; exit 9",
        "./orphan",
        "exec ./orphan",
    ]
    done = cli("exec", "--shell", *items)
    assert done.returncode == 1
    said = [
        line.rpartition("': ")[2] for line in done.stderr.decode().splitlines() if line.startswith("cmwq exec: item")
    ]
    assert said == ["exit status 7", "ended by SIGSEGV", "ended by SIGTERM", "exit status 9", *["exit status 127"] * 2]
    assert "7 of 7 items, 6 failed" in done.stderr.decode().splitlines()[-1]


def test_a_missing_interpreter_ends_the_run(cli: Cli, folder: Path) -> None:
    (folder / "orphan").write_text("#!/no/such/interpreter\n")
    (folder / "orphan").chmod(0o755)
    done = cli("exec", "a", "b", "--", "./orphan")
    assert done.returncode == 126
    assert done.stderr == b"cmwq exec: error: './orphan' can't be executed: its interpreter is missing\n"


def test_a_script_without_a_first_line_is_run_by_the_shell(cli: Cli, folder: Path) -> None:
    (folder / "script").write_text('echo "[$1]"\n')
    (folder / "script").chmod(0o755)
    assert cli("exec", "a b", "--", "./script").stdout == b"[a b]\n"


def test_items_that_no_argument_can_hold_fail_alone(cli: Cli) -> None:
    done = cli("exec", "--", "printf", "%s.", input=b"a\nb\0c\n" + b"x" * 3_000_000 + b"\nd\n")
    assert (done.returncode, done.stdout) == (1, b"a.d.")
    assert b"item 2 'b\\x00c': an argument would hold a NUL byte" in done.stderr
    assert b": the item is too long for an argument\n" in done.stderr
    assert len(done.stderr) < 25_000


def test_dry_run_prints_what_a_shell_would_take(cli: Cli, folder: Path) -> None:
    done = cli("exec", "--dry-run", "-0", "--", *NOTE, input=b"it's\0a\nb\0\xff\0")
    assert done.returncode == 0
    assert not (folder / "effects").exists()
    ran = subprocess.run(["sh"], input=done.stdout, cwd=folder, capture_output=True, timeout=60)
    assert ran.stdout == b"out it's\nout a\nb\nout \xff\n"
    line = """echo {} "{}" '{}' $(echo {}) # {}"""
    shown = cli("exec", "--dry-run", "--shell", "a", "a b", "$x", "--", line).stdout
    assert shown.splitlines()[0] == b"""echo a "a" 'a' $(echo a) # a"""
    typed = subprocess.run(["sh"], input=shown, capture_output=True, timeout=60).stdout
    assert typed == cli("exec", "--shell", "a", "a b", "$x", "--", line).stdout


def test_a_dry_run_needs_no_command(cli: Cli) -> None:
    done = cli("exec", "--dry-run", "a.csv", "b c.csv", "--", "no-such-command", "{}", "-o", "{.}.out")
    assert done.stdout.splitlines() == [
        b"no-such-command a.csv -o a.out",
        b"no-such-command 'b c.csv' -o 'b c.out'",
    ]
    assert (done.returncode, done.stderr) == (0, b"")


def test_commands_read_nothing_and_inherit_no_ignored_signals(cli: Cli) -> None:
    assert cli("exec", "a", "--", "cat", "-", "/dev/null").stdout == b""
    done = cli("exec", "--", "sh", "-c", "cat; echo $1", "sh", input=b"a\nb\n")
    assert done.stdout == b"a\nb\n"
    # A broken pipe ends `yes` quietly, by a signal. Where that is ignored, `yes` complains.
    done = cli("exec", "--shell", "yes | head -n 1")
    assert (done.stdout, done.stderr) == (b"y\n", b"")
    assert cli("exec", "--shell", "trap").stdout == b""


def test_who_ignores_the_ends_of_children_does_not_hide_them(folder: Path) -> None:
    """Ignored signals are inherited; with this one ignored the kernel forgets how a child ended."""
    code = "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
    words = [sys.executable, "-m", "cmwq", "exec", "--quiet", "0", "3", "--", "sh", "-c", "exit $1", "sh"]
    command = [sys.executable, "-c", code, *words]
    done = ran(command, cwd=folder, capture_output=True, env=environment(), timeout=100)
    assert (done.returncode, done.stderr) == (1, b"cmwq exec: item 2 '3': exit status 3\n")


def test_few_descriptors_are_enough(folder: Path) -> None:
    script = "ulimit -n 40; exec $CMWQ exec $(seq 60) -- sh -c 'sleep 0.05; echo $1' sh"
    env = environment(CMWQ=f"{sys.executable} -m cmwq")
    done = ran(["bash", "-c", script], cwd=folder, capture_output=True, env=env, timeout=100)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.split() == [b"%d" % number for number in range(1, 61)]


def test_retries(cli: Cli, folder: Path) -> None:
    """Only what the last try printed is shown."""
    script = 'echo x >> "$1"; echo "try $(wc -l < "$1")"; [ $(wc -l < "$1") -ge 3 ]'
    done = cli("exec", "--retries", "2", "a", "--", "sh", "-c", script, "sh")
    assert (done.returncode, done.stdout.split()) == (0, [b"try", b"3"])
    done = cli("exec", "--retries", "1", "b", "--", "sh", "-c", script, "sh")
    assert (done.returncode, done.stdout.split()) == (1, [b"try", b"2"])
    assert (folder / "b").read_bytes() == b"x\nx\n"


def test_max_active_is_a_bound(cli: Cli, folder: Path) -> None:
    (folder / "held").mkdir()
    script = "mkdir held/one || exit 9; sleep 0.01; rmdir held/one"
    done = cli("exec", "--max-active", "1", *map(str, range(20)), "--", "sh", "-c", script, "sh")
    assert (done.returncode, done.stderr) == (0, b"")


def test_commands_that_wait_run_at_the_same_time(cli: Cli, folder: Path) -> None:
    """Each waits until all have begun, so none ends if they do not run together. They wait at a pipe: to look again and
    again would be to compute.
    """
    os.mkfifo(folder / "gate")
    opened = threading.Thread(target=open_when_all_have_begun, args=(folder, 20))
    opened.start()
    done = cli("exec", *map(str, range(20)), "--", "sh", "-c", "touch begun-$1; read line < gate", "sh")
    opened.join()
    assert (done.returncode, done.stderr) == (0, b"")


def open_when_all_have_begun(folder: Path, number: int) -> None:
    gate = os.open(folder / "gate", os.O_RDWR)  # so that none of them is the last to write, nor the first to read
    try:
        until(lambda: len([*folder.glob("begun-*")]) == number)
        os.write(gate, b"\n" * number)
        until(lambda: not select.select([gate], [], [], 0)[0])
    finally:
        os.close(gate)


@pytest.mark.skipif(why_not() is not None, reason=f"children can't be seen: {why_not()}")
@pytest.mark.parametrize("sensor", ["", "procfs"])
def test_A10_commands_that_compute_run_about_one_per_cpu(cli: Cli, sensor: str) -> None:
    loop = "i=0; while [ $i -lt 60000 ]; do i=$((i+1)); done"
    done = cli("exec", "--summary", *map(str, range(14)), "--", "sh", "-c", loop, "sh", env={"CMWQ_SENSOR": sensor})
    told = re.search(rb"about (\d+) at most", done.stderr)
    assert done.returncode == 0
    assert told is not None
    # At most two per CPU; and a command that has just begun, or just ended, does not compute.
    assert int(told[1]) <= 2 * len(os.sched_getaffinity(0)) + 2


def test_progress_and_summary(cli: Cli) -> None:
    done = cli("exec", "--progress", "--summary", "1", "2", "--", "sleep", "0.1")
    lines = done.stderr.decode().splitlines()
    assert "2 of 2 items" in "\n".join(lines)
    assert lines[-6].startswith("ran at the same time: ")
    assert lines[-2].startswith("     0 |")
    assert cli("exec", "--quiet", "1", "--", "false").stderr == b"cmwq exec: item 1 '1': exit status 1\n"


def test_the_help_is_complete(cli: Cli) -> None:
    done = cli("exec", "--help")
    assert (done.returncode, done.stderr) == (0, b"")
    text = done.stdout.decode()
    assert max(map(len, text.splitlines())) <= 100
    for word in ("--retries", "{/.}", "127", "--resume", "SIGHUP", "--shell"):
        assert word in text
    assert b"exec " in cli("--help").stdout


@pytest.mark.parametrize("name", ["--trace=keep.txt", "--dry-run", "--help", "-0", "--"])
@pytest.mark.parametrize("command", ["exec", "map"])
def test_a_file_does_not_become_an_option(cli: Cli, folder: Path, command: str, name: str) -> None:
    """A pattern puts it among the options; nobody can tell it from one that was meant."""
    (folder / "keep.txt").write_text("precious")
    (folder / name).touch()
    words = ("--", "echo") if command == "exec" else ("--", "targets:same")
    done = cli(command, name, "keep.txt", *words)
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (2, b"", 1)
    assert f"{name!r} is an option, and a file here has just that name: write ./*".encode() in done.stderr
    assert (folder / "keep.txt").read_text() == "precious"
    words = ("echo", f"./{name}") if command == "exec" else ("targets:size", f"./{name}")
    assert cli(command, *(("a", "--") if command == "exec" else ()), *words).returncode == 0
