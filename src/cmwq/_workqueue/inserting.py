"""Inserting: how an item is handed to a pool, through the queue's place there.

Guarantees: an item is listed if `max_active` allows, else it waits in order (E1); and a worker is woken if one is
needed (A4). What is refused is in no list. `insert` is on the path of every work. The letters are those of `pool`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import TYPE_CHECKING, Any

from cmwq._errors import REFUSALS, own

if TYPE_CHECKING:
    from cmwq._workqueue.future import Future
    from cmwq._workqueue.phase import Phase
    from cmwq._workqueue.pwq import PoolWorkQueue
    from cmwq._workqueue.queued import Queued


def insert(pwq: PoolWorkQueue, item: Future[Any] | Queued) -> None:
    """Hand an item to the pool: list it if `max_active` allows (E1), and wake a worker if one is needed (A4).

    Raises QueueClosed. Raises Reentered if this thread is in the middle of a critical section.
    """
    pool = pwq.pool
    with pool.lock:
        phase = pwq.phase
        if pwq.gate:
            pwq.check_admitted(item)
            item.phase = pwq.admit(item)
        else:
            item.phase = phase
        phase.queued += 1
        # The code of `place` is repeated here, because every work comes this way.
        if pwq.inactive:
            pwq.inactive.append(item)
            return
        if pwq.attends or pwq.nr_active >= pwq.max_active:
            pwq.place(item)
            if pwq.inactive:
                return
        else:
            pwq.nr_active += 1
            pool.worklist.append(item)
        if pool.armed_with is not None and pool.nr_running >= pool.target:
            return  # A3: nobody is woken, and the sensor is armed already
        pool.kick_or_settle()


def insert_many(pwq: PoolWorkQueue, items: Sequence[Future[Any]]) -> None:
    """As `insert`, for all items or none, in one critical section. The wake chain (A6) wakes as many workers as are
    needed.
    """
    pool = pwq.pool
    with pool.lock:
        phase = pwq.phase
        if pwq.gate:
            for item in items:
                pwq.check_admitted(item)  # before anybody hears of one
        phases: Iterable[Phase] = map(pwq.admit, items) if pwq.gate else repeat(phase)
        for item, its_phase in zip(items, phases, strict=False):
            item.phase = its_phase
        phase.queued += len(items)
        pwq.place_many(items)
        pool.kick_or_settle()


def insert_later(pwq: PoolWorkQueue, item: Future[Any]) -> None:
    """Insert the item as soon as this thread has left the critical section that its call has interrupted (F10).

    Raises QueueClosed if the queue does not take the item now. If the queue refuses it later, only its future can tell.
    """
    pwq.check_admitted(item)
    item.accepted = True  # let it in even if the queue drains or closes by then

    def insert_now() -> None:
        if item.phase is not pwq.outside or item.withdrawn:
            return  # it was inserted by a call that was interrupted, or taken back meanwhile
        try:
            insert(pwq, item)
        except REFUSALS as exc:
            own(exc)
            item.refuse(exc)

    pwq.pool.host.defer(insert_now)
