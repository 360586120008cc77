"""Observed: which works leave the shortest way, because somebody wants to know of them.

Guarantees: a work of which nobody wants to know pays for two looks that it takes anyway. A thread that queues looks at
the place's `gate`; a worker compares the item's phase with the last one's (`Worker.served`), and runs the item at once
if it is the same. The others leave the way at these two points:

    a work is    because                     a thread that queues              a worker
    observed     a subscription wants it     `gate`: `admit` notes it          `execute_specially` notes it
    recorded     a trace wants it            `gate`: `admit` records it        `served` is the recorder, which runs it
    measured     the place chose it          `gate`: `admit` chooses it        its phase is its own: `Measured` runs it
    refused      the queue or pool is shut   `gate`: `check_admitted` raises   -

A work may be several of these, and the order is that of `run_item`: beginning and end are noted outside of all, then it
is measured, then recorded. Beyond these two points an observed place takes a third: its `attends` sends activation to
`place`, `activate` and `attend` (`careful` keeps it set). What its works raise is counted once for each purpose, with
L held, by `note_failed`.

`gate` is set by `settle_gate` alone, with L held, and means no more than that a new work has to be looked at. Nobody
takes it for one of its four reasons; in particular `is_shut` says whether the place is shut. Who changes a reason
settles afterwards:

- `observed` and `recorder` are set by `observe`, and `chooses` by `choose_more` and `Figures.choose`, all with L held
  in the section that settles. A section that is interrupted between the two is mended, and `mend` settles.
- The queue's state is changed with Q held, by one who takes L only afterwards, to settle. The race: another settles in
  between, for a reason of its own, with L and without Q, and reads the state as it was before. The gate is then open
  for works that come before the other gets L; these it sees, because it looks for works after it had L, and then the
  gate is shut. If the other had L first, the new state was there before. Likewise with `closing`, which is set with L
  held in the section that settles.
- A queue that gets a place on another pool meanwhile: it does so with Q held, so it reads the state before the change
  or after it. If before, the place is among those that are settled.

A worker reads `observed` and `recorder` without a lock. It fears three races with `observe_places`, which changes these
first and clears every `served` then:

- The worker finds a place unobserved just before it is observed, and has it as `served` for ever. But it sets `served`
  (to the phase, or to the recorder in its place) before it reads `observed`. So either it sees the change, or `served`
  is cleared after it was set. (Without a GIL an attribute is stored under a lock of its object, so that no later read
  comes before it.)
- `served` is a recorder that the place does not have any more, because the worker read it just before the change. But
  the short way to the recorder is taken only if `served` is the recorder that the place has at that moment. A recorder
  that is put aside between that look and the end of the work still records this one work; its ring takes it.
- `served` is cleared because the place is observed, and the worker, which read the recorder before, sets it again. This
  is the first race: it reads `observed` after that, and whoever finds it set clears `served`.

`Measured` needs no such argument: it is the item's own, from before the item was listed, and no `served` equals the
phase of a later item. A worker that goes the short way to the recorder asks each phase whether it measures, so a work
that was chosen is measured, recorded or not.

The letters are those of `pool`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cmwq._core.held import holding
from cmwq._pool.events import name_of_pool, note_counts
from cmwq._pool.ring import Place, Recorder

if TYPE_CHECKING:
    from cmwq._pool.pool import WorkerPool
    from cmwq._workqueue.pwq import PoolWorkQueue


@holding("pwq.pool.lock")
def observe(pwq: PoolWorkQueue) -> None:
    """Have the works of the place observed if a subscription wants to hear of them, and recorded if a ring does; and
    only then.
    """
    pool, wq = pwq.pool, pwq.wq
    pwq.observed = observed = any(tap.watches(wq) for tap in pool.taps)
    pwq.careful = observed or pwq.frozen
    pwq.attends = pwq.careful or bool(pwq.inactive)
    rings = tuple(ring for tap in pool.taps if (ring := tap.ring) is not None)
    if rings != (() if pwq.recorder is None else pwq.recorder.rings):
        pwq.recorder = Recorder(rings, pool.host.monotonic, Place(name_of_pool(pool), wq.name)) if rings else None
    pwq.settle_gate()


@holding("pool.lock")
def observe_places(pool: WorkerPool) -> None:
    """Do as `observe` does for all places of the pool."""
    for pwq in pool.pwqs:
        observe(pwq)
    for worker in list(pool.workers):
        worker.served = None


@holding("pool.lock")
def mended(pool: WorkerPool) -> None:
    """Tell the numbers anew after the pool was mended: the interruption may have come in the middle of a note."""
    observe_places(pool)
    for tap in pool.taps:
        note_counts(pool, tap)
        tap.subscription.wake(pool.lock)
