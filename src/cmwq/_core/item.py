"""Item:

one queueing of something on one pool, as the worker loop sees it. A `Future` is one, and so is a `Queued` work.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from cmwq._core.pwq import Phase, PoolWorkQueue
    from cmwq._core.queue import WorkQueue
    from cmwq._core.worker import Worker


class Announcement(Protocol):
    """What is left to do when an item has ended, with no lock held."""

    @property
    def brief(self) -> bool:
        """The item is retired, and `tell` is all that is left."""
        ...

    def tell(self) -> None: ...
    def announce(self, item: Item) -> None:
        """Must not raise."""
        ...


class Item(Protocol):
    """One queueing."""

    follower: Any
    """L: what this worker executes next, whatever waits: the next queueing of the same work (E3)."""

    accepted: bool
    """I: its queue took it earlier, and lets it through while it drains."""
    _phase: Phase
    """I once queued: where flushes count it."""

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
    def exempt(self) -> bool:
        """It doesn't count as running (A8)."""
        ...

    @property
    def withdrawn(self) -> bool:
        """It was taken back, and is but a place in a list to be passed over. Nobody waits for it any more."""
        ...

    def claim(self, worker: Worker) -> bool:
        """About to run. False: it is not to be run, here and now.  Context: lock held."""
        ...

    def run(self) -> None:
        """Call the function. Never raises.  Context: lock not held."""
        ...

    def end(self) -> Announcement | None:
        """It ran.

        None: that was all, and nothing follows. Else what is to be announced; then, unless it is brief, `retire` is to
        be called, and the follower to be run.  Context: lock held.
        """
        ...

    def retire(self) -> None:
        """It has ended for those who flush, too.  Context: lock held."""
        ...

    def describe(self) -> str:
        """For messages: what it calls, of which queue."""
        ...


def name_of(fn: object) -> str:
    """How a callable is called in messages."""
    return getattr(fn, "__qualname__", None) or repr(fn)


def lay_out(cls: type[object], *names: str) -> None:
    """CPython lays out all instances of a class by the attributes of its first ones. One that gets another later gets a
    dictionary, too, which takes twice the memory and is slower. So let the first have all that are common.
    """
    first = cls.__new__(cls)
    for name in names:
        setattr(first, name, None)
