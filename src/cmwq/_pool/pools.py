"""Pools: which pools a runtime has, the sensor they share, and how both start.

Guarantees: nothing is started before the first work (G1). Each pool is created once, and is removed only in the child
of a fork (G2). The letters are those of `pool`; R is `Pools.lock`.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from cmwq._core.held import holding, outside
from cmwq._core.ranks import Rank
from cmwq._core.surely import at_any_depth, surely
from cmwq._core.tables import lookup
from cmwq._errors import QueueClosed
from cmwq._pool.closing import abandon
from cmwq._pool.hotplug import UNMANAGED
from cmwq._pool.pool import WorkerPool

if TYPE_CHECKING:
    from cmwq._core.ports import Host, Sensor
    from cmwq._workqueue.runtime import Runtime

PoolKey: TypeAlias = tuple[str, int, bool]
"""Scope, first CPU of the group (-1: all CPUs), highpri."""


class Pools:
    """The pools of one runtime.

    Any thread may look at them at any time, so their table is never changed, but replaced. Without a GIL this matters
    to the child of a fork: a list or dictionary that other threads were just looking at has a lock of its own, which
    might stay theirs for ever.
    """

    def __init__(self, runtime: Runtime, host: Host) -> None:
        self._runtime = runtime  # I
        # The pools by key, and in the order in which they were started: one field, so that an interruption leaves both
        # or neither changed (F10).
        self._table: tuple[dict[PoolKey, WorkerPool], tuple[WorkerPool, ...]] = ({}, ())  # R to change, read freely
        self.host = host  # I
        self.lock = host.lock(Rank.RUNTIME)  # F
        self.sensor: Sensor | None = None  # R: None: nothing has run yet
        self.began_at = 0.0  # R: when the sensor was chosen, on the host's clock
        self.closed = False  # R: no more work is accepted

    def get(self, key: PoolKey) -> WorkerPool | None:
        """Return the pool of that key, if it was started."""
        return lookup(self._table[0], key)

    def values(self) -> tuple[WorkerPool, ...]:
        """Return all pools that were started, the oldest first."""
        return self._table[1]

    def items(self) -> list[tuple[PoolKey, WorkerPool]]:
        """Return all pools that were started, with their keys."""
        return list(self._table[0].items())

    @holding("self.lock")
    def begin(self) -> Sensor:
        """Start what every pool relies on, unless it runs. Raises ThreadLimit; QueueClosed if the runtime closed."""
        if self.closed:
            raise QueueClosed(f"the runtime {self._runtime.why_closed()}")
        if self.sensor is None:
            self.host.start_timers()
            sensor = self._runtime.choose_sensor()
            self._runtime.hotplug.begin()
            self.began_at = self.host.monotonic()
            self.sensor = sensor  # last: after an interruption everything is begun again
        return self.sensor

    @outside
    def start(self, key: PoolKey) -> WorkerPool:
        """Return the pool of that key, and create it if there is none. Raises as `begin` does."""
        stand_in = object()
        vacate = partial(self._vacate, key, stand_in)
        with surely(vacate), surely(vacate):
            return self._start(key, stand_in)

    def _vacate(self, key: PoolKey, stand_in: object) -> None:
        pool = self.get(key)
        if pool is not None:
            pool.office.vacate(stand_in)

    def _start(self, key: PoolKey, stand_in: object) -> WorkerPool:
        runtime, (scope, first, highpri) = self._runtime, key
        with self.lock:
            pool = self.get(key)
            if pool is not None:
                return pool
            sensor, hotplug = self.begin(), runtime.hotplug
            cpus = hotplug.served_by(key)  # empty: its last CPU has just left (D2)
            pool = WorkerPool(
                "u0" if first < 0 else str(first) if scope == "cpu" else f"{scope}{first}",
                cpus or hotplug.cpus(),
                hotplug.target(cpus) if cpus else UNMANAGED,
                highpri=highpri,
                sensor=sensor,
                runtime=runtime,
            )
            pool.disassociated = not cpus
            pool.office.holder = stand_in
            runtime.events.adopt(pool)
            by_key, started = self._table
            self._table = ({**by_key, key: pool}, (*started, pool))
        # B1: the first reserve. If it is refused, works wait for the retry, or for a rescuer.
        try:
            runtime.watchdog.begin()  # it has to see works that wait for the first worker, too
        finally:
            at_any_depth(pool.office.create_reserve)
        return pool

    def forget(self) -> None:
        """Forget all pools. Context: the child of a fork."""
        pools, self._table = self.values(), ({}, ())
        for pool in pools:
            abandon(pool)
        self.lock = self.host.lock(Rank.RUNTIME)
        self.sensor = None
