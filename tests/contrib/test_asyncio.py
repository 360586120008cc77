"""cmwq.aio on asyncio's and uvloop's loops: leases as default executors, calls awaited, works that wait for a loop."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import os
import queue as queues
import socket
import sys
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import HANG, Gate, until

import cmwq
import cmwq.aio

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")

Factory = Callable[[], asyncio.AbstractEventLoop]
Run = Callable[[Coroutine[Any, Any, Any]], Any]


@pytest.fixture(params=["asyncio", "uvloop"])
def factory(request: pytest.FixtureRequest) -> Factory:
    if request.param == "uvloop":
        if hasattr(sys, "_is_gil_enabled") and not sys._is_gil_enabled():
            pytest.skip("importing uvloop would enable the GIL here")
        uvloop = pytest.importorskip("uvloop", reason="uvloop is not installed")
        made: Factory = uvloop.new_event_loop
        return made
    return asyncio.new_event_loop


@pytest.fixture
def run(factory: Factory) -> Iterator[Run]:
    """Run a coroutine in a loop with a lease; fails if it hangs."""
    with cmwq.aio.Runner(loop_factory=factory) as runner:
        yield lambda main: runner.run(asyncio.wait_for(main, HANG))


# ------------------------------------------------------------------------------------------- the lease


def test_more_calls_than_any_default_pool_has_threads_wait_at_the_same_time(run: Run, gate: Gate) -> None:
    number = 3 * (os.cpu_count() or 1) + 40

    async def main() -> None:
        calls = [asyncio.ensure_future(asyncio.to_thread(gate)) for _ in range(number)]
        await asyncio.to_thread(gate.await_arrivals, number)
        gate.open.set()
        await asyncio.gather(*calls)

    run(main())


def test_getaddrinfo_does_not_wait_behind_calls_that_sleep(run: Run, gate: Gate) -> None:
    async def main() -> None:
        calls = [asyncio.ensure_future(asyncio.to_thread(gate)) for _ in range(64)]
        found = await asyncio.get_running_loop().getaddrinfo("127.0.0.1", 80, type=socket.SOCK_STREAM)
        assert found[0][4] == ("127.0.0.1", 80)
        assert not any(call.done() for call in calls)
        gate.open.set()
        await asyncio.gather(*calls)

    run(main())


def test_aiofiles_reads_and_writes_on_workers(run: Run, tmp_path: Path) -> None:
    aiofiles = pytest.importorskip("aiofiles", reason="aiofiles is not installed")

    async def copy(number: int) -> str:
        async with aiofiles.open(tmp_path / f"{number}", "w") as file:
            await file.write(f"text {number}")
        async with aiofiles.open(tmp_path / f"{number}") as file:
            text: str = await file.read()
            return text

    async def main() -> None:
        assert await asyncio.gather(*map(copy, range(50))) == [f"text {number}" for number in range(50)]
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("asyncio_")]

    run(main())


def test_the_end_of_a_loop_ends_its_lease_and_not_the_pools(factory: Factory) -> None:
    leases = []

    async def main() -> str:
        leases.append(cmwq.aio.install())
        return await asyncio.to_thread(lambda: threading.current_thread().name)

    for _ in range(2):
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(main())
            loop = runner.get_loop()
        with pytest.raises(RuntimeError):
            loop.run_in_executor(None, print)
    assert leases[0] is not leases[1]
    for lease in leases:
        with pytest.raises(cmwq.QueueClosed):
            lease.submit(print)
    assert cmwq.system.submit(sum, [1, 2]).result(HANG) == 3


def test_the_end_of_a_runner_waits_for_calls_of_the_lease(factory: Factory, gate: Gate) -> None:
    ended = threading.Event()

    def call() -> None:
        gate()
        ended.set()

    async def main() -> None:
        asyncio.get_running_loop().run_in_executor(None, call)
        await asyncio.to_thread(gate.await_arrivals, 1)
        threading.Timer(0.05, gate.open.set).start()

    with cmwq.aio.Runner(loop_factory=factory) as runner:
        runner.run(main())
    assert ended.is_set()


def test_a_loop_factory_that_raises_leaves_nothing_open() -> None:
    loop = asyncio.new_event_loop()
    loop.set_default_executor = None  # type: ignore[method-assign, assignment]
    with pytest.raises(TypeError):
        cmwq.aio.new_event_loop(lambda: loop)
    assert loop.is_closed()


def test_install_needs_a_loop() -> None:
    with pytest.raises(RuntimeError, match="no running event loop"):
        cmwq.aio.install()


def test_a_loop_that_was_closed_is_not_kept(factory: Factory) -> None:
    with cmwq.aio.Runner(loop_factory=factory) as runner:
        runner.run(cmwq.aio.run(cmwq.system, print))
        loop = weakref.ref(runner.get_loop())
    del runner
    until(lambda: (gc.collect(), loop() is None)[1])  # the worker that woke it may still be about to return


# ------------------------------------------------------------------------------------------- calls, awaited


def test_run_returns_what_the_call_returns_and_raises_what_it_raises(run: Run, universe: cmwq.Runtime) -> None:
    queue = cmwq.WorkQueue("q", runtime=universe)

    async def main() -> None:
        assert await cmwq.aio.run(queue, int, "12", base=8) == 10
        assert await cmwq.aio.run_to_end(queue, int, "12", base=8) == 10
        for call in (cmwq.aio.run, cmwq.aio.run_to_end):
            with pytest.raises(ZeroDivisionError):
                await call(queue, divmod, 1, 0)
            with pytest.raises(RuntimeError, match="StopIteration"):
                await call(queue, next, iter(()))
        with cmwq.Executor(runtime=universe) as executor:
            assert await cmwq.aio.run(executor, sum, [1, 2]) == 3

    run(main())


def test_run_of_thousands_of_short_calls_forgets_none(run: Run, universe: cmwq.Runtime) -> None:
    queue = cmwq.WorkQueue("q", runtime=universe)

    async def main() -> None:
        results = await asyncio.gather(*(cmwq.aio.run(queue, abs, -number) for number in range(5000)))
        assert results == list(range(5000))

    run(main())


def test_loops_of_several_threads_are_told_each_of_its_own_calls(factory: Factory, universe: cmwq.Runtime) -> None:
    queue = cmwq.WorkQueue("q", runtime=universe)

    async def main() -> int:
        return sum(await asyncio.gather(*(cmwq.aio.run(queue, abs, -number) for number in range(500))))

    def loop() -> int:
        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(main())

    with cmwq.Executor() as executor:
        calls = [executor.submit(loop) for _ in range(6)]
        assert {call.result(HANG) for call in calls} == {sum(range(500))}


def test_the_call_sees_the_context_of_the_task_and_leaves_nothing_in_it(run: Run, universe: cmwq.Runtime) -> None:
    queue = cmwq.WorkQueue("q", runtime=universe)

    def swap(new: str) -> str:
        old = variable.get()
        variable.set(new)
        return old

    async def task(name: str) -> None:
        variable.set(name)
        for _ in range(20):
            assert await cmwq.aio.run(queue, swap, "other") == name
            assert await asyncio.to_thread(swap, "other") == name
            assert variable.get() == name

    async def main() -> None:
        await asyncio.gather(*(task(f"task {number}") for number in range(10)))

    run(main())
    assert variable.get() == "unset"


@pytest.mark.parametrize("call", [cmwq.aio.run, cmwq.aio.run_to_end])
def test_a_cancelled_task_takes_back_a_call_that_has_not_begun(
    run: Run, universe: cmwq.Runtime, gate: Gate, call: Callable[..., Coroutine[Any, Any, Any]]
) -> None:
    queue = cmwq.WorkQueue("q", ordered=True, runtime=universe)
    ran: list[int] = []

    async def main() -> None:
        holder = queue.submit(gate)
        task = asyncio.ensure_future(call(queue, ran.append, 1))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.open.set()
        holder.result(HANG)
        queue.flush(HANG)
        assert ran == []

    run(main())


def test_a_cancelled_task_leaves_a_call_that_runs_behind(run: Run, universe: cmwq.Runtime, gate: Gate) -> None:
    queue = cmwq.WorkQueue("q", runtime=universe)
    ran: list[int] = []

    def work() -> None:
        gate()
        ran.append(1)
        raise ValueError("nobody is told")

    async def main() -> None:
        task = asyncio.ensure_future(cmwq.aio.run(queue, work))
        await asyncio.to_thread(gate.await_arrivals, 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ran == []
        gate.open.set()
        await cmwq.aio.flush(queue, HANG)
        assert ran == [1]

    run(main())


@pytest.mark.parametrize("fails", [False, True])
def test_run_to_end_waits_for_a_call_that_runs_however_often_it_is_cancelled(
    run: Run, universe: cmwq.Runtime, gate: Gate, fails: bool
) -> None:
    queue = cmwq.WorkQueue("q", runtime=universe)
    error = ValueError("of the call")

    def work() -> None:
        gate()
        if fails:
            raise error

    async def main() -> None:
        task = asyncio.ensure_future(cmwq.aio.run_to_end(queue, work))
        await asyncio.to_thread(gate.await_arrivals, 1)
        for _ in range(3):
            task.cancel()
            for _ in range(5):
                await asyncio.sleep(0)
            assert not task.done()
        gate.open.set()
        with pytest.raises(asyncio.CancelledError) as raised:
            await task
        assert raised.value.__cause__ is (error if fails else None)

    run(main())


def test_a_call_that_others_cancel_cancels_the_await(run: Run, universe: cmwq.Runtime, gate: Gate) -> None:
    async def main() -> None:
        executor = cmwq.Executor(max_active=1, runtime=universe)
        executor.submit(gate)
        task = asyncio.ensure_future(cmwq.aio.run(executor, print))
        await asyncio.sleep(0)
        executor.shutdown(wait=False, cancel_futures=True)
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.open.set()
        await cmwq.aio.close(executor.queue, HANG)

    run(main())


def test_a_full_queue_makes_the_task_wait_and_not_the_loop(run: Run, universe: cmwq.Runtime, gate: Gate) -> None:
    queue = cmwq.WorkQueue("q", max_active=1, max_pending=1, runtime=universe)

    async def main() -> None:
        first = asyncio.ensure_future(cmwq.aio.run(queue, gate))
        await asyncio.to_thread(gate.await_arrivals, 1)
        others = [asyncio.ensure_future(cmwq.aio.run(queue, abs, -number)) for number in range(5)]
        for _ in range(20):
            await asyncio.sleep(0)  # the loop goes on
        others[4].cancel()  # while it waits for room
        gate.open.set()
        assert await asyncio.gather(*others[:4]) == [0, 1, 2, 3]
        with pytest.raises(asyncio.CancelledError):
            await others[4]
        await first
        assert await cmwq.aio.run(queue, abs, -9) == 9  # no room was lost

    run(main())


class Bounded(cmwq.Executor):
    """As users write it: at most one call waits."""

    def __init__(self, runtime: cmwq.Runtime, **options: Any) -> None:
        super().__init__(runtime=runtime, **options)
        self._work_queue = queues.Queue(1)


class Counting(Bounded):
    """As users write it, too."""

    seen = 0

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        self.seen += 1
        return super().submit(fn, *args, **kwargs)


@pytest.mark.parametrize("kind", [Bounded, Counting])
@pytest.mark.parametrize("options", [{"max_active": 1}, {"max_workers": 1}, {"max_active": 1, "initializer": int}])
def test_E9_a_full_executor_makes_the_task_wait_and_not_the_loop(
    run: Run, universe: cmwq.Runtime, gate: Gate, kind: type[Bounded], options: dict[str, Any]
) -> None:
    executor = kind(universe, **options)

    async def main() -> None:
        first = asyncio.ensure_future(cmwq.aio.run(executor, gate))
        await asyncio.to_thread(gate.await_arrivals, 1)
        others = [asyncio.ensure_future(cmwq.aio.run(executor, abs, -number)) for number in range(5)]
        for _ in range(20):
            await asyncio.sleep(0)  # a hang here is a failure: only this loop opens the gate
        assert executor.queue.nr_pending() == 1
        others[4].cancel()  # while it waits for room
        gate.open.set()
        assert await asyncio.gather(*others[:4]) == [0, 1, 2, 3]
        await first
        assert await cmwq.aio.run(executor, abs, -9) == 9  # no room was lost

    run(main())
    if isinstance(executor, Counting):
        assert executor.seen == 6, "each call was submitted by the class's own submit, once"
    executor.shutdown()


def test_calls_of_a_bounded_executor_are_prepared_however_they_are_awaited(run: Run, universe: cmwq.Runtime) -> None:
    prepared: list[int] = []
    one = Bounded(universe, max_workers=1, initializer=lambda: prepared.append(threading.get_ident()))

    async def main() -> None:
        seen = [await cmwq.aio.run(each, threading.get_ident) for each in (one, one.queue)]
        seen.append(await cmwq.aio.run_to_end(one.queue, threading.get_ident))
        assert prepared == [one.submit(threading.get_ident).result(HANG)]
        assert seen == prepared * 3

    run(main())
    one.shutdown()


def test_E9_a_work_that_is_pending_in_a_full_queue_is_joined_at_once(
    run: Run, universe: cmwq.Runtime, gate: Gate
) -> None:
    queue = cmwq.WorkQueue("q", max_active=1, max_pending=1, runtime=universe)
    work, other = cmwq.Work(len, "abc"), cmwq.Work(len, "ab")

    async def main() -> None:
        first = asyncio.ensure_future(cmwq.aio.run(queue, gate))
        await asyncio.to_thread(gate.await_arrivals, 1)
        queue.queue(work)
        joined = asyncio.ensure_future(cmwq.aio.run(queue, work))
        needs_room = asyncio.ensure_future(cmwq.aio.run(queue, other))
        for _ in range(20):
            await asyncio.sleep(0)
        assert not needs_room.done()
        assert not other.pending
        gate.open.set()
        assert await asyncio.gather(first, joined, needs_room) == [None, 3, 2]

    run(main())
    assert queue._room is not None
    assert queue._room.taken == 0


def test_E9_whoever_submits_without_waiting_gets_one_place_and_no_more(universe: cmwq.Runtime, gate: Gate) -> None:
    queue = cmwq.WorkQueue("q", max_active=1, max_pending=1, runtime=universe)
    queue.submit(gate)
    gate.await_arrivals(1)
    room, ticket = queue._room, object()
    assert room is not None
    room.take(ticket)

    def twice() -> None:
        queue.submit(int)
        with pytest.raises(cmwq.QueueFull):
            queue.submit(int)

    room.admit(ticket, twice)
    room.give(ticket)
    assert room.taken == 1
    gate.open.set()
    queue.flush(HANG)
    assert room.taken == 0


def test_a_full_queue_that_raises_raises(run: Run, universe: cmwq.Runtime, gate: Gate) -> None:
    queue = cmwq.WorkQueue("q", max_active=1, max_pending=1, full="raise", runtime=universe)

    async def main() -> None:
        first = asyncio.ensure_future(cmwq.aio.run(queue, gate))
        await asyncio.to_thread(gate.await_arrivals, 1)
        second = asyncio.ensure_future(cmwq.aio.run(queue, abs, -2))
        await asyncio.sleep(0)
        with pytest.raises(cmwq.QueueFull):
            await cmwq.aio.run(queue, abs, -3)
        gate.open.set()
        await asyncio.gather(first, second)

    run(main())


# ------------------------------------------------------------------------------------------- works that wait for a loop


def test_works_that_wait_for_a_loop_are_known_to_be_blocked(runtime: cmwq.Runtime) -> None:
    """With asyncio's own function: as many as there are CPUs wait, and more; each sensor lets the next begin."""
    queue = cmwq.WorkQueue("q", runtime=runtime)
    number = 4 * (os.cpu_count() or 1)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        opened = asyncio.Event()
        arrived: list[int] = []

        async def arrive(which: int) -> int:
            arrived.append(which)
            if len(arrived) == number:
                opened.set()
            await opened.wait()
            return which

        def work(which: int) -> int:
            return asyncio.run_coroutine_threadsafe(arrive(which), loop).result(HANG)

        assert await asyncio.gather(*(cmwq.aio.run(queue, work, each) for each in range(number))) == list(range(number))

    asyncio.run(asyncio.wait_for(main(), HANG))


