"""The log of `--resume`: a first line that names command and target, then one JSON line for each completed item.

Before the line of an item there may be others with its *pieces*: large values are cut, so that no line is long.

Guarantees: `record` returns when the kernel has the line, so the line survives the death of the process (not of the
machine). A last line without an end was cut short and is dropped, as are pieces at the end whose item's line is
missing. Elsewhere nothing may be missing: pieces have numbers, and their item's line says how many there are, so none
is taken for another item's. A file that is no log of this target is left unchanged, as is any that is only read. Two
runs cannot share a log at the same time; a regular file that cannot be locked is refused. After a failed write no other
is tried, because a line after a cut one would spoil both.

Assumes POSIX `O_APPEND`. Memory holds five numbers for each logged item, and neither results nor items.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any, NamedTuple

from cmwq.cli.output import Refusal, reason, write_all

_LONGEST_HEADER = 1 << 16
_AT_ONCE = 1 << 18  # bytes of pieces that are read at once


class Entry(NamedTuple):
    offset: int
    length: int
    ok: bool
    item: int  # its hash
    before: int  # bytes of its pieces, which come just before


class Log:
    """The log of this command and target, open and locked. Raises Refusal if it is unusable or another's. Thread-safe.

    needed: the member that the line of an item that succeeded must have. texts: the members, and the names of pieces,
    that are text. read_only: nothing will be recorded, and the file stays as it is.
    """

    def __init__(
        self,
        path: str,
        command: str,
        target: str,
        *,
        needed: str = "result",
        texts: Sequence[str] = (),
        read_only: bool = False,
    ) -> None:
        self.path = path
        self.command = command
        self.needed = needed
        self.texts = texts
        self.entries: dict[int, Entry] = {}
        self.unkept: int | None = None  # the last item that succeeded and whose texts were not kept
        self._lock = threading.Lock()  # one line is written at a time
        self._failure: OSError | None = None
        try:
            self._fd = _open(path, read_only)
            header = json.dumps({"cmwq": command, "version": 1, "target": target}).encode() + b"\n"
            self._begin(header, read_only)
        except OSError as error:
            raise Refusal(f"log {path!r}: {reason(error).removeprefix(path + ': ')}") from error

    def checked(self, items: Iterator[str]) -> Iterator[str | None]:
        """The items, but None for each that succeeded. First all of the log is compared with them. Raises Refusal.

        Of the items that have to be read for this, only those that the log lacks are kept; the others are read from it.
        """
        other = f"log {self.path!r} belongs to other items"
        end = max(self.entries, default=-1) + 1
        missing: dict[int, str] = {}
        count = 0
        for index, item in enumerate(islice(items, end)):
            entry = self.entries.get(index)
            if entry is None:
                missing[index] = item
            elif hash(item) != entry.item:
                raise Refusal(f"{other}: item {index + 1} is {_short(item)}, there {_short(self.item(index))}")
            count += 1
        if count < end:
            first = min(index for index in self.entries if index >= count)
            raise Refusal(f"{other}: it has item {first + 1}, the input has {count}")
        return chain(self._again(end, missing), items)

    def _again(self, end: int, missing: dict[int, str]) -> Iterator[str | None]:
        for index in range(end):
            if index in missing:
                yield missing.pop(index)
            else:
                yield None if self.entries[index].ok else self.item(index)

    def item(self, index: int) -> str:
        item: str = self._read(self.entries[index])["item"]
        return item

    def value(self, index: int, name: str) -> object:
        """A member of the line of an item that succeeded."""
        return self._read(self.entries[index]).get(name)

    def pieces(self, index: int) -> Iterator[dict[str, Any]]:
        """The pieces of that item, and at last its own line."""
        entry = self.entries[index]
        rest, offset = b"", entry.offset - entry.before
        while offset < entry.offset:
            read = os.pread(self._fd, min(_AT_ONCE, entry.offset - offset), offset)
            offset += len(read) or entry.offset
            *ended, rest = (rest + read).split(b"\n")
            yield from map(json.loads, ended)
        yield self._read(entry)

    def record(self, index: int, item: str, ok: bool, *tail: bytes, pieces: Iterable[tuple[str, bytes]] = ()) -> None:
        """Append one completed item. Raises OSError; after that every call raises it again.

        tail: further members of its line, as JSON. pieces: the names and contents of what is too long for a line.
        """
        head = json.dumps({"index": index, "item": item, "ok": ok})[:-1].encode("ascii")
        with self._lock:
            if self._failure is not None:
                raise OSError(*self._failure.args)
            try:
                number = 0
                for number, (name, content) in enumerate(pieces, 1):
                    text = content.decode("utf-8", "surrogateescape")
                    piece = {"index": index, "piece": name, "number": number, "text": text}
                    write_all(self._fd, json.dumps(piece).encode("ascii"), b"\n")
                count = b', "pieces": %d' % number if number else b""
                write_all(self._fd, head, b", ", *tail, count, b"}\n")
            except OSError as failure:
                self._failure = failure
                raise

    def stop(self, timeout: float) -> None:
        """Let the line that is being written end, for at most `timeout` seconds, and no other begin."""
        self._lock.acquire(timeout=timeout)  # never released: the process is about to leave

    def close(self) -> None:
        os.close(self._fd)

    def _begin(self, header: bytes, read_only: bool) -> None:
        end = 0
        if stat.S_ISREG(os.fstat(self._fd).st_mode):  # in /dev/null or a pipe there is nothing to go on from
            end = self._load(header)
            if os.fstat(self._fd).st_size != end and not read_only:
                os.ftruncate(self._fd, end)
        if end == 0 and not read_only:
            write_all(self._fd, header)

    def _load(self, header: bytes) -> int:
        """Take in what is there; where it ends, but for what was cut short."""
        end = 0
        with open(self._fd, "rb", closefd=False) as file:
            first = file.readline(len(header))  # no more: another kind of file may be one huge line
            if first == header:
                end = len(first)
            elif not header.startswith(first):
                rest = b"" if first.endswith(b"\n") else file.readline(_LONGEST_HEADER)
                raise Refusal(_foreign(self.path, self.command, first + rest))
            offset = end
            pieces: list[int] = []  # the index of each since the last line of an item
            for number, line in enumerate(file, 2):
                if not line.endswith(b"\n"):
                    break
                if self._take(number, offset, line, offset - end, pieces):
                    end = offset + len(line)
                    pieces.clear()
                offset += len(line)
        return end

    def _take(self, number: int, offset: int, line: bytes, before: int, pieces: list[int]) -> bool:
        """Take in one line. False: it is a piece, and the line of its item has still to come."""
        match _parse(line):
            case {"index": int(index), "item": str(item), "ok": bool(ok), **rest} if 0 <= index < sys.maxsize:
                whole = rest.get("pieces", 0) == len(pieces) and all(piece == index for piece in pieces)
                if (
                    whole
                    and (not ok or self.needed in rest)
                    and all(_is_text(rest.get(name, "")) for name in self.texts)
                ):
                    self.entries[index] = Entry(offset, len(line), ok, hash(item), before)
                    if ok and rest.get("kept") is False:
                        self.unkept = index
                    return True
            case {"index": int(index), "piece": str(name), "number": int(count), "text": text}:
                if name in self.texts and count == len(pieces) + 1 and _is_text(text):
                    pieces.append(index)
                    return False
            case {"index": int(), "piece": str(), "text": str()}:
                raise Refusal(
                    f"log {self.path!r}: line {number} is of an older cmwq, and can't be checked; use another log"
                )
        raise Refusal(f"log {self.path!r}: line {number} is damaged; repair or remove it, or use another log")

    def _read(self, entry: Entry) -> dict[str, Any]:
        parsed: dict[str, Any] = json.loads(os.pread(self._fd, entry.length, entry.offset))
        return parsed


def _open(path: str, read_only: bool) -> int:
    # Not blocking: a pipe that nobody writes to can't be opened for reading alone.
    flags = os.O_RDONLY | os.O_NONBLOCK if read_only else os.O_RDWR | os.O_CREAT | os.O_APPEND
    fd = os.open(path, flags | os.O_CLOEXEC, 0o666)
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISDIR(mode):
            raise Refusal(f"log {path!r}: {os.strerror(errno.EISDIR)}")
        if stat.S_ISREG(mode):  # in others a run finds nothing again that another could spoil
            fcntl.flock(fd, (fcntl.LOCK_SH if read_only else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise Refusal(f"log {path!r} is in use by another run") from None
    except Refusal:
        os.close(fd)
        raise
    except OSError as error:
        os.close(fd)
        raise Refusal(f"log {path!r} can't be locked where it is: {reason(error)}") from None
    return fd


def _parse(line: bytes) -> object:
    try:
        parsed: object = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return parsed


def _is_text(text: object) -> bool:
    """Whether it stands for bytes. JSON has strings that don't."""
    try:
        return isinstance(text, str) and text.encode("utf-8", "surrogateescape") is not None
    except UnicodeEncodeError:
        return False


def _foreign(path: str, command: str, line: bytes) -> str:
    match _parse(line):
        case {"cmwq": str(other), "version": 1, "target": str(target)} if other == command:
            return f"log {path!r} belongs to another target: {target}"
        case {"cmwq": str(other), "version": 1} if other != command:
            return f"log {path!r} is one of cmwq {other}"
        case {"cmwq": str(other), "version": version} if other == command:
            return f"log {path!r} has version {version!r}, this cmwq writes version 1"
    return f"{path!r} is not a log of cmwq {command}; it was left as it is"


def _short(item: str) -> str:
    return ascii(item if len(item) <= 60 else item[:57] + "...")
