"""The log of `cmwq map --resume`: one JSON line per completed item, after a first line that names the target.

Guarantees: `record` returns when the kernel has the line, so it survives the death of the process (not of the
machine). A last line without its end was cut and is dropped. Nothing is changed in a file that is no log of this
target. Two runs cannot share a log at the same time. Once a write failed, none is tried again: a line after a cut one
would spoil both.

Assumes: POSIX `O_APPEND`. In memory: four numbers per logged item, not the results.
"""

from __future__ import annotations

import json
import os
import stat
import threading
from typing import Any, NamedTuple

from cmwq.cli.output import Refusal, reason, write_all


class Entry(NamedTuple):
    offset: int
    length: int
    ok: bool
    item: int  # hash


class Log:
    """Opened for this target, and locked; raises Refusal where it is unusable or not this target's."""

    def __init__(self, path: str, target: str) -> None:
        self.path = path
        self.entries: dict[int, Entry] = {}
        self._lock = threading.Lock()  # one line at a time
        self._failure: OSError | None = None
        try:
            self._fd = _open(path)
            self._begin(json.dumps({"cmwq": "map", "version": 1, "target": target}).encode() + b"\n")
        except OSError as error:
            raise Refusal(f"log {path!r}: {reason(error).removeprefix(path + ': ')}") from error

    @property
    def span(self) -> int:
        """One more than the last index in the log."""
        return max(self.entries, default=-1) + 1

    def check(self, items: list[str]) -> None:
        """Refuse a log that is not about these items; `items` are the first `span` of the input."""
        other = f"log {self.path!r} belongs to other items"
        for index, entry in sorted(self.entries.items()):
            if index >= len(items):
                raise Refusal(f"{other}: it has item {index + 1}, the input has {len(items)}")
            if hash(items[index]) != entry.item:
                logged = self._read(entry)["item"]
                raise Refusal(f"{other}: item {index + 1} is {_short(items[index])}, there {_short(logged)}")

    def succeeded(self, index: int) -> bool:
        entry = self.entries.get(index)
        return entry is not None and entry.ok

    def result(self, index: int) -> str:
        """The result of an item that succeeded, as JSON."""
        return json.dumps(self._read(self.entries[index])["result"])

    def record(self, index: int, item: str, result: str | None, error: str | None) -> None:
        """Append one completed item; `result` is JSON. Raises OSError, and from then on always, for the same reason."""
        head = json.dumps({"index": index, "item": item, "ok": error is None})[:-1]
        tail = f'"result": {result}' if error is None else f'"error": {json.dumps(error)}'
        with self._lock:
            if self._failure is not None:
                raise OSError(*self._failure.args)
            try:
                write_all(self._fd, f"{head}, {tail}}}\n".encode("ascii"))
            except OSError as failure:
                self._failure = failure
                raise

    def stop(self, timeout: float) -> None:
        """Let the line that is being written end, and no other begin."""
        self._lock.acquire(timeout=timeout)  # never released: for a process about to leave

    def close(self) -> None:
        os.close(self._fd)

    def _begin(self, header: bytes) -> None:
        if not stat.S_ISREG(os.fstat(self._fd).st_mode):  # /dev/null, a pipe: nothing to go on from
            write_all(self._fd, header)
            return
        end = 0
        with open(self._fd, "rb", closefd=False) as file:
            for number, line in enumerate(file, 1):
                if number == 1 and line != header and not (header.startswith(line) and not line.endswith(b"\n")):
                    raise Refusal(_foreign(self.path, line, header))
                if not line.endswith(b"\n"):
                    break
                if number > 1:
                    self._load(number, end, line)
                end += len(line)
        if os.fstat(self._fd).st_size != end:
            os.ftruncate(self._fd, end)
        if end == 0:
            write_all(self._fd, header)

    def _load(self, number: int, offset: int, line: bytes) -> None:
        match _parse(line):
            case {"index": int(index), "item": str(item), "ok": True, "result": _} if index >= 0:
                self.entries[index] = Entry(offset, len(line), True, hash(item))
            case {"index": int(index), "item": str(item), "ok": False} if index >= 0:
                self.entries[index] = Entry(offset, len(line), False, hash(item))
            case _:
                raise Refusal(f"log {self.path!r}: line {number} is damaged; repair or remove it, or use another log")

    def _read(self, entry: Entry) -> dict[str, Any]:
        parsed: dict[str, Any] = json.loads(os.pread(self._fd, entry.length, entry.offset))
        return parsed


def _open(path: str) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    try:
        import fcntl

        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Refusal(f"log {path!r} is in use by another run") from None
    except (ImportError, OSError):  # no such call, or a file system without locks: the user's care has to do
        pass
    return fd


def _parse(line: bytes) -> object:
    try:
        parsed: object = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return parsed


def _foreign(path: str, line: bytes, header: bytes) -> str:
    match _parse(line):
        case {"cmwq": "map", "version": 1, "target": str(target)}:
            return f"log {path!r} belongs to another target: {target}"
        case {"cmwq": "map", "version": version}:
            return f"log {path!r} has version {version!r}, this cmwq writes version 1"
    return f"{path!r} is not a log of cmwq map; it was left as it is"


def _short(item: str) -> str:
    return ascii(item if len(item) <= 60 else item[:57] + "...")
