"""Run the tests in parts, side by side: most tests wait for something, and one part alone leaves the machine idle.

Its one job: `run_tests.py [PYTEST OPTIONS]` runs `pytest` once for each of `PARTS`, all at the same time. The first
part is shown as it goes, each other one when it has ended; the last line adds up all closing lines, in pytest's words.
If an argument names tests, there is only one part. `--ignore=DIRECTORY` leaves that out, of whichever part.

cmwq and the tests are compiled first: see `trees`.

`--again`, which CI gives, runs up to `FEW` tests that failed once more, alone, as CPython's `--rerun` does: of
thousands of tests of threads, on a machine that others share, one fails now and then by what ran beside it. Those that
pass `TIMES` times, in processes of their own, are counted as "rerun" and named at the end. Their failures stand above,
and are still to be explained.

Guarantees: every test of `tests/` is in one part. The exit status is that of a part that failed. Ctrl-C, and a part
that cannot be started, end all parts. Nothing is run again where more failed than a few, or where a part crashed, was
interrupted or ran out of time.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
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
TESTS_FAILED, NO_TESTS = 1, 5  # pytest's exit statuses
ORDER = ("failed", "passed", "skipped", "deselected", "xfailed", "xpassed", "rerun", "warnings", "errors")
AGAIN = "--again"
FEW = 3
TIMES = 3


def names_tests(arguments: list[str]) -> bool:
    return any(os.path.exists(each.partition("::")[0]) for each in arguments)


def selections(arguments: list[str]) -> list[list[str]]:
    """The options that select each part's tests. What a part names pytest would run although it is to be ignored."""
    ignored = {os.path.normpath(each.partition("=")[2]) for each in arguments if each.startswith("--ignore=")}
    parts = [[each for each in part if each not in ignored] for part in PARTS]
    return [part for part in parts if part]


def begin(arguments: list[str], output: IO[bytes] | None, cache: Path | None) -> subprocess.Popen[bytes]:
    """`cache`: where it leaves what failed; None: nowhere, but for the first part, which has the tree's own."""
    command = [sys.executable, "-m", "pytest", *arguments]
    if cache is not None:
        command += ["-o", f"cache_dir={cache}"]
    elif output is not None:
        command += ["-p", "no:cacheprovider"]
    return subprocess.Popen(command, stdout=output or subprocess.PIPE, stderr=output and subprocess.STDOUT)


def counts(line: str) -> Counter[str]:
    """Of a closing line of pytest: passed, failed, skipped, ...; empty if it is none."""
    words = re.findall(r"(\d+) (\w+)", line.rpartition(" in ")[0]) if CLOSING.match(line) else []
    return Counter({{"error": "errors", "warning": "warnings"}.get(word, word): int(n) for n, word in words})


def shown(part: IO[bytes]) -> tuple[Counter[str], bool]:
    """Print what a part prints, while it does; its counts, and whether it came to its end."""
    total: Counter[str] = Counter()
    stopped = ended = False
    for line in part:
        text = line.decode(errors="replace")
        print(text, end="", flush=True)
        stopped |= text.startswith("!!!")  # pytest: interrupted, out of time
        total = counts(text.rstrip()) or total
        ended |= bool(CLOSING.match(text.rstrip()))
    return total, ended and not stopped


def failed_in(cache: Path) -> list[str]:
    """The tests that failed, or could not be collected, in a run that had that cache."""
    book = cache / "v/cache/lastfailed"
    return [*json.loads(book.read_text())] if book.exists() else []


def pass_alone(tests: list[str], options: list[str]) -> bool:
    """Each time all of them, in a process of its own."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options, *tests]
    return not any(subprocess.call(command) for _ in range(TIMES))


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
    again = AGAIN in arguments
    arguments = [each for each in arguments if each != AGAIN]
    named = names_tests(arguments)
    if named and not again:
        return subprocess.call([sys.executable, "-m", "pytest", *arguments])
    began = time.monotonic()
    parts: list[subprocess.Popen[bytes]] = []
    with ExitStack() as stack:
        stack.callback(end, parts)
        selected = [[]] if named else selections(arguments)
        books = [stack.enter_context(tempfile.TemporaryFile()) for _ in selected[1:]]
        caches = [Path(stack.enter_context(tempfile.TemporaryDirectory())) if again else None for _ in selected]
        for selection, book, cache in zip(selected, [None, *books], caches, strict=True):
            parts.append(begin([*arguments, *selection], book, cache))
        assert parts[0].stdout is not None
        told = [shown(stack.enter_context(parts[0].stdout))]
        for part, book in zip(parts[1:], books, strict=True):
            part.wait()
            book.seek(0)
            told.append(shown(book))
        statuses = {part.wait() for part in parts} - {0, NO_TESTS}
        failed = [test for cache in caches if cache is not None for test in failed_in(cache)]
    total = sum((count for count, _ in told), Counter[str]())
    if failed and len(failed) <= FEW and statuses == {TESTS_FAILED} and all(ended for _, ended in told):
        print(f"\nagain, alone: {', '.join(failed)}", flush=True)
        if pass_alone(failed, [each for each in arguments if not names_tests([each])]):
            print("\nThey failed above, and passed alone. Why they failed is still to be explained:", *failed, sep="\n")
            total["rerun"] = total.pop("failed", 0) + total.pop("errors", 0)
            statuses.clear()
    print(closing(total, time.monotonic() - began), flush=True)
    return min(statuses, default=0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
