"""How a runtime ends: by `close`, or with the interpreter (G3).

Guarantees: what was accepted is done first, delayed works as their queue says; then every thread ends. At interpreter
exit nothing new is taken from outside, and works of named queues may queue further ones for `Config.exit_grace` seconds
only: so no work that queues itself again keeps a process alive. Who limits the time has an end then, whatever works do:
those that have not begun are cancelled, those that run are left behind, each with a warning that names it and what it
waits for, and whoever waits for any of them is told (`Abandoned`).

Why a grace at exit, and not none, nor for ever. A work that splits into others, or writes what another collected, has
begun something that its user expects to be done; the standard library refuses that, and the work fails at its last
step. A work that polls queues itself again for ever, and nothing tells the two apart but time. 5 s is much to a chain
that has an end, and less than the 10 s after which a container's runtime kills. Executors don't chain at exit: who uses
them expects what the standard library does.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING

from cmwq._core import checks
from cmwq._core.naming import name_of
from cmwq._errors import Abandoned, CmwqTimeout, FlushDeadlock
from cmwq._pool.closing import close as close_pool
from cmwq._pool.closing import dismiss_all
from cmwq._pool.pool import WorkerPool
from cmwq._pool.worker import current_worker
from cmwq._workqueue.drain import end_delays, few
from cmwq._workqueue.future import Future
from cmwq._workqueue.queued import Queued
from cmwq._workqueue.wait import check_may_wait, surely

if TYPE_CHECKING:
    from cmwq._pool.item import Item
    from cmwq._pool.worker import Worker
    from cmwq._workqueue.runtime import Runtime

_log = logging.getLogger("cmwq")

LAST_CALL = 1.0
"""Seconds for which threads without work may take to end, where time is limited."""


def close(runtime: Runtime, timeout: float | None, *, abandon: bool) -> None:
    """`Runtime.close`, which says what it promises."""
    timeout = checks.timeout(timeout)
    worker = current_worker()
    if worker is not None and worker.pool.runtime is runtime:
        raise FlushDeadlock("close of a runtime from one of its own works: it would wait for itself")
    check_may_wait(runtime.host)
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
    """The interpreter ends."""
    runtime.exiting = True
    for queue in runtime.queues():
        if queue._chains:
            queue.refuse()
        else:
            queue.shut_down()
    now, timeout = runtime.host.monotonic(), runtime.exit_timeout
    deadline = None if timeout is None else now + timeout
    if not (runtime.abandoned or _finish(runtime, deadline, now + runtime.config.exit_grace)):
        _abandon(runtime, timeout or 0.0)


def _finish(runtime: Runtime, deadline: float | None, chains_until: float | None) -> bool:
    """Do what there is, then end every thread. False: the deadline passed before all was done.

    chains_until: when works may no longer queue others.
    """
    runtime.thaw()
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
            _log.warning(
                "works of queue %r still queue new ones %g s after the interpreter was to end: refused from now on",
                queue.name,
                runtime.config.exit_grace,
            )


def _drain(runtime: Runtime, deadline: float | None) -> bool:
    """Until every pool was found quiet in one round, in which nothing began. False: the deadline passed, or another
    closes the runtime and gave up.
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
    """None: there is something yet to be done first. Pools that were closed before that was found stay so."""
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
    """The time was over. A runtime that has all its pools goes on taking work."""
    if not (runtime.exiting or any(pool.closing for pool in runtime.pools())):
        runtime.reopen()


def _end_threads(runtime: Runtime, workers: list[Worker], deadline: float | None) -> None:
    """Context: no work is there any more. The deadline matters to who can't wait for a thread-local's finaliser."""
    host = runtime.host
    runtime.watchdog.stop()
    until = None if deadline is None else max(deadline, host.monotonic() + LAST_CALL)

    def left() -> float | None:
        return None if until is None else max(0.0, until - host.monotonic())

    for queue in runtime.queues():
        thread = queue.end_rescuer()
        if thread is not None:
            thread.join(left())
    # The last a manager was just creating may have no thread noted yet: it has once the manager has ended.
    for worker in sorted(workers, key=lambda worker: worker.thread is None):
        if worker.thread is not None:
            worker.thread.join(left())
    if until is not None and any(pool.workers for pool in runtime.pools()):
        return  # they are left behind, with what serves them
    runtime.stop_services()


# ----------------------------------------------------------------------------------- abandoned


def _abandon(runtime: Runtime, seconds: float) -> None:
    """The time is over: what has not ended is left behind, and whoever waits for it is told."""
    report: dict[Item | str, str] = {}
    leave = partial(_leave, runtime, seconds, report)
    with surely(leave), surely(leave):
        pass
    for line in report.values():
        _log.warning("%s", line)


def _leave(runtime: Runtime, seconds: float, report: dict[Item | str, str]) -> None:
    """May be done again. Whoever is told finds all of it: nothing is taken, and nobody waits any more."""
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
    """What has not begun never will. What begins in this very moment is found running."""
    dropped: dict[str, list[str]] = {}
    for pool in pools:
        with pool.lock:
            behind = [worker.item.follower for worker in pool.workers if worker.item is not None]
            inactive = [item for pwq in list(pool.pwqs) for item in pwq.inactive]
            waiting = [*pool.worklist, *pool.detained, *inactive, *(item for item in behind if item is not None)]
            waiting = [item for item in waiting if not item.withdrawn]
        for item in waiting:
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
    for worker, item in running:  # all, before the first who waits for another is told, and waits no more
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
    ours = max((number for number, line in enumerate(stack) if "_context.run(" in line), default=-1)
    return "\n".join([waits or "it runs", *(line.rstrip() for line in stack[ours + 1 :])])
