"""asyncio and FastAPI: calls that wait, calls that compute, calls that wait for one another.

A FastAPI application runs under a real uvicorn in a process of its own, which is the one that is measured; the clients
are connections that stay open, each with one request at a time, in the process that runs the load. For "40" and other
numbers anyio's default limiter has so many tokens; asyncio's executor so many threads.
"""

from __future__ import annotations

import asyncio
import math
import queue
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated, Any

from loads import Load, Outcome, Peak, timed

POOL, POOL_TIMEOUT = 5, 5.0
"""Connections to the database, and seconds that a request waits for one before it fails."""

# ----------------------------------------------------------------------------------- asyncio


def on_asyncio(main: Callable[[list[float]], Awaitable[None]], setting: str) -> Outcome:
    import cmwq.aio

    latencies: list[float] = []

    async def measured() -> float:
        loop = asyncio.get_running_loop()
        if setting == "cmwq":
            cmwq.aio.install()
        elif setting != "stock":
            loop.set_default_executor(ThreadPoolExecutor(int(setting)))
        began = time.perf_counter()
        await main(latencies)
        return time.perf_counter() - began

    with Peak() as peak:
        seconds = asyncio.run(measured())
    return Outcome(seconds, latencies, 0, peak.threads - 1, peak.rss)  # without the one that looks


async def one_call(latencies: list[float], fn: Callable[..., object], *args: object) -> None:
    with timed(latencies):
        await asyncio.to_thread(fn, *args)


async def sleeps(latencies: list[float]) -> None:
    await asyncio.gather(*(one_call(latencies, time.sleep, 0.05) for _ in range(200)))


async def short_calls(latencies: list[float]) -> None:
    await asyncio.gather(*(one_call(latencies, int) for _ in range(10_000)))


async def names_behind_sleeps(latencies: list[float]) -> None:
    """Names are looked up on the same threads."""
    behind = [asyncio.ensure_future(asyncio.to_thread(time.sleep, 0.5)) for _ in range(40)]
    await asyncio.sleep(0.01)

    async def look_up() -> None:
        with timed(latencies):
            await asyncio.get_running_loop().getaddrinfo("127.0.0.1", 80, type=socket.SOCK_STREAM)

    await asyncio.gather(*(look_up() for _ in range(20)), *behind)


# ----------------------------------------------------------------------------------- the application


def compute(seconds: float) -> int:
    """Python code that uses the CPU for so long, whatever else runs."""
    number, end = 0, time.thread_time() + seconds
    while time.thread_time() < end:
        number += sum(range(200))
    return number


def application(setting: str) -> Any:
    from anyio import to_thread
    from fastapi import Depends, FastAPI, HTTPException

    import cmwq.contrib.anyio

    @asynccontextmanager
    async def tuned(app: Any) -> Any:
        if setting != "stock":
            to_thread.current_default_thread_limiter().total_tokens = (
                math.inf if setting == "infinite" else int(setting)
            )
        yield

    app = FastAPI(lifespan=cmwq.contrib.anyio.lifespan() if setting == "cmwq" else tuned)
    pool: queue.LifoQueue[int] = queue.LifoQueue()
    for number in range(POOL):
        pool.put(number)

    def connection() -> Iterator[int]:
        try:
            taken = pool.get(timeout=POOL_TIMEOUT)
        except queue.Empty:
            raise HTTPException(503) from None
        try:
            yield taken
        finally:
            pool.put(taken)

    @app.get("/sleep")
    def sleep() -> str:
        time.sleep(0.05)
        return "slept"

    @app.get("/compute")
    def computes() -> int:
        return compute(0.005)

    def query(taken: Annotated[int, Depends(connection)]) -> int:
        time.sleep(0.002)
        return taken

    query.__annotations__["taken"] = Annotated[int, Depends(connection)]  # a local name, which FastAPI can't look up
    app.get("/query")(query)
    return app


def serve(setting: str) -> None:
    import uvicorn

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(2048)
        config = uvicorn.Config(application(setting), log_level="error", access_log=False, lifespan="on")
        print(listening.getsockname()[1], flush=True)
        uvicorn.Server(config).run(sockets=[listening])


