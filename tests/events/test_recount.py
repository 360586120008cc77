"""H2: what is observed adds up to what happened, in every random program of the simulator, after every step."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import test_hotplug
import test_interleavings
import test_rescuer
from simulated import with_each
from thorough import often

from events.recount import observed

SEEDS_PER_TEST = 25


def run_observed(program: Callable[[int], object]) -> Callable[[int | None], None]:
    def run(seed: int | None) -> None:
        assert seed is not None
        with observed() as observers:
            program(seed)
        for observer in observers:
            observer.look_at_rest()

    return run


@pytest.mark.parametrize("first", range(0, often(300, 100), SEEDS_PER_TEST))
def test_H2_interleavings_add_up(first: int) -> None:
    with_each(range(first, first + SEEDS_PER_TEST), run_observed(test_interleavings.run_program))


@pytest.mark.parametrize("first", range(0, often(50, 25), SEEDS_PER_TEST))
def test_H2_interleavings_with_threads_refused_add_up(first: int) -> None:
    with_each(range(first, first + SEEDS_PER_TEST), run_observed(test_rescuer.program))


@pytest.mark.parametrize("first", range(0, often(50, 25), SEEDS_PER_TEST))
def test_H2_interleavings_while_cpus_come_and_go_add_up(first: int) -> None:
    with_each(range(first, first + SEEDS_PER_TEST), run_observed(test_hotplug.program))
