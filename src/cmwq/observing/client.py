"""Asking processes for their picture, from outside: `docs/monitor.md` has the protocol.

Guarantees: whatever the process at the other end does, a call ends within its limit of time, and takes no more than
`LONGEST_ANSWER` bytes. A number that is used again, or belongs to another container, is not mistaken: the system says
which process listens. Importing this module starts nothing, and no runtime is needed.
"""

from __future__ import annotations

import errno
import json
import os
import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any

from cmwq._errors import CmwqError
from cmwq._workqueue.snapshot import MAX_WORDS
from cmwq.observing import places
from cmwq.observing.answering import NO_SIGNAL, VERSION

if TYPE_CHECKING:
    from types import TracebackType

TIMEOUT = 10.0
"""Seconds in which an answer must come, by default."""
LONGEST_ANSWER = 256 << 20
"""Bytes."""
LISTED_WITHIN = 2.0
"""Seconds that `processes` waits for all answers together."""
BUSY = 0.01
"""Seconds after which a process that has too many callers is called again."""
MOST_LISTED = 500
"""How many processes of one folder are asked who they are."""


class NotAnswering(CmwqError, ConnectionError):
    """The process cannot be asked. The text says why, and what helps."""


@dataclass(frozen=True, slots=True)
class Process:
    """A process that has a monitor."""

    pid: int
    command: tuple[str, ...]
    """Its program and arguments, each cut to 200 characters."""
    path: str
    """The path of its socket."""
    since: float
    """When it began, in seconds since the epoch; 0: it is not known."""
    answers: bool = True
    """False: it has a socket, and did not answer. It is stopped, or native code keeps the GIL."""


class Connection:
    """A connection to the monitor of one process. `connect` makes it.

    Thread-safe: threads that ask at the same time are answered one after the other. In the child of a fork it is not
    to be used.
    """

    def __init__(self, path: str, pid: int, timeout: float) -> None:
        self.path = path
        self.pid = pid
        self._timeout = timeout
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._closed = False
        self._reach()

    def picture(self, stacks: bool = False) -> dict[str, Any]:
        """The process's picture, as `Snapshot.to_dict()` gives it there. stacks: with the stack of each worker.

        Pictures are at most a second old, and a connection gets 20 of them in a second at most. If the process has hung
        up because nothing was asked for long, it is called again. Raises NotAnswering, for example if the process has
        ended, after 10 seconds at most, and if the connection was closed.
        """
        picture: dict[str, Any] = self._asked("picture", stacks=stacks)
        return picture

    def who(self) -> dict[str, Any]:
        """The process's `pid` and `command`, and `since`, the time when it began. Raises as `picture` does."""
        answer: dict[str, Any] = self._asked("who")
        return answer

    def close(self) -> None:
        """Hang up. Does no harm if it was called before; a thread that waits for an answer gets NotAnswering."""
        self._closed = True
        reached, self._socket = self._socket, None
        if reached is not None:
            with suppress(OSError):
                reached.shutdown(socket.SHUT_RDWR)
            reached.close()

    def __enter__(self) -> Connection:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<cmwq connection to process {self.pid} at {self.path}{', closed' * self._closed}>"

    # ------------------------------------------------------------------------------- inside

    def _reach(self) -> None:
        """Call the process. Raises NotAnswering."""
        until = time.monotonic() + self._timeout
        while True:
            try:
                reached = places.dial(self.path)
                break
            except BlockingIOError as error:  # too many wait there to be accepted
                if time.monotonic() >= until:
                    raise NotAnswering(_why_silent(self.pid, self._timeout)) from error
            except OSError as error:
                raise NotAnswering(_why_not_reached(self.path, self.pid, error)) from error
            time.sleep(BUSY)
        peer = places.peer_of(reached)
        if peer is not None and peer.pid and self.pid and peer.pid != self.pid:
            reached.close()
            raise NotAnswering(f"process {peer.pid} listens at {self.path}, and not process {self.pid}")
        if not self.pid and peer is not None:
            self.pid = peer.pid
        self._socket = reached

    def _asked(self, ask: str, **options: bool) -> Any:
        question = json.dumps({"version": VERSION, "ask": ask, **options}).encode() + b"\n"
        with self._lock:
            until = time.monotonic() + self._timeout
            line = b""
            if self._socket is not None:
                line = self._exchange(question, until)
            if not line:  # it has hung up meanwhile, as after a long silence
                self._hang_up()
                if self._closed:
                    raise NotAnswering(f"this connection to process {self.pid} is closed")
                self._reach()
                line = self._exchange(question, until)
        return self._read(line, ask)

    def _hang_up(self) -> None:
        reached, self._socket = self._socket, None
        if reached is not None:
            reached.close()

    def _exchange(self, question: bytes, until: float) -> bytes:
        """Ask, and return the answer without its end. Empty: the process hung up before it said anything."""
        reached = self._socket
        assert reached is not None
        received: list[bytes] = []
        size = 0
        try:
            with suppress(BrokenPipeError):  # it may have sent us away, and says why
                reached.send(question, NO_SIGNAL)
            while not (received and received[-1].endswith(b"\n")):
                self._await(reached, until)
                received.append(reached.recv(1 << 20))
                size += len(received[-1])
                if not received[-1]:
                    if size:
                        raise NotAnswering(f"process {self.pid} ended in the middle of its answer")
                    return b""
                if size > LONGEST_ANSWER:
                    raise NotAnswering(f"process {self.pid} sent more than {LONGEST_ANSWER >> 20} MiB, and no answer")
        except NotAnswering:
            self._hang_up()
            raise
        except (OSError, ValueError):  # ValueError: closed by another thread
            return b""
        except BaseException:  # Ctrl-C: the answer still to come is not one to the next question
            self._hang_up()
            raise
        return b"".join(received)

    def _await(self, reached: socket.socket, until: float) -> None:
        poll = select.poll()
        poll.register(reached, select.POLLIN)
        if not poll.poll(max(until - time.monotonic(), 0) * 1000):
            raise NotAnswering(_why_silent(self.pid, self._timeout))

    def _read(self, line: bytes, ask: str) -> Any:
        if not line:
            raise NotAnswering(f"process {self.pid} hung up without an answer: it ended, or its monitor was closed")
        try:
            answer = json.loads(line)
            if isinstance(answer.get(ask), dict):
                return answer[ask]
            error = str(answer["error"])
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise NotAnswering(
                f"what listens at {self.path} is no monitor of cmwq: its answer makes no sense"
            ) from None
        raise NotAnswering(f"process {self.pid} gives no answer: {error}")


