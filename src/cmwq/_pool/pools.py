"""Pools: which pools a runtime has, the sensor they share, and how both start.

Guarantees: nothing is started before the first work (G1); a pool is made once, and is never taken out but by a fork
(G2). The letters are those of `pool`; R is `Pools.lock`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from cmwq._core.held import holding, outside
from cmwq._core.ranks import Rank
from cmwq._errors import QueueClosed
from cmwq._pool.closing import abandon
from cmwq._pool.hotplug import UNMANAGED
from cmwq._pool.pool import WorkerPool

if TYPE_CHECKING:
    from cmwq._core.ports import Host, Sensor
    from cmwq._workqueue.runtime import Runtime

PoolKey: TypeAlias = tuple[str, int, bool]
"""Scope, first CPU of the group (-1: all), highpri."""


class Pools:
    """One runtime's.

    They are looked at by anybody at any time, so they are never changed, but replaced. Without a GIL that matters to the
    child of a fork: were it a list or dictionary that others were just looking at, its own lock might be theirs for
    ever.
    """

    def __init__(self, runtime: Runtime, host: Host) -> None:
        self._runtime = runtime  # I
        # The pools by their keys, and in the order in which they were started: one, so that an interruption finds both or
        # neither changed (F10).
        self._table: tuple[dict[PoolKey, WorkerPool], tuple[WorkerPool, ...]] = ({}, ())  # R to change, read freely
        self.host = host  # I
        self.lock = host.lock(Rank.RUNTIME)  # F
        self.sensor: Sensor | None = None  # R: None: nothing has run yet
        self.closed = False  # R: takes no work any more

    def get(self, key: PoolKey) -> WorkerPool | None:
        return self._table[0].get(key)

    def values(self) -> tuple[WorkerPool, ...]:
        """All that were started, the oldest first."""
        return self._table[1]

    def items(self) -> list[tuple[PoolKey, WorkerPool]]:
        return list(self._table[0].items())

    @holding("self.lock")
    def begin(self) -> Sensor:
        """Have what every pool relies on. Raises ThreadLimit, QueueClosed."""
        if self.closed:
            raise QueueClosed(f"the runtime {self._runtime.why_closed()}")
        if self.sensor is None:
            self.host.start_timers()
            sensor = self._runtime.choose_sensor()
            self._runtime.hotplug.begin()
            self.sensor = sensor  # last: what was begun and interrupted is begun again
        return self.sensor

    @outside
    def start(self, key: PoolKey) -> WorkerPool:
        """The pool of that key, which may have been started meanwhile. Raises as `begin`."""
        runtime, (scope, first, highpri) = self._runtime, key
        with self.lock:
            pool = self.get(key)
            if pool is not None:
                return pool
            sensor, hotplug = self.begin(), runtime.hotplug
            cpus = hotplug.served_by(key)  # none: it has just left (D2)
            pool = WorkerPool(
                "u0" if first < 0 else str(first) if scope == "cpu" else f"{scope}{first}",
                cpus or hotplug.cpus(),
                hotplug.target(cpus) if cpus else UNMANAGED,
                highpri=highpri,
                sensor=sensor,
                runtime=runtime,
            )
            pool.disassociated = not cpus
            pool.office.holder = stand_in = object()
            runtime.events.adopt(pool)
            by_key, started = self._table
            self._table = ({**by_key, key: pool}, (*started, pool))
        # B1: the first reserve. If it is refused, works wait for the retry, or for a rescuer.
        try:
            runtime.watchdog.begin()  # who waits for the first worker is to be seen, too
        finally:
            pool.office.create_reserve(stand_in)
        return pool

    def forget(self) -> None:
        """In the child of a fork."""
        pools, self._table = self.values(), ({}, ())
        for pool in pools:
            abandon(pool)
        self.lock = self.host.lock(Rank.RUNTIME)
        self.sensor = None
