"""aio: the waiting calls of cmwq as coroutines, for asyncio. Importing this module imports asyncio.

    await cmwq.aio.flush(queue)
    was_pending = await cmwq.aio.cancel_sync(work)

Each coroutine promises what the method of the same name promises, and the event loop runs meanwhile. A future needs no
coroutine of its own: use `asyncio.wrap_future(queue.submit(...))`. timeout: seconds; after it CmwqTimeout is raised. If
the awaiting task is cancelled, the wait is given up, and what the call had changed for its duration is undone: a queue
that was to be drained is open again, a work that was being cancelled can be queued again.
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
    """A parker on which a task of an event loop waits, instead of a thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._told = asyncio.Event()

    def park(self, timeout: float = -1, spins: bool = False, /) -> bool:
        raise RuntimeError("a task waits, it does not park")

    def unpark(self, *_: object) -> None:
        with suppress(RuntimeError):  # the loop is closed: no task waits there any more
            self._loop.call_soon_threadsafe(self._told.set)

    async def wait(self) -> None:
        await self._told.wait()
        self._told.clear()


async def drive(steps: Steps[T], timeout: float | None = None, what: str = "it did not end") -> T:
    """Wait for each target of a waiting call in turn. Raises CmwqTimeout, saying `what`, after `timeout` seconds."""
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
    """Do what `WorkQueue.flush` or `Work.flush` does."""
    return await drive(
        what.flush_steps() if isinstance(what, Work) else flush_steps(what), timeout, f"flush of {what!r} was not done"
    )


async def drain(queue: WorkQueue, timeout: float | None = None) -> None:
    """Do what `WorkQueue.drain` does."""
    await drive(drain_steps(queue), timeout, f"drain of {queue!r} was not done")


async def close(queue: WorkQueue, timeout: float | None = None, *, delayed: str | None = None) -> None:
    """Do what `WorkQueue.close` does."""
    await drive(close_steps(queue, delayed), timeout, f"close of {queue!r} was not done")


async def cancel_sync(work: Work, timeout: float | None = None) -> bool:
    """Do what `Work.cancel_sync` does."""
    return await drive(work.cancel_steps(), timeout, f"{work!r} did not end")


async def disable_sync(work: Work, timeout: float | None = None) -> bool:
    """Do what `Work.disable_sync` does. The work stays disabled, even if this wait is given up."""
    timeout = checks.timeout(timeout)
    was = work.disable()
    await drive(work.end_steps(), timeout, f"{work!r} did not end")
    return was


async def wait(batch: Batch, timeout: float | None = None) -> None:
    """Do what `Batch.wait` does."""
    await drive(batch.wait_steps(), timeout, f"a batch of {len(batch)} calls did not end")


async def freeze(timeout: float | None = None, runtime: Runtime | None = None) -> None:
    """Do what `cmwq.freeze` does; runtime: freeze this one instead of the default runtime."""
    await drive((runtime or default_runtime()).freeze_steps(), timeout, "freezable queues still run works")
