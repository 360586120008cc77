"""How a thread, worker or not, waits for something to end; and how a wait that can never end is refused (F7).

Guarantees: a worker that waits is known to be blocked at once (A4), and lends its work's place under `max_active`, so
waits nested to any depth do not deadlock for want of places. A work that would wait for itself, directly or through
other waiting works, gets `FlushDeadlock`, with the chain in words. Every wait takes a timeout, and in the main thread
Ctrl-C interrupts it (F8).

A waiting call is written once, as a generator that yields what to wait for (`Steps`). `run_steps` drives it on a
thread, `cmwq.aio` on an event loop. Closing the generator early undoes what it did meanwhile.

How a deadlock is found: `Waits` notes for each waiting work what it waits for. Before a work begins to wait, the chain
from its target is followed: from each waiting work in it to what that work waits for. If the chain leads back to the
work itself, nobody in that circle can ever go on. Each work notes itself before it looks, so of two works that begin to
wait for each other at least one sees the other. A work whose wait has a timeout goes on at some time, so it closes no
circle for others. But it is refused itself if it closes one, because it would wait in vain. Runtimes whose works run on
the same threads share one `Waits`, because a chain may lead through several runtimes.

When no more threads can be had, a work may wait for another one that no worker can begin, because all workers wait
likewise. It then gets `ThreadLimit`: as it begins to wait, if its pool is already known to get no thread; else from the
timer that tries to create a thread, each time that is refused. See `rescuer.hopeless`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

from cmwq._core import checks, log
from cmwq._core.held import outside
from cmwq._core.here import host_here
from cmwq._core.ranks import Rank
from cmwq._core.surely import at_any_depth, surely
from cmwq._core.tables import lookup
from cmwq._errors import Abandoned, CmwqTimeout, FlushDeadlock, Refused, ThreadLimit
from cmwq._pool.blocking import step_aside, step_back
from cmwq._pool.rescuer import gets_no_threads, hopeless
from cmwq._pool.worker import current_worker

if TYPE_CHECKING:
    from cmwq._core.ports import Host, Lock, Parker
    from cmwq._pool.item import Item
    from cmwq._pool.pool import WorkerPool
    from cmwq._pool.worker import Worker
    from cmwq._workqueue.queue import WorkQueue
    from cmwq._workqueue.runtime import Runtime

T = TypeVar("T")


class Target(Protocol):
    """Something that can be waited for. Thread-safe."""

    def done(self) -> bool: ...
    def attach(self, parker: Parker) -> bool:
        """Have `parker` unparked from now on when this may be done. False: it is done already."""
        ...

    def detach(self, parker: Parker) -> None:
        """Forget the parker: nobody waits with it any more."""
        ...

    def needs(self, waiting: dict[Item, Target]) -> Iterator[Item]:
        """The waiting works without which this can't be done."""
        ...

    @property
    def queue(self) -> WorkQueue:
        """The queue whose works it waits for."""
        ...

    def lacks_workers(self) -> Collection[WorkerPool]:
        """The pools that must supply a worker for what has not begun yet: any of them. Empty: all runs, or is over."""
        ...

    def describe_wait(self) -> str:
        """The wait in words, as a predicate: "flushes queue 'q1'"."""
        ...


Steps: TypeAlias = Generator[Target, None, T]
"""A waiting call: it yields what to wait for next, and is resumed when that is done."""


MAX_WARNED = 1_000
"""The most pairs of queues of which `Waits` warns. A program with more has been warned enough."""


