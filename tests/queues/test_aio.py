"""cmwq.aio: the waiting calls, awaited."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest
from conftest import HANG, Gate

import cmwq
import cmwq.aio


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, HANG))


class Held:
    """A queue that runs a call and a work until the gate opens."""

    def __init__(self, runtime: cmwq.Runtime, gate: Gate) -> None:
        self.runtime = runtime
        self.gate = gate
        self.wq = cmwq.WorkQueue("q", freezable=True, runtime=runtime)
        self.batch = cmwq.Batch(self.wq)
        self.future = self.batch.submit(gate)
        self.work = cmwq.Work(gate)
        self.wq.queue(self.work)
        gate.await_arrivals(2)


CALLS: dict[str, Callable[[Held, float | None], Awaitable[object]]] = {
    "flush": lambda held, timeout: cmwq.aio.flush(held.wq, timeout),
    "work.flush": lambda held, timeout: cmwq.aio.flush(held.work, timeout),
    "drain": lambda held, timeout: cmwq.aio.drain(held.wq, timeout),
    "cancel_sync": lambda held, timeout: cmwq.aio.cancel_sync(held.work, timeout),
    "disable_sync": lambda held, timeout: cmwq.aio.disable_sync(held.work, timeout),
    "wait": lambda held, timeout: cmwq.aio.wait(held.batch, timeout),
    "freeze": lambda held, timeout: cmwq.aio.freeze(timeout, held.runtime),
    "close": lambda held, timeout: cmwq.aio.close(held.wq, timeout),
}


@pytest.fixture
def held(universe: cmwq.Runtime, gate: Gate) -> Held:
    return Held(universe, gate)


@pytest.mark.parametrize("name", CALLS)
def test_it_waits_while_the_loop_runs(held: Held, name: str) -> None:
    async def main() -> None:
        task = asyncio.ensure_future(CALLS[name](held, HANG))
        loops = 0
        while loops < 50:
            await asyncio.sleep(0)
            loops += 1
        assert not task.done()
        held.gate.open.set()
        await task
        if name in ("flush", "drain", "close", "freeze"):
            assert held.future.done()
            assert not held.work.running
        elif name == "wait":
            assert held.future.done()
        else:
            assert not held.work.running

    run(main())


@pytest.mark.parametrize("name", CALLS)
def test_F8_a_timeout_is_kept(held: Held, name: str) -> None:
    async def main() -> None:
        with pytest.raises(cmwq.CmwqTimeout, match=r"after 0\.01 s"):
            await CALLS[name](held, 0.01)

    run(main())


@pytest.mark.parametrize("name", CALLS)
def test_cancelling_the_task_undoes_what_the_call_did(held: Held, name: str) -> None:
    async def main() -> None:
        task = asyncio.ensure_future(CALLS[name](held, None))
        for _ in range(5):
            await asyncio.sleep(0)
        if name == "drain":
            assert not held.wq.is_open
        elif name in ("cancel_sync", "disable_sync"):
            assert held.work.is_blocked
        elif name == "freeze":
            assert held.runtime.frozen
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert held.wq.is_open == (name != "close"), "a closing queue stays closed"
        assert not held.runtime.frozen
        if name == "disable_sync":
            assert held.work.disabled, "that stays"
            assert held.work.enable()
        assert not held.work.is_blocked
        if name != "close":
            assert await asyncio.wait_for(asyncio.wrap_future(held.wq.submit(len, "ab")), HANG) == 2
            assert held.wq.queue(held.work)

    run(main())


def test_results_are_those_of_the_methods(universe: cmwq.Runtime, gate: Gate) -> None:
    wq = cmwq.WorkQueue("q", max_active=1, runtime=universe)
    work = cmwq.Work(int)

    async def main() -> None:
        assert await cmwq.aio.flush(work) is False
        assert await cmwq.aio.flush(wq) is None
        assert await cmwq.aio.cancel_sync(work) is False
        wq.submit(gate)
        wq.queue(work)
        assert await cmwq.aio.cancel_sync(work) is True
        wq.queue(work)
        assert await cmwq.aio.disable_sync(work) is True
        assert work.enable()
        wq.queue(work)
        task = asyncio.ensure_future(cmwq.aio.flush(work, HANG))
        await asyncio.sleep(0)
        gate.open.set()  # only now: it has begun to wait
        assert await task is True

    run(main())


def test_many_tasks_wait_at_the_same_time(universe: cmwq.Runtime) -> None:
    wq = cmwq.WorkQueue("q", runtime=universe)

    async def main() -> None:
        works = [cmwq.Work(int) for _ in range(50)]
        for work in works:
            wq.queue(work)
        await asyncio.gather(*(cmwq.aio.flush(work) for work in works), *(cmwq.aio.flush(wq) for _ in range(20)))
        assert not any(work.pending or work.running for work in works)

    run(main())


def test_a_loop_that_closed_while_it_waited_disturbs_nobody(held: Held) -> None:
    loop = asyncio.new_event_loop()
    task = loop.create_task(cmwq.aio.flush(held.wq))
    loop.run_until_complete(asyncio.sleep(0))
    task.cancel()
    loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
    loop.close()
    held.gate.open.set()
    held.wq.flush(HANG)
    assert held.future.done()


def test_the_futures_need_no_twin(runtime: cmwq.Runtime) -> None:
    wq = cmwq.WorkQueue("q", runtime=runtime)

    async def main() -> None:
        results = await asyncio.gather(*(asyncio.wrap_future(wq.submit(pow, n, 2)) for n in range(50)))
        assert results == [n * n for n in range(50)]
        assert await asyncio.get_running_loop().run_in_executor(cmwq.Executor(runtime=runtime), len, "abc") == 3

    run(main())


def test_cancelling_an_awaited_future_cancels_the_call(universe: cmwq.Runtime, gate: Gate) -> None:
    wq = cmwq.WorkQueue("q", max_active=1, runtime=universe)
    ran = threading.Event()

    async def main() -> None:
        wq.submit(gate)
        future = wq.submit(ran.set)
        task = asyncio.ensure_future(asyncio.wait_for(asyncio.wrap_future(future), HANG))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert future.cancelled()

    run(main())
    gate.open.set()
    wq.flush(HANG)
    assert not ran.is_set()
