"""cmwq.aio: the waiting calls, awaited."""

from __future__ import annotations

import asyncio
import concurrent.futures as cf
import gc
import threading
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest
from conftest import HANG, Gate, until

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


@pytest.mark.parametrize("name", CALLS)
def test_G3_a_task_that_waits_is_told_when_the_runtime_is_abandoned(gate: Gate, name: str) -> None:
    held = Held(cmwq.Runtime(), gate)

    async def main() -> None:
        task = asyncio.ensure_future(CALLS[name](held, None))
        await asyncio.sleep(0)
        await asyncio.to_thread(held.runtime.close, 0.01, abandon=True)
        if name == "wait":  # all its calls have ended: it is they who are told
            await task
            assert isinstance(held.future.exception(HANG), cmwq.Abandoned)
        elif name == "freeze":  # whoever ends a runtime thaws it first
            await task
        else:
            with pytest.raises(cmwq.Abandoned, match="its runtime has ended"):
                await task
        if name in ("flush", "drain", "close"):
            with pytest.raises(cmwq.Abandoned):
                await CALLS[name](held, None)  # one that begins afterwards

    run(main())
    assert not held.runtime.waiters


def test_G3_a_task_that_waits_for_room_is_told_when_the_runtime_is_abandoned(gate: Gate) -> None:
    runtime = cmwq.Runtime()
    wq = cmwq.WorkQueue("q", max_active=1, max_pending=1, runtime=runtime)

    async def main() -> None:
        running = asyncio.ensure_future(cmwq.aio.run(wq, gate))
        await asyncio.to_thread(gate.await_arrivals, 1)
        waiting = asyncio.ensure_future(cmwq.aio.run(wq, int))
        await asyncio.sleep(0)
        without_room = asyncio.ensure_future(cmwq.aio.run(wq, int))
        await asyncio.sleep(0)
        await asyncio.to_thread(runtime.close, 0.01, abandon=True)
        told = await asyncio.gather(running, waiting, without_room, return_exceptions=True)
        assert isinstance(told[0], cmwq.Abandoned)
        assert isinstance(told[1], asyncio.CancelledError)
        assert isinstance(told[2], cmwq.Abandoned | cmwq.QueueClosed)

    run(main())


