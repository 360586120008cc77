"""Celery on cmwq: a worker whose `-c` is a bound and not a number of threads. Starts a worker, and sends it tasks.

    python examples/celery_app.py [redis://HOST:PORT/0]

It needs a Redis (default: this machine's, at the usual port). In earnest, the worker is a command of its own:

    CELERY_CUSTOM_WORKER_POOL=cmwq.contrib.celery:TaskPool celery -A celery_app worker -P custom -c 256
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import celery  # type: ignore[import-untyped,import-not-found,unused-ignore]

URL = os.environ.get("REDIS", "redis://127.0.0.1:6379/0")
TASKS = 50

app = celery.Celery("celery_app", broker=URL, backend=URL)
app.conf.update(
    task_default_queue="cmwq-example",
    task_acks_late=True,  # what runs when a worker dies is done again
    worker_prefetch_multiplier=1,  # what can't run yet stays with the broker, for other workers
    result_backend_thread_safe=True,  # one connection pool for results, instead of one for each thread
    broker_connection_retry_on_startup=True,
)


@app.task  # type: ignore[untyped-decorator,misc,unused-ignore]
def fetch(number: int) -> int:
    time.sleep(0.2)  # something slow: a request, a database
    return number


def main(url: str) -> None:
    environment = {**os.environ, "REDIS": url, "CELERY_CUSTOM_WORKER_POOL": "cmwq.contrib.celery:TaskPool"}
    command = [
        sys.executable,
        "-m",
        "celery",
        "-A",
        "celery_app",
        "worker",
        "-P",
        "custom",
        "-c",
        "256",
        "-l",
        "WARNING",
    ]
    worker = subprocess.Popen(command, cwd=Path(__file__).parent, env=environment, stdout=subprocess.DEVNULL)
    try:
        fetch.delay(0).get(30)  # the worker is there
        begun = time.monotonic()
        results = [fetch.delay(number) for number in range(TASKS)]
        got = [result.get(30) for result in results]
        print(f"{len(got)} tasks of 0.2 s each in {time.monotonic() - begun:.2f} s")
    finally:
        worker.send_signal(signal.SIGTERM)  # a warm shutdown
        worker.wait()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        os.environ["REDIS"] = sys.argv[1]
        os.execv(sys.executable, [sys.executable, __file__])
    main(URL)
