"""The simulator: see the package's docstring.

Guarantees: after each `check_every`-th step the invariants of the watched runtimes are checked, for each pool whose
lock is free. The rest is promised by `sim_host`.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from cmwq._core.config import Config
from cmwq._pool.invariants import check as check_pool
from cmwq._pool.worker import current_worker
from cmwq._workqueue.runtime import Runtime
from cmwq.testing.sim_host import SimHost
from cmwq.testing.sim_sensor import SimSensor

if TYPE_CHECKING:
    from cmwq.testing.sim_host import SimThread

T = TypeVar("T")


class Simulation:
    """A host, a sensor, and what works do there: `burn` a CPU, `sleep`, write to the `log`.

    cpus: how many there are. seed: decides which thread goes first at each seam; None: first come, first served. late:
    seconds after which a sleep that the sensor missed (half of them, by the seed) is reported. gil: what the host
    reports. marks: the sensor reports as the sentinel does. For the costs of threads set `SimHost.spawn_cost` and
    `wake_cost`.
    """

    def __init__(
        self, *, cpus: int = 1, seed: int | None = None, late: float = 0.0, gil: bool = False, marks: bool = False
    ) -> None:
        self.host = SimHost(cpus, seed, gil)
        chance = random.Random(seed)
        self.sensor = SimSensor(self.host, late, lambda: late > 0 and chance.random() < 0.5, marks)
        self.log: list[tuple[float, str]] = []

    def runtime(
        self,
        *,
        max_workers: int = 1024,
        config: Config | None = None,
        check_every: int = 1,
        watchdog: bool = False,
        lends: bool = False,
    ) -> Runtime:
        """A runtime in this simulation. Its invariants are checked after each `check_every`-th step and at the end.

        watchdog: let it run. Without it, a state in which no thread can run is a SimDeadlock, because no timer is due.
        lends: likewise for the look whether works wait for a place that others should lend (`Config.lend_interval`).
        """
        self.host.check_every = check_every
        config = config or Config()
        if not watchdog:
            config = replace(config, watch_period=0)
        if not lends:
            config = replace(config, lend_interval=0)
        runtime = Runtime(host=self.host, sensor=self.sensor, max_workers=max_workers, config=config)

        def check() -> None:
            for pool in runtime.pools():
                if pool.lock.holder is None:  # type: ignore[attr-defined]
                    check_pool(pool)

        self.host.on_step.append(check)
        return runtime

    def run(self, main: Callable[[], T]) -> T:
        """Run main() in the simulation and return its result. Raises SimDeadlock, or what a simulated thread raised."""
        result: list[T] = []
        self.host.run(lambda: result.append(main()))
        return result[0]

    def note(self, text: str) -> None:
        """Add a text to the log, with the time in milliseconds."""
        self.log.append((round(self.host.now * 1000, 6), text))

    def burn(self, seconds: float) -> None:
        """Use a CPU for so many seconds."""
        self.host.burn(seconds)

    def sleep(self, seconds: float) -> None:
        """Block for so many seconds. The sensor notices."""
        self._wait(partial(self.host.sleep, seconds))

    def run_child(self, *steps: tuple[str, float]) -> None:
        """Run a child process, and block until it has ended. The sensor notices that, and the host shows the child.

        steps: what it does: ("burn", seconds), ("sleep", seconds).
        """
        self._wait(self.start_child(*steps).join)

    def start_child(self, *steps: tuple[str, float]) -> SimThread:
        """As `run_child`, without the wait."""

        def body() -> None:
            for what, seconds in steps:
                (self.host.burn if what == "burn" else self.host.sleep)(seconds)

        return self.host.start_child(body)

    def _wait(self, wait: Callable[[], None]) -> None:
        worker = current_worker()
        if worker is None:
            wait()
            return
        worker.watched = True
        self.sensor.sleeping(worker)
        wait()
        worker.watched = False
        self.sensor.running(worker)
