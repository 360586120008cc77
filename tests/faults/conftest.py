"""Tests against real faults: of threads, CPUs, quotas, and time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .machine import Machine


@pytest.fixture
def machine() -> Iterator[Machine]:
    machine = Machine()
    try:
        yield machine
    finally:
        machine.close()
