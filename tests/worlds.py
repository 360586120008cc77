"""Worlds in which a law of limits can be tried at no cost: a queue, workers that start with a delay, and a resource.

Everything is simulated on one thread, by a random number generator with a seed: thousands of works in milliseconds. The
queue does what a place of a real one does, and calls the law as `learning` does.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from cmwq._workqueue.learned import Law
from cmwq._workqueue.rising import Sight

INF = float("inf")
Durations = Callable[[random.Random], float]


def exactly(seconds: float) -> Durations:
    return lambda _: seconds


def about(seconds: float, sigma: float = 0.5) -> Durations:
    """Log-normal, with that median."""
    return lambda chance: seconds * chance.lognormvariate(0, sigma)


def mixed(share: float, short: float, long: float) -> Durations:
    return lambda chance: short if chance.random() < share else long


class Resource:
    """What works need. Each works on its own here: there is no limit."""

    sleepers = True
    """Whether its works can be seen to sleep for a time of their own."""
    runs_at_most = 1 << 30
    """So many begin at a time: the CPUs, for works that compute."""

    def __init__(self, durations: Durations) -> None:
        self.durations = durations
        self.ends: list[tuple[float, int]] = []

    def begin(self, work: int, now: float, chance: random.Random) -> None:
        heapq.heappush(self.ends, (now + self.durations(chance), work))

    def next(self, now: float) -> float:
        """When something happens next."""
        return self.ends[0][0] if self.ends else INF

    def step(self, now: float, chance: random.Random) -> int | None:
        """The time of `next` has come: the work that ends, if one does."""
        return heapq.heappop(self.ends)[1]


class Computing(Resource):
    sleepers = False

    def __init__(self, durations: Durations, cpus: int = 2) -> None:
        super().__init__(durations)
        self.runs_at_most = cpus


class Servers(Resource):
    """So many works at a time are served; the others wait there, in order."""

    sleepers = False

    def __init__(self, places: int, durations: Durations) -> None:
        super().__init__(durations)
        self.places = places
        self.line: deque[int] = deque()

    def begin(self, work: int, now: float, chance: random.Random) -> None:
        self.line.append(work)
        self.serve(now, chance)

    def serve(self, now: float, chance: random.Random) -> None:
        while self.line and len(self.ends) < self.places:
            super().begin(self.line.popleft(), now, chance)

    def step(self, now: float, chance: random.Random) -> int | None:
        done = super().step(now, chance)
        self.serve(now, chance)
        return done


class Shared(Resource):
    """All works are served at once, and `speed(n)` of them are done per second if n of them are there."""

    sleepers = False

    def __init__(self, speed: Callable[[int], float], spread: float = 0.2) -> None:
        super().__init__(about(1.0, spread))
        self.speed = speed
        self.v = self.at = 0.0

    def advance(self, now: float) -> None:
        if self.ends:
            self.v += (now - self.at) * self.speed(len(self.ends)) / len(self.ends)
        self.at = now

    def begin(self, work: int, now: float, chance: random.Random) -> None:
        self.advance(now)
        heapq.heappush(self.ends, (self.v + self.durations(chance), work))

    def next(self, now: float) -> float:
        if not self.ends:
            return INF
        n = len(self.ends)
        return max(now, self.at + (self.ends[0][0] - self.v) * n / self.speed(n))

    def step(self, now: float, chance: random.Random) -> int | None:
        self.advance(now)
        return heapq.heappop(self.ends)[1]


def slowing(places: float, seconds: float) -> Callable[[int], float]:
    """A speed that is best at so many works, and falls beyond: a work alone takes that many seconds."""
    return lambda n: n / seconds / (1 + (n / places) ** 2)


class Locked(Resource):
    """One file with one lock, as SQLite's: who does not get it sleeps for longer each time, and asking costs."""

    sleepers = False
    pauses = (0.001, 0.002, 0.005, 0.010, 0.015, 0.020, 0.025, 0.025, 0.025, 0.050, 0.050, 0.100)

    def __init__(self, seconds: float, alone: float, first: float, asking: float = 0.0002) -> None:
        """seconds: the lock is held. alone: what a work does before it. first: what the first work takes more."""
        super().__init__(exactly(seconds))
        self.alone, self.first, self.asking = alone, first, asking
        self.holder_until = 0.0
        self.tries: dict[int, int] = {}
        self.holder: int | None = None

    def begin(self, work: int, now: float, chance: random.Random) -> None:
        self.tries[work] = 0
        first, self.first = self.first, 0.0
        heapq.heappush(self.ends, (now + first + self.alone * chance.uniform(0.7, 1.3), work))

    def step(self, now: float, chance: random.Random) -> int | None:
        _, work = heapq.heappop(self.ends)
        if work == self.holder:
            if now < self.holder_until:  # it was held up by others that asked
                heapq.heappush(self.ends, (self.holder_until, work))
                return None
            self.holder = None
            del self.tries[work]
            return work
        if self.holder is None:
            self.holder = work
            self.holder_until = now + self.durations(chance) * chance.uniform(0.7, 1.3)
            heapq.heappush(self.ends, (self.holder_until, work))
        else:
            tries = self.tries[work]
            self.tries[work] += 1
            self.holder_until += self.asking
            pause = self.pauses[min(tries, len(self.pauses) - 1)]
            heapq.heappush(self.ends, (now + pause, work))
        return None


