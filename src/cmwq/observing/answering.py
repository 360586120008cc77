"""Answering those who ask at a socket: `docs/monitor.md` has the protocol.

Guarantees, whatever those at the other end do:
- Who is neither this process's user nor root is refused, and nobody can change anything here.
- At most `MOST_CLIENTS` are connected; each has a limit of time and of bytes for what it asks, and for how long it
  takes to read an answer.
- All of them together cause no more than one picture each `FRESH` seconds, and at most a share of `SHARE` of one CPU's
  time for pictures; everybody who asks in between gets the same picture. One client gets an answer every `FRESH`
  seconds at most.
- While nobody is connected, the thread sleeps in `poll` without a limit of time.

One thread runs this. It waits for nobody: all sockets are non-blocking.
"""

from __future__ import annotations

import errno
import json
import os
import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from cmwq._core import log
from cmwq.observing import places

VERSION = 1
MOST_CLIENTS = 32
LONGEST_QUESTION = 4096
"""Bytes."""
QUESTION_TIME = 5.0
"""Seconds within which a question must be complete: the first one from the connection on, others from their first byte.
"""
IDLE_TIME = 60.0
"""Seconds for which a client may keep silent between questions."""
ANSWER_TIME = 30.0
"""Seconds within which an answer must be read."""
FRESH = 0.05
"""Seconds for which a picture serves everybody who asks."""
SHARE = 0.02
"""The share of one CPU's time that pictures may take; but one is never older than `OLDEST`."""
OLDEST = 1.0
"""Seconds."""
MOST_AT_ONCE = 16
"""How many are accepted before others have their turn."""
RESPITE = 1.0
"""Seconds for which nobody is accepted after the system refused a descriptor, and in which a broken loop rests."""
PIECE = 100
"""How many entries of a list are made into JSON at a time. Between two pieces other threads may have the GIL."""
PORTION = 1 << 18
"""Bytes sent to one client before others have their turn."""

NO_SIGNAL = getattr(socket, "MSG_NOSIGNAL", 0)
"""Whoever goes away must not kill a process that has given SIGPIPE its default meaning back."""

Picture = Callable[[bool], dict[str, Any]]


class Client:
    """One connection. It is reading a question, has asked and waits for its turn (`due`), or is given an answer."""

    __slots__ = ("answer", "asked", "buffer", "due", "fd", "last", "leaves", "mark", "socket", "until")

    def __init__(self, connection: socket.socket, now: float) -> None:
        self.socket = connection
        self.fd = connection.fileno()
        self.mark = places.mark_of(self.fd)
        self.buffer = b""
        self.asked: bytes | None = None  # the question that waits for its turn
        self.due = 0.0  # when that is
        self.last = 0.0  # when it was last answered
        self.answer = memoryview(b"")  # what is left of it
        self.leaves = False  # it sends no more, or was sent away: closed once it has its answer
        self.until = now + QUESTION_TIME  # when it is closed unless something happens

    def events(self) -> int:
        """What to wait for. While it waits for its turn only that it goes away, which is always told."""
        return select.POLLOUT if self.answer else 0 if self.asked is not None or self.leaves else select.POLLIN

    def close(self) -> None:
        places.let_go(self.socket, self.mark)


