"""Work queues under stress: flushes under constant queueing, everything racing everything on a few works, what it costs
to queue a pending work again, and up to a million delayed works.

    python bench/stress.py --seconds 60

Exit status 1 if a promise was broken; the figures are for reading.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import hashlib
import random
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import cmwq

HANG = 60.0  # seconds beyond what was asked for: only a hang takes so long
THREADS = 4
SIZES = (1_000, 10_000, 100_000, 1_000_000)
LEAD = 15e-6  # seconds per delayed work until the first fires: all are to be queued by then
SPREAD = 40e-6  # seconds per delayed work over which their times are spread

Verdict = list[str]
"""What was broken; empty: nothing."""


@contextmanager
def threads(stop: threading.Event, bodies: Iterable[Callable[[], object]]) -> Iterator[Verdict]:
    """Run these beside the block, and set `stop` at its end. What they raise, or that they hang, is in the verdict."""
    wrong: Verdict = []

    def run(body: Callable[[], object]) -> None:
        try:
            body()
        except BaseException as exc:
            wrong.append(f"{threading.current_thread().name}: {exc!r}")

    running = [threading.Thread(target=run, args=(body,), daemon=True) for body in bodies]
    for thread in running:
        thread.start()
    try:
        yield wrong
    finally:
        stop.set()
        deadline = time.monotonic() + HANG
        for thread in running:
            thread.join(max(0.0, deadline - time.monotonic()))
        if any(thread.is_alive() for thread in running):
            faulthandler.dump_traceback(all_threads=True)
            wrong.append("threads hang: see their stacks above")


def shares(seconds: Sequence[float]) -> str:
    """p50, p99 and max, in milliseconds."""
    ordered = sorted(seconds) or [0.0]
    p50, p99 = (ordered[min(len(ordered) - 1, int(share * len(ordered)))] for share in (0.5, 0.99))
    return f"p50 {p50 * 1e3:.3f} ms, p99 {p99 * 1e3:.3f} ms, max {ordered[-1] * 1e3:.3f} ms"


# --------------------------------------------------------------------------------------------------- (a)


def flush(seconds: float, runtime: cmwq.Runtime) -> Verdict:
    """Flushes while 4 threads queue without pause: each must return, and wait for all that was queued before."""
    wq = cmwq.WorkQueue("flushed", max_pending=1_000, runtime=runtime)
    stop = threading.Event()
    done = [0] * THREADS  # written under its lock
    lock = threading.Lock()
    block = bytes(50_000)

    def work(n: int) -> None:
        hashlib.sha256(block)  # about 50 us, GIL released: so that there is something to wait for
        with lock:
            done[n] += 1

    queued = [0] * THREADS  # each written by its own thread, after the queueing

    def produce(n: int) -> None:
        while not stop.is_set():
            wq.submit(work, n)
            queued[n] += 1

    durations: list[float] = []
    with threads(stop, [partial(produce, n) for n in range(THREADS)]) as wrong:
        end = time.monotonic() + seconds
        while time.monotonic() < end and not wrong:
            before = list(queued)
            start = time.monotonic()
            try:
                wq.flush(HANG)
            except cmwq.CmwqTimeout as exc:
                wrong.append(str(exc))
            durations.append(time.monotonic() - start)
            if any(ran < due for ran, due in zip(list(done), before, strict=True)):
                wrong.append(f"F1: a flush returned before what was queued earlier: {done}, {before}")
    wq.close(HANG)
    if sum(done) != sum(queued):
        wrong.append(f"{sum(queued)} queued, {sum(done)} done")
    print(f"flush under constant queueing: {len(durations)} flushes of {sum(done)} works; {shares(durations)}")
    return wrong


# --------------------------------------------------------------------------------------------------- (b)


class Raced:
    """A work that everybody queues, takes back and disables at once."""

    def __init__(self, name: str, queues: list[cmwq.WorkQueue], stop: threading.Event, seed: int) -> None:
        self.name = name
        self.queues = queues
        self.stop = stop
        self.random = random.Random(seed)  # the work's alone
        self.started = self.completed = 0
        self.inside = threading.Lock()
        self.wrong: Verdict = []
        self.work = cmwq.DelayedWork(self)

    def __call__(self) -> None:
        if not self.inside.acquire(blocking=False):
            self.wrong.append(f"E3: {self.name} runs twice at the same time")
            return
        self.started += 1
        if not self.stop.is_set():
            chance = self.random.random()
            queue = self.random.choice(self.queues)
            if chance < 0.3:
                queue.queue(self.work)
            elif chance < 0.5:
                queue.mod_delayed(self.work, self.random.choice([0, 1e-4, 1e-3]))
            elif chance < 0.55:
                self.work.cancel()
        self.completed += 1
        self.inside.release()


def race(seconds: float, runtime: cmwq.Runtime) -> Verdict:
    """cancel_sync, queue from inside and outside, mod_delayed, disable and enable, all at once on the same works."""
    queues = [
        cmwq.WorkQueue("plain", runtime=runtime),
        cmwq.WorkQueue("ordered", ordered=True, runtime=runtime),
        cmwq.WorkQueue("per CPU", scope="cpu", max_active=1, runtime=runtime),
        cmwq.WorkQueue("highpri", highpri=True, max_active=2, runtime=runtime),
    ]
    stop = threading.Event()
    raced = [Raced(f"work {n}", queues, stop, n) for n in range(6)]
    done: Counter[str] = Counter()
    lock = threading.Lock()

    def body(seed: int) -> None:
        rng = random.Random(seed)
        counts: Counter[str] = Counter()
        while not stop.is_set():
            n = rng.randrange(len(raced))
            work: Any = raced[n].work  # as far as types go, no work can be submitted
            queue = rng.choice(queues)
            delay = rng.choice([0, 1e-5, 1e-4, 1e-3, 10])
            what = rng.choice(["queue", "queue", "queue_delayed", "mod_delayed", "mod_delayed", "cancel", "cancel_sync",
                               "flush", "disable", "disable_sync", "submit"])  # fmt: skip
            counts[what] += 1
            if what == "queue":
                queue.queue(work)
            elif what == "queue_delayed":
                queue.queue_delayed(work, delay)
            elif what == "mod_delayed":
                queue.mod_delayed(work, delay)
            elif what == "cancel":
                work.cancel()
            elif what == "cancel_sync":
                work.cancel_sync(HANG)
            elif what == "flush":
                work.flush(HANG)
            elif what == "submit":
                try:
                    queue.submit(work)
                except cmwq.WorkDisabled:
                    counts["submit refused"] += 1
            else:
                if what == "disable":
                    work.disable()
                else:
                    work.disable_sync(HANG)
                    # Nobody but those who disabled it can have enabled it since, and we have not.
                    if work.pending or work.running:
                        raced[n].wrong.append(f"F6: {work!r} after disable_sync")
                work.enable()
        with lock:
            done.update(counts)

    with threads(stop, [partial(body, seed) for seed in range(THREADS)]) as wrong:
        stop.wait(seconds)
    if not wrong:
        wrong += after_the_race(raced, queues)
    print("races:", ", ".join(f"{n} {what}" for what, n in sorted(done.items())))
    print(f"    {sum(each.started for each in raced)} executions started, {sum(e.completed for e in raced)} completed")
    return wrong + [line for each in raced for line in each.wrong]


def after_the_race(raced: list[Raced], queues: list[cmwq.WorkQueue]) -> Verdict:
    """Nothing is left, and all can be used again."""
    wrong: Verdict = []
    for each in raced:
        each.work.cancel_sync(HANG)
        if each.work.pending or each.work.running or each.work.disabled or each.work.is_blocked:
            wrong.append(f"after cancel_sync: {each.work!r}")
        if each.started != each.completed:
            wrong.append(f"{each.name} started {each.started} times, completed {each.completed} times")
    for queue in queues:
        queue.flush(HANG)
        if queue.nr_pending():
            wrong.append(f"{queue.nr_pending()} works pending in {queue!r}")
        for each in raced:
            before = each.completed
            if not queue.queue(each.work):
                wrong.append(f"{each.work!r} can't be queued any more")
            queue.flush(HANG)
            if each.completed != before + 1:
                wrong.append(f"{each.work!r} was queued to {queue!r} and did not run")
    for queue in queues:
        queue.close(HANG)
    return wrong


# --------------------------------------------------------------------------------------------------- (c)


def coalesce(seconds: float, runtime: cmwq.Runtime) -> Verdict:
    """Queueing a pending work again, against a dict entry written under a lock: alternating rounds, medians."""
    calls = 100_000
    gate = threading.Event()
    wq = cmwq.WorkQueue("coalescing", max_active=1, runtime=runtime)
    wq.submit(gate.wait)
    work = cmwq.Work(int)
    wq.queue(work)
    lock = threading.Lock()
    pending: dict[str, object] = {}

    def again() -> None:
        queue = wq.queue
        for _ in range(calls):
            queue(work)

    def by_hand() -> None:
        for _ in range(calls):
            with lock:
                pending["key"] = work

    figures: dict[str, list[float]] = {"queue": [], "dict": []}
    end = time.monotonic() + min(seconds, 10)
    while time.monotonic() < end or len(figures["dict"]) < 3:
        for name, what in (("queue", again), ("dict", by_hand)):
            start = time.perf_counter()
            what()
            figures[name].append((time.perf_counter() - start) / calls)
    wrong = [] if work.pending else ["the pending work ran though its queue was full"]
    gate.set()
    wq.close(HANG)
    queue_ns, dict_ns = (statistics.median(figures[name]) * 1e9 for name in ("queue", "dict"))
    print(
        f"queueing a pending work again: {queue_ns:.0f} ns; `with lock: d[k] = v`: {dict_ns:.0f} ns; "
        f"ratio {queue_ns / dict_ns:.2f} (medians of {len(figures['dict'])} rounds)"
    )
    return wrong


# --------------------------------------------------------------------------------------------------- (d)


def delayed(number: int, runtime: cmwq.Runtime) -> Verdict:
    """So many delayed works with random delays: what each costs, that they run in order of time and none too early."""
    rng = random.Random(number)
    wq = cmwq.WorkQueue(f"{number} delayed", ordered=True, runtime=runtime)
    ran: list[tuple[int, float]] = []
    now = time.monotonic

    def fire(n: int) -> None:
        ran.append((n, now()))

    lead, spread = 0.05 + number * LEAD, number * SPREAD
    works = [cmwq.DelayedWork(fire, n) for n in range(number)]
    delays = [lead + rng.random() * spread for _ in range(number)]
    times = [0.0] * (number + 1)
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()  # its passes over a million objects are not the timers' cost
    try:
        queue_delayed = wq.queue_delayed
        for n in range(number):
            times[n] = now()
            queue_delayed(works[n], delays[n])
        times[number] = now()
    finally:
        if collecting:
            gc.enable()
    last = min(number, 1_000)
    each = (times[-1] - times[0]) / number * 1e9
    at_end = statistics.median(times[n + 1] - times[n] for n in range(number - last, number)) * 1e9

    wrong: Verdict = []
    finished = threading.Event()
    end = cmwq.DelayedWork(finished.set)
    wq.queue_delayed(end, lead + spread)
    if not finished.wait(lead + spread + HANG + number * 1e-3):
        wrong.append("the last delayed work did not fire")
    wq.close(HANG)
    if len(ran) != number or len({n for n, _ in ran}) != number:
        wrong.append(f"{number} delayed works queued, {len(ran)} ran")
    # A work's time is known but for the duration of its queueing.
    latest = float("-inf")
    disorder = 0
    for n, _ in ran:
        disorder += times[n + 1] + delays[n] < latest
        latest = max(latest, times[n] + delays[n])
    if disorder:
        wrong.append(f"F9: {disorder} of {number} delayed works ran after one that was due later")
    late = [at - (times[n] + delays[n]) for n, at in ran]
    if late and min(late) < 0:
        wrong.append(f"F9: one ran {-min(late)} s too early")
    print(
        f"{number:>9,} delayed works: {each:.0f} ns each, median of the last {last}: {at_end:.0f} ns; "
        f"in order of time: {'no' if disorder else 'yes'}; late by {shares(late)}",
        flush=True,
    )
    return wrong


def timers(seconds: float, runtime: cmwq.Runtime, sizes: Sequence[int] = SIZES) -> Verdict:
    return [line for number in sizes for line in delayed(number, runtime)]


KINDS: dict[str, Callable[..., Verdict]] = {"flush": flush, "race": race, "coalesce": coalesce, "timers": timers}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="for flush and race each (default 60)")
    parser.add_argument("--only", action="append", choices=list(KINDS), help="repeatable; default: all")
    parser.add_argument("--sensor", help="as in CMWQ_SENSOR")
    options = parser.parse_args()
    gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    print(f"Python {sys.version.split()[0]}{'' if gil else ' free-threaded'}")
    wrong: Verdict = []
    for name in options.only or KINDS:
        arguments: Any = {} if options.sensor is None else {"sensor": options.sensor}
        runtime = cmwq.Runtime(**arguments)
        found = KINDS[name](options.seconds, runtime)
        if not found:  # else works may hang
            runtime.check_invariants()
            runtime.close(HANG)
        wrong += found
        sys.stdout.flush()
    for line in wrong:
        print("BROKEN:", line)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
