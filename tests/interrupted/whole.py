"""What it means that everything is whole, as checks. Each ends within a bounded time, or its caller's watchdog says so.

By public names only, and `Runtime.check_invariants()`: the harness is to judge every implementation alike. A check
never waits for time to pass: it looks until a fact holds, and a limit that only a hang or a loss reaches turns that
into words.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import cmwq

PATIENCE = 20.0  # seconds: only a hang or a loss takes so long
IMPATIENCE = 0.3  # once an operation is known to be broken, so that the rest of the table comes soon
LONG = 3600.0  # seconds: of delays that never end by themselves


class Broken(Exception):
    """Something is not whole."""


class Call:
    """What is submitted or queued: it counts how often it ran."""

    def __init__(self, limit: int = 1) -> None:
        self.runs: list[None] = []  # each change is atomic
        self.limit = limit

    def __repr__(self) -> str:
        return "a call"

    def __call__(self, *args: object, **kwargs: object) -> int:
        self.runs.append(None)
        return len(args)


class Flag:
    """What one thread sets and one other waits for.

    An `Event` is not whole after a Ctrl-C in the middle of its `set` or `wait`, and the harness must be.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def set(self) -> None:
        with suppress(RuntimeError):  # it is set
            self._lock.release()

    def wait(self, timeout: float = -1) -> bool:
        return self._lock.acquire(timeout=timeout)


class Gate:
    """A call that holds its worker until it is opened, known to be blocked at once."""

    def __init__(self) -> None:
        self._open, self.arrived = Flag(), Flag()

    def __call__(self, *args: object) -> None:
        with cmwq.blocking():
            self.arrived.set()
            self._open.wait()
            self._open.set()  # for who comes next

    def open(self) -> None:
        self._open.set()


