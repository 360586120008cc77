"""A table of jobs in SQLite, worked off by a queue that asks for the next job when it could run one more.

    python examples/jobs.py [JOBS]

Jobs stay in the table, where they survive a crash, can be looked at, and can be taken by other processes, until a
worker has time for one. Nothing is read ahead. The jobs here wait for something slow; so many are run at once, although
nobody said how many, and the table gave them one at a time.
"""

from __future__ import annotations

import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cmwq


class Jobs:
    """The table. A job is new, taken, or done."""

    def __init__(self, path: Path) -> None:
        # One connection, and a lock around it: `take` is called by one worker at a time, but `done` by many.
        self.db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self.lock = threading.Lock()
        self.db.execute("PRAGMA journal_mode = WAL")  # else each commit waits for the disk, with the lock held
        self.db.execute("PRAGMA synchronous = NORMAL")
        self.db.execute(
            "CREATE TABLE IF NOT EXISTS jobs (id INTEGER PRIMARY KEY, seconds REAL, state TEXT DEFAULT 'new')"
        )
        # What a process that crashed had taken is to be done again.
        self.db.execute("UPDATE jobs SET state = 'new' WHERE state = 'taken'")

    def add(self, seconds: float) -> None:
        with self.lock:
            self.db.execute("INSERT INTO jobs (seconds) VALUES (?)", (seconds,))

    def take(self) -> Callable[[], object] | None:
        """The source: the next job as a call, or None, "nothing now"."""
        with self.lock:
            row = self.db.execute(
                "UPDATE jobs SET state = 'taken' WHERE id = (SELECT id FROM jobs WHERE state = 'new' LIMIT 1)"
                " RETURNING id, seconds"
            ).fetchone()
        return None if row is None else partial(self.carry_out, *row)

    def carry_out(self, number: int, seconds: float) -> None:
        time.sleep(seconds)  # something slow: a request, a child process, a disk
        with self.lock:
            self.db.execute("UPDATE jobs SET state = 'done' WHERE id = ?", (number,))

    def count(self, state: str) -> int:
        with self.lock:
            (number,) = self.db.execute("SELECT count(*) FROM jobs WHERE state = ?", (state,)).fetchone()
        return int(number)


def main(number: int) -> None:
    with tempfile.TemporaryDirectory() as folder, cmwq.WorkQueue("jobs") as queue:
        jobs = Jobs(Path(folder) / "jobs.db")
        begun = time.monotonic()
        serving = queue.serve(jobs.take)
        for _ in range(number):
            jobs.add(0.1)
            serving.notify()  # after it is there
        while jobs.count("done") < number:
            time.sleep(0.01)
        serving.close()
        seconds = time.monotonic() - begun
        print(f"{serving.ended} jobs of 0.1 s each in {seconds:.2f} s; the table was asked {serving.asked} times")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
