"""A thread whose start is all or nothing: `threading.Thread` but for three things.

1. *Whoever starts it never waits without a limit.* `Thread.start` waits until the new thread says that it is there. One
   that runs out of memory before that says nothing, ever; and Ctrl-C in that wait leaves a thread that runs although
   `start` raised. Here `start` does not wait. `launch` waits instead, for an answer and no longer than `PATIENCE`, and
   when it ends, in whichever way, it is settled whether the body runs.
2. *Whether it runs is one atomic step.* `_verdict` is a dictionary with one place, and `setdefault` says who was there
   first. The thread writes that it runs, before its body; whoever started it and gives up writes that it never will.
   Asking again gives the same answer, so that Ctrl-C between any two steps of it does no harm.
3. *The interpreter doesn't wait for it, but for those that it starts.* It begins as a daemon: what a runtime has to do
   at exit its own hook sees to (`life`). Once it runs it says that it is none, for a new thread is what its maker is,
   and the threads of a work are to be waited for, as anybody's (G3).

All the rest is the standard library's: `threading.enumerate`, names in debuggers, hooks of `settrace` and `setprofile`
(G6), `join`, `excepthook`. What is relied on beyond its documentation: `start` waits for `_started`, the thread begins
with `_bootstrap`, is in `_limbo` until then, and `_daemonic` is looked at when it begins. Where one of these is
missing, its part above is as weak as the standard library's, and nothing breaks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

PATIENCE = 5.0
"""Seconds after which a thread that was created and does not come is given up: it may have died without a word."""


class _Unawaited(threading.Event):
    """What `Thread.start` waits for."""

    def wait(self, timeout: float | None = None) -> bool:
        return True


class HostThread(threading.Thread):
    """Calls `body`, after `began` with itself. `launch` instead of `start`."""

    def __init__(self, name: str, body: Callable[[], None], began: Callable[[HostThread], object] | None) -> None:
        super().__init__(name=name, daemon=True)
        self._started = _Unawaited()
        self._calls = body, began  # I until it runs
        self._verdict: dict[str, bool] = {}  # what was written first stands
        self._underway = False  # S: `began` was called, and the body is next
        self._answered = threading.Lock()  # held until the thread runs, or has ended without
        self._answered.acquire()

    def launch(self) -> None:
        """Start it. Once this has ended, by an exception too, it is settled whether the body runs: it does if `began`
        was called. Raises RuntimeError, MemoryError where it can't be had; in either case what a signal's handler
        raised.
        """
        try:
            try:
                self.start()
                self._await_answer()
            finally:
                self._settle()
        finally:  # a second Ctrl-C
            runs = self._settle()
        if not runs:
            raise RuntimeError(f"it was created, and then ended, or did not come within {PATIENCE:g} s")

    def _settle(self) -> bool:
        """Whether the body runs. If the thread has not come yet it never will."""
        if not self._verdict.setdefault("runs", False):
            # If the thread comes after all it finds the verdict, and ends.
            getattr(threading, "_limbo", {}).pop(self, None)
            return False
        if not self._underway:  # it is a few steps away from that, or from its end
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
        """The standard library's, told that it died on the way."""
        if self._verdict.get("runs") is False:
            return
        bootstrap: Any = super()
        try:
            bootstrap._bootstrap()
        except BaseException:
            if self._verdict.get("runs") is not False:  # else it missed itself in `_limbo`
                raise
        finally:
            if not self._underway:
                self._answered.release()
