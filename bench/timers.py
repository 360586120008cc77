"""What a timer costs, whether a million of them fire in order, and how late they are.

Its one job: measure `_host/timers.py`. Three parts. *Cost*: heaps of 10^3 to 10^6 timers, without the thread and on a
clock that stands still, so that nothing but the calls is measured; O(log n) shows as a few more nanoseconds per factor
of ten. (To push at random is O(1) on average: hence the column "earliest", in which each timer is earlier than all.)
"move" is a cancel and a call_later, with its share of the compactions. *Order*: a million timers on the real thread.
*Lateness*: few timers, well apart, so that none waits for another.
"""

from __future__ import annotations

import argparse
import platform
import random
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from operator import itemgetter

from cmwq._host import ThreadHost
from cmwq._host.timers import Timer, Timers

FAR = 1e6  # seconds: none of these fires by itself
HANG = 600.0


class StandingClock:
    """Stands still at `now` until `run` is called, then goes on from there."""

    def __init__(self, now: float) -> None:
        self.now = now
        self.behind: float | None = None

    def __call__(self) -> float:
        return self.now if self.behind is None else time.monotonic() - self.behind

    def run(self) -> None:
        self.behind = time.monotonic() - self.now


class Nobody:
    """In place of the thread."""

    def join(self, timeout: float | None = None) -> None: ...


def nothing() -> None: ...


def nanoseconds(calls: int, body: Callable[[], object]) -> float:
    start = time.perf_counter_ns()
    body()
    return (time.perf_counter_ns() - start) / calls


