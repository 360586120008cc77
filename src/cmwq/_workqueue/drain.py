"""How a queue is flushed, drained and closed (F1, F3), each as steps (see `wait`).

Guarantees: a flush waits for everything that was queued before it, on all pools, and for nothing later. After a drain
the queue was empty on all its pools at one moment. Nothing that a closing queue accepted is lost.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

from cmwq._core import log
from cmwq._core.naming import name_of
from cmwq._core.surely import surely
from cmwq._errors import REFUSALS, FlushDeadlock, own
from cmwq._workqueue.place_end import PhaseEnd
from cmwq._workqueue.wait import own_item

if TYPE_CHECKING:
    from cmwq._workqueue.queue import WorkQueue
    from cmwq._workqueue.wait import Steps


DRAIN_ROUNDS = 10
"""F3: a drain logs a warning after so many rounds, and then at every hundredth."""


def flush_steps(queue: WorkQueue) -> Steps[None]:
    """Flush: seal the queue's places on all pools, and only then wait for the first."""
    _refuse_own_work(queue, "flushes")
    phases = []
    for pwq in queue.places():
        queue.runtime.check_alive(pwq.pool, queue)
        with pwq.pool.lock:
            phase = pwq.seal()
        if phase is not None:
            phases.append(phase)
    for phase in phases:
        yield PhaseEnd(phase)


def drain_steps(queue: WorkQueue) -> Steps[None]:
    _refuse_own_work(queue, "drains")
    drain = object()
    end = partial(queue.end_drain, drain)
    with surely(end), surely(end):
        queue.begin_drain(drain)
        yield from _empty_steps(queue, "drain")


def close_steps(queue: WorkQueue, delayed: str | None = None) -> Steps[None]:
    _refuse_own_work(queue, "closes")
    queue.refuse()
    end_delays(queue, delayed)
    while True:
        yield from _empty_steps(queue, "close")
        queue.be_closed()
        if not queue.has_works():  # a delay may have ended in between, and queued its work
            break
    for pwq in queue.places():
        with pwq.pool.lock:
            pwq.pool.pwqs.discard(pwq)
    thread = queue.end_rescuer()
    if thread is not None:
        thread.join()


def end_delays(queue: WorkQueue, delayed: str | None = None) -> None:
    """Run or cancel the delayed works whose time has not come: the queue closes and accepts none any more."""
    queue.stop_servings()
    delayed = delayed or queue.delayed
    lost = []
    for delay in queue.delays():
        if delayed == "run" and not delay.repeats:
            try:
                delay.hasten()
            except REFUSALS as exc:
                own(exc)
                lost.append(name_of(delay.work._fn))
        elif delay.cancel() and not delay.repeats:  # what a periodic work has queued already runs
            lost.append(name_of(delay.work._fn))
    if lost and delayed != "cancel":
        log.warning(
            "queue %r closes, and delayed works whose time has not come are not run: %s%s",
            queue.name,
            few(lost),
            "" if delayed else '; a queue made with delayed="run" runs them, with delayed="cancel" it is silent',
        )


def _refuse_own_work(queue: WorkQueue, verb: str) -> None:
    """Raise FlushDeadlock if the caller is one of the queue's own works (F7)."""
    item = own_item(queue)
    if item is not None:
        raise FlushDeadlock(
            f"{item.describe()} {verb} its own queue {queue.name!r}: it would wait for itself. Do this outside of "
            "the queue's works, or wait for the futures of those that are meant"
        )


def _empty_steps(queue: WorkQueue, what: str) -> Steps[None]:
    """Wait until the queue is empty on all pools at the same time.

    A look at one pool after the other could miss a work that moves. But it then passes the shut gate, where
    `nr_admitted` counts it.
    """
    rounds = 0
    while True:
        before = sum(pwq.nr_admitted for pwq in queue.places())
        if not queue.has_works():
            if before == sum(pwq.nr_admitted for pwq in queue.places()):
                return
            continue
        if rounds == DRAIN_ROUNDS or (rounds and rounds % 100 == 0):
            log.warning(
                "%s of queue %r is not done after %d rounds: its works queue new ones", what, queue.name, rounds
            )
        rounds += 1
        yield from flush_steps(queue)


def few(names: list[str]) -> str:
    """The names for a message, each with its number, in no more than about a line."""
    counted = Counter(names)
    shown = [name if number == 1 else f"{number} times {name}" for name, number in counted.most_common(MAX_FEW)]
    rest = f" and {len(counted) - MAX_FEW} others" if len(counted) > MAX_FEW else ""
    return ", ".join(shown) + rest


MAX_FEW = 5
"""How many names a message shows."""
