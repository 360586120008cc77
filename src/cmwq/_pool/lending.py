"""Lending: works that wait for others in a way unknown to this package must not keep those others from beginning (E1).

`concurrent.futures.wait`, a callback and a queue, an event loop within a work, an Event that another work sets: a work
that waits in such a way holds its place under `max_active`, and what it waits for may be waiting for just that place.
`result()` and similar calls lend the place at once (`blocking.step_aside`). This module lends the places of works that
look as if they waited.

Guarantees
- A work that is seen to wait for works (`waits_for_works`), and that used no CPU for a whole period, lends its place,
  under an explicit limit, too.
- Where the limit is the default one, which protects no resource of the user's, nothing hangs for want of a place. If
  in a whole period no work of the queue's place began or ended, none of them is listed, and none of those that execute
  used any CPU, then 1 of them lends its place, then 2, 4, ... So only the cap on threads bounds how deep such waits go.
- A learned limit, which may protect something, is lent like the default one, but only after all have rested for a
  second, and for four times what works usually take.
- An explicit limit is kept in all other cases (E11): a work that sleeps may be using what the limit protects.
- Ordered queues lend nothing (E2).

Why not at once, and why not all: a work at rest need not be waiting for a place. 256 downloads from a slow server look
the same. So it takes a period to lend a place, and when works end the row begins with one again. If they do look the
same, the loss is a few threads more, within their cap.

Why CPU clocks: no sensor looks while nothing is listed, and no sensor can tell what a thread needs to go on. A period
in which this timer itself came late proves nothing, because then no thread got the CPU.

A place is taken back when its work ends, or runs again, as far as a sensor sees that: a worker whose place is lent here
is believed asleep, and `blocking` is told of both. A timer exists only while works wait inactive. The letters are those
of `pool`; T: the timer alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, ref

from cmwq._core.held import holding, outside
from cmwq._core.tables import lookup
from cmwq._errors import ThreadLimit
from cmwq._pool.alarm import Alarm
from cmwq._pool.blocking import CHILD, at_rest
from cmwq._pool.worker import Worker

if TYPE_CHECKING:
    from cmwq._pool.item import Item
    from cmwq._pool.pool import WorkerPool
    from cmwq._workqueue.pwq import PoolWorkQueue

AT_REST = 0.01
"""The share of a period below which a thread's CPU time counts as none, because a thread that polls is waiting, too."""
BACKOFF = 8
"""The longest pause between two looks, in periods, while nothing changes and no place is to be lent."""


class Sight:
    """What was seen of a queue's place at one moment. Two of them tell whether it rested in between."""

    __slots__ = ("at", "head", "holders", "listed")

    @holding("pwq.pool.lock")
    def __init__(self, pwq: PoolWorkQueue, workers: Iterable[Worker], now: float) -> None:
        """workers: those of the pool that execute a work of that place. now: the time on the host's clock."""
        self.at = now  # I
        # Weak references: an item that has ended must not be kept alive by having been seen.
        self.head = next((ref(item) for item in pwq.inactive if not item.withdrawn), None)  # I
        self.holders = {  # I
            worker: (ref(worker.item), worker.cpu_time())
            for worker in workers
            if worker.lender is None and worker.item is not None
        }
        elsewhere = sum(item.pwq is pwq for item in pwq.pool.detained)
        for worker in workers:
            follower = worker.item.follower if worker.item is not None else None
            elsewhere += follower is not None and not follower.lent and not follower.withdrawn
        self.listed = pwq.nr_active - len(self.holders) - elsewhere  # I
        """Works that wait for a worker only, not for a place."""

    def still_holds(self, worker: Worker) -> bool:
        """Return whether the worker executes now what it executed then, and holds a place for that."""
        then = lookup(self.holders, worker)
        return then is not None and worker.lender is None and worker.item is not None and then[0]() is worker.item

    def rested(self, worker: Worker, now: Sight) -> bool:
        """Return whether the worker executed the same item all the time, and used no CPU."""
        if not (self.still_holds(worker) and worker in now.holders):
            return False
        before, after = self.holders[worker][1], now.holders[worker][1]
        if before is None or after is None:
            return worker.sleeping  # no clock: the sensor's report decides
        return after - before <= AT_REST * (now.at - self.at)

    def moved(self, now: Sight) -> bool:
        """Return whether another work is now the first that waits for a place."""
        return self.head is None or now.head is None or self.head() is not now.head()

    def all_rested(self, now: Sight) -> bool:
        """Return whether works wait for a place, and those that hold one were the same throughout, and used no CPU."""
        if now.head is None or now.listed or not now.holders or len(now.holders) != len(self.holders):
            return False
        return all(self.rested(worker, now) for worker in now.holders)


@holding("pool.lock")
def sights(pool: WorkerPool) -> dict[PoolWorkQueue, Sight]:
    """Return a sight of each place where works wait inactive for the end of others. Costs O(workers)."""
    places = [pwq for pwq in pool.pwqs if pwq.inactive and not pwq.frozen]
    if not places:
        return {}
    found: dict[PoolWorkQueue, list[Worker]] = {pwq: [] for pwq in places}
    for worker in sorted(pool.workers, key=_index):
        item = worker.item
        if item is not None and item.pwq in found:
            found[item.pwq].append(worker)
    now = pool.host.monotonic()
    return {pwq: Sight(pwq, workers, now) for pwq, workers in found.items()}


