"""Subscriptions: who hears of events, from which buffer, on which thread, and when that ends.

Guarantees: an observer is woken when an event is there, and never misses one that is in its buffer; what it raises ends
neither its thread nor anything of ours; what was noted before the end of a subscription, or of its runtime, is
delivered within a limit of time. See `events`, of which this is the other side; the letters are those there.

R (`Pools.lock`) is held while a subscription is made known to all pools, or taken off them, and while a pool is
started: so none is missed.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from threading import get_ident
from typing import TYPE_CHECKING

from cmwq._core import checks
from cmwq._core.held import holding, outside
from cmwq._errors import Reentered
from cmwq._pool.events import Event, Kind, Note, Tap, name_of_pool, note, note_counts, observe_places

if TYPE_CHECKING:
    from types import TracebackType

    from cmwq._core.ports import Lock, Parker, Thread
    from cmwq._pool.pool import WorkerPool
    from cmwq._workqueue.queue import WorkQueue
    from cmwq._workqueue.runtime import Runtime
    from cmwq._workqueue.watchdog import Stall

_log = logging.getLogger("cmwq")

LIMIT = 10_000
"""Events that a subscription holds until they are taken, where nothing else is asked for."""
PATIENCE = 10.0
"""Seconds for which the end of a subscription waits until its callback has heard of everything, if not told otherwise.
A limit, for the callback may wait for just what whoever ends the subscription is to do next."""
LAST_CALL = 5.0
"""Seconds for which the end of a runtime waits likewise, for all callbacks together."""
MAX_FAILURES = 10
"""A callback that raised so many times in a row is called no more."""
REST = 0.005
"""Seconds for which a callback's thread lets events gather before it looks again: a wake-up for each would cost more
than the events."""
ALWAYS = frozenset({Kind.LOST})
"""Those that nobody can do without."""


class Subscription:
    """Who wants to hear of events, and what is kept for it until it does.

    Made by `subscribe`. It ends with `close`, as a context manager, or with its runtime. Thread-safe; several threads
    may take events from it, each of which goes to one of them.
    """

    def __init__(
        self,
        events: Events,
        callback: Callable[[Event], object] | None,
        kinds: frozenset[Kind],
        queue: WorkQueue | None,
        limit: int,
        where: bool,
    ) -> None:
        self.kinds = kinds  # I
        self.queue = queue  # I
        self.limit = limit  # I
        self.buffer: deque[Note] = deque()  # A
        self.asleep = False  # ~: set by who is about to sleep, taken back by who wakes
        self.over = False  # ~: nothing is noted any more; only ever set
        self.taps: list[Tap] = []  # R to change: one for each pool that it has seen
        self._sleepers: set[Parker] = set()  # A: threads that wait for an event
        self._events = events  # I
        self._host = events.runtime.host  # I
        self._callback = callback  # I
        self._where = where  # I
        self._ident = 0  # I once its thread runs
        self._failures = 0  # S: the callback's, in a row
        self.thread: Thread | None = None  # I once it is started

    def __repr__(self) -> str:
        whose = "everything" if self.queue is None else f"queue {self.queue.name!r}"
        return f"<cmwq.events.Subscription to {whose}{', over' * self.over} waiting={len(self.buffer)}>"

    @property
    def dropped(self) -> int:
        """Events that were lost so far, for its buffer was full."""
        return sum(tap.lost for tap in list(self.taps))

    def get(self, timeout: float | None = None) -> Event | None:
        """The next event, waiting for it if need be. None: `timeout` seconds have passed; or it is over, and no event
        is left. Raises TypeError if it has a callback, which gets them; Reentered where it would wait in the middle of
        cmwq's own code, as in a finaliser that was called there."""
        self._check_pulls()
        timeout = checks.timeout(timeout)
        deadline = None if timeout is None else self._host.monotonic() + timeout
        found = self._pop()
        if found is None:
            if self._host.inside():
                raise Reentered("an event is waited for in the middle of cmwq's own code on this thread")
            found = self._await(self._host.parker(), deadline)
        return found

    def take(self) -> list[Event]:
        """All events that are there, without waiting. Raises TypeError if it has a callback."""
        self._check_pulls()
        found = []
        for _ in range(len(self.buffer)):
            event = self._pop()
            if event is None:
                break
            found.append(event)
        return found

    def __iter__(self) -> Iterator[Event]:
        """Events as they come, until it is over."""
        self._check_pulls()
        return iter(self.get, None)

    def close(self, timeout: float = PATIENCE) -> None:
        """Note nothing any more. Returns when its callback has heard of everything that was noted before, after
        `timeout` seconds at most (it goes on hearing of it then); at once if the callback itself calls this. Without a
        callback, what was noted can still be taken. Harmless if it is over."""
        timeout = checks.seconds("timeout", timeout, 0, checks.ENDLESS)
        self._events.drop(self)
        self.join(timeout)

    def __enter__(self) -> Subscription:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # ------------------------------------------------------------------------------- inside

    def _check_pulls(self) -> None:
        if self._callback is not None:
            raise TypeError(
                "this subscription has a callback, which gets its events; subscribe without one to take them"
            )

    def wake(self, lock: Lock | None = None) -> None:
        """An event is there, or it is over. lock: is held, and does it as soon as it is free."""
        self.asleep = False  # first: who begins to sleep after this is found by the next
        for parker in tuple(self._sleepers):
            if lock is None:
                parker.unpark()
            else:
                lock.wake(parker)

    def _pop(self) -> Event | None:
        try:
            noted = self.buffer.popleft()
        except IndexError:
            return None
        worker = noted[-1]
        if worker is None or not self._where:
            return Event(*noted[:-1])
        item = worker.item
        still = worker.blocked is not None and item is not None and id(item) == noted[6]
        place = self._host.waits_in(worker.tid) if still and worker.tid else ""
        return replace(Event(*noted[:-1]), where=place)

    def _await(self, parker: Parker, deadline: float | None) -> Event | None:
        """The next event; None: the deadline, on the host's clock, has passed, or it is over and nothing is left.

        No wake-up is lost: who sleeps says so, and looks once more; who notes has put the event there before it asks
        whether anybody sleeps.
        """
        self._sleepers.add(parker)
        try:
            while True:
                self.asleep = True
                over = self.over  # before the look: what was noted before it was over is seen
                event = self._pop()
                if event is not None or over:
                    return event
                left = -1.0 if deadline is None else deadline - self._host.monotonic()
                if deadline is not None and left <= 0:
                    return None
                parker.park(left)
        finally:
            self._sleepers.discard(parker)

    def start(self) -> None:
        """Raises ThreadLimit."""
        if self._callback is not None:
            self._host.spawn("cmwq/events", self._run, self._began)

    def _began(self, thread: Thread) -> None:
        self.thread = thread

    def join(self, timeout: float) -> None:
        """Wait until the callback has heard of everything; so many seconds at most."""
        thread = self.thread
        if thread is None or self._ident == get_ident() or self._host.inside():
            return
        thread.join(timeout)

    def give_up(self) -> None:
        """The runtime has ended, and nobody waits for the callback any more, unless it is that which ended it."""
        thread = self.thread
        if thread is not None and thread.is_alive() and self.buffer and self._ident != get_ident():
            _log.warning("%r: its callback is too slow, and %d events are not told", self, len(self.buffer))
            self.buffer.clear()

    def _run(self) -> None:
        """Its own thread. What is raised at it, outside of the callback, is logged, and it goes on."""
        self._ident = get_ident()
        with suppress(Exception):  # it can do without
            self._host.set_thread_name("cmwq/events")
        parker = self._host.parker()
        ended = False
        while not ended:
            try:
                self._deliver_until_over(parker)
                ended = True
            except BaseException:
                if self.over:
                    return
                _log.exception("%r was interrupted, and goes on", self)

    def _deliver_until_over(self, parker: Parker) -> None:
        while True:
            event = self._await(parker, None)
            if event is None:
                return
            while event is not None:
                self._deliver(event)
                event = self._pop()
            if not self.over:
                parker.park(REST)

    def _deliver(self, event: Event) -> None:
        try:
            self._callback(event)  # type: ignore[misc]
        except BaseException:
            self._failures += 1
            if self._failures & (self._failures - 1) == 0:
                _log.exception("%r: its callback raised, %d times in a row so far", self, self._failures)
            if self._failures >= MAX_FAILURES:
                _log.error("%r: its callback raised %d times in a row, and is called no more", self, self._failures)
                self._events.drop(self)
                self.buffer.clear()
        else:
            self._failures = 0

    def forget(self) -> None:
        """In the child of a fork: it is the parent's."""
        self.over = True
        self.buffer.clear()
        self._sleepers.clear()
        self.thread = None


