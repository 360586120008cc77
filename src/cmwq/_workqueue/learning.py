"""Learning: how a place in a queue with `max_active="auto"` sees what its works achieve, and obeys its law (E11).

Guarantees: a queue whose limit is a number pays nothing for this. With "auto" the end of a work costs a decrement and a
comparison (`LearnedPhase.retire`); the law is asked once in a window, and only while works wait for a place. A timer
exists only while works wait, and the limit is still to rise or another one is tried (G4). If an exception comes in the
middle (F10), either the old law or the new one is there, whole, and `PoolWorkQueue.mend_limit` makes the place agree.

A limit that was learned stays with its place while that lives, however long it idles. It is noted in the runtime under
the queue's name and scope, and a place made later begins with it. A queue with several pools learns one limit for each
of them (`max_active` is per pool), and its place on another pool begins with what was learned last.

The letters are those of `pool`.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING
from weakref import ref

from cmwq._core.config import DFL_ACTIVE
from cmwq._core.held import holding, outside
from cmwq._core.tables import lookup
from cmwq._errors import ThreadLimit
from cmwq._pool.alarm import Alarm
from cmwq._workqueue.learned import NEVER, Law, Stage
from cmwq._workqueue.phase import Phase
from cmwq._workqueue.rising import FIRST, Sight

if TYPE_CHECKING:
    from cmwq._pool.worker import Worker
    from cmwq._workqueue.pwq import PoolWorkQueue
    from cmwq._workqueue.queue import WorkQueue

SAMPLE = 8
"""Of so many works it is asked how they wait."""
STRIKES = 3
"""So many times a work may be seen that does not sleep: it may be about to. Then the works are no sleepers for good."""
MAX_NAMES = 1000
"""The limits of so many queues are remembered, those learned last."""
HANGS = 1.0
"""Seconds, and 4 times what works usually take: when all works rested for so long, they may be waiting for one another,
and lend their places.
"""


class Learning:
    """What a place knows of its limit."""

    __slots__ = ("alarm", "failed", "law", "quota", "seen_failed", "sleepers", "strikes")

    def __init__(self, pwq: PoolWorkQueue) -> None:
        known = lookup(pwq.wq.runtime.limits, _key(pwq))
        self.law = Law(DFL_ACTIVE, 2 * len(pwq.pool.cpus), known)  # L: replaced as a whole
        self.quota = NEVER  # L: what the place's `left` was to begin with
        self.failed = 0  # L: works that raised
        self.seen_failed = 0  # L: how many of them the law knows
        self.sleepers = False  # L: the works that were looked at slept
        self.strikes = 0  # L: how often they did not
        self.alarm = Alarm()  # L: the law wants to be asked even if nothing ends

    @property
    def rest(self) -> float:
        """Seconds for which all works must rest before they lend their places."""
        return max(HANGS, 4 * self.law.usual())

    @holding("pwq.pool.lock")
    def attend(self, pwq: PoolWorkQueue) -> None:
        """Works began to wait for a place, or none does any more."""
        waits = bool(pwq.inactive) and not pwq.frozen
        law = self.law
        if waits == law.watches:
            return
        # This happens often, and is whole at each step, so it needs no copy.
        if waits:
            law.begin(pwq.pool.host.monotonic(), pwq.nr_active)
        else:
            law.stop()
        self._adopt(law, pwq)

    @holding("pwq.pool.lock")
    def look(self, pwq: PoolWorkQueue) -> None:
        """Show the law what happened since it was asked last, and do what it says."""
        law, pool = self.law.copy(), pwq.pool
        executing = [worker for worker in pool.workers if worker.item is not None and worker.item.pwq is pwq]
        ended = self.quota - pwq.left
        failed = min(ended, self.failed - self.seen_failed)  # others that raised have not quite ended yet
        if not ended and law.stage is Stage.RISE:
            self.sleepers = self.strikes < STRIKES and _all_sleep(executing)
            self.strikes += bool(executing) and not self.sleepers
        sight = Sight(pool.host.monotonic(), ended, failed, len(executing), pwq.nr_active, self.sleepers)
        law.see(sight)
        self.seen_failed += failed
        self._adopt(law, pwq)
        if law.stage is Stage.STAY:
            remember(pwq, law.limit)

    @holding("pwq.pool.lock")
    def _adopt(self, law: Law, pwq: PoolWorkQueue) -> None:
        """This is the law from now on."""
        more = law.limit > pwq.max_active
        self.law = law  # first: `mend_limit` makes the rest agree
        pwq.max_active = law.limit
        pwq.left = self.quota = law.quota
        if law.wake is None:
            self.alarm.cancel()
        elif self.alarm.timer is None and not pwq.pool.closing:
            with suppress(ThreadLimit):  # never, once the runtime has begun
                self.alarm.set(pwq.pool.host, law.wake, partial(_wake, ref(pwq)))
        if more and pwq.inactive:
            pwq.activate()
            pwq.pool.kick_or_settle()


class LearnedPhase(Phase):
    """A phase of a place whose limit is learned (E11): it counts down the works that end."""

    __slots__ = ()

    @holding("self.pwq.pool.lock")
    def retire(self) -> None:
        pwq = self.pwq
        # The code of `Phase.retire`: a call of it would take longer than all that is added.
        self.ended += 1
        if not pwq.attends:
            pwq.nr_active -= 1
        else:
            if pwq.nr_withdrawn or pwq.careful or pwq.nr_active > pwq.max_active:
                pwq.nr_active -= 1
                pwq.attend()
            else:
                pwq.pool.worklist.append(pwq.inactive[0])
                del pwq.inactive[0]
                if not pwq.inactive:
                    pwq.attends = False
                    pwq.tell_learning()
            pwq.left = left = pwq.left - 1
            if left <= 0 and pwq.learning is not None:
                pwq.learning.look(pwq)
        if self is not pwq.phase and self.ended == self.queued:
            pwq.complete_phases(self)


@outside
def _wake(place: ref[PoolWorkQueue]) -> None:
    """The law wants to be asked.  Context: the timer."""
    pwq = place()
    if pwq is None:
        return
    with pwq.pool.lock:
        learning = pwq.learning
        if learning is not None:
            learning.alarm.cancel()
            if learning.law.watches and not pwq.pool.closing:
                learning.look(pwq)


def first_phase(pwq: PoolWorkQueue) -> Phase:
    """Return the first phase of a new place, of the class that suits its queue's limit."""
    return (LearnedPhase if pwq.wq._limit is None else Phase)(pwq, 0)


