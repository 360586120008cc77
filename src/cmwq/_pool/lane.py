"""The lane: where works wait that will probably compute for long, so that short ones need not wait behind them (A9).

Guarantees
- Nobody waits behind more works of one function that computes for long than two or so for each CPU: the others are set
  aside, in the lane, and works behind them begin. The lane keeps its order.
- A flood of equal long works keeps about as many threads runnable as there are CPUs. Works of functions that nothing is
  known of are not held back, so what is *different* from all others begins in order.
- The lane never stands still: whenever a hog ends, blocks, or is found to rest, the first begins, if it may. If nothing
  moves for `PATIENCE` seconds, it begins in any case, the next after twice as long, and so on.
- It costs nothing until a pool has seen a hog: one comparison per work.

How it is known: once a function was a hog, it has a `Record` of how many of its works since then used the CPU for
longer than the threshold, and how many did not. The chance that its next work is short is the rule of succession,
(short + 1) / (short + long + 2). While that is under one half, a work of it begins as a hog, uncounted, and only while
there are fewer hogs than the target, and some more by that chance: a wrapper that runs everything is often called long
after its first few works, and the more its works differ the more of them begin. There is no step in that rule.

Works of functions whose child processes compute wait in the lane, too: see `children`. For them it does not matter what
was before, but how many compute right now.

Works in the lane are active works in every respect, and count as waiting. Whoever looks through the worklist for some
of them calls `merge` first, which puts the lane back in front; they are set aside again when their turn comes.

A work that is taken back leaves the lane at once, and its place under `max_active` goes to the next (`leave`). On the
worklist it would be passed over soon; but the lane may stand still for as long as others compute, and behind the work's
place may wait works that are short. Who took a work back and who sets it aside both hold the lock: so the lane never
has one that was taken back, nor gets one, for of its function nothing is known any more (`record_of`). The letters are
those of `pool`.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import islice
from typing import TYPE_CHECKING

from cmwq._core.held import holding
from cmwq._core.naming import kind_of, name_of
from cmwq._core.tables import lookup

if TYPE_CHECKING:
    from cmwq._pool.item import Item
    from cmwq._pool.pool import WorkerPool
    from cmwq._pool.worker import Worker

REMEMBERED = 256
"""How many functions have a record. The one that has been known for longest is forgotten first."""
MEMORY = 32
"""After so many works of a function the older half of what is known counts half."""
PATIENCE, LONGEST_PATIENCE = 1.0, 64.0
"""Seconds after which a lane in which nothing moves lets one begin in any case; the pause doubles each time."""
NEAR = 8
"""So far from the front of the worklist a work that was put back is looked for."""
EVEN = 0.5
"""Works of a function of which more than this share will be short, as far as is known, are not held back."""
SPREAD = 9
"""So many more hogs per CPU may run if it were certain that the next work is short."""


class Record:
    """How the works of one function turned out since one of them was a hog."""

    __slots__ = ("anchors", "long", "name", "parent", "short")

    def __init__(self, anchors: tuple[object, ...], name: str) -> None:
        self.anchors = anchors  # I: kept alive, so that no other objects get their identities
        self.name = name  # I: of the function, for messages
        self.long = 1  # L: used the CPU for longer than the threshold
        self.short = 0  # L
        self.parent = False  # L: a child process of one of its works was seen to compute (A10)

    @holding("pool.lock")
    def note(self, pool: WorkerPool, *, was_long: bool) -> None:
        """Count one more work."""
        self.long, self.short = self.long + was_long, self.short + (not was_long)
        if self.long + self.short > MEMORY:
            self.long, self.short = (self.long + 1) // 2, (self.short + 1) // 2

    @holding("pool.lock")
    def chance(self, pool: WorkerPool) -> float:
        """Return how probable it is that the next work of the function is short."""
        return (self.short + 1) / (self.short + self.long + 2)


class Lane:
    """The lane of one pool, and what is known of functions there."""

    __slots__ = ("forced", "items", "moved_at", "out", "patience", "records")

    def __init__(self) -> None:
        self.items: OrderedDict[Item, None] = OrderedDict()  # L: active works that were set aside, in order: keys, so
        # that any of them leaves at once
        self.records: dict[tuple[int | str, ...], Record] = {}  # L: by the kind of function, the latest at the end
        self.out: Item | None = None  # L: the work that was put back on the worklist, and not taken yet
        self.forced = False  # L: it may begin in any case
        self.moved_at = 0.0  # L: when a work was last put back, or the lane was empty, on the host's clock
        self.patience = PATIENCE  # L: seconds until one is put back in any case

    @holding("item.pwq.pool.lock")
    def remember(self, item: Item) -> Record:
        """Return the record of the item's function, a new one if need be: the item is a hog, or its child computes. Of
        an item whose function has ended, and whose callbacks compute, nothing is remembered: what is taken back has no
        function either, and would be taken for one of that kind.
        """
        function = item.function  # read once: the call may end at any moment
        anchors, name = kind_of(function)
        record = lookup(self.records, _key(anchors, name))
        if record is None:
            record = Record(anchors, name_of(function))
            if function is not None:
                if len(self.records) >= REMEMBERED:
                    self.records.pop(next(iter(self.records)))
                self.records[_key(anchors, name)] = record
        return record

    @holding("item.pwq.pool.lock")
    def record_of(self, item: Item) -> Record | None:
        """Return what is known of the function of this item. None: nothing, as of one taken back or ended."""
        key = _key(*kind_of(item.function))
        return self.records[key] if key in self.records else None  # noqa: SIM401 - see `tables`; most have none

    @holding("pool.lock")
    def first(self, pool: WorkerPool) -> Item:
        """Return the first item of this lane, which is that pool's. Context: there is one."""
        return next(iter(self.items))

    @holding("item.pwq.pool.lock")
    def add(self, item: Item, *, comes_back: bool) -> None:
        """Set an item aside that was taken from the worklist. comes_back: it had been put back too early."""
        if not self.items:
            self.moved_at, self.patience = item.pwq.pool.host.monotonic(), PATIENCE
        self.items[item] = None
        if comes_back:
            self.items.move_to_end(item, last=False)

    @holding("item.pwq.pool.lock")
    def leave(self, item: Item) -> bool:
        """Forget an item that was taken back. Returns whether it was here; then the caller gives its place to the next,
        and nothing of it remains to be passed over.
        """
        if item not in self.items:
            return False
        del self.items[item]
        return True


