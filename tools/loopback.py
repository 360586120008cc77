"""A server on the loopback interface, in a process of its own, for the demo and the benchmarks.

Guarantees: it listens on a free port of 127.0.0.1 only, and ends when the program that started it ends, however that
ends.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


async def serve(connection: Callable[[], asyncio.Protocol]) -> None:
    """Serve until the standard input ends; the first line printed is the port."""
    loop = asyncio.get_running_loop()
    parent_gone = loop.create_future()

    def on_stdin() -> None:
        if not os.read(0, 4096) and not parent_gone.done():
            parent_gone.set_result(None)

    loop.add_reader(0, on_stdin)
    server = await loop.create_server(connection, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await parent_gone
    loop.remove_reader(0)
    server.close()


@contextmanager
def running(script: str) -> Iterator[int]:
    """Start a script that calls `serve`; yields its port; stops it whatever happens."""
    # Its own session: Ctrl-C is the parent's to handle, and reaches the server as the end of its input.
    process = subprocess.Popen(
        [sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
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
