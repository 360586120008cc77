"""watching: all workers of a cluster at once, as one process is seen by `cmwq dashboard` and by `cmwq.trace`.

Guarantees: a worker that is not reached is left out, and nobody is held up for longer than `PATIENCE`. Workers that
share a process are one process here. Nothing is changed on the workers, except that a trace records there until it
ends, or until the worker does. What comes from workers is unpickled here: trust them, as they trust you.
"""

from __future__ import annotations

import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distributed.utils import offload

import cmwq
from cmwq.observing.dashboard.sources import NoPicture, Over, Target

if TYPE_CHECKING:
    from types import TracebackType

PATIENCE = 5.0
"""Seconds after which TimeoutError is raised, if a worker is reached and does not answer."""
TRACKS = 20_000_000
"""The first of the identifiers of tracks that show what Dask says of its threads."""


class About:
    """What a worker says of its process."""

    def __init__(self, host: str, pid: int, since: float) -> None:
        self.host, self.pid, self.since = host, pid, since

    @property
    def process(self) -> tuple[str, int]:
        return self.host, self.pid


def _about() -> About:
    return About(socket.gethostname(), os.getpid(), time.time() - time.monotonic() + _born)


_born = time.monotonic()


def _ask(client: Any, function: Any, *args: Any, workers: list[str] | None = None) -> dict[str, Any]:
    """Call it on all workers, or on these. Those where it fails are left out. Raises OSError, TimeoutError."""
    answers: dict[str, Any] = client.sync(
        client._run, function, *args, workers=workers, on_error="ignore", callback_timeout=PATIENCE
    )
    return answers


def pictures(client: Any, *, stacks: bool = False) -> dict[str, Mapping[str, Any]]:
    """The pictures of all workers' processes, by the address of the worker: `cmwq.snapshot().to_dict()` of each.

    Thread-safe. Raises OSError or TimeoutError if the scheduler does not answer.
    """
    found: dict[tuple[str, int], tuple[str, Mapping[str, Any]]] = {}
    for address, (about, picture) in sorted(_ask(client, _picture, stacks).items()):
        found.setdefault(about.process, (address, picture))
    return dict(found.values())


def _picture(stacks: bool) -> tuple[About, Mapping[str, Any]]:
    return _about(), cmwq.snapshot(stacks=stacks).to_dict()


# ----------------------------------------------------------------------------------- the dashboard


class Source:
    """The workers of a cluster as processes that the dashboard shows. Thread-safe."""

    def __init__(self, client: Any) -> None:
        self._client = client  # I
        self._lock = threading.Lock()
        self._numbers: dict[str, int] = {}  # guarded by it: of each address, because machines share process ids
        self._count = count(1)  # likewise

    def targets(self) -> list[Target]:
        """One for each process. Raises NoPicture."""
        try:
            answers = _ask(self._client, _about)
        except Exception as error:
            raise NoPicture(f"the scheduler does not answer: {error}") from error
        found: dict[tuple[str, int], Target] = {}
        with self._lock:
            for address, about in sorted(answers.items()):
                number = self._numbers.get(address)
                if number is None:
                    number = self._numbers[address] = next(self._count)
                command = f"{address} ({about.host}, process {about.pid})"
                seen = Target(number, command, about.since, address, self, remote=True)
                found.setdefault(about.process, seen)
        return list(found.values())

    def connect(self, target: Target) -> _Link:
        assert target.path is not None
        return _Link(self._client, target.path)


class _Link:
    paced = False

    def __init__(self, client: Any, address: str) -> None:
        self._client = client
        self._address = address
        self._closed = False

    def picture(self, stacks: bool) -> dict[str, Any]:
        if self._closed:
            raise Over("the link was closed")
        try:
            answers = _ask(self._client, _picture, stacks, workers=[self._address])
        except Exception as error:
            raise NoPicture(f"the scheduler does not answer: {error}") from error
        if self._address not in answers:
            if self._address not in self._client.nthreads():
                raise Over(f"the worker {self._address} is gone")
            raise NoPicture(f"the worker {self._address} does not answer")
        return dict(answers[self._address][1])

    def close(self) -> None:
        self._closed = True


# ----------------------------------------------------------------------------------- the trace


