"""A loopback HTTP server with the latency of a real one, in a process of its own.

Its one job: answer `GET /PATH` after a delay that depends on PATH alone (log-normal, median 8 ms, at most 150 ms), so
that every contender waits for exactly the same. It ends when its standard input ends: a parent that was killed closes
that pipe too, so no server is ever left behind. Run as a program it prints its port; `running()` is for the parent.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from statistics import NormalDist

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
import loopback

MEDIAN = 0.008
SIGMA = 0.8
CEILING = 0.150
_NORMAL = NormalDist()


def latency_of(path: str) -> float:
    """Seconds this path takes to answer: the same in every process, on every machine."""
    draw = int.from_bytes(hashlib.sha256(path.encode()).digest()[:6])
    return min(CEILING, MEDIAN * math.exp(SIGMA * _NORMAL.inv_cdf((draw + 0.5) / 2**48)))


def receipt_of(path: str) -> str:
    return hashlib.sha256(b"receipt " + path.encode()).hexdigest()[:16]


class _Connection(asyncio.Protocol):
    """One keep-alive connection; requests on it come one at a time."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.received = b""

    def data_received(self, data: bytes) -> None:
        self.received += data
        while b"\r\n\r\n" in self.received:
            head, _, self.received = self.received.partition(b"\r\n\r\n")
            path = head.split(b" ", 2)[1].decode("ascii")
            asyncio.get_running_loop().call_later(latency_of(path), self.answer, path)

    def answer(self, path: str) -> None:
        body = receipt_of(path).encode()
        if not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))


def running() -> AbstractContextManager[int]:
    """Start the server; yields its port; stops it whatever happens."""
    return loopback.running(__file__)


if __name__ == "__main__":
    asyncio.run(loopback.serve(_Connection))
