"""Item and Source: what a pool knows of the works it is given, and of where they come from.

An item is one queueing of something on one pool, as the worker loop sees it: a `Future` is one, and so is a `Queued`
work. A source is a queue's place on the pool, as its workers, rescuers and the watchdog see it: a `PoolWorkQueue`. The
letters are those of `pool`.

What a worker does with an item, in this order: `claim`, and if that is True `run` and `end`. If `end` returns an
`Announcement`, that is announced with no lock held, then `retire` is called, and then the `follower`, if there is one
by now, is claimed by the same worker, or listed again (`relist`) where that is none to run it. An item that was begun
and interrupted is put down instead: `abort`, then `be_over`.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

from cmwq._core.held import holding, outside

if TYPE_CHECKING:
    from cmwq._pool.pool import WorkerPool
    from cmwq._pool.rescuer import Rescuer
    from cmwq._pool.worker import Worker
    from cmwq._workqueue.phase import Phase
    from cmwq._workqueue.pwq import PoolWorkQueue
    from cmwq._workqueue.queue import WorkQueue


class Announcement(Protocol):
    """What is left to do when an item has ended, with no lock held."""

    def announce(self, item: Item) -> None:
        """Must not raise."""
        ...


class Source(Protocol):
    """Where works come from."""

    wq: Any
    """I: the queue itself, so that those who observe one can tell them apart."""
    pool: WorkerPool
    """I: to which they go."""
    exempt: bool
    """I: they don't count as running (A8)."""
    max_active: int
    """L: so many may be listed or executing."""
    nr_active: int
    """L: so many are, and have not lent their places."""
    inactive: deque[Item]
    """L: those that wait for a place, in order."""
    observed: bool
    """L to change, read freely: somebody hears of its works."""
    attends: bool
    """L: something is to be done when a place becomes free."""
    called: bool
    """L: its rescuer was asked to help here, and has not come yet (C2)."""

    @property
    def name(self) -> str:
        """The queue's."""
        ...

    @property
    def ordered(self) -> bool:
        """One work at a time, in queueing order (E2)."""
        ...

    @property
    def rescuer(self) -> Rescuer | None:
        """A thread of its own, for when no worker can be had (C1)."""
        ...

    @holding("self.pool.lock")
    def lend_place(self) -> None:
        """One that is active is not, for a while: the next may have its place.

        The caller wakes whom that needs.
        """
        ...

    @holding("self.pool.lock")
    def take_place(self) -> None:
        """One that lent its place goes on, even if that makes one too many."""
        ...

    def thread_name(self, worker: Worker) -> str:
        """How Python is to call the worker's thread while it executes one of its works."""
        ...

    @holding("self.pool.lock")
    def note_hog(self) -> None:
        """One of its works is a hog (A9)."""
        ...

    @holding("self.pool.lock")
    def note_mayday(self) -> None:
        """Its rescuer was called (C2)."""
        ...

    @holding("self.pool.lock")
    def note_rescued(self) -> None:
        """Its rescuer begins one of its works (C3)."""
        ...


class Item(Protocol):
    """One queueing."""

    follower: Any
    """L: what this worker executes next, whatever waits: the next queueing of the same work (E3)."""

    accepted: bool
    """I: its queue took it earlier, and lets it through while it drains."""
    phase: Phase
    """I once queued: where flushes count it."""

    work: Any
    """L: the `Work` of which this is a queueing, if it is one; None once that was taken back."""

    @property
    def pwq(self) -> PoolWorkQueue:
        """Through which queue it came, to which pool."""
        ...

    @property
    def queue(self) -> WorkQueue: ...
    @property
    def function(self) -> object:
        """What it calls; None once that has ended."""
        ...

    @property
    def withdrawn(self) -> bool:
        """It was taken back, and is but a place in a list to be passed over. Nobody waits for it any more."""
        ...

    @property
    def begun(self) -> bool:
        """It was claimed."""
        ...

    @property
    def lent(self) -> bool:
        """It hangs behind its running self, and has no place under max_active meanwhile."""
        ...

    @property
    def raised(self) -> type[BaseException] | None:
        """What its function raised. To be asked by its worker, once it ran."""
        ...

    @holding("self.pwq.pool.lock")
    def claim(self, worker: Worker) -> bool:
        """About to run. False: it is not to be run, here and now."""
        ...

    @outside
    def run(self) -> None:
        """Call the function. Never raises."""
        ...

    @holding("self.pwq.pool.lock")
    def end(self) -> Announcement | None:
        """It ran.

        None: that was all, and nothing follows. Else what is to be announced; then `retire` is to be called, and the
        follower to be run.
        """
        ...

    @outside
    def abort(self, exc: BaseException) -> None:
        """Its worker was interrupted by this, before, in or after the call: if the call has no outcome, this is it, and
        whoever waits hears of it, if they haven't yet. Context: the worker. `be_over` follows.
        """
        ...

    @holding("self.pwq.pool.lock")
    def be_over(self) -> None:
        """It has ended, but is counted by who calls this."""
        ...

    @holding("self.pwq.pool.lock")
    def settle_place(self, *, listed: bool, follows: bool) -> bool:
        """It is in these places, whatever it says itself. False: it is not to be on a list.

        Context: who mends.
        """
        ...

    @holding("self.pwq.pool.lock")
    def be_executing(self) -> None:
        """Whoever must not run at the same time finds it.  Context: who mends."""
        ...

    @holding("self.pwq.pool.lock")
    def retire(self) -> None:
        """It has ended for those who flush, too."""
        ...

    def describe(self) -> str:
        """For messages: what it calls, of which queue."""
        ...


def lay_out(cls: type[object], *names: str) -> None:
    """CPython lays out all instances of a class by the attributes of its first ones. One that gets another later gets a
    dictionary, too, which takes twice the memory and is slower. So let the first have all that are common.
    """
    first = cls.__new__(cls)
    for name in names:
        setattr(first, name, None)
