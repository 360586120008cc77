"""Real threads where no sensor matters: a runtime with the default one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from conftest import HANG

import cmwq


@pytest.fixture
def universe() -> Iterator[cmwq.Runtime]:
    """A runtime of the test's own, with the default sensor; its invariants are checked when all is done."""
    runtime = cmwq.Runtime()
    yield runtime
    runtime.check_invariants()
    runtime.close(timeout=HANG)
