"""A runtime of the test's own, as the tests of queues have it."""

from __future__ import annotations

from queues.conftest import universe

__all__ = ["universe"]
