"""aio: cmwq for asyncio: its waiting calls as coroutines, calls of queues awaited, and loops whose executor is a lease.

    await cmwq.aio.flush(queue)
    was_pending = await cmwq.aio.cancel_sync(work)
    page = await cmwq.aio.run(queue, fetch, url)
    with cmwq.aio.Runner() as runner: runner.run(main())     # to_thread, getaddrinfo, aiofiles: on cmwq's pools

The waiting calls promise what the methods of the same names promise, and the event loop runs meanwhile. timeout:
seconds; after it CmwqTimeout is raised. If the awaiting task is cancelled, the wait is given up, and what the call had
changed for its duration is undone: a queue that was to be drained is open again, a work that was being cancelled can be
queued again. A task in a loop that runs within a work is known to wait for that work's sake: if the work would wait for
itself, the task gets FlushDeadlock. Importing this module imports asyncio. All of it works on other loops, too, such as
uvloop's.
"""

from __future__ import annotations

import asyncio
import concurrent.futures as cf
import inspect
import math
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from cmwq._awaiting import drive, end_of, noted
from cmwq._core import checks
from cmwq._errors import CmwqTimeout, FlushDeadlock, QueueFull
from cmwq._pool.blocking import step_aside, step_back
from cmwq._pool.worker import current_worker
from cmwq._workqueue.batch import Batch
from cmwq._workqueue.drain import close_steps, drain_steps, flush_steps
from cmwq._workqueue.options import AtClose, checked_delayed, checked_runtime
from cmwq._workqueue.queue import WorkQueue
from cmwq._workqueue.work import Work
from cmwq.executor import Executor

if TYPE_CHECKING:
    from cmwq._workqueue.future import Future
    from cmwq._workqueue.runtime import Runtime

__all__ = [
    "Runner",
    "cancel_sync",
    "close",
    "disable_sync",
    "drain",
    "flush",
    "freeze",
    "install",
    "new_event_loop",
    "outcome",
    "run",
    "run_coroutine",
    "run_to_end",
    "wait",
]

P = ParamSpec("P")
T = TypeVar("T")
PAUSE = 1.0
"""Seconds between two looks whether a loop was closed, whose coroutine a thread waits for."""
UNLIMITED = 2**31 - 1
"""How many calls of a loop's executor may be active: the cap on threads comes first."""


async def flush(what: WorkQueue | Work, timeout: float | None = None) -> bool | None:
    """Do what `WorkQueue.flush` or `Work.flush` does. timeout: seconds."""
    steps = what.flush_steps() if isinstance(what, Work) else flush_steps(_queue(what))
    return await drive(steps, timeout, f"flush of {what!r} was not done")


async def drain(queue: WorkQueue, timeout: float | None = None) -> None:
    """Do what `WorkQueue.drain` does. timeout: seconds."""
    await drive(drain_steps(_queue(queue)), timeout, f"drain of {queue!r} was not done")


async def close(queue: WorkQueue, timeout: float | None = None, *, delayed: AtClose | None = None) -> None:
    """Do what `WorkQueue.close` does. timeout: seconds."""
    delayed = checked_delayed(_queue(queue).name, delayed)
    await drive(close_steps(queue, delayed), timeout, f"close of {queue!r} was not done")


async def cancel_sync(work: Work, timeout: float | None = None) -> bool:
    """Do what `Work.cancel_sync` does. timeout: seconds."""
    return await drive(_work(work).cancel_steps(), timeout, f"{work!r} did not end")


async def disable_sync(work: Work, timeout: float | None = None) -> bool:
    """Do what `Work.disable_sync` does. timeout: seconds. The work stays disabled, even if this wait is given up."""
    timeout = checks.timeout(timeout)
    was = _work(work).disable()
    await drive(work.end_steps(), timeout, f"{work!r} did not end")
    return was


async def wait(batch: Batch, timeout: float | None = None) -> None:
    """Do what `Batch.wait` does. timeout: seconds."""
    checks.instance("what is waited for", batch, Batch)
    await drive(batch.wait_steps(), timeout, f"a batch of {len(batch)} calls did not end")


async def freeze(timeout: float | None = None, runtime: Runtime | None = None) -> None:
    """Do what `cmwq.freeze` does. timeout: seconds. runtime: freeze this one instead of the default runtime."""
    await drive(checked_runtime(runtime).freezer.steps(), timeout, "freezable queues still run works")


def _queue(queue: WorkQueue) -> WorkQueue:
    """The queue that was given. Raises TypeError for what is none, such as the name of one."""
    return checks.instance("queue", queue, WorkQueue)


def _work(work: Work) -> Work:
    return checks.instance("work", work, Work)


# ----------------------------------------------------------------------------------- calls, awaited


