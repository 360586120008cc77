"""From a worker entering a blocking call to the start of the next item: the distribution, per kind of blocking.

Its one job: measure how soon a pool notices. One round: as many workers as the pool has CPUs are executing; one of them
submits a probe (which must wait: the pool is full), computes a little so that everything else has come to rest, takes
the time, and enters the blocking call. The probe's first line takes the time again. The call is ended only after the
probe has begun, or after PATIENCE if it does not begin. In GIL builds the first timestamp is taken while holding the
GIL: giving it up, noticing, waking, and taking the GIL again are all inside the measure.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from measure import percentile
from workloads import _count_down, _loop_rate

PATIENCE = 0.25
SHARES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
SETTLE = 0.0003  # seconds of CPU between submitting the probe and blocking

Submit = Callable[..., "Future[Any]"]


class Blocker(Protocol):
    """One way to block. `ready` runs before the clock, `block` is what is measured, `release` ends it."""

    def ready(self) -> None: ...
    def block(self) -> None: ...
    def release(self) -> None: ...
    def close(self) -> None: ...


class Sleep:
    def ready(self) -> None: ...
    def block(self) -> None:
        time.sleep(0.005)

    def release(self) -> None: ...
    def close(self) -> None: ...


class SocketRead:
    def __init__(self) -> None:
        self.near, self.far = socket.socketpair()

    def ready(self) -> None: ...
    def block(self) -> None:
        self.near.recv(1)

    def release(self) -> None:
        self.far.send(b"x")

    def close(self) -> None:
        self.near.close()
        self.far.close()


class Fsync:
    """A file fsync cannot be held up, only given something to do. On tmpfs it does not block at all."""

    def __init__(self, kib: int = 64) -> None:
        self.file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 -- closed by close()
        self.data = os.urandom(kib << 10)

    def ready(self) -> None:
        self.file.seek(0)
        self.file.write(self.data)

    def block(self) -> None:
        os.fsync(self.file.fileno())

    def release(self) -> None: ...
    def close(self) -> None:
        self.file.close()


class SubprocessWait:
    def ready(self) -> None:
        self.process = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        # Once it has echoed it is past its start-up and asleep: no CPU of it falls into the measure.
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(b"x")
        self.process.stdout.read(1)

    def block(self) -> None:
        self.process.wait()

    def release(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()

    def close(self) -> None: ...


class HeldLock:
    """Held by somebody else, and for long: not the short contention that a sensor should let pass."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def ready(self) -> None:
        self.lock.acquire()

    def block(self) -> None:
        self.lock.acquire()

    def release(self) -> None:
        self.lock.release()

    def close(self) -> None: ...

    def after(self) -> None:
        self.lock.release()


KINDS: dict[str, Callable[[], Blocker]] = {
    "sleep": Sleep,
    "socket": SocketRead,
    "fsync": Fsync,
    "subprocess": SubprocessWait,
    "lock": HeldLock,
}


def one_round(submit: Submit, blocker: Blocker, turns: int) -> tuple[float, bool]:
    """Microseconds to the probe's first line, and whether the call had ended before that."""
    probed = threading.Event()
    stamps: list[int] = []

    def probe() -> None:
        stamps.append(time.perf_counter_ns())
        probed.set()

    def blocking() -> int:
        # The main thread must be asleep before the clock runs, else it would be first in line for the GIL.
        time.sleep(0.001)
        blocker.ready()
        submit(probe)
        _count_down(turns)
        stamps.append(time.perf_counter_ns())
        blocker.block()
        return time.perf_counter_ns()

    blocked = submit(blocking)
    probed.wait(PATIENCE)
    blocker.release()
    ended = blocked.result(30)
    if not probed.wait(30):
        raise TimeoutError("the probe did not run within 30 s of the blocking call's end")
    if isinstance(blocker, HeldLock):
        blocker.after()
    entered, began = stamps
    return (began - entered) / 1e3, began > ended


