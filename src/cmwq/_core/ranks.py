"""The order in which locks are taken: `Rank`."""

from __future__ import annotations

from enum import IntEnum


class Rank(IntEnum):
    """Every lock of cmwq has one of these ranks. Their order is written here and nowhere else.

    A thread that holds a lock takes only locks of a higher rank; any other attempt raises `Reentered`. So two locks of
    one rank, those of two pools for instance, are never held together, and no cycle of threads can wait for each
    other's locks. The debug mode of `held` tells a mistake in cmwq from an interruption.

    - HOTPLUG: which CPUs serve which pool. It is held during a whole change, in which pools are frozen, asked and
      moved.
    - FREEZER: makes freezing and thawing exclude each other. It is held across all queues and pools, so before their
      locks.
    - WORK: the state of a `Work`: pending, disabled, on its way to a queue. Under it a queue, a pool or a timer is
      used. Also the state of a `Serving`: which thread asks its source, and where it has its places in line.
    - RUNTIME: which pools and queues there are. What is found under it is then examined under its own lock.
    - QUEUE: a queue's places on pools, and whether it is open. Under it works are counted on pools.
    - WAITS: which work waits for which. Under it chains of waits are followed, and pools are asked which work comes
      first.
    - POOL: worklist, idle list, counts, phases. The hot one: under it works are listed and workers chosen.
    - ROOM: which threads wait for room in a queue. A work that begins makes room, under its pool's lock.
    - WATCHDOG: whether a check is due. A pool whose work waits asks for one.
    - SENSOR: what a sensor knows. Pools arm it under their lock.
    - TIMERS_STARTING: a timer thread is being started. Any of the above may need a timer.
    - TIMERS: the heap of timers.
    - WAITER: what one call of `concurrent.futures.wait` or `as_completed` waits for, in the place of its own lock.
    """

    HOTPLUG = 0
    FREEZER = 1
    WORK = 2
    RUNTIME = 3
    QUEUE = 4
    WAITS = 5
    POOL = 6
    ROOM = 7
    WATCHDOG = 8
    SENSOR = 9
    TIMERS_STARTING = 10
    TIMERS = 11
    WAITER = 12