class Waits:
    """Which works wait, and for what, in all runtimes that share their threads."""

    def __init__(self, host: Host) -> None:
        self._host = host  # I
        self.forget()

    def forget(self) -> None:
        """Drop everything: nobody waits. Also called in the child of a fork."""
        self._lock: Lock = self._host.lock(Rank.WAITS)
        self._warned: set[tuple[str, str]] = set()  # each change is atomic
        self._waiting: dict[Item, Target] = {}  # each change is atomic; a refused work takes it back with the lock held
        self._limited: set[Item] = set()  # the works that wait only for a time; each change is atomic
        self._awaited: dict[Item, dict[object, Target]] = {}  # by tasks of a loop within the work; its own thread's
        self._parkers: dict[Item, Parker] = {}  # of the works that can be told to give up; each change is atomic
        self._vain: dict[Item, str] = {}  # why a work waits in vain; each change is atomic

    def begin(self, item: Item, target: Target, *, limited: bool) -> None:
        """Note that the work waits. Raises FlushDeadlock if it would wait for itself; then nothing is noted."""
        waiting = self._waiting
        if limited:
            self._limited.add(item)
        waiting[item] = target
        if not limited:  # it blocks a loop whose tasks wait, too. Last: what is noted before is not what they wait for
            self._limited.discard(item)
        if item.queue.rescuer is not None and target.queue.rescuer is None:
            self._warn(item, target)
        # Note first, look then: of two that begin at the same time one sees the other. Mostly there is nobody to see.
        if next(target.needs(waiting), None) is None:
            return
        with self._lock:
            chain = self._chain(item, target)
            if chain is None:
                return
            self.end(item)
        links = [f"{item.describe()} {target.describe_wait()}"]
        links += [f"{other.describe()}, which {what.describe_wait()}" for other, what in chain]
        raise FlushDeadlock(f"this would wait for ever: {', that needs '.join(links)}, that needs {item.describe()}")

    def all(self) -> dict[Item, Target]:
        return dict(self._waiting)

    def for_ever(self) -> dict[Item, Target]:
        """The waits without a timeout."""
        return {item: target for item, target in self.all().items() if item not in self._limited}

    def begin_await(self, item: Item, target: Target, who: object) -> None:
        """Note that a task of an event loop within the work waits. Other tasks go on, so it is no endless wait.

        who: tells this wait from others for the same target. Raises FlushDeadlock.  Context: the work's own thread;
        `end_await` follows.
        """
        self.begin(item, target, limited=True)
        self._awaited.setdefault(item, {})[who] = target

    def end_await(self, item: Item, who: object) -> None:
        awaited = lookup(self._awaited, item) or {}
        awaited.pop(who, None)
        if not awaited:
            self._awaited.pop(item, None)
        self.end(item)

    def target_of(self, item: Item) -> Target | None:
        """What the work waits for, as far as it is noted. None: nothing."""
        return lookup(self._waiting, item)

    def is_waiting(self, item: Item) -> bool:
        return item in self._waiting

    def end(self, item: Item) -> None:
        self._waiting.pop(item, None)
        self._limited.discard(item)
        awaited = lookup(self._awaited, item)
        if awaited:  # other tasks of the work's loop still wait
            self._limited.add(item)
            self._waiting[item] = next(reversed(awaited.values()))

    def may_be_told(self, item: Item, parker: Parker) -> None:
        """From now on until `end_vain` the work asks `in_vain` whenever it is unparked, so `tell` can reach it."""
        self._parkers[item] = parker

    def tell(self, item: Item, reason: str) -> bool:
        """Tell the work that its target will never be done. False: it can't be told, or does not wait any more."""
        parker = lookup(self._parkers, item)
        if parker is None:
            return False
        self._vain[item] = reason
        if item not in self._parkers:  # it went on meanwhile
            self._vain.pop(item, None)
            return False
        parker.unpark()
        return True

    def in_vain(self, item: Item) -> str | None:
        return lookup(self._vain, item)

    def end_vain(self, item: Item) -> None:
        self._parkers.pop(item, None)
        self._vain.pop(item, None)

    def _warn(self, item: Item, target: Target) -> None:
        """Warn, once for each two queues, that one that moves whatever happens relies on one that may not (F7)."""
        pair = item.queue.name, target.queue.name
        if pair not in self._warned and len(self._warned) < MAX_WARNED:
            self._warned.add(pair)
            log.warning(
                "%s, which has a rescuer, %s; but queue %r has none, and without threads this waits for ever (F7)",
                item.describe(),
                target.describe_wait(),
                target.queue.name,
            )

    def _chain(self, item: Item, target: Target) -> list[tuple[Item, Target]] | None:
        """The works through which target depends on item, in order. None: it does not."""
        waiting = self._waiting
        seen: set[Item] = set()
        paths: list[tuple[Target, list[tuple[Item, Target]]]] = [(target, [])]
        while paths:
            last, path = paths.pop()
            for needed in last.needs(waiting):
                if needed is item:
                    return path
                what = lookup(waiting, needed)  # None: its wait has ended meanwhile
                if needed not in seen and what is not None and needed not in self._limited:
                    seen.add(needed)
                    paths.append((what, [*path, (needed, what)]))
        return None


_shared: dict[str, Waits] = {}


def waits_of(host: Host) -> Waits:
    """The `Waits` of all hosts whose works run on the same kind of threads: these may wait for each other."""
    universe = host.universe
    if universe is None:
        return Waits(host)
    return lookup(_shared, universe) or _shared.setdefault(universe, Waits(host))


def needs_of(item: Item, waiting: dict[Item, Target]) -> Iterator[Item]:
    """The waiting works without which this item can't end: itself, or those it must run behind (E2, E3)."""
    if item in waiting:
        yield item
        return
    if item.begun:  # it runs behind nobody any more. Should it wait by now, it sees our wait, which is noted already
        return
    queue, work = item.queue, getattr(item, "work", None)
    if queue.ordered or work is not None:
        for other in list(waiting):
            same_work = work is not None and getattr(other, "work", None) is work
            if same_work or (queue.ordered and (other.queue is queue or _holds_up(other, item))):
                yield other


def _holds_up(running: Item, item: Item) -> bool:
    """Is the work of that running item queued once more, before this item of an ordered queue?"""
    pending = pending_of(running, item.queue)
    return pending is not None and pending.pwq.begins_before(pending, item)


