"""Subscriptions: who receives events, from which buffer, on which thread, and when that ends.

Guarantees: an observer is woken when an event is there, and never misses one that is in its buffer. What its callback
raises ends neither its thread nor anything else of cmwq. What was noted before a subscription or its runtime ended is
delivered within a limit of time. `_pool.events` is the side that notes the events; the letters are those there.

R (`Pools.lock`) is held while a subscription is attached to all pools or detached from them, and while a pool is
started. So no pool is missed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from threading import get_ident
from typing import TYPE_CHECKING

from cmwq._core import checks, log
from cmwq._core.held import holding, outside
from cmwq._core.surely import at_any_depth
from cmwq._core.tables import lookup
from cmwq._errors import Refused, refused_by_us
from cmwq._pool.events import Event, Kind, Note, Tap, name_of_pool, note, note_counts
from cmwq._pool.observed import observe_places

if TYPE_CHECKING:
    from types import TracebackType

    from cmwq._core.ports import Lock, Parker, Thread
    from cmwq._pool.pool import WorkerPool
    from cmwq._workqueue.queue import WorkQueue
    from cmwq._workqueue.report import Stall
    from cmwq._workqueue.runtime import Runtime


LIMIT = 10_000
"""How many events a subscription keeps until they are taken, by default."""
PATIENCE = 10.0
"""Seconds that `Subscription.close` waits by default until the callback has heard of everything. There is a limit
because the callback may wait for the very thing that the closing thread is to do next.
"""
LAST_CALL = 5.0
"""Seconds that the end of a runtime waits likewise, for all callbacks together."""
MAX_FAILURES = 10
"""A callback that raised so many times in a row is not called any more."""
REST = 0.005
"""Seconds for which a callback's thread lets events gather before it looks again. A wake-up for each event would cost
more than the events.
"""
ALWAYS = frozenset({Kind.LOST})
"""Kinds that every subscription receives."""


class Subscription:
    """An observer of events, and the buffer in which its events are kept until they are taken.

    `subscribe` makes it. It ends by `close`, at the end of a `with` block, or with its runtime. Thread-safe: several
    threads may take events from it; each event goes to one of them.
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
        self.asleep = False  # ~: set by a thread that is about to sleep, cleared by the one that wakes it
        self.over = False  # ~: nothing is noted any more; only ever set
        self.taps: list[Tap] = []  # R to change: one for each pool that it has seen
        self._sleepers: set[Parker] = set()  # A: threads that wait for an event
        self._events = events  # I
        self._host = events.runtime.host  # I
        self._callback = callback  # I
        self._where = where  # I
        self._ident = 0  # I once its thread runs
        self._failures = 0  # S: of the callback, in a row
        self.thread: Thread | None = None  # I once it is started

    def __repr__(self) -> str:
        whose = "everything" if self.queue is None else f"queue {self.queue.name!r}"
        return f"<cmwq.events.Subscription to {whose}{', over' * self.over} waiting={len(self.buffer)}>"

    @property
    def dropped(self) -> int:
        """How many events were lost so far because the buffer was full."""
        return sum(tap.lost for tap in list(self.taps))

    def get(self, timeout: float | None = None) -> Event | None:
        """Take the next event, and wait for it if need be.

        timeout: seconds; None waits for ever. Returns None if it has passed, or if the subscription is over and no
        event is left. Raises TypeError if there is a callback, which gets the events; Reentered if it would have to
        wait in a finaliser or a signal handler that interrupted cmwq's own code.
        """
        self._check_pulls()
        timeout = checks.timeout(timeout)
        deadline = None if timeout is None else self._host.monotonic() + timeout
        found = self._pop()
        if found is None:
            if self._host.inside():
                raise Refused("an event is waited for in the middle of cmwq's own code on this thread")
            found = self._await(self._host.parker(), deadline)
        return found

    def take(self) -> list[Event]:
        """Take all events that are there, without waiting. Raises TypeError if there is a callback."""
        self._check_pulls()
        found = []
        for _ in range(len(self.buffer)):
            event = self._pop()
            if event is None:
                break
            found.append(event)
        return found

    def __iter__(self) -> Iterator[Event]:
        """Iterate over events as they come, until the subscription is over. Raises TypeError if there is a callback."""
        self._check_pulls()
        return iter(self.get, None)

    def close(self, timeout: float = PATIENCE) -> None:
        """End the subscription: no event is noted any more.

        Returns when the callback has heard of everything that was noted before, or after `timeout` seconds; then it
        goes on hearing of it. If the callback itself calls this, it returns at once. Without a callback, events that
        were noted can still be taken. Does no harm if the subscription is over.
        """
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

    def tap(self, pool: WorkerPool) -> Tap:
        """Its end at one pool."""
        return Tap(self)

    def _check_pulls(self) -> None:
        if self._callback is not None:
            raise TypeError(
                "this subscription has a callback, which gets its events; subscribe without one to take them"
            )

    def wake(self, lock: Lock | None = None) -> None:
        """Wake the threads that wait for an event: one is there, or it is over. lock: held by this thread, and wakes
        them as soon as it is released.
        """
        self.asleep = False  # first: a thread that begins to sleep after this is found by the next call
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
        still = worker.sleeping and item is not None and id(item) == noted[6]
        place = self._host.waits_in(worker.tid) if still and worker.tid else ""
        return replace(Event(*noted[:-1]), where=place)

    def _await(self, parker: Parker, deadline: float | None) -> Event | None:
        """Take the next event, and wait for it. None: the deadline, on the host's clock, has passed, or the
        subscription is over and no event is left.

        No wake-up is lost: a thread that is about to sleep sets `asleep`, then looks once more; a thread that notes an
        event puts it into the buffer, then reads `asleep`.
        """
        self._sleepers.add(parker)
        try:
            while True:
                self.asleep = True
                over = self.over  # before the look: whatever was noted before the end is seen
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
        """Start the callback's thread, if there is a callback. Raises ThreadLimit."""
        if self._callback is not None:
            self._host.spawn("cmwq/events", self._run, self._began)

    def _began(self, thread: Thread) -> None:
        self.thread = thread

    def join(self, timeout: float) -> None:
        """Wait until the callback has heard of everything, for at most `timeout` seconds."""
        thread = self.thread
        if thread is None or self._ident == get_ident() or self._host.inside():
            return
        thread.join(timeout)

    def give_up(self) -> None:
        """Drop undelivered events with a warning: the runtime has ended, and the callback was too slow. Does nothing if
        the callback itself ended the runtime.
        """
        thread = self.thread
        if thread is not None and thread.is_alive() and self.buffer and self._ident != get_ident():
            log.warning("%r: its callback is too slow, and %d events are not told", self, len(self.buffer))
            self.buffer.clear()

    def _run(self) -> None:
        """The body of the callback's thread. It logs an exception raised outside of the callback, and goes on."""
        self._ident = get_ident()
        with suppress(Exception):  # the name is dispensable
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
                log.exception("%r was interrupted, and goes on", self)

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
                log.exception("%r: its callback raised, %d times in a row so far", self, self._failures)
            if self._failures >= MAX_FAILURES:
                log.error("%r: its callback raised %d times in a row, and is called no more", self, self._failures)
                self._events.drop(self)
                self.buffer.clear()
        else:
            self._failures = 0

    def forget(self) -> None:
        """End it in the child of a fork, where it belongs to the parent."""
        self.over = True
        self.buffer.clear()
        self._sleepers.clear()
        self.thread = None