def test_nothing_keeps_a_loop_that_closed_while_its_tasks_waited(
    universe: cmwq.Runtime, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    wq = cmwq.WorkQueue("q", runtime=universe)
    future = wq.submit(gate)
    loop = asyncio.new_event_loop()
    tasks = [loop.create_task(cmwq.aio.flush(wq)), loop.create_task(cmwq.aio.outcome(future))]
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    kept = weakref.ref(loop)
    del loop, tasks
    assert universe.waiters
    gate.open.set()
    future.result(HANG)
    del future
    until(lambda: gc.collect() >= 0 and kept() is None and not universe.waiters)
    until(lambda: "was destroyed but it is pending" in caplog.text)  # as asyncio says of any such task


def test_G2_a_call_of_the_parent_can_be_awaited_by_no_child(python: Callable[..., Any]) -> None:
    done = python("""
        import asyncio, cmwq, cmwq.aio, os, threading, warnings
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads, since 3.12
        queue, opened, work = cmwq.WorkQueue("q"), threading.Event(), cmwq.Work(int)
        future = queue.submit(opened.wait)
        if not os.fork():
            try:
                asyncio.run(cmwq.aio.outcome(future))
            except cmwq.ForeignProcess:
                print("told", flush=True)
            os._exit(0)
        os.wait()
        opened.set()
    """)
    assert (done.stdout, done.stderr, done.returncode) == ("told\n", "", 0)


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


# ------------------------------------------------------------------------------------------- loops within works

AWAITS: dict[str, Callable[[Any, Callable[[], Any]], Coroutine[Any, Any, Any]]] = {
    "run": cmwq.aio.run,
    "run_to_end": cmwq.aio.run_to_end,
    "outcome": lambda queue, fn: cmwq.aio.outcome(queue.submit(fn)),
}
ONE_AT_A_TIME: dict[str, Callable[[cmwq.Runtime], Any]] = {
    "ordered": lambda runtime: cmwq.WorkQueue("one", ordered=True, runtime=runtime),
    "ordered with room": lambda runtime: cmwq.WorkQueue("one", ordered=True, max_pending=5, runtime=runtime),
    "one thread": lambda runtime: cmwq.Executor("one", max_workers=1, runtime=runtime),
}


@pytest.mark.parametrize("name", AWAITS)
@pytest.mark.parametrize("kind", ONE_AT_A_TIME)
def test_F7_a_loop_within_a_work_that_awaits_what_comes_after_the_work(
    universe: cmwq.Runtime, kind: str, name: str
) -> None:
    queue = ONE_AT_A_TIME[kind](universe)
    ran = threading.Event()

    async def awaits() -> None:
        with pytest.raises(cmwq.FlushDeadlock, match=r"the result of call Event\.set of queue 'one'"):
            await asyncio.wait_for(AWAITS[name](queue, ran.set), HANG)

    queue.submit(asyncio.run, awaits()).result(HANG)
    queue.submit(int).result(HANG)
    assert ran.is_set() == (name == "outcome"), "a call that nobody else knows of is taken back"
    assert universe.waits.all() == {}


@pytest.mark.parametrize("name", AWAITS)
def test_F7_what_a_loop_within_a_work_awaits_elsewhere_or_is_there_is_awaited(
    universe: cmwq.Runtime, name: str
) -> None:
    queue, other = cmwq.WorkQueue("one", ordered=True, runtime=universe), cmwq.WorkQueue("other", runtime=universe)
    before = queue.submit(len, "abc")
    foreign: cf.Future[int] = cf.Future()

    async def awaits() -> list[Any]:
        foreign.set_result(7)
        calls = [AWAITS[name](other, int) for _ in range(20)]
        return await asyncio.gather(*calls, cmwq.aio.outcome(before), cmwq.aio.outcome(foreign))  # type: ignore[arg-type]

    assert queue.submit(asyncio.run, awaits()).result(HANG) == [0] * 20 + [3, 7]
    assert universe.waits.all() == {}


def test_F7_a_wait_that_blocks_a_loop_is_endless_although_its_tasks_wait_too(
    universe: cmwq.Runtime, gate: Gate
) -> None:
    """A task awaits a flush; another blocks the loop, and so the work, until a work ends that waits for this one."""
    queues = [cmwq.WorkQueue(name, runtime=universe) for name in ("first", "second", "third")]
    known: list[cf.Future[Any]] = []
    all_known = threading.Event()

    def second() -> None:
        all_known.wait(HANG)
        until(lambda: universe.waits.target_of(known[0]) is known[1])  # type: ignore[arg-type, comparison-overlap]
        known[0].result()

    async def first() -> None:
        queues[2].submit(gate)
        task = asyncio.ensure_future(cmwq.aio.flush(queues[2]))
        await asyncio.sleep(0)
        until(lambda: len(known) == 1)
        known.append(queues[1].submit(second))
        all_known.set()
        with pytest.raises(cmwq.FlushDeadlock, match="this would wait for ever"):
            known[1].result()
        gate.open.set()
        await task

    known.append(queues[0].submit(asyncio.run, first()))
    known[0].result(HANG)
    until(lambda: universe.waits.all() == {})


@pytest.mark.parametrize("begins", [True, False])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a task is destroyed with its loop
def test_a_work_that_waits_for_a_coroutine_of_a_loop_that_is_closed_is_told(
    universe: cmwq.Runtime, monkeypatch: pytest.MonkeyPatch, begins: bool
) -> None:
    monkeypatch.setattr(cmwq.aio, "PAUSE", 0.02)
    loop, begun = asyncio.new_event_loop(), threading.Event()

    tasks: list[Any] = []

    async def for_ever() -> None:
        tasks.append(weakref.ref(asyncio.current_task()))  # type: ignore[arg-type]
        begun.set()
        await asyncio.Event().wait()

    wq = cmwq.WorkQueue("q", max_active=1, runtime=universe)
    if begins:
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
    future = wq.submit(lambda: cmwq.aio.run_coroutine(for_ever(), loop))
    if begins:
        assert begun.wait(HANG)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(HANG)
    else:
        until(lambda: bool(loop._ready))  # type: ignore[attr-defined]
    assert not future.done(), "a loop that has stopped may go on"
    loop.close()
    with pytest.raises(RuntimeError, match=r"was closed before this had ended.*for_ever"):
        future.result(HANG)
    assert wq.submit(int).result(HANG) == 0
    del future
    # What asyncio logs of a task that is destroyed is logged here, and not in a test that looks at the log.
    until(lambda: (gc.collect(), all(task() is None for task in tasks))[1])
