"""How a thread waits for something to end, whether it is a worker or not; and how a wait that can never end is refused
(F7).

Guarantees: a worker that waits is known to be blocked at once (A4), and lends its work's place under `max_active`, so
waits nested to any depth do not deadlock for want of places. A work that would wait for itself, through however many
other waiting works, gets `FlushDeadlock` with the chain in words. Every wait takes a timeout, and Ctrl-C interrupts it
in the main thread (F8).

A call that waits is written once, as a generator of what it waits for (`Steps`): `run_steps` drives it on a thread,
`cmwq.aio` on an event loop. Closing the generator early undoes what it did meanwhile.

How a deadlock is found: `Waits` knows of each work that waits what it waits for. Before a work begins to wait, the
chain from what it would wait for is followed: a work that waits leads to what that one waits for. If it leads back to
the work itself, nobody in that circle can ever go on. Each notes itself before it looks, so of two works that begin to
wait for each other one is second. A work that waits only for a time goes on some time, and so closes no circle for
others; itself it is told all the same, for it would wait in vain. Runtimes whose works run on the same threads have
one `Waits` in common, for a chain may lead through several of them.

Where no more threads are to be had a work may wait for one that nobody can begin, for all who could wait likewise. It
is told (`ThreadLimit`): as it begins to wait, if its pool is known then to get no thread; else by the timer that tries
to create one, each time it is refused. See `rescuer.hopeless`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Generator, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

from cmwq._core import checks
from cmwq._core.held import outside
from cmwq._core.ranks import Rank
from cmwq._errors import Abandoned, CmwqTimeout, FlushDeadlock, Reentered, ThreadLimit
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

_log = logging.getLogger("cmwq")
T = TypeVar("T")


class Target(Protocol):
    """What can be waited for. Thread-safe."""

    def done(self) -> bool: ...
    def attach(self, parker: Parker) -> bool:
        """From now on `parker` is unparked when it may be done. False: it is done already."""
        ...

    def detach(self, parker: Parker) -> None:
        """Nobody waits with it any more."""
        ...

    def needs(self, waiting: dict[Item, Target]) -> Iterator[Item]:
        """The waiting works without which it can't be done."""
        ...

    @property
    def queue(self) -> WorkQueue:
        """Whose works it waits for."""
        ...

    def lacks_workers(self) -> Collection[WorkerPool]:
        """Where a worker is needed for what has not begun yet; on one of these pools. Empty: all runs, or is over."""
        ...

    def describe_wait(self) -> str:
        """What one does who waits for it: "flushes queue 'q1'"."""
        ...


Steps: TypeAlias = Generator[Target, None, T]
"""A waiting call: yields what to wait for next, is resumed when that is done."""


MAX_WARNED = 1_000
"""So many pairs of queues are warned of. Who has more makes queues by the dozen, and has read it."""


