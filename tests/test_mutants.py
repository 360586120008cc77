"""The list of mutants fits the code: `make mutants` would find out, but takes an hour, so it is run seldom."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_every_mutant_changes_one_place_and_names_tests_that_are_there() -> None:
    mutants = tomllib.loads((ROOT / "tests/mutants.toml").read_text())["mutant"]
    wrong = []
    for mutant in mutants:
        number = (ROOT / mutant["file"]).read_text().count(mutant["old"])
        if number != 1:
            wrong.append(f"{mutant['name']}: its old text occurs {number} times in {mutant['file']}")
        wrong += [
            f"{mutant['name']}: no {test}" for test in mutant["tests"] if not (ROOT / test.partition("::")[0]).exists()
        ]
    assert wrong == []
    names = [mutant["name"] for mutant in mutants]
    assert len(names) == len(set(names)) > 300