def pending_of(item: Item, queue: WorkQueue) -> Item | None:
    """The pending queueing of a running item's work, if in that queue. It can't begin before the item ends.

    One that is only about to be listed is none yet: it will stand behind whatever is waited for by now.
    """
    work = getattr(item, "work", None)
    pending: Item | None = None if work is None else work._item
    if pending is None or pending.queue is not queue or pending.phase is pending.pwq.outside:
        return None
    return pending


def check_may_wait(host: Host) -> None:
    """Raise Reentered if this thread is in the middle of a critical section: a signal handler or a finaliser runs
    there, and what it would wait for may need the very lock that this thread holds (F10).
    """
    if host.inside():
        raise Refused(
            "called by a finaliser or a signal handler in the middle of cmwq's own code on this thread: "
            "to wait here could be to wait for this thread itself"
        )


@outside
def wait_for(target: Target, parker: Parker, runtime: Runtime, deadline: float | None) -> bool:
    """Park until the target is done or its runtime abandoned. False: the deadline, on the host's clock, passed before.

    Raises FlushDeadlock, ThreadLimit, Reentered.
    """
    if not target.attach(parker):
        return True
    done = False
    try:
        done = _wait_for(target, parker, runtime, deadline)
    finally:
        if not done:
            at_any_depth(target.detach, parker)
    return done


def _wait_for(target: Target, parker: Parker, runtime: Runtime, deadline: float | None) -> bool:
    worker = current_worker()
    item = worker.item if worker is not None else None
    check_may_wait(runtime.host)

    def over() -> bool:
        return target.done() or runtime.abandoned

    if worker is None or item is None:
        return park_until(over, parker, runtime.host, deadline, spins=True)
    pwq = item.pwq
    lender = pwq if pwq.lends else None
    waits = pwq.wq.runtime.waits
    try:
        waits.begin(item, target, limited=deadline is not None)
        lent = at_any_depth(step_aside, worker, lender)  # all of it: half of it could not be undone
        try:
            if deadline is None:
                return _wait_hopefully(worker, item, target, parker, waits)
            return park_until(over, parker, runtime.host, deadline)
        finally:
            at_any_depth(step_back, worker, lent)
    finally:
        at_any_depth(waits.end, item)


def _wait_hopefully(worker: Worker, item: Item, target: Target, parker: Parker, waits: Waits) -> bool:
    """Park without a deadline. Raises ThreadLimit where the wait would last for ever (C4, B6).

    A rescuer looks again and again, because it was called when something was amiss. A worker looks once, if its pool is
    then known to get no more threads. If that becomes known during the wait, `tell` ends the wait.
    """
    rescues = worker.is_rescuer
    looks = rescues or gets_no_threads(worker.pool)
    end_vain = partial(waits.end_vain, item)
    with surely(end_vain), surely(end_vain):
        waits.may_be_told(item, parker)
        while not (target.done() or target.queue.runtime.abandoned):
            reason = hopeless(item, target, waits.for_ever()) if looks else waits.in_vain(item)
            if reason is not None and not target.done():
                raise ThreadLimit(reason)
            looks = rescues
            parker.park(worker.pool.config.mayday_interval if rescues else -1)
    return True


def run_steps(steps: Steps[T], runtime: Runtime | None, timeout: float | None, what: Callable[[], str]) -> T:
    """Drive a waiting call on this thread, and return its result.

    runtime: the one of all works that it waits for. None: each target knows its own. A work has none before it is
    queued, so to ask which it has, and to begin the call then, could find none just as the work is queued and begins.
    timeout: seconds; then CmwqTimeout is raised, and its message begins with what() in words. Also raises
    FlushDeadlock, ThreadLimit, Reentered, and Abandoned if the runtime is abandoned meanwhile.
    """
    timeout = checks.timeout(timeout)
    host = host_here() if runtime is None else runtime.host
    check_may_wait(host)
    deadline = None if timeout is None else host.monotonic() + timeout
    parker = host.parker()
    try:
        target = next(steps)
        while True:
            theirs = target.queue.runtime if runtime is None else runtime
            try:
                # First among the waiters, then look: who abandons the runtime says so first, and then wakes them.
                theirs.waiters.add(parker)
                if not wait_for(target, parker, theirs, deadline):
                    raise CmwqTimeout(f"{what()} after {timeout} s")
            finally:
                theirs.waiters.discard(parker)
            if theirs.abandoned and not target.done():
                raise Abandoned(f"{what()}; its runtime has ended, and does not wait for them any more")
            target = next(steps)
    except StopIteration as stop:
        result: T = stop.value
        return result
    finally:
        steps.close()


def park_until(
    done: Callable[[], bool], parker: Parker, host: Host, deadline: float | None, *, spins: bool = False
) -> bool:
    """Park until `done()`. False: the deadline passed before."""
    while not done():
        if deadline is None:
            parker.park(-1, spins)
        elif (left := deadline - host.monotonic()) > 0:
            parker.park(left, spins)
        else:
            return False
        spins = False
    return True


def own_item(queue: Any) -> Item | None:
    """The work of that queue that this thread executes. None: it executes none."""
    worker = current_worker()
    item = worker.item if worker is not None else None
    return item if item is not None and item.queue is queue else None
