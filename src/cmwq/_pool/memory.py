"""Memory (A11): while it is short nobody new is started, as long as one runs.

Works that allocate much must not all run at once just because they sleep. So a worker that was woken while others of
the pool execute first asks how much memory is left, if that is due. When there is too little for one more work, it
rests again, and the pool is *held*: nobody is woken (`policy.need_more_worker`), and whoever ends a work while another
runs rests. A timer asks again and again while work waits, and lets go of the pool when there is room.

Guarantees
- At least one work runs: a pool in which nobody executes anything is not held, nor one in which all that execute wait
  for works with calls of ours. If no work ends in a held pool for `VALVE` seconds, and none runs, one more begins, the
  next after twice as long, and so on: works may wait for one another in ways that nobody sees.
- The system is asked only while work waits and others run: by a worker that was woken, when as many run as may before
  the next look; and otherwise at most every `OFTEN` seconds, the more seldom the more is left, mostly by the timer that
  looks for hogs. So where works follow one another a wake-up pays for it with two comparisons. (To ask takes 0.1 ms,
  and the work that is to begin would wait for it.)
- Where nothing is known of memory, nothing is held.

How much one more work needs is learned: what is used beyond what was used when next to nothing ran, divided by the
works that ran at the last look. Between two looks at most twice as many run at a time as ran at the first of them, or
the target more: so those whose need was not seen yet are never more than those of which it was. Who takes the place of
a work that has ended takes its memory, too, and needs no look. Should it need more: that cannot be allocated any faster
than `FAST`, so the next look, which the clock decides, comes in time. The letters are those of `pool`.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from math import inf
from typing import TYPE_CHECKING

from cmwq._core.held import holding, outside
from cmwq._errors import ThreadLimit
from cmwq._pool import policy
from cmwq._pool.alarm import Alarm
from cmwq._pool.lending import waits_for_works

if TYPE_CHECKING:
    from cmwq._core.ports import Memory
    from cmwq._pool.pool import WorkerPool

OFTEN = 5e-3
"""Seconds between two looks at least."""
SELDOM = 0.25
"""Seconds between two looks at most, while workers are woken."""
FAST = 8e9
"""Bytes per second: with so much left for each second, the next look may wait that long. Threads can allocate a quarter
of that."""
SPARE = 0.05
"""The share of the limit that is left free."""
RECHECK = 20e-3
"""Seconds between two looks at a held pool."""
VALVE = 1.0
"""Seconds after which one more work begins in a held pool in which none has ended."""
FORGET = 0.95
"""What is left, after one more look, of what works were seen to need."""
MOST_SPARE = 128e6
"""Bytes that are left free at most."""
LONGEST_VALVE = 64.0
"""Seconds for which the valve stays shut at most."""


class Gate(Alarm):
    """What one pool knows of memory. The alarm is set while the pool is held."""

    __slots__ = (
        "_base", "_each", "_valve_at", "_valve_pause", "begun", "completed", "due", "held", "most", "passes", "ran",
        "view",
    )  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.held = False  # L: memory is short
        self.view: Memory | None = None  # L: what was seen at the last look
        self.most = 0  # L: when so many works run, the next look is due
        self.due = 0.0  # L: when the next look is due at the latest, on the host's clock
        self.begun = 0  # L: how many have begun since the last look, and may not have allocated yet
        self.ran = 0  # L: how many works ran at the last look
        self.passes = 0  # L: so many may begin although the pool is held
        self.completed = 0  # L: how many works had ended when the valve was shut
        self._base = inf  # L: bytes used when next to nothing ran
        self._each = 0.0  # L: bytes that a work needs, as far as is known
        self._valve_at = 0.0  # L: when the valve opens
        self._valve_pause = VALVE  # L

    @holding("pool.lock")
    def note(self, pool: WorkerPool, seen: Memory | None) -> bool:
        """Note what was seen, and decide how many may run until the next look. Returns whether there is too little for
        one more work.
        """
        now, ran = pool.host.monotonic(), policy.nr_executing(pool)
        self.view = seen
        if seen is None:
            self.most, self.due = 1 << 30, inf
            return False
        self._base = max(0, seen.used - ran * self._each) if ran <= 1 else min(self._base, seen.used)
        self._each = max((seen.used - self._base) / max(1, self.ran), FORGET * self._each)
        left = seen.limit - seen.used - min(SPARE * seen.limit, MOST_SPARE) - min(self.begun, ran) * self._each
        self.begun = 0
        more = max(ran, pool.full_target)
        room = 0 if left <= 0 else more if left >= self._each * more else int(left / self._each)
        self.ran, self.most, self.due = ran, ran + room, now + min(max(left / FAST, OFTEN), SELDOM)
        return room <= 0

    @holding("pool.lock")
    def open_valve(self, pool: WorkerPool) -> bool:
        """Return whether one more work has to begin although memory is short, for none ends."""
        now, executing = pool.host.monotonic(), [w for w in pool.workers if w.item is not None]
        if all(waits_for_works(worker) for worker in executing):
            return True
        if pool.nr_completed != self.completed or pool.nr_running > pool.nr_waking or pool.nr_hogs:
            self.shut_valve(pool)
            return False
        if now < self._valve_at:
            return False
        self._valve_pause = min(2 * self._valve_pause, LONGEST_VALVE)
        self._valve_at = now + self._valve_pause
        return True

    @holding("pool.lock")
    def shut_valve(self, pool: WorkerPool) -> None:
        """The pool is held from now on, or goes on by itself."""
        self.completed, self._valve_pause = pool.nr_completed, VALVE
        self._valve_at = pool.host.monotonic() + VALVE


@holding("pool.lock")
def must_rest(pool: WorkerPool) -> bool:
    """Return whether memory is too short for one more work. The lock may be released and retaken. Context: a worker
    that was woken, and counts as on its way.
    """
    gate, executing = pool.memory, policy.nr_executing(pool)
    if executing <= 0:
        return False
    if gate.passes:
        gate.passes -= 1
        return False
    if not gate.held and (executing >= gate.most or pool.host.monotonic() >= gate.due):
        pool.lock.release()
        seen = pool.host.memory()
        pool.lock.acquire()
        _take_in(pool, seen)
    if gate.held and policy.nr_executing(pool) > 0:
        return True
    gate.begun += 1
    return False


@outside
def look_if_due(pool: WorkerPool) -> None:
    """Look whether memory is short, if that is due: workers that go on from work to work are not woken, and do not ask.
    Context: the timer, while work waits.
    """
    gate = pool.memory
    with pool.lock:
        if gate.held or policy.nr_executing(pool) <= 0 or pool.host.monotonic() < gate.due:
            return
    seen = pool.host.memory()
    with pool.lock:
        _take_in(pool, seen)
        pool.settle()


@holding("pool.lock")
def _take_in(pool: WorkerPool, seen: Memory | None) -> None:
    """Note what was seen, and hold the pool if that is too little. If another look has held it meanwhile, the alarm
    that it has set looks again.
    """
    if not pool.memory.held and pool.memory.note(pool, seen):
        _hold(pool)


@holding("pool.lock")
def _hold(pool: WorkerPool) -> None:
    """Memory is short: nobody new is started as long as one runs."""
    pool.memory.held = True
    pool.memory.shut_valve(pool)
    pool.set_target(pool.full_target)
    _look_later(pool)


@holding("pool.lock")
def _let_go(pool: WorkerPool) -> None:
    """Memory is not short any more, or no work waits."""
    pool.memory.held = False
    pool.memory.passes = 0  # one that nobody used would be another's when memory is short again
    pool.set_target(pool.full_target)


@holding("pool.lock")
def _look_later(pool: WorkerPool) -> None:
    """Set the alarm. Context: it is not set."""
    if not pool.closing:
        with suppress(ThreadLimit):  # never, once the runtime has begun
            pool.memory.set(pool.host, RECHECK, partial(check, pool))


@outside
def check(pool: WorkerPool) -> None:
    """Look whether there is room again. Context: the timer."""
    gate, seen = pool.memory, pool.host.memory()
    with pool.lock:
        gate.cancel()
        if not gate.held:
            return
        is_short = gate.note(pool, seen)
        if not is_short or not pool.nr_listed():
            _let_go(pool)
        else:
            gate.passes = int(gate.open_valve(pool))
            _look_later(pool)
        pool.kick()
        pool.settle()
