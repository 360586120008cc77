"""What commands say and how they end: exit statuses, one-line messages, writes that leave nothing in a buffer.

Guarantees: `say` never raises, and what it writes is one line of bounded length. `write_all` returns when the kernel
has every byte.
"""

from __future__ import annotations

import os
import select
import sys
from collections import deque
from itertools import islice

FAILED = 2
CLOSED = 141  # 128 + SIGPIPE: what a shell shows for a program that SIGPIPE ended
OUT_OF_MEMORY = "out of memory"
STDOUT_CLOSED = "standard output is closed"
LONGEST = 10_000  # characters of foreign text: an exception may quote everything it was given
_AT_ONCE = 1024  # IOV_MAX


class Refusal(Exception):
    """The command cannot go on. The text is the one line to show."""

    def __init__(self, line: str, status: int = FAILED) -> None:
        super().__init__(line)
        self.status = status


def say(line: str) -> None:
    """Write one line to stderr, straight to the descriptor: text in Python's buffer would change the exit status."""
    try:
        sys.stderr.flush()
        write_all(sys.stderr.fileno(), line.encode("utf-8", "backslashreplace") + b"\n")
    except (OSError, ValueError, AttributeError):  # full, closed, None, or replaced by something without a descriptor
        pass


def one_line(text: str) -> str:
    """The text as one line: whatever would break, move or colour it is escaped, and a very long text is cut."""
    if len(text) > LONGEST:
        text = f"{text[:LONGEST]}... ({len(text):,} characters)"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def reason(error: OSError) -> str:
    """The error in the form "name: No such file or directory", without its number."""
    what = error.strerror or str(error) or type(error).__name__
    return one_line(f"{os.fsdecode(error.filename)}: {what}" if isinstance(error.filename, str | bytes) else what)


def describe(error: BaseException) -> str:
    """Type and message on one line, whatever the exception's __str__ does."""
    try:
        message = str(error)
    except BaseException as worse:
        message = f"<str() raised {type(worse).__name__}>"
    return one_line(f"{type(error).__name__}: {message}" if message else type(error).__name__)


def write_all(fd: int, *parts: bytes) -> None:
    """Write all parts, one after the other. They are never joined, because they may be large. Raises OSError."""
    left = deque(memoryview(part) for part in parts if part)
    while left:
        try:
            written = os.writev(fd, list(islice(left, _AT_ONCE)))
        except BlockingIOError:  # another process that has the file made it non-blocking
            wait_for(fd, select.POLLOUT)
            continue
        while left and written >= len(left[0]):
            written -= len(left.popleft())
        if written:
            left[0] = left[0][written:]


def wait_for(fd: int, event: int) -> None:
    """Wait until a non-blocking descriptor is ready or broken. `select` would not do: it knows only the first 1,024."""
    poll = select.poll()
    poll.register(fd, event)
    poll.poll()