def test_a_work_that_waits_for_a_coroutine_lends_its_place(run: Run, universe: cmwq.Runtime) -> None:
    queue = cmwq.WorkQueue("q", max_active=1, runtime=universe)

    async def main() -> None:
        loop = asyncio.get_running_loop()

        def nested(depth: int) -> int:
            if not depth:
                return 0
            return 1 + cmwq.aio.run_coroutine(cmwq.aio.run(queue, nested, depth - 1), loop, HANG)

        assert await cmwq.aio.run(queue, nested, 5) == 5

    run(main())


def test_run_coroutine_raises_what_the_coroutine_raises_and_keeps_its_timeout(run: Run, universe: cmwq.Runtime) -> None:
    queue = cmwq.WorkQueue("q", runtime=universe)
    cancelled = []

    async def fails() -> None:
        raise TimeoutError("its own")

    async def sleeps() -> None:
        try:
            await asyncio.sleep(HANG)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with pytest.raises(TimeoutError, match="its own"):
            await cmwq.aio.run(queue, lambda: cmwq.aio.run_coroutine(fails(), loop))
        with pytest.raises(cmwq.CmwqTimeout, match=r"no result within 0\.01 s"):
            await cmwq.aio.run(queue, lambda: cmwq.aio.run_coroutine(sleeps(), loop, 0.01))
        await asyncio.to_thread(until, lambda: bool(cancelled))
        with pytest.raises(cmwq.FlushDeadlock, match="wait for itself"):
            cmwq.aio.run_coroutine(fails(), loop)
        assert await asyncio.to_thread(cmwq.aio.run_coroutine, asyncio.sleep(0, "slept"), loop) == "slept"

    run(main())


def test_run_coroutine_sees_the_context_of_the_work(run: Run, universe: cmwq.Runtime) -> None:
    queue = cmwq.WorkQueue("q", runtime=universe)

    async def read() -> str:
        return variable.get()

    async def main() -> None:
        variable.set("of the task")
        loop = asyncio.get_running_loop()
        assert await cmwq.aio.run(queue, lambda: cmwq.aio.run_coroutine(read(), loop)) == "of the task"

    run(main())


def test_new_event_loop_is_what_uvicorn_takes_on_its_command_line() -> None:
    """`--loop cmwq.aio:new_event_loop` is imported and called without arguments."""
    loop = cmwq.aio.new_event_loop()
    try:
        assert loop.run_until_complete(loop.run_in_executor(None, partial(sum, [1, 2]))) == 3
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        loop.close()
