"""The real runtime beside a model of it: hypothesis chooses operations, both do them, and nothing may differ.

Works are puppets: a running one waits for the machine, which tells it what to do (queue something, flush its own queue)
and when to end. So the machine decides what runs for how long, nobody sleeps, and real threads still race: a step need
not wait for the works that the step before set going.

What the model knows of a queueing is what it was told under its lock, `World.cond`. The machine holds it during every
operation that does not wait; a work takes it to say that it begins or ends. Hence while the machine acts, the runtime
is ahead of the model in nothing but this: a queueing that may begin may not be pending any more. Of such
ones (`may_begin`) the answer of `queue` or `cancel` tells; of all others the answer is determined. `settle` waits until
everything that must begin has begun, and everything that must end has ended. Then the facts are exact.

Waiting calls run on threads of their own, which say when they have looked at the queues, so that it is known what they
wait for.

CMWQ_MODEL_EXAMPLES, CMWQ_MODEL_STEPS: how many, how long (`make model`: 2,000 of 50).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from enum import Enum
from functools import partial
from queue import SimpleQueue
from typing import Any

import pytest
from conftest import HANG
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

import cmwq
from cmwq._pool.worker import current_worker
from cmwq._workqueue.drain import close_steps, drain_steps, flush_steps
from cmwq._workqueue.wait import Steps, run_steps

PATIENCE = float(os.environ.get("CMWQ_MODEL_PATIENCE", HANG))  # less: to shrink what hangs
EXAMPLES = int(os.environ.get("CMWQ_MODEL_EXAMPLES", "60"))
STEPS = int(os.environ.get("CMWQ_MODEL_STEPS", "30"))

FOREVER = 3600.0  # a delay that does not end by itself
SOON = 0.0005  # one that does
REQUEUES = 2  # so often a work that nobody holds queues itself again, each time somebody queues it


class Planned(Exception):
    """What a work raises when it is told to."""


class State(Enum):
    PENDING = "pending"
    CLAIMED = "about to begin"  # it is not pending any more, and has not said that it began
    RUNNING = "running"
    UNSURE = "taken back, or about to begin"  # a cancel_sync that still waits will tell
    OVER = "ended"
    GONE = "taken back"


class Timer(Enum):
    LONG = "not until somebody hastens it"
    RACING = "any moment"


class Queueing:
    """One queueing of a work or call, and its execution."""

    def __init__(self, queue: Queue, what: Job, timer: Timer | None = None) -> None:
        self.queue = queue
        self.what = what
        self.timer = timer
        self.state = State.PENDING
        self.hung = False  # it came while its work ran; it may lend its place meanwhile, and not get it back (E1, E3)
        self.roomy = False  # it takes a place of those that may wait
        self.pool: Any = None
        self.mail: SimpleQueue[Callable[[], object] | str] = SimpleQueue()
        self.told = False  # to end
        self.over_for: str | None = None  # who returned as though it was over, before its cancel_sync could tell
        self.outcome: object = None
        self.futures: list[Any] = []
        queue.alive.append(self)

    def __repr__(self) -> str:
        return f"<{self.what} on {self.queue.wq.name}: {self.state.value}, {self.timer}, told={self.told}>"

    @property
    def alive(self) -> bool:
        return self.state not in (State.OVER, State.GONE)

    @property
    def begun(self) -> bool:
        return self.state in (State.CLAIMED, State.RUNNING)

    def leave(self, state: State) -> None:
        self.state = state
        self.queue.alive.remove(self)
        if not self.queue.alive:
            self.queue.peak = self.queue.limit
        self.queue.let_drainers_go()


class Job:
    """What is executed: a work, or one submitted call."""

    work: cmwq.DelayedWork | None = None

    def __init__(self, world: World, name: str, *, held: bool) -> None:
        self.world = world
        self.name = name
        self.held = held  # its executions wait for the machine
        self.queueings: list[Queueing] = []  # alive, in order
        self.disabled = 0
        self.cancellers: list[Waiter] = []
        self.requeues = 0
        self.nr_due = self.nr_ran = self.nr_errors = self.nr_planned = 0
        self.inside = threading.Lock()

    def __repr__(self) -> str:
        return self.name

    def pending(self) -> Queueing | None:
        found = [q for q in self.queueings if q.state is State.PENDING]
        assert len(found) <= 1
        return found[0] if found else None

    def executing(self) -> bool:
        return any(q.begun for q in self.queueings)

    def may_execute(self) -> bool:
        """It executes, or a cancel_sync on its way is unsure of it: it may have begun, and not said so."""
        return self.executing() or any(q.state is State.UNSURE for q in self.queueings)

    def idle(self) -> bool:
        return not self.queueings and not self.cancellers

    def blocked(self) -> bool | None:
        """It can't be queued. None: who knows, for a cancel_sync may just have returned."""
        if self.disabled or any(not waiter.may_be_over() for waiter in self.cancellers):
            return True
        return None if self.cancellers else False

    # ------------------------------------------------------------------------------- on the worker

    def __call__(self) -> object:
        q = self.begin()
        raising = False
        try:
            if self.held:
                raising = self.obey(q)
            elif self.work is not None:
                with self.world.cond:
                    if self.requeues and not self.world.finishing:
                        self.requeues -= 1
                        self.world.queue(q.queue, self, own=True)
        except BaseException as exc:
            self.world.fail(f"{q}: {exc!r}")
        finally:
            q.outcome = Planned() if raising else object()
            self.end(q)
        if isinstance(q.outcome, Planned):
            raise q.outcome
        return q.outcome

    def obey(self, q: Queueing) -> bool:
        while not self.world.finishing:
            with cmwq.blocking():
                order = q.mail.get()
            if isinstance(order, str):
                return order == "raise"
            order()
        return False

    def begin(self) -> Queueing:
        world = self.world
        if not self.inside.acquire(blocking=False):
            world.fail(f"E3: {self} runs twice at the same time")
        worker = current_worker()
        with world.cond:
            waiting = [q for q in self.queueings if q.state in (State.CLAIMED, State.PENDING, State.UNSURE)]
            if not waiting:
                world.fail(f"{self} runs, and nobody queued it")
                unknown = Queueing(world.queues[0], self)
                unknown.mail.put("end")  # nobody else would tell it, and what waits for its end would be told first
                return unknown
            q = next((q for q in waiting if q.over_for is None), waiting[0])
            if q.state is not State.CLAIMED:
                if not world.may_begin(q):
                    world.fail(f"{q} began, and must not: {q.queue.alive}")
                q.timer = None
            if q.over_for is not None:
                world.fail(f"{q.over_for} returned, and then {q} began")
            q.pool = worker.pool if worker is not None else None
            q.state = State.RUNNING
            beside = sum(
                other.state is State.RUNNING and other.pool is q.pool and not (other.hung and not q.queue.ordered)
                for other in q.queue.alive
            )
            if beside > q.queue.peak:
                world.fail(f"E1: {beside} works of {q.queue.wq.name} run, of at most {q.queue.peak}")
            world.cond.notify_all()
            return q

    def end(self, q: Queueing) -> None:
        with self.world.cond:
            self.nr_ran += 1
            if q in self.queueings:
                self.queueings.remove(q)
            q.leave(State.OVER)
            self.world.cond.notify_all()
        self.inside.release()


