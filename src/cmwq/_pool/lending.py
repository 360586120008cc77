"""Lending: works that wait for others in a way that is none of ours must not keep those others from beginning (E1).

`concurrent.futures.wait`, a callback and a queue, an event loop within a work, an Event that another work sets: who
waits so holds its place under `max_active`, and what it waits for may wait for just that place. `result()` and its like
lend the place at once (`blocking.step_aside`). Here it is lent to whoever looks as if it should.

Guarantees
- A work that is known to wait for works, however it does (`waits_for_works`), and that used no CPU for a whole period,
  lends its place, under an explicit limit, too.
- Where the limit is the default one, which stands for no resource of the user's, nothing hangs for want of a place: if
  in a whole period no work of the queue's place began or ended, none of them is listed, and none of those that execute
  used any CPU, 1 of them lends its place, then 2, 4, ... So only the cap on threads bounds how deep such waits go.
- An explicit limit is kept against everything else (E11): a work that sleeps may be using what the limit protects.
- Ordered queues lend nothing (E2).

Why not at once, and why not all: a place at rest need not be a place that waits for itself. 256 downloads from a slow
server look the same; so it takes a period to lend one, and as long as works end the next row begins with one again.
What is lost if they do look the same is a few threads more, within their cap.

Why CPU clocks: no sensor looks while nothing is listed, and none tells what a thread will need to go on. A period
in which this timer itself came late says nothing, for then nobody got the CPU.

A place goes back when its work runs again, as far as a sensor sees that, or ends: whoever lent one here is believed
asleep, and `blocking` is told of both. A timer exists only while works wait inactive. The letters are
those of `pool`; T: the timer alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, ref

from cmwq._core.held import holding, outside
from cmwq._errors import ThreadLimit
from cmwq._pool.alarm import Alarm
from cmwq._pool.blocking import at_rest
from cmwq._pool.worker import Worker, current_worker

if TYPE_CHECKING:
    from cmwq._pool.item import Item
    from cmwq._pool.pool import WorkerPool
    from cmwq._workqueue.pwq import PoolWorkQueue

AT_REST = 0.01
"""The share of a period below which a thread's CPU time is none: one that polls waits, too."""
BACKOFF = 8
"""So many times the period is the longest pause between two looks, where nothing changes and nothing is to be lent."""


class Sight:
    """What was seen of a queue's place at one moment. Two of them tell whether it rested in between."""

    __slots__ = ("at", "head", "holders", "listed")

    @holding("pwq.pool.lock")
    def __init__(self, pwq: PoolWorkQueue, workers: Iterable[Worker], now: float) -> None:
        """workers: those of the pool that execute a work of that place."""
        self.at = now  # I
        # Weak ones: what has ended is not to be kept alive by having been seen.
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
        """It executes what it did then, and holds a place for that."""
        then = self.holders.get(worker)
        return then is not None and worker.lender is None and worker.item is not None and then[0]() is worker.item

    def rested(self, worker: Worker, now: Sight) -> bool:
        """It executed the same all the time, and used no CPU."""
        if not (self.still_holds(worker) and worker in now.holders):
            return False
        before, after = self.holders[worker][1], now.holders[worker][1]
        if before is None or after is None:
            return worker.sleeping  # no clock: the sensor's word
        return after - before <= AT_REST * (now.at - self.at)

    def moved(self, now: Sight) -> bool:
        """Another work waits first for a place now."""
        return self.head is None or now.head is None or self.head() is not now.head()

    def all_rested(self, now: Sight) -> bool:
        """Works wait for a place, and those that hold one are the same all the time, and did nothing."""
        if now.head is None or now.listed or not now.holders or len(now.holders) != len(self.holders):
            return False
        return all(self.rested(worker, now) for worker in now.holders)