def cost(size: int, chosen: random.Random) -> dict[str, float]:
    """Nanoseconds per call with so many timers on the heap, give or take a fifth."""
    calls = min(10_000, max(1, size // 10))
    clock = StandingClock(0.0)
    timers = Timers(lambda name, body: Nobody(), clock)

    def delays(number: int = calls) -> list[float]:
        return [FAR * (1 + chosen.random()) for _ in range(number)]

    def push(delays: list[float]) -> list[Timer]:
        return [timers.call_later(delay, nothing) for delay in delays]

    def move(delays: list[float]) -> None:
        for n, delay in enumerate(delays):
            made[n % calls].cancel()
            made[n % calls] = timers.call_later(delay, nothing)

    def cancel(made: list[Timer]) -> None:
        for timer in made:
            timer.cancel()

    for _ in range(size):
        timers.call_later(FAR * (1 + chosen.random()), nothing)
    figures: dict[str, float] = {}
    made: list[Timer] = []

    def push_and_keep(delays: list[float]) -> None:
        made[:] = push(delays)

    figures["random"] = nanoseconds(calls, partial(push_and_keep, delays()))
    # So many that several compactions are among them.
    moves = 3 * size
    figures["move"] = nanoseconds(moves, partial(move, delays(moves)))
    figures["earliest"] = nanoseconds(calls, partial(push, [FAR / 2 - n for n in range(calls)]))
    clock.now = FAR / 2
    figures["fire"] = nanoseconds(calls, timers.fire_due)
    figures["cancel"] = nanoseconds(calls, partial(cancel, made))
    return figures


def compaction(size: int, chosen: random.Random) -> float:
    """Milliseconds for which the lock is held when half of so many timers were cancelled."""
    timers = Timers(lambda name, body: Nobody(), StandingClock(0.0))
    made = [timers.call_later(chosen.random(), nothing) for _ in range(size)]
    chosen.shuffle(made)
    for timer in made[: size // 2]:
        timer.cancel()
    before = len(timers._heap)
    took = nanoseconds(1, made[size // 2].cancel) / 1e6
    assert len(timers._heap) < before, "nothing was compacted"
    return took


@contextmanager
def running(clock: Callable[[], float] = time.monotonic) -> Iterator[Timers]:
    timers = Timers(ThreadHost().spawn, clock)
    timers.start()
    try:
        yield timers
    finally:
        timers.close()


def in_order(number: int, chosen: random.Random) -> tuple[float, bool]:
    """Seconds until all have fired, the first of them due after 1 s; and whether they did so in order."""
    fired: list[int] = []
    done = threading.Event()
    # 100 microseconds apart at the finest: many fall on one instant, and have to keep the order they were made in.
    delays = [1 + chosen.randrange(20_000) / 10_000 for _ in range(number)]
    clock = StandingClock(time.monotonic())
    with running(clock) as timers:
        for name, delay in enumerate(delays):
            timers.call_later(delay, partial(fired.append, name))
        timers.call_later(3, done.set)
        clock.run()
        start = time.monotonic()
        # The thread sleeps by the standing clock: it looks again at once.
        timers.call_later(0, nothing)
        if not done.wait(HANG):
            raise TimeoutError(f"{len(fired)} of {number} timers fired within {HANG:g} s")
        took = time.monotonic() - start
    expected = [name for name, _ in sorted(enumerate(delays), key=itemgetter(1))]
    return took, fired == expected


def lateness(number: int, seconds: float, chosen: random.Random) -> list[float]:
    """Microseconds from when each timer was due to the first line of its fn, in ascending order."""
    late: list[float] = []
    done = threading.Event()

    def fn(due: float) -> None:
        late.append((time.monotonic() - due) * 1e6)
        if len(late) == number:
            done.set()

    with running() as timers:
        for n in chosen.sample(range(number), number):
            delay = 0.1 + seconds * (n + chosen.random()) / number
            timers.call_later(delay, partial(fn, time.monotonic() + delay))
        if not done.wait(seconds + HANG):
            raise TimeoutError(f"{len(late)} of {number} timers fired")
    return sorted(late)


def percentile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--most", type=int, default=1_000_000, help="timers in the largest heap (default 1000000)")
    parser.add_argument("--paced", type=int, default=2_000, help="timers whose lateness is measured (default 2000)")
    parser.add_argument("--seconds", type=float, default=2.0, help="over which those are spread (default 2)")
    parser.add_argument("--rounds", type=int, default=3, help="of the cost figures; medians are printed")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if min(options.most, options.paced, options.rounds) < 1 or options.seconds <= 0:
        parser.error("--most, --paced, --rounds and --seconds must be positive")
    chosen = random.Random(options.seed)
    gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    print(f"Python {platform.python_version()}{'' if gil else ' free-threaded'}, seed {options.seed}")

    print(f"\ncost, nanoseconds per call, median of {options.rounds} rounds")
    columns = "random", "earliest", "move", "cancel", "fire"
    print(f"{'timers':>9} " + " ".join(f"{column:>9}" for column in columns))
    sizes = [size for size in (10**3, 10**4, 10**5, 10**6) if size < options.most] + [options.most]
    for size in sizes:
        rounds = [cost(size, chosen) for _ in range(options.rounds)]
        figures = {column: statistics.median(figures[column] for figures in rounds) for column in columns}
        print(f"{size:>9} " + " ".join(f"{figures[column]:>9.0f}" for column in columns), flush=True)
    held = compaction(options.most, chosen)
    print(f"compaction of {options.most} timers: {held:.0f} ms, once in half as many cancels")

    took, ordered = in_order(options.most, chosen)
    print(f"\n{options.most} timers due within 2 s after 1 s: all fired after {took:.1f} s, ", end="")
    print("in order" if ordered else "NOT IN ORDER", flush=True)

    late = lateness(options.paced, options.seconds, chosen)
    print(f"\nlateness of {options.paced} timers over {options.seconds:g} s, microseconds")
    for name, share in {"p50": 0.5, "p90": 0.9, "p99": 0.99}.items():
        print(f"{name:>9} {percentile(late, share):>9.0f}")
    print(f"{'max':>9} {late[-1]:>9.0f}")
    return 0 if ordered else 1


if __name__ == "__main__":
    sys.exit(main())
