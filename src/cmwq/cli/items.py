"""Where items come from: the lines of a descriptor, read as they are needed.

Guarantees: a line is handed out as soon as its end has been read. At most one line and one chunk are in memory.
Descriptors are read without Python's buffered files: a thread blocked in their `read` would keep their lock until the
interpreter exits.
"""

from __future__ import annotations

import os
import select
from collections.abc import Iterator

from cmwq.cli.output import Refusal, wait_for

CHUNK = 1 << 16
LONGEST = 64 << 20  # bytes; an endless line (/dev/zero) must not use up the memory


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