class ClusterTrace:
    """A trace of all workers that is being recorded. `cluster_trace` makes it. As a context manager it is closed at the
    end.

    For one thread at a time, so not thread-safe.
    """

    def __init__(self, client: Any, path: str | os.PathLike[str], limit: int) -> None:
        self.path = Path(path)
        self._client = client
        self._limit = limit
        self._name = f"{os.getpid()}-{id(self):x}"
        self._over = False
        self._began = time.time()
        with suppress(Exception):
            client.get_task_stream(count=1)  # from now on the scheduler keeps what Dask's threads do
        _ask(client, _begin_trace, self._name, limit)

    def close(self) -> Path:
        """End the recording, and write the file. Returns its path. Does nothing if it was closed before.

        Raises OSError if the file can't be written, or if the scheduler does not answer.
        """
        if self._over:
            return self.path
        self._over = True
        answers = _ask(self._client, _end_trace, self._name)
        try:
            tasks = list(self._client.get_task_stream(start=self._began - 1))
        except Exception:  # it is only an addition
            tasks = []
        text = json.dumps(merged(answers, tasks, self._began))
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            temporary.write_text(text)
            temporary.replace(self.path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        return self.path

    def __enter__(self) -> ClusterTrace:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def cluster_trace(client: Any, path: str | os.PathLike[str], *, limit: int = 100_000) -> ClusterTrace:
    """Record what happens in the pools of all workers there are now, until the trace is closed, into one file for
    Perfetto: a process for each worker, and beside cmwq's tracks one for each of Dask's threads.

        with cmwq.contrib.dask.cluster_trace(client, "cluster.json"): ...

    limit: how many records of each sort a worker keeps. Workers' clocks are told apart by what their own clock of the
    day shows: machines whose clocks differ are shifted against each other by as much. Raises OSError or TimeoutError if
    the scheduler does not answer.
    """
    return ClusterTrace(client, path, limit)


_traces: dict[str, cmwq.Trace] = {}
"""Traces of this process that others asked for."""


def _begin_trace(name: str, limit: int) -> None:
    if name not in _traces:  # workers that share a process
        _traces[name] = cmwq.trace(limit=limit)


async def _end_trace(name: str) -> tuple[About, str] | None:
    found = _traces.pop(name, None)
    return None if found is None else await offload(_written, found)


def _written(trace: cmwq.Trace) -> tuple[About, str]:
    trace.close()
    with tempfile.TemporaryDirectory(prefix="cmwq-trace-") as folder:
        return _about(), trace.write(Path(folder) / "trace.json").read_text()


def merged(answers: Mapping[str, Any], tasks: list[Any], began: float) -> dict[str, Any]:
    """One trace of many: `answers` are traces of processes, by the address of the worker; `tasks` is what Dask's
    scheduler says of its threads. All times are microseconds since `began`, which is seconds since the epoch.
    """
    events: list[dict[str, Any]] = []
    number_of: dict[str, int] = {}
    for number, (address, answer) in enumerate(sorted(answers.items()), 1):
        number_of[address] = number
        if answer is None:  # another worker of its process has told
            continue
        about, text = answer
        one = json.loads(text)
        said = one["otherData"]
        shift = (said["time of day at the end"] - said["recorded to"] - began) * 1e6
        for event in one["traceEvents"]:
            event["pid"] = number
            if "ts" in event:
                event["ts"] += shift
            if "id" in event:
                event["id"] = f"{number}:{event['id']}"
            if event.get("name") == "process_name":
                event["args"] = {"name": f"{address} ({about.host}, process {about.pid})"}
            events.append(event)
    events += _of_dask(tasks, number_of, began)
    return {"displayTimeUnit": "ms", "otherData": {"written by": "cmwq", "began": began}, "traceEvents": events}


def _of_dask(tasks: list[Any], number_of: dict[str, int], began: float) -> list[dict[str, Any]]:
    """The slices of Dask's own task stream, a track for each thread that it names."""
    events: list[dict[str, Any]] = []
    tracks: dict[tuple[str, Any], int] = {}
    for task in tasks:
        number = number_of.get(task.get("worker"))
        if number is None:
            continue
        thread = (task["worker"], task.get("thread"))
        if thread not in tracks:
            tracks[thread] = TRACKS + len(tracks)
            name = {"name": f"Dask: thread {len(tracks)}"}
            events.append({"ph": "M", "name": "thread_name", "pid": number, "tid": tracks[thread], "args": name})
        for span in task.get("startstops", ()):
            events.append(
                {
                    "ph": "X",
                    "name": f"{span['action']} {task.get('name') or task['key']}",
                    "cat": "dask",
                    "pid": number,
                    "tid": tracks[thread],
                    "ts": (span["start"] - began) * 1e6,
                    "dur": max(0.0, span["stop"] - span["start"]) * 1e6,
                    "args": {"key": str(task["key"]), "status": task.get("status")},
                }
            )
    return events
