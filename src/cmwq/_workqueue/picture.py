"""Picture: how a snapshot is taken, so that whoever looks costs the process little (H1, H4).

Guarantees
- Of each pool, everything that is told of it and of the queues' places there is read in one critical section (H4). In
  that section no file is read, and nothing is formatted but a few reasons. Where a pool has more than `AT_ONCE` places,
  the others are read in further sections (`place_view`), each place as it is at one moment, later than its pool.
- `/proc`, stacks and memory are read with no lock held, and afterwards. What was seen there corrects `running` and
  `blocked` of a pool, and their sum stays.
- A picture without stacks looks at `LOOKS` threads at most, which takes 10 to 30 us each. These are the workers that
  are believed to run, for no sensor looks while no work waits, and then others in turn; of all others it has the words
  of the last look at them. Likewise it reads the CPU clocks of these threads only. So a lone sleeper shows as blocked,
  and a picture of 1,000 workers takes about a millisecond; its `to_dict` takes half as much again.
- A picture with stacks looks at all workers that it holds. It is for somebody who reads it, and takes tens of
  milliseconds for a thousand workers. Each stack has its innermost `MAX_FRAMES` calls. Locks, events and queues that
  are waited for have the words of the watchdog's report there (`Awaited.instead_of`), and in no later picture.
- Nothing of a user is called, no `repr` either.

The letters are those of `pool`.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from heapq import nlargest
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias
from weakref import WeakKeyDictionary

from cmwq._core.held import holding, outside
from cmwq._core.ports import is_lock
from cmwq._core.tables import lookup
from cmwq._pool.blocking import CHILD, HOG, SAID, SEEN, SEEN_ON_LOCK
from cmwq._pool.events import name_of_pool
from cmwq._pool.figures import bill, see
from cmwq._pool.reasons import nr_asleep, why_no_more
from cmwq._workqueue.place_view import AT_ONCE, Place, in_turn, read_further, view_of_queue
from cmwq._workqueue.report import with_workers
from cmwq._workqueue.snapshot import (
    MAX_FUNCTIONS,
    MAX_WORDS,
    MAX_WORKERS,
    VERSION,
    FunctionView,
    MemoryView,
    PoolView,
    Snapshot,
)

if TYPE_CHECKING:
    from cmwq._core.ports import Awaited
    from cmwq._pool.blocking import Blocked
    from cmwq._pool.figures import Figures, Seen, Tally
    from cmwq._pool.item import Item
    from cmwq._pool.pool import WorkerPool
    from cmwq._pool.worker import Worker
    from cmwq._workqueue.pwq import PoolWorkQueue
    from cmwq._workqueue.queue import WorkQueue
    from cmwq._workqueue.runtime import Runtime
    from cmwq._workqueue.wait import Target

LOOKS = 8
"""So many threads a picture without stacks looks at."""
MAX_FRAMES = 40
"""So many calls of a stack are kept."""
REFRESH = 1.0
"""Seconds for which what is known of memory is kept."""

_WORDS = {
    SEEN: "is asleep",
    SEEN_ON_LOCK: "waits for a lock",
    SAID: "says that it blocks",
    CHILD: "waits while a child process computes",
}
"""What is known of a worker that was not looked at."""
GIL = "waits for the GIL"
Rows: TypeAlias = tuple[list[dict[str, Any]], list[float], list[tuple[str, ...]]]
"""`Snapshot.rows`, `since` and `stacks`."""
_number = attrgetter("index")


class Part(NamedTuple):
    """One pool, as it was in the critical section, and the places there."""

    pool: WorkerPool
    view: PoolView
    places: dict[PoolWorkQueue, Place]
    busy: list[Worker]
    """The workers that execute something."""
    seen: list[Seen]
    """What was seen of each of them."""
    resting: list[tuple[Worker, str, float]]
    """The other workers, with their states, and since when that is so."""
    chosen: dict[Worker, tuple[Item | None, Blocked | None]]
    """The workers to be looked at."""
    running: Counter[Tally]
    """How many workers execute each function."""
    now: float


class Photographer:
    """Takes the pictures of one runtime. Thread-safe."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime  # I
        self._turn = 0  # ~: where the looks at further workers go on
        self._orders: WeakKeyDictionary[WorkerPool, list[Worker]] = WeakKeyDictionary()  # A: workers by their numbers
        self._charged: WeakKeyDictionary[WorkerPool, float] = WeakKeyDictionary()  # A: when its idle workers were, last
        self._memory: tuple[float, MemoryView] | None = None  # A: until when it is fresh, on the host's clock

    @outside
    def take(self, *, stacks: bool) -> Snapshot:
        """Take a picture. stacks: with the stack of each worker, and a look at each."""
        runtime, host = self._runtime, self._runtime.host
        with runtime._pools.lock:
            pools = list(runtime._pools.values())
            queues = runtime.queues()
            sensor, began_at = runtime._pools.sensor, runtime._pools.began_at
        queues.sort(key=attrgetter("name"))
        budget, waiting = MAX_WORKERS if stacks else LOOKS, runtime.waits.all()
        parts: list[Part] = []
        for pool in pools:
            parts.append(self._part_of(pool, budget, waiting))
            budget -= len(parts[-1].chosen)
        views = tuple([self._look_at(part, waiting) for part in parts])
        on_locks = [
            worker.thread for part in parts for worker, seen in zip(part.busy, part.seen, strict=True)
            if stacks and seen.row and is_lock(seen.row["waits_for"])
        ]  # fmt: skip
        busy = [worker for part in parts for worker in part.busy] if on_locks else []
        locks = with_workers(host.awaited(on_locks), busy) if on_locks else {}
        tids: dict[int, int] = {getattr(worker.thread, "ident", 0): worker.tid for worker in busy}
        (rows, since, found), left_out = self._rows(parts, locks, tids, stacks=stacks)
        by_queue: dict[WorkQueue, list[Place]] = {}
        for part in parts:
            for pwq, place in part.places.items():
                by_queue.setdefault(pwq.wq, []).append(place)
        return Snapshot(
            pools=views,
            queues=tuple([view_of_queue(queue, by_queue.get(queue, [])) for queue in queues]),
            sensor=sensor.name if sensor else "",
            sensor_reason=sensor.reason if sensor else "nothing has run yet",
            gil=host.gil_enabled(),
            cpus=runtime.cpus(),
            cpu_limit=runtime.hotplug.limit(),
            pid=os.getpid(),
            version=VERSION,
            time=host.epoch(),
            uptime=host.monotonic() - began_at if sensor else 0.0,
            command=tuple([word[:200] for word in sys.orig_argv[:MAX_WORDS]]),
            python=sys.version.split()[0],
            cpu_seconds=host.process_cpu(),
            frozen=runtime.frozen,
            memory=self._memory_of(pools),
            rows=tuple(rows),
            since=tuple(since),
            stacks=tuple(found),
            workers_left_out=left_out,
            functions=tuple(_functions(parts)),
            stalls=runtime.watchdog.recent(),
            stall_after=runtime.config.watchdog_thresh if runtime.config.watch_period > 0 else 0.0,
        )

    def _part_of(self, pool: WorkerPool, budget: int, waiting: dict[Item, Target]) -> Part:
        """Read one pool. budget: so many workers are looked at. waiting: the works that wait for others."""
        with pool.lock:
            now, charged = pool.host.monotonic(), lookup(self._charged, pool)
            busy: list[Worker] = []
            all_seen: list[Seen] = []
            resting: list[tuple[Worker, str, float]] = []
            announcing: Counter[Figures] = Counter()
            asking: Counter[Figures] = Counter()
            for worker in self._ordered(pool):  # the only loop over all workers; each step of it counts
                item: Any = worker.item
                seen = worker.seen
                if item is None:
                    state = "idle" if worker.idle else "creating" if pool.office.holder is worker else "waking"
                    resting.append((worker, state, worker.last_active if state == "idle" else now))
                    if worker.idle and (charged is None or worker.last_active >= charged):
                        bill(worker, worker.billed_to)  # it worked since the last picture, and may rest for long now
                    continue
                if seen is None or seen.item() is not item:
                    seen = see(worker, now)
                    assert seen is not None
                if seen.row is None or seen.blocked is not worker.blocked:
                    _tell(worker, item, seen, _is_asleep(worker), None)
                if worker.announcing or item.phase.asks:
                    (asking if item.phase.asks else announcing)[seen.tally.figures] += 1
                busy.append(worker)
                all_seen.append(seen)
            self._charged[pool] = now
            chosen = self._choose(pool, busy, budget, waiting)
            for worker in chosen:
                bill(worker, worker.billed_to)
                if worker.seen is not None and worker.seen.used is None:
                    worker.seen.used = worker.billed
            running = Counter([seen.tally for seen in all_seen])
            executing: Counter[Figures] = Counter()
            for tally, number in running.items():
                executing[tally.figures] += number
            executing.subtract(announcing)
            executing.subtract(asking)
            pwqs = in_turn(pool)
            places = {pwq: Place(pwq, executing[pwq.figures], announcing[pwq.figures]) for pwq in pwqs[:AT_ONCE]}
            begun = len(busy) - sum(worker.announcing for worker in busy) if announcing or asking else len(busy)
            view = _view_of_pool(pool, begun)
        read_further(pool, places, pwqs[AT_ONCE:])
        return Part(pool, view, places, busy, all_seen, resting, chosen, running, now)

    @holding("pool.lock")
    def _ordered(self, pool: WorkerPool) -> list[Worker]:
        """The workers by their numbers, rescuers first."""
        known = lookup(self._orders, pool)
        if known is None or len(known) != len(pool.workers) or not pool.workers.issuperset(known):
            known = self._orders[pool] = sorted(pool.workers, key=_number)
        return known

    @holding("pool.lock")
    def _choose(
        self, pool: WorkerPool, busy: list[Worker], budget: int, waiting: dict[Item, Target]
    ) -> dict[Worker, tuple[Item | None, Blocked | None]]:
        """Choose the workers that are looked at: those believed to run, then others in turn."""
        first = [worker for worker in busy if worker.blocked is None] if pool.nr_running else []
        if len(busy) > budget:
            first = first[:budget]
            at, more = self._turn % len(busy), budget - len(first)
            self._turn += more
            first += busy[at : at + more] + busy[: max(0, at + more - len(busy))]
        else:
            first = busy
        return {worker: (worker.item, worker.blocked) for worker in first if worker.item is not None and worker.tid}

    @outside
    def _look_at(self, part: Part, waiting: dict[Item, Target]) -> PoolView:
        """Look at the chosen workers' threads, and return the pool, corrected by what was seen."""
        pool, asleep, gil_waiter = part.pool, 0, ""
        looked_at = part.chosen
        if waiting:
            waiters = [worker for worker in part.busy if worker.item in waiting and worker not in looked_at]
            looked_at = looked_at | {worker: (worker.item, worker.blocked) for worker in waiters}
        for worker, (item, blocked) in looked_at.items():
            seen = worker.seen
            if item is None or seen is None or not seen.is_of(item):
                continue  # it has ended meanwhile
            target = waiting.get(item)
            sleeps, words = (True, target.describe_wait()) if target is not None else self._look(worker)
            _tell(worker, item, seen, sleeps, words)
            if target is None and worker.counted:
                asleep += sleeps - (blocked is not None and blocked is not HOG)
            if words == GIL:
                gil_waiter = worker.name
        view = part.view
        if gil_waiter and view.why:
            with pool.lock:
                view = replace(view, why=why_no_more(pool, gil_waiter))
        return replace(view, running=view.running - asleep, blocked=view.blocked + asleep) if asleep else view

    @outside
    def _look(self, worker: Worker) -> tuple[bool, str]:
        """Look at a worker's thread. Returns whether it sleeps, and what it waits for."""
        words = worker.pool.host.waits_in(worker.tid)
        if is_lock(words) and not worker.pool.lookout.sleeps(worker):
            return False, GIL if self._runtime.host.gil_enabled() else ""
        return bool(words), words

    def _rows(
        self, parts: list[Part], locks: dict[int, Awaited], tids: dict[int, int], *, stacks: bool
    ) -> tuple[Rows, int]:
        """What is told of the workers, those that execute something first; and of how many nothing is told. tids: as
        for `_named`.
        """
        rows: list[dict[str, Any]] = []
        since: list[float] = []
        workers: list[Worker] = []
        room = MAX_WORKERS
        left_out = max(0, sum(len(part.busy) + len(part.resting) for part in parts) - room)
        for part in parts:
            now, seen_ones = part.now, part.seen[:room]
            told = [seen.row or {} for seen in seen_ones]
            rows += [_named(*each, locks, tids) for each in zip(told, part.busy, strict=False)] if locks else told
            since += [now - seen.since for seen in seen_ones]
            workers += part.busy[:room]
            room -= len(seen_ones)
        for part in parts:
            for worker, state, when in part.resting[:room]:
                rows.append(_row(worker, state))
                since.append(part.now - when)
                workers.append(worker)
            room -= min(room, len(part.resting))
        found: dict[int, tuple[str, ...]] = {}
        if stacks:
            found = self._runtime.host.stacks_of([worker.thread for worker in workers], MAX_FRAMES)
        return (rows, since, [found.get(id(worker.thread), ()) for worker in workers] if stacks else []), left_out

    def _memory_of(self, pools: Iterable[WorkerPool]) -> MemoryView:
        """What is known of memory, at most `REFRESH` seconds old."""
        now, kept = self._runtime.host.monotonic(), self._memory
        if kept is None or now >= kept[0]:
            found = self._runtime.host.memory()
            view = MemoryView(False, None, None, "") if found is None else MemoryView(False, *found)
            self._memory = kept = now + REFRESH, view
        return replace(kept[1], held=True) if any(pool.memory.held for pool in pools) else kept[1]


