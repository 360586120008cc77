"""Worker: the record of what one thread of a pool is doing, and which worker the calling thread is.

What the thread does is in `worker_thread`. The letters are those of `pool`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from threading import local
from typing import TYPE_CHECKING, Any, TypeVar

from cmwq._core import log
from cmwq._core.held import holding, not_holding, outside
from cmwq._core.records import WorkerRecord

if TYPE_CHECKING:
    from weakref import ref

    from cmwq._core.ports import Parker, Thread, Traits
    from cmwq._pool.blocking import Blocked
    from cmwq._pool.children import Below
    from cmwq._pool.figures import Figures, Seen
    from cmwq._pool.item import Item, Source
    from cmwq._pool.lane import Record
    from cmwq._pool.pool import WorkerPool
    from cmwq._pool.ring import Recorder
    from cmwq._workqueue.phase import Phase

T = TypeVar("T")

RESCUER = -1
"""Stands in place of a worker's number for a queue's rescuer, which helps in the pool for a while."""


class Worker(WorkerRecord):
    """A record of one thread's role in a pool. It *has* a thread."""

    __slots__ = (
        "announcing", "began", "billed", "billed_to", "cpu_time", "fate", "hog_item", "hog_since", "hog_used", "home",
        "idle", "index", "last_active", "lender", "listed", "look_again", "name", "nr_hints", "nr_refused", "pool",
        "seen", "shown", "stray", "stumbled", "thread", "tid", "traits", "waiters", "watched",
    )  # fmt: skip

    def __init__(self, pool: WorkerPool, index: int, parker: Parker, name: str = "") -> None:
        self.pool = pool  # I
        self.index = index  # I: its number in the pool, or `RESCUER`
        self.parker = parker  # I
        self.name = name or f"cmwq/{pool.name}:{index}{'H' * bool(pool.nice)}"  # I
        self.home: Thread | None = None  # I: its thread, set by the creator once it exists
        self.thread: Thread | None = None  # S: where its item runs: its thread, or one that stands in (`own_thread`)
        self.tid = 0  # L: the system's thread id, once it is bound to the pool's CPUs; 0 before
        self.listed = False  # L: its thread exists, and it has been on the idle list
        self.idle = False  # L: on the idle list, or about to be put there
        self.kicked = False  # L: taken from the idle list by kick(), counted, and not yet arrived
        self.dying = False  # L: it was told to end
        self.fate = ""  # L: what it died of, if it was not told to end
        self.counted = False  # L: executing, and not exempt (A8)
        self.blocked: Blocked | None = None  # L: what is known of it beyond that it runs; set only while it is counted
        self.below: Below | None = None  # L: what was seen below it, if its item has child processes (A10)
        self.item: Item | None = None  # L: what it is about to claim or executes, until its end was announced
        self.lender: Source | None = None  # L: the source at which its item has lent its place under max_active
        self.cpu_time: Callable[[], float | None] = unknown  # I: returns the CPU seconds that its thread has used
        self.hog_item: ref[Item] | None = None  # L: what it executed at the last look for hogs (A9)
        self.hog_used: float | None = None  # L: if it is a hog, its CPU time at the last look
        self.record: tuple[Record, float | None] | None = None  # L: how works of its item's function turned out, and
        # its CPU time when it took the item; None: nothing is known of the function (`lane`)
        self.hog_since = 0.0  # L: its CPU time when `hog_item` was first seen; -inf: reported already
        self.last: Item | None = None  # S: the item that ended last, to be dropped without the lock
        self.last_active = 0.0  # L: when it last went idle, on the host's clock
        self.stray = False  # ~: it has to bind itself again before its next item
        self.announcing = False  # L: its item has ended, and the threads that wait are being told
        self.ended: Callable[[], None] = _nothing  # I once its thread runs: tells the sensor that what it saw is void
        self.stumbled: Item | None = None  # S: the item that it was about to claim when it was interrupted
        self.served: Phase | Recorder | None = None  # ~: an item of this phase takes the short way (`observed`)
        self.began = 0.0  # S to change, read freely: when the work that it records began (`ring`); 0: it records none
        self.seen: Seen | None = None  # L: what was seen of the item that it executes, or executed
        self.billed_to: Figures | None = None  # L: whose works it executes, since its CPU time was last read
        self.billed = 0.0  # L: that CPU time
        self.nr_refused = pool.office.nr_refused  # I: how many threads had been refused before it was created
        self.nr_hints = 0  # S: how deep it is in blocking() and waits
        self.traits: tuple[Traits, tuple[int, ...]] | None = None  # S: see `leaks.note_traits` (B4)
        self.look_again = 0.0  # S: next look for what works left behind, on the host's clock
        self.shown = ("", 0)  # S: the queue that the thread is named after: its name, and its serial number
        self.waiters: tuple[ref[Any], ...] = ()  # S to change, read freely: see `lending.Waiters`
        self.watched: Any = None  # L: belongs to the sensor

    @property
    def sleeping(self) -> bool:
        """Whether the worker is counted but does not count as running."""
        return self.blocked is not None

    @property
    def is_rescuer(self) -> bool:
        """Whether a queue's rescuer is at work here, and not a worker of the pool's own."""
        return self.index == RESCUER

    def __repr__(self) -> str:
        state = "idle" if self.idle else "blocked" if self.sleeping else "running" if self.counted else "preparing"
        return f"<Worker {self.name} {state}>"

    @not_holding("self.pool.lock")
    def bind(self) -> None:
        """Bind the worker's thread to the CPUs of the pool (A1). Context: its own thread.

        If the CPUs change meanwhile, it is bound again. Failure is logged once per pool, and the worker goes on.
        """
        pool = self.pool
        while True:
            cpus = pool.cpus
            attempt(pool, "be bound to its CPUs", partial(pool.host.bind, cpus))
            with pool.lock:
                if pool.cpus is cpus:
                    self.tid = pool.host.thread_id()  # from now on `serve` binds it when they change
                    return

    @holding("self.pool.lock")
    def reclaim_place(self) -> None:
        """Take back the place that the worker's item has lent, if it has, even if that makes one too many. To be called
        when the item ends or runs again.
        """
        if self.lender is not None:
            self.lender.take_place()
            self.lender = None


def _nothing() -> None:
    """Stands for `ended` while no sensor sees the worker."""


def unknown() -> None:
    """Stands for the CPU clock of a thread that has none, or has not begun."""


_this_thread = local()


def current_worker() -> Worker | None:
    """Return the worker that the calling thread is; None if it is none."""
    return getattr(_this_thread, "worker", None)


def be_worker(worker: Worker | None) -> None:
    """Set which worker the calling thread is from now on."""
    _this_thread.worker = worker


def attempt(pool: WorkerPool, what: str, step: Callable[[], T]) -> T | None:
    """Run a step of setting up a worker's thread. If it raises an `Exception`, log that once per pool and return None.

    The worker goes on without the step, because a pool without workers would be worse.
    """
    try:
        return step()
    except Exception as exc:
        if what not in pool.stats.lacks:
            pool.stats.lacks.add(what)
            log.warning("pool %s: a worker could not %s (%s), and works all the same", pool.name, what, in_words(exc))
    return None


@outside
def in_words(exc: BaseException) -> str:
    """Return an exception in words, at most 200 characters. Its `__str__` is user code, which may raise."""
    try:
        words = f"{type(exc).__name__}: {exc}"
    except Exception:
        words = type(exc).__name__
    return words if len(words) <= 200 else words[:197] + "..."
