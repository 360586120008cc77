"""Celery with a real Redis, APScheduler 3 and taskiq: their own threads, and cmwq's."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from loads import Load, Outcome, Peak

# --------------------------------------------------------------------------------------------- APScheduler


def apscheduler_sleeps(setting: str) -> Outcome:
    from apscheduler.executors.pool import ThreadPoolExecutor as Stock
    from apscheduler.schedulers.background import BackgroundScheduler

    import cmwq.contrib.apscheduler

    if setting == "cmwq":
        executor: Any = cmwq.contrib.apscheduler.PoolExecutor()
    else:
        executor = Stock() if setting == "stock" else Stock(int(setting))
    scheduler = BackgroundScheduler(executors={"default": executor}, timezone="UTC")
    latencies: list[float] = []
    ended = threading.Semaphore(0)

    def job() -> None:
        time.sleep(0.05)
        latencies.append(time.perf_counter() - begun)
        ended.release()

    for _ in range(200):
        scheduler.add_job(job, misfire_grace_time=None)
    with Peak() as peak:
        begun = time.perf_counter()
        scheduler.start()
        for _ in range(200):
            ended.acquire()
        seconds = time.perf_counter() - begun
    scheduler.shutdown()
    return Outcome(seconds, latencies, 200 - len(latencies), peak.threads, peak.rss)


# --------------------------------------------------------------------------------------------- taskiq


def taskiq_sleeps(setting: str) -> Outcome:
    import logging

    import taskiq
    from taskiq.receiver import Receiver

    import cmwq.contrib.taskiq

    logging.disable()

    class Broker(taskiq.InMemoryBroker):
        async def kick(self, message: Any) -> None:
            await messages.put(message.message)

        async def listen(self) -> Any:
            while True:
                yield await messages.get()

    messages: asyncio.Queue[bytes] = asyncio.Queue()
    broker = Broker()
    latencies: list[float] = []
    begun = 0.0
    ended = threading.Semaphore(0)

    @broker.task
    def nap() -> None:
        time.sleep(0.05)
        latencies.append(time.perf_counter() - begun)
        ended.release()

    async def main() -> tuple[float, Peak]:
        nonlocal begun
        over = asyncio.Event()
        if setting == "cmwq":
            receiver: Any = cmwq.contrib.taskiq.Receiver(broker, max_async_tasks=256)
        else:
            pool = ThreadPoolExecutor(None if setting == "stock" else int(setting))
            receiver = Receiver(broker, executor=pool, max_async_tasks=256)
        for _ in range(200):
            await nap.kiq()
        with Peak() as peak:
            begun = time.perf_counter()
            listening = asyncio.create_task(receiver.listen(over))
            while len(latencies) < 200:
                await asyncio.sleep(0.002)
            seconds = time.perf_counter() - begun
        over.set()
        await listening
        return seconds, peak

    seconds, peak = asyncio.run(main())
    return Outcome(seconds, latencies, 200 - len(latencies), peak.threads, peak.rss)


# --------------------------------------------------------------------------------------------- Celery

APP = """
import os, time
import celery, redis
app = celery.Celery("app", broker=os.environ["REDIS"])
app.conf.update(worker_prefetch_multiplier=1, broker_connection_retry_on_startup=True, task_ignore_result=True)
store = redis.Redis.from_url(os.environ["REDIS"])

def note():
    store.rpush("ended", time.time())

@app.task
def nap():
    time.sleep(0.2)
    note()

@app.task
def short():
    note()

@app.task
def compute():
    sum(range(300_000))
    note()
"""


@contextmanager
def redis_server(folder: Path) -> Iterator[int]:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = int(found.getsockname()[1])
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        yield port
    finally:
        server.terminate()
        server.wait()


def _celery(setting: str, task: str, number: int) -> Outcome:
    import redis

    if shutil.which("redis-server") is None:
        raise SystemExit("there is no redis-server here: `make test-services` installs it")
    with tempfile.TemporaryDirectory() as folder, redis_server(Path(folder)) as port:
        (Path(folder) / "app.py").write_text(APP)
        os.environ["REDIS"] = f"redis://127.0.0.1:{port}/0"
        sys.path.insert(0, folder)
        store = redis.Redis(port=port)
        while True:
            try:
                store.ping()
                break
            except redis.ConnectionError:
                time.sleep(0.05)
        import app  # type: ignore[import-not-found,unused-ignore]

        pool = {
            "stock": ["-P", "threads"],
            "cmwq": ["-P", "custom", "-c", "256"],
        }.get(setting, ["-P", "threads", "-c", setting])
        command = [sys.executable, "-m", "celery", "-A", "app", "worker", *pool, "-l", "ERROR"]
        quick = ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        environment = {**os.environ, "CELERY_CUSTOM_WORKER_POOL": "cmwq.contrib.celery:TaskPool"}
        with open(os.devnull, "w") as null:
            worker = subprocess.Popen([*command, *quick], cwd=folder, env=environment, stdout=null, stderr=null)
        try:
            app.short.delay()
            while store.llen("ended") < 1:
                time.sleep(0.01)
            store.delete("ended")
            with Peak(worker.pid) as peak:
                begun = time.time()
                for _ in range(number):
                    getattr(app, task).delay()
                until = time.time() + 120
                while store.llen("ended") < number and time.time() < until:
                    time.sleep(0.01)
                ended = [float(each) - begun for each in store.lrange("ended", 0, -1)]
        finally:
            worker.send_signal(signal.SIGTERM)
            worker.wait(60)
    return Outcome(max(ended), ended, number - len(ended), peak.threads, peak.rss)


def celery_naps(setting: str) -> Outcome:
    return _celery(setting, "nap", 200)


def celery_short(setting: str) -> Outcome:
    return _celery(setting, "short", 1000)


def celery_compute(setting: str) -> Outcome:
    return _celery(setting, "compute", 200)


SIZES = ("stock", "8", "32", "128", "cmwq")

LOADS = [
    Load("apscheduler-sleeps", "APScheduler: 200 jobs of 50 ms, due at once", SIZES, apscheduler_sleeps,
         needs=("apscheduler",)),
    Load("taskiq-sleeps", "taskiq: 200 synchronous tasks of 50 ms", SIZES, taskiq_sleeps, needs=("taskiq",)),
    Load("celery-sleeps", "Celery, Redis: 200 tasks of 200 ms", SIZES, celery_naps,
         needs=("celery", "redis"), programs=("redis-server",)),
    Load("celery-short", "Celery, Redis: 1,000 tasks that do nothing", SIZES, celery_short,
         "the broker and Celery's event loop take the time; no pool makes much of a difference.",
         needs=("celery", "redis"), programs=("redis-server",)),
    Load("celery-compute", "Celery, Redis: 200 tasks that compute for some ms", SIZES, celery_compute,
         "with a GIL, threads can't compute at the same time, whatever their pool; the prefork pool is for that.",
         needs=("celery", "redis"), programs=("redis-server",)),
]  # fmt: skip
