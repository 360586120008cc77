"""What commands say and how they end: exit statuses, one-line messages, writes that leave nothing in a buffer.

Guarantees: `say` never raises, and whatever it says is one line of bounded length. `write_all` returns when the kernel
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
LONGEST = 10_000  # characters of what somebody else wrote: an exception may quote all it was given
_AT_ONCE = 1024  # IOV_MAX


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
    """The text with everything that would break, move or colour a line shown as an escape, and its end left out where
    it is very long."""
    if len(text) > LONGEST:
        text = f"{text[:LONGEST]}... ({len(text):,} characters)"
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


def write_all(fd: int, *parts: bytes) -> None:
    """All parts, one after the other; never joined, since they may be large."""
    left = deque(memoryview(part) for part in parts if part)
    while left:
        try:
            written = os.writev(fd, list(islice(left, _AT_ONCE)))
        except BlockingIOError:  # the descriptor's other owner made it non-blocking
            wait_for(fd, select.POLLOUT)
            continue
        while left and written >= len(left[0]):
            written -= len(left.popleft())
        if written:
            left[0] = left[0][written:]


def wait_for(fd: int, event: int) -> None:
    """Until a non-blocking descriptor is ready, or broken. Not `select`, which knows the first 1,024 only."""
    poll = select.poll()
    poll.register(fd, event)
    poll.poll()
