"""The rules of a pool as facts that hold whenever its lock is free. For tests: costs O(workers + places).

`_counts` and `_promises` check what other code may rely on; `_settled` checks what follows from that, and so detects a
section that forgot `settle`. The letters are those of `pool`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cmwq._core.held import holding
from cmwq._errors import InvariantError
from cmwq._pool import blocking
from cmwq._pool.policy import need_more_worker, need_rescuer

if TYPE_CHECKING:
    from cmwq._pool.pool import WorkerPool


@holding("pool.lock")
def check(pool: WorkerPool) -> None:
    """Raise InvariantError if a rule is broken."""
    for rule, holds in {**_counts(pool), **_promises(pool), **_settled(pool)}.items():
        if not holds:
            raise InvariantError(f"{rule}: {pool!r}")


@holding("pool.lock")
def _counts(pool: WorkerPool) -> dict[str, bool]:
    running, blocked, hogs = blocking.recount(pool)
    workers, active = pool.workers, blocking.recount_active(pool)
    return {
        "E1: nr_active is the recount": all(p.nr_active == active[p] for p in pool.pwqs),
        "A2: nr_running is the recount": pool.nr_running == running,
        "A2: nr_waking is the recount": pool.nr_waking == sum(w.kicked for w in workers),
        "A5: nr_blocked is the recount": pool.nr_blocked == blocked,
        "A9: nr_hogs is the recount": pool.nr_hogs == hogs,
        "A10: parents are those with children": pool.children.parents == {w for w in workers if w.below is not None},
        "A10: no other workers are remembered": pool.children.dozers <= workers
        and pool.children.strays.keys() <= workers,
        "A9: nothing is known of what nobody executes": all(w.item for w in workers if w.record is not None),
        "A9: no work in the lane was taken back": not any(item.withdrawn for item in pool.lane.items),
        "E1: who runs holds its place": all(
            w.lender is None or not w.counted or w.blocked not in (None, blocking.HOG) for w in workers
        ),
        "only who is counted is believed to block": all(w.counted for w in workers if w.blocked is not None),
        "idle workers are not counted": not any(w.counted for w in pool.idle_list),
        "idle flags agree with the idle list": {w for w in workers if w.idle} == set(pool.idle_list),
    }


@holding("pool.lock")
def _promises(pool: WorkerPool) -> dict[str, bool]:
    office = pool.office
    return {
        "A11: a held pool looks again": not pool.memory.held or pool.memory.timer is not None or pool.closing,
        "A11: nobody passes a pool that is not held": pool.memory.held or not pool.memory.passes,
        "A11: the target is 0 while memory is short": pool.target == (0 if pool.memory.held else pool.full_target),
        "B1, B2: while anything executes there is an idle worker, a manager, or a retry due": bool(
            pool.idle_list or office.taken or office.refused or pool.closing or pool.nr_waking
        )
        or not any(w.item for w in pool.workers),
        # A worker on its way wakes the next (A6).
        "A4: nobody rests while needed": not (need_more_worker(pool) and pool.idle_list and not pool.nr_waking),
        "E1: whoever waits inactive is attended to": all(p.attends or not p.inactive for p in pool.pwqs),
        "E1: nothing waits inactive while there is room": all(
            not p.inactive or p.frozen or p.nr_active >= p.max_active for p in pool.pwqs
        ),
    }


@holding("pool.lock")
def _settled(pool: WorkerPool) -> dict[str, bool]:
    return {
        "A4: not settled: the sensor knows whom to wake": pool.armed_with is pool.worker_to_arm(),
        "A10: not settled: children are looked at while work waits": not pool.children.must_look(pool)
        or pool.children.timer is not None
        or pool.closing,
        "A3: not settled: nobody naps when no work waits": bool(pool.worklist) or not pool.nappers,
        "C2: not settled: whoever can be had for the works is called": not (pool.rescued and need_rescuer(pool))
        or pool.alarms.mayday.timer is not None,
    }
