"""What those who look may find, and what is to follow: one table for the C look and for the Python tick.

A situation is what the sensor believes of each busy worker of a pool, and what a look finds; the decision is whether
one more worker is woken, and who counts as asleep from then on. Work waits, and one idle worker is in reserve.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Belief = Literal["running", "asleep", "in a lock"]
Doing = Literal["runs", "waits for the GIL", "waits for a lock", "sleeps", "unknown"]

US, MS = 1e-6, 1e-3
ENDED = -1.0


@dataclass(frozen=True)
class Busy:
    """One busy worker."""

    doing: Doing
    still: float = 0.0
    """For so many seconds it has not run, as far as was seen. ENDED: its thread is no more."""
    believed: Belief = "running"


@dataclass(frozen=True)
class Situation:
    what: str
    workers: tuple[Busy, ...]
    wakes: bool
    asleep: tuple[frozenset[int], ...] = (frozenset(),)
    """Who is believed asleep if one is woken; where it depends on the order in which they are seen, any of these."""
    target: int = 2
    python_leaves_it: bool = False
    """The Python tick wakes nobody, where the sentinel wakes one in vain: see the remark there."""

    def __str__(self) -> str:
        return self.what


def nobody() -> tuple[frozenset[int], ...]:
    return (frozenset(),)


def these(*workers: int) -> tuple[frozenset[int], ...]:
    return (frozenset(workers),)


def one_of(*workers: int) -> tuple[frozenset[int], ...]:
    return tuple(frozenset((worker,)) for worker in workers)


RUNS, SLEEPS, GIL = Busy("runs"), Busy("sleeps"), Busy("waits for the GIL")


def lock(still: float, believed: Belief = "running") -> Busy:
    return Busy("waits for a lock", still, believed)


SITUATIONS = (
    # The target (A3, A4).
    Situation("as many run as may", (RUNS, RUNS), False),
    Situation("more run than may", (RUNS, RUNS, RUNS), False),
    Situation("fewer run than may", (RUNS,), True),
    Situation("one of two sleeps", (SLEEPS, RUNS), True, these(0)),
    Situation("one of three sleeps", (SLEEPS, RUNS, RUNS), False, these(0)),
    Situation("all sleep", (SLEEPS, SLEEPS), True, these(0, 1)),
    Situation("all that may run sleeps", (SLEEPS,), True, these(0), target=1),
    # Believed asleep.
    Situation("a sleeper sleeps on", (Busy("sleeps", believed="asleep"), RUNS), True, these(0)),
    Situation("a sleeper runs again", (Busy("runs", believed="asleep"), RUNS), False),
    Situation("one leaves a lock and runs again", (Busy("runs", believed="in a lock"), RUNS), False),
    Situation("a sleeper waits for a lock now", (lock(0, "asleep"), RUNS), True, these(0)),
    Situation("nothing can be read of a sleeper", (Busy("unknown", believed="asleep"), RUNS), True, these(0)),
    # The GIL rule.
    Situation("one waits for the GIL", (GIL,), False),
    Situation("one waits for the GIL, another sleeps", (GIL, SLEEPS), False, these(1)),
    Situation("one waits for the GIL, another long for a lock", (GIL, lock(1.0)), False, nobody()),
    Situation("one of many waits for the GIL", (GIL, SLEEPS, RUNS), False, these(1), target=8),
    Situation("a sleeper waits for the GIL now", (Busy("waits for the GIL", believed="asleep"),), False),
    Situation(
        "a sleeper waits for the GIL, another runs",
        (Busy("waits for the GIL", believed="asleep"), RUNS),
        False,
        target=8,
    ),
    Situation(
        "one leaves a lock and waits for the GIL",
        (Busy("waits for the GIL", believed="in a lock"), RUNS),
        False,
        target=8,
    ),
    # The lasting-lock rule.
    Situation("a lock wait has just begun", (lock(0), RUNS), False, these(0)),
    Situation("a lock wait is short", (lock(49 * US), RUNS), False, these(0)),
    Situation("a lock wait has lasted", (lock(51 * US), RUNS), True, these(0)),
    Situation("nobody runs and the only lock wait has just begun", (lock(0),), True, these(0)),
    Situation("nobody runs and two lock waits have just begun", (lock(0), lock(0)), True, one_of(0, 1)),
    Situation("nobody runs and the second lock wait has lasted too", (lock(51 * US), lock(51 * US)), True, these(0, 1)),
    Situation(
        "one runs, and only one of two equal lock waits has lasted",
        (lock(60 * US), lock(60 * US), RUNS),
        True,
        one_of(0, 1),
        target=3,
    ),
    Situation(
        "one runs, and both lock waits have lasted", (lock(101 * US), lock(101 * US), RUNS), True, these(0, 1), target=3
    ),
    Situation("a young wait damps the next", (lock(1 * MS, "in a lock"), lock(99 * US), RUNS), False, these(0, 1)),
    Situation("the next has lasted all the same", (lock(1 * MS, "in a lock"), lock(101 * US), RUNS), True, these(0, 1)),
    Situation(
        "two young waits damp the next",
        (lock(1 * MS, "in a lock"), lock(2 * MS, "in a lock"), lock(149 * US), RUNS),
        False,
        these(0, 1, 2),
    ),
    Situation(
        "a wait that is no longer young damps nothing",
        (lock(11 * MS, "in a lock"), lock(51 * US), RUNS),
        True,
        these(0, 1),
    ),
    Situation("a sleeper damps nothing", (Busy("sleeps", believed="asleep"), lock(51 * US), RUNS), True, these(0, 1)),
    Situation("a young wait damps even where nobody runs", (lock(1 * MS, "in a lock"), lock(49 * US)), True, these(0)),
    Situation("a crowd comes to a lock", (lock(0),) * 50, False, one_of(*range(50))),
    # The CPU-clock rule.
    Situation("of one nothing can be read, and its clock ran", (Busy("unknown", 0),), False, target=1),
    Situation(
        "of one nothing can be read, and its clock stands for a moment",
        (Busy("unknown", 9 * MS),),
        False,
        these(0),
        target=1,
    ),
    Situation(
        "of one nothing can be read, and its clock has stood", (Busy("unknown", 11 * MS),), True, these(0), target=1
    ),
    Situation("of one nothing can be read, one sleeps", (Busy("unknown", 0), SLEEPS), True, these(1)),
    # Its worker has yet to be mourned. Till then the pool counts it, so it has no work for whoever comes.
    Situation("a thread has ended", (Busy("unknown", ENDED), RUNS), True, python_leaves_it=True),
)
