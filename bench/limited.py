"""A loopback server, in a process of its own, that can take only so much: by its places, or by slowing down.

Its one job: be the resource that a learned limit is for. A request is one letter and a number in three bytes, and comes
back as it is when it was served. `s`: it needs one of the places for so many microseconds; without one it waits its
turn. `w`: alone it takes so many microseconds, and with n others inside 1 + (n / knee) ** 2 times as many. `p`, `k`: so
many places, such a knee from now on. It ends when its standard input ends. Run as a program it prints its port.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections import deque
from contextlib import AbstractContextManager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
import loopback

PLACES, KNEE = 20, 8


class _Service:
    def __init__(self) -> None:
        self.places, self.knee = PLACES, KNEE
        self.served = self.inside = 0
        self.line: deque[tuple[asyncio.Transport, bytes]] = deque()

    def take(self, transport: asyncio.Transport, request: bytes) -> None:
        kind, number = request[:1], int.from_bytes(request[1:])
        if kind == b"s":
            self.line.append((transport, request))
        elif kind == b"w":
            self.inside += 1
            seconds = number / 1e6 * (1 + (self.inside / self.knee) ** 2)
            asyncio.get_running_loop().call_later(seconds, self.leave, transport, request)
        else:
            self.places, self.knee = (number, self.knee) if kind == b"p" else (self.places, number)
            transport.write(request)
        self.serve()

    def serve(self) -> None:
        while self.line and self.served < self.places:
            self.served += 1
            transport, request = self.line.popleft()
            asyncio.get_running_loop().call_later(int.from_bytes(request[1:]) / 1e6, self.done, transport, request)

    def done(self, transport: asyncio.Transport, request: bytes) -> None:
        self.served -= 1
        transport.write(request)
        self.serve()

    def leave(self, transport: asyncio.Transport, request: bytes) -> None:
        self.inside -= 1
        transport.write(request)


service = _Service()


class _Connection(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.received = b""

    def data_received(self, data: bytes) -> None:
        self.received += data
        while len(self.received) >= 4:
            request, self.received = self.received[:4], self.received[4:]
            service.take(self.transport, request)


def running() -> AbstractContextManager[int]:
    """Start the server; yields its port; stops it whatever happens."""
    return loopback.running(__file__)


class Client:
    """A connection. For one thread at a time."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, kind: str, number: int) -> None:
        """Send a request, and wait for the answer."""
        self._socket.sendall(kind.encode() + number.to_bytes(3))
        missing = 4
        while missing:
            received = len(self._socket.recv(missing))
            if not received:
                raise ConnectionError("the server has gone")
            missing -= received

    def close(self) -> None:
        self._socket.close()


if __name__ == "__main__":
    asyncio.run(loopback.serve(_Connection))
