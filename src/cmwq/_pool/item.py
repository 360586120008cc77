"""Item and Source: what a pool knows of the works it is given, and of where they come from.

An item is one queueing of something on one pool, as the worker loop sees it: a `Future` is one, and so is a `Queued`
work. A source is a queue's place on the pool, as workers, rescuers and the watchdog see it: a `PoolWorkQueue`. The
letters are those of `pool`.

A worker first calls an item's `claim`, and if that returns True, `run` and then `end`. If `end` returns an
`Announcement`, the worker announces it with no lock held and then calls `retire`. If the item has a `follower` by then,
the same worker claims it; a rescuer lists it again instead (`relist`). An item that was begun and interrupted is put
down: `abort`, then `be_over`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from types import GetSetDescriptorType, MemberDescriptorType
from typing import TYPE_CHECKING, Any, Protocol

from cmwq._core.held import holding, outside

if TYPE_CHECKING:
    from cmwq._pool.figures import Figures
    from cmwq._pool.pool import WorkerPool
    from cmwq._pool.rescuer import Rescuer
    from cmwq._pool.ring import Recorder
    from cmwq._pool.worker import Worker
    from cmwq._workqueue.phase import Phase
    from cmwq._workqueue.pwq import PoolWorkQueue
    from cmwq._workqueue.queue import WorkQueue


class Announcement(Protocol):
    """What is left to do, with no lock held, when an item has ended."""

    def announce(self, item: Item) -> None:
        """Tell the threads that wait for the item. Must not raise."""
        ...


class Source(Protocol):
    """Where works come from: the place of a queue on one pool."""

    wq: Any
    """I: the queue itself, so that observers can tell queues apart."""
    pool: WorkerPool
    """I: the pool that its works go to."""
    figures: Figures
    """I: what is counted and measured of its works."""
    frozen: bool
    """L: none of its works is started (E8)."""
    exempt: bool
    """I: its works do not count as running (A8)."""
    max_active: int
    """L: how many of its works may be listed or executing at a time."""
    nr_active: int
    """L: how many of its works are active and have not lent their places."""
    inactive: deque[Item]
    """L: its works that wait for a place, in order."""
    observed: bool
    """L to change, read freely: somebody subscribed to events of its works."""
    recorder: Recorder | None
    """L to change, read freely: records its works for a trace."""
    attends: bool
    """L: something has to be done when a place becomes free."""
    called: bool
    """L: its rescuer was called to this pool, and has not come yet (C2)."""

    @property
    def name(self) -> str:
        """The name of the queue."""
        ...

    @property
    def rest_to_lend(self) -> float:
        """Seconds for which all its works must rest before they lend their places, if its limit is no explicit one."""
        ...

    @property
    def ordered(self) -> bool:
        """Whether its works run one at a time, in queueing order (E2)."""
        ...

    @property
    def rescuer(self) -> Rescuer | None:
        """The thread that the queue owns for the time when no worker can be had (C1); None if it has none."""
        ...

    @holding("self.pool.lock")
    def settle_gate(self) -> None:
        """Compute anew whether each new work has to pass the gate, after something changed on which that depends."""
        ...

    @holding("self.pool.lock")
    def nr_queued(self) -> int:
        """How many works were queued here and not taken back."""
        ...

    @holding("self.pool.lock")
    def lend_place(self) -> None:
        """Give up the place of an active work for a while, so that the next may have it.

        The caller wakes the worker that this needs.
        """
        ...

    @holding("self.pool.lock")
    def take_place(self) -> None:
        """Take back the place of a work that lent it, even if that makes one too many."""
        ...

    def thread_name(self, worker: Worker) -> str:
        """Return the Python name of the worker's thread while it executes one of these works."""
        ...

    @holding("self.pool.lock")
    def note_hog(self) -> None:
        """Note that one of its works is a hog (A9)."""
        ...

    @holding("self.pool.lock")
    def note_mayday(self) -> None:
        """Note that its rescuer was called (C2)."""
        ...

    @holding("self.pool.lock")
    def note_rescued(self) -> None:
        """Note that its rescuer begins one of its works (C3)."""
        ...


class Item(Protocol):
    """One queueing of something on one pool."""

    follower: Any
    """L: the next queueing of the same work, which this worker executes next, whatever else waits (E3)."""

    accepted: bool
    """I: its queue admitted it earlier, and therefore admits it also while it drains."""
    phase: Phase
    """I once queued: the phase in which flushes count it."""

    work: Any
    """L: the `Work` of which this is a queueing, if it is one; None once the queueing was withdrawn."""

    @property
    def answers(self) -> Sequence[Any]:
        """S: if it asked a source: the call that the source gave and that it ran, or nothing."""
        ...

    @property
    def pwq(self) -> PoolWorkQueue:
        """The place it was queued to: one queue on one pool."""
        ...

    @property
    def queue(self) -> WorkQueue: ...
    @property
    def function(self) -> object:
        """The function that it calls; None once that has ended."""
        ...

    @property
    def withdrawn(self) -> bool:
        """Whether it was cancelled and is only an entry in a list to be passed over. No thread waits for it."""
        ...

    @property
    def begun(self) -> bool:
        """Whether a worker has claimed it."""
        ...

    @property
    def lent(self) -> bool:
        """Whether it is the follower of its running work, and has no place under max_active meanwhile."""
        ...

    @property
    def raised(self) -> type[BaseException] | None:
        """The type of the exception that its function raised; None if it returned. Its worker may ask, after `run`."""
        ...

    @holding("self.pwq.pool.lock")
    def claim(self, worker: Worker) -> bool:
        """Become the item that `worker` runs next. Returns False if it is not to be run here and now."""
        ...

    @outside
    def run(self) -> None:
        """Call the function. Never raises."""
        ...

    @holding("self.pwq.pool.lock")
    def end(self) -> Announcement | None:
        """Settle the end of an item that was run.

        Returns None if nothing follows. Otherwise it returns what has to be announced; then `retire` has to be called,
        and the follower has to be run.
        """
        ...

    @outside
    def abort(self, exc: BaseException) -> None:
        """Make `exc`, which interrupted its worker, the outcome of the call, unless the call has one, and tell the
        threads that wait, unless they were told. Context: the worker; before, in or after the call. `be_over` follows.
        """
        ...

    @holding("self.pwq.pool.lock")
    def be_over(self) -> None:
        """Become an ended item; the counts are up to the caller, which mends the pool."""
        ...

    @holding("self.pwq.pool.lock")
    def settle_place(self, *, listed: bool, follows: bool) -> bool:
        """Make what the item says of its place agree with the places where it was found. Returns False if it must not
        be in a list. Context: mending.
        """
        ...

    @holding("self.pwq.pool.lock")
    def be_executing(self) -> None:
        """Make sure that what must not run at the same time finds this item. Context: mending."""
        ...

    @holding("self.pwq.pool.lock")
    def retire(self) -> None:
        """Count it as ended for flushes, too."""
        ...

    def describe(self) -> str:
        """Return words for messages: what it calls, and of which queue."""
        ...


def lay_out(cls: type[object], *names: str) -> None:
    """Give the first instance of a class all the attributes that its instances usually get.

    CPython lays out all instances of a class by the attributes of its first ones. An instance that gets another one
    later gets a dictionary as well, which takes twice the memory and is slower. Fields of a C record are no part of it.
    """
    first = cls.__new__(cls)
    for name in names:
        if not isinstance(getattr(cls, name, None), (GetSetDescriptorType, MemberDescriptorType)):
            setattr(first, name, None)
