"""A pool and its workers as the pure-Python sensors know them, and a sensor that sees what it is told."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, cast

from cmwq._host import ThreadHost
from cmwq._pool.worker import Worker
from cmwq._sensor._ticking import Doing, TickingSensor, Watched


class Scripted(TickingSensor):
    """Sees what it is told, and has no thread."""

    def __init__(self) -> None:
        super().__init__(ThreadHost())
        self.sees: dict[Worker, Doing] = {}
        self.looked: list[Worker] = []
        self.during: Callable[[], None] = lambda: None
        self.rings = 0

    def doing(self, worker: Worker, watched: Watched) -> Doing:
        self.looked.append(worker)
        self.during()
        return self.sees.get(worker, Doing.RUNS)

    def ring(self) -> None:
        self.rings += 1


class RecordingParker:
    unparked = 0

    def park(self, timeout: float = -1) -> bool:
        raise AssertionError("no thread here")

    def unpark(self) -> None:
        self.unparked += 1


class FakeWorker:
    """What a sensor sees of a Worker."""

    def __init__(self, pool: FakePool, *, busy: bool) -> None:
        self.pool = pool
        self.parker = RecordingParker()
        self.item: object | None = object() if busy else None
        self.counted = busy
        self.sleeping = False
        self.watched: Any = None


class FakePool:
    """A WorkerPool as a sensor knows it: the counts, kick() and whom it is armed with. Always with a GIL."""

    def __init__(self, sensor: TickingSensor, target: int) -> None:
        self.lock = threading.Lock()
        self.target = target
        self.workers: set[FakeWorker] = set()
        self.idle_list: list[FakeWorker] = []
        self.worklist: list[object] = []
        self.nr_running = self.nr_waking = self.nr_wakeups = self.nr_completed = 0
        self.lookout = sensor.lookout(cast(Any, self))

    def kick(self) -> bool:
        if not (self.worklist and self.idle_list and self.nr_running < self.target and not self.nr_waking):
            return False
        self.nr_running += 1
        self.nr_waking += 1
        woken = self.idle_list.pop()
        self.settle()
        woken.parker.unpark()
        return True

    def woken_for_a_blocked_one(self) -> None:
        """Counted by the real pool."""

    def settle(self) -> None:
        reserve = self.idle_list[-1] if self.worklist and self.idle_list and not self.nr_waking else None
        self.lookout.arm(cast(Any, reserve))

    def worker_sleeping(self, worker: FakeWorker, *, on_lock: bool = False) -> None:
        if worker.counted and not worker.sleeping:
            worker.sleeping = True
            self.nr_running -= 1

    def worker_running(self, worker: FakeWorker) -> None:
        if worker.sleeping:
            worker.sleeping = False
            self.nr_running += 1


def make_pool(sensor: TickingSensor, *, target: int = 2) -> Any:
    return FakePool(sensor, target)


def add_worker(pool: FakePool, *, busy: bool) -> Any:
    worker = FakeWorker(pool, busy=busy)
    pool.lookout.attach(cast(Any, worker))
    with pool.lock:
        pool.workers.add(worker)
        if busy:
            pool.nr_running += 1
        else:
            pool.idle_list.append(worker)
            pool.settle()
    return worker


def queue(pool: FakePool, count: int = 1) -> None:
    with pool.lock:
        pool.worklist.extend(object() for _ in range(count))
        pool.settle()


def look(pool: FakePool) -> bool:
    return pool.lookout.look()
