"""Phase: how a flush knows that the works queued before it have ended (F1).

The works of one queue on one pool are counted in phases. A flush seals the current phase, a new one begins, and the
flush has happened when the sealed one and all before it have counted down to zero. (The kernel colours works for the
same purpose; a number of phases has no limit and needs no overflow list.) The letters are those of `pool`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cmwq._core.held import holding

if TYPE_CHECKING:
    from cmwq._core.ports import Parker
    from cmwq._workqueue.pwq import PoolWorkQueue

PURGE = 64
"""So many withdrawn items may be passed over later; beyond, and beyond half of what is listed, they are removed."""


class Phase:
    """The works of one queue on one pool between two flushes."""

    __slots__ = ("count", "done", "into", "number", "parkers", "pwq")

    def __init__(self, pwq: PoolWorkQueue, number: int) -> None:
        self.pwq = pwq  # I
        self.number = number  # I: later phases have higher ones
        self.count = 0  # L: queued, not ended and not taken back
        self.done = False  # L: sealed, and it and all before it have ended
        self.parkers: list[Parker] = []  # L: who flushes
        self.into: Phase | None = None  # L, once: all of its own works ended; what it waits for is the end of this one

    def which(self) -> Phase:
        """That whose end is its own."""
        phase = self
        while phase.into is not None:
            phase = phase.into
        return phase

    @holding("self.pwq.pool.lock")
    def retire(self) -> None:
        """One of its works ended, and gives its place up."""
        pwq = self.pwq
        # `leave`, `lend_place` and `_list_next` in one, for this is the end of every work.
        self.count -= 1
        if not pwq.attends:
            pwq.nr_active -= 1
        elif pwq.nr_withdrawn or pwq.careful or pwq.nr_active > pwq.max_active:
            pwq.nr_active -= 1
            pwq.attend()
        else:  # as in any flood: the next takes its place
            pwq.pool.worklist.append(pwq.inactive[0])  # in both lists for a moment, never in none: see `mend`
            del pwq.inactive[0]
            if not pwq.inactive:
                pwq.attends = False
        if not self.count and self is not pwq.phase:
            pwq.complete_phases(self)

    @holding("self.pwq.pool.lock")
    def leave(self) -> None:
        """One of its works was taken back, and is in no list."""
        self.count -= 1
        if not self.count and self is not self.pwq.phase:
            self.pwq.complete_phases(self)
        self.pwq.pool.tell_drainers()

    @holding("self.pwq.pool.lock")
    def withdraw(self) -> None:
        """One of its works was taken back. It stays in its list, to be passed over."""
        pwq = self.pwq
        pwq.nr_withdrawn += 1
        if pwq.nr_withdrawn > PURGE:
            pwq.purge()
        self.leave()


class Outside(Phase):
    """Where a work counts that is not queued yet. It may be taken back, and nobody waits for it with a flush."""

    __slots__ = ()

    def leave(self) -> None:
        pass

    def withdraw(self) -> None:
        pass
