"""Run the tests in parts, side by side: most tests wait for something, and one part alone leaves the machine idle.

Its one job: `run_tests.py [PYTEST OPTIONS]` runs `pytest` once for each of `PARTS`, all at the same time. The first
part is shown as it goes, each other one when it has ended; the last line adds up all closing lines, in pytest's words.
If an argument names tests, there is only one part. `--ignore=DIRECTORY` leaves that out, of whichever part.

cmwq and the tests are compiled first: see `trees`.

Guarantees: every test of `tests/` is in one part. The exit status is that of a part that failed. Ctrl-C, and a part
that cannot be started, end all parts.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from typing import IO

from interpreters import CLOSING
from trees import compile_tree

APART = (
    ("tests/cli", "tests/interrupted", "tests/twin"),
    ("tests/sim", "tests/events", "tests/model", "tests/contrib", "tests/observing", "tests/docs"),
)
"""Directories that are parts of their own: they watch other processes, servers, or a machine of their own, so that they
do not mind what runs beside them. The first part is all others.
"""
PARTS = (tuple(f"--ignore={each}" for part in APART for each in part), *APART)
NO_TESTS = 5  # pytest's exit status
ORDER = ("failed", "passed", "skipped", "deselected", "xfailed", "xpassed", "warnings", "errors")


def names_tests(arguments: list[str]) -> bool:
    return any(os.path.exists(each.partition("::")[0]) for each in arguments)


def selections(arguments: list[str]) -> list[list[str]]:
    """The options that select each part's tests. What a part names pytest would run although it is to be ignored."""
    ignored = {os.path.normpath(each.partition("=")[2]) for each in arguments if each.startswith("--ignore=")}
    parts = [[each for each in part if each not in ignored] for part in PARTS]
    return [part for part in parts if part]


def begin(arguments: list[str], output: IO[bytes] | None) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "pytest", *arguments]
    if output is None:
        return subprocess.Popen(command, stdout=subprocess.PIPE)
    # No cache: it belongs to the first part.
    return subprocess.Popen([*command, "-p", "no:cacheprovider"], stdout=output, stderr=subprocess.STDOUT)


def counts(line: str) -> Counter[str]:
    """Of a closing line of pytest: passed, failed, skipped, ...; empty if it is none."""
    words = re.findall(r"(\d+) (\w+)", line.rpartition(" in ")[0]) if CLOSING.match(line) else []
    return Counter({{"error": "errors", "warning": "warnings"}.get(word, word): int(n) for n, word in words})


def shown(part: IO[bytes]) -> Counter[str]:
    """Print what a part prints, while it does; its counts."""
    total: Counter[str] = Counter()
    for line in part:
        text = line.decode(errors="replace")
        print(text, end="", flush=True)
        total = counts(text.rstrip()) or total
    return total


def closing(total: Counter[str], seconds: float) -> str:
    words = ", ".join(f"{total[each]} {each}" for each in ORDER if total[each]) or "no tests ran"
    whole = f" ({time.strftime('%-H:%M:%S', time.gmtime(seconds))})" if seconds >= 60 else ""
    return f" {words} in {seconds:.2f}s{whole} ".center(80, "=")


def end(parts: list[subprocess.Popen[bytes]]) -> None:
    for part in parts:
        if part.poll() is None:
            part.send_signal(signal.SIGINT)  # it has it already if it was Ctrl-C


def main(arguments: list[str]) -> int:
    compile_tree()
    if names_tests(arguments):
        return subprocess.call([sys.executable, "-m", "pytest", *arguments])
    began = time.monotonic()
    parts: list[subprocess.Popen[bytes]] = []
    total: Counter[str] = Counter()
    with ExitStack() as stack:
        stack.callback(end, parts)
        selected = selections(arguments)
        books = [stack.enter_context(tempfile.TemporaryFile()) for _ in selected[1:]]
        for selection, book in zip(selected, [None, *books], strict=True):
            parts.append(begin([*arguments, *selection], book))
        assert parts[0].stdout is not None
        total += shown(parts[0].stdout)
        for part, book in zip(parts[1:], books, strict=True):
            part.wait()
            book.seek(0)
            total += shown(book)
    statuses = [part.wait() for part in parts]
    print(closing(total, time.monotonic() - began), flush=True)
    return next((status for status in statuses if status not in (0, NO_TESTS)), 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
