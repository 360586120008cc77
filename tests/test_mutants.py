"""The list of mutants fits the code: `make mutants` would find out, but takes an hour, so it is run seldom."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType


def test_every_mutant_changes_one_place_and_names_tests_that_are_there(tool: Callable[[str], ModuleType]) -> None:
    mutate = tool("mutate")
    mutants = mutate.load(mutate.LIST)  # no two of one name
    wrong = []
    for mutant in mutants:
        try:
            mutant.applied()
        except mutate.BadMutant as error:
            wrong.append(str(error))
        wrong += [f"{mutant.name}: no {test}" for test in mutant.tests if not mutate.exists(test)]
    assert wrong == []
    assert len(mutants) > 300
