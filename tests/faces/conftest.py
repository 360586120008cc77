"""The faces are the same on every sensor: one runtime of the test's own, with whichever is the best here."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from conftest import HANG

import cmwq


@pytest.fixture
def runtime() -> Iterator[cmwq.Runtime]:
    runtime = cmwq.Runtime()
    yield runtime
    runtime.check_invariants()
    runtime.close(timeout=HANG)
