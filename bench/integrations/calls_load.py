"""Calls that frameworks make for others: asgiref, aiofiles, Django Tasks, Pydantic AI."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from loads import Load, Outcome, Peak, timed
from web_load import on_asyncio

import cmwq.aio

NAP = 0.05


def pool_of(setting: str) -> Any:
    """What is handed over as an executor; None: the framework's own."""
    if setting == "stock":
        return None
    return cmwq.Executor(max_active=cmwq.aio.UNLIMITED) if setting == "cmwq" else ThreadPoolExecutor(int(setting))


async def timed_call(latencies: list[float], call: Callable[[], Awaitable[object]]) -> None:
    with timed(latencies):
        await call()


# --------------------------------------------------------------------------------------------- asgiref


def on_asgiref(fn: Callable[[], object], number: int, setting: str) -> Outcome:
    from asgiref.sync import sync_to_async

    latencies: list[float] = []
    pool = pool_of(setting)
    call = sync_to_async(fn, thread_sensitive=False, executor=pool)

    async def main() -> float:
        began = time.perf_counter()
        await asyncio.gather(*(timed_call(latencies, call) for _ in range(number)))
        return time.perf_counter() - began

    with Peak() as peak, pool or contextlib.nullcontext():
        seconds = asyncio.run(main())
    return Outcome(seconds, latencies, 0, peak.threads - 1, peak.rss)  # without the one that looks


# --------------------------------------------------------------------------------------------- aiofiles


async def files_behind_sleeps(latencies: list[float]) -> None:
    """aiofiles opens, reads and closes files on the executor of the loop."""
    import aiofiles

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        path.write_bytes(bytes(10_000))
        behind = [asyncio.ensure_future(asyncio.to_thread(time.sleep, 0.5)) for _ in range(40)]
        await asyncio.sleep(0.01)

        async def read() -> None:
            async with aiofiles.open(path, "rb") as file:
                await file.read()

        await asyncio.gather(*(timed_call(latencies, read) for _ in range(20)), *behind)


# --------------------------------------------------------------------------------------------- Django Tasks


def on_django(task: str, number: int, setting: str) -> Outcome:
    from django.conf import settings

    backend = {
        "stock": "django.tasks.backends.immediate.ImmediateBackend",
        "cmwq": "cmwq.contrib.django.ThreadBackend",
    }[setting]
    settings.configure(TASKS={"default": {"BACKEND": backend}}, USE_TZ=True)
    import django
    from django.tasks.signals import task_finished

    django.setup()
    sys.path.insert(0, os.path.dirname(__file__) + "/served")
    import tasks_of_django  # type: ignore[import-not-found,unused-ignore]

    latencies: list[float] = []
    task_finished.connect(lambda **_: latencies.append(time.perf_counter() - began), weak=False)
    with Peak() as peak:
        began = time.perf_counter()
        for _ in range(number):
            getattr(tasks_of_django, task).enqueue()
        while len(latencies) < number:
            time.sleep(0.001)
        seconds = time.perf_counter() - began
    return Outcome(seconds, latencies, 0, peak.threads - 1, peak.rss)


# --------------------------------------------------------------------------------------------- Pydantic AI


def on_pydantic_ai(setting: str) -> Outcome:
    from pydantic_ai import Agent
    from pydantic_ai.messages import ModelResponse, TextPart, ToolCallPart
    from pydantic_ai.models.function import FunctionModel

    def model(messages: list[Any], info: Any) -> Any:
        if len(messages) > 1:
            return ModelResponse(parts=[TextPart("done")])
        return ModelResponse(parts=[ToolCallPart("nap", {}) for _ in range(200)])

    agent = Agent(FunctionModel(model))
    latencies: list[float] = []

    @agent.tool_plain
    def nap() -> None:
        time.sleep(NAP)
        latencies.append(time.perf_counter() - began)

    pool = pool_of(setting)
    with Peak() as peak, pool or contextlib.nullcontext():
        with Agent.using_thread_executor(pool) if pool else contextlib.nullcontext():
            began = time.perf_counter()
            asyncio.run(agent.run("go"))
            seconds = time.perf_counter() - began
    return Outcome(seconds, latencies, 200 - len(latencies), peak.threads - 1, peak.rss)


SIZES = ("stock", "8", "32", "128", "cmwq")
INLINE = "Django has no backend with threads: stock is its ImmediateBackend, which runs a task within `enqueue`"

LOADS = [
    Load("asgiref-sleep", "asgiref: 200 × sync_to_async(sleep, 50 ms)", (*SIZES[:-1], "256", "cmwq"),
         partial(on_asgiref, partial(time.sleep, NAP), 200), needs=("asgiref",)),
    Load("asgiref-short", "asgiref: 5,000 × sync_to_async(int)", ("stock", "1", "8", "32", "cmwq"),
         partial(on_asgiref, int, 5000), "the calls do nothing, so this is what handing over costs: nothing to decide.",
         needs=("asgiref",)),
    Load("aiofiles-behind", "aiofiles: 20 files behind 40 × 0.5 s", ("stock", "32", "256", "cmwq"),
         partial(on_asyncio, files_behind_sleeps), "s is until the sleeps are over; p50 is what a file took",
         needs=("aiofiles",)),
    Load("django-sleep", "Django Tasks: 200 tasks of 50 ms", ("stock", "cmwq"), partial(on_django, "nap", 200), INLINE,
         needs=("django.tasks",)),
    Load("django-short", "Django Tasks: 2,000 tasks that do nothing", ("stock", "cmwq"),
         partial(on_django, "nothing", 2000),
         f"{INLINE}. It hands nothing over and keeps no result, so it is ahead where a task does nothing.",
         needs=("django.tasks",)),
    Load("pydantic-ai-sleep", "Pydantic AI: an agent that calls 200 tools of 50 ms", SIZES, on_pydantic_ai,
         needs=("pydantic_ai",)),
]  # fmt: skip