class Waits:
    """Which works wait, and for what: those of all runtimes that share their threads."""

    def __init__(self, host: Host) -> None:
        self._host = host  # I
        self.forget()

    def forget(self) -> None:
        """Nobody waits. Also in the child of a fork."""
        self._lock: Lock = self._host.lock(Rank.WAITS)
        self._warned: set[tuple[str, str]] = set()  # each change is atomic
        self._waiting: dict[Item, Target] = {}  # each change is atomic; taken back by who is refused with the lock held
        self._limited: set[Item] = set()  # those of them that wait only for a time; each change is atomic
        self._awaited: dict[Item, list[Target]] = {}  # by tasks of a loop within the work; its own thread's
        self._parkers: dict[Item, Parker] = {}  # of those that can be told to give up; each change is atomic
        self._vain: dict[Item, str] = {}  # those of them that are, and why; each change is atomic

    def begin(self, item: Item, target: Target, *, limited: bool) -> None:
        """Raises FlushDeadlock if the work would wait for itself."""
        waiting = self._waiting
        if limited:
            self._limited.add(item)
        waiting[item] = target
        if item.queue.rescuer is not None and target.queue.rescuer is None:
            self._warn(item, target)
        # Noted first, looked at then: of two that begin at the same time one sees the other. Mostly there is nobody to
        # see.
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
        """Without those that go on by themselves some time."""
        return {item: target for item, target in self.all().items() if item not in self._limited}

    def begin_await(self, item: Item, target: Target) -> None:
        """A task of an event loop within the work waits for it. Others go on, so it is no endless wait.

        Raises FlushDeadlock.  Context: the work's own thread; `end_await` follows.
        """
        self.begin(item, target, limited=True)
        self._awaited.setdefault(item, []).append(target)

    def end_await(self, item: Item, target: Target) -> None:
        awaited = self._awaited.get(item, [])
        if target in awaited:
            awaited.remove(target)
        if not awaited:
            self._awaited.pop(item, None)
        self.end(item)

    def target_of(self, item: Item) -> Target | None:
        """What it waits for, as far as it said so."""
        return self._waiting.get(item)

    def is_waiting(self, item: Item) -> bool:
        return item in self._waiting

    def end(self, item: Item) -> None:
        self._waiting.pop(item, None)
        self._limited.discard(item)
        awaited = self._awaited.get(item)
        if awaited:  # other tasks of the work's loop still wait
            self._limited.add(item)
            self._waiting[item] = awaited[-1]

    def may_be_told(self, item: Item, parker: Parker) -> None:
        """It looks, whenever it is unparked, whether it waits `in_vain`; until `end_vain`."""
        self._parkers[item] = parker

    def tell(self, item: Item, reason: str) -> bool:
        """It will never be done what it waits for. False: it can't be told, or doesn't wait any more."""
        parker = self._parkers.get(item)
        if parker is None:
            return False
        self._vain[item] = reason
        if item not in self._parkers:  # it went on meanwhile
            self._vain.pop(item, None)
            return False
        parker.unpark()
        return True

    def in_vain(self, item: Item) -> str | None:
        return self._vain.get(item)

    def end_vain(self, item: Item) -> None:
        self._parkers.pop(item, None)
        self._vain.pop(item, None)

    def _warn(self, item: Item, target: Target) -> None:
        """F7: a queue that moves whatever happens relies on one that may not. Said once for each two queues."""
        pair = item.queue.name, target.queue.name
        if pair not in self._warned and len(self._warned) < MAX_WARNED:
            self._warned.add(pair)
            _log.warning(
                "%s, which has a rescuer, %s; but queue %r has none, and without threads this waits for ever (F7)",
                item.describe(),
                target.describe_wait(),
                target.queue.name,
            )

    def _chain(self, item: Item, target: Target) -> list[tuple[Item, Target]] | None:
        """How target depends on item: the works between them. None: it doesn't."""
        waiting = self._waiting
        seen: set[Item] = set()
        paths: list[tuple[Target, list[tuple[Item, Target]]]] = [(target, [])]
        while paths:
            last, path = paths.pop()
            for needed in last.needs(waiting):
                if needed is item:
                    return path
                what = waiting.get(needed)  # None: its wait has ended meanwhile
                if needed not in seen and what is not None and needed not in self._limited:
                    seen.add(needed)
                    paths.append((what, [*path, (needed, what)]))
        return None


_shared: dict[str, Waits] = {}


def waits_of(host: Host) -> Waits:
    """Works of two runtimes may wait for each other, if they run on the same kind of threads."""
    universe = host.universe
    if universe is None:
        return Waits(host)
    return _shared.get(universe) or _shared.setdefault(universe, Waits(host))


def needs_of(item: Item, waiting: dict[Item, Target]) -> Iterator[Item]:
    """The waiting works without which this item can't end: itself, and those it must run behind (E2, E3)."""
    if item in waiting:
        yield item
        return
    queue, work = item.queue, getattr(item, "work", None)
    if queue.ordered or work is not None:
        for other in list(waiting):
            same_work = work is not None and getattr(other, "work", None) is work
            if same_work or (queue.ordered and (other.queue is queue or pending_of(other, queue) is not None)):
                yield other


