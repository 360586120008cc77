"""The blocks of code in the documents, and how they are run.

Guarantees: every block of Python is part of a program that is run, every line `$ command` of a block `console` is run,
and both have printed what stands below them. A block `sh` is run as it stands, or names the tests that run what it
shows. What a block needs, but a reader does not, stands in comments right above it, which no reader sees:

    <!-- file: pages.py -->     the block is a file, for the commands below it; it is not run by itself
    <!-- setup                  these lines come before it
    import cmwq
    -->
    <!-- after                  and these after it
    queue.close(60)
    -->
    <!-- continues -->          it goes on where the block before it ended
    <!-- needs: django -->      skipped where that can't be imported, and is no command
    <!-- python: 3.12 -->       skipped with an older Python
    <!-- logs -->               it writes to stderr
    <!-- run -->                a block `sh` that is run; `setup` and `after` are lines of the shell then
    <!-- tested: FILE::TEST --> a block `sh` that is not; several tests are separated by commas

A `…` in an output stands for anything. All blocks of a page share a folder, in which they are run one after the other.
In a block `sh` that is run, `PID` stands for the number of the newest process that has a monitor.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))] if DOCS.is_dir() else []
NOTES = {"file", "setup", "after", "continues", "needs", "python", "logs", "run", "tested"}
HANG = 60.0
MARK = "\x1ecmwq\x1e"
FENCE = re.compile(r"```([a-z]*)$")


@dataclass
class Block:
    page: Path
    line: int
    language: str
    text: str
    notes: dict[str, str]
    output: str | None = None

    @property
    def at(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    def why_not(self) -> str | None:
        """Why it can't be run here; None: it can."""
        for module in filter(None, re.split(r",\s*", self.notes.get("needs", ""))):
            if not is_there(module):
                return f"{module} is not installed"
            if module == "uvloop" and not getattr(sys, "_is_gil_enabled", lambda: True)():
                return "importing uvloop would enable the GIL here"
        version = tuple(map(int, self.notes.get("python", "3").split(".")))
        return f"needs Python {self.notes['python']}" if sys.version_info < version else None


@dataclass
class Program:
    """Blocks that are run as one program."""

    blocks: list[Block] = field(default_factory=list)

    @property
    def text(self) -> str:
        """What is run. Each block stands in the line in which the page has it, if there is room, for tracebacks."""
        lines: list[str] = []
        for block in self.blocks:
            lines += block.notes.get("setup", "").splitlines()
            lines += [""] * (block.line - len(lines))
            lines += block.text.splitlines()
        for block in self.blocks:
            lines += block.notes.get("after", "").splitlines()
        return "\n".join(lines) + "\n"

    @property
    def output(self) -> str | None:
        said = [block.output for block in self.blocks if block.output is not None]
        return "".join(said) if said else None

    @property
    def at(self) -> str:
        return self.blocks[0].at

    def why_not(self) -> str | None:
        """Why it can't be run here; None: it can."""
        return next(filter(None, (block.why_not() for block in self.blocks)), None)


@cache
def is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None or shutil.which(module) is not None
    except ModuleNotFoundError:
        return False


def blocks(page: Path) -> list[Block]:
    """The blocks of a page, with what stands in comments right above each, and its output below it."""
    found: list[Block] = []
    notes: dict[str, str] = {}
    lines = iter(enumerate(page.read_text().splitlines(), 1))
    for number, line in lines:
        if comment := re.match(r"<!-- (\w+)(: .*?)? ?(-->)?$", line):
            if comment[1] not in NOTES:
                continue
            notes[comment[1]] = (comment[2] or "")[2:]
            if not comment[3]:
                notes[comment[1]] = "\n".join(text_until(lines, "-->"))
        elif fence := FENCE.match(line):
            text = "\n".join(text_until(lines, "```")) + "\n"
            if fence[1] == "output":
                assert [each.language for each in found[-1:]] == ["python"], f"{page}:{number}: the output of nothing"
                assert found[-1].output is None, f"{page}:{number}: a second output"
                found[-1].output = text
            else:
                found.append(Block(page, number, fence[1], text, notes))
            notes = {}
        elif line.startswith("```"):  # a directive
            text_until(lines, "```")
        elif line.strip():
            assert not notes, f"{page}:{number}: a comment for a block, and no block"
    return found


def text_until(lines: Iterator[tuple[int, str]], end: str) -> list[str]:
    found = []
    for _, line in lines:
        if line.rstrip() == end:
            return found
        found.append(line)
    raise AssertionError(f"no {end!r}")


def steps(page: Path) -> list[Program | Block]:
    """What is done for a page, in order: programs are run, files written, commands run."""
    found: list[Program | Block] = []
    program: Program | None = None
    for block in blocks(page):
        if (
            block.language == "console"
            or "run" in block.notes
            or (block.language == "python" and "file" in block.notes)
        ):
            found.append(block)
        elif block.language == "python":
            if "continues" in block.notes:
                assert program is not None, f"{page}:{block.line} continues nothing"
                program.blocks.append(block)
            else:
                program = Program([block])
                found.append(program)
    return found


