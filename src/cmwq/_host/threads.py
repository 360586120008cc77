"""A thread whose start is all or nothing. It differs from `threading.Thread` in four ways.

1. *The thread that starts it never waits without a limit.* `Thread.start` waits until the new thread reports that it is
   there. A thread that runs out of memory before that never reports, and Ctrl-C in that wait leaves a thread that runs
   although `start` raised. Here `start` does not wait. `launch` waits for an answer instead, for `PATIENCE` at most,
   and once it has ended, by an exception too, it is decided whether the body runs.
2. *That decision is one atomic step.* `_verdict` is a dictionary with one key, and `setdefault` decides which thread
   wrote first. The new thread writes that it runs, before its body; a starter that gives up writes that it never will.
   Asking again gives the same answer, so Ctrl-C between any two steps does no harm.
3. *The interpreter doesn't wait for it, but does wait for threads that it starts.* It begins as a daemon, because a
   runtime has its own hook for exit (`life`). Once it runs, it declares itself no daemon, because new threads inherit
   that, and the threads of a work are to be waited for as any others (G3).

4. *It begins with an empty context.* From Python 3.14 on a thread may begin with a copy of its starter's context
   (`sys.flags.thread_inherit_context`, which is set without a GIL). A worker is nobody's own: whoever happened to queue
   when one more was needed must not lend it values for as long as it lives. Works bring the context they need (G6).

All else is the standard library's: `threading.enumerate`, names in debuggers, hooks of `settrace` and `setprofile`
(G6), `join`, `excepthook`. It relies on these undocumented facts: `start` waits for `_started`, the thread begins with
`_bootstrap` and is in `_limbo` until then, from which `del` removes it, and `_daemonic` is read when it begins. Where
one of them is missing, the respective point above is as weak as in the standard library, and nothing breaks.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from contextvars import Context
from functools import partial
from traceback import walk_tb
from types import CodeType
from typing import Any

from cmwq._core.surely import at_any_depth

PATIENCE = 5.0
"""Seconds after which a created thread that has not reported is given up; it may have died silently."""


def is_of_a_handler(exc: BaseException) -> bool:
    """Whether a signal handler that is installed was on the way from here to where the exception was raised."""
    if threading.current_thread() is not threading.main_thread():  # handlers run there, and nowhere else
        return False
    codes = [_code(signal.getsignal(number)) for number in signal.valid_signals()]
    return any(frame.f_code in codes for frame, _ in walk_tb(exc.__traceback__))


def _code(handler: Any) -> CodeType | None:
    while isinstance(handler, partial):
        handler = handler.func
    if callable(handler) and not hasattr(handler, "__code__"):  # nor is it a method
        handler = type(handler).__call__
    return getattr(handler, "__code__", None)


class _Unawaited(threading.Event):
    """Stands in for the event that `Thread.start` waits for, and never waits."""

    def wait(self, timeout: float | None = None) -> bool:
        return True


class HostThread(threading.Thread):
    """A thread that calls `began` with itself and then `body`. It is started by `launch`, once; `start` is internal."""

    def __init__(self, name: str, body: Callable[[], None], began: Callable[[HostThread], object] | None) -> None:
        super().__init__(name=name, daemon=True)
        self._started = _Unawaited()
        self._calls = body, began  # I until it runs
        self._verdict: dict[str, bool] = {}  # the first value written stays
        self._underway = False  # S: `began` was called, and the body is next
        self._answered = threading.Lock()  # held until the thread runs, or has ended without running
        self._answered.acquire()

    def start(self) -> None:
        handlers: BaseException | None = None
        try:
            Context().run(super().start)  # what is copied, if anything is, is this one
        except KeyError as exc:
            if not self._was_removed(exc):
                raise
            handlers = exc.__context__
        if handlers is not None:
            try:
                raise handlers
            finally:
                del handlers  # its traceback leads here

    def _was_removed(self, exc: KeyError) -> bool:
        """Whether the standard library did not find this thread in its `_limbo`, to remove it there.

        The thread removes itself as it begins. `start` removes it if it fails, and takes for its failure any Exception
        that a signal handler raises when the thread exists already. `_settle` removes a thread that is given up.
        Whoever comes second does not find it.
        """
        within = exc.__traceback__
        while within is not None and within.tb_next is not None:
            within = within.tb_next
        return within is not None and within.tb_frame.f_globals is vars(threading) and exc.args[0] is self

    def launch(self) -> None:
        """Start the thread. Once this has ended, by an exception too, it is decided whether the body runs: it does if
        `began` was called. Raises RuntimeError or MemoryError if the thread can't be created, and whatever a signal
        handler raises, whether the body runs or not.
        """
        try:
            try:
                self.start()
                self._await_answer()
            finally:
                at_any_depth(self._settle)
        finally:  # a second Ctrl-C
            runs = at_any_depth(self._settle)
        if not runs:
            raise RuntimeError(f"it was created, and then ended, or did not come within {PATIENCE:g} s")

    @property
    def runs(self) -> bool:
        """Whether the body runs, or has run, once `launch` has ended."""
        return self._underway

    def _settle(self) -> bool:
        """Decide whether the body runs, and return it. If the thread has not reported yet, the body never runs."""
        if not self._verdict.setdefault("runs", False):
            # If the thread begins later, it finds the verdict and ends.
            getattr(threading, "_limbo", {}).pop(self, None)
            return False
        if not self._underway:  # the thread is a few steps from its body, or from its end
            self._await_answer()
        return self._underway

    def _await_answer(self) -> None:
        if self._answered.acquire(True, PATIENCE):
            self._answered.release()  # the answer stays

    def run(self) -> None:
        if not self._verdict.setdefault("runs", True):
            return
        self._daemonic = False
        body, began = self._calls
        del self._calls
        if began is not None:
            began(self)
        self._underway = True
        self._answered.release()
        del began
        body()

    def _bootstrap(self) -> None:
        """Run the standard library's `_bootstrap`, and answer `launch` if it fails before the body."""
        if self._verdict.get("runs") is False:
            return
        bootstrap: Any = super()
        try:
            bootstrap._bootstrap()
        except KeyError as exc:
            if self._verdict.get("runs") or not self._was_removed(exc):
                raise
        finally:
            if not self._underway:
                self._answered.release()
