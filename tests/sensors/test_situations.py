"""The rules of looking, in C and in Python: both come to the same decision in each situation of one table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import pytest
from fakes import Scripted, add_worker, look, make_pool, queue
from situations import ENDED, SITUATIONS, Busy, Situation

from cmwq._host import ThreadHost
from cmwq._sensor import _ticking
from cmwq._sensor._ticking import Doing, Watched
from cmwq._sensor.procfs import ProcfsSensor

try:
    from cmwq._sensor import _sentinel
except ImportError:
    _sentinel = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from cmwq._pool.worker import Worker
    from cmwq._sensor._sentinel import Lookout, Slot

needs_c = pytest.mark.skipif(_sentinel is None, reason="the C extension was not built")
MANY = 4096
NOW = 100.0
DOING = {
    "runs": Doing.RUNS,
    "waits for the GIL": Doing.WAITS_FOR_GIL,
    "waits for a lock": Doing.WAITS_FOR_LOCK,
    "sleeps": Doing.SLEEPS,
}


def orders(situation: Situation) -> Iterator[list[int]]:
    """The workers' numbers, each of them first and last once: who is seen first may not matter."""
    numbers = list(range(len(situation.workers)))
    for first in numbers[:4]:
        yield numbers[first:] + numbers[:first]


def judge(situation: Situation, woke: bool, asleep: set[int], wakes: bool) -> None:
    believed = {i for i, worker in enumerate(situation.workers) if worker.believed != "running"}
    assert woke is wakes
    if woke:
        assert asleep in situation.asleep
    else:  # the look may have been over before all were seen
        assert asleep <= believed.union(*situation.asleep)


# ------------------------------------------------------------------------------------- in C


class Pool:
    """A lookout with a slot for each busy worker and one for the reserve, who is armed."""

    def __init__(self, workers: list[Busy]) -> None:
        self.workers = workers
        self.lookout: Lookout = _sentinel.Watch().lookout((), 1, len(workers) + 2)
        self.looker, self.reserve = self.lookout.slot(), self.lookout.slot()
        self.slots = [self.lookout.slot() for _ in workers]
        for slot in self.slots:
            slot.unpark()  # on its way counts as running
        self.believed_asleep: set[int] = set()
        first = {"running": ("runs", 0), "asleep": ("sleeps", 0), "in a lock": ("waits for a lock", 10**15)}
        assert not self._look(None, MANY, [first[worker.believed] for worker in workers])
        assert {i for i, w in enumerate(workers) if w.believed != "running"} == self.believed_asleep
        self.lookout.arm(self.reserve)

    def look(self, enough: int, looker: Slot | None = None) -> bool:
        sightings = [(w.doing, -1 if w.still == ENDED else round(w.still * 1e9)) for w in self.workers]
        woke = self._look(looker, enough, sightings)
        assert self.reserve.park(0) is woke
        return woke

    def _look(self, looker: Slot | None, enough: int, sightings: list[tuple[str, int]]) -> bool:
        nothing = [("unknown", -1)] * self.slots[0].index
        woke = self.lookout.look_as_if(looker, enough, nothing + sightings)
        for index, sleeps, _ in self.lookout.deliver():
            (self.believed_asleep.add if sleeps else self.believed_asleep.remove)(index - self.slots[0].index)
        return woke


@needs_c
@pytest.mark.parametrize("situation", SITUATIONS, ids=str)
def test_A3_A4_the_sentinel_decides_as_the_table_says(situation: Situation) -> None:
    for order in orders(situation):
        pool = Pool([situation.workers[i] for i in order])
        woke = pool.look(situation.target)
        judge(situation, woke, {order[i] for i in pool.believed_asleep}, situation.wakes)


@needs_c
@pytest.mark.parametrize("situation", SITUATIONS, ids=str)
def test_A3_a_worker_that_looks_wakes_nobody_and_counts_who_sleeps(situation: Situation) -> None:
    for order in orders(situation):
        pool = Pool([situation.workers[i] for i in order])
        assert not pool.look(MANY, pool.looker)
        for i in order:
            if situation.workers[i].doing == "sleeps":
                assert order.index(i) in pool.believed_asleep, "although one waits for the GIL"
            if situation.workers[i] in (Busy("runs"), Busy("waits for the GIL"), Busy("unknown", 11e-3)):
                assert order.index(i) not in pool.believed_asleep


@needs_c
def test_of_those_believed_asleep_each_has_its_turn() -> None:
    sleeps_on, runs_again = Busy("sleeps", believed="asleep"), Busy("runs", believed="asleep")
    pool = Pool([sleeps_on, *[runs_again] * 4, sleeps_on])
    for _ in pool.workers:
        before = len(pool.believed_asleep)
        pool.look(MANY)
        assert len(pool.believed_asleep) >= before - 1
        pool.lookout.arm(pool.reserve)
    assert pool.believed_asleep == {0, 5}


@needs_c
def test_a_look_without_sightings_takes_all_to_run() -> None:
    pool = Pool([Busy("runs")] * 3)
    assert not pool.lookout.look_as_if(None, 3, [])
    assert pool.lookout.look_as_if(None, 4, [])


@needs_c
def test_both_go_by_the_same_constants() -> None:
    for name in ("SHORT_WAIT", "YOUNG", "STILL"):
        assert getattr(_sentinel, name) == round(getattr(_ticking, name) * 1e9)


# ------------------------------------------------------------------------------------- in Python


class Clock(Watched):
    """Stands for as long as the table says."""

    __slots__ = ("still",)

    def still_for(self, now: float) -> float:
        if self.still == ENDED:
            raise OSError
        self.since = now - self.still
        return self.still


class Ordered(dict[Any, None]):
    """A set that keeps its order."""

    def add(self, worker: Any) -> None:
        self[worker] = None


class AsTold(Scripted):
    """Sees what the table says. What can't be read goes by the rule that procfs has for it."""

    def __init__(self) -> None:
        super().__init__()
        self.workers: dict[Worker, Busy] = {}

    def doing(self, worker: Worker, watched: Watched) -> Doing:
        told = self.workers[worker].doing
        if told == "unknown":
            watched.key = -1
            return ProcfsSensor._by_clock(cast("ProcfsSensor", self), worker, watched)
        return DOING[told]


def believe(pool: Any, worker: Any, busy: Busy) -> None:
    worker.watched = Clock()
    worker.watched.still = busy.still
    if busy.believed != "running":
        worker.watched.on_lock = busy.believed == "in a lock"
        worker.watched.since = NOW - busy.still
        pool.worker_sleeping(worker)


@pytest.mark.parametrize("situation", SITUATIONS, ids=str)
def test_A3_A4_the_tick_decides_as_the_table_says(situation: Situation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ThreadHost, "monotonic", staticmethod(lambda: NOW))
    for order in orders(situation):
        sensor = AsTold()
        pool = make_pool(sensor, target=situation.target)
        pool.workers = Ordered()
        workers = {i: add_worker(pool, busy=True) for i in order}
        with pool.lock:
            for i, worker in workers.items():
                sensor.workers[worker] = situation.workers[i]
                believe(pool, worker, situation.workers[i])
        add_worker(pool, busy=False)
        queue(pool)
        woke = look(pool)
        asleep = {i for i, worker in workers.items() if worker.sleeping}
        judge(situation, woke, asleep, situation.wakes and not situation.python_leaves_it)