@contextmanager
def busy(submit: Submit, workers: int) -> Iterator[None]:
    """Keep so many workers executing native code: the rest of the pool's CPUs."""
    stop, data = threading.Event(), bytes(1 << 22)

    def crunch() -> None:
        while not stop.is_set():
            hashlib.sha256(data)

    futures = [submit(crunch) for _ in range(workers)]
    try:
        yield
    finally:
        stop.set()
        for future in futures:
            future.result(30)


@contextmanager
def cmwq_pool(whole: bool) -> Iterator[tuple[Submit, int, str]]:
    import cmwq

    cpus = sorted(os.sched_getaffinity(0))
    # The last CPU: the first is where most systems deliver their interrupts.
    runtime = cmwq.Runtime() if whole else cmwq.Runtime(cpus=cpus[-1:])
    with cmwq.WorkQueue("latency", runtime=runtime) as queue:
        queue.submit(int).result()
        snapshot = runtime.snapshot()
        yield queue.submit, max(pool.target for pool in snapshot.pools), f"cmwq, sensor {snapshot.sensor}"


@contextmanager
def thread_pool(size: int) -> Iterator[tuple[Submit, int, str]]:
    """What a fixed pool does when all its threads block: it waits. (Also: the benchmark can be tried without cmwq.)"""
    with ThreadPoolExecutor(size) as pool:
        yield pool.submit, size, f"ThreadPoolExecutor({size})"


def distributions(
    submit: Submit, target: int, kinds: Iterable[str], rounds: int, *, fsync_kib: int = 64
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Per kind: percentiles and every figure, in microseconds, and how many calls had ended first."""
    turns = int(SETTLE * _loop_rate())
    with busy(submit, target - 1):
        for kind in kinds:
            blocker = Fsync(fsync_kib) if kind == "fsync" else KINDS[kind]()
            for _ in range(10):
                one_round(submit, blocker, turns)
            measured = [one_round(submit, blocker, turns) for _ in range(rounds)]
            blocker.close()
            figures = sorted(figure for figure, _ in measured)
            line: dict[str, Any] = {name: percentile(figures, share) for name, share in SHARES.items()}
            line |= {"max": figures[-1], "ended_first": sum(ended for _, ended in measured)}
            yield kind, line | {"microseconds": [round(figure, 1) for figure, _ in measured]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kind", action="append", choices=list(KINDS), help="default: all")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--fsync-kib", type=int, default=64, help="what each fsync has to write (default 64)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also every single figure")
    parser.add_argument(
        "--all-cpus",
        action="store_true",
        help="a pool of all CPUs, the others kept busy with native code (default: a pool of one CPU)",
    )
    parser.add_argument("--contender", choices=("cmwq", "threads"), default="cmwq")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")

    pool: Any = partial(cmwq_pool, options.all_cpus)
    if options.contender == "threads":
        pool = partial(thread_pool, (os.cpu_count() or 1) if options.all_cpus else 1)
    report: dict[str, Any] = {}
    with pool() as (submit, target, title):
        gil = getattr(sys, "_is_gil_enabled", lambda: True)()
        python = f"Python {sys.version.split()[0]}{'' if gil else ' free-threaded'}"
        print(f"{title}, target {target}, {python}, {options.rounds} rounds; microseconds")
        print(f"{'kind':<12} {'p50':>8} {'p90':>8} {'p99':>8} {'max':>8}  call ended first", flush=True)
        kinds = options.kind or KINDS
        for kind, line in distributions(submit, target, kinds, options.rounds, fsync_kib=options.fsync_kib):
            report[kind] = line
            figures = " ".join(f"{line[name]:>8.1f}" for name in (*SHARES, "max"))
            print(f"{kind:<12} {figures}  {line['ended_first']}", flush=True)
    if options.json:
        options.json.write_text(
            json.dumps({"contender": title, "target": target, "python": python, "kinds": report}, indent=1) + "\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
