"""In which order locks are taken: `Rank`."""

from __future__ import annotations

from enum import IntEnum


class Rank(IntEnum):
    """Every lock of cmwq has one of these ranks, and this is the only place where their order is written.

    A thread that holds a lock takes only locks of a higher rank; whoever would do otherwise gets `Reentered`. So two
    locks of one rank, those of two pools for instance, are never held together, and no wait for a lock can close a
    circle. `held` has a debug mode that tells a mistake of ours from such an interruption.

    - HOTPLUG: which CPUs serve which pool. It is held for a whole change, in which pools are frozen, asked and moved.
    - FREEZER: freezing and thawing exclude each other. Held across all queues and pools, hence before their locks.
    - WORK: to whom a `Work` belongs: pending, disabled, on its way to a queue. Who has it goes on to a queue, a pool,
      or a timer. Likewise a `Serving`: who asks its source, and where that has its places in line.
    - RUNTIME: which pools and queues there are. What is found under it is then looked at under its own lock.
    - QUEUE: a queue's places on pools, its phases, whether it is open. Under it works are counted on pools.
    - POOL: worklist, idle list, counts. The hot one; with it works are listed and workers chosen.
    - ROOM: who waits for room in a queue. A work that ends makes room, under its pool's lock.
    - WATCHDOG: whether a look is due. A pool whose work waits asks for one.
    - SENSOR: what a sensor knows. Pools arm it under their lock.
    - TIMERS_STARTING: a timer thread is being started. Any of the above may want a timer.
    - TIMERS: the heap of timers.
    - WAITS: who waits for whom. It is looked at from everywhere, and itself takes nothing.
    """

    HOTPLUG = 0
    FREEZER = 1
    WORK = 2
    RUNTIME = 3
    QUEUE = 4
    POOL = 5
    ROOM = 6
    WATCHDOG = 7
    SENSOR = 8
    TIMERS_STARTING = 9
    TIMERS = 10
    WAITS = 11