class Queue:
    """A queue, and what is alive of it in the order of queueing."""

    def __init__(self, world: World, kind: str, **options: Any) -> None:
        self.kind = kind
        self.options = options
        self.wq = cmwq.WorkQueue(kind, runtime=world.runtime, on_error=world.work_failed, **options)
        self.freezable = options.get("freezable", False)
        self.ordered = options.get("ordered", False)
        self.per_cpu = options.get("scope") == "cpu"
        self.places: int | None = options.get("max_pending")
        self.limit = self.peak = self.wq.max_active  # peak: the highest since it was idle
        self.alive: list[Queueing] = []
        self.drainers: list[Waiter] = []
        self.closing = False
        self.closed = False

    @property
    def wide(self) -> bool:
        return "max_active" not in self.options and not self.ordered

    def listed(self) -> list[Queueing]:
        return [q for q in self.alive if q.timer is not Timer.LONG]

    def idle(self) -> bool:
        return not self.listed()

    def let_drainers_go(self) -> None:
        """Once it was empty nobody knows whether they are over, until they say so."""
        if self.idle():
            for waiter in self.drainers:
                waiter.may_have_returned = True

    def shut(self, own: bool) -> bool | None:
        """It refuses works. None: who knows, for a drain may just have returned."""
        if self.closed or (self.closing and self.idle() and not own):
            return True
        if own:
            return False
        if self.closing or any(not waiter.may_have_returned for waiter in self.drainers):
            return True
        return None if self.drainers else False


class Waiter:
    """A waiting call on a thread of its own."""

    def __init__(
        self, world: World, what: str, steps: Steps[Any], over: Callable[[], bool], check: Callable[[Any], object]
    ) -> None:
        self.world = world
        self.what = what
        self.may_be_over = over
        self.check = check
        self.looked = threading.Event()
        self.returned = self.may_have_returned = False
        world.waiters.append(self)
        threading.Thread(target=self.run, args=(steps,), name=what, daemon=True).start()
        assert self.looked.wait(PATIENCE), f"{what} does not even begin to wait"

    def __repr__(self) -> str:
        return f"<{self.what}, {'may be over' if self.may_be_over() else 'waits'}>"

    def run(self, steps: Steps[Any]) -> None:
        result: Any = None
        error = None
        try:
            result = run_steps(self.watched(steps), self.world.runtime, None, lambda: self.what)
        except BaseException as exc:
            error = exc
        self.looked.set()
        with self.world.cond:
            self.returned = True
            self.world.waiters.remove(self)
            if error is not None:
                self.world.fail(f"{self.what} raised {error!r}")
            else:
                self.check(result)
            self.world.cond.notify_all()

    def watched(self, steps: Steps[Any]) -> Steps[Any]:
        target = next(steps, None)  # what it returns is lost if it need not wait: then nobody calls it this way
        self.looked.set()
        if target is None:
            return None
        yield target
        return (yield from steps)