@dataclass
class Run:
    """What came of it."""

    seconds: float = 0.0
    limits: list[tuple[float, int]] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)
    peak: int = 0

    def rate(self, begin: float, end: float) -> float:
        return sum(begin <= at < end for at in self.ends) / (end - begin)

    def limit_at(self, time: float) -> int:
        return [limit for at, limit in self.limits if at <= time][-1]


class Place:
    """A queue's place on a pool, and the world around it."""

    def __init__(
        self, resource: Resource, law: Law | int, *, seed: int = 0, spawn: float = 60e-6,
        fails: Callable[[float, random.Random], bool] = lambda now, chance: False,
    ) -> None:  # fmt: skip
        self.resource = resource
        self.law = law if isinstance(law, Law) else None
        self.fixed = law if isinstance(law, int) else 0
        self.chance = random.Random(seed)
        self.spawn = spawn
        self.fails = fails
        self.now = 0.0
        self.waiting = 0
        self.starting: deque[tuple[float, int]] = deque()  # hold a place, and a worker is on its way
        self.executing: set[int] = set()
        self.failing: list[tuple[float, int]] = []
        self.threads = 0
        self.spawned = 0.0
        self.numbers = 0
        self.bound = False
        self.ended = self.failed = 0
        self.wake = INF
        self.out = Run()

    @property
    def limit(self) -> int:
        return self.law.limit if self.law is not None else self.fixed

    @property
    def active(self) -> int:
        return len(self.starting) + len(self.executing)

    def fill(self) -> None:
        while self.waiting and self.active < self.limit:
            self.waiting -= 1
            cost = 10e-6
            if self.active >= self.threads:
                self.threads += 1
                cost = self.spawn
            self.spawned = max(self.now, self.spawned) + cost
            self.starting.append((self.spawned, self.numbers))
            self.numbers += 1
        self.out.peak = max(self.out.peak, self.active)
        if self.law is not None and bool(self.waiting) != self.bound:
            self.bound = bool(self.waiting)
            if self.bound:
                self.ended = self.failed = 0
                self.law.begin(self.now, self.active)
                self.note()
            else:
                self.law.stop()
                self.note()
                self.fill()

    def look(self) -> None:
        assert self.law is not None
        if self.bound:
            self.law.see(
                Sight(self.now, self.ended, self.failed, len(self.executing), self.active, self.resource.sleepers)
            )
            self.ended = self.failed = 0
            self.note()
            self.fill()

    def note(self) -> None:
        assert self.law is not None
        if not self.out.limits or self.out.limits[-1][1] != self.law.limit:
            self.out.limits.append((self.now, self.law.limit))
        self.wake = INF if self.law.wake is None else self.now + self.law.wake

    def end(self, work: int, *, failed: bool) -> None:
        self.executing.discard(work)
        self.ended += 1
        self.failed += failed
        if not failed:
            self.out.ends.append(self.now)
        self.fill()
        if self.law is not None and self.bound and self.ended >= self.law.quota:
            self.look()

    def run(
        self, works: int | Iterable[tuple[float, int]], changes: Iterable[tuple[float, Callable[[], object]]] = (),
        until: float = INF,
    ) -> Run:  # fmt: skip
        """works: all at once, or how many arrive when."""
        arrivals = deque([(0.0, works)] if isinstance(works, int) else works)
        to_change = deque(changes)
        while self.now < until:
            may_begin = self.starting and len(self.executing) < self.resource.runs_at_most
            times = (
                arrivals[0][0] if arrivals else INF,
                to_change[0][0] if to_change else INF,
                max(self.now, self.starting[0][0]) if may_begin else INF,
                self.failing[0][0] if self.failing else INF,
                self.resource.next(self.now),
                self.wake,
            )
            first = min(times)
            if first is INF or (self.wake == first and not (self.active or self.waiting)):
                break
            self.now, which = first, times.index(first)
            if which == 0:
                self.waiting += arrivals.popleft()[1]
                self.fill()
            elif which == 1:
                to_change.popleft()[1]()
            elif which == 2:
                _, work = self.starting.popleft()
                self.executing.add(work)
                if self.fails(self.now, self.chance):
                    heapq.heappush(self.failing, (self.now + 50e-6, work))
                else:
                    self.resource.begin(work, self.now, self.chance)
            elif which == 3:
                self.end(heapq.heappop(self.failing)[1], failed=True)
            elif which == 4:
                done = self.resource.step(self.now, self.chance)
                if done is not None:
                    self.end(done, failed=False)
            else:
                self.wake = INF
                self.look()
            if not (arrivals or self.waiting or self.active):
                break
        self.out.seconds = self.now
        return self.out
