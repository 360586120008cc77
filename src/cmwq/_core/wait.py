"""How a thread waits for a work to end, whether it is a worker or not.

Guarantees: a worker that waits is known to be blocked at once (A4), and lends its work's place under `max_active`, so
waits nested to any depth do not deadlock for want of places. Ctrl-C interrupts the wait in the main thread (F8).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from cmwq._core.worker import blocking, current_worker

if TYPE_CHECKING:
    from cmwq._core.ports import Host, Parker


def wait_until(done: Callable[[], bool], parker: Parker, host: Host, deadline: float | None) -> bool:
    """Park until done(). False: the deadline, on the host's clock, passed before.  Context: no lock held.

    Whoever makes done() true unparks `parker` afterwards.
    """
    worker = current_worker()
    if worker is None:
        return _park_until(done, parker, host, deadline)
    lender = worker.item.pwq if worker.item is not None else None
    if lender is not None:
        lender.lend()
    try:
        with blocking():
            return _park_until(done, parker, host, deadline)
    finally:
        if lender is not None:
            lender.take_back()


def _park_until(done: Callable[[], bool], parker: Parker, host: Host, deadline: float | None) -> bool:
    while not done():
        if deadline is None:
            parker.park()
        elif (left := deadline - host.monotonic()) > 0:
            parker.park(left)
        else:
            return False
    return True