class World:
    """The model, with the real thing it describes."""

    def __init__(self, runtime: cmwq.Runtime) -> None:
        self.runtime = runtime
        self.cond = threading.Condition(threading.RLock())
        self.failures: list[str] = []
        self.waiters: list[Waiter] = []
        self.frozen = False
        self.eras: list[list[bool]] = []  # of each freeze: it was not thawed since
        self.finishing = False
        self.broken = False
        self.queues = [
            Queue(self, "wide"),
            Queue(self, "limited", max_active=2, freezable=True),
            Queue(self, "ordered", ordered=True),
            Queue(self, "ordered and freezable", ordered=True, freezable=True),
            Queue(self, "highpri", highpri=True, freezable=True),
            Queue(self, "per CPU", scope="cpu"),
            Queue(self, "one per CPU", scope="cpu", max_active=1, freezable=True),
            Queue(self, "bounded", max_active=1, max_pending=2, full="raise"),
        ]
        self.jobs = [
            Job(self, f"{'held' if held else 'quick'}{n}", held=held)
            for n, held in enumerate([True, True, True, False, False])
        ]
        for job in self.jobs:
            job.work = cmwq.DelayedWork(job)
        self.by_work: dict[cmwq.Work | None, Job] = {job.work: job for job in self.jobs}
        self.calls: list[Queueing] = []
        self.works: list[Queueing] = []

    def fail(self, what: str) -> None:
        with self.cond:
            if not self.broken:  # else it is but the consequence of giving up
                self.failures.append(what)
            self.cond.notify_all()

    def work_failed(self, work: cmwq.Work, exc: BaseException) -> None:
        with self.cond:
            self.by_work[work].nr_errors += 1
        if not isinstance(exc, Planned):
            self.fail(f"{work!r} raised {exc!r}")

    # ------------------------------------------------------------------------------- what may and what must be

    def may_begin(self, q: Queueing) -> bool:
        """It may have begun, or does so any moment."""
        queue = q.queue
        if q.state not in (State.PENDING, State.UNSURE) or q.timer is Timer.LONG or q.what.executing():
            return False
        if queue.freezable and self.frozen:
            return False
        if queue.wide or queue.per_cpu:
            return True
        if q.hung and not queue.ordered:
            return True
        unsure = [
            other for other in queue.listed() if other.state is State.UNSURE or (other.hung and not queue.ordered)
        ]
        return q in [other for other in queue.listed() if other is q or other not in unsure][: queue.peak]

    def must_begin(self, queue: Queue) -> bool:
        """Something of the queue is still to begin, without anybody's doing."""
        if queue.freezable and self.frozen:
            return False
        listed = queue.listed()
        waiting = [q for q in listed if q.state is State.PENDING]
        free = [q for q in waiting if not q.what.executing()]
        if queue.wide:
            return bool(free)
        if queue.per_cpu:  # nobody knows on which CPU each is
            return bool(waiting) and len(free) == len(listed)
        return any(q in free for q in listed[: queue.limit])

    def is_settled(self) -> bool:
        if self.failures:
            return True
        for queue in self.queues:
            if self.must_begin(queue):
                return False
            for q in queue.alive:
                if q.state is State.CLAIMED or (
                    q.state is State.RUNNING and (q.told or not q.what.held or self.finishing)
                ):
                    return False
                if q.state is State.UNSURE and not q.what.executing():
                    return False
        return not any(waiter.may_be_over() for waiter in self.waiters)

    def wait_until_settled(self) -> None:
        self.await_timers()
        with self.cond:
            if not self.cond.wait_for(self.is_settled, PATIENCE):
                alive = [q for queue in self.queues for q in queue.alive]
                self.failures.append(f"nothing happens any more: {alive}, {self.waiters}, frozen={self.frozen}")
            self.raise_failures()

    def over(self, those: Iterable[Queueing], who: str) -> None:
        """It returned, so they are over. One that a cancel_sync was unsure of was taken back: it must never begin."""
        for q in those:
            if q.state is State.UNSURE:
                q.over_for = who
            elif q.alive:
                self.fail(f"{who} returned: {q}")

    def raise_failures(self) -> None:
        assert not self.failures, "\n".join(self.failures)

    def await_timers(self) -> None:
        """Until all delays of SOON have ended: timers fire in order."""
        with self.cond:
            racing = [q for queue in self.queues for q in queue.alive if q.timer is Timer.RACING]
        if racing:
            self.let_time_pass()
            for q in racing:
                q.timer = None

    def let_time_pass(self) -> None:
        passed = threading.Event()
        self.runtime.host.call_later(SOON, passed.set)
        assert passed.wait(PATIENCE)

    # ------------------------------------------------------------------------------- operations that do not wait

    def outcome(self, allowed: set[object], call: Callable[[], object]) -> object:
        try:
            result = call()
        except cmwq.QueueClosed:
            result = "closed"
        except cmwq.QueueFull:
            result = "full"
        except cmwq.WorkDisabled:
            result = "disabled"
        kind = result if result is None or isinstance(result, bool | str) else True
        if kind not in allowed:
            self.fail(f"returned {kind}, allowed are {allowed}: {call}")
        return result

    def answers(self, queue: Queue, *, own: bool, bounded: bool) -> set[object]:
        """What may come of trying to queue something that nothing else keeps from it."""
        allowed: set[object] = set()
        shut = queue.shut(own)
        if shut is not False:
            allowed.add("closed")
        full: bool | None = False
        if bounded and queue.places is not None:
            waiting = [q for q in queue.alive if q.state is State.PENDING and q.roomy]
            if len(waiting) >= queue.places:
                full = None
            if sum(not self.may_begin(q) for q in waiting) >= queue.places:
                full = True
        if full is not False:
            allowed.add("full")
        if shut is not True and full is not True:
            allowed.add(True)
        return allowed

    def note(self, queue: Queue, job: Job, timer: Timer | None = None, *, bounded: bool = False) -> Queueing:
        q = Queueing(queue, job, timer)
        q.roomy = bounded
        q.hung = job.executing()
        job.queueings.append(q)
        job.nr_due += 1
        if job.work is not None:
            self.works.append(q)
        return q

    def queue(
        self, queue: Queue, job: Job, *, own: bool, call: Callable[[], object] | None = None, delay: float = 0.0
    ) -> None:
        """queue, queue_on, queue_delayed.  Context: cond held."""
        assert job.work is not None
        pending = job.pending()
        blocked = job.blocked()
        bounded = delay <= 0
        allowed: set[object] = {False}
        if not blocked and not (pending and not self.may_begin(pending)):
            allowed = self.answers(queue, own=own, bounded=bounded)
            if pending or blocked is None:
                allowed.add(False)
            if delay > 0 and queue.closing:
                allowed.add("closed")  # own works may queue, but this would not be waited for
        elif queue.shut(own) is not False or (delay > 0 and queue.closing):
            allowed.add("closed")  # either answer is right
        result = self.outcome(allowed, call or partial(queue.wq.queue, job.work))
        if result is True:
            self.began(pending)
            job.cancellers.clear()
            self.accepted(queue, own)
            self.note(queue, job, self.timer_of(queue, delay), bounded=bounded)

    def accepted(self, queue: Queue, own: bool) -> None:
        """It took a work: who drained it, and was perhaps about to return, did so before."""
        if not own:
            queue.drainers.clear()

    def timer_of(self, queue: Queue, delay: float) -> Timer | None:
        if delay == FOREVER:
            return Timer.LONG
        if delay > 0:
            if queue.wide:
                return Timer.RACING
            self.let_time_pass()  # its place in the order is to be known
        return None

    def began(self, q: Queueing | None) -> None:
        """Somebody found out that it is not pending any more."""
        if q is not None:
            q.state = State.CLAIMED

    def taken_back(self, q: Queueing) -> None:
        for future in q.futures:
            if not future.cancelled():
                self.fail(f"{q} was taken back, and its future is {future!r}")
        q.what.queueings.remove(q)
        q.what.nr_due -= 1
        q.leave(State.GONE)

    def take_back(self, job: Job, call: Callable[[], object]) -> None:
        """cancel, disable.  Context: cond held."""
        pending = job.pending()
        allowed: set[object] = {pending is not None}
        if pending is not None and self.may_begin(pending):
            allowed.add(False)
        if self.outcome(allowed, call) is True:
            assert pending is not None
            self.taken_back(pending)
        else:
            self.began(pending)

    def move(self, queue: Queue, job: Job, delay: float, *, own: bool, call: Callable[[], object]) -> None:
        """mod_delayed.  Context: cond held, blocked() and shut() known."""
        assert job.work is not None
        pending = job.pending()
        shut = queue.shut(own)
        if job.blocked():
            refused = shut is not False or (delay > 0 and queue.closing)
            self.outcome({False, "closed"} if refused else {False}, call)
            return
        racing = pending is not None and self.may_begin(pending)
        if racing and (shut is not False or (delay > 0 and queue.closing)):
            return  # should it be refused, nobody could tell whether it had begun or was taken back
        allowed = {
            pending is not None if each is True else each for each in self.answers(queue, own=own, bounded=False)
        }
        if racing:
            allowed.add(False)
        if pending is not None and not queue.closed:
            allowed.add(True)  # it was accepted earlier
        if delay > 0 and queue.closing:
            allowed.add("closed")  # it would not be waited for
        result = self.outcome(allowed, call)
        if isinstance(result, str):
            if pending is not None and not job.work.pending:
                self.taken_back(pending)
            return
        moved = pending.futures if pending is not None and result is True else []
        if pending is not None and result is True:
            pending.futures = []
            self.taken_back(pending)
        else:
            self.began(pending)
        if result is False:
            self.accepted(queue, own)
        q = self.note(queue, job, self.timer_of(queue, delay))
        q.futures = moved  # they are of the execution to come

    def unsure(self, job: Job) -> bool:
        pending = job.pending()
        return job.blocked() is None or (pending is not None and self.may_begin(pending))

    # ------------------------------------------------------------------------------- facts

    def check_facts(self) -> None:
        """Context: settled, cond not held."""
        for job in self.jobs:
            work = job.work
            assert work is not None
            with self.cond:
                pending, executing, unsure = job.pending(), job.executing(), self.unsure(job)
            if unsure or any(q.state is State.UNSURE for q in job.queueings):
                continue
            if not executing:
                run_steps(work.end_steps(), self.runtime, PATIENCE, lambda: "the end")
            facts = work.pending, work.running, work.disabled, work.is_blocked
            model = pending is not None, executing, job.disabled > 0, job.blocked()
            assert facts == model, f"{job}: pending, running, disabled, blocked are {facts}, should be {model}"
        for queue in self.queues:
            with self.cond:
                if not any(self.may_begin(q) for q in queue.alive):
                    waiting = sum(q.state is State.PENDING and q.timer is None for q in queue.alive)
                    assert queue.wq.nr_pending() == waiting, f"{queue.kind}: {queue.alive}"
            shut = queue.shut(False)
            assert shut is None or queue.wq.is_open != shut, f"{queue.wq!r}, shut={shut}: {queue.drainers}"
        self.runtime.check_invariants()


