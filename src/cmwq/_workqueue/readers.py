"""Readers: what `concurrent.futures.wait` and `as_completed` find as a future's `_condition` and `_waiters`. They hold
the one, a lock, while they read the future's state, and note in the other that they wait. `Audience.announce` holds it
while it changes the state and tells those who wait.

Guarantees: while a reader reads, the state does not change; should it have to, the reader's call fails with
`Reentered`, and does not wait in vain. A hold that nobody will end keeps others for about a second at most, however
many futures are held by the same call.

Such holds exist: if Ctrl-C hits the loop of `concurrent.futures` that takes the conditions of many futures, or the one
that releases them, those that it has taken are never released. So a hold is no lock that a thread takes, but a record
of the call that reads, made and dropped under L (the letters are those of `pool`). A call is known by its frame, and a
hold counts for nothing once its call is over. There are two ways to know that:
- The thread begins another call that reads, and the frame of the first is not on its stack. This needs no time.
- Another thread waits, and the call takes no step for a second, or longer if it holds very many futures. Each hold that
  it takes or ends is a step, and so is each note that it waits; and each look of a call that waits for a hold itself,
  unless it interrupts another one, which could be what the holder waits for. The second is counted in slices: if the
  whole process was stopped, or one thread kept the GIL for long, no more than a slice has passed.
Should the second be wrong, for a signal handler that ran within the call took longer, say, the call finds out when it
says that it waits: this is when it is refused.

Most calls are over before anybody reads, and then there is nothing to hold (`OVER`). That is so by design: to be told
of an end costs both sides several microseconds, so who is about to wait for short calls lets the workers go first
(`let_workers_go_first`), as `result()` does.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from concurrent.futures import as_completed, wait
from concurrent.futures._base import CANCELLED_AND_NOTIFIED, FINISHED
from contextlib import suppress
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import ref

from cmwq._core.held import outside
from cmwq._core.ranks import Rank
from cmwq._core.told import Told
from cmwq._errors import Refused
from cmwq._pool.worker import current_worker

if TYPE_CHECKING:
    from cmwq._core.ports import Host
    from cmwq._pool.pool import WorkerPool
    from cmwq._workqueue.future import Future

F = TypeVar("F", bound=Callable[..., Any])

SLICE = 0.25
"""Seconds that a call waits for a hold before it looks whether the holder has taken a step."""

SLICES = 4
"""So many in a row without a step of the holder: it is over."""

MANY = 10_000
"""So many futures that a call holds are one slice more, for it reads all of them between two steps: that takes two
milliseconds of CPU time, and who knows how many other threads want the GIL, or the CPU.
"""

FINE = 50
"""Calls that begin during one nap: from so many on, another nap costs less than to be told of each end."""

NAPS = 10
"""So many in a row at most, for who waits may have a time limit, or be waited for."""

RARELY = 0.02
"""Seconds without naps after one in which fewer began."""

_LAST = (CANCELLED_AND_NOTIFIED, FINISHED)
"""The states that do not change any more."""

_reading: set[CodeType] = set()


def reads(fn: F) -> F:
    """A call of this function reads: within it a thread may hold futures."""
    code = getattr(fn, "__code__", None)  # somebody may have replaced those of the standard library
    if code is not None:
        _reading.add(code)
    return fn


reads(wait)
reads(as_completed)


def innermost_read(depth: int) -> FrameType | None:
    """The innermost frame of a call that reads, among the caller's frame (1), its caller's (2), and so on, from `depth`
    outwards.

    Without `f_back`: when there is no memory for a frame object, CPython's returns None, with the exception still set.
    """
    with suppress(ValueError):  # the stack is not as deep
        while (frame := sys._getframe(depth)).f_code not in _reading:
            depth += 1
        return frame
    return None


class _Call:
    """One call that reads, or has read."""

    __slots__ = ("frame", "holds", "reader", "steps")

    def __init__(self, frame: FrameType, reader: _Reader) -> None:
        self.frame: FrameType | None = frame  # A: None once it is over
        self.reader = reader  # I
        self.holds = 0  # S: how many futures it holds
        self.steps = 0  # S to write; read freely

    def end(self) -> None:
        self.frame = None


class _Reader:
    """A thread that reads."""

    __slots__ = ("calls", "last", "wakes_at")

    def __init__(self) -> None:
        self.last: tuple[FrameType, _Call] | None = None  # S: who called last, and for which call
        self.calls: list[_Call] = []  # S: those that hold futures, the outermost first; some may be over
        self.wakes_at = 0.0  # S: no nap before

    def call(self) -> _Call:
        """The reading call that calls what calls this."""
        caller, last = sys._getframe(2), self.last
        if last is not None and last[0] is caller and last[1].frame is not None:
            return last[1]
        frame = innermost_read(3) or caller
        calls = self.calls
        if not calls or calls[-1].frame is not frame:
            self.forget_what_is_over()
            if not calls or calls[-1].frame is not frame:
                calls.append(_Call(frame, self))
        self.last = caller, calls[-1]
        return calls[-1]

    def forget_what_is_over(self) -> None:
        """Forget the calls whose frames are not on this thread's stack."""
        if not self.calls:
            return
        on_stack: set[FrameType | None] = set()
        with suppress(ValueError):
            while True:
                on_stack.add(sys._getframe(len(on_stack)))
        for call in self.calls.copy():
            if call.frame not in on_stack:
                self.forget(call)

    def forget(self, call: _Call) -> None:
        call.end()
        self.last = None
        with suppress(ValueError):
            self.calls.remove(call)