async def run(queue: WorkQueue | Executor, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Call fn(*args, **kwargs) on a worker, as `queue.submit` does, and return its result or raise its exception.

    The call runs in a copy of the task's context. If the task is cancelled, this raises CancelledError at once: a call
    that has not begun is taken back and never runs; one that runs goes on, nobody stops it, and what it returns or
    raises is dropped. `run_to_end` waits for it instead. If the call is cancelled by others, such as
    `Executor.shutdown(cancel_futures=True)`, this raises CancelledError, too.

    A queue that is full (`max_pending`) makes the task wait, and not the loop; one made with full="raise" raises
    QueueFull. Raises what `submit` raises: QueueClosed, ThreadLimit; TypeError for a coroutine function, which is to be
    awaited here, and for what is neither a queue nor an executor. In a loop that runs within a work, which would wait
    for itself, it raises FlushDeadlock, and the call is taken back. Context: a task of a running loop.
    """
    future: Future[T] = await _submit(queue, fn, args, kwargs)
    try:
        return await outcome(future)
    except FlushDeadlock:
        future.cancel()  # nobody else has it; if the call itself has raised this, it does no harm
        raise
    finally:
        del future  # a traceback keeps this frame, and the future the exception


async def run_to_end(queue: WorkQueue | Executor, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """`run`, but no call that has begun is left behind: if the task is cancelled, this waits until the call has ended.

    Then it raises CancelledError, whose cause is the call's exception if it raised one; its result is dropped. A call
    that has not begun is taken back. For calls that use what the task gives back afterwards: a file, a connection, a
    lock. A task that is cancelled while it waits for room in a full queue is done at once.
    """
    future: Future[T] = await _submit(queue, fn, args, kwargs)
    cancelled: asyncio.CancelledError | None = None
    cause: BaseException | None = None
    try:
        with noted(future):
            waiter = end_of(future)
            while not waiter.done():
                try:
                    await asyncio.wait([waiter])
                except asyncio.CancelledError as exc:
                    future.cancel()
                    cancelled = cancelled or exc
        if cancelled is not None:
            cause = None if future.cancelled() else future.exception()
            raise cancelled from cause
        return _result(future)
    except FlushDeadlock:
        future.cancel()
        raise
    finally:
        del future, cancelled, cause  # a traceback keeps this frame


async def outcome(future: Future[T]) -> T:
    """Return the result of a submitted call, or raise its exception; a cancelled task cancels the future.

    `asyncio.wrap_future` does the same, call by call. This tells the loop of all calls that have ended meanwhile at a
    time, which makes many short calls about twice as fast. And in a loop that runs within a work it raises
    FlushDeadlock if the work would wait for itself, and else lends the work's place under `max_active`.
    """
    checks.instance("future", future, cf.Future)
    try:
        try:
            with noted(future):
                await end_of(future)
        except asyncio.CancelledError:
            future.cancel()
            raise
        return _result(future)
    finally:
        del future  # a traceback keeps this frame, and the future the exception


def run_coroutine(
    coroutine: Coroutine[Any, Any, T], loop: asyncio.AbstractEventLoop, timeout: float | None = None
) -> T:
    """Run a coroutine in the loop of another thread, and wait for its result: the way back from a work to the loop.

    `asyncio.run_coroutine_threadsafe(coroutine, loop).result()` for works: the work is known to be blocked at once, and
    it lends its place under `max_active` while it waits, so the coroutine may await further works of the same queue.
    (With asyncio's own function the sensor notices the wait, and an explicit limit keeps the place.) An ordered queue
    lends nothing.

    timeout: seconds; after it the coroutine is cancelled, and CmwqTimeout is raised. If this wait is interrupted, the
    coroutine is cancelled, too. Raises what the coroutine raises, and `concurrent.futures.CancelledError` if it is
    cancelled. On the loop's own thread it raises FlushDeadlock; RuntimeError, within a second, if the loop is closed
    before the coroutine has ended; TypeError for what is no coroutine or no loop. Thread-safe.
    """
    if not asyncio.iscoroutine(coroutine):
        raise TypeError(f"coroutine is {checks.shown(coroutine)}, and must be a coroutine: call the function")
    try:
        timeout = checks.timeout(timeout)
        _checked_loop(loop)
        if asyncio._get_running_loop() is loop:
            raise FlushDeadlock(f"this thread runs {loop!r}, so it would wait for itself: await {coroutine!r} instead")
        future = asyncio.run_coroutine_threadsafe(coroutine, loop)
    except Exception:
        coroutine.close()  # it has not begun, and nobody else awaits it
        raise
    worker = current_worker()
    item = worker.item if worker is not None else None
    lent = False
    if worker is not None and item is not None:
        lent = step_aside(worker, item.pwq if item.pwq.lends else None)
    try:
        return _from_loop(future, coroutine, loop, timeout)
    finally:
        if worker is not None and item is not None:
            step_back(worker, lent)
        if not loop.is_closed():
            future.cancel()
        elif inspect.iscoroutine(coroutine) and inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED:
            coroutine.close()


def _from_loop(future: cf.Future[T], coroutine: object, loop: asyncio.AbstractEventLoop, timeout: float | None) -> T:
    """The result that a task of the loop sets. A loop that is closed tells nobody, and its tasks end no more: so it is
    looked at now and then.
    """
    last = None if timeout is None else time.monotonic() + timeout
    while True:
        left = math.inf if last is None else max(0.0, last - time.monotonic())
        closed = loop.is_closed()  # before the look at the future: what ended before the loop did is not missed
        try:
            return future.result(0 if closed else min(left, PAUSE))
        except TimeoutError as exc:
            if future.done():  # it is the coroutine's, or came just now
                return future.result()
            if closed:
                raise RuntimeError(f"the event loop was closed before this had ended: {coroutine!r}") from None
            if left <= PAUSE:
                raise CmwqTimeout(f"no result within {timeout} s: {coroutine!r}") from exc


async def _submit(queue: WorkQueue | Executor, fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Future[Any]:
    """`queue.submit`, but a full queue makes the task wait."""
    if not isinstance(queue, WorkQueue | Executor):
        raise TypeError(f"{checks.shown(queue)} is neither a WorkQueue nor a cmwq.Executor")
    if not isinstance(fn, Work):
        checks.no_coroutine_function("what is run on a worker", fn)
    # Only the queue's or the executor's own `submit` makes a call of a function: subclasses prepare the thread for it.
    submit = partial(queue.submit, fn, *args, **kwargs)
    wq = queue.queue if isinstance(queue, Executor) else queue
    room = wq._room
    if room is None or room.full == "raise":
        return submit()
    ticket = object()
    try:
        if isinstance(fn, Work) and not fn.is_idle:  # it is one with the earlier queueing, and needs no room
            with suppress(QueueFull):  # it has just become idle
                return room.admit(ticket, submit)
        if not room.take_at_once(ticket):
            await drive(room.steps(ticket), what=f"queue {wq.name!r} is full: no room for one more")
        return room.admit(ticket, submit)
    finally:
        room.give(ticket)


def _result(future: Future[T]) -> T:
    """The result of a call that has ended."""
    try:
        if future.cancelled():
            raise asyncio.CancelledError
        return future.result()
    finally:
        del future


# ----------------------------------------------------------------------------------- loops whose executor is a lease


def install(loop: asyncio.AbstractEventLoop | None = None) -> Executor:
    """Make a lease on cmwq's pools the loop's default executor, and return it. loop: by default the one that runs here.

    `asyncio.to_thread`, `loop.run_in_executor(None, ...)`, `getaddrinfo` and with it most clients, aiofiles and others
    then run on cmwq. Nothing bounds how many of them run at a time but the runtime's cap on threads (`max_workers` of
    `cmwq.configure`), so a call that waits never keeps another from beginning. The end of `asyncio.run`, of a `Runner`
    or of the loop waits for the lease's calls as it does with its own threads, and ends the lease; the pools stay.

    Starts no thread. An executor that the loop had before stays with those who use it, so call this first. Raises
    RuntimeError if no loop was given and none runs here. Thread-safe if a loop that runs elsewhere isn't using its
    executor meanwhile.
    """
    loop = asyncio.get_running_loop() if loop is None else _checked_loop(loop)
    executor = Executor("asyncio", max_active=UNLIMITED)
    loop.set_default_executor(executor)
    return executor


def _checked_loop(loop: asyncio.AbstractEventLoop) -> asyncio.AbstractEventLoop:
    """The loop that was given. Raises TypeError."""
    if not isinstance(loop, asyncio.AbstractEventLoop):
        raise TypeError(f"loop is {checks.shown(loop)}, and must be an event loop, not {type(loop).__name__}")
    return loop


def new_event_loop(
    loop_factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop,
) -> asyncio.AbstractEventLoop:
    """Make a loop and `install` a lease in it: a `loop_factory` for `asyncio.Runner`, for `asyncio.run` from Python
    3.12 on, and for all others who take one.

    loop_factory: what makes the loop, such as `uvloop.new_event_loop`. On the command line of uvicorn:
    `--loop cmwq.aio:new_event_loop`.
    """
    loop = loop_factory()
    try:
        install(loop)
    except BaseException:
        loop.close()
        raise
    return loop


def Runner(
    *, debug: bool | None = None, loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None
) -> asyncio.Runner:
    """Return an `asyncio.Runner` whose loop has a lease on cmwq's pools as its default executor.

    `with cmwq.aio.Runner() as runner: runner.run(main())`. loop_factory: what makes the loop. Leaving it ends the
    lease. (A function, because asyncio.Runner may not be subclassed.)
    """
    return asyncio.Runner(debug=debug, loop_factory=partial(new_event_loop, loop_factory or asyncio.new_event_loop))