_runtimes: list[cmwq.Runtime] = []

queues = st.integers(0, 7)
works = st.integers(0, 4)
delays = st.sampled_from([0.0, SOON, SOON, FOREVER, -1.0])
puppets = st.none() | st.integers(0, 4)
settling = st.booleans()


class Machine(RuleBasedStateMachine):
    """What hypothesis chooses from. The choices themselves depend on nothing that threads do."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(_runtimes[-1])

    # ------------------------------------------------------------------------------- help

    @contextmanager
    def step(self, settle: bool = False, before: bool = False) -> Iterator[None]:
        try:
            if before:
                self.world.wait_until_settled()
            with self.world.cond:
                yield
            if settle:
                self.world.wait_until_settled()
                self.world.check_facts()
            self.world.raise_failures()
        except BaseException:
            self.world.broken = True
            raise

    def puppet(self, number: int | None) -> Queueing | None:
        """A running work that does what it is told. Any, so it depends on threads which one; the choice does not."""
        if number is None:
            return None
        running = [
            q
            for queue in self.world.queues
            for q in queue.alive
            if q.state is State.RUNNING and q.what.held and not q.told
        ]
        return running[number % len(running)] if running else None

    def by(self, puppet: Queueing | None, call: Callable[[], object]) -> Callable[[], object]:
        """The call, made on the puppet's thread."""
        if puppet is None:
            return call

        def remote() -> object:
            answer: SimpleQueue[tuple[object, BaseException | None]] = SimpleQueue()

            def order() -> None:
                try:
                    answer.put((call(), None))
                except BaseException as exc:
                    answer.put((None, exc))

            puppet.mail.put(order)
            result, exc = answer.get(timeout=PATIENCE)
            if exc is not None:
                raise exc
            return result

        return remote

    def wait(self, what: str, steps: Steps[Any], over: Callable[[], bool], check: Callable[[Any], object]) -> Waiter:
        return Waiter(self.world, what, steps, over, check)

    # ------------------------------------------------------------------------------- queueing

    @rule(n=queues, w=works, by=puppets, settle=settling, cpu=st.none() | st.sampled_from([0, 1, 77]))
    def queue(self, n: int, w: int, by: int | None, settle: bool, cpu: int | None) -> None:
        world = self.world
        with self.step(settle):
            queue, job, puppet = world.queues[n], world.jobs[w], self.puppet(by)
            assert job.work is not None
            job.requeues = REQUEUES
            call = partial(queue.wq.queue, job.work) if cpu is None else partial(queue.wq.queue_on, cpu, job.work)
            world.queue(queue, job, own=puppet is not None and puppet.queue is queue, call=self.by(puppet, call))

    @rule(n=queues, w=works, by=puppets, settle=settling, delay=delays)
    def queue_delayed(self, n: int, w: int, by: int | None, settle: bool, delay: float) -> None:
        world = self.world
        with self.step(settle):
            queue, job, puppet = world.queues[n], world.jobs[w], self.puppet(by)
            assert job.work is not None
            call = self.by(puppet, partial(queue.wq.queue_delayed, job.work, delay))
            world.queue(queue, job, own=puppet is not None and puppet.queue is queue, call=call, delay=delay)

    @rule(n=queues, w=works, by=puppets, settle=settling, delay=delays)
    def mod_delayed(self, n: int, w: int, by: int | None, settle: bool, delay: float) -> None:
        world = self.world
        # Should a cancel_sync or drain be about to return, the answer would not tell whether the work was queued.
        before = world.jobs[w].blocked() is None or world.queues[n].shut(False) is None
        with self.step(settle, before):
            queue, job, puppet = world.queues[n], world.jobs[w], self.puppet(by)
            assert job.work is not None
            if job.blocked() is None or queue.shut(False) is None:
                return  # since we looked
            call = self.by(puppet, partial(queue.wq.mod_delayed, job.work, delay))
            world.move(queue, job, delay, own=puppet is not None and puppet.queue is queue, call=call)

    @rule(n=queues, by=puppets, settle=settling, held=st.booleans())
    def submit(self, n: int, by: int | None, settle: bool, held: bool) -> None:
        """A call; a puppet's is its child."""
        world = self.world
        with self.step(settle):
            queue, puppet = world.queues[n], self.puppet(by)
            job = Job(world, f"call{len(world.calls)}", held=held)
            allowed = world.answers(queue, own=puppet is not None and puppet.queue is queue, bounded=True)
            future = world.outcome(allowed, self.by(puppet, partial(queue.wq.submit, job)))
            if not isinstance(future, str):
                world.accepted(queue, puppet is not None and puppet.queue is queue)
                q = world.note(queue, job, bounded=True)
                q.futures.append(future)
                world.calls.append(q)

    @rule(n=queues, w=works, settle=settling)
    def submit_work(self, n: int, w: int, settle: bool) -> None:
        world = self.world
        with self.step(settle, before=True):
            queue, job = world.queues[n], world.jobs[w]
            pending = job.pending()
            if world.unsure(job):
                return  # who knows whether the future would be that of this queueing or of the next
            work: Any = job.work
            call = partial(queue.wq.submit, work)
            allowed = world.answers(queue, own=False, bounded=pending is None)
            if pending is not None:
                allowed.add(True)  # it is one with the earlier queueing, elsewhere
            if job.blocked():
                allowed = {"disabled", *(allowed & {"closed"})}
            future = world.outcome(allowed, call)
            if not isinstance(future, str):
                if pending is None:
                    world.accepted(queue, False)
                (pending or world.note(queue, job, bounded=True)).futures.append(future)

    # ------------------------------------------------------------------------------- ending

    @rule(which=st.integers(0, 9), how=st.sampled_from(["end", "end", "end", "raise"]), settle=settling)
    def end(self, which: int, how: str, settle: bool) -> None:
        with self.step(settle):
            puppet = self.puppet(which)
            if puppet is not None:
                puppet.told = True
                puppet.what.nr_planned += how == "raise" and puppet.what.work is not None and not puppet.futures
                puppet.mail.put(how)

    @rule(settle=settling)
    def end_all(self, settle: bool) -> None:
        with self.step(settle):
            while (puppet := self.puppet(0)) is not None:
                puppet.told = True
                puppet.mail.put("end")

    # ------------------------------------------------------------------------------- taking back

    @rule(w=works, by=puppets, settle=settling)
    def cancel(self, w: int, by: int | None, settle: bool) -> None:
        world = self.world
        with self.step(settle):
            job = world.jobs[w]
            assert job.work is not None
            world.take_back(job, self.by(self.puppet(by), job.work.cancel))

    @rule(which=st.integers(0, 9), settle=settling)
    def cancel_call(self, which: int, settle: bool) -> None:
        world = self.world
        with self.step(settle):
            if world.calls:
                q = world.calls[which % len(world.calls)]
                (future,) = q.futures
                if q.state is State.PENDING:
                    world.take_back(q.what, future.cancel)
                elif q.state is State.GONE:
                    world.outcome({True}, future.cancel)
                else:
                    world.outcome({False}, future.cancel)

    @rule(w=works, by=puppets, settle=settling)
    def disable(self, w: int, by: int | None, settle: bool) -> None:
        world = self.world
        with self.step(settle):
            job = world.jobs[w]
            assert job.work is not None
            world.take_back(job, self.by(self.puppet(by), job.work.disable))
            job.disabled += 1

    @rule(w=works, by=puppets, settle=settling)
    def enable(self, w: int, by: int | None, settle: bool) -> None:
        world = self.world
        with self.step(settle):
            job = world.jobs[w]
            assert job.work is not None
            if job.disabled:
                world.outcome({job.disabled == 1}, self.by(self.puppet(by), job.work.enable))
                job.disabled -= 1
            else:
                with pytest.raises(ValueError, match="not disabled"):
                    job.work.enable()

    @rule(w=works, settle=settling)
    def cancel_sync(self, w: int, settle: bool) -> None:
        world = self.world
        with self.step(settle):
            job = world.jobs[w]
            work = job.work
            assert work is not None
            pending = job.pending()
            if job.may_execute() or (pending is not None and world.may_begin(pending)):
                unsure = pending if pending is not None and world.may_begin(pending) else None
                if unsure is not None:
                    unsure.state = State.UNSURE
                waiter = self.await_cancel(job, pending, unsure)
                if unsure is None and pending is not None:
                    world.taken_back(pending)
                job.cancellers.append(waiter)
            else:
                # An execution may have ended so far that it told us, and not further.
                world.outcome({pending is not None}, partial(work.cancel_sync, PATIENCE))
                if pending is not None:
                    world.taken_back(pending)

    def await_cancel(self, job: Job, pending: Queueing | None, unsure: Queueing | None) -> Waiter:
        world, work = self.world, job.work
        assert work is not None
        answer: list[bool] = []
        level = [q for q in job.queueings if q.begun or q.state is State.UNSURE]

        def steps() -> Steps[None]:
            answer.append((yield from work.cancel_steps()))

        def check(_: object) -> None:
            (was,) = answer
            if waiter in job.cancellers:
                job.cancellers.remove(waiter)
            if any(q.begun for q in level):
                world.fail(f"F5: cancel_sync of {job} returned, and it runs")
            if unsure is not None and unsure.state is State.UNSURE and was:
                world.taken_back(unsure)
            elif unsure is not None and was != (unsure.state is State.GONE):
                world.fail(f"cancel_sync returned {was}: {unsure}")
            elif unsure is None and was != (pending is not None):
                world.fail(f"cancel_sync of {job} returned {was}; it was pending: {pending}")

        waiter = self.wait(f"cancel_sync of {job}", steps(), lambda: not any(q.begun for q in level), check)
        return waiter

    @rule(w=works, settle=settling)
    def disable_sync(self, w: int, settle: bool) -> None:
        world = self.world
        with self.step(settle):
            job = world.jobs[w]
            work = job.work
            assert work is not None
            pending = job.pending()
            if not job.may_execute() and not (pending is not None and world.may_begin(pending)):
                world.take_back(job, partial(work.disable_sync, PATIENCE))
                job.disabled += 1
                return
            world.take_back(job, work.disable)
            job.disabled += 1
            level = [q for q in job.queueings if q.begun]

            def check(_: object) -> None:
                if any(q.alive for q in level):
                    world.fail(f"F6: disable_sync of {job} returned, and it runs")

            def over() -> bool:
                return not any(q.alive for q in level) and not job.executing()

            self.wait(f"disable_sync of {job}", work.end_steps(), over, check)

    @rule(w=works)
    def cancel_sync_times_out(self, w: int) -> None:
        """What runs goes on; what waited is taken back."""
        world = self.world
        with self.step(before=True):
            job = world.jobs[w]
            assert job.work is not None
            if job.executing() and job.held:
                with pytest.raises(cmwq.CmwqTimeout):
                    job.work.cancel_sync(0)
                pending = job.pending()
                if pending is not None:
                    world.taken_back(pending)

    # ------------------------------------------------------------------------------- waiting

    @rule(w=works, settle=settling)
    def flush_work(self, w: int, settle: bool) -> None:
        world = self.world
        world.await_timers()
        with self.step(settle):
            job = world.jobs[w]
            work = job.work
            assert work is not None
            pending = job.pending()
            if pending is not None and pending.timer is Timer.LONG:
                pending.timer = None  # hastened: it goes to the end of the queue
                pending.queue.alive.remove(pending)
                pending.queue.alive.append(pending)
            before = list(job.queueings)
            if not before:
                work.flush(PATIENCE)  # whether it ended long ago, or but told us so far
                return
            sure = any(q.state is not State.UNSURE for q in before)
            answer: list[bool] = []

            def steps() -> Steps[None]:
                answer.append((yield from work.flush_steps()))

            def check(_: object) -> None:
                world.over(before, f"F2: flush of {job}")
                if sure and answer != [True]:
                    world.fail(f"flush of {job} returned {answer}: {before}")

            self.wait(f"flush of {job}", steps(), lambda: not any(q.alive for q in before), check)

    @rule(n=queues, settle=settling)
    def flush_queue(self, n: int, settle: bool) -> None:
        world = self.world
        world.await_timers()
        with self.step(settle):
            queue = world.queues[n]
            before = queue.listed()

            def check(_: object) -> None:
                world.over(before, f"F1: flush of {queue.kind}")

            over = lambda: not any(q.alive for q in before)  # noqa: E731
            self.wait(f"flush of {queue.kind}", flush_steps(queue.wq), over, check)

    @rule(n=queues)
    def flush_queue_times_out(self, n: int) -> None:
        world = self.world
        with self.step(before=True):
            wq = world.queues[n].wq
            if any(q.state is State.RUNNING for q in world.queues[n].alive):
                with pytest.raises(cmwq.CmwqTimeout, match="works still there"):
                    wq.flush(0)
        # Nobody runs: nothing to be said, for the works of the queue may wait to be thawed.

    @rule(n=queues, settle=settling)
    def drain(self, n: int, settle: bool) -> None:
        world = self.world
        world.await_timers()
        with self.step(settle):
            queue = world.queues[n]
            before = queue.listed()

            def check(_: object) -> None:
                if waiter in queue.drainers:
                    queue.drainers.remove(waiter)
                world.over(before, f"F3: drain of {queue.kind}")

            waiter = self.wait(f"drain of {queue.kind}", drain_steps(queue.wq), queue.idle, check)
            queue.drainers.append(waiter)
            queue.let_drainers_go()

    @rule(n=queues, settle=settling)
    def close(self, n: int, settle: bool) -> None:
        world = self.world
        world.await_timers()
        with self.step(settle):
            queue = world.queues[n]
            for q in list(queue.alive):
                if q.timer is Timer.LONG and q.what.work is not None:
                    q.what.queueings.remove(q)
                    q.what.nr_due -= 1
                    q.leave(State.GONE)

            def check(_: object) -> None:
                queue.closed = True
                for q in list(queue.alive):
                    if q.timer is Timer.LONG:  # its own works may have queued it meanwhile
                        world.taken_back(q)
                world.over(queue.alive, f"F4: close of {queue.kind}")

            queue.closing = True
            self.wait(f"close of {queue.kind}", close_steps(queue.wq), queue.idle, check)

    @rule(n=queues)
    def make_another(self, n: int) -> None:
        """In place of a closed one."""
        with self.step():
            old = self.world.queues[n]
            if old.closed:
                self.world.queues[n] = Queue(self.world, old.kind, **old.options)

    @rule(settle=settling)
    def freeze(self, settle: bool) -> None:
        world = self.world
        world.await_timers()
        with self.step(settle):
            frozen = [True]
            queues = [queue for queue in world.queues if queue.freezable]

            def running() -> bool:
                return any(q.begun for queue in queues for q in queue.alive)

            def check(_: object) -> None:
                if frozen[0] and running():
                    world.fail(f"E8: freeze returned, and it runs: {[queue.alive for queue in queues]}")

            def over() -> bool:  # if it was frozen anew before it woke, it may wait for that
                return not running() or not (frozen[0] or world.frozen)

            world.eras.append(frozen)
            self.wait("freeze", world.runtime.freezer.steps(), over, check)
            for queue in queues:
                for q in queue.alive:
                    if q.state is State.PENDING and q.timer is not Timer.LONG and world.may_begin(q):
                        self.look_whether_claimed(q)
            world.frozen = True

    def look_whether_claimed(self, q: Queueing) -> None:
        """Of a work of a frozen queue: nothing changes any more, so what is seen is so."""
        work = q.what.work
        claimed = not q.futures[0].cancelled() and q.futures[0].running() if work is None else not work.pending
        if claimed:
            self.world.began(q)

    @rule(settle=settling)
    def thaw(self, settle: bool) -> None:
        world = self.world
        with self.step(settle):
            self.thawed(world)

    def thawed(self, world: World) -> None:
        world.frozen = False
        for era in world.eras:
            era[0] = False
        world.runtime.thaw()

    @rule(n=st.sampled_from([1, 6]), limit=st.integers(1, 3), settle=settling)
    def max_active(self, n: int, limit: int, settle: bool) -> None:
        with self.step(settle):
            queue = self.world.queues[n]
            queue.limit = limit
            queue.peak = max(queue.peak, limit)
            queue.wq.max_active = limit
            if not queue.alive:
                queue.peak = limit

    # ------------------------------------------------------------------------------- what would wait for itself (F7)

    @rule(which=st.integers(0, 4), what=st.sampled_from(["flush", "drain", "close", "cancel_sync", "flush itself"]))
    def wait_for_oneself(self, which: int, what: str) -> None:
        world = self.world
        with self.step():
            puppet = self.puppet(which)
            if puppet is None:
                return
            job, wq = puppet.what, puppet.queue.wq
            if what in ("flush", "drain", "close"):
                call = partial(getattr(wq, what), PATIENCE)
            elif job.work is None:
                return
            else:
                call = partial(job.work.cancel_sync if what == "cancel_sync" else job.work.flush, PATIENCE)
            with pytest.raises(cmwq.FlushDeadlock):
                self.by(puppet, call)()
            pending = puppet.what.pending()
            if pending is not None and what == "cancel_sync":
                world.taken_back(pending)

    @rule()
    def settle(self) -> None:
        with self.step(settle=True):
            pass

    # ------------------------------------------------------------------------------- the end

    def teardown(self) -> None:
        world = self.world
        try:
            if not world.broken:
                self.finish()
        finally:
            self.give_up()

    def finish(self) -> None:
        world = self.world
        with world.cond:
            self.thawed(world)
            world.finishing = True
            for queue in world.queues:
                for q in queue.alive:
                    q.mail.put("end")
        world.wait_until_settled()
        with world.cond:
            for job in world.jobs:
                assert job.work is not None
                pending = job.pending()
                if pending is not None:
                    assert pending.timer is Timer.LONG, f"{pending} should have run"
                    world.take_back(job, job.work.cancel)
                while job.disabled:
                    job.work.enable()
                    job.disabled -= 1
        world.wait_until_settled()
        world.check_facts()
        for queue in world.queues:
            queue.wq.close(PATIENCE)
        for job in [*world.jobs, *(q.what for q in world.calls)]:
            assert job.nr_ran == job.nr_due, f"{job} ran {job.nr_ran} times, should have {job.nr_due} times"
        for job in world.jobs:
            assert job.work is not None
            assert not job.work.running
            assert not job.work.pending
            assert job.nr_errors == job.nr_planned, f"on_error was told of {job.nr_errors}, not {job.nr_planned}"
        for q in [*world.calls, *world.works]:
            for future in q.futures:
                assert future.cancelled() == (q.state is State.GONE), f"{q}: {future!r}"
                if not future.cancelled():
                    error = future.exception(PATIENCE)
                    assert q.outcome is (future.result() if error is None else error), f"{q}: {future!r}"
        names = {queue.wq.name for queue in world.queues}
        for view in world.runtime.snapshot().queues:
            assert view.name not in names or (view.state, view.unfinished) == ("closed", 0), view
        pools = world.runtime.snapshot().pools
        assert all(pool.started == pool.completed for pool in pools)
        world.runtime.check_invariants()
        world.raise_failures()

    def give_up(self) -> None:
        """Whatever happened: let everything end, for the next example has the same runtime."""
        world = self.world
        world.finishing = True
        world.runtime.thaw()
        for job in world.jobs:
            assert job.work is not None
            job.work.cancel()
        with world.cond:
            for queue in world.queues:
                for q in queue.alive:
                    q.mail.put("end")


def test_the_runtime_does_what_the_model_says() -> None:
    with cmwq.Runtime() as runtime:
        _runtimes.append(runtime)
        try:
            run_state_machine_as_test(
                Machine,
                settings=settings(
                    max_examples=EXAMPLES,
                    stateful_step_count=STEPS,
                    deadline=None,
                    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
                ),
            )
        finally:
            _runtimes.remove(runtime)
        runtime.check_invariants()
