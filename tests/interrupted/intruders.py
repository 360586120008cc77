"""What is called in the middle of a call, by a signal handler, a finaliser, a weak reference's callback, or at a
bytecode. Each returns, or raises a CmwqError with words; and what it was told is accepted runs, exactly once.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import wait
from contextlib import suppress
from typing import Any

import cmwq
from interrupted.whole import LONG, Bench, Broken, Call, Gate, bounded

_numbers = itertools.count()


class Intruder:
    """One call, prepared before the attack, on the same queue and on the very work that is operated on."""

    def __init__(self, bench: Bench, queue: cmwq.WorkQueue, works: list[tuple[cmwq.Work, Call]]) -> None:
        self.bench, self.queue, self.works = bench, queue, works
        self.call, self.told = Call(), Call()
        self.accepted: int | None = None  # how often it must run; None: at most that often
        self.work = cmwq.Work(self.call)
        self.delayed = cmwq.DelayedWork(self.call)
        self.futures: list[cmwq.Future[Any]] = []
        self.own: list[cmwq.WorkQueue] = []
        self.results: Any = None
        self.broken = ""

    def enter(self, name: str) -> None:
        """Raises nothing: that would be one more thing in the middle of the call."""
        try:
            getattr(self, name)()
        except cmwq.CmwqError as exc:
            if not str(exc):
                self.broken = f"{name} within it: a {type(exc).__name__} without words"
        except Exception as exc:
            self.broken = f"{name} within it: {exc!r}"

    def check(self) -> None:
        """The queue is flushed."""
        patience = self.bench.patience
        if self.broken:
            raise Broken(self.broken)
        for future in self.futures:
            if wait([future], patience).not_done:
                raise Broken(f"submitted within it, and never done: {future!r}")
            if isinstance(future.exception(), cmwq.CmwqError):
                self.accepted = 0  # it was left for later, and refused then
        times = len(self.call.runs)
        if times > 1 or (self.accepted is not None and times != self.accepted):
            raise Broken(f"accepted {self.accepted} times within it, it ran {times} times")
        self.delayed.cancel()
        if self.delayed.pending or self.work.pending:
            raise Broken("what was queued within it is pending for ever")
        for queue in self.own:
            bounded(lambda queue=queue: queue.close(patience), "close of a queue made within it")

    # -------------------------------------------------------------------- the calls

    def submit(self) -> None:
        self.accepted = 0
        self.futures.append(self.queue.submit(self.call))
        self.accepted = 1

    def queue_work(self) -> None:
        self.accepted = 0
        self.accepted = int(self.queue.queue(self.work))

    def queue_same(self) -> None:
        for work, call in self.works:
            call.limit += 1
            self.queue.queue(work)

    def cancel(self) -> None:
        self.queue.queue(self.work)
        if self.work.cancel():
            self.accepted = 0

    def cancel_same(self) -> None:
        for work, _ in self.works:
            work.cancel()

    def mod_delayed(self) -> None:
        self.accepted = 0
        self.queue.mod_delayed(self.delayed, LONG)

    def mod_same(self) -> None:
        for work, call in self.works:
            if isinstance(work, cmwq.DelayedWork):
                call.limit += 1
                self.queue.mod_delayed(work, LONG)

    def queue_delayed(self) -> None:
        self.accepted = 0
        self.queue.queue_delayed(self.delayed, LONG)

    def snapshot(self) -> None:
        self.bench.runtime.snapshot()

    def result(self) -> None:
        assert self.bench.never is not None
        with suppress(cmwq.CmwqTimeout):
            self.bench.never.result(timeout=0.001)

    def flush(self) -> None:
        self.queue.flush(timeout=0.001)

    def add_done_callback(self) -> None:
        assert self.bench.never is not None
        self.bench.never.add_done_callback(self.told)

    def close_map(self) -> None:
        """What the collector does to a half-read map in a cycle."""
        self.results.close()

    def make_queue(self) -> None:
        queue = cmwq.WorkQueue(f"within{next(_numbers)}", runtime=self.bench.runtime)
        self.own.append(queue)
        self.accepted = 0
        self.futures.append(queue.submit(self.call))
        self.accepted = 1

    def drop_queue(self) -> None:
        cmwq.WorkQueue("dropped within", runtime=self.bench.runtime)

    def prepare(self, name: str, gates: list[Gate]) -> None:
        """gates: of what is opened when all is settled."""
        if name in ("result", "add_done_callback"):
            self.bench.hold_one()
        elif name == "close_map":  # a result is taken, the next call runs, the others wait
            gate, queue = Gate(), cmwq.WorkQueue(f"within{next(_numbers)}", max_active=1, runtime=self.bench.runtime)
            self.own.append(queue)
            gates.append(gate)
            self.results = queue.map(_pass, [_nothing, gate, _nothing, _nothing])
            next(self.results)
            gate.arrived.wait()


def _pass(call: Callable[[], object]) -> None:
    call()


def _nothing() -> None: ...


CALLS = (
    "submit", "queue_work", "queue_same", "cancel", "cancel_same", "mod_delayed", "mod_same", "queue_delayed",
    "snapshot", "result", "flush", "add_done_callback", "close_map", "make_queue", "drop_queue",
)  # fmt: skip
HARMLESS = frozenset(CALLS) - {"queue_same", "cancel_same", "mod_same"}
"""Those after which the interrupted call must have had its usual effect."""
