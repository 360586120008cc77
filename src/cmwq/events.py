"""Observe what happens in the pools: works are queued, started and ended; workers are woken, blocked and created.

    with cmwq.events.subscribe(print, kinds=["started", "ended"], queue=queue):
        ...

`docs/events.md` describes the events. Importing this module starts nothing. Without a subscriber events cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING

from cmwq._core import checks
from cmwq._pool.events import Counts, Event, Kind
from cmwq._workqueue.options import checked_runtime
from cmwq._workqueue.queue import WorkQueue
from cmwq._workqueue.subscriptions import ALWAYS, LIMIT, Subscription

if TYPE_CHECKING:
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
    """Subscribe to what happens from now on: in a runtime (default: the process's own), or with the works of one queue.

    callback: called as callback(event) on a thread of its own, so it may do anything: queue works, wait for them, close
        this subscription, close the runtime. What it raises is logged; after 10 failures in a row it is not called any
        more. Without a callback, take events by `get`, by `take`, or by iterating.
    kinds: deliver only these, given as `Kind` or by name (default: all).
    queue: deliver only what happens with the works of this queue and with the workers that run them, not what happens
        to the pools: no `COUNTS`, `CREATED` and the like.
    limit: how many events are kept until they are taken. An event that comes when so many are kept is lost, and an
        event `LOST` reports that.
    where: look up in the system what a blocked worker waits for, at the moment the event is taken. This reads two files
        for each such event.

    While somebody observes the works of a queue, each of them costs a few microseconds more. An observer that queues
    works to the queue it observes also receives their events. It starts no pool. Raises ThreadLimit if no thread can be
    had for the callback; TypeError or ValueError for an argument of the wrong type or value. Thread-safe.
    """
    if callback is not None:
        checks.function("callback", callback)
    limit = checks.integer("limit", limit, 1)
    checks.flag("where", where)
    if queue is not None:
        checks.instance("queue", queue, WorkQueue)
    wanted = frozenset(Kind) if kinds is None else _kinds(kinds) | ALWAYS
    runtime = queue.runtime if runtime is None and queue is not None else checked_runtime(runtime)
    if queue is not None and queue.runtime is not runtime:
        raise ValueError(f"queue {queue.name!r} is another runtime's")
    subscription = Subscription(runtime.events, callback, wanted, queue, limit, where)
    runtime.events.add(subscription)
    return subscription


def _kinds(kinds: Collection[Kind | str]) -> frozenset[Kind]:
    if isinstance(kinds, str) or not isinstance(kinds, Iterable):
        raise TypeError(f"kinds is {checks.shown(kinds)}, and must be a collection of names: ['started']")
    return frozenset(map(_kind, kinds))


def _kind(kind: Kind | str) -> Kind:
    try:
        return Kind(kind)
    except ValueError:
        raise ValueError(f"{kind!r} is no kind of event; there are {', '.join(Kind)}") from None
