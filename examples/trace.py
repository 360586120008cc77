"""A trace of a small service: requests that compute, ask a slow database, log under a lock, and wait for one another.

    python examples/trace.py [FILE]

Load the file (trace.json) at https://ui.perfetto.dev: each worker is a track, what it waited for lies within its
works, and arrows lead from where a work was queued to where it began. The last line says where one of the works was
blocked for longest; the viewer shows why: all of them write to the same log.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path

import cmwq

queries = cmwq.WorkQueue("queries", max_active=4)
log = threading.Lock()


def request(number: int) -> int:
    """Compute, ask the database, and log."""
    compute(0.002)
    found = queries.submit(query, number).result()
    write_log(number)
    return found


def query(number: int) -> int:
    """The database answers after 10 ms; at most 4 queries at a time."""
    time.sleep(0.01)
    return number


def write_log(number: int) -> None:
    with log:
        time.sleep(0.005)  # a slow disk


def compute(seconds: float) -> None:
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        sum(range(100))


def main() -> None:
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "trace.json")
    with cmwq.trace(path), cmwq.WorkQueue("requests") as requests:
        for _ in range(3):
            futures = [requests.submit(request, number) for number in range(20)]
            print("answered:", len([future.result() for future in futures]))
            time.sleep(0.05)
    events = json.loads(path.read_text())["traceEvents"]
    works = [event for event in events if event.get("cat") == "work"]
    blocked = max((event for event in events if event.get("cat") == "blocked"), key=lambda event: event["dur"])
    print(f"{path}: {len(works)} works, {sum(event['ph'] == 's' for event in events)} arrows")
    print(f"blocked for longest: {blocked['dur'] / 1000:.0f} ms, {blocked['name']}")


if __name__ == "__main__":
    main()