class _Thread(threading.local):
    def __init__(self) -> None:
        self.me = _Reader()  # S


_thread = _Thread()


class Readers:
    """A reentrant hold, and a list of waiters. Thread-safe."""

    __slots__ = ("_count", "_freed", "_holder", "_host", "_lock", "_waiters")

    def __init__(self, pool: WorkerPool) -> None:
        self._host = pool.host  # I
        self._lock = pool.lock  # I: L
        self._holder: _Call | None = None  # L
        self._count = 0  # L: how often its thread has taken it
        self._freed: Told | None = None  # L: to be told when the hold ends
        self._waiters: list[Any] = []  # A

    # ------------------------------------------------------------------------------- the condition

    def acquire(self) -> bool:
        """Hold it, and return True. Waits as long as another call that reads has it."""
        reader = _thread.me
        call = reader.call()
        if not self._take(call):
            self._wait(call, steps=reader.calls[0] is call)
        return True

    def release(self, *exc_info: object) -> None:
        """End it. Does nothing if the call has it no longer, because it was taken for one that is over."""
        reader, freed = _thread.me, None
        call = reader.call()
        with self._lock:
            if self.is_mine():
                self._count -= 1
                if not self._count:
                    freed, self._freed, self._holder = self._freed, None, None
        call.steps += 1
        call.holds -= 1
        if call.holds <= 0:
            reader.forget(call)
        if freed is not None:
            freed.set()

    __enter__, __exit__ = acquire, release  # themselves: a call of this module is known by who calls it

    def is_mine(self) -> bool:
        """Whether the calling thread has it."""
        holder = self._holder
        return holder is not None and holder.reader is _thread.me and holder.frame is not None

    def _take(self, call: _Call) -> bool:
        with self._lock:
            holder = self._holder
            if holder is None or holder.frame is None:
                self._holder, self._count = call, 1
            elif holder.reader is call.reader:  # the same call, or one further out, which this one interrupts
                self._count += 1
            else:
                return False
            call.holds += 1
            call.steps += 1
            return True

    def _wait(self, call: _Call, *, steps: bool) -> None:
        """Wait for it, and take it. steps: this is the outermost call of its thread."""
        idle = 0
        while not self._take(call):
            with self._lock:
                holder = self._holder
                if holder is None:
                    continue
                if self._freed is None:
                    self._freed = Told()
                freed, before = self._freed, holder.steps
            if freed.wait(SLICE):
                continue
            if steps:
                call.steps += 1
            with self._lock:
                idle = idle + 1 if self._holder is holder and holder.steps == before else 0
                if idle >= SLICES + holder.holds // MANY:
                    holder.end()

    # ------------------------------------------------------------------------------- the list

    def append(self, waiter: Any) -> None:
        """Note that the calling thread waits. Raises Reentered if it did not hold the future while it read."""
        holder = self._holder
        if holder is None or not self.is_mine():
            raise Refused(
                "this wait was interrupted for more than a second while it read what it waits for, by a signal handler "
                "or a debugger, say; it has to be begun anew"
            )
        holder.steps += 1
        if type(waiter.event) is not Told:
            _make_safe(waiter, self._host)
        self._waiters.append(waiter)
        _note_that_a_work_waits(waiter)

    def remove(self, waiter: Any) -> None:
        """It waits no longer. Raises ValueError if it did not."""
        self._waiters.remove(waiter)

    def copy(self) -> list[Any]:
        return self._waiters.copy()