@holding("pool.lock")
def _view_of_pool(pool: WorkerPool, executing: int) -> PoolView:
    """executing: how many workers execute a work that has not ended."""
    cpu_seconds = pool.stats.cpu_seconds
    known = cpu_seconds > 0 or not pool.workers or any(worker.cpu_time() is not None for worker in pool.workers)
    return PoolView(
        name=name_of_pool(pool),
        cpus=pool.cpus,
        target=pool.full_target,
        held=pool.memory.held,
        disassociated=pool.disassociated,
        workers=len(pool.workers),
        idle=len(pool.idle_list),
        running=pool.nr_running + pool.nr_hogs,
        blocked=nr_asleep(pool),
        pending=pool.nr_listed(),
        inactive=sum([len(pwq.inactive) for pwq in pool.pwqs if pwq.inactive]),
        created=pool.stats.created,
        culled=pool.stats.culled,
        refused=pool.office.nr_refused,
        peak_workers=pool.stats.peak_workers,
        started=pool.nr_completed + executing,
        completed=pool.nr_completed,
        wakeups=pool.nr_wakeups,
        nice=pool.nice if pool.stats.niced else 0,
        cpu_seconds=cpu_seconds if known else None,
        why=why_no_more(pool),
    )


def _row(worker: Worker, state: str, queue: str = "", work: str = "", item: int = 0) -> dict[str, Any]:
    return {
        "name": worker.name, "pool": name_of_pool(worker.pool), "tid": worker.tid, "state": state,
        "rescuer": worker.is_rescuer, "queue": queue, "work": work, "item": item, "since": 0.0, "cpu_seconds": None,
        "waits_for": "", "stack": (), "held_by": 0,
    }  # fmt: skip


