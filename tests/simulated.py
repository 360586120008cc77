"""What tests in the simulator share: a run in one call, and works whose locks are the simulator's too."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from thorough import often

import cmwq
from cmwq.testing import Simulation

Scenario = Callable[[Simulation, cmwq.Runtime], None]


def simulate(
    scenario: Scenario,
    *,
    cpus: int = 1,
    seed: int | None = None,
    late: float = 0.0,
    config: cmwq.Config | None = None,
    max_workers: int = 1024,
) -> Simulation:
    """Run scenario(sim, runtime) as the first thread of a simulation, and close the runtime."""
    sim = Simulation(cpus=cpus, seed=seed, late=late)

    def main() -> None:
        runtime = sim.runtime(config=config, max_workers=max_workers)
        scenario(sim, runtime)
        runtime.check_invariants()
        runtime.close()

    sim.run(main)
    return sim


def simulate_each(scenario: Scenario, seeds: int, *, cpus: int = 1, late: float = 0.0) -> None:
    """Under so many random interleavings, or half of them (see `thorough`). A failure says which seed repeats it."""
    number = often(seeds, min(seeds, max(10, seeds // 2)))
    with_each(range(number), lambda seed: simulate(scenario, cpus=cpus, seed=seed, late=late))


def with_each(seeds: Iterable[int | None], program: Callable[[int | None], object]) -> None:
    """Run program(seed) with each. A failure says which seed repeats it."""
    for seed in seeds:
        try:
            program(seed)
        except BaseException as exc:
            exc.add_note(f"seed {seed}")
            raise
