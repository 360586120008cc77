"""What users get of cmwq's public names, as type checkers see it. `make types` (mypy) and `make pyright` check it.

It is not run. Each function asserts by `assert_type` what an expression is; what must not type-check is marked with an
ignore, and an ignore that is not needed is an error too.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable, Iterator
from typing import Any, assert_type

import cmwq
import cmwq.aio


def length(text: str, more: int = 0) -> int:
    return len(text) + more


def futures(queue: cmwq.WorkQueue, pool: cmwq.Executor) -> None:
    assert_type(queue.submit(length, "a"), cmwq.Future[int])
    assert_type(queue.submit(length, "a", more=1).result(timeout=1.0), int)
    assert_type(queue.submit(length, "a").exception(), BaseException | None)
    assert_type(pool.submit(length, "a"), cmwq.Future[int])
    assert_type(queue.submit_many(length, ["a", "b"]), list[cmwq.Future[int]])
    assert_type(queue.map(length, ["a"], buffersize=2), Iterator[int])
    assert_type(pool.map(length, ["a"], timeout=1.0), Iterator[int])
    standard: concurrent.futures.Future[int] = queue.submit(length, "a")
    pools: concurrent.futures.Executor = pool
    assert_type(standard.done(), bool)
    pools.shutdown()


def arguments_are_checked(queue: cmwq.WorkQueue, pool: cmwq.Executor) -> None:
    queue.submit(length, 1)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    queue.submit(length)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    pool.submit(length, "a", 1, 2)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    cmwq.system.queue(length)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    cmwq.configure(max_workers="many")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def decorated(queue: cmwq.WorkQueue) -> None:
    @queue.offload
    def measure(text: str) -> int:
        return len(text)

    assert_type(measure("a"), cmwq.Future[int])
    measure(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def works(queue: cmwq.WorkQueue) -> None:
    work, delayed, periodic = cmwq.Work(length, "a"), cmwq.DelayedWork(length, "a"), cmwq.PeriodicWork(length, "a")
    assert_type(queue.queue(work), bool)
    assert_type(queue.queue_on(0, work), bool)
    assert_type(queue.queue_delayed(delayed, 0.5), bool)
    assert_type(queue.mod_delayed(delayed, 0.5), bool)
    assert_type(queue.queue_periodic(periodic, 60), bool)
    assert_type(queue.submit(work), cmwq.Future[Any])
    assert_type(work.pending, bool)
    assert_type(work.cancel(), bool)
    assert_type(work.cancel_sync(timeout=1), bool)
    assert_type(work.flush(), bool)
    assert_type(periodic.missed, int)
    queue.queue_delayed(work, 0.5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def queues() -> None:
    with cmwq.WorkQueue("q", max_active="auto", ordered=False) as queue:
        assert_type(queue, cmwq.WorkQueue)
        assert_type(queue.max_active, int)
        queue.max_active = "auto"
        queue.max_active = 3
        assert_type(queue.max_pending, int | None)
        assert_type(queue.flush(), None)
    with cmwq.Batch(cmwq.system) as batch:
        assert_type(batch.submit(length, "a"), cmwq.Future[int])
        assert_type(batch.results(timeout=1), list[Any])
    with cmwq.Executor() as pool:
        assert_type(pool.queue, cmwq.WorkQueue)


def sources(queue: cmwq.WorkQueue) -> None:
    def next_call() -> Callable[[], object] | None:
        return None

    assert_type(queue.serve(next_call), cmwq.Serving)


async def awaited(queue: cmwq.WorkQueue, work: cmwq.Work) -> None:
    assert_type(await cmwq.aio.run(queue, length, "a"), int)
    assert_type(await cmwq.aio.run_to_end(queue, length, "a", more=1), int)
    assert_type(await cmwq.aio.outcome(queue.submit(length, "a")), int)
    assert_type(await asyncio.wrap_future(queue.submit(length, "a")), int)
    assert_type(await cmwq.aio.cancel_sync(work), bool)
    assert_type(cmwq.aio.install(), cmwq.Executor)
    await cmwq.aio.run(queue, length, 1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def pictures() -> None:
    seen = cmwq.snapshot(stacks=True)
    assert_type(seen, cmwq.Snapshot)
    for pool in seen.pools:
        assert_type(pool, cmwq.PoolView)
        assert_type(pool.workers, int)
    for queue in seen.queues:
        assert_type(queue, cmwq.QueueView)
    assert_type(seen.to_dict(), dict[str, Any])


def settings() -> None:
    with cmwq.Runtime(sensor="hints", max_workers=4) as runtime:
        assert_type(runtime, cmwq.Runtime)
    cmwq.configure(exit_timeout=5, sensor="procfs")
    with cmwq.blocking():
        pass
    assert_type(cmwq.current_work(), cmwq.Work | cmwq.Future[Any] | None)


def errors_are_what_they_seem(error: cmwq.CmwqError) -> None:
    timeout: type[TimeoutError] = cmwq.CmwqTimeout
    closed: type[RuntimeError] = cmwq.QueueClosed
    assert_type((timeout, closed, str(error))[2], str)


def observed() -> None:
    assert_type(cmwq.events.subscribe(limit=10), cmwq.events.Subscription)