class Events:
    """One runtime's: who subscribes, and who is told of reports in any case."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime  # I
        self.subscriptions: tuple[Subscription, ...] = ()  # R to change
        self.clients: dict[Kind, Callable[[Event], None]] = {}  # I once the runtime is made: see `tell`
        self._ended = False  # R: nothing will happen any more

    def add(self, subscription: Subscription) -> None:
        """Raises ThreadLimit: its callback can't have a thread. All or nothing."""
        runtime = self.runtime
        try:
            subscription.start()
            with runtime._pools.lock:
                if self._ended:
                    subscription.over = True
                else:
                    self.subscriptions = (*self.subscriptions, subscription)
                    for pool in runtime.pools():
                        self._attach(subscription, pool)
            if subscription.over:
                subscription.wake()
        except BaseException:
            self.drop(subscription)
            raise

    @holding("self.runtime._pools.lock")
    def _attach(self, subscription: Subscription, pool: WorkerPool) -> None:
        tap = Tap(subscription)
        subscription.taps.append(tap)
        with pool.lock:
            pool.taps = (*pool.taps, tap)
            observe_places(pool)
            note_counts(pool, tap)

    @holding("self.runtime._pools.lock")
    def adopt(self, pool: WorkerPool) -> None:
        """A new pool, which nobody else knows yet."""
        for subscription in self.subscriptions:
            self._attach(subscription, pool)

    def drop(self, subscription: Subscription) -> None:
        """It hears of nothing that happens from now on. May be said twice; in the middle of a critical section of this
        thread it is done when that is over."""
        try:
            self._detach(subscription)
        except Reentered:
            self.runtime.host.defer(partial(self.drop, subscription))
        except BaseException:
            self._detach(subscription)  # from the beginning: a pool it was taken off knows nothing of it any more
            raise

    def _detach(self, subscription: Subscription) -> None:
        runtime = self.runtime
        with runtime._pools.lock:
            for pool in runtime.pools():
                with pool.lock:
                    for tap in pool.taps:
                        if tap.subscription is subscription and tap.untold:
                            tap.tell_lost(runtime.host.monotonic(), name_of_pool(pool))
                    pool.taps = tuple(tap for tap in pool.taps if tap.subscription is not subscription)
                    observe_places(pool)
            self.subscriptions = tuple(other for other in self.subscriptions if other is not subscription)
        subscription.over = True
        subscription.wake()

    def end(self) -> None:
        """The runtime has ended: everybody hears of what was noted, within `LAST_CALL` for all together."""
        host = self.runtime.host
        with self.runtime._pools.lock:
            self._ended = True
        subscriptions = self.subscriptions
        for subscription in subscriptions:
            self.drop(subscription)
        until = host.monotonic() + LAST_CALL
        for subscription in subscriptions:
            subscription.join(max(0.0, until - host.monotonic()))
            subscription.give_up()

    def forget(self) -> None:
        """In the child of a fork. No lock is taken: who held it may not be here."""
        for subscription in self.subscriptions:
            subscription.forget()
        self.subscriptions = ()
        for pool in self.runtime.pools():
            pool.taps = ()
            for pwq in pool.pwqs:
                pwq.observed = False

    @outside
    def tell(self, noted: Iterable[Note]) -> None:
        """Reports go to those who are told whether anybody subscribed or not: the log, and `Runtime.on_stall`. They
        hear of it on the thread that found out, for where no thread can be had is just what they report.

        Context: the timer.
        """
        for one in noted:
            client = self.clients.get(one[0])
            if client is not None:
                client(Event(*one[:-1]))

    @outside
    def report_stall(self, pool: WorkerPool, stall: Stall, wq: WorkQueue | None = None) -> None:
        """H3.  Context: the timer."""
        with pool.lock:
            noted = note(pool, Kind.STALL, wq=wq, why=stall.reason, seconds=stall.seconds, stall=stall)
        self.tell([noted])
