"""What can be told of a simulated pool from events alone, compared with the pool itself after every step.

`observed` makes all runtimes of a simulation observed ones. The comparison is exact wherever a pool's lock is free:
each change and its note are in one critical section.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import cmwq
from cmwq._pool.pool import WorkerPool
from cmwq.events import Event, Kind, Subscription
from cmwq.testing import Simulation

NEXT = {
    Kind.QUEUED: (None, "ended"),
    Kind.ACTIVATED: ("inactive",),
    Kind.DEACTIVATED: ("active",),
    Kind.CANCELLED: ("inactive", "active"),
    Kind.STARTED: ("active",),
    Kind.ENDED: ("running",),
}
"""Which events of a work may come in which state of it."""
STATE = {
    Kind.QUEUED: "inactive",
    Kind.ACTIVATED: "active",
    Kind.DEACTIVATED: "inactive",
    Kind.CANCELLED: "ended",
    Kind.STARTED: "running",
    Kind.ENDED: "ended",
}


class Recount:
    """One pool, as events tell of it."""

    def __init__(self, first: Event) -> None:
        assert first.kind is Kind.COUNTS, f"a pool's first event is {first}"
        assert first.counts is not None
        assert first.counts == type(first.counts)(0, 0, 0, 0, 0, 0, 0, 0), "it was not there before"
        self.workers: set[str] = set()
        self.idle: set[str] = set()
        self.counted: set[str] = set()
        self.asleep: set[str] = set()
        self.works: dict[int, str] = {}
        self.number: Counter[Kind] = Counter()
        self.executes: dict[str, int] = {}
        self.time = first.time

    def hear(self, event: Event) -> None:
        assert event.time >= self.time, f"{event} comes after one of {self.time}"
        self.time = event.time
        kind, worker = event.kind, event.worker
        self.number[kind] += 1
        if kind in STATE:
            state = self.works.get(event.item)
            assert state in NEXT[kind], f"{event} of a work that was {state}"
            self.works[event.item] = STATE[kind]
            assert event.queue
            assert event.work
        if kind is Kind.STARTED:
            assert worker not in self.executes
            self.executes[worker] = event.item
        elif kind is Kind.ENDED:
            assert self.executes.pop(worker) == event.item
            assert event.seconds >= 0
        elif kind is Kind.CREATED:
            assert worker not in self.workers
            self.workers.add(worker)
        elif kind in (Kind.CULLED, Kind.DIED):
            self.workers.remove(worker)
            for those in (self.idle, self.counted, self.asleep):
                those.discard(worker)
        elif kind is Kind.IDLE:
            self.idle.add(worker)
        elif kind is Kind.WOKEN:
            self.idle.remove(worker)
            self._add(self.counted, event)
        elif kind is Kind.COUNTED:
            self._add(self.counted, event)
        elif kind is Kind.UNCOUNTED:
            self.counted.remove(worker)
            assert worker not in self.asleep
        elif kind is Kind.BLOCKED:
            assert worker in self.counted
            assert event.why in ("lock", "asleep", "said", "hog")
            self._add(self.asleep, event)
        elif kind is Kind.RUNNING:
            self.asleep.remove(worker)

    @staticmethod
    def _add(those: set[str], event: Event) -> None:
        assert event.worker not in those, f"{event} is told twice"
        those.add(event.worker)

    def compare(self, pool: WorkerPool) -> None:
        """Context: the pool's lock is free."""
        own = [worker for worker in pool.workers if worker.listed and not worker.is_rescuer]
        executing = [worker.item for worker in pool.workers if worker.item is not None]
        began = [item for item in executing if self.works.get(id(item)) == "running"]
        number = self.number
        told = {
            "running": len(self.counted - self.asleep),
            "blocked": len(self.asleep),
            "workers": self.workers,
            "created": number[Kind.CREATED],
            "culled": number[Kind.CULLED],
            "wake-ups": number[Kind.WOKEN],
            "refused": number[Kind.REFUSED],
            "inactive": self._in("inactive"),
            "listed": self._in("active") & self._ids(pool.worklist),
            # Between the claim and its beginning, and between the end and its being counted, a work is the worker's.
            "ended": number[Kind.ENDED] - sum(self.works[id(item)] == "ended" for item in executing),
            "running works": self._in("running"),
        }
        is_so = {
            "running": pool.nr_running,
            "blocked": sum(worker.blocked is not None for worker in pool.workers),
            "workers": {worker.name for worker in own},
            "created": pool.stats.created,
            "culled": pool.stats.culled,
            "wake-ups": pool.nr_wakeups,
            "refused": pool.office.nr_refused,
            "inactive": {number for pwq in pool.pwqs for number in self._ids(pwq.inactive)},
            "listed": self._ids(pool.worklist),
            "ended": pool.nr_completed - sum(worker.announcing for worker in pool.workers),
            "running works": {id(item) for item in began},
        }
        if not pool.closing:  # then the idle ones are told to end, all at once
            told["idle"], is_so["idle"] = self.idle, {worker.name for worker in pool.idle_list}
        assert told == is_so, f"{pool!r}, by its events and by itself"

    def compare_at_rest(self, pool: WorkerPool) -> None:
        """No work is there any more."""
        assert set(self.works.values()) <= {"ended"}
        assert self.number[Kind.QUEUED] == self.number[Kind.ENDED] + self.number[Kind.CANCELLED]
        assert self.number[Kind.STARTED] == self.number[Kind.ENDED] == pool.nr_completed

    def _in(self, state: str) -> set[int]:
        return {number for number, now in self.works.items() if now == state}

    @staticmethod
    def _ids(items: Any) -> set[int]:
        return {id(item) for item in items if not item.withdrawn}


def name_of(pool: WorkerPool) -> str:
    """As events call it."""
    return pool.name + "H" * bool(pool.nice)


class Observer:
    """All pools of one simulated runtime."""

    def __init__(self, subscription: Subscription, runtime: cmwq.Runtime) -> None:
        self.kinds: Counter[Kind] = Counter()
        self.events: list[Event] = []
        self._subscription = subscription
        self._runtime = runtime
        self._pools: dict[str, Recount] = {}

    def look(self) -> None:
        for event in self._subscription.take():
            self.events.append(event)
            self.kinds[event.kind] += 1
            assert event.kind is not Kind.LOST
            if event.pool in self._pools:
                self._pools[event.pool].hear(event)
            else:
                self._pools[event.pool] = Recount(event)
        for pool in self._runtime.pools():
            if pool.lock.holder is None:  # type: ignore[attr-defined]
                self._pools[name_of(pool)].compare(pool)

    def look_at_rest(self) -> None:
        self.look()
        for pool in self._runtime.pools():
            self._pools[name_of(pool)].compare_at_rest(pool)


@contextmanager
def observed(**options: Any) -> Iterator[list[Observer]]:
    """Every simulated runtime made meanwhile is observed, and its events are compared with its pools at each step."""
    observers: list[Observer] = []
    make = Simulation.runtime

    def runtime(self: Simulation, **how: Any) -> cmwq.Runtime:
        made = make(self, **how)
        observer = Observer(cmwq.events.subscribe(runtime=made, limit=1_000_000, **options), made)
        observers.append(observer)
        self.host.on_step.append(observer.look)
        return made

    with mock.patch.object(Simulation, "runtime", runtime):
        yield observers
