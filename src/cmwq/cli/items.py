"""Where items come from: arguments, or the lines of files, read as they are needed.

Guarantees: a line is handed out as soon as its end has been read. At most one line and one chunk are in memory. All
files are open before the first line is read. What child processes find on standard input is empty, where items come
from there.
Descriptors are read without Python's buffered files: a thread blocked in their `read` would keep their lock until the
interpreter exits.
"""

from __future__ import annotations

import contextlib
import os
import select
import stat
import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING

from cmwq.cli.output import Refusal, reason, wait_for

if TYPE_CHECKING:
    import argparse

CHUNK = 1 << 16
LONGEST = 64 << 20  # bytes; an endless line (/dev/zero) must not use up the memory
COUNTED = 1 << 30  # bytes: the lines of larger files are not counted in advance


class Source:
    """The items of a run, and the descriptors that they come from: none if they are arguments."""

    def __init__(self, items: Sequence[str], fds: Sequence[int] = (), end: bytes = b"\n") -> None:
        self.fds = fds
        self.items: Iterator[str] = chain.from_iterable(lines(fd, end) for fd in fds) if fds else iter(items)
        self._nr_items = len(items)
        self._end = end

    def count(self) -> int | None:
        """How many items there are; None if only reading them all would tell. Nothing is taken from the source."""
        if not self.fds:
            return self._nr_items
        try:
            return sum(_count(fd, self._end) for fd in self.fds)
        except (OSError, ValueError):
            return None


def source_of(options: argparse.Namespace, stack: contextlib.ExitStack) -> Source:
    """The items that the options name. Raises Refusal."""
    if options.items and options.arg_file:
        raise Refusal("items are given as arguments and with --arg-file: one of them, please")
    if options.items:
        return Source(options.items)
    fds = []
    for name in options.arg_file or ["-"]:
        if name != "-":
            try:
                fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise Refusal(reason(error)) from error
        else:
            if sys.stdin is None:
                raise Refusal("standard input is closed, and no items are given")
            # For the command alone: a child process that reads standard input would take items away.
            fd = moved(0, os.open(os.devnull, os.O_RDONLY))
        stack.callback(os.close, fd)
        fds.append(fd)
    return Source((), fds, b"\0" if options.null else b"\n")


def moved(fd: int, replacement: int) -> int:
    """Give a standard descriptor's file another number, which is returned; the descriptor now means `replacement`."""
    own = os.dup(fd)
    os.dup2(replacement, fd)
    os.close(replacement)
    return own


def _count(fd: int, end: bytes) -> int:
    """How many lines a regular file has from here on. Raises ValueError if it is none or too large, OSError."""
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_size > COUNTED:
        raise ValueError
    offset = os.lseek(fd, 0, os.SEEK_CUR)
    number, last = 0, end
    while chunk := os.pread(fd, CHUNK, offset):
        number += chunk.count(end)
        offset += len(chunk)
        last = chunk[-1:]
    return number + (last != end)


def lines(fd: int, end: bytes = b"\n") -> Iterator[str]:
    """Every line without its end, undecodable bytes as surrogate escapes. Raises OSError, Refusal."""
    begun: list[bytes] = []
    size = number = 0
    while chunk := _read(fd):
        *ended, rest = chunk.split(end)
        for piece in ended:
            begun.append(piece)
            number += 1
            yield os.fsdecode(b"".join(begun))
            begun, size = [], 0
        if rest:
            begun.append(rest)
            size += len(rest)
            if size > LONGEST:
                raise Refusal(f"line {number + 1} of the input is longer than {LONGEST >> 20} MiB")
    if begun:
        yield os.fsdecode(b"".join(begun))


def _read(fd: int) -> bytes:
    while True:
        try:
            return os.read(fd, CHUNK)
        except BlockingIOError:
            wait_for(fd, select.POLLIN)