@holding("pool.lock")
def sights(pool: WorkerPool) -> dict[PoolWorkQueue, Sight]:
    """Of each place where works wait inactive for another's end. Costs O(workers)."""
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
    """What is known of one pool. The alarm is set only while works wait inactive."""

    __slots__ = ("pause", "seen", "steps")

    def __init__(self) -> None:
        super().__init__()
        self.pause = 0.0  # L: until the next look
        self.seen: WeakKeyDictionary[PoolWorkQueue, Sight] = WeakKeyDictionary()  # T
        self.steps: WeakKeyDictionary[PoolWorkQueue, int] = WeakKeyDictionary()  # T: so many are to lend next


@holding("pool.lock")
def watch(pool: WorkerPool) -> None:
    """Works wait inactive: look after a period whether for themselves.  Context: it is not set."""
    pool.lending.pause = pool.config.lend_interval
    _look_again(pool)


@holding("pool.lock")
def _look_again(pool: WorkerPool) -> None:
    """Context: it is not set."""
    if pool.lending.pause > 0 and not pool.closing:
        with suppress(ThreadLimit):  # never, once the runtime has begun
            pool.lending.set(pool.host, pool.lending.pause, partial(look, pool))


@outside
def look(pool: WorkerPool) -> None:
    """Context: the timer."""
    lending = pool.lending
    with pool.lock:
        lending.cancel()
        now = {pwq: sight for pwq, sight in sights(pool).items() if pwq.lends}
        lent = changed = False
        for pwq, sight in now.items():
            before = lending.seen.get(pwq)
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
        if lent:
            pool.kick_or_settle()
        lending.cancel()  # activate() may have set one
        if now:
            period = pool.config.lend_interval
            lending.pause = period if lent or changed else min(2 * lending.pause, BACKOFF * period)
            _look_again(pool)


@holding("pwq.pool.lock")
def _who_lends(lending: Lending, pwq: PoolWorkQueue, before: Sight, now: Sight) -> list[Worker]:
    lenders = [worker for worker in now.holders if _may_lend(worker) and before.rested(worker, now)]
    known = [worker for worker in lenders if waits_for_works(worker)]
    if not all(before.still_holds(worker) for worker in before.holders):
        lending.steps.pop(pwq, None)  # one has ended: begin with one again
    if known or pwq.wq.has_explicit_limit or not before.all_rested(now):
        return known
    step = lending.steps.get(pwq, 1)
    lending.steps[pwq] = 2 * step
    return lenders[: min(step, len(pwq.inactive))]


@holding("worker.pool.lock")
def _may_lend(worker: Worker) -> bool:
    """Where it would not be seen that its work ended, it doesn't: a rescuer that tells of it."""
    return worker.counted or not worker.announcing


@holding("pool.lock")
def _lend(pool: WorkerPool, pwq: PoolWorkQueue, worker: Worker) -> None:
    """The caller wakes whom that needs."""
    at_rest(worker)  # first: who is believed asleep gives the place back when it runs or ends
    worker.lender = pwq
    pwq.lend_place()


# ----------------------------------------------------------------------------------- waits that can be seen


class Waiters(list[Any]):
    """The list to which `concurrent.futures.wait` and `as_completed` add what they wait with, on the waiting thread."""

    def append(self, waiter: Any) -> None:
        super().append(waiter)
        worker = current_worker()
        if worker is None:
            return
        known = worker.waiters
        if not known or known[-1]() is not waiter:  # weak ones: it waits only as long as somebody has the waiter
            worker.waiters = (*(other for other in known if other() is not None), ref(waiter))


def waits_for_works(worker: Worker) -> bool:
    """It is in `concurrent.futures.wait` or `as_completed`, or awaits a work in an event loop."""
    item: Item | None = worker.item
    if item is not None and worker.pool.runtime.waits.is_waiting(item):
        return True
    return any(_is_asleep_in(waiter()) for waiter in worker.waiters)


def _is_asleep_in(waiter: Any) -> bool:
    """Somebody is in `waiter.event.wait()`: between two results of `as_completed` the work may do anything."""
    try:
        return bool(waiter.event._cond._waiters)
    except AttributeError:  # it is gone; or of an unknown make
        return False
