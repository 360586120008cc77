"""CPU hogs (A9): works that compute for long must not hold up those behind them.

Guarantees: a work that used more than `cpu_intensive_thresh` seconds of CPU without blocking is noticed while works
wait. It is counted, and reported once per function with a power-of-two back-off. It is also let go of: it does not
count as running any more, so another worker starts. No more hogs than the target of the pool are let go of at a time,
so a flood of long computations stays at two runnable threads per CPU.

How: a timer looks at the CPU clocks of the workers that run. It is set only while work waits for which no worker is on
its way, and for a moment after. It needs no sensor, and no clock is read for a work that ends within a period. The
letters are those of `pool`.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from functools import partial
from math import inf
from typing import TYPE_CHECKING
from weakref import ref

from cmwq._core.held import holding, outside
from cmwq._errors import ThreadLimit
from cmwq._pool import events
from cmwq._pool.blocking import HOG, let_go, no_hog_any_more

if TYPE_CHECKING:
    from cmwq._pool.pool import WorkerPool
    from cmwq._pool.worker import Worker

_log = logging.getLogger("cmwq")

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
    found: list[events.Note] = []
    with pool.lock:
        pool.alarms.hogs.cancel()
        if not pool.worklist:
            # Do not stop at once: setting a timer anew wakes the timer thread, in the middle of a burst of works.
            pool.alarms.hog_rests += 1
            if pool.alarms.hog_rests <= RESTS:
                _set_alarm(pool)
            return
        pool.alarms.hog_rests = 0
        for worker in pool.workers:
            if worker.blocked is HOG:
                _look_again(worker)
            elif worker.item is not None and worker.counted and worker.blocked is None and _is_hog(pool, worker):
                if worker.hog_since != -inf:
                    worker.hog_since = -inf  # reported once per execution
                    worker.item.pwq.note_hog()
                    found.append(events.hog(pool, worker))
                if pool.nr_hogs < pool.target:
                    worker.hog_used = worker.cpu_time()
                    let_go(worker)
        pool.kick()
        _set_alarm(pool)
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
def _look_again(worker: Worker) -> None:
    """If the hog used no CPU since the last look, let another have its place among the hogs."""
    used = worker.cpu_time()
    if used == worker.hog_used:
        no_hog_any_more(worker)
    worker.hog_used = used


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
            _log.info(
                "queue %r: %s used the CPU for more than %g ms without blocking, %d times so far; "
                "consider a queue with cpu_intensive=True",
                *key,
                threshold * 1000,
                count,
            )