class Events:
    """The subscriptions of one runtime, and its clients, which receive reports in any case."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime  # I
        self.subscriptions: tuple[Subscription, ...] = ()  # R to change
        self.clients: dict[Kind, Callable[[Event], None]] = {}  # I once the runtime is made: see `tell`
        self._ended = False  # R: the runtime has ended, so nothing will happen any more

    def add(self, subscription: Subscription) -> None:
        """Attach the subscription to all pools, present and future; or, if it raises, to none. Raises ThreadLimit if
        its callback can't have a thread.
        """
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
            at_any_depth(self.drop, subscription)
            raise

    @holding("self.runtime._pools.lock")
    def _attach(self, subscription: Subscription, pool: WorkerPool) -> None:
        tap = subscription.tap(pool)
        subscription.taps.append(tap)
        with pool.lock:
            pool.taps = (*pool.taps, tap)
            observe_places(pool)
            note_counts(pool, tap)

    @holding("self.runtime._pools.lock")
    def adopt(self, pool: WorkerPool) -> None:
        """Attach all subscriptions to a new pool, which is not published yet."""
        for subscription in self.subscriptions:
            self._attach(subscription, pool)

    def drop(self, subscription: Subscription) -> None:
        """Detach the subscription: it receives nothing that happens from now on. May be repeated. In the middle of a
        critical section of this thread it is deferred until that is over.
        """
        try:
            self._detach(subscription)
        except BaseException as exc:
            if not refused_by_us(exc):
                # From the beginning: detaching from a pool twice does no harm.
                at_any_depth(self._detach, subscription)
                raise
            self.runtime.host.defer(partial(self.drop, subscription))

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
        """End all subscriptions. Their callbacks hear of what was noted, within `LAST_CALL` seconds altogether."""
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
        """Drop all subscriptions in the child of a fork. No lock is taken: its holder may not exist here."""
        for subscription in self.subscriptions:
            subscription.forget()
        self.subscriptions = ()
        for pool in self.runtime.pools():
            pool.taps = ()
            for pwq in pool.pwqs:
                pwq.observed, pwq.recorder = False, None

    @outside
    def tell(self, noted: Iterable[Note]) -> None:
        """Pass reports to the clients, which receive them whether anybody subscribed or not: the log, and
        `Runtime.on_stall`. They are called on the thread that found out, because what they report may be just that no
        thread can be had.

        Context: the timer.
        """
        for one in noted:
            client = lookup(self.clients, one[0])
            if client is not None:
                client(Event(*one[:-1]))

    @outside
    def report_stall(self, pool: WorkerPool, stall: Stall, wq: WorkQueue | None = None) -> None:
        """Note a stall for the subscribers, and pass it to the clients (H3).  Context: the timer."""
        with pool.lock:
            noted = note(pool, Kind.STALL, wq=wq, why=stall.reason, seconds=stall.seconds, stall=stall)
        self.tell([noted])
