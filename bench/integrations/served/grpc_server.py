"""A gRPC server for the measurements: python grpc_server.py SETTING. Prints its port, and serves until stdin ends."""

from __future__ import annotations

import random
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

NOISE = random.Random(1).randbytes(1 << 20)


def sleep(request: bytes, context: Any) -> bytes:
    time.sleep(int(request) / 1000)
    return b"done"


def compress(request: bytes, context: Any) -> bytes:
    zlib.compress(NOISE[: int(request) * 1024], 6)
    return b"done"


def echo(request: bytes, context: Any) -> bytes:
    return request


def stream(request: bytes, context: Any) -> Iterator[bytes]:
    """Answers at once, and then stays open until the client goes away."""
    yield b"begun"
    gone = threading.Event()
    context.add_callback(gone.set)
    gone.wait()


def main(setting: str) -> None:
    pool: Any
    if setting == "cmwq":
        from cmwq.contrib.grpc import Executor

        pool = Executor()
    else:
        pool = ThreadPoolExecutor(10 if setting == "stock" else int(setting))
    server = grpc.server(pool)
    unary = grpc.unary_unary_rpc_method_handler
    handlers = {each.__name__: unary(each) for each in (sleep, compress, echo)}
    handlers["stream"] = grpc.unary_stream_rpc_method_handler(stream)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Service", handlers),))
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    server.start()
    sys.stdin.read()
    server.stop(None)


if __name__ == "__main__":
    main(sys.argv[1])