def _named(row: dict[str, Any], worker: Worker, locks: dict[int, Awaited], tids: dict[int, int]) -> dict[str, Any]:
    """The row with the name of what is waited for, as far as stacks tell it. tids: of workers, by `Awaited.holder`."""
    lock = locks.get(id(worker.thread))
    if lock is None or not row or not is_lock(row["waits_for"]):
        return row
    return {**row, "waits_for": lock.instead_of(row["waits_for"]), "held_by": tids.get(lock.holder, 0)}


def _is_asleep(worker: Worker) -> bool:
    """Whether the pool believes so."""
    return worker.blocked is not None and worker.blocked is not HOG


def _tell(worker: Worker, item: Item, seen: Seen, asleep: bool, words: str | None) -> None:
    """Make anew what is told of a worker that executes something. words: as just seen; None: it was not looked at."""
    seen.blocked = blocked = worker.blocked
    if words is not None:
        seen.words = words
    elif not asleep:
        seen.words = ""
    row = _row(worker, "blocked" if asleep else "running", item.queue.name, seen.work, id(item))
    row["waits_for"] = seen.words or (_WORDS.get(blocked, "") if blocked is not None and asleep else "")
    if seen.used is not None and worker.billed >= seen.used:
        row["cpu_seconds"] = worker.billed - seen.used
    seen.row = row  # it is replaced and not changed: a picture may have the one before


def _functions(parts: list[Part]) -> list[FunctionView]:
    """The functions that took the most time; among those of which nothing is known, the ones that run most often."""
    found: dict[tuple[str, str], list[float]] = {}
    for part in parts:
        for pwq, place in part.places.items():
            for tally, figures in place.functions:
                known = found.setdefault((pwq.wq.name, tally.name), [0, 0, 0.0, 0.0, 0])
                known[:4] = [had + more for had, more in zip(known, figures, strict=False)]
                known[4] += part.running[tally]
    busiest = nlargest(MAX_FUNCTIONS, found.items(), key=lambda pair: (pair[1][2], pair[1][4]))
    return [
        FunctionView(name, queue, int(ended), int(failed), seconds, cpu_seconds, int(now))
        for (queue, name), (ended, failed, seconds, cpu_seconds, now) in busiest
        if ended or now
    ]
