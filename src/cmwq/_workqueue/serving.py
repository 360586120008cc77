"""Serving: works of a queue are pulled from a source, whenever the pool could run one more (E12).

A pool sees only what waits in its own list. If a scheduler or a broker keeps the works back, that list is empty: no
sensor watches for workers that block, and nobody is woken when one does. So the source has a *place in line*: an item
in the worklist, like any work. As long as it stands there, work waits, and every rule applies as it does to works:
max_active, order, freezing, the wake chain, the sensor, rescuers, CPUs that leave. A worker that takes this item asks
the source, and runs what the source gives as this very item.

Guarantees
- The source is asked when, and only when, a worker would otherwise have begun a work of the queue. What it gives begins
  at once, unless it will probably compute for long, and enough such works do (A9, A10): then the call waits in the
  lane, and another is asked for. While as many wait there as may run, the source is not asked.
- Only one worker asks at a time. The next place is put in line after the source has answered and before its call
  begins. So a source that blocks keeps one worker, and no second one comes to block behind it. Meanwhile nothing of the
  source is in the list, and the pool goes on with other works. A queue with several pools has a place on each. A worker
  that takes one while another asks drops it, and the one that asks puts it in line again.
- A `notify` is never lost. The source's "nothing now" counts only if no `notify` came since it was asked. Let A be the
  worker that asks, and N the thread that notifies after it has put something into the source:

      A1 note the last news                N1 (something is in the source)
      A2 ask the source: nothing now       N2 make news
      A3 with the lock held: no news since N3 with the lock held: the source may have more;
         A1? The source is dry                put it in line

  If N2 precedes A1, N1 precedes A2, and the ask has seen it. If N2 falls between A1 and A3, A3 finds news, and the
  place goes in line again. If N2 follows A3's look, N3 has the lock after A3, and undoes what A3 decided.
- What the source gave is run, or reported as not run (`lose`): an exception in cmwq's own code cannot lose it (F10).
  `Ask.answers` has it from the first moment, and whatever ends that item looks there.

The place in line itself is in `asking`. The letters are those of `pool`; V: `Serving._lock`, ranked as a work's.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from cmwq._core import checks, log
from cmwq._core.held import holding, outside
from cmwq._core.naming import name_of
from cmwq._core.ranks import Rank
from cmwq._core.surely import at_any_depth
from cmwq._core.tables import lookup
from cmwq._errors import ForeignProcess, QueueClosed, Refused, own
from cmwq._pool.mend import mending
from cmwq._workqueue.asking import Ask, ServingEnd, accept, call_on_stop, count, stand_first, stand_in_line, waiting
from cmwq._workqueue.wait import run_steps
from cmwq._workqueue.work import Work

if TYPE_CHECKING:
    from types import TracebackType
    from typing import TypeAlias

    from cmwq._core.ports import Parker, Timer
    from cmwq._workqueue.pwq import PoolWorkQueue
    from cmwq._workqueue.queue import WorkQueue
    from cmwq._workqueue.wait import Steps

    Call: TypeAlias = Callable[[], object]
    Source: TypeAlias = Callable[[], Call | None]


BACKOFF = 0.1
"""Seconds until a source that raised is asked again; doubled each time it raises again."""
MAX_BACKOFF = 30.0
"""The longest such pause, in seconds."""


class Serving:
    """A source from which the works of a queue are pulled, until this ends. `WorkQueue.serve` returns it.

    It ends when the source has no more, by `stop` or `close`, when the queue or its runtime closes, or at interpreter
    exit. As a context manager it is closed at the end of the block. Thread-safe.

    asked, given, ended, failures: how often the source was asked; how many calls it gave; how many of those are over;
    how often it raised, or answered with something that is no call. They may be read at any time.
    """

    def __init__(self, wq: WorkQueue, source: Source, on_stop: Call | None) -> None:
        host = wq.runtime.host
        self.asked = self.failures = 0  # ~
        self.given = 0  # V to change, read freely: the highest number of a call
        self.source = source  # I
        self.context = wq.new_context()  # I: each ask and each call runs in a copy of it
        self._wq = wq  # I
        self._on_stop = on_stop  # V to change: None once somebody calls it
        self._born = Work.generation  # I: the process in which this was begun
        self._news: object = None  # A: replaced by each `notify`
        self._dry = False  # V: it has nothing now
        self._exhausted = False  # V: it has no more
        self._stopped = False  # V to change: it is not asked any more
        self._asks: dict[PoolWorkQueue, Ask] = {}  # V: the places that stand in line
        self._asker: Ask | None = None  # V: the place whose worker asks now
        self._calls: set[Ask] = set()  # V: those whose call is not over
        self._nr_failures = 0  # V: in a row
        self._retry: Timer | None = None  # V: the source raised, and will be asked again
        self._parkers: list[Parker] = []  # V: of threads that wait for the end
        self._lock = host.lock(Rank.WORK, mending(self))  # I

    def __repr__(self) -> str:
        state = "over" if self.over else "stopping" if self._stopped else "dry" if self._dry else "open"
        return f"<cmwq.Serving of queue {self._wq.name!r} {state} asked={self.asked} given={self.given}>"

    # ------------------------------------------------------------------------------- for users

    @property
    def ended(self) -> int:
        """How many calls have ended, or were reported as not run."""
        return self.given - len(self._calls)

    @property
    def over(self) -> bool:
        """True once the source is not asked any more, and every call that it gave has ended."""
        asks = self._asker is not None or not (self._stopped or self._exhausted)
        return self._is_foreign() or not (asks or self._calls)

    def notify(self) -> None:
        """Have the source asked again, as soon as a worker has time: it said "nothing now", but may have something.

        Call this after putting something into the source. One call is enough for any number of things, and a needless
        one does no harm. A source that raised is asked at once, without its pause. It never waits for a work, and may
        be called from any thread, a work, the source itself, a signal handler or a finaliser. Does nothing once this is
        over, or in the child of a fork.
        """
        if self._is_foreign():
            return
        self._news = object()  # N2
        try:
            with self._lock:
                self._dry = False
            self.arrange()
        except Refused as exc:
            own(exc)
            self._wq.runtime.host.defer(self.notify)

    def stop(self) -> None:
        """Stop asking the source. Does not wait for works: everything that the source gave is run, also what an ask
        under way still brings. `on_stop` is called before this returns, unless the source had no more, or another
        thread's `stop` calls it.

        Does no harm if this has ended or was stopped. In a finaliser or a signal handler that interrupted cmwq's own
        code it is deferred until that code is done.
        """
        if self._is_foreign():
            return
        try:
            with self._lock:
                self._stopped = True
            self.heed()
        except Refused as exc:
            own(exc)
            self._wq.runtime.host.defer(self.stop)
            return
        call_on_stop(self)

    def wait(self, timeout: float | None = None) -> None:
        """Return when this is over: the source has no more or was stopped, and all its calls have ended.

        timeout: seconds; then CmwqTimeout is raised, and the serving goes on. Raises FlushDeadlock in one of its own
        calls, ForeignProcess in the child of a fork, Abandoned if its runtime has ended and left calls behind.
        """
        if self._is_foreign():
            raise ForeignProcess(f"{self!r} was begun before this process was forked; it is over here")
        run_steps(self._wait_steps(), self._wq.runtime, timeout, lambda: f"{self!r} is not over")

    def close(self, timeout: float | None = None) -> None:
        """`stop`, then `wait` for at most `timeout` seconds. Raises what `wait` raises."""
        self.stop()
        self.wait(timeout)

    def __enter__(self) -> Serving:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _wait_steps(self) -> Steps[None]:
        yield ServingEnd(self)

    # ------------------------------------------------------------------------------- the place in line

    def _is_foreign(self) -> bool:
        """Whether the parent began it before a fork (G2). Then its lock may be held by a thread that is not here."""
        return self._born != Work.generation

    def _may_ask(self) -> bool:
        """True unless the state of the source or of the queue forbids asking."""
        return self._wq.is_open and not (self._stopped or self._exhausted or self._dry or self._wq.runtime.closed)

    @outside
    def arrange(self) -> None:
        """Put the source in line on each of the queue's pools, if it is to be asked. May be called any time. Raises
        Reentered.
        """
        if self._is_foreign() or self._asker is not None or not self._may_ask():
            return
        try:
            places = self._places()
        except QueueClosed as exc:
            own(exc)
            return
        with self._lock:
            if self._asker is not None or not self._may_ask():
                return  # the worker that asks arranges things afterwards
            for pwq in places:
                standing = lookup(self._asks, pwq)
                if (standing is None or standing.done()) and len(waiting(self, pwq)) < max(1, pwq.pool.target):
                    ask = Ask(self, pwq)
                    if stand_in_line(pwq, ask):
                        # Noted last. A place that stands in line without being noted finds out, when its turn comes,
                        # whether the source is to be asked.
                        self._asks[pwq] = ask

    def _places(self) -> Collection[PoolWorkQueue]:
        """This queue's place on each of its pools. Raises QueueClosed, and ThreadLimit if a pool can't be started."""
        wq = self._wq
        if wq.scope == "system":
            return (wq._only or wq.place_here(),)
        return {wq.place_at(cpu): None for cpu in wq.runtime.cpus()}

    @outside
    def heed(self) -> None:
        """Adapt to a change of the queue's state or of its own: stand in line, or leave it. So a drain or a close need
        not look at places in line; it waits only for the one that asks. Raises Reentered.
        """
        if self._is_foreign():
            return
        if self._wq._closing and not self._stopped:
            self.stop()
            return
        with self._lock:
            asks = [] if self._may_ask() else list(self._asks.values())
            if asks:
                self._asks = {}
            if not self._wq.is_open or self._stopped:
                if self._asker is not None:
                    count(self._asker)
                if self._retry is not None and self._stopped:
                    self._retry.cancel()
            self._tell()
        for ask in asks:
            ask.cancel()
        self.arrange()
        self._leave_if_over()

    # ------------------------------------------------------------------------------- asking

    @outside
    def take_turn(self, ask: Ask) -> bool:
        """A worker has taken this place. True: it is to ask the source now.  Context: the worker."""
        if self._is_foreign():
            return False
        with self._lock:
            if lookup(self._asks, ask.pwq) is ask:
                del self._asks[ask.pwq]
            if self._asker is not None or not self._may_ask():
                return False
            if self._retry is not None:
                self._retry.cancel()
                self._retry = None
            ask.news = self._news  # A1
            self.asked += 1
            self._asker = ask
            return True

    @outside
    def settle(self, ask: Ask, error: BaseException | None) -> bool:
        """The source has answered or raised. True: the worker is to run the call now.  Context: the worker."""
        if self._is_foreign():
            return False  # the source forked: its answer is for the parent
        answer = ask.answers[0] if ask.answers else None
        if answer is not None and not callable(answer):
            what = "a source gives calls without arguments (functools.partial makes one), or None"
            error = TypeError(f"{what}: not {checks.shown(answer)}")
            ask.answers.clear()
        call = ask.answers[0] if ask.answers and answer is not None else None
        runs = False
        with self._lock:
            if call is not None:
                self._nr_failures = 0
                self._calls.add(ask)
                self._number(ask)
                ask._call = (call,)  # its name in messages, and by which it is known what it will be like
                runs = accept(ask)
            elif error is not None:
                self._nr_failures += 1
                self.failures += 1
                if self._news is ask.news:
                    self._retry = self._wq.runtime.host.call_later(self._pause(), self.notify)
                    self._dry = True  # as if it had nothing. Last: it is never dry without a retry that is due
            elif ask.answers:
                self._nr_failures = 0
                self._dry = self._news is ask.news  # A3
            else:
                self._exhausted = True
            if call is None:
                ask.answers.clear()
            self._asker = None
            pause = self._pause()
        if error is not None:
            self._say_that_it_failed(error, pause)
        if call is None:
            self.heed()
        else:
            if not runs:
                self._hand_on(ask)
            self.arrange()
        return runs

    def _say_that_it_failed(self, error: BaseException, pause: float) -> None:
        name = name_of(self.source)
        log.error("source %s of queue %r raised; it is asked again in %g s", name, self._wq.name, pause, exc_info=error)

    @holding("self._lock")
    def _pause(self) -> float:
        """Seconds until a source that raised is asked again."""
        return min(BACKOFF * 2.0 ** min(self._nr_failures - 1, 20), MAX_BACKOFF)

    # ------------------------------------------------------------------------------- its calls

    @outside
    def _hand_on(self, ask: Ask) -> None:
        """Make the call the next work of the queue, as an item of its own, for it can't begin now. May be repeated."""
        pwq = ask.pwq
        with self._lock:
            heir = ask.heir
            if heir is None:
                heir = Ask(self, pwq)
                heir._context, heir.answers, heir._call = ask._context, ask.answers, (ask.answers[0],)
                heir.number = ask.number
                ask.heir = heir
            listed = heir._state != "PENDING" or pwq.has(heir)
            if not listed and not stand_first(pwq, heir):
                heir.over = True
            if not heir.over:
                self._calls.add(heir)
            self._number(heir)
            self._calls.discard(ask)
        if heir.over:
            self.lose(heir, self._wq.runtime.why_closed())

    @holding("self._lock")
    def _number(self, ask: Ask) -> None:
        """Count the call that `ask` has as given, once. May be repeated."""
        if not ask.number:
            ask.number = self.given + 1
        self.given = max(self.given, ask.number)

    @outside
    def call_failed(self, call: Call, exc: BaseException) -> None:
        """Report the failure as for a queued work (B4).  Context: its worker."""
        self._wq.work_failed(Work(call), exc)

    @outside
    def call_ended(self, ask: Ask) -> None:
        """Note that the call is over, and wake the threads that wait for the end.  Context: its worker."""
        if self._is_foreign():
            return
        with self._lock:
            self._calls.discard(ask)
            self._tell()
        self._leave_if_over()

    @outside
    def lose(self, ask: Ask, why: str) -> None:
        """Report that what the source gave is not run, so that somebody may give it back."""
        name = name_of(ask.answers[0])
        log.error("call %s that a source gave to queue %r is not run: %s", name, self._wq.name, why)
        with self._lock:
            self._calls.discard(ask)
            self._tell()
        self._leave_if_over()

    @outside
    def recover(self, ask: Ask, exc: BaseException) -> None:
        """Restore order after its worker was interrupted in cmwq's own code: as if it had not come, or had gone on.

        Context: the worker.
        """
        if self._is_foreign():
            return
        if ask.begins:
            if not ask.over:
                self.call_failed(ask.answers[0], exc)
                ask.over = True
            self.call_ended(ask)
        elif ask.answers and callable(ask.answers[0]):
            self._hand_on(ask)
        with self._lock:
            if lookup(self._asks, ask.pwq) is ask:
                del self._asks[ask.pwq]
            if self._asker is ask:
                self._asker = None
        self.heed()

    # ------------------------------------------------------------------------------- its end

    @holding("self._lock")
    def mend(self) -> None:
        """Something was raised while V was held. Fewer places may be noted than stand in line. That does no harm, and
        whether those suffice is looked at again.
        """
        for ask in self._calls:
            self._number(ask)
        self._tell()
        self._wq.runtime.host.defer(self.arrange)

    @holding("self._lock")
    def _tell(self) -> None:
        """Wake the threads that wait for the end, if it has come."""
        if self._parkers and self.over:
            for parker in self._parkers:
                parker.unpark()

    @outside
    def _leave_if_over(self) -> None:
        """Have the queue forget it once it is over."""
        if self.over and self in self._wq._servings:
            with self._wq._lock:
                self._wq._servings = tuple(other for other in self._wq._servings if other is not self)


def begin(wq: WorkQueue, source: Any, on_stop: Any) -> Serving:
    """Do what `WorkQueue.serve` promises."""
    if not callable(source):
        try:
            source = iter(source).__next__
        except TypeError:
            what = f"queue {wq.name!r}: a source is a function or an iterable of calls"
            raise TypeError(f"{what}, not {checks.shown(source)}") from None
    if on_stop is not None:
        checks.function(f"queue {wq.name!r}: on_stop", on_stop)
    wq._check_open()
    serving = Serving(wq, source, on_stop)
    serving._places()  # refuse here whatever can be refused
    try:
        with wq._lock:
            wq._servings = (*wq._servings, serving)
        serving.heed()
    except BaseException:
        at_any_depth(serving.stop)
        raise
    return serving
