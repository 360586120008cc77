"""cmwq.contrib.taskiq, with the real taskiq: its receiver, and its worker command."""

from __future__ import annotations

import asyncio
import contextvars
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from conftest import HANG, AtOnce, until

import cmwq

taskiq = pytest.importorskip("taskiq", reason="taskiq can't be imported here")

import cmwq.contrib.taskiq  # noqa: E402


class Broker(taskiq.InMemoryBroker):  # type: ignore[misc,unused-ignore]
    """Hands messages over through a queue, as brokers over the network do."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: asyncio.Queue[bytes] = asyncio.Queue()

    async def kick(self, message: Any) -> None:
        await self.messages.put(message.message)

    async def listen(self) -> Any:
        while True:
            yield await self.messages.get()


async def serve(broker: Any, *, sends: Any, **options: Any) -> Any:
    """Run `sends()` while a receiver listens; its outcome."""
    receiver = cmwq.contrib.taskiq.Receiver(broker, threading.Thread, **{"max_async_tasks": 100, **options})
    over = asyncio.Event()
    listening = asyncio.create_task(receiver.listen(over))
    try:
        return await asyncio.wait_for(sends(), HANG)
    finally:
        over.set()
        await asyncio.wait_for(listening, HANG)
        assert receiver.executor._shutdown


def test_tasks_that_wait_for_each_other_run_at_once_on_however_few_cpus() -> None:
    broker, barrier = Broker(), threading.Barrier(40)

    @broker.task
    def meet() -> None:
        barrier.wait(HANG)

    async def sends() -> None:
        for sent in [await meet.kiq() for _ in range(40)]:
            assert not (await sent.wait_result(timeout=HANG)).is_err

    asyncio.run(serve(broker, sends=sends))


def test_the_bound_on_tasks_is_kept_and_failures_are_reported() -> None:
    broker, at_once = Broker(), AtOnce()

    @broker.task
    def count(number: int) -> int:
        with at_once:
            threading.Event().wait(0.002)
        return 100 // number

    async def sends() -> list[Any]:
        sent = [await count.kiq(number) for number in range(30)]
        return [await each.wait_result(timeout=HANG) for each in sent]

    results = asyncio.run(serve(broker, sends=sends, max_async_tasks=3))
    assert 1 <= at_once.most <= 3
    assert [each.is_err for each in results] == [True] + [False] * 29
    assert results[4].return_value == 25


def test_nothing_leaks_from_one_task_into_the_next() -> None:
    broker = Broker()
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)

    @broker.task
    def remember() -> int:
        before = variable.get()
        variable.set(1)
        return before

    async def sends() -> list[int]:
        return [(await (await remember.kiq()).wait_result(timeout=HANG)).return_value for _ in range(20)]

    assert asyncio.run(serve(broker, sends=sends)) == [0] * 20


def test_a_pool_of_processes_is_kept() -> None:
    with ProcessPoolExecutor(1) as pool:
        receiver = cmwq.contrib.taskiq.Receiver(Broker(), pool, max_async_tasks=1)
        assert receiver.executor is pool


APP = """
import asyncio, os, pathlib, threading
import taskiq

folder = pathlib.Path(os.environ["FOLDER"])
barrier = threading.Barrier(30)


class Broker(taskiq.InMemoryBroker):
    async def listen(self):
        for number in range(30):
            yield self.formatter.dumps(taskiq.TaskiqMessage(
                task_id=str(number), task_name="meet", labels={}, args=[], kwargs={})).message
        while True:  # taskiq's handler of signals does not wake an event loop that waits for nothing
            await asyncio.sleep(0.05)


broker = Broker()


@broker.task(task_name="meet")
def meet():
    number = barrier.wait(60)
    (folder / str(number)).touch()
"""


def test_the_command_takes_it_and_ends_at_sigint(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "met").mkdir()
    command = [
        sys.executable,
        "-m",
        "taskiq",
        "worker",
        "app:broker",
        "--workers",
        "1",
        "--max-threadpool-threads",
        "2",
    ]
    receiver = ["--receiver", "cmwq.contrib.taskiq:Receiver"]
    environment = {**os.environ, "FOLDER": str(tmp_path / "met")}
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, *receiver], cwd=tmp_path, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    try:

        def met() -> bool:
            assert process.poll() is None, log.read_text()
            return len(list((tmp_path / "met").iterdir())) == 30

        until(met)
        os.killpg(process.pid, signal.SIGINT)
        process.wait(HANG)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