def _key(anchors: tuple[object, ...], name: str) -> tuple[int | str, ...]:
    """What a kind of function is looked up by: by identity, since to compare classes may run user code."""
    if len(anchors) == 1:  # the usual case, and the quickest way
        return id(anchors[0]), name
    return (*map(id, anchors), name)


@holding("worker.pool.lock")
def _computes(worker: Worker) -> bool:
    """Return whether a child process of the worker computes; or it executes a work of a function that starts some, and
    was not seen to sleep.
    """
    if worker.blocked is not None:
        return worker.blocked.computes and (worker.below is not None or is_parent(worker))
    return is_parent(worker)


@holding("worker.pool.lock")
def is_parent(worker: Worker) -> bool:
    """Return whether the worker executes a work of a function whose child processes were seen to compute."""
    return worker.record is not None and worker.record[0].parent


@holding("pool.lock")
def may_begin(pool: WorkerPool, record: Record) -> bool:
    """Return whether one more work may begin of a function that has this record."""
    if record.parent:
        return sum(map(_computes, pool.workers)) < max(1, pool.target)
    chance = record.chance(pool)
    return chance >= EVEN or pool.nr_hogs < max(1, int(pool.target * (1 + SPREAD * chance * chance)))


@holding("pool.lock")
def readmit(pool: WorkerPool, *, force: bool = False) -> bool:
    """Put the first item of the lane back on the worklist if it may begin now, or in any case. One at a time, so that
    they keep their order. Context: there is one, and fewer hogs run than before, or more may. The caller wakes the
    worker that this needs.
    """
    lane = pool.lane
    if lane.out is not None and lane.out in islice(pool.worklist, NEAR):
        return False
    first = lane.first(pool)
    record = lane.record_of(first)
    if record is not None and not (force or may_begin(pool, record)):
        return False
    lane.out, lane.forced, lane.moved_at = first, force, pool.host.monotonic()
    pool.worklist.appendleft(first)
    del lane.items[first]  # last: an interruption leaves it in both, never in neither (see `mend`)
    return True


@holding("pool.lock")
def look_after(pool: WorkerPool) -> None:
    """Put back what may begin; and one more, if nothing has moved for long: works may wait for one another by
    computing, or each may take an hour. Context: the timer; the caller wakes the worker that this needs.
    """
    lane = pool.lane
    if lane.items and not readmit(pool) and pool.host.monotonic() - lane.moved_at >= lane.patience:
        lane.patience = min(2 * lane.patience, LONGEST_PATIENCE)
        readmit(pool, force=True)


@holding("pool.lock")
def merge(pool: WorkerPool) -> None:
    """Put the whole lane back, in front of the worklist, and wake a worker if one is needed: whatever the caller looks
    for, it may find nothing and change nothing. Context: somebody looks for items in the worklist.
    """
    if pool.lane.items:
        put_back(pool)
        pool.kick_or_settle()


@holding("pool.lock")
def put_back(pool: WorkerPool) -> None:
    """As `merge`, for a caller that wakes the workers that this needs."""
    items = pool.lane.items
    pool.worklist.extendleft(reversed(items))
    items.clear()  # last, as above
