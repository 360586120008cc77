"""How a runtime ends: by `close`, or at interpreter exit (G3).

Guarantees: what was accepted is done first, delayed works as their queue says; then every thread ends. At interpreter
exit nothing new is accepted from outside, and works of named queues may queue further works for `Config.exit_grace`
seconds only. So no work that queues itself again keeps a process alive. With a time limit the end comes in time,
whatever works do: works that have not begun are cancelled; works that run are left behind, each with a warning that
names it and what it waits for; and threads that wait for any of them get `Abandoned`.

Why a grace at exit, and not none, nor an endless one. A work that splits into others, or that writes what another one
collected, has begun something that its user expects to be done. The standard library refuses the further works, so such
a work fails at its last step. A work that polls, however, queues itself again for ever, and only time tells the two
apart. 5 s is much for a chain that ends, and less than the 10 s after which a container's runtime kills. Calls of
executors cannot queue others at exit, because their users expect what the standard library does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from cmwq._core import checks, log
from cmwq._core.naming import name_of
from cmwq._core.surely import surely
from cmwq._errors import Abandoned, CmwqTimeout, FlushDeadlock
from cmwq._pool.closing import close as close_pool
from cmwq._pool.closing import dismiss_all
from cmwq._pool.pool import WorkerPool
from cmwq._pool.worker import current_worker
from cmwq._workqueue.drain import end_delays, few
from cmwq._workqueue.future import Future
from cmwq._workqueue.queued import Queued
from cmwq._workqueue.wait import check_may_wait

if TYPE_CHECKING:
    from cmwq._pool.item import Item
    from cmwq._pool.worker import Worker
    from cmwq._workqueue.runtime import Runtime


LAST_CALL = 1.0
"""Seconds that threads without work may take to end, where time is limited."""


def close(runtime: Runtime, timeout: float | None, *, abandon: bool) -> None:
    """Do what `Runtime.close` promises."""
    timeout = checks.timeout(timeout)
    worker = current_worker()
    if worker is not None and worker.pool.runtime is runtime:
        raise FlushDeadlock("close of a runtime from one of its own works: it would wait for itself")
    check_may_wait(runtime.host)
    with _ending(runtime):
        _close(runtime, timeout, abandon)


def _close(runtime: Runtime, timeout: float | None, abandon: bool) -> None:
    deadline = None if timeout is None else runtime.host.monotonic() + timeout
    try:
        if runtime.abandoned or _finish(runtime, deadline, None):
            return
    except BaseException:  # Ctrl-C: as if the time were over
        _reopen(runtime)
        raise
    if runtime.abandoned:
        raise Abandoned("close of a runtime: another closed it meanwhile, and abandoned what had not ended")
    if not abandon:
        _reopen(runtime)
        raise CmwqTimeout(f"close of a runtime: works still there after {timeout} s")
    _abandon(runtime, timeout or 0.0)


def close_at_exit(runtime: Runtime) -> None:
    """Close a runtime at interpreter exit, within its `exit_timeout`."""
    runtime.exiting = True
    for queue in runtime.queues():
        if queue._chains:
            queue.refuse()
        else:
            queue.shut_down()
    now, timeout = runtime.host.monotonic(), runtime.exit_timeout
    deadline = None if timeout is None else now + timeout
    with _ending(runtime):
        try:
            finished = runtime.abandoned or _finish(runtime, deadline, now + runtime.config.exit_grace)
        except BaseException as exc:  # Ctrl-C: the process ends, whatever still runs
            _tell_left(runtime, exc)
            raise
        if not finished:
            _abandon(runtime, timeout or 0.0)


def _tell_left(runtime: Runtime, exc: BaseException) -> None:
    """Log what is not waited for any more, because of this exception."""
    names: list[str] = []
    for pool in runtime.pools():
        with pool.lock:
            names += [name_of(worker.item.function) for worker in pool.workers if worker.item is not None]
        names += [name_of(item.function) for item in _waiting(pool)]
    if names:
        log.warning("%s at exit: works are not waited for any more: %s", type(exc).__name__, few(names))


def _waiting(pool: WorkerPool) -> list[Item]:
    """What has not begun."""
    with pool.lock:
        behind = [worker.item.follower for worker in pool.workers if worker.item is not None]
        inactive = [item for pwq in list(pool.pwqs) for item in pwq.inactive]
        waiting = [*pool.listed(), *pool.detained, *inactive, *(item for item in behind if item is not None)]
        return [item for item in waiting if not item.withdrawn]


@contextmanager
def _ending(runtime: Runtime) -> Iterator[None]:
    """Meanwhile the runtime is thawed, and cannot be frozen: nothing that was accepted is kept back (E8)."""
    ending = object()
    over = partial(runtime.freezer.end_no_more, ending)
    with surely(over), surely(over):
        runtime.freezer.begin_to_end(ending)
        yield


def _finish(runtime: Runtime, deadline: float | None, chains_until: float | None) -> bool:
    """Do all works, then end every thread. False: the deadline passed before all works were done.

    chains_until: when works may no longer queue others; None: no limit. Both are times on the host's clock.
    """
    while True:
        for queue in runtime.queues():
            end_delays(queue)
        chains = chains_until is not None and (deadline is None or chains_until < deadline)
        if _drain(runtime, chains_until if chains else deadline):
            workers = _close_pools(runtime)
            if workers is not None:
                break
        elif chains and not runtime.abandoned:
            chains_until = None
            _seal(runtime)
        else:
            return False
    for queue in runtime.queues():
        queue.be_closed()
    _end_threads(runtime, workers, deadline if runtime.exiting else None)
    return True


def _seal(runtime: Runtime) -> None:
    for queue in runtime.queues():
        if queue.seal():
            log.warning(
                "works of queue %r still queue new ones %g s after the interpreter was to end: refused from now on",
                queue.name,
                runtime.config.exit_grace,
            )


def _drain(runtime: Runtime, deadline: float | None) -> bool:
    """Wait until every pool was quiet in one round in which no work began. False: the deadline passed, or another
    thread that closes the runtime gave up.
    """
    host = runtime.host
    parker = host.parker()
    started = -1
    try:
        while True:
            pools = runtime.pools()
            before, started = started, sum(map(WorkerPool.count_started, pools))
            if before == started and all(pool.quiet_or_tell(None) for pool in pools):
                return True
            for pool in pools:
                while not pool.quiet_or_tell(parker):
                    if runtime.abandoned:
                        return False
                    if deadline is None:
                        parker.park()
                    elif (left := deadline - host.monotonic()) <= 0 or not parker.park(left):
                        return False
    finally:
        for pool in runtime.pools():
            pool.tell_no_more(parker)


def _close_pools(runtime: Runtime) -> list[Worker] | None:
    """Close all pools and return their workers. None: something must be done first. Pools that were closed before that
    was found stay closed.
    """
    runtime.begin_to_close()
    if any(queue.delays() for queue in runtime.queues()):
        return None
    found: list[Worker] = []
    for pool in runtime.pools():
        workers = close_pool(pool)
        if workers is None:
            return None
        found.extend(workers)
    return found


def _reopen(runtime: Runtime) -> None:
    """Accept works again after the time was over, unless a pool was closed already."""
    if not (runtime.exiting or any(pool.closing for pool in runtime.pools())):
        runtime.reopen()


def _end_threads(runtime: Runtime, workers: list[Worker], deadline: float | None) -> None:
    """Join all threads. The deadline limits the wait for finalisers of thread-locals.  Context: no work is left."""
    host = runtime.host
    runtime.watchdog.stop()
    until = None if deadline is None else max(deadline, host.monotonic() + LAST_CALL)

    def left() -> float | None:
        return None if until is None else max(0.0, until - host.monotonic())

    for queue in runtime.queues():
        thread = queue.end_rescuer()
        if thread is not None:
            thread.join(left())
    # A worker that a manager was just creating may have no thread noted yet: it has one once the manager has ended.
    for worker in sorted(workers, key=lambda worker: worker.thread is None):
        if worker.thread is not None:
            worker.thread.join(left())
    if until is not None and any(pool.workers for pool in runtime.pools()):
        return  # they are left behind, with the services that they need
    runtime.stop_services()


# ----------------------------------------------------------------------------------- abandoned


def _abandon(runtime: Runtime, seconds: float) -> None:
    """Leave behind what has not ended, and tell the threads that wait for it. Then log the warnings."""
    report: dict[Item | str, str] = {}
    leave = partial(_leave, runtime, seconds, report)
    with surely(leave), surely(leave):
        pass
    for line in report.values():
        log.warning("%s", line)


def _leave(runtime: Runtime, seconds: float, report: dict[Item | str, str]) -> None:
    """Carry out `_abandon`. May be repeated. When a thread is told, nothing is accepted any more, and no wait goes
    on.
    """
    after = f"{seconds:g} s after its runtime was to end"
    runtime.begin_to_close()
    runtime.abandoned = True
    for queue in runtime.queues():
        queue.be_closed()
        queue.end_rescuer()
    pools = runtime.pools()
    for pool in pools:
        with pool.lock:
            pool.closing = True
            dismiss_all(pool)
    _take_back(pools, after, report)
    _leave_running(pools, after, report)
    for parker in list(runtime.waiters):
        parker.unpark()
    for pool in pools:
        with pool.lock:
            for parker in pool.drainers:
                parker.unpark()
    runtime.watchdog.stop()
    if not runtime.exiting:
        runtime.stop_timers()  # at exit it is not waited for either: an `on_stall` may hang


def _take_back(pools: list[WorkerPool], after: str, report: dict[Item | str, str]) -> None:
    """Cancel what has not begun. A work that begins at this very moment is found running afterwards."""
    dropped: dict[str, list[str]] = {}
    for pool in pools:
        for item in _waiting(pool):
            name = name_of(item.function)
            if isinstance(item, Future):
                taken = item.cancel()
            else:
                work = item.work
                taken = work is not None and work._item is item and work.cancel()
            if taken:
                dropped.setdefault(item.queue.name, []).append(name)
    for queue, names in dropped.items():
        report.setdefault(
            queue, f"{len(names)} works of queue {queue!r} are cancelled: they had not begun {after}: {few(names)}"
        )


def _leave_running(pools: list[WorkerPool], after: str, report: dict[Item | str, str]) -> None:
    running: list[tuple[Worker, Item]] = []
    for pool in pools:
        with pool.lock:
            running += [(worker, worker.item) for worker in pool.workers if worker.item is not None]
    for worker, item in running:  # report all, before the first that waits for another one is told, and stops waiting
        if item not in report:
            what = item.describe()
            report[item] = f"{what} is abandoned: it had not ended {after}; {_what_it_does(worker, item)}"
    for _, item in running:
        told = Abandoned(f"{item.describe()} had not ended {after}, and is not waited for any more")
        if isinstance(item, Future):
            item.be_abandoned(told)
        elif isinstance(item, Queued):
            for future in item.futures or ():
                future.settle(None, told)


def _what_it_does(worker: Worker, item: Item) -> str:
    host, runtime = worker.pool.host, worker.pool.runtime
    target = runtime.waits.all().get(item)
    waits = host.waits_in(worker.tid) if target is None else f"it {target.describe_wait()}"
    stack = host.stack_of(worker.thread)
    ours = max((n for n, line in enumerate(stack) if "_context.run(" in line or "process_works(" in line), default=-1)
    return "\n".join([waits or "it runs", *(line.rstrip() for line in stack[ours + 1 :])])
