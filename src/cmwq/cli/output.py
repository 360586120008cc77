"""What commands say and how they end: exit statuses, one-line messages, writes that leave nothing in a buffer.

Guarantees: `say` never raises, and whatever it says is one line. `write_all` returns when the kernel has every byte.
"""

from __future__ import annotations

import os
import select
import sys

FAILED = 2
INTERRUPTED = 130  # 128 + SIGINT
CLOSED = 141  # 128 + SIGPIPE: what a shell shows for a program that SIGPIPE ended


class Refusal(Exception):
    """The command cannot go on; its text is the one line to show."""


def say(line: str) -> None:
    """One line on stderr. Straight to the descriptor: what stayed in Python's buffer would change the exit status."""
    try:
        sys.stderr.flush()
        write_all(sys.stderr.fileno(), line.encode("utf-8", "backslashreplace") + b"\n")
    except (OSError, ValueError, AttributeError):  # full, closed, replaced by something without a descriptor, None
        pass


def one_line(text: str) -> str:
    """The text with everything that would break, move or colour a line shown as an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def reason(error: OSError) -> str:
    """As "name: No such file or directory", without the number that only programmers read."""
    what = error.strerror or str(error) or type(error).__name__
    return one_line(f"{os.fsdecode(error.filename)}: {what}" if isinstance(error.filename, str | bytes) else what)


def describe(error: BaseException) -> str:
    """Type and message, on one line, whatever the exception's __str__ does."""
    try:
        message = str(error)
    except BaseException as worse:
        message = f"<str() raised {type(worse).__name__}>"
    return one_line(f"{type(error).__name__}: {message}" if message else type(error).__name__)


def write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:  # the descriptor's other owner made it non-blocking
            select.select([], [fd], [])