def _make_safe(waiter: Any, host: Host) -> None:
    """Give the waiter an event and a lock that no exception leaves in a bad state: whoever announces an end uses them.
    Context: the thread that made the waiter holds all that it reads, so nobody has used them yet.
    """
    if type(getattr(waiter, "lock", None)) is _PLAIN_LOCK:
        waiter.lock = host.lock(Rank.WAITER)
    if type(waiter.event) is threading.Event:
        waiter.event = Told()  # last: it says that all is done


_PLAIN_LOCK: type = type(threading.Event()._cond._lock)  # type: ignore[attr-defined]


def _note_that_a_work_waits(waiter: Any) -> None:
    worker = current_worker()
    if worker is None:
        return
    known = worker.waiters
    if not known or known[-1]() is not waiter:  # weak: a waiter lives as long as the wait
        worker.waiters = (*(other for other in known if other() is not None), ref(waiter))


class Over:
    """In the place of the readers of a call that was over before anybody read: nothing changes, and nobody is told."""

    __slots__ = ()

    def acquire(self) -> bool:
        return True

    def release(self, *exc_info: object) -> None:
        pass

    __enter__, __exit__ = acquire, release

    def append(self, waiter: Any) -> None:
        pass

    def remove(self, waiter: Any) -> None:
        pass


OVER = Over()


def readers_of(future: Future[Any]) -> Readers | Over:
    """What `concurrent.futures` locks, and where it says that it waits: once made, always the same. There are none if
    the call was over before anybody read. Raises ForeignProcess, Abandoned: it will never be over.
    """
    if future._state not in _LAST:
        pool = future.phase.pwq.pool
        pool.runtime.check_alive(pool, future)
        let_workers_go_first(future, pool)
        with pool.lock:
            if future._state not in _LAST:
                audience = future._listeners()
                if audience.readers is None:
                    audience.readers = Readers(pool)
                return audience.readers
    # Looked for after the state: once this is one of the last, no readers are made any more.
    made = future._audience
    return OVER if made is None or made.readers is None else made.readers


@outside
def let_workers_go_first(future: Future[Any], pool: WorkerPool) -> None:
    """Nap while short calls wait on this pool, for at most some `NAP`s. Does nothing on a worker, whose work may be
    what keeps them, or within a hold, which would keep those who announce.
    """
    if not pool.worklist or current_worker() is not None:
        return
    me = _thread.me
    me.forget_what_is_over()
    host = pool.host
    if me.calls or host.monotonic() < me.wakes_at:
        return
    parker = host.parker()
    for _ in range(NAPS):
        started = pool.count_started()
        pool.nap(parker)
        if not pool.worklist or future.done():
            return
        if pool.count_started() - started < FINE:
            break
    me.wakes_at = host.monotonic() + RARELY
