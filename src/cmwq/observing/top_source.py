"""Where `cmwq top` gets its pictures: from a process that answers, or from a file in which they were recorded.

Guarantees: `picture` returns a picture that can be shown, or raises `Over` (no picture will ever come) or `Silent`
(none came now, and asking again may help), with a sentence for the reader. A process is not taken for another that got
its number later.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from cmwq._errors import CmwqError

Picture = dict[str, Any]

VERSION = 1


class Over(Exception):
    """No more pictures will come. The text says why."""


class Silent(Exception):
    """No picture came now. The text says why. Asking again may help."""


class Source(Protocol):
    """Who gives pictures. Used by one thread at a time, but `close` may be called by another."""

    def picture(self, stacks: bool = False) -> Picture:
        """The next picture. stacks: with the stacks of the workers. Raises Over or Silent."""

    def close(self) -> None:
        """Give up what it holds. A call of `picture` that waits ends soon."""


class Live:
    """A process that answers on its socket. pid: its number. path: its socket, where the number does not lead to it.

    Raises NotAnswering (a CmwqError) if it does not answer at the beginning.
    """

    def __init__(self, pid: int | None = None, path: str | None = None) -> None:
        self._client = import_module("cmwq.observing.client")  # only here: a recording needs no socket
        self._where = (pid, path)
        self._connection: Any = self._client.connect(pid, path)
        self._pid = pid
        self._born = "" if pid is None else _born(pid)

    def picture(self, stacks: bool = False) -> Picture:
        try:
            if self._connection is None:
                self._check_alive()
                self._connection = self._client.connect(*self._where)
            found: Picture = self._connection.picture(stacks=stacks)
        except (CmwqError, OSError, EOFError) as error:
            self.close()
            self._check_alive()
            raise Silent(str(error) or type(error).__name__) from None
        if self._pid is None:
            self._pid = int(found["pid"])
            self._where, self._born = (self._pid, self._where[1]), _born(self._pid)
        return checked(found)

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _check_alive(self) -> None:
        if self._pid is not None and self._born and _born(self._pid) != self._born:
            raise Over(f"process {self._pid} has ended")


class Replay:
    """A file with a picture in JSON on each line, as `--record` writes it. Raises OSError, or Over if it has none."""

    def __init__(self, path: Path) -> None:
        self._file = path.open(encoding="utf-8")
        self._line = 0
        try:
            self._next: Picture | Over = self._read()
        except Over:
            self._file.close()
            raise

    def picture(self, stacks: bool = False) -> Picture:
        found = self._next
        if isinstance(found, Over):
            raise found
        try:
            self._next = self._read()
        except Over as over:
            self._next = over
        return found

    def close(self) -> None:
        self._file.close()

    def _read(self) -> Picture:
        try:
            line = self._file.readline()
            self._line += 1
            if not line:
                raise Over("the recording has ended" if self._line > 1 else "the recording is empty")
            found = json.loads(line)
        except (ValueError, RecursionError):  # a file that was closed, too
            raise Over(f"line {self._line} of the recording is not a picture in JSON") from None
        if not isinstance(found, dict) or "pools" not in found:
            raise Over(f"line {self._line} of the recording is not a picture")
        return checked(found)


class Recorded:
    """Another source, each of whose pictures is also written to a file, for `Replay`."""

    def __init__(self, source: Source, path: Path) -> None:
        self._source = source
        self._file = path.open("w", encoding="utf-8")

    def picture(self, stacks: bool = False) -> Picture:
        found = self._source.picture(stacks)
        try:
            self._file.write(json.dumps(found, separators=(",", ":")) + "\n")
            self._file.flush()
        except (OSError, ValueError) as error:
            raise Over(f"the recording can't be written: {error}") from None
        return found

    def close(self) -> None:
        self._source.close()
        with suppress(OSError):  # what could not be written was told
            self._file.close()


def checked(picture: Picture) -> Picture:
    """The picture, if it is of the version that is known here. Raises Over."""
    if picture.get("version", VERSION) != VERSION:
        raise Over(
            f"the process writes version {picture['version']} of the picture, and this reads version {VERSION}: "
            "use the cmwq that the process uses"
        )
    return picture


def _born(pid: int) -> str:
    """When the process began, as the system counts it: tells it from a later one of the same number. Empty: it is not
    there, or has ended and is only waited for.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return str(pid) if not os.path.isdir("/proc/self") else ""
    return "" if fields[0] in "ZX" else fields[19]
