"""CPU hogs (A9): works that compute for long must not hold up those behind them.

Guarantees: a work that used more than `cpu_intensive_thresh` seconds of CPU without blocking is noticed while works
wait. It is counted, and reported once per function with a power-of-two back-off. It is also let go of: it does not
count as running any more, so another worker starts, however many hogs there are. From then on works of the same
function begin as hogs, and only some at a time, while the others wait aside: see `lane`. So a flood of equal long
computations keeps about as many threads runnable as there are CPUs.

How: a timer looks at the CPU clocks of the workers that run. It is set only while work waits for which no worker is on
its way, and for a moment after. It needs no sensor, and no clock is read for a work that ends within a period, unless
its function has been a hog. The letters are those of `pool`.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from math import inf
from typing import TYPE_CHECKING
from weakref import ref

from cmwq._core import log
from cmwq._core.held import holding, outside
from cmwq._errors import ThreadLimit
from cmwq._pool import events, lane, memory
from cmwq._pool.blocking import HOG, let_go, no_hog_any_more
from cmwq._pool.figures import choose_more, see

if TYPE_CHECKING:
    from cmwq._pool.item import Item
    from cmwq._pool.pool import WorkerPool
    from cmwq._pool.worker import Worker


REMEMBERED = 4096
"""How many functions have their reports counted. New functions may keep coming (the lambdas of a notebook), so the
oldest are forgotten.
"""
RESTS = 10
"""After this many periods without waiting works the timer is not set again."""


@holding("pool.lock")
def begin(pool: WorkerPool) -> None:
    """Work waits: look at the running workers after one threshold. Context: the alarm is not set."""
    pool.alarms.hog_rests = 0
    _set_alarm(pool)


def _set_alarm(pool: WorkerPool) -> None:
    threshold = pool.config.cpu_intensive_thresh
    if threshold > 0 and not pool.closing:
        with suppress(ThreadLimit):  # then hogs hold up others this once
            pool.alarms.hogs.set(pool.host, threshold, partial(check, pool))


@outside
def check(pool: WorkerPool) -> None:
    """Look for hogs, let go of them, and report them. Context: the timer."""
    with pool.lock:
        pool.alarms.hogs.cancel()
        if not (pool.worklist or pool.lane.items):
            # Do not stop at once: setting a timer anew wakes the timer thread, in the middle of a burst of works.
            pool.alarms.hog_rests += 1
            if pool.alarms.hog_rests <= RESTS:
                _set_alarm(pool)
            return
        _set_alarm(pool)  # the next look, before anything that could fail
        pool.alarms.hog_rests = 0
        at_rest = [(worker, worker.item) for worker in pool.workers if worker.blocked is HOG and _rests(worker)]
    # A hog that used no CPU may wait for one: then it goes on to be one, or more and more of them would be let go of.
    asleep = [(worker, item) for worker, item in at_rest if pool.lookout.sleeps(worker)]
    found: list[events.Note] = []
    with pool.lock:
        for worker, item in asleep:
            if worker.item is item and worker.blocked is HOG:
                no_hog_any_more(worker)
        now = pool.host.monotonic()
        for worker in pool.workers:
            if worker.item is None or not worker.counted or worker.blocked is not None:
                continue
            see(worker, now)
            if _is_hog(pool, worker):
                if worker.hog_since != -inf:
                    worker.hog_since = -inf  # reported once per execution
                    found.append(_note(pool, worker, worker.item))
                worker.hog_used = worker.cpu_time()
                let_go(worker)
        lane.look_after(pool)
        if now >= pool.choose_at:
            choose_more(pool, now)
        pool.kick()
        pool.settle()
    pool.runtime.events.tell(found)
    memory.look_if_due(pool)


@holding("pool.lock")
def _note(pool: WorkerPool, worker: Worker, item: Item) -> events.Note:
    """Count a hog, and remember its function."""
    item.pwq.note_hog()
    pool.lane.remember(item)
    if worker.record is not None:
        worker.record[0].note(pool, was_long=True)
        worker.record = None
    return events.hog(pool, worker)


@holding("pool.lock")
def set_aside(pool: WorkerPool, worker: Worker, item: Item) -> bool:
    """Decide about an item that the worker has taken from the worklist and not claimed yet. Returns whether it was set
    aside, in the lane; if not, it may begin now. Context: works of this pool were hogs.
    """
    worker.record = None
    record, comes_back = pool.lane.record_of(item), item is pool.lane.out
    if comes_back:
        pool.lane.out = None
    if record is None or item.phase.pwq.exempt:
        return False
    if (comes_back and pool.lane.forced) or lane.may_begin(pool, record):
        worker.record, worker.served = (record, worker.cpu_time()), None  # so it is not executed the short way
        return False
    pool.lane.add(item, comes_back=comes_back)
    if pool.alarms.hogs.timer is None:
        begin(pool)
    return True


@holding("pool.lock")
def begin_on_record(pool: WorkerPool, worker: Worker) -> int:
    """The worker has claimed an item whose function has a record. If it is probably long, do not count it as running.

    Returns how many run.
    """
    record, used = worker.record or (None, None)
    if record is not None and not record.parent and record.chance(pool) < lane.EVEN:
        worker.hog_used = used
        let_go(worker)
    if pool.lane.items:
        lane.readmit(pool)
    return pool.nr_running


@holding("pool.lock")
def may_go_on(pool: WorkerPool, worker: Worker, item: Item, record: lane.Record) -> bool:
    """Decide what `set_aside` and `begin_on_record` decide, but while the item is executed already: what it is to call
    has only become known, a function that has this record. False: not now, so it belongs into the lane.
    """
    if item.phase.pwq.exempt:
        return True
    if not lane.may_begin(pool, record):
        return False
    worker.record = record, worker.cpu_time()
    begin_on_record(pool, worker)
    return True


@outside
def observe(pool: WorkerPool, worker: Worker) -> None:
    """A work of a function that has a record was run: note how it turned out. Context: the worker."""
    found: list[events.Note] = []
    with pool.lock:
        known, worker.record, item, used = worker.record, None, worker.item, worker.cpu_time()
        if known is not None and item is not None and used is not None and known[1] is not None:
            was_long = used - known[1] > pool.config.cpu_intensive_thresh
            known[0].note(pool, was_long=was_long)
            if was_long:
                item.pwq.note_hog()
                found.append(events.hog(pool, worker, known[0].name))
        if pool.lane.items and lane.readmit(pool):
            pool.kick_or_settle()
    pool.runtime.events.tell(found)


@holding("pool.lock")
def _is_hog(pool: WorkerPool, worker: Worker) -> bool:
    """Return whether the worker's item used more than the threshold since it was first seen, without blocking."""
    used, item = worker.cpu_time(), worker.item
    if used is None or item is None:
        return False
    # A weak reference: an idle worker must not keep its last item alive.
    if worker.hog_item is None or worker.hog_item() is not item:
        worker.hog_item, worker.hog_since = ref(item), used
    return used - worker.hog_since > pool.config.cpu_intensive_thresh


@holding("worker.pool.lock")
def _rests(worker: Worker) -> bool:
    """Return whether the hog used no CPU since the last look."""
    before, worker.hog_used = worker.hog_used, worker.cpu_time()
    return before == worker.hog_used


class HogReports:
    """Counts how often each function was a hog. Not thread-safe: only timers call it, one at a time."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], int] = {}  # T; the most recently reported at the end

    def report(self, key: tuple[str, str], threshold: float) -> None:
        """Count one more, and log it if the count is a power of two.

        key: names of queue and function. threshold: seconds.
        """
        count = self._counts.pop(key, 0) + 1
        if len(self._counts) >= REMEMBERED:
            del self._counts[next(iter(self._counts))]
        self._counts[key] = count
        if count & (count - 1) == 0:
            log.info(
                "queue %r: %s used the CPU for more than %g ms without blocking, %d times so far; "
                "consider a queue with cpu_intensive=True",
                *key,
                threshold * 1000,
                count,
            )
