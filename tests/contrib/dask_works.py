"""What the tests of cmwq on Dask send to workers, and the clusters that they send it to."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from conftest import HANG, Gate, until

GATES: dict[str, Gate] = {}
"""Gates of this process, by name: what is sent to a worker in it finds them here."""


@contextmanager
def gate_named(name: str) -> Iterator[Gate]:
    """Opened at the end, whatever happens: what waits there would hold up the end of the cluster. A queue whose works
    wait there is made before it, so that it is closed after it."""
    gate = GATES[name] = Gate()
    try:
        yield gate
    finally:
        gate.open.set()


def pass_gate(name: str, value: Any = None) -> Any:
    GATES[name]()
    return value


def burn(seconds: float) -> float:
    """Use so much CPU time, in Python."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass
    return seconds


def note(path: str, text: object = "") -> None:
    """An effect that can be counted: a line in a file."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.write(fd, f"{text}\n".encode())
    os.close(fd)


def notes(path: str | Path) -> list[str]:
    path = Path(path)
    return path.read_text().split() if path.exists() else []


def note_and_wait(path: str, text: object, pipe: str) -> object:
    """Note it, and block until somebody writes to the named pipe, or has opened it and is gone."""
    note(path, f"{text}:{os.getpid()}")
    with open(pipe, "rb") as reader:
        reader.read(1)
    return text


def await_notes(path: str | Path, number: int) -> list[str]:
    until(lambda: len(notes(path)) >= number)
    return notes(path)


@contextmanager
def cluster_here(**options: Any) -> Iterator[tuple[Any, Any]]:
    """A scheduler and workers within this process, and a client: (cluster, client)."""
    import distributed

    options = {"n_workers": 1, "threads_per_worker": 2, "dashboard_address": ":0", **options}
    with (
        distributed.LocalCluster(processes=False, protocol="tcp", **options) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        yield cluster, client


@contextmanager
def cluster_of_processes(**options: Any) -> Iterator[tuple[Any, Any]]:
    """The same, of worker processes."""
    import distributed

    options = {"n_workers": 2, "threads_per_worker": 2, "dashboard_address": ":0", **options}
    with (
        distributed.LocalCluster(processes=True, **options) as cluster,
        distributed.Client(cluster, set_as_default=False, timeout=HANG) as client,
    ):
        yield cluster, client
