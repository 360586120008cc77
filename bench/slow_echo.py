"""A slow loopback server in a process of its own: four bytes say how many microseconds until they come back.

Its one job: be a peer that takes its time, at the least CPU cost to the contenders beside it. It ends when its standard
input ends, so a parent that was killed leaves no server behind. Run as a program it prints its port.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager


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


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    parent_gone = loop.create_future()

    def on_stdin() -> None:
        if not os.read(0, 4096) and not parent_gone.done():
            parent_gone.set_result(None)

    loop.add_reader(0, on_stdin)
    server = await loop.create_server(_Connection, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await parent_gone
    loop.remove_reader(0)
    server.close()


@contextmanager
def running() -> Iterator[int]:
    """Start the server; yields its port; stops it whatever happens."""
    process = subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"the loopback server did not start (exit status {process.wait(5)})")
        yield int(line)
    finally:
        process.stdin.close()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


if __name__ == "__main__":
    asyncio.run(_serve())