def _all_become(pwq: PoolWorkQueue, kind: type[Phase]) -> None:
    """Make all phases of the place be of that class. To set `__class__` stops all threads of a free-threaded process,
    and a fork meanwhile leaves a child in which it hangs (CPython 3.13). So where nothing changes nothing is set.
    """
    for phase in (*pwq.sealed, pwq.phase):
        if phase.__class__ is not kind:
            phase.__class__ = kind


def begin(pwq: PoolWorkQueue) -> None:
    """Let the place learn its limit from now on; its works that wait or run already count.

    Context: lock held, or nobody knows the place yet.
    """
    if pwq.learning is None:
        pwq.learning = Learning(pwq)
    _all_become(pwq, LearnedPhase)
    pwq.max_active = pwq.learning.law.limit


def end(pwq: PoolWorkQueue) -> None:
    """Learn no more.  Context: lock held, or nobody knows the place yet."""
    learning = pwq.learning
    _all_become(pwq, Phase)
    if learning is not None:
        learning.alarm.cancel()
        pwq.learning = None


@holding("pwq.pool.lock")
def mend(pwq: PoolWorkQueue) -> None:
    """Make the place agree with its law after an interruption. The caller lists the items that have room."""
    begin(pwq)
    learning = pwq.learning
    if learning is not None and learning.law.watches:
        pwq.left = learning.quota = 1  # what has ended since the law was asked is lost


def remember(pwq: PoolWorkQueue, limit: int) -> None:
    """Note what was learned, for places made later."""
    limits, key = pwq.wq.runtime.limits, _key(pwq)
    if lookup(limits, key) == limit:
        return
    limits.pop(key, None)
    limits[key] = limit
    if len(limits) > MAX_NAMES:
        limits.pop(next(iter(limits.copy())), None)


def learned_limit(wq: WorkQueue) -> int:
    """The limit in force: the highest of the queue's places; without any, that with which one would begin.

    Takes no lock, so it may be read anywhere.
    """
    found = [pwq.max_active for pwq in wq._pwqs.copy().values()]
    return max(found) if found else lookup(wq.runtime.limits, (wq.name, wq.scope)) or FIRST


def _key(pwq: PoolWorkQueue) -> tuple[str, str]:
    return pwq.wq.name, pwq.wq.scope


def _all_sleep(workers: list[Worker]) -> bool:
    """Whether a sample of the workers sleeps, each for a time of its own. Low numbers began first, mostly."""
    sample = sorted(workers, key=attrgetter("index"))[:SAMPLE]
    return bool(sample) and all(worker.pool.host.sleeps(worker.tid) for worker in sample)
