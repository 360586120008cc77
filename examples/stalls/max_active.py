"""A stall: all works that may be active wait for one that has to wait until they end.

    python examples/stalls/max_active.py

It prints its number and then stalls until Ctrl-C. `docs/stalls.md` explains it from `cmwq dump` alone.
"""

from __future__ import annotations

import os
import threading

import cmwq

schema_is_there = threading.Event()


def load_table(name: str) -> str:
    schema_is_there.wait()
    return name


def create_schema() -> None:
    schema_is_there.set()


def main() -> None:
    cmwq.configure(watchdog_thresh=2)  # seconds, so that the report comes soon
    cmwq.monitor()
    imports = cmwq.WorkQueue("imports", max_active=2)
    for table in ("customers", "orders", "prices"):
        imports.submit(load_table, table)
    imports.submit(create_schema)
    print(os.getpid(), flush=True)
    imports.flush()


if __name__ == "__main__":
    main()