# ----------------------------------------------------------------------------------- the clients


class Client(asyncio.Protocol):
    """A connection that asks for a page so many times, one after the other."""

    def __init__(self, path: str, times: int) -> None:
        self.latencies: list[float] = []
        self.failed = 0
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._request = f"GET {path} HTTP/1.1\r\nHost: load\r\n\r\n".encode()
        self._left = times
        self._read = b""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def ask(self) -> None:
        self._asked = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._read += data
        head, found, body = self._read.partition(b"\r\n\r\n")
        if not found:
            return
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        if len(body) < length:
            return
        self._read = b""
        if head.startswith(b"HTTP/1.1 200"):
            self.latencies.append(time.perf_counter() - self._asked)
        else:
            self.failed += 1
        self._left -= 1
        if self._left:
            self.ask()
        else:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.failed += self._left
        if not self.over.done():
            self.over.set_result(None)


async def ask_all(port: int, paths: list[str], times: int) -> tuple[float, list[Client]]:
    loop = asyncio.get_running_loop()
    clients: list[Client] = []
    for path in paths:
        _, client = await loop.create_connection(partial(Client, path, times), "127.0.0.1", port)
        clients.append(client)
    began = time.perf_counter()
    for client in clients:
        client.ask()
    await asyncio.gather(*(client.over for client in clients))
    return time.perf_counter() - began, clients


def on_fastapi(paths: list[str], times: int, setting: str) -> Outcome:
    server = subprocess.Popen([sys.executable, __file__, "serve", setting], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        asyncio.run(ask_all(port, ["/docs"], 1))  # it serves
        with Peak(server.pid) as peak:
            seconds, clients = asyncio.run(ask_all(port, paths, times))
    finally:
        server.kill()
        server.wait()
        assert server.stdout is not None
        server.stdout.close()
    latencies = [each for client in clients for each in client.latencies]
    return Outcome(seconds, latencies, sum(client.failed for client in clients), peak.threads, peak.rss)


THREADS = ("stock", "32", "256", "cmwq")
TOKENS = ("stock", "8", "128", "infinite", "cmwq")
LARGE = ("stock", "128", "infinite", "cmwq")
NEEDS = ("fastapi", "uvicorn", "anyio")

LOADS = [
    Load(
        "asyncio-sleep", "asyncio: 200 × to_thread(sleep, 50 ms)", THREADS, partial(on_asyncio, sleeps),
    ),
    Load(
        "asyncio-names", "asyncio: getaddrinfo behind 40 × 0.5 s", THREADS, partial(on_asyncio, names_behind_sleeps),
        note="s is until the sleeps are over; p50 is what a look-up took",
    ),
    Load(
        "asyncio-short", "asyncio: 10,000 × to_thread(int)", ("stock", "1", "2", "32", "cmwq"),
        partial(on_asyncio, short_calls),
        note="the calls do nothing, so this is what handing over costs, where a pool has nothing to decide",
    ),
    Load(
        "fastapi-sleep-200", "FastAPI: 200 clients × 5 × 50 ms", LARGE, partial(on_fastapi, ["/sleep"] * 200, 5),
        needs=NEEDS,
    ),
    Load(
        "fastapi-sleep-800", "FastAPI: 800 clients × 3 × 50 ms", LARGE, partial(on_fastapi, ["/sleep"] * 800, 3),
        needs=NEEDS,
    ),
    Load(
        "fastapi-mixed", "FastAPI: 100 clients × 5 × 50 ms, 100 × 5 × 5 ms of Python", TOKENS,
        partial(on_fastapi, ["/sleep", "/compute"] * 100, 5), needs=NEEDS,
    ),
    Load(
        "fastapi-deadlock", f"FastAPI: 200 clients × 2, {POOL} connections (fastapi#12066)", LARGE,
        partial(on_fastapi, ["/query"] * 200, 2), needs=NEEDS,
        note=f"a request that gets no connection in {POOL_TIMEOUT:.0f} s fails; it may have waited for one that a "
        "request has which waits for a thread",
    ),
]  # fmt: skip

if __name__ == "__main__":
    serve(sys.argv[2])
