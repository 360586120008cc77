"""What tests in the simulator share: a run in one call, and works whose locks are the simulator's too."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from unittest import mock

import cmwq
from cmwq.testing import SimHost, Simulation
from cmwq.testing.sim import SimLock

Scenario = Callable[[Simulation, cmwq.Runtime], None]


class WorkLock(SimLock):
    """A lock of a `Work`. Its pending bit is released by whoever ends it, not by whoever took it."""

    def __init__(self, host: SimHost) -> None:
        super().__init__(host)
        self._sim_host = host

    def locked(self) -> bool:
        return self.holder is not None

    def release(self) -> None:
        me = self._sim_host.current
        assert me is None or self.holder is not None, "released, but not held"
        self.holder = me
        super().release()


def simulate(
    scenario: Scenario,
    *,
    cpus: int = 1,
    seed: int | None = None,
    late: float = 0.0,
    config: cmwq.Config | None = None,
    max_workers: int = 1024,
) -> Simulation:
    """Run scenario(sim, runtime) as the first thread of a simulation, and close the runtime.

    A `Work` takes plain locks, for it knows no host. Here they are the simulation's, so that other threads may come
    between any two of its steps.
    """
    sim = Simulation(cpus=cpus, seed=seed, late=late)

    def main() -> None:
        runtime = sim.runtime(config=config, max_workers=max_workers)
        scenario(sim, runtime)
        runtime.check_invariants()
        runtime.close()

    with mock.patch("cmwq._core.work.Lock", partial(WorkLock, sim.host)):
        sim.run(main)
    return sim


def simulate_each(scenario: Scenario, seeds: int, *, cpus: int = 1, late: float = 0.0) -> None:
    """Under so many random interleavings. A failure says which seed repeats it."""
    with_each(range(seeds), lambda seed: simulate(scenario, cpus=cpus, seed=seed, late=late))


def with_each(seeds: Iterable[int], program: Callable[[int], object]) -> None:
    """Run program(seed) with each. A failure says which seed repeats it."""
    for seed in seeds:
        try:
            program(seed)
        except BaseException as exc:
            exc.add_note(f"seed {seed}")
            raise