def _index(worker: Worker) -> int:
    return worker.index


class Lending(Alarm):
    """What is known of one pool's places. The alarm is set only while works wait inactive."""

    __slots__ = ("pause", "rests", "seen", "steps")

    def __init__(self) -> None:
        super().__init__()
        self.pause = 0.0  # L: until the next look
        self.seen: WeakKeyDictionary[PoolWorkQueue, Sight] = WeakKeyDictionary()  # T
        self.steps: WeakKeyDictionary[PoolWorkQueue, int] = WeakKeyDictionary()  # T: how many are to lend next
        self.rests: WeakKeyDictionary[PoolWorkQueue, float] = WeakKeyDictionary()  # T: since when all have rested


@holding("pool.lock")
def watch(pool: WorkerPool) -> None:
    """Works wait inactive: look after a period whether they wait for one another. Context: the alarm is not set."""
    pool.lending.pause = pool.config.lend_interval
    _look_again(pool)


@holding("pool.lock")
def _look_again(pool: WorkerPool) -> None:
    """Set the alarm, if lending is not switched off. Context: it is not set."""
    if pool.lending.pause > 0 and not pool.closing:
        with suppress(ThreadLimit):  # never, once the runtime has begun
            pool.lending.set(pool.host, pool.lending.pause, partial(look, pool))


@outside
def look(pool: WorkerPool) -> None:
    """Compare each place with the last look, and lend what is to be lent. Context: the timer."""
    lending = pool.lending
    with pool.lock:
        lending.cancel()
        now = {pwq: sight for pwq, sight in sights(pool).items() if pwq.lends}
        lent = changed = False
        for pwq, sight in now.items():
            before = lookup(lending.seen, pwq)
            lending.seen[pwq] = sight
            if before is None or sight.at - before.at > 2 * lending.pause:
                changed = True
                continue
            changed |= before.moved(sight)
            lenders = _who_lends(lending, pwq, before, sight)
            for worker in lenders:
                _lend(pool, pwq, worker)
                del sight.holders[worker]
            lent |= bool(lenders)
        for pwq in list(lending.seen):
            if pwq not in now:
                lending.seen.pop(pwq)
                lending.steps.pop(pwq, None)
                lending.rests.pop(pwq, None)
        if lent:
            pool.kick_or_settle()
        lending.cancel()  # activate() may have set one
        if now:
            period = pool.config.lend_interval
            lending.pause = period if lent or changed else min(2 * lending.pause, BACKOFF * period)
            _look_again(pool)


@holding("pwq.pool.lock")
def _who_lends(lending: Lending, pwq: PoolWorkQueue, before: Sight, now: Sight) -> list[Worker]:
    """Return the workers whose places are to be lent now."""
    lenders = [worker for worker in now.holders if _may_lend(worker) and before.rested(worker, now)]
    known = [worker for worker in lenders if waits_for_works(worker)]
    if not all(before.still_holds(worker) for worker in before.holders):
        lending.steps.pop(pwq, None)  # one has ended: begin with one again
    if not before.all_rested(now):
        lending.rests.pop(pwq, None)
    if known or pwq.wq.has_explicit_limit or not before.all_rested(now):
        return known
    if now.at - lending.rests.setdefault(pwq, before.at) < pwq.rest_to_lend:
        return known
    step = lookup(lending.steps, pwq) or 1
    lending.steps[pwq] = 2 * step
    return lenders[: min(step, len(pwq.inactive))]


@holding("worker.pool.lock")
def _may_lend(worker: Worker) -> bool:
    """Return whether it waits for something that runs elsewhere than in a child process (A10), and the end of its work
    would be noticed: not if a rescuer announces an end.
    """
    return worker.blocked is not CHILD and (worker.counted or not worker.announcing)


@holding("pool.lock")
def _lend(pool: WorkerPool, pwq: PoolWorkQueue, worker: Worker) -> None:
    """Lend the worker's place. The caller wakes the workers that this needs."""
    at_rest(worker)  # first: a worker believed asleep takes its place back when it runs, or its item ends
    worker.lender = pwq
    pwq.lend_place()


# ----------------------------------------------------------------------------------- waits that can be seen


def waits_for_works(worker: Worker) -> bool:
    """Return whether the work is in `concurrent.futures.wait` or `as_completed`, or awaits a work in an event loop."""
    item: Item | None = worker.item
    if item is not None and worker.pool.runtime.waits.is_waiting(item):
        return True
    return any(_is_asleep_in(waiter()) for waiter in worker.waiters)


def _is_asleep_in(waiter: Any) -> bool:
    """Return whether a thread is in `waiter.event.wait()`.

    Between two results of `as_completed` the work may do anything.
    """
    try:
        return bool(waiter.event.sleepers)
    except AttributeError:  # the waiter is gone, or of an unknown type
        return False
