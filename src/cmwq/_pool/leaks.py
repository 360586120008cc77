"""What a work leaves behind on its worker's thread: affinity, nice value, signal mask (B4).

Guarantees: the works of the next queue do not see it. A worker's thread is checked when the worker goes on to another
queue, and when it goes idle, but then at most once per `LEAKS_PERIOD`, because it costs system calls. What can be
undone is undone, and each kind is logged once for each queue. A lock that a work acquired and kept cannot be seen.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from cmwq._core.held import not_holding

if TYPE_CHECKING:
    from cmwq._pool.worker import Worker

_log = logging.getLogger("cmwq")

LEAKS_PERIOD = 0.05
"""Seconds at least between two checks of a worker that goes idle."""
MAX_LEAKS = 100
"""How many leaks are reported at most, each once."""


@not_holding("worker.pool.lock")
def undo_leaks(worker: Worker) -> None:
    """Restore the traits of the worker's thread. Context: the worker's thread."""
    pool, host, wanted = worker.pool, worker.pool.host, worker.traits
    found = host.traits()
    if found == wanted or found is None or wanted is None:
        return
    if found.mask is not None and found.mask != wanted.mask:
        host.set_mask(wanted.mask or ())
        _report_leak(worker, "its signal mask", undone=True)
    if found.nice is not None and wanted.nice is not None and found.nice != wanted.nice:
        _report_leak(worker, "its nice value", undone=host.set_nice(wanted.nice))
    if found.cpus is not None and found.cpus != set(pool.cpus):
        worker.bind()
        now = host.traits()
        if now is not None and now.cpus != found.cpus:  # otherwise CPUs left the pool
            _report_leak(worker, "its affinity", undone=True)
    worker.traits = host.traits()


def _report_leak(worker: Worker, what: str, *, undone: bool) -> None:
    told, leak = worker.pool.runtime.leaks, (worker.shown, what)
    if leak not in told and len(told) < MAX_LEAKS:
        told.add(leak)
        then = "it was undone" if undone else "to undo it is not permitted here"
        _log.warning("a work of queue %r changed %s and left it so on its worker's thread; %s", *leak, then)
