"""Handlers of signals in tests: one that raises (`handler_raises`), a flood of calls (`handled_again_and_again`)."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any


class handler_raises:
    """Meanwhile the handler of that signal raises `exception`, in the main thread.

    The handler runs between any two steps of whatever the main thread executes, and that may be a finaliser or a weak
    reference's callback of the standard library: `threading` keeps its threads in a `WeakSet`. Nothing can be raised
    out of those, so Python tells `sys.unraisablehook` of the exception and drops it. Such a report is a matter of the
    moment and no fault of anybody: it is counted in `lost`. Reports of other exceptions are for the hook that was there
    before, and so are those from finalisers and callbacks of cmwq: if Ctrl-C is lost in one of them it is our fault.
    """

    def __init__(self, number: int, exception: type[BaseException]) -> None:
        self.number, self.exception = number, exception
        self.lost = 0

    def __enter__(self) -> handler_raises:
        self._hook = sys.unraisablehook
        sys.unraisablehook = self._report
        self._handler = signal.signal(self.number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(self.number, self._handler)
        sys.unraisablehook = self._hook

    def _handle(self, number: int, frame: object) -> None:
        raise self.exception

    def _report(self, report: Any) -> None:
        if issubclass(report.exc_type, self.exception) and not _is_ours(report.object):
            self.lost += 1
        else:
            self._hook(report)


@contextmanager
def handled_again_and_again(handler: Callable[[], object], pause: Callable[[], float]) -> Iterator[None]:
    """Meanwhile the main thread calls this in a signal's handler, `pause()` seconds after the last time (0: not again),
    wherever it is.

    Not at intervals: where a call takes longer than one of them, one handler would interrupt the other, and so on.
    """
    over = False

    def handle(*_: object) -> None:
        handler()
        if not over:
            signal.setitimer(signal.ITIMER_REAL, pause())

    before = signal.signal(signal.SIGALRM, handle)
    try:
        signal.setitimer(signal.ITIMER_REAL, pause())
        yield
    finally:
        over = True  # first: a signal that has just come must not set the timer for the handler that was there before
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _is_ours(function: object) -> bool:
    while isinstance(function, partial):
        function = function.func
    return (getattr(function, "__module__", None) or "").partition(".")[0] == "cmwq"
