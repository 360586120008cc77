"""The workloads, by name, for any `concurrent.futures.Executor`.

Its one job: say what is submitted, and take the time. `load()` makes a workload ready (calibrates its CPU parts on this
machine, starts its server); the `Run` it yields submits everything to a pool, waits for it, and returns the seconds
that count; an item that fails makes it raise. Guaranteed: every run of one loaded workload submits the same calls in
the same order. Assumed: the machine is otherwise quiet while calibrating.
"""

from __future__ import annotations

import hashlib
import random
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import slow_echo

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)

Item = Callable[[], object]
Run = Callable[[Executor], float]
Prepare = Callable[[int], Iterator[Run]]


@dataclass(frozen=True)
class Workload:
    name: str
    summary: str
    items: int
    prepare: Callable[[int], Iterator[Run]]
    sizes: tuple[int, ...] = SIZES

    @contextmanager
    def load(self, *, quick: bool = False) -> Iterator[Run]:
        """Yield the run. quick: a fifth of the items."""
        yield from self.prepare(max(1, self.items // 5) if quick else self.items)


WORKLOADS: dict[str, Workload] = {}


def workload(name: str, summary: str, items: int, sizes: tuple[int, ...] = SIZES) -> Callable[[Prepare], Prepare]:
    def register(prepare: Prepare) -> Prepare:
        WORKLOADS[name] = Workload(name, summary, items, prepare, sizes)
        return prepare

    return register


# ------------------------------------------------------------------------------------------------- what items do


def _seconds_each(call: Item, times: int) -> float:
    """The fastest of five rounds: what it takes when nothing is in the way."""

    def once() -> float:
        began = time.perf_counter()
        for _ in range(times):
            call()
        return (time.perf_counter() - began) / times

    return min(once() for _ in range(5))


@cache
def _hash_rate() -> float:
    data = bytes(1 << 18)
    return len(data) / _seconds_each(lambda: hashlib.sha256(data), 20)


@cache
def _loop_rate() -> float:
    return 10_000 / _seconds_each(lambda: _count_down(10_000), 20)


def _count_down(turns: int) -> None:
    while turns:
        turns -= 1


def native(seconds: float) -> Item:
    """CPU work that releases the GIL, as hashing, compressing, numpy do."""
    data = bytes(max(4096, int(seconds * _hash_rate())))  # under 2 KiB hashlib keeps the GIL
    return lambda: hashlib.sha256(data)


def pure(seconds: float) -> Item:
    """CPU work that holds the GIL where there is one."""
    turns = max(1, int(seconds * _loop_rate()))
    return lambda: _count_down(turns)


def sleeping(seconds: float) -> Item:
    return lambda: time.sleep(seconds)


def in_turn(*parts: Item, times: int = 1) -> Item:
    def item() -> None:
        for _ in range(times):
            for part in parts:
                part()

    return item


def time_all(pool: Executor, items: Iterable[Item]) -> float:
    began = time.perf_counter()
    futures = [pool.submit(item) for item in items]
    for future in futures:
        future.result()
    return time.perf_counter() - began


def _of(items: Sequence[Item]) -> Iterator[Run]:
    yield lambda pool: time_all(pool, items)


# ------------------------------------------------------------------------------------------------- the suite


@workload("native", "0.2 ms native CPU", 1500)
def _native(items: int) -> Iterator[Run]:
    return _of([native(0.0002)] * items)


@workload("sleep", "5 ms sleep", 1500)
def _sleep(items: int) -> Iterator[Run]:
    return _of([sleeping(0.005)] * items)


@workload("cpu+sleep", "0.2 ms native CPU + 4 ms sleep", 1500)
def _cpu_sleep(items: int) -> Iterator[Run]:
    return _of([in_turn(native(0.0002), sleeping(0.004))] * items)


@workload("4x(cpu+sleep)", "4 x (0.2 ms native CPU + 1 ms sleep)", 300)
def _alternating(items: int) -> Iterator[Run]:
    return _of([in_turn(native(0.0002), sleeping(0.001), times=4)] * items)


def _three_kinds(items: int) -> list[Item]:
    cpu, sleep = native(0.0002), sleeping(0.005)
    each = items // 3
    return [cpu] * each + [sleep] * each + [in_turn(cpu, sleeping(0.004))] * (items - 2 * each)


@workload("phases", "native CPU, then sleep, then both", 1300)
def _phases(items: int) -> Iterator[Run]:
    return _of(_three_kinds(items))


@workload("shuffled", "the items of phases, shuffled", 1300)
def _shuffled(items: int) -> Iterator[Run]:
    mixed = _three_kinds(items)
    random.Random(7).shuffle(mixed)
    return _of(mixed)


def _nothing() -> None:
    pass


@workload("no-op", "nothing", 30_000)
def _no_op(items: int) -> Iterator[Run]:
    return _of([_nothing] * items)


@workload("pure", "0.4 ms pure Python", 1500)
def _pure(items: int) -> Iterator[Run]:
    return _of([pure(0.0004)] * items)


@workload("bursts", "batches of 50 (0.1 ms native CPU + 2 ms sleep), 10 ms pauses not counted", 1000)
def _bursts(items: int) -> Iterator[Run]:
    batch = [in_turn(native(0.0001), sleeping(0.002))] * 50

    def run(pool: Executor) -> float:
        seconds = 0.0
        for _ in range(max(1, items // 50)):
            seconds += time_all(pool, batch)
            time.sleep(0.010)
        return seconds

    yield run


NESTED_DEPTH = 200


@workload("nested", f"chains of submit-and-wait, {NESTED_DEPTH} deep", 10, sizes=(256,))
def _nested(items: int) -> Iterator[Run]:
    # A fixed pool must hold a whole chain or it deadlocks: smaller sizes cannot be measured.
    def run(pool: Executor) -> float:
        def descend(depth: int) -> int:
            return 1 + pool.submit(descend, depth - 1).result() if depth else 0

        began = time.perf_counter()
        for _ in range(items):
            if pool.submit(descend, NESTED_DEPTH).result() != NESTED_DEPTH:
                raise AssertionError("a nested chain returned a wrong depth")
        return time.perf_counter() - began

    yield run


@workload("locks", "0.1 ms native CPU, then 0.1 ms more under one of 4 locks", 1500)
def _locks(items: int) -> Iterator[Run]:
    locks = [threading.Lock() for _ in range(4)]
    part = native(0.0001)

    def guarded(lock: threading.Lock) -> Item:
        def item() -> None:
            part()
            with lock:
                part()

        return item

    return _of([guarded(locks[i % 4]) for i in range(items)])


@workload("sockets", "0.1 ms native CPU + a request to a slow loopback server (log-normal, median 4 ms)", 1500)
def _sockets(items: int) -> Iterator[Run]:
    rng, part, local = random.Random(11), native(0.0001), threading.local()
    delays = [min(30_000, int(rng.lognormvariate(0, 0.6) * 4000)) for _ in range(items)]
    with slow_echo.running() as port:

        def asking(delay: int) -> Item:
            request = delay.to_bytes(4, "big")

            def item() -> None:
                part()
                connection = getattr(local, "connection", None)
                if connection is None:
                    connection = local.connection = socket.create_connection(("127.0.0.1", port), timeout=30)
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection.sendall(request)
                if connection.recv(4) != request:
                    raise AssertionError("the server answered something else")

            return item

        yield from _of([asking(delay) for delay in delays])


@workload("long+short", "every 50th item 40 ms native CPU, the others 0.1 ms native CPU + 2 ms sleep", 500)
def _long_short(items: int) -> Iterator[Run]:
    long, short = in_turn(native(0.001), times=40), in_turn(native(0.0001), sleeping(0.002))
    return _of([long if i % 50 == 0 else short for i in range(items)])
