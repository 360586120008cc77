"""Worker: a record of what one thread of a pool is doing; and which of them the calling thread is.

What the thread does is in `worker_thread`. The letters are those of `pool`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from threading import local
from typing import TYPE_CHECKING, Any, TypeVar

from cmwq._core.held import holding, not_holding, outside

if TYPE_CHECKING:
    from weakref import ref

    from cmwq._core.ports import Parker, Thread, Traits
    from cmwq._pool.blocking import Blocked
    from cmwq._pool.item import Item, Source
    from cmwq._pool.pool import WorkerPool

_log = logging.getLogger("cmwq")
T = TypeVar("T")

RESCUER = -1
"""In place of a worker's number: a queue's rescuer, which helps in the pool for a while."""


class Worker:
    """A record of one thread's role in a pool. It *has* a thread."""

    __slots__ = (
        "announcing", "blocked", "counted", "cpu_time", "dying", "ended", "fate", "hog_item", "hog_since", "hog_used",
        "idle", "index", "item", "kicked", "last", "last_active", "lender", "listed", "look_again", "name", "nr_hints",
        "nr_refused", "parker", "pool", "served", "shown", "stray", "stumbled", "thread", "tid", "traits", "waiters",
        "watched",
    )  # fmt: skip

    def __init__(self, pool: WorkerPool, index: int, parker: Parker, name: str = "") -> None:
        self.pool = pool  # I
        self.index = index  # I: its number in the pool, or `RESCUER`
        self.parker = parker  # I
        self.name = name or f"cmwq/{pool.name}:{index}{'H' * bool(pool.nice)}"  # I
        self.thread: Thread | None = None  # I: set by the creator once it exists
        self.tid = 0  # L: the system's name for it, once it is bound to the pool's CPUs
        self.listed = False  # L: its thread exists, and it has been on the idle list
        self.idle = False  # L: on the idle list, or about to be put there
        self.kicked = False  # L: taken from the idle list by kick(), counted, and not yet arrived
        self.dying = False  # L: shall end
        self.fate = ""  # L: of what it died, if it wasn't told to
        self.counted = False  # L: executing, and not exempt (A8)
        self.blocked: Blocked | None = None  # L: why it doesn't count as running; only while it is counted
        self.item: Item | None = None  # L: what it is about to claim, or executes, until everybody has heard of its end
        self.lender: Source | None = None  # L: where its item has lent its place under max_active
        self.cpu_time: Callable[[], float | None] = unknown  # I: CPU seconds its thread has used
        self.hog_item: ref[Item] | None = None  # L: what it executed when last looked at for hogs (A9)
        self.hog_used: float | None = None  # L: if it is a hog, its CPU time when last looked at
        self.hog_since = 0.0  # L: its CPU time then
        self.last: Item | None = None  # S: ended, to be dropped without the lock
        self.last_active = 0.0  # L: when it went idle
        self.stray = False  # ~: it is to bind itself again, before its next item
        self.announcing = False  # L: its item has ended, and those who wait are being told
        self.ended: Callable[[], None] = _nothing  # I once its thread runs: whatever a sensor saw of it is void
        self.stumbled: Item | None = None  # S: it was interrupted when it was about to claim this one
        self.served: Source | None = None  # ~: its next item is run without ado if it came through the same
        self.nr_refused = pool.office.nr_refused  # I: so many threads had been refused before it was created
        self.nr_hints = 0  # S: depth of blocking()
        self.traits: Traits | None = None  # S: how its thread is to be
        self.look_again = 0.0  # S: not before that, on the host's clock, it is looked at for what works left behind
        self.shown = ""  # S: the queue the thread is named after
        self.waiters: tuple[ref[Any], ...] = ()  # S to change, read freely: see `lending.Waiters`
        self.watched: Any = None  # L: the sensor's own

    @property
    def sleeping(self) -> bool:
        """It is counted, and doesn't count as running."""
        return self.blocked is not None

    @property
    def is_rescuer(self) -> bool:
        return self.index == RESCUER

    def __repr__(self) -> str:
        state = "idle" if self.idle else "blocked" if self.sleeping else "running" if self.counted else "preparing"
        return f"<Worker {self.name} {state}>"

    @not_holding("self.pool.lock")
    def bind(self) -> None:
        """Let its thread run on the CPUs that the pool has (A1).  Context: its own thread."""
        pool = self.pool
        while True:
            cpus = pool.cpus
            attempt(pool, "be bound to its CPUs", partial(pool.host.bind, cpus))
            with pool.lock:
                if pool.cpus is cpus:
                    self.tid = pool.host.thread_id()  # from now on whoever changes them binds it
                    return

    @holding("self.pool.lock")
    def reclaim_place(self) -> None:
        """Its item ended, or runs again: if it had lent its place, it holds one, even one too many."""
        if self.lender is not None:
            self.lender.take_place()
            self.lender = None


def _nothing() -> None:
    """No sensor sees it."""


def unknown() -> None:
    """The CPU time of a thread that hasn't begun."""


_this_thread = local()


def current_worker() -> Worker | None:
    return getattr(_this_thread, "worker", None)


def be_worker(worker: Worker | None) -> None:
    """What the calling thread is from now on."""
    _this_thread.worker = worker


def attempt(pool: WorkerPool, what: str, step: Callable[[], T]) -> T | None:
    """A worker goes on without, which is said once. A pool without workers would be worse."""
    try:
        return step()
    except Exception as exc:
        if what not in pool.stats.lacks:
            pool.stats.lacks.add(what)
            _log.warning("pool %s: a worker could not %s (%s), and works all the same", pool.name, what, in_words(exc))
    return None


@outside
def in_words(exc: BaseException) -> str:
    """An exception in a message. What it has to say of itself is the user's code."""
    try:
        words = f"{type(exc).__name__}: {exc}"
    except Exception:
        words = type(exc).__name__
    return words if len(words) <= 200 else words[:197] + "..."
