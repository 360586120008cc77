"""FastAPI's deadlock between threads and connections (fastapi/fastapi#12066), and the line that ends it.

    python examples/fastapi_deadlock.py [REQUESTS]

A request takes one of 5 connections in a dependency, and then needs a thread for its endpoint. Starlette lets 40
synchronous calls run at a time. Once 40 of them wait for a connection, none of the 5 requests that have one gets a
thread: nothing moves until the waits for connections time out, and these requests fail. With `lifespan=...` below, who
waits holds no token that others need.

Needs fastapi, uvicorn and httpx. Each server is a real one, in a process of its own.
"""

from __future__ import annotations

import asyncio
import queue
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Annotated

import httpx
import uvicorn
from fastapi import Depends, FastAPI, HTTPException

import cmwq.contrib.anyio

connections: queue.Queue[str] = queue.Queue()
for number in range(5):
    connections.put(f"connection {number}")


def connection() -> Iterator[str]:
    """One of five, as an engine of SQLAlchemy with pool_size=5 and pool_timeout=3 would give it."""
    try:
        taken = connections.get(timeout=3)
    except queue.Empty:
        raise HTTPException(503, "no connection in 3 s") from None
    try:
        yield taken
    finally:
        connections.put(taken)


def query(taken: Annotated[str, Depends(connection)]) -> str:
    time.sleep(0.002)  # the database
    return taken


def application(on_cmwq: bool) -> FastAPI:
    app = FastAPI(lifespan=cmwq.contrib.anyio.lifespan() if on_cmwq else None)  # this is the line
    app.get("/")(query)
    return app


def serve(on_cmwq: bool) -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(2048)
        print(listening.getsockname()[1], flush=True)
        uvicorn.Server(uvicorn.Config(application(on_cmwq), log_level="error")).run(sockets=[listening])


async def ask(address: str, number: int) -> Counter[int]:
    """Return how many requests, all sent at the same time, got which answer."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=address, limits=limits, timeout=60, trust_env=False) as client:
        answers = await asyncio.gather(*(client.get("/") for _ in range(number)))
        return Counter(answer.status_code for answer in answers)


def show(title: str, setting: str, number: int) -> None:
    server = subprocess.Popen([sys.executable, __file__, "--serve", setting], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        address = f"http://127.0.0.1:{int(server.stdout.readline())}"
        began = time.perf_counter()
        answers = asyncio.run(ask(address, number))
        seconds = time.perf_counter() - began
        print(f"{title}: {answers[200]} of {number} requests answered, {answers[503]} failed, in {seconds:.1f} s")
    finally:
        server.terminate()
        server.communicate()


def main(number: int) -> None:
    show("40 tokens", "stock", number)
    show("cmwq     ", "cmwq", number)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2] == "cmwq")
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
