"""Serving: a queue's works are pulled from a source, when the pool could run one more (E12).

A pool knows what waits in its own list. Where a scheduler or a broker keeps the works back, that list is empty: nobody
looks whether a worker blocks, and nobody is woken if one does. So the source has a *place in line*: an item in the
worklist, as any work is. As long as it stands there work waits, as far as everybody is concerned, and every rule holds
as it does for works: max_active, order, freezing, the wake chain, the sensor, rescuers, CPUs that leave. A worker that
comes to it asks the source, and what the source gives is run as that very item.

Guarantees
- The source is asked when, and only when, a worker would otherwise have begun a work of the queue.
- One asks at a time. The next place is put in line only when the source has answered, and before its call begins: so a
  source that blocks keeps one worker, and no second one comes in to block behind it. Meanwhile nothing of the source
  stands in the list, and the pool goes on with what else there is. Where a queue has several pools each has a place;
  who comes to one while another asks steps aside, and the one who asks puts it in line again.
- A `notify` is never lost. The source's "nothing now" counts only if no `notify` came since it was asked. Let A be who
  asks, N who notifies, after something was put into the source:

      A1 note the last news                N1 (something is in the source)
      A2 ask the source: nothing now       N2 that is news
      A3 with the lock held: no news since N3 with the lock held: the source may have more;
         A1? The source is dry                put it in line

  N2 before A1: so N1 comes before A2, and the ask has seen it. N2 between A1 and A3: A3 finds news, and the place goes
  in line again. N2 after A3's look: N3 has the lock after A3, and undoes what that has decided.
- What the source gave is run, or said not to be (`lose`): it isn't lost by an exception in the middle of ours (F10).
  `Ask.answers` has it from the first moment, and whoever ends that item looks there.

The place in line itself is in `asking`. The letters are those of `pool`; V is `Serving._lock`, of the rank of a
work's lock.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from cmwq._core import checks
from cmwq._core.held import holding, outside
from cmwq._core.naming import name_of
from cmwq._core.ranks import Rank
from cmwq._errors import ForeignProcess, QueueClosed, Reentered
from cmwq._pool.mend import mending
from cmwq._workqueue.asking import Ask, ServingEnd, accept, count, stand_first, stand_in_line
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

_log = logging.getLogger("cmwq")

BACKOFF = 0.1
"""Seconds until a source that raised is asked again; twice as many each time it raises again."""
MAX_BACKOFF = 30.0
"""Seconds at most."""


class Serving:
    """What `WorkQueue.serve` returns: a queue's works are pulled from a source for as long as this goes on.

    It ends when the source has no more, by `stop` or `close`, or when the queue or its runtime closes or the
    interpreter exits. As a context manager it is closed at the end. Thread-safe.

    asked, given, ended, failures: how often the source was asked, how many calls it gave, how many of those are over,
    and how often it raised or answered with what is no call. To be read at any time.
    """

    def __init__(self, wq: WorkQueue, source: Source, on_stop: Call | None) -> None:
        host = wq.runtime.host
        self.asked = self.failures = 0  # ~
        self.given = 0  # V to change, read freely: the highest number of a call
        self.source = source  # I
        self.context = wq.new_context()  # I: asks and calls run in a copy of it each
        self._wq = wq  # I
        self._on_stop = on_stop  # V to change: None once it was called
        self._born = Work.generation  # I: in which process
        self._news: object = None  # A: another with each `notify`
        self._dry = False  # V: it has nothing now
        self._exhausted = False  # V: it has no more
        self._stopped = False  # V to change: it isn't asked any more
        self._asks: dict[PoolWorkQueue, Ask] = {}  # V: the places that stand in line
        self._asker: Ask | None = None  # V: who asks
        self._calls: set[Ask] = set()  # V: who has a call that is not over
        self._nr_failures = 0  # V: in a row
        self._retry: Timer | None = None  # V: the source raised, and will be asked again
        self._parkers: list[Parker] = []  # V: who waits for the end
        self._lock = host.lock(Rank.WORK, mending(self))  # I

    def __repr__(self) -> str:
        state = "over" if self.over else "stopping" if self._stopped else "dry" if self._dry else "open"
        return f"<cmwq.Serving of queue {self._wq.name!r} {state} asked={self.asked} given={self.given}>"

    # ------------------------------------------------------------------------------- for users

    @property
    def ended(self) -> int:
        """Calls that have ended, or were said not to be run."""
        return self.given - len(self._calls)

    @property
    def over(self) -> bool:
        """The source is not asked any more, and each call that it gave has ended."""
        asks = self._asker is not None or not (self._stopped or self._exhausted)
        return self._is_foreign() or not (asks or self._calls)

    def notify(self) -> None:
        """The source that had "nothing now" may have something: ask it again, as soon as a worker has time.

        Call it after something was put into the source. Once is enough for any number of things, and once too often
        does no harm. From any thread, from a work, from the source itself, from a signal handler or a finaliser: it
        never waits for a work. One that raised is asked at once. Nothing happens when it is over, or in the child of a
        fork.
        """
        if self._is_foreign():
            return
        self._news = object()  # N2
        try:
            with self._lock:
                self._dry = False
            self.arrange()
        except Reentered:
            self._wq.runtime.host.defer(self.notify)

    def stop(self) -> None:
        """Ask the source no more. Does not wait: an ask that is under way comes back some time, and the call that it
        brings is run, for it was given; so is all that was given before. `on_stop` is called before this returns.

        Harmless if it has ended, or was stopped. In a signal handler or a finaliser in the middle of cmwq's own code it
        is carried out when that is over.
        """
        if self._is_foreign():
            return
        try:
            with self._lock:
                self._stopped = True
            self.heed()
        except Reentered:
            self._wq.runtime.host.defer(self.stop)
            return
        on_stop = self._on_stop
        if on_stop is not None and not self._exhausted:
            try:
                on_stop()
            except Exception:
                _log.exception("on_stop of a source of queue %r raised", self._wq.name)
        self._on_stop = None  # after the call: should that be interrupted, the next to stop makes it

    def wait(self, timeout: float | None = None) -> None:
        """Return when it is over: the source has no more, or was stopped, and all its calls have ended.

        timeout: seconds. Raises CmwqTimeout (it goes on), FlushDeadlock from one of its own calls, ForeignProcess in
        the child of a fork, Abandoned if its runtime has ended and left calls behind.
        """
        if self._is_foreign():
            raise ForeignProcess(f"{self!r} was begun before this process was forked; it is over here")
        run_steps(self._wait_steps(), self._wq.runtime, timeout, lambda: f"{self!r} is not over")

    def close(self, timeout: float | None = None) -> None:
        """`stop`, then `wait` for so many seconds at most."""
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
        """It was the parent's before a fork, and so is the source (G2). Its lock may be held by nobody who is here."""
        return self._born != Work.generation

    def _may_ask(self) -> bool:
        """As far as the source goes, and its queue takes works."""
        return self._wq.is_open and not (self._stopped or self._exhausted or self._dry or self._wq.runtime.closed)

    @outside
    def arrange(self) -> None:
        """If the source is to be asked, it has its place in line, on each of the queue's pools. May be called at any
        time. Raises Reentered.
        """
        if self._is_foreign() or self._asker is not None or not self._may_ask():
            return
        try:
            places = self._places()
        except QueueClosed:
            return
        with self._lock:
            if self._asker is not None or not self._may_ask():
                return  # whoever asks arranges things then
            for pwq in places:
                standing = self._asks.get(pwq)
                if standing is None or standing.done():
                    ask = Ask(self, pwq)
                    if stand_in_line(pwq, ask):
                        # Noted last. One that stands there and isn't noted finds out, when its turn comes, whether the
                        # source is to be asked.
                        self._asks[pwq] = ask

    def _places(self) -> Collection[PoolWorkQueue]:
        """Raises QueueClosed, ThreadLimit where a pool has to be started."""
        wq = self._wq
        if wq.scope == "system":
            return (wq._only or wq.place_here(),)
        return {wq.place_at(cpu): None for cpu in wq.runtime.cpus()}

    @outside
    def heed(self) -> None:
        """The queue's state changed, or its own: stand in line, or do not. Then whoever drains or closes need not look
        at places in line, but waits for the one who asks. Raises Reentered.
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
        """Its worker is here. True: it asks now.  Context: the worker."""
        if self._is_foreign():
            return False
        with self._lock:
            if self._asks.get(ask.pwq) is ask:
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
        """The source has answered, or raised. True: its call is to be run now.  Context: the worker."""
        if self._is_foreign():
            return False  # the source forked: what it answers is for the parent
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
                runs = accept(ask)
            elif error is not None:
                self._nr_failures += 1
                self.failures += 1
                if self._news is ask.news:
                    self._retry = self._wq.runtime.host.call_later(self._pause(), self.notify)
                    self._dry = True  # as if it had nothing; last, for never without a retry that is due
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
        _log.error(
            "source %s of queue %r raised; it is asked again in %g s", name, self._wq.name, pause, exc_info=error
        )

    @holding("self._lock")
    def _pause(self) -> float:
        """Until a source that raised is asked again."""
        return min(BACKOFF * 2.0 ** min(self._nr_failures - 1, 20), MAX_BACKOFF)

    # ------------------------------------------------------------------------------- its calls

    @outside
    def _hand_on(self, ask: Ask) -> None:
        """Its call can't begin here and now: the queue is frozen, or its worker was interrupted. It is the next of the
        queue then, as an item of its own. May be done twice.
        """
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
        """It has a call: that makes one more given, once. May be done twice."""
        if not ask.number:
            ask.number = self.given + 1
        self.given = max(self.given, ask.number)

    @outside
    def call_failed(self, call: Call, exc: BaseException) -> None:
        """As if it had been a queued work (B4).  Context: its worker."""
        self._wq.work_failed(Work(call), exc)

    @outside
    def call_ended(self, ask: Ask) -> None:
        """Context: its worker."""
        if self._is_foreign():
            return
        with self._lock:
            self._calls.discard(ask)
            self._tell()
        self._leave_if_over()

    @outside
    def lose(self, ask: Ask, why: str) -> None:
        """What the source gave is not run. Said, so that somebody may give it back."""
        name = name_of(ask.answers[0])
        _log.error("call %s that a source gave to queue %r is not run: %s", name, self._wq.name, why)
        with self._lock:
            self._calls.discard(ask)
            self._tell()
        self._leave_if_over()

    @outside
    def recover(self, ask: Ask, exc: BaseException) -> None:
        """Its worker was interrupted in the middle of ours: everything is as if it had not come, or had gone on.

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
            if self._asks.get(ask.pwq) is ask:
                del self._asks[ask.pwq]
            if self._asker is ask:
                self._asker = None
        self.heed()

    # ------------------------------------------------------------------------------- its end

    @holding("self._lock")
    def mend(self) -> None:
        """Something was raised while V was held. What is noted may be less than what stands in line, and does no harm;
        whether that is enough is looked at again.
        """
        for ask in self._calls:
            self._number(ask)
        self._tell()
        self._wq.runtime.host.defer(self.arrange)

    @holding("self._lock")
    def _tell(self) -> None:
        """Whoever waits for the end looks whether it has come."""
        if self._parkers and self.over:
            for parker in self._parkers:
                parker.unpark()

    @outside
    def _leave_if_over(self) -> None:
        """Its queue need not know of it any more."""
        if self.over and self in self._wq._servings:
            with self._wq._lock:
                self._wq._servings = tuple(other for other in self._wq._servings if other is not self)


def begin(wq: WorkQueue, source: Any, on_stop: Any) -> Serving:
    """`WorkQueue.serve`, which says what it promises."""
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
    serving._places()  # what can be refused is refused here
    try:
        with wq._lock:
            wq._servings = (*wq._servings, serving)
        serving.heed()
    except BaseException:
        serving.stop()
        raise
    return serving
