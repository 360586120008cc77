"""The faces are the same on every sensor: one runtime of the test's own, with whichever is the best here."""

from __future__ import annotations

import pytest

import cmwq


@pytest.fixture
def runtime(universe: cmwq.Runtime) -> cmwq.Runtime:
    return universe
