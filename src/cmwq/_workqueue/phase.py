"""Phase: how a flush knows that the works queued before it have ended (F1).

The works of one queue on one pool are counted in phases. A flush seals the current phase, and a new one begins. The
flush is over when the counts of the sealed phase and of all phases before it have reached zero: `pwq.seal` begins that,
`pwq.complete_phases` says when. (The kernel colours
works for the same purpose; phases are numbered without limit, so they need no overflow list.) The letters are those of
`pool`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cmwq._core.held import holding, outside
from cmwq._core.records import PhaseRecord

if TYPE_CHECKING:
    from cmwq._core.ports import Parker
    from cmwq._pool.item import Item
    from cmwq._pool.ring import Recorder
    from cmwq._pool.worker import Worker
    from cmwq._workqueue.pwq import PoolWorkQueue

PURGE = 64
"""Up to this many withdrawn items stay in their lists, to be passed over. If there are more, and they are more than
half of what is listed, they are removed.
"""


class Phase(PhaseRecord):
    """The works of one queue on one pool between two flushes."""

    __slots__ = ("done", "into", "number", "parkers")
    pwq: PoolWorkQueue
    queued: int
    ended: int

    def __init__(self, pwq: PoolWorkQueue, number: int) -> None:
        self.pwq = pwq  # I
        self.number = number  # I: later phases have higher numbers
        self.queued = 0  # L: works queued and not taken back
        self.ended = 0  # L: how many of them have ended
        self.done = False  # L to change, read freely: sealed, and all works of it and of those before it have ended
        self.parkers: list[Parker] = []  # L: the threads that flush
        self.into: Phase | None = None  # L to change, once; read freely: the phase that it was merged into

    asks = False
    """Whether its works are places in line, which ask a source (E12)."""
    measures = False
    """Whether it takes the times of its one work."""

    @property
    def count(self) -> int:
        """How many works were queued and have neither ended nor been taken back."""
        return self.queued - self.ended

    @property
    def counter(self) -> Phase:
        """The phase that counts the works which have this one."""
        return self

    @outside
    def run(self, worker: Worker, recorder: Recorder | None) -> None:
        """Run the worker's item, which is one of its works. Context: the worker. It does not take the short way."""
        if recorder is None:
            worker.item.run()  # type: ignore[union-attr]  # in no variable: a traceback may keep this frame
        else:
            recorder.run(worker)

    def which(self) -> Phase:
        """The phase whose end is this one's end: itself, or the one that it was merged into."""
        phase = self
        while phase.into is not None:
            phase = phase.into
        return phase

    @holding("self.pwq.pool.lock")
    def retire(self) -> None:
        """One of its works ended: count it off, and give its place under max_active to the next."""
        pwq = self.pwq
        # `leave` and `lend_place` in one, because every work ends here.
        self.ended += 1
        if not pwq.attends:
            pwq.nr_active -= 1
        elif pwq.nr_withdrawn or pwq.careful or pwq.nr_active > pwq.max_active:
            pwq.nr_active -= 1
            pwq.attend()
        else:  # the usual case while works wait: the next one takes the place
            pwq.pool.worklist.append(pwq.inactive[0])  # for a moment in both lists, never in neither: see `mend`
            del pwq.inactive[0]
            if not pwq.inactive:
                pwq.attends = False
        if self is not pwq.phase and self.ended == self.queued:
            pwq.complete_phases(self)

    @holding("self.pwq.pool.lock")
    def leave(self) -> None:
        """One of its works was taken back and is in no list any more."""
        self.queued -= 1
        if self is not self.pwq.phase and not self.count:
            self.pwq.complete_phases(self)
        self.pwq.pool.tell_drainers()

    @holding("self.pwq.pool.lock")
    def withdraw(self, item: Item) -> None:
        """This item, one of its works, was taken back. It stays in its list, to be passed over; in the lane it would
        not be passed over while others compute, so it leaves that.
        """
        pwq = self.pwq
        if pwq.pool.lane.leave(item):
            pwq.lend_place()
            pwq.pool.kick_or_settle()
        else:
            pwq.nr_withdrawn += 1
            if pwq.nr_withdrawn > PURGE:
                pwq.purge()
            if pwq.frozen:
                pwq.wq.runtime.freezer.keep(pwq)
        self.leave()


class Outside(Phase):
    """The phase of works that are not queued yet. They may be taken back, and no flush waits for them."""

    __slots__ = ()

    def leave(self) -> None:
        pass

    def withdraw(self, item: Item) -> None:
        pass
