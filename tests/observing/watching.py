"""What the tests of the dashboard share."""

from __future__ import annotations

from cmwq.observing.dashboard import watch
from cmwq.observing.dashboard.watches import Watches

SHORT = 0.01  # seconds between two pictures, so that a test need not wait


def nobody_listens() -> None:
    pass


def first(seen: Watches) -> watch.Watch:
    return seen.all()[0]