class Answering:
    """The clients of one socket, and the loop that answers them. Only its own thread may use it."""

    def __init__(self, listener: socket.socket, wake: int, picture: Picture, who: Callable[[], dict[str, Any]]) -> None:
        """listener: non-blocking, and listening. wake: a descriptor; when it can be read, the loop ends."""
        self.clients: dict[int, Client] = {}
        self.sockets: tuple[Client, ...] = ()  # the same; replaced, never changed: see `forget`
        self._listener = listener
        self._wake = wake
        self._marks = places.mark_of(listener.fileno()), places.mark_of(wake)
        self._picture = picture
        self._who = who
        self._kept: dict[bool, tuple[float, bytes]] = {}  # with stacks, without: until when a picture is fresh
        self._deaf_until = 0.0  # nobody is accepted before that
        self._failures = 0

    def run(self) -> None:
        """Answer until `wake` can be read. Nothing that is raised within ends it."""
        going_on = True
        while going_on:
            try:
                going_on = self._turn()
            except BaseException:
                self._failures += 1
                if self._failures & (self._failures - 1) == 0:
                    log.exception("the monitor was interrupted, and goes on")
                with suppress(BaseException):
                    self.close()
                    going_on = not readable(self._wake, RESPITE) and self._is_whole()
        self.close()

    def close(self) -> None:
        """Hang up on everybody."""
        for client in list(self.clients.values()):
            self._drop(client)

    def forget(self) -> None:
        """In the child of a fork: close what belongs to the parent. The dictionary may be one that the parent's thread
        was just changing.
        """
        for each in self.sockets:
            each.close()

    # ------------------------------------------------------------------------------- one turn

    def _turn(self) -> bool:
        """Wait until something is to be done, and do it. Returns whether to go on."""
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        now = time.monotonic()
        if now >= self._deaf_until:
            poll.register(self._listener, select.POLLIN)
        for fd, client in self.clients.items():
            poll.register(fd, client.events())
        limit = self._next(now)
        ready = dict(poll.poll(None if limit is None else max(limit - now, 0.0) * 1000 + 1))
        if not self._is_whole() or self._wake in ready:
            return False
        if self._listener.fileno() in ready:
            for _ in range(MOST_AT_ONCE):
                if not self._accept():
                    break
        for fd, event in ready.items():
            client = self.clients.get(fd)  # type: ignore[assignment]
            if client is not None and fd != self._listener.fileno():
                self._tend(client, event)
        now = time.monotonic()
        for client in list(self.clients.values()):
            if client.asked is not None and client.due <= now:
                self._answer(client, client.asked)
            elif client.until <= now:
                self._drop(client)
        return True

    def _is_whole(self) -> bool:
        """False: the program has closed all descriptors, as daemons do."""
        return (places.mark_of(self._listener.fileno()), places.mark_of(self._wake)) == self._marks

    def _next(self, now: float) -> float | None:
        """The time at which something is to be done even if nothing happens before; None: never."""
        times = [client.due if client.asked is not None else client.until for client in self.clients.values()]
        if self._deaf_until > now:
            times.append(self._deaf_until)
        return min(times, default=None)

    def _accept(self) -> bool:
        """Take one who has connected. Returns whether there may be another."""
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return False
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                self._deaf_until = time.monotonic() + RESPITE  # who waits there would wake us at once, for nothing
                return False
            raise
        connection.setblocking(False)
        if hasattr(socket, "SO_NOSIGPIPE"):  # where there is no MSG_NOSIGNAL
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_NOSIGPIPE, 1)
        client = Client(connection, time.monotonic())
        self.clients[client.fd] = client
        self.sockets = (*self.sockets, client)
        peer = places.peer_of(connection)
        if peer is None or peer.uid not in (0, os.geteuid()):
            self._send_away(client, f"this process answers its own user ({os.geteuid()}) and root only")
        elif len(self.clients) > MOST_CLIENTS:
            self._send_away(client, f"busy: {MOST_CLIENTS} clients are connected, and there may be no more; try later")
        return True

    def _tend(self, client: Client, event: int) -> None:
        try:
            gone = event & (select.POLLERR | select.POLLNVAL) or (event & select.POLLHUP and not event & select.POLLIN)
            if gone or places.mark_of(client.fd) != client.mark:
                self._drop(client)
            elif event & select.POLLOUT:
                self._send(client)
            elif event & select.POLLIN and not client.leaves:
                self._receive(client)
        except BlockingIOError:
            pass
        except OSError:  # it went away
            self._drop(client)

    def _drop(self, client: Client) -> None:
        client.close()
        self.clients.pop(client.fd, None)
        self.sockets = tuple(self.clients.values())

    # ------------------------------------------------------------------------------- questions

    def _receive(self, client: Client) -> None:
        received = client.socket.recv(LONGEST_QUESTION + 1)
        if not received:
            client.leaves = True
            self._drop(client)  # an incomplete question gets no answer
            return
        if not client.buffer and client.last:
            client.until = time.monotonic() + QUESTION_TIME
        client.buffer += received
        self._take_question(client)

    def _take_question(self, client: Client) -> None:
        """If a question is complete, let it wait for its turn."""
        question, newline, rest = client.buffer.partition(b"\n")
        if len(question) > LONGEST_QUESTION:
            self._send_away(client, f"a question has at most {LONGEST_QUESTION} bytes, and is one line")
        elif newline:
            client.buffer, client.asked = rest, question
            client.due = client.last + FRESH

    def _answer(self, client: Client, question: bytes) -> None:
        client.asked = None
        try:
            answer = self._answer_to(question)
        except Exception as error:
            log.debug("the monitor could not answer", exc_info=True)
            answer = _error(f"it could not be found out: {type(error).__name__}: {error}")
        self._give(client, answer)

    def _answer_to(self, question: bytes) -> bytes:
        try:
            asked = json.loads(question)
        except (ValueError, RecursionError):
            asked = None
        if not isinstance(asked, dict):
            return _error('a question is a JSON object in one line, such as {"version": 1, "ask": "picture"}')
        if asked.get("version", VERSION) != VERSION:
            return _error(f"this process answers version {VERSION} of the protocol only")
        if asked.get("ask") == "who":
            return _line("who", self._who())
        if asked.get("ask") == "picture":
            return self._fresh_picture(asked.get("stacks") is True)
        return _error('there are two questions: "ask" may be "picture" or "who"')

    def _fresh_picture(self, stacks: bool) -> bytes:
        until, line = self._kept.get(stacks, (0.0, b""))
        if time.monotonic() >= until:
            begun = time.thread_time()
            line = _line("picture", self._picture(stacks))
            rest = min(max(FRESH, (time.thread_time() - begun) / SHARE), OLDEST)
            self._kept = {stacks: (time.monotonic() + rest, line), **self._others(stacks)}
        return line

    def _others(self, stacks: bool) -> dict[bool, tuple[float, bytes]]:
        """The other picture, if it is still fresh: no memory is kept for one that is not."""
        now = time.monotonic()
        return {key: kept for key, kept in self._kept.items() if key is not stacks and kept[0] > now}

    # ------------------------------------------------------------------------------- answers

    def _give(self, client: Client, answer: bytes) -> None:
        client.answer = memoryview(answer)
        client.last = time.monotonic()
        client.until = client.last + ANSWER_TIME
        try:
            self._send(client)
        except BlockingIOError:
            pass
        except OSError:
            self._drop(client)

    def _send(self, client: Client) -> None:
        sent = client.socket.send(client.answer[:PORTION], NO_SIGNAL)
        client.answer = client.answer[sent:]
        if client.answer:
            return
        if client.leaves:
            self._drop(client)
        else:
            client.until = time.monotonic() + (QUESTION_TIME if client.buffer else IDLE_TIME)
            self._take_question(client)

    def _send_away(self, client: Client, why: str) -> None:
        client.leaves = True
        self._give(client, _error(why))


def readable(fd: int, seconds: float) -> bool:
    """Wait for so many seconds at most. (`select` would know only the first 1,024 descriptors.)"""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def _error(why: str) -> bytes:
    return _line("error", why)


def _line(name: str, value: object) -> bytes:
    """An answer: one line of JSON, in ASCII."""
    return b"".join([b'{"version":%d,"%s":' % (VERSION, name.encode()), *_pieces(value), b"}\n"])


def _pieces(value: object) -> Iterator[bytes]:
    """JSON in pieces. A single call for a large picture would keep the GIL for as long as all of it takes."""
    if isinstance(value, dict):
        for number, (key, inner) in enumerate(value.items()):
            yield (b"," if number else b"{") + _json(str(key)) + b":"
            yield from _pieces(inner)
        yield b"}" if value else b"{}"
    elif isinstance(value, list | tuple) and len(value) > PIECE:
        for begin in range(0, len(value), PIECE):
            yield (b"," if begin else b"[") + _json(value[begin : begin + PIECE])[1:-1]
        yield b"]"
    else:
        yield _json(value)


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode("ascii")
