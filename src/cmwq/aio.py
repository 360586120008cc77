"""aio: the waiting calls of cmwq, as awaitables. For asyncio; importing this imports it.

    await cmwq.aio.flush(queue)
    was_pending = await cmwq.aio.cancel_sync(work)

Each keeps the promise of the method of that name; the event loop runs meanwhile. A future needs no such twin:
`asyncio.wrap_future(queue.submit(...))`. timeout: seconds, raises CmwqTimeout. Cancelling the task that awaits gives
the wait up and undoes what the call did for its time: a queue that was to be drained is open again, a work can be
queued again.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from cmwq._core import checks
from cmwq._errors import CmwqTimeout
from cmwq._pool.worker import current_worker
from cmwq._workqueue.drain import close_steps, drain_steps, flush_steps
from cmwq._workqueue.runtime import default_runtime
from cmwq._workqueue.work import Work

if TYPE_CHECKING:
    from cmwq._workqueue.batch import Batch
    from cmwq._workqueue.queue import WorkQueue
    from cmwq._workqueue.runtime import Runtime
    from cmwq._workqueue.wait import Steps, Target

T = TypeVar("T")


class _LoopParker:
    """A parker in which no thread sleeps, but a task of an event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._told = asyncio.Event()

    def park(self, timeout: float = -1, spins: bool = False, /) -> bool:
        raise RuntimeError("a task waits, it does not park")

    def unpark(self, *_: object) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits there any more
            self._loop.call_soon_threadsafe(self._told.set)

    async def wait(self) -> None:
        await self._told.wait()
        self._told.clear()


async def drive(steps: Steps[T], timeout: float | None = None, what: str = "it did not end") -> T:
    """Wait for one thing after the other. Raises CmwqTimeout, saying `what`, after `timeout` seconds."""
    timeout = checks.timeout(timeout)
    parker = _LoopParker()
    try:
        async with asyncio.timeout(timeout):
            target = next(steps)
            while True:
                await _wait_for(target, parker)
                target = next(steps)
    except StopIteration as stop:
        result: T = stop.value
        return result
    except TimeoutError as exc:
        raise CmwqTimeout(f"{what} after {timeout} s") from exc
    finally:
        steps.close()


async def _wait_for(target: Target, parker: _LoopParker) -> None:
    if not target.attach(parker):
        return
    worker = current_worker()
    item = worker.item if worker is not None else None
    try:
        if item is not None:  # the loop runs within a work, which could wait for itself (F7)
            item.queue.runtime.waits.begin_await(item, target)
        while not target.done():
            await parker.wait()
    finally:
        if item is not None:
            item.queue.runtime.waits.end_await(item, target)
        target.detach(parker)


async def flush(what: WorkQueue | Work, timeout: float | None = None) -> bool | None:
    """`WorkQueue.flush` or `Work.flush`."""
    return await drive(
        what.flush_steps() if isinstance(what, Work) else flush_steps(what), timeout, f"flush of {what!r} was not done"
    )


async def drain(queue: WorkQueue, timeout: float | None = None) -> None:
    """`WorkQueue.drain`."""
    await drive(drain_steps(queue), timeout, f"drain of {queue!r} was not done")


async def close(queue: WorkQueue, timeout: float | None = None, *, delayed: str | None = None) -> None:
    """`WorkQueue.close`."""
    await drive(close_steps(queue, delayed), timeout, f"close of {queue!r} was not done")


async def cancel_sync(work: Work, timeout: float | None = None) -> bool:
    """`Work.cancel_sync`."""
    return await drive(work.cancel_steps(), timeout, f"{work!r} did not end")


async def disable_sync(work: Work, timeout: float | None = None) -> bool:
    """`Work.disable_sync`. It stays disabled, also if this is given up."""
    timeout = checks.timeout(timeout)
    was = work.disable()
    await drive(work.end_steps(), timeout, f"{work!r} did not end")
    return was


async def wait(batch: Batch, timeout: float | None = None) -> None:
    """`Batch.wait`."""
    await drive(batch.wait_steps(), timeout, f"a batch of {len(batch)} calls did not end")


async def freeze(timeout: float | None = None, runtime: Runtime | None = None) -> None:
    """`cmwq.freeze`."""
    await drive((runtime or default_runtime()).freeze_steps(), timeout, "freezable queues still run works")
