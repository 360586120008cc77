"""CPU hogs (A9): works that compute for long must not hold up those behind them.

Guarantees: a work that used more than `cpu_intensive_thresh` seconds of CPU without blocking is noticed while works
wait, counted, reported once per function with a power-of-two back-off, and let go of: it doesn't count as running any
more, so that another worker starts. No more than one per CPU of the pool is let go of at a time, so a flood of long
computations stays at two runnable threads per CPU.

How: a timer, only while work waits that nobody is on the way to and for a moment after, looks at the CPU clocks of
those that run. It needs no sensor, and no clock is read for a work that ends within a period. The letters are those of
`pool`.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from functools import partial
from math import inf
from typing import TYPE_CHECKING
from weakref import ref

from cmwq._core import events
from cmwq._errors import ThreadLimit

if TYPE_CHECKING:
    from cmwq._core.pool import WorkerPool
    from cmwq._core.worker import Worker

_log = logging.getLogger("cmwq")

REMEMBERED = 4096
"""Functions whose reports are counted. There may be ever new ones (a notebook's lambdas): the oldest are forgotten."""
RESTS = 10
"""So many periods without waiting works, and nobody looks any more."""


def watch(pool: WorkerPool) -> None:
    """Work waits: look at those that run, a threshold from now.  Context: lock held, no timer is set."""
    threshold = pool.config.cpu_intensive_thresh
    if threshold > 0 and not pool.closing:
        with suppress(ThreadLimit):  # hogs then hold up others for once
            pool.hog_timer = pool.host.call_later(threshold, partial(check, pool))


def check(pool: WorkerPool) -> None:
    """Context: the timer."""
    found: list[events.Note] = []
    with pool.lock:
        timer, pool.hog_timer = pool.hog_timer, None
        if timer is not None:
            timer.cancel()  # not the one that fired, if an interruption left two
        if not pool.worklist:
            # Not at once the end of it: to start a timer wakes the timer thread, in the middle of a burst of works.
            pool.hog_rests += 1
            if pool.hog_rests <= RESTS:
                watch(pool)
            return
        pool.hog_rests = 0
        for worker in pool.workers:
            if worker.hog:
                _blocks_now(pool, worker)
            elif worker.item is not None and worker.counted and not worker.sleeping and _is_hog(pool, worker):
                if worker.hog_since != -inf:
                    worker.hog_since = -inf  # reported once per execution
                    worker.item.queue.nr_hogs += 1
                    found.append(events.hog(pool, worker))
                if pool.nr_hogs < pool.target:
                    _let_go(pool, worker)
        pool.kick()
        watch(pool)
    pool.runtime.events.tell(found)


def _is_hog(pool: WorkerPool, worker: Worker) -> bool:
    """Whether its item used more than the threshold since it was first seen, without blocking.  Context: lock held."""
    used, item = worker.cpu_time(), worker.item
    if used is None or item is None:
        return False
    # A weak one: an idle worker must not keep its last item alive.
    if worker.hog_item is None or worker.hog_item() is not item:
        worker.hog_item, worker.hog_since = ref(item), used
    return used - worker.hog_since > pool.config.cpu_intensive_thresh


def _let_go(pool: WorkerPool, worker: Worker) -> None:
    """It is like a sleeping worker from now on, except that no sensor knows better.  Context: lock held."""
    worker.hog = True
    worker.hog_used = worker.cpu_time()
    pool.nr_hogs += 1
    pool.lookout.exempt(worker, True)
    pool.worker_sleeping(worker, on_lock=True)


def _blocks_now(pool: WorkerPool, worker: Worker) -> None:
    """If the hog used no CPU since last looked at, it is a sleeping worker like any other, and its place is free.

    Context: lock held.
    """
    used = worker.cpu_time()
    if used == worker.hog_used:
        ended(pool, worker)
    worker.hog_used = used


def ended(pool: WorkerPool, worker: Worker) -> None:
    """The hog's item ended, or says that it blocks.  Context: lock held."""
    worker.hog = False
    pool.nr_hogs -= 1
    pool.lookout.exempt(worker, False)


class HogReports:
    """How often each function was a hog. Only timers call it, one at a time."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], int] = {}  # the timers' thread; those reported last at the end

    def report(self, key: tuple[str, str], threshold: float) -> None:
        """key: queue and function."""
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
