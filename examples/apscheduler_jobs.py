"""APScheduler 3 on cmwq: 30 jobs that are due at the same moment, and wait for something, run at the same time.

python examples/apscheduler_jobs.py
"""

from __future__ import annotations

import threading
import time

from apscheduler.schedulers.background import (  # type: ignore[import-untyped,import-not-found,unused-ignore]
    BackgroundScheduler,
)

import cmwq.contrib.apscheduler

JOBS = 30


def main() -> None:
    scheduler = BackgroundScheduler(executors={"default": cmwq.contrib.apscheduler.PoolExecutor()}, timezone="UTC")
    ended = threading.Semaphore(0)

    def job() -> None:
        time.sleep(0.2)
        ended.release()

    for _ in range(JOBS):
        scheduler.add_job(job, misfire_grace_time=None)  # by default a job that begins a second late is dropped
    begun = time.monotonic()
    scheduler.start()
    for _ in range(JOBS):
        ended.acquire()
    print(f"{JOBS} jobs of 0.2 s each in {time.monotonic() - begun:.2f} s")
    scheduler.shutdown()


if __name__ == "__main__":
    main()
