"""Requests over HTTP, on connections that are kept, from one loop in this process; and the server they go to."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import psutil
from loads import Outcome, Peak, timed

HERE = Path(__file__).parent
PATIENCE = 60.0


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def server(command: Sequence[str], port: int) -> Iterator[psutil.Process]:
    """Run a server until the block ends. Gives the process that answers: the server, or its only child."""
    process = subprocess.Popen([sys.executable, *command], cwd=HERE, start_new_session=True, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"no server: {command}") from None
                time.sleep(0.02)
        parent = psutil.Process(process.pid)
        yield (parent.children() or [parent])[0]
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


async def ask(port: int, paths: Sequence[str], clients: int) -> tuple[float, list[float], int]:
    """Each client asks for the next path as soon as it has its answer. Returns seconds, latencies, and failures."""
    latencies: list[float] = []
    todo = iter(paths)
    failed = 0

    async def client() -> None:
        nonlocal failed
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for path in todo:
            try:
                with timed(latencies):
                    writer.write(f"GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n".encode())
                    head = (await reader.readuntil(b"\r\n\r\n")).lower()
                    await reader.readexactly(int(head.split(b"content-length:")[1].split(b"\r\n")[0]))
                    if b" 200 " not in head[:16]:
                        raise RuntimeError(head)
            except (OSError, RuntimeError, asyncio.IncompleteReadError):
                failed += 1
                writer.close()
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
            if b"connection: close" in head:
                writer.close()
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return time.perf_counter() - began, latencies, failed


def measured(command: Callable[[int], Sequence[str]], paths: Sequence[str], clients: int) -> Outcome:
    """Start a server at a port, ask it a little, then measure the requests for these paths."""
    port = free_port()
    with server(command(port), port) as process:
        asyncio.run(ask(port, ["/"] * 32, 4))
        with Peak(process.pid) as peak:
            seconds, latencies, failed = asyncio.run(ask(port, paths, clients))
    return Outcome(seconds, latencies, failed, peak.threads, peak.rss)
