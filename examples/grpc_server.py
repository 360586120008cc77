"""A gRPC server whose open streams hold up nobody, and nobody said how many threads.

    python examples/grpc_server.py

serves a service on this process, opens 50 streams that stay open, and calls a method beside them. In a pool of ten
threads, as the examples of gRPC have it, that call would wait until a stream ends.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc  # type: ignore[import-untyped,unused-ignore]

import cmwq.contrib.grpc

over = threading.Event()


def watch(request: bytes, context: Any) -> Iterator[bytes]:
    yield b"serving"
    over.wait()  # until there is news
    yield b"stopping"


def echo(request: bytes, context: Any) -> bytes:
    return request


def main() -> None:
    with cmwq.contrib.grpc.Executor() as pool:
        server = grpc.server(pool, maximum_concurrent_rpcs=1000)
        handlers = {
            "Watch": grpc.unary_stream_rpc_method_handler(watch),
            "Echo": grpc.unary_unary_rpc_method_handler(echo),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("example.Service", handlers),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            streams = [channel.unary_stream("/example.Service/Watch")(b"") for _ in range(50)]
            print({next(stream) for stream in streams}, len(streams), "streams are open")
            began = time.monotonic()
            answer = channel.unary_unary("/example.Service/Echo")(b"hello", timeout=60)
            print(answer, f"beside them, in {(time.monotonic() - began) * 1000:.0f} ms")
            over.set()
            print({answer for stream in streams for answer in stream})
        server.stop(grace=5).wait()


if __name__ == "__main__":
    main()
