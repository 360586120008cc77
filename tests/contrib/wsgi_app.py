"""What the tests of WSGI servers serve. Each answer is a JSON object."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import cmwq

LEFT: ContextVar[str] = ContextVar("LEFT", default="nothing")
Query = dict[str, str]


class Count:
    """How many requests wait, and how many did at most. Its `with` block is its lock."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


COUNT = Count()


def about(query: Query) -> Any:
    """Where it runs, and what an earlier request has left."""
    work = cmwq.current_work()
    left = LEFT.get()
    LEFT.set("something")
    return {
        "pid": os.getpid(),
        "parent": os.getppid(),
        "in_pool": work is not None,
        "left": left,
        "queues": [queue.name for queue in cmwq.snapshot().queues],
        "main": threading.current_thread() is threading.main_thread(),
    }


def wait(query: Query) -> Any:
    """Wait until the folder has a file `go`; note in it that this has begun."""
    folder = Path(query["folder"])
    with COUNT:
        COUNT.now += 1
        COUNT.most = max(COUNT.most, COUNT.now)
    (folder / f"begun-{query['number']}").touch()
    try:
        deadline = time.monotonic() + 60
        while not (folder / "go").exists():
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        with COUNT:
            COUNT.now -= 1
    return {"number": query["number"]}


def most(query: Query) -> Any:
    """How many have waited at a time."""
    return {"most": COUNT.most}


def sleep(query: Query) -> Any:
    time.sleep(float(query["seconds"]))
    return {}


def compute(query: Query) -> Any:
    deadline = time.thread_time() + float(query["seconds"])
    while time.thread_time() < deadline:
        pass
    return {}


def hogs(query: Query) -> Any:
    """The names of what has computed for long since this was first asked."""
    if not WATCHING:
        WATCHING.append(cmwq.events.subscribe(lambda event: NOTED.add(str(event.work)), kinds=["hog"]))
    return {"hogs": sorted(NOTED)}


def fail(query: Query) -> Any:
    raise RuntimeError("as it was asked")


NOTED: set[str] = set()
WATCHING: list[cmwq.events.Subscription] = []
ROUTES = {f"/{each.__name__}": each for each in (about, wait, most, sleep, compute, hogs, fail)}


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    query = {key: values[0] for key, values in parse_qs(environ["QUERY_STRING"]).items()}
    body = json.dumps(ROUTES[environ["PATH_INFO"]](query)).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]
