"""Where pictures come from: the sockets of processes that can be watched, or a file of recorded pictures.

Guarantees: whatever goes wrong with a source is raised as `NoPicture`, with a sentence that a reader of the page can
use; `Over` says that nothing more will come. A recording is read piece by piece, so it may be larger than memory.

Each link is used by one thread. Only `close` may be called by another, and it ends a picture that is waited for.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from cmwq._errors import CmwqError

Picture = dict[str, Any]
LONGEST_PAUSE = 10.0  # seconds: a longer pause of a recording is cut to this
PIECE = 1 << 20  # bytes of a recording that are read at a time
LARGEST = 64 << 20  # characters of one recorded picture


class NoPicture(Exception):
    """The source gives no picture just now. The text is a sentence that says why."""


class Over(Exception):
    """The source gives no picture any more. The text is a sentence that says why."""


class Link(Protocol):
    """A way to one process."""

    paced: bool
    """True: `picture` itself waits until the next one is due."""

    def picture(self, stacks: bool) -> Picture:
        """Return the picture of this moment. Raises NoPicture or Over."""

    def close(self) -> None:
        """End the link. May be called more than once, and by any thread."""


@dataclass(frozen=True, slots=True)
class Target:
    """A process that can be watched."""

    pid: int
    command: str
    since: float = 0.0
    """Epoch seconds at which it began, as far as the source knows."""
    path: str | None = None
    source: Source | None = field(default=None, compare=False, repr=False)
    remote: bool = False
    """It runs on another machine, or is to be looked at as if it did: its pid means nothing here."""

    def connect(self) -> Link:
        """Open a link. Raises NoPicture or Over."""
        assert self.source is not None
        return self.source.connect(self)


class Source(Protocol):
    """What knows of processes."""

    def targets(self) -> list[Target]:
        """Return the processes that can be watched now. Raises NoPicture."""

    def connect(self, target: Target) -> Link:
        """Open a link to one of them. Raises NoPicture or Over."""


# ----------------------------------------------------------------------------------- sockets


class Sockets:
    """The processes of this user that called `cmwq.monitor()`. `client` is a module like `cmwq.observing.client`."""

    def __init__(self, client: Any, pid: int | None = None) -> None:
        self._client = client
        self._pid = pid

    def targets(self) -> list[Target]:
        """All that can be asked, or the one whose pid was given, which is not looked for but taken as it is."""
        try:
            found = self._client.processes()
        except (CmwqError, OSError) as error:
            raise NoPicture(str(error)) from error
        targets = [
            Target(int(each.pid), _command(each.command), _epoch(each.since), each.path, self)
            for each in found
            if self._pid in (None, each.pid) and each.pid != os.getpid()
        ]
        if self._pid is not None and not targets:
            return [Target(self._pid, "", source=self)]
        return targets

    def connect(self, target: Target) -> Link:
        try:
            if target.path is not None:
                return _Socket(self._client.connect(path=target.path))
            return _Socket(self._client.connect(pid=target.pid))
        except (CmwqError, OSError) as error:
            raise NoPicture(str(error)) from error


class _Socket:
    paced = False

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def picture(self, stacks: bool) -> Picture:
        try:
            picture: Picture = self._connection.picture(stacks=stacks)
        except (CmwqError, OSError, ValueError) as error:
            raise NoPicture(str(error)) from error
        return picture

    def close(self) -> None:
        with contextlib.suppress(CmwqError, OSError):  # it is closed, whatever is said
            self._connection.close()


def _command(command: object) -> str:
    return command if isinstance(command, str) else shlex.join(map(str, command))  # type: ignore[call-overload]


def _epoch(since: object) -> float:
    return float(since) if isinstance(since, int | float) else 0.0


# ----------------------------------------------------------------------------------- recordings


class Recording:
    """A file of pictures, one JSON object after the other, as `cmwq dump PID --json` prints them.

    It is played at the pace at which it was recorded, by the pictures' own times.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        first = next(pictures_in(path), None)
        if first is None:
            raise NoPicture(f"there is no picture in {path}")
        pid, command = first.get("pid", 0), first.get("command", [])
        if type(pid) is not int or not isinstance(command, str | list):
            raise NoPicture(f"{path} is no recording: its first picture has no process that can be shown")
        self._target = Target(pid, _command(command), source=self)

    def targets(self) -> list[Target]:
        return [self._target]

    def connect(self, target: Target) -> Link:
        return _Player(pictures_in(self._path))


class _Player:
    paced = True

    def __init__(self, pictures: Iterator[Picture]) -> None:
        self._pictures = pictures
        self._before: float | None = None
        self._closed = threading.Event()

    def picture(self, stacks: bool) -> Picture:
        try:
            picture = next(self._pictures, None)
        except NoPicture as error:
            raise Over(f"{error}. This is the last picture before it.") from error
        if picture is None:
            raise Over("The recording has ended. This is its last picture.")
        time = _epoch(picture.get("time"))
        if self._before is not None:
            self._closed.wait(min(max(time - self._before, 0.0), LONGEST_PAUSE))
        self._before = time
        if self._closed.is_set():
            raise Over("The dashboard has ended.")
        return picture

    def close(self) -> None:
        self._closed.set()


def pictures_in(path: Path) -> Iterator[Picture]:
    """Yield the pictures of a file. Raises NoPicture where the file can't be read or isn't made of JSON objects."""
    decoder = json.JSONDecoder()
    try:
        with path.open(encoding="utf-8") as file:
            text = ""
            for piece in iter(lambda: file.read(PIECE), ""):
                text += piece
                text = yield from _complete(decoder, text, path)
                if len(text) > LARGEST:
                    raise NoPicture(f"{path} holds something that is too large for a picture")
            if text.strip():
                raise NoPicture(f"{path} ends in the middle of a picture, or holds something that is no JSON object")
    except (OSError, UnicodeDecodeError) as error:
        raise NoPicture(f"{path} can't be read: {error}") from error


def _complete(decoder: json.JSONDecoder, text: str, path: Path) -> Generator[Picture, None, str]:
    """Yield the objects that the text holds completely; return what is left of it."""
    begin = 0
    while True:
        while begin < len(text) and text[begin] in " \t\r\n,":
            begin += 1
        if begin < len(text) and text[begin] != "{":
            raise NoPicture(f"{path} is no recording: there is {text[begin : begin + 20]!r} where a picture should be")
        try:
            picture, begin = decoder.raw_decode(text, begin)
        except ValueError:
            return text[begin:]
        except RecursionError:
            raise NoPicture(f"{path} is no recording: there are too many objects within one another") from None
        yield picture
