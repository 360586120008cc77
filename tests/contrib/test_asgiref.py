"""cmwq.Executor where asgiref, and so Django under ASGI, takes an executor."""

from __future__ import annotations

import asyncio
import inspect
import sqlite3
import threading
from contextvars import ContextVar
from typing import Any

import pytest
from conftest import HANG, Gate

pytest.importorskip("asgiref", reason="asgiref is not installed")

from asgiref.sync import ThreadSensitiveContext, async_to_sync, sync_to_async

import cmwq
from contrib.wsgi import run_example

NAME: ContextVar[str] = ContextVar("NAME", default="nobody")

takes_executors = pytest.mark.skipif(
    "executor" not in inspect.signature(ThreadSensitiveContext.__init__).parameters,
    reason="ThreadSensitiveContext takes an executor since asgiref 3.13",
)


def test_waiting_calls_do_not_hold_up_others(gate: Gate) -> None:
    async def main() -> str:
        with cmwq.Executor() as pool:
            held = [
                asyncio.ensure_future(sync_to_async(gate, thread_sensitive=False, executor=pool)()) for _ in range(50)
            ]
            await asyncio.to_thread(gate.await_arrivals, 50)
            told = await sync_to_async(str, thread_sensitive=False, executor=pool)("through")
            gate.open.set()
            await asyncio.gather(*held)
        return told

    assert asyncio.run(asyncio.wait_for(main(), HANG)) == "through"


def test_context_variables_go_there_and_come_back_and_nothing_stays() -> None:
    def work() -> str:
        seen = NAME.get()
        NAME.set("somebody else")
        return seen

    async def request(pool: Any, name: str) -> tuple[str, str]:
        NAME.set(name)
        return await sync_to_async(work, thread_sensitive=False, executor=pool)(), NAME.get()

    async def main() -> list[tuple[str, str]]:
        with cmwq.Executor() as pool:
            return list(await asyncio.gather(*(request(pool, str(number)) for number in range(20))))

    assert asyncio.run(main()) == [(str(number), "somebody else") for number in range(20)]


@takes_executors
def test_a_lease_of_one_thread_serves_a_thread_sensitive_context() -> None:
    database: list[sqlite3.Connection] = []

    def connect() -> int:
        database.append(sqlite3.connect(":memory:"))  # sqlite3 refuses other threads
        return threading.get_ident()

    def use() -> int:
        database[0].execute("SELECT 1")
        return threading.get_ident()

    def close() -> None:
        database[0].close()

    async def main() -> set[int]:
        with cmwq.Executor(max_workers=1) as one_thread:
            async with ThreadSensitiveContext(executor=one_thread):
                threads = {await sync_to_async(connect)()}
                for _ in range(20):
                    threads.add(await sync_to_async(use)())
                await sync_to_async(close)()
            return threads

    threads = asyncio.run(main())
    assert len(threads) == 1
    assert threading.get_ident() not in threads


@takes_executors
def test_contexts_with_leases_of_their_own_do_not_hold_up_one_another(gate: Gate) -> None:
    async def request(work: Any) -> None:
        with cmwq.Executor(max_workers=1) as one_thread:
            async with ThreadSensitiveContext(executor=one_thread):
                await sync_to_async(work)()

    async def main() -> None:
        held = [asyncio.ensure_future(request(gate)) for _ in range(10)]
        await asyncio.to_thread(gate.await_arrivals, 10)
        await request(int)
        gate.open.set()
        await asyncio.gather(*held)

    asyncio.run(asyncio.wait_for(main(), HANG))


@takes_executors
def test_sync_code_in_a_context_may_call_async_code_that_calls_sync_code() -> None:
    async def inner() -> int:
        return await sync_to_async(threading.get_ident)()

    def outer() -> tuple[int, int]:
        return threading.get_ident(), async_to_sync(inner)()

    async def main() -> tuple[int, int]:
        with cmwq.Executor(max_workers=1) as one_thread:
            async with ThreadSensitiveContext(executor=one_thread):
                return await sync_to_async(outer)()

    here, there = asyncio.run(asyncio.wait_for(main(), HANG))
    assert here == there


def test_the_example_runs() -> None:
    assert "on one thread: [(42,)]" in run_example("asgiref_calls.py")
