"""A slow loopback server in a process of its own: four bytes say how many microseconds until they come back.

Its one job: be a peer that takes its time, at the least CPU cost to the contenders beside it. It ends when its standard
input ends, so a parent that was killed leaves no server behind. Run as a program it prints its port.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import AbstractContextManager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
import loopback


class _Connection(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.received = b""

    def data_received(self, data: bytes) -> None:
        self.received += data
        while len(self.received) >= 4:
            request, self.received = self.received[:4], self.received[4:]
            asyncio.get_running_loop().call_later(int.from_bytes(request) / 1e6, self.transport.write, request)


def running() -> AbstractContextManager[int]:
    """Start the server; yields its port; stops it whatever happens."""
    return loopback.running(__file__)


if __name__ == "__main__":
    asyncio.run(loopback.serve(_Connection))