def connect(pid: int | None = None, path: str | None = None, *, timeout: float = TIMEOUT) -> Connection:
    """Connect to the monitor of a process, given by its number or by the path of its socket.

    With neither, it is the only process of this user that has a monitor. timeout: seconds in which each answer must
    come. Raises NotAnswering, with a sentence that says why and what helps.
    """
    if path is not None:
        return Connection(os.path.abspath(path), pid or 0, timeout)
    if pid is None:
        found = [process for process in processes() if process.pid != os.getpid()]
        if len(found) == 1:
            return Connection(found[0].path, found[0].pid, timeout)
        if found:
            raise NotAnswering(f"there are several processes: {', '.join(str(process.pid) for process in found)}")
        raise NotAnswering("no process has a monitor: start one with CMWQ_MONITOR=1, or call cmwq.monitor() in it")
    reasons: list[NotAnswering] = []
    for _, found_path in _found(pid):
        try:
            return Connection(found_path, pid, timeout)
        except NotAnswering as error:
            reasons.append(error)
    raise NotAnswering(_why_none(pid)) from (reasons[0] if reasons else None)


def processes() -> list[Process]:
    """The processes of this user that have a monitor, by number; for root, those of all users that can be found.

    Sockets that were left behind are removed on the way. It takes 2 seconds at most for all, even if some are stopped;
    these have `answers` False.
    """
    until = time.monotonic() + LISTED_WITHIN
    asked: list[tuple[socket.socket, int, str]] = []
    busy: list[Process] = []  # nobody accepts there
    question = json.dumps({"version": VERSION, "ask": "who"}).encode() + b"\n"
    for folder in _all_folders():
        places.sweep(folder)
        for number, path in list(places.sockets(folder))[:MOST_LISTED]:
            try:
                reached = places.dial(path)
            except BlockingIOError:
                busy.append(Process(number, _command_of(number), path, 0.0, answers=False))
                continue
            except OSError:
                continue
            peer = places.peer_of(reached)
            with suppress(OSError):
                reached.send(question, NO_SIGNAL)
            asked.append((reached, (peer.pid if peer is not None else 0) or number, path))
    found = [_process(reached, pid, path, until) for reached, pid, path in asked]
    return sorted((process for process in (*found, *busy) if process is not None), key=lambda process: process.pid)


