"""Whole lines: commands that print at the same time, and tags that say whose line it is.

Guarantees: a line of one command is never broken by another's, unless it is longer than `LONGEST`. A line that a
command did not end is ended. Nothing is kept in memory except lines that have not ended.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator

from cmwq.cli.output import Refusal, reason, write_all

LONGEST = 1 << 20  # bytes


def tag_of(item: str) -> bytes:
    """The item and a tab. Whatever would break the line is escaped."""
    return os.fsencode("".join(c if c >= " " and c != "\x7f" else ascii(c)[1:-1] for c in item)) + b"\t"


class Tagged:
    """Puts a tag before each line."""

    def __init__(self, tag: bytes) -> None:
        self._tag = tag

    def all(self, parts: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
        """These parts of whole streams, one stream after the other, with tags."""
        where, open_line = None, False
        for fd, part in parts:
            if not part:  # which says nothing, nor that the other stream has ended
                continue
            if fd != where:
                if open_line and where is not None:
                    yield where, b"\n"
                where, open_line = fd, False
            yield fd, self.put(part, open_line)
            open_line = not part.endswith(b"\n")
        if open_line and where is not None:
            yield where, b"\n"

    def put(self, part: bytes, open_line: bool) -> bytes:
        body, end = (part[:-1], b"\n") if part.endswith(b"\n") else (part, b"")
        return (b"" if open_line else self._tag) + body.replace(b"\n", b"\n" + self._tag) + end


class Lines:
    """Where the lines of commands go as they come. Thread-safe."""

    def __init__(self, fds: tuple[int, int]) -> None:
        self._fds = fds
        self._lock = threading.Lock()  # lines are written one after the other

    @contextlib.contextmanager
    def of(self, tag: bytes) -> Iterator[tuple[Callable[[bytes], None], Callable[[bytes], None]]]:
        """Sinks for the two streams of a command. Raises BrokenPipeError, Refusal."""
        begun: tuple[list[bytes], list[bytes]] = ([], [])
        tagged = Tagged(tag)

        def sink(number: int, data: bytes) -> None:
            lines, mark, rest = data.rpartition(b"\n")
            if mark:
                whole = b"".join([*begun[number], lines, mark])
                begun[number].clear()
                self._write(number, tagged.put(whole, open_line=False))
            if rest:
                begun[number].append(rest)
                if sum(map(len, begun[number])) > LONGEST:
                    end(number)

        def end(number: int) -> None:
            if begun[number]:
                whole = b"".join(begun[number])
                begun[number].clear()
                self._write(number, tagged.put(whole, open_line=False) + b"\n")

        yield lambda data: sink(0, data), lambda data: sink(1, data)
        end(0)
        end(1)

    def _write(self, number: int, data: bytes) -> None:
        try:
            with self._lock:
                write_all(self._fds[number], data)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise Refusal(f"standard {('output', 'error')[number]}: {reason(error)}") from None
