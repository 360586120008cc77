"""Freezer: whether a runtime's freezable queues start works (E8), and who wants what.

Guarantees: the queues are frozen from the first `freeze` to the next `thaw`. A `freeze` that does not succeed takes
back what it wanted, and thaws only if no other call of it succeeded or still waits: what one thread gives up leaves
the others what they have. A runtime that ends (G3) is thawed, and refuses to be frozen until that is over. Otherwise
works that were accepted could stay behind in a place where nothing is listed, and the pools, which look at what is
listed, would be closed over them. A thaw that is interrupted is completed before anybody else freezes or thaws (F10).

No work is lost because its user has dropped the queue: elsewhere a work that waits for room is kept by one that is
listed or runs, through their place. In a frozen place no work is listed, and so the freezer keeps the place itself, as
long as works wait there. The letters are those of `pool`.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from cmwq._core.held import holding, outside
from cmwq._core.ranks import Rank
from cmwq._core.surely import surely
from cmwq._core.tables import lookup
from cmwq._errors import QueueClosed, Refused, own
from cmwq._pool.mend import mending
from cmwq._workqueue.place_end import Quiet

if TYPE_CHECKING:
    from cmwq._core.ports import Lock
    from cmwq._workqueue.pwq import PoolWorkQueue
    from cmwq._workqueue.runtime import Runtime
    from cmwq._workqueue.wait import Steps


class Freezer:
    """The freezer of one runtime."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime  # I
        self.forget()

    def forget(self) -> None:
        """Begin anew in the child of a fork (G2)."""
        host = self._runtime.host
        self._lock: Lock = host.lock(Rank.FREEZER, mending(self))  # F: freezing and thawing exclude each other
        self._thawing = False  # E: a thaw has begun, and is not complete
        self.frozen = False  # E to change; a queue's new place looks at it with Q held
        self._calls: dict[object, bool] = {}  # E: calls of `freeze` since the last thaw: has it succeeded?
        self._endings: set[object] = set()  # E to add: one for each call that ends the runtime
        self._kept: set[PoolWorkQueue] = set()  # A: frozen places in which works wait; E to clear

    def steps(self) -> Steps[None]:
        """The steps of `Runtime.freeze`. If they are closed early, this call wants nothing frozen any more."""
        mine = object()
        with surely(partial(self._give_up, mine)), surely(partial(self._give_up, mine)):
            with self._lock:
                if self._endings:
                    raise QueueClosed("freeze: the runtime is being closed")
                self._calls[mine] = False
                self.frozen = True
                # A place that is made from now on is frozen from the start: its maker holds Q, and reads `frozen` after
                # we have released Q.
                places = self._places()
                targets = [Quiet(pwq) for pwq in places]
                for pwq in places:
                    pwq.freeze()
            yield from targets
            with self._lock:
                if mine in self._calls:  # else somebody has thawed
                    wait = {call: False for call, succeeded in self._calls.items() if not succeeded}
                    self._calls = {**wait, mine: True}  # one step (F10), and one that succeeded stands for all

    @holding("pwq.pool.lock")
    def keep(self, pwq: PoolWorkQueue) -> None:
        """Keep a frozen place if works wait there, else let go of it. (All that was withdrawn is in its own list.)"""
        if len(pwq.inactive) <= pwq.nr_withdrawn:
            self._kept.discard(pwq)
        elif pwq not in self._kept:
            # A finaliser may have queued here, and before it ran, the collector cleared all weak references to this.
            pwq.pool.pwqs.add(pwq)
            self._runtime.adopt(pwq.wq)
            self._kept.add(pwq)
            if not self.frozen:  # so the thaw may have missed it
                self._runtime.host.defer(partial(self._thaw_too, pwq))

    @outside
    def _thaw_too(self, pwq: PoolWorkQueue) -> None:
        with self._lock:
            if not self.frozen:
                pwq.thaw()
                self._kept.discard(pwq)

    def _give_up(self, mine: object) -> None:
        """Thaw if this call has failed, and no other one wants the queues frozen."""
        try:
            with self._lock:
                if lookup(self._calls, mine) is False:
                    if len(self._calls) > 1:
                        del self._calls[mine]
                    else:
                        self._thaw()
        except Refused as exc:
            own(exc)
            self._runtime.host.defer(partial(self._give_up, mine))

    def thaw(self) -> None:
        """Do what `Runtime.thaw` promises."""
        try:
            with self._lock:
                self._thaw()
        except Refused as exc:
            own(exc)
            self._runtime.host.defer(self.thaw)

    def begin_to_end(self, ending: object) -> None:
        """Thaw, and refuse to freeze until `end_no_more(ending)`."""
        with self._lock:
            self._endings.add(ending)
            self._thaw()

    def end_no_more(self, ending: object) -> None:
        """Undo `begin_to_end`. Harmless if there is nothing to undo. What was frozen before stays thawed."""
        self._endings.discard(ending)

    @holding("self._lock")
    def mend(self) -> None:
        """Called after something was raised while E was held: complete a thaw. (A freeze is given up by its call.)"""
        if self._thawing:
            self._thaw()

    @holding("self._lock")
    def _thaw(self) -> None:
        self._thawing = True
        self._calls = {}
        self.frozen = False
        for pwq in self._places():
            pwq.thaw()
            self._kept.discard(pwq)  # not before: until its works are listed, perhaps nobody else knows a place
        self._thawing = False

    def _places(self) -> list[PoolWorkQueue]:
        return [pwq for queue in self._runtime.queues() if queue.freezable for pwq in queue.places()]