def _process(reached: socket.socket, pid: int, path: str, until: float) -> Process | None:
    """The process at the other end; None: it has just ended, or closed its monitor."""
    with reached:
        received = b""
        while not received.endswith(b"\n") and len(received) < 1 << 20:
            poll = select.poll()
            poll.register(reached, select.POLLIN)
            if not poll.poll(max(until - time.monotonic(), 0) * 1000):
                return Process(pid, _command_of(pid), path, 0.0, answers=False)
            try:
                more = reached.recv(1 << 16)
            except OSError:
                return None
            if not more:
                return None
            received += more
    try:
        who = json.loads(received)["who"]
        since = float(who["since"])
        if isfinite(since):
            return Process(pid, tuple(str(word)[:200] for word in who["command"][:MAX_WORDS]), path, since)
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        pass
    return Process(pid, _command_of(pid), path, 0.0, answers=False)


def _found(pid: int) -> Iterator[tuple[int, str]]:
    """Sockets that may be the process's: those with its number first, then all others, for it may have another number
    where it runs, and other folders.
    """
    uid = _user_of(pid)
    user = os.geteuid() if uid is None else uid
    there = [each for folder in places.folders(user) for each in places.sockets(folder)]
    yield from (each for each in there if each[0] == pid)
    tried = {path for number, path in there if number == pid}
    there += [each for folder in places.folders_of(pid, user) for each in places.sockets(folder)]
    yield from ((number, path) for number, path in there if path not in tried and _listener(path) == pid)


def _listener(path: str) -> int:
    try:
        with places.dial(path) as reached:
            peer = places.peer_of(reached)
    except OSError:
        return 0
    return 0 if peer is None else peer.pid


def _all_folders() -> list[str]:
    if os.geteuid():
        return places.folders(os.geteuid())
    users = {0}
    with suppress(OSError):
        users |= {uid for uid in map(_user_of, map(int, filter(str.isdigit, os.listdir("/proc")))) if uid is not None}
    return [folder for uid in sorted(users) for folder in places.folders(uid)]


def _user_of(pid: int) -> int | None:
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return None


def _command_of(pid: int) -> tuple[str, ...]:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read(20_000).rstrip(b"\0").split(b"\0")
    except OSError:
        return ()
    return tuple(os.fsdecode(word)[:200] for word in words)


# ------------------------------------------------------------------------------- why there is no answer


def _why_none(pid: int) -> str:
    """Why no socket of this process was found, in a sentence that says what helps."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return f"there is no process {pid}"
    except PermissionError:
        return f"process {pid} belongs to another user: ask as that user, or as root"
    return (
        f"process {pid} has no monitor: start it with CMWQ_MONITOR=1, or call cmwq.monitor() in it (`cmwq ps` lists "
        "those that have one)"
    )


def _why_not_reached(path: str, pid: int, error: OSError) -> str:
    whom = f"process {pid}" if pid else path
    reasons = {
        errno.ECONNREFUSED: f"{whom} has ended, and has left its socket behind",
        errno.ENOENT: f"{whom}: there is no socket {path}",
        errno.EACCES: f"{whom} belongs to another user: ask as that user, or as root",
        errno.ENOTSOCK: f"{path} is no socket",
    }
    return reasons.get(error.errno or 0) or f"{whom} can't be reached at {path}: {error.strerror or error}"


def _why_silent(pid: int, seconds: float) -> str:
    """Why a process that has a monitor says nothing."""
    state = ""
    with suppress(OSError, IndexError), open(f"/proc/{pid}/stat", "rb") as file:
        state = file.read().rpartition(b") ")[2].split()[0].decode()
    if state in ("T", "t"):
        return f"process {pid} is stopped, and cannot answer: let it go on with `kill -CONT {pid}`"
    return (
        f"process {pid} did not answer within {seconds:g} s: native code keeps the GIL there, or the machine "
        f"is overloaded; `py-spy dump --native --pid {pid}` shows where it is"
    )