class Witness(logging.Handler):
    """Hears what nobody would otherwise: errors in the log, threads that died, exceptions that could not be raised."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.heard: list[str] = []
        self.tolerated: tuple[type[BaseException], ...] = ()
        self.passed = 0  # so much was tolerated

    def listen(self) -> None:
        logging.getLogger("cmwq").addHandler(self)
        logging.getLogger("cmwq").propagate = False
        threading.excepthook = self._thread_died
        sys.unraisablehook = self._not_raised

    def _note(self, what: str, exc: BaseException | None) -> None:
        if not (isinstance(exc, self.tolerated) and self.tolerated):
            self.heard.append(f"{what}: {exc!r}" if exc is not None else what)
        else:
            self.passed += 1

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.ERROR:
            exc = record.exc_info[1] if record.exc_info else None
            self._note(f"logged {record.getMessage()[:200]!r}", exc)

    def _thread_died(self, args: Any) -> None:
        name = args.thread.name if args.thread is not None else "?"
        if isinstance(args.exc_value, cmwq.CmwqError):
            self.heard.append(f"thread {name} died: {args.exc_value!r}")
        self._note(f"thread {name} died", args.exc_value)

    def _not_raised(self, args: Any) -> None:
        if self.tolerated and args.object is None and isinstance(args.exc_value, KeyError):
            return  # the end of a thread, interrupted in `threading`'s own account of threads
        self._note(f"ignored in {args.object!r:.120}", args.exc_value)

    def check(self) -> None:
        if self.heard:
            heard, self.heard = self.heard, []
            raise Broken("; ".join(heard[:3]))


WITNESS = Witness()


def until(fact: Callable[[], bool], patience: float, what: Callable[[], str]) -> None:
    """Look until it holds. Raises Broken with those words if it never does."""
    if fact():
        return
    deadline = time.monotonic() + patience
    pause = 0.0
    while not fact():
        if time.monotonic() > deadline:
            raise Broken(what())
        time.sleep(pause)
        pause = min(0.01, pause + 0.0001)


def make_runtime(sensor: str | None) -> cmwq.Runtime:
    """One whose timers do nothing by themselves during a round, so that the same event is at the same place."""
    return cmwq.Runtime(sensor=sensor, config=cmwq.Config(cpu_intensive_thresh=0.0))


class Bench:
    """A runtime that rounds share for as long as it is whole."""

    def __init__(self, sensor: str | None, patience: float = PATIENCE) -> None:
        self.sensor = sensor
        self.patience = patience
        self.runtime = make_runtime(sensor)
        self.probe = cmwq.WorkQueue("probe", runtime=self.runtime)
        self.held_queue = cmwq.WorkQueue("held", max_active=1, runtime=self.runtime)
        self.gate: Gate | None = None
        self.never: cmwq.Future[Any] | None = None
        self.rounds = 0
        self.probe.submit(int).result(patience)

    def hold_one(self) -> cmwq.Future[Any]:
        """A future that stays pending for as long as the bench is there: it waits behind a work that waits."""
        if self.never is None:
            self.gate = Gate()
            self.held_queue.submit(self.gate)
            self.never = self.held_queue.submit(int)
            if not self.gate.arrived.wait(self.patience):
                raise Broken("a work that should run does not")
        return self.never

    def steady(self, held: int = 0) -> None:
        """Wait until nothing is under way: every worker is idle, but those that are held.

        Then the same call takes the same way each time.
        """
        held += self.gate is not None

        def at_rest() -> bool:
            pools = self.runtime.snapshot().pools
            return all(pool.running == 0 and not pool.pending for pool in pools) and (
                sum(pool.workers - pool.idle for pool in pools) == held
            )

        until(at_rest, self.patience, lambda: f"{held} workers should be busy and none running: {self._pools()}")

    def _pools(self) -> str:
        return ", ".join(
            f"pool {p.name} has workers={p.workers} idle={p.idle} running={p.running} blocked={p.blocked} "
            f"pending={p.pending} inactive={p.inactive}"
            for p in self.runtime.snapshot().pools
        )

    def check(self, *queues: cmwq.WorkQueue) -> None:
        """New works run to their end on each of these queues, and everything adds up."""
        for queue in (*queues, self.probe):
            if queue.is_open:
                check_serves(queue, self.patience)
        late = cmwq.DelayedWork(int)
        self.probe.queue_delayed(late, 1e-4)
        until(lambda: not late.pending, self.patience, lambda: "a delayed work's time never comes")
        self.steady()
        self.check_counts()
        WITNESS.check()

    def check_counts(self) -> None:
        """H4, and the rules of each pool."""
        self.runtime.check_invariants()
        snapshot = self.runtime.snapshot()
        held = self.gate is not None
        for pool in snapshot.pools:
            busy = pool.workers - pool.idle
            if (pool.started - pool.completed, pool.inactive) != (busy, busy) or pool.created - pool.culled < busy:
                raise Broken(f"counts do not add up: {pool}")
        if sum(pool.workers - pool.idle for pool in snapshot.pools) != held:
            raise Broken(f"{held} workers should be busy: {snapshot.pools}")
        for queue in snapshot.queues:
            left = (1, 1, 2) if held and queue.name == "held" else (0, 0, 0)
            if (queue.active, queue.inactive, queue.unfinished) != left:
                raise Broken(f"counts do not add up: {queue}")

    def close(self) -> None:
        if self.gate is not None:
            self.gate.open()
        bounded(lambda: self.runtime.close(self.patience), "Runtime.close")


def check_serves(queue: cmwq.WorkQueue, patience: float) -> None:
    """Both kinds of works run to their end there, and a flush and a drain end."""
    call, again = Call(), Call()
    bounded(lambda: queue.submit(call).result(patience), "submit and result")
    work = cmwq.Work(again)
    if not queue.queue(work):
        raise Broken("a new work is said to be pending")
    bounded(lambda: queue.flush(patience), "flush")
    if (len(call.runs), len(again.runs)) != (1, 1):
        raise Broken(f"works ran {len(call.runs)} and {len(again.runs)} times, flush says they ended")
    bounded(lambda: queue.drain(patience), "drain")


def bounded(call: Callable[[], object], what: str) -> None:
    """What ends within the limit it was given, or says so."""
    try:
        call()
    except TimeoutError as exc:
        raise Broken(f"{what} does not end: {exc}") from exc


def check_work(work: cmwq.Work, queue: cmwq.WorkQueue, call: Call, patience: float) -> None:
    """It is in a legal state, and can be used again.

    Pending or not, running or not, disabled or not: any of these is legal after an interruption, if it can be left.
    """
    while work.disabled:
        work.enable()
    work.cancel()
    bounded(lambda: work.flush(patience), "flush of a work")
    if work.pending or work.running:
        raise Broken(f"after cancel and flush: {work!r}")
    before = len(call.runs)
    if queue.is_open:
        if not queue.queue(work):
            raise Broken(f"can't be queued again: {work!r}")
        bounded(lambda: work.flush(patience), "flush of a work queued again")
        if len(call.runs) != before + 1:
            raise Broken(f"queued again, it ran {len(call.runs) - before} times")
