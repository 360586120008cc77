"""A stall: a pool of connections is exhausted, because works that failed did not give theirs back.

    python examples/stalls/connection_pool.py

It prints its number and then stalls until Ctrl-C. `docs/stalls.md` explains it from `cmwq dump` alone.
"""

from __future__ import annotations

import os
import queue

import cmwq

connections: queue.Queue[str] = queue.Queue()


def fetch(row: int) -> str:
    connection = connections.get()
    answer = f"row {row % 7} over {connection}, {10 // (row % 7)}"  # every seventh row fails
    connections.put(connection)
    return answer


def main() -> None:
    cmwq.configure(watchdog_thresh=2)  # seconds, so that the report comes soon
    cmwq.monitor()
    for number in range(3):
        connections.put(f"connection {number}")
    rows = cmwq.WorkQueue("rows")
    for row in range(1, 31):
        rows.submit(fetch, row)
    print(os.getpid(), flush=True)
    rows.flush()


if __name__ == "__main__":
    main()
