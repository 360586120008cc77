"""A gRPC server in a process of its own, asked from here."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from loads import Load, Outcome, Peak

SERVER = Path(__file__).parent / "served" / "grpc_server.py"
SIZES = ("stock", "32", "128", "cmwq")
CALLS: dict[str, Sequence[tuple[str, bytes]]] = {
    "sleeps": [("sleep", b"50")] * 200,
    "streams": [("sleep", b"10")] * 100,
    "mixed": [("sleep", b"50"), ("compress", b"1024"), ("sleep", b"50"), ("echo", b"")] * 40,
    "trivial": [("echo", b"")] * 2000,
}
STREAMS = {"streams": 40}
TITLES = {
    "sleeps": "200 calls x 50 ms of sleep, at once",
    "streams": "100 calls x 10 ms of sleep, at once, beside 40 open streams (10 s, then given up)",
    "mixed": "160 calls at once: half sleep 50 ms, a quarter compress 1 MB, a quarter do nothing",
    "trivial": "2,000 calls that do nothing, at once",
}
NOTES = {
    "trivial": "the worst case for cmwq: nothing waits, so there is nothing to win.",
    "streams": "each stream keeps a thread; with as many streams as threads no call is ever begun.",
}
PATIENCE = 10.0


def run(load: str, setting: str) -> Outcome:
    import grpc

    with subprocess.Popen(
        [sys.executable, str(SERVER), setting], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        port = int(process.stdout.readline())
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            streams = [
                channel.unary_stream("/bench.Service/stream")(b"") for _ in range(STREAMS.get(load, 0))
            ]  # not read: some may never begin
            for _ in range(0 if streams else 16):
                channel.unary_unary("/bench.Service/echo")(b"", timeout=PATIENCE)
            time.sleep(0.5)  # the streams that can begin have begun
            with Peak(process.pid) as peak:
                seconds, latencies, failed = ask(channel, CALLS[load])
            for stream in streams:
                stream.cancel()
        process.stdin.close()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
    return Outcome(seconds, latencies, failed, peak.threads, peak.rss)


def ask(channel: Any, calls: Sequence[tuple[str, bytes]]) -> tuple[float, list[float], int]:
    """Make all calls at once. Returns seconds, latencies, and failures."""
    latencies: list[float] = []
    failures: list[Any] = []
    left = threading.Semaphore(0)

    def note(began: float, future: Any) -> None:
        if future.exception() is None:
            latencies.append(time.perf_counter() - began)
        else:
            failures.append(future.exception())
        left.release()

    methods = {name: channel.unary_unary(f"/bench.Service/{name}") for name in {name for name, _ in calls}}
    began = time.perf_counter()
    for name, argument in calls:
        future = methods[name].future(argument, timeout=PATIENCE)
        future.add_done_callback(partial(note, time.perf_counter()))
    for _ in calls:
        left.acquire()
    return time.perf_counter() - began, latencies, len(failures)


LOADS = [
    Load(f"grpc-{load}", f"gRPC: {TITLES[load]}", SIZES, partial(run, load), NOTES.get(load, ""), ("grpc",))
    for load in CALLS
]
