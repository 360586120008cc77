"""What happens in the pools, to be observed: works queued, started and ended; workers woken, blocked, created.

    with cmwq.events.subscribe(print, kinds=["started", "ended"], queue=queue):
        ...

`docs/events.md` tells more. Importing it starts nothing, and where nobody subscribes nothing is paid for it.
"""

from __future__ import annotations

from cmwq._core.events import Counts, Event, Kind
from cmwq._core.subscriptions import Subscription, subscribe

__all__ = ["Counts", "Event", "Kind", "Subscription", "subscribe"]