def pending_of(item: Item, queue: WorkQueue) -> Item | None:
    """The pending queueing of a running item's work, if it is in that queue:

    it can't begin before the running one ends.
    """
    work = getattr(item, "work", None)
    pending: Item | None = None if work is None else work._item
    return pending if pending is not None and pending.queue is queue else None


def check_may_wait(host: Host) -> None:
    """Raises Reentered if this thread is in the middle of a critical section: a signal handler or a finaliser runs
    there, and what it would wait for may need the very lock (F10).
    """
    if host.inside():
        raise Reentered(
            "called by a finaliser or a signal handler in the middle of cmwq's own code on this thread: "
            "to wait here could be to wait for this thread itself"
        )


class surely:
    """A context manager that calls `undo` at the end, whatever happens. It may be called twice: that must do no harm.

    An interruption may come before the first step of `__exit__`; so who must be sure writes it twice:
    `with surely(undo), surely(undo):`. Then one interruption, wherever it comes, meets one of the two at most (F10).
    """

    __slots__ = ("_undo",)

    def __init__(self, undo: Callable[[], object]) -> None:
        self._undo = undo  # S

    def __enter__(self) -> None:
        pass

    def __exit__(self, *exc_info: object) -> None:
        self._undo()


@outside
def wait_for(target: Target, parker: Parker, runtime: Runtime, deadline: float | None) -> bool:
    """Park until the target is done, or its runtime abandoned. False: the deadline, on the host's clock, passed before.

    Raises FlushDeadlock.
    """
    if not target.attach(parker):
        return True
    done = False
    try:
        done = _wait_for(target, parker, runtime, deadline)
    finally:
        if not done:
            target.detach(parker)
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
    waits.begin(item, target, limited=deadline is not None)
    try:
        lent = step_aside(worker, lender)
        try:
            if deadline is None:
                return _wait_hopefully(worker, item, target, parker, waits)
            return park_until(over, parker, runtime.host, deadline)
        finally:
            step_back(worker, lent)
    finally:
        waits.end(item)


def _wait_hopefully(worker: Worker, item: Item, target: Target, parker: Parker, waits: Waits) -> bool:
    """Raises ThreadLimit where it would be for ever (C4, B6).

    A rescuer looks again and again, for it was called because something is amiss; a worker once, if it is known by then
    that its pool gets no more threads. Whoever waits already as that comes true is told by who found out.
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


def run_steps(steps: Steps[T], runtime: Runtime, timeout: float | None, what: Callable[[], str]) -> T:
    """Drive a waiting call on this thread. Raises CmwqTimeout after `timeout` seconds, saying `what` was not done."""
    timeout = checks.timeout(timeout)
    host = runtime.host
    check_may_wait(host)
    deadline = None if timeout is None else host.monotonic() + timeout
    parker = host.parker()
    try:
        runtime.waiters.add(parker)
        target = next(steps)
        while True:
            if not wait_for(target, parker, runtime, deadline):
                raise CmwqTimeout(f"{what()} after {timeout} s")
            if runtime.abandoned and not target.done():
                raise Abandoned(f"{what()}; its runtime has ended, and does not wait for them any more")
            target = next(steps)
    except StopIteration as stop:
        result: T = stop.value
        return result
    finally:
        runtime.waiters.discard(parker)
        steps.close()


def park_until(
    done: Callable[[], bool], parker: Parker, host: Host, deadline: float | None, *, spins: bool = False
) -> bool:
    """False: the deadline passed."""
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
    """The work of that queue that this thread executes, if it does."""
    worker = current_worker()
    item = worker.item if worker is not None else None
    return item if item is not None and item.queue is queue else None
