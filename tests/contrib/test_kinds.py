"""A9 through frameworks: calls of two functions are of two kinds, though the framework hands both over in its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from typing import Any

import pytest
from conftest import HANG

import cmwq
import cmwq.aio
from cmwq._core.naming import kind_of, name_of
from cmwq._pool.worker import current_worker

Fn = Callable[[], object]
Kind = tuple[object, ...]


def my_kind() -> Kind:
    """What the pool tells the running call by, with the function's name in messages at the end."""
    worker = current_worker()
    assert worker is not None
    assert worker.item is not None
    function = worker.item.function
    anchors, name = kind_of(function)
    return (*map(id, anchors), name, name_of(function))


class Heard:
    """Two functions, which note by which kind the pool knows their calls."""

    def __init__(self) -> None:
        self.kinds: dict[str, list[Kind]] = {"one": [], "other": []}
        self.heard = threading.Semaphore(0)

    def one(self) -> None:
        self._note("one")

    def other(self) -> None:
        self._note("other")

    def _note(self, name: str) -> None:
        self.kinds[name].append(my_kind())
        self.heard.release()


Way = Callable[[list[Fn]], object]


def by_context(submit: Callable[..., cmwq.Future[Any]]) -> Way:
    def run(fns: list[Fn]) -> None:
        for fn in fns:
            submit(copy_context().run, fn).result(HANG)
            submit(copy_context().run, partial(fn)).result(HANG)  # as taskiq does

    return run


def a_work_by_context(fns: list[Fn]) -> None:
    for fn in fns:
        cmwq.system.queue(cmwq.Work(copy_context().run, fn))
    cmwq.system.flush(HANG)


def to_thread(fns: list[Fn]) -> None:
    async def main() -> None:
        cmwq.aio.install()
        for fn in fns:
            await asyncio.to_thread(fn)

    asyncio.run(main())


def anyio(fns: list[Fn]) -> None:
    pytest.importorskip("anyio", reason="anyio is not installed")
    import anyio.to_thread

    import cmwq.contrib.anyio

    async def main() -> None:
        with cmwq.contrib.anyio.installed():
            for fn in fns:
                await anyio.to_thread.run_sync(fn)
                await anyio.to_thread.run_sync(copy_context().run, fn)

    anyio.run(main)


def fastapi(fns: list[Fn]) -> None:
    for name in ("fastapi", "httpx"):
        pytest.importorskip(name, reason=f"{name} is not installed")
    import httpx
    from fastapi import FastAPI

    import cmwq.contrib.anyio

    app = FastAPI()
    for number, fn in enumerate(fns):
        app.get(f"/{number}")(fn)

    async def main() -> None:
        with cmwq.contrib.anyio.installed():
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here") as client:
                for number, _ in enumerate(fns):
                    assert (await client.get(f"/{number}")).status_code == 200

    asyncio.run(main())


def asgiref(fns: list[Fn]) -> None:
    pytest.importorskip("asgiref", reason="asgiref is not installed")
    from asgiref.sync import sync_to_async

    async def main() -> None:
        with cmwq.Executor() as pool:
            for fn in fns:
                await sync_to_async(fn, thread_sensitive=False, executor=pool)()

    asyncio.run(main())


def celery(fns: list[Fn]) -> None:
    pytest.importorskip("celery", reason="Celery can't be imported here")
    pool = pytest.importorskip("cmwq.contrib.celery").TaskPool(4)
    pool.start()

    class Request:
        def __init__(self, name: str) -> None:
            self.name = name

        def revoked(self) -> bool:
            return False

        def on_accepted(self, pid: int, time: float) -> None: ...

    def trace(fn: Fn) -> None:
        fn()

    for fn in fns:
        pool.apply_async(trace, (fn,), accept_callback=Request(f"tasks.{fn.__name__}").on_accepted).wait(HANG)
    pool.stop()


def apscheduler(fns: list[Fn]) -> None:
    pytest.importorskip("apscheduler.executors.pool", reason="APScheduler 3 can't be imported here")
    from apscheduler.schedulers.background import BackgroundScheduler

    import cmwq.contrib.apscheduler

    executor = cmwq.contrib.apscheduler.PoolExecutor(max_active="8")
    scheduler = BackgroundScheduler(executors={"default": executor}, timezone="UTC")
    scheduler.start()
    for fn in fns:
        scheduler.add_job(fn, misfire_grace_time=None)
    return scheduler


def joblib(fns: list[Fn]) -> None:
    joblib = pytest.importorskip("joblib", reason="joblib can't be imported here")
    import cmwq.contrib.joblib

    cmwq.contrib.joblib.register()
    for fn in fns:
        joblib.Parallel(n_jobs=-1, backend="cmwq")(joblib.delayed(fn)() for _ in range(2))


WAYS: dict[str, Way] = {
    "executor": lambda fns: by_context(cmwq.Executor().submit)(fns),
    "one thread": lambda fns: by_context(cmwq.Executor(max_workers=1).submit)(fns),
    "queue": by_context(lambda *call: cmwq.system.submit(*call)),
    "work": a_work_by_context,
    "asyncio": to_thread,
    "anyio": anyio,
    "fastapi": fastapi,
    "asgiref": asgiref,
    "celery": celery,
    "apscheduler": apscheduler,
    "joblib": joblib,
}


@pytest.mark.parametrize("way", WAYS)
def test_A9_calls_through_a_framework_are_told_apart_by_what_they_call(way: str) -> None:
    heard = Heard()
    scheduler: Any = WAYS[way]([heard.one, heard.other, heard.one])
    for _ in range(3):
        assert heard.heard.acquire(timeout=HANG)
    if scheduler is not None:
        scheduler.shutdown()
    (one,) = set(heard.kinds["one"])
    (other,) = set(heard.kinds["other"])
    assert one != other
    if way not in ("fastapi", "asgiref"):  # these give theirs a partial call, which is named by its own function
        assert ("one" in str(one[-1]), "other" in str(other[-1])) == (True, True)
