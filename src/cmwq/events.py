"""What happens in the pools, to be observed: works queued, started and ended; workers woken, blocked, created.

    with cmwq.events.subscribe(print, kinds=["started", "ended"], queue=queue):
        ...

`docs/events.md` tells more. Importing it starts nothing, and where nobody subscribes nothing is paid for it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from cmwq._core import checks
from cmwq._pool.events import Counts, Event, Kind
from cmwq._workqueue.runtime import default_runtime
from cmwq._workqueue.subscriptions import ALWAYS, LIMIT, Subscription

if TYPE_CHECKING:
    from cmwq._workqueue.queue import WorkQueue
    from cmwq._workqueue.runtime import Runtime

__all__ = ["Counts", "Event", "Kind", "Subscription", "subscribe"]


def subscribe(
    callback: Callable[[Event], object] | None = None,
    *,
    kinds: Collection[Kind | str] | None = None,
    queue: WorkQueue | None = None,
    runtime: Runtime | None = None,
    limit: int = LIMIT,
    where: bool = False,
) -> Subscription:
    """Hear of what happens from now on: in a runtime (default: the process's own), or with the works of one queue.

    callback: called as callback(event), on a thread of its own, so it may do anything: queue works, wait for them,
    close this subscription, close the runtime. What it raises is logged; after 10 times in a row it is called no more.
    Without one, events are taken by `get`, `take`, or by iterating.

    kinds: only those, by `Kind` or by name (default: all). queue: only what happens with its works and their workers,
    not what happens to the pools: no `COUNTS`, `CREATED` and the like. limit: events that are kept until they are
    taken; those that come when so many are there are lost, and an event `LOST` says so. where: look up what a blocked
    worker waits for in the system, when the event is taken; that costs two files read for each.

    While somebody hears of its works, a queue's works cost a few microseconds more each. An observer that queues works
    to what it observes hears of those, too. Starts no pool. Raises ThreadLimit if a callback can't have its thread;
    TypeError, ValueError for what can't be subscribed to. Thread-safe.
    """
    if callback is not None:
        checks.function("callback", callback)
    limit = checks.integer("limit", limit, 1)
    checks.flag("where", where)
    wanted = frozenset(Kind) if kinds is None else frozenset(map(_kind, kinds)) | ALWAYS
    if runtime is None:
        runtime = default_runtime() if queue is None else queue.runtime
    elif queue is not None and queue.runtime is not runtime:
        raise ValueError(f"queue {queue.name!r} is another runtime's")
    subscription = Subscription(runtime.events, callback, wanted, queue, limit, where)
    runtime.events.add(subscription)
    return subscription


def _kind(kind: Kind | str) -> Kind:
    try:
        return Kind(kind)
    except ValueError:
        raise ValueError(f"{kind!r} is no kind of event; there are {', '.join(Kind)}") from None