def agrees(wanted: str, printed: str) -> bool:
    pattern = re.escape(wanted.strip("\n")).replace("…", r"[\s\S]*?")
    return re.fullmatch(pattern, printed.strip("\n")) is not None


def environment(folder: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("CMWQ_MONITOR", "CMWQ_TRACE"))}
    return {
        **kept,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', os.defpath)}",
        "XDG_RUNTIME_DIR": folder,  # so that `cmwq ps` lists the processes of this page alone
        "TMPDIR": folder,
        "COLUMNS": "100",
        "NO_COLOR": "1",
    }


@contextmanager
def folder() -> Iterator[str]:
    """A folder with a short name, because the names of sockets may not be long."""
    with tempfile.TemporaryDirectory(prefix="cmwq-docs-", dir="/tmp", ignore_cleanup_errors=True) as name:
        yield name


def run(command: list[str], where: str) -> tuple[int | str, str, str]:
    """Run it, and end whatever it leaves behind. Its status or "hung", what it printed, and what it wrote to stderr."""
    with (
        tempfile.TemporaryFile("w+") as out,
        tempfile.TemporaryFile("w+") as err,
    ):  # jobs would hold pipes open
        process = subprocess.Popen(
            command, cwd=where, env=environment(where), start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=out, stderr=err,
        )  # fmt: skip
        status: int | str = "hung"
        try:
            with suppress(subprocess.TimeoutExpired):
                status = process.wait(HANG)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        out.seek(0)
        err.seek(0)
        return status, out.read(), err.read()


def run_program(program: Program, where: str) -> None:
    block = program.blocks[0]
    name = f"{block.page.stem.replace('-', '_')}_{block.line}.py"
    Path(where, name).write_text(program.text)
    status, out, err = run([sys.executable, name], where)
    assert status == 0, f"{block.at}: status {status}\n{out}\n{err}"
    assert err == "" or any("logs" in each.notes for each in program.blocks), f"{block.at} wrote to stderr\n{err}"
    if program.output is not None:
        assert agrees(program.output, out), f"{block.at} printed\n{out}"


LIBRARY = r"""
newest() {  # the number of the newest process that has a monitor, when there is one
    local found
    until found=$(command cmwq ps | tail -n +2 | sort -n | awk 'END { print $1 }') && [[ -n $found ]]; do
        sleep 0.1
    done
    echo "$found"
}
free_port() {
    command python -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])'
}
answers() {  # wait until what is at this address answers
    until command python -c '
import sys
from urllib.request import HTTPCookieProcessor, build_opener
build_opener(HTTPCookieProcessor).open(sys.argv[1], timeout=9)
' "$1" 2> refused; do
        sleep 0.1
    done
}
in_terminal() {  # run a command in a terminal, in which somebody types `q` every second, however much it prints
    command python - "$@" <<'END'
import os, pty, select, sys, time
pid, terminal = pty.fork()
if not pid:
    os.execvp(sys.argv[1], sys.argv[1:])
next_key = time.monotonic() + 1
try:
    while True:
        if select.select([terminal], [], [], max(0, next_key - time.monotonic()))[0]:
            os.read(terminal, 9999)
        if time.monotonic() >= next_key:
            os.write(terminal, b"q")
            next_key += 1
except OSError:  # it is over
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
END
}
pip() {  # nothing is installed here: are there such extras?
    command python - "$@" <<'END'
import re, sys
from importlib.metadata import metadata
extras = {extra for word in sys.argv for extra in re.findall(r"\[(.*)\]", word)}
assert sys.argv[1] == "install" and "cmwq" in sys.argv[2], sys.argv
assert extras <= set(metadata("cmwq").get_all("Provides-Extra")), extras
END
}
"""


def run_script(block: Block, where: str) -> None:
    """A block `sh`, in one bash, which ends at the first command that fails. `$ROOT` is the top of the repository."""
    text = re.sub(r"\bPID\b", "$(newest)", block.text)
    parts = "set -eo pipefail", LIBRARY, f"ROOT={shlex.quote(str(ROOT))}", block.notes.get("setup", "")
    script = "\n".join((*parts, text, block.notes.get("after", ""), ""))
    status, out, err = run(["bash", "-c", script], where)
    assert status == 0, f"{block.at}: status {status}\n{out}\n{err}"


def run_commands(block: Block, where: str) -> None:
    """The commands of one block, in one shell."""
    commands: list[tuple[str, str]] = []
    for line in block.text.splitlines():
        if line.startswith("$ "):
            commands.append((line[2:], ""))
        else:
            assert commands, f"{block.page}:{block.line}: output before a command"
            command, output = commands[-1]
            commands[-1] = (command, output + line + "\n")
    script = "".join(f"{command}\necho '{MARK}'$?\n" for command, _ in commands)
    _, out, err = run(["bash", "-c", script], where)
    parts = re.split(rf"{MARK}(\d+)\n", out)
    at = block.at
    assert len(parts) == 2 * len(commands) + 1, f"{at}\n{out}\n{err}"
    for (command, output), printed, status in zip(commands, parts[::2], parts[1::2], strict=False):
        assert status == "0", f"{at}: {command}: status {status}\n{printed}\n{err}"
        assert not output or agrees(output, printed), f"{at}: {command} printed\n{printed}\n{err}"
