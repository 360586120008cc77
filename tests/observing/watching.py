"""A fixture of the tests of the dashboard: watches that end with the test. A module asks for it by `pytest_plugins`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cmwq.observing.dashboard import sources
from cmwq.observing.dashboard.watches import Watches
from observing.standin import SHORT, Machine, Program


@pytest.fixture
def watched() -> Iterator[Callable[..., Watches]]:
    """watched(program, ...): all of them are watched, until the test ends."""
    made: list[Watches] = []

    def make(*programs: Program, machine: Machine | None = None, **options: Any) -> Watches:
        source = sources.Sockets(machine or Machine(*programs))
        found = Watches(source, SHORT, options.pop("announce", int), look=options.pop("look", SHORT))
        made.append(found)
        found.start()
        return found

    yield make
    for each in made:
        each.close()
