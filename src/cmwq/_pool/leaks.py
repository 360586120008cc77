"""What a work leaves behind on its worker's thread: affinity, nice value, signal mask (B4).

Guarantees: the works of the next queue do not see it. A worker's thread is checked when the worker goes on to another
queue, and when it goes idle, but then at most once per `LEAKS_PERIOD`, because it costs system calls. What can be
undone is undone, and each kind is logged once for each queue. A work is blamed only for what nobody else can have done:
CPUs that come and go change affinities, too. A lock that a work acquired and kept cannot be seen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cmwq._core import log
from cmwq._core.held import not_holding

if TYPE_CHECKING:
    from cmwq._pool.worker import Worker


LEAKS_PERIOD = 0.05
"""Seconds at least between two checks of a worker that goes idle."""
MAX_LEAKS = 100
"""How many leaks are reported at most, each once."""


def note_traits(worker: Worker, cpus: tuple[int, ...]) -> None:
    """Remember what the worker's thread is restored to. Its pool's CPUs were `cpus`, or came to be others meanwhile:
    then its next change of affinity is blamed on nobody. Context: the worker's thread.
    """
    traits = worker.pool.host.traits()
    worker.traits = None if traits is None else (traits, cpus)


@not_holding("worker.pool.lock")
def undo_leaks(worker: Worker) -> None:
    """Restore the traits of the worker's thread. Context: the worker's thread."""
    pool, host, remembered = worker.pool, worker.pool.host, worker.traits
    found = host.traits()
    if found is None or remembered is None:
        return
    wanted, cpus = remembered
    if found == wanted:
        return
    if found.mask is not None and found.mask != wanted.mask:
        host.set_mask(wanted.mask or ())
        _report_leak(worker, "its signal mask", undone=True)
    if found.nice is not None and wanted.nice is not None and found.nice != wanted.nice:
        _report_leak(worker, "its nice value", undone=host.set_nice(wanted.nice))
    now = pool.cpus
    if found.cpus is not None and found.cpus != set(now):
        blamed = now is cpus and _changed_by_a_work(worker)
        worker.bind()
        if blamed and host.traits() != found:  # otherwise the CPUs can't be had now
            _report_leak(worker, "its affinity", undone=True)
    note_traits(worker, now)


def _changed_by_a_work(worker: Worker) -> bool:
    """Return whether only a work can have changed the affinity of this thread, while its pool's CPUs stayed the same.

    Others who do: the runtime, when the pool's CPUs change, and the kernel, when the last CPU of a thread leaves or a
    cpuset changes. The kernel then allows all that there is. It is read before the affinity: a CPU that comes in
    between is in the second alone, and the change is thought to be the kernel's; so it is where a work allowed all.
    """
    host = worker.pool.host
    there = set(host.cpus())
    found = host.traits()
    return found is not None and found.cpus is not None and not found.cpus >= there


def _report_leak(worker: Worker, what: str, *, undone: bool) -> None:
    told, leak = worker.pool.runtime.leaks, (worker.shown[0], what)
    if leak not in told and len(told) < MAX_LEAKS:
        told.add(leak)
        then = "it was undone" if undone else "to undo it is not permitted here"
        log.warning("a work of queue %r changed %s and left it so on its worker's thread; %s", *leak, then)
