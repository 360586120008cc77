"""An exception at one bytecode after the other: what Ctrl-C, time limits and the like do, but at each place in turn."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any


class Interrupt(BaseException):
    """Like Ctrl-C."""


class InterruptAt:
    """`with InterruptAt(n, files):` raises Interrupt at the nth bytecode that this thread executes in those files.

    Counted from the first call of the function `since`, if there is one.
    """

    def __init__(self, n: int, *files: str) -> None:
        self.n = n
        self.files = files
        self.since = ""
        self.seen = 0
        self.raised = False

    def __enter__(self) -> InterruptAt:
        self.before = sys.gettrace()
        sys._getframe().f_trace_opcodes = True  # any frame's: since 3.12 settrace() asks whether one wants them
        sys.settrace(self._trace)
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, _: TracebackType | None) -> None:
        sys.settrace(self.before)

    def _trace(self, frame: FrameType, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.endswith(self.files):
            return None
        if frame.f_code.co_name == self.since:
            self.since = ""
        frame.f_trace = self._step  # first: else 3.13 tells of no bytecode the first time that a function is traced
        frame.f_trace_opcodes = True
        return self._step

    def _step(self, frame: FrameType, event: str, _: Any) -> Any:
        if event == "opcode" and not self.since:
            self.seen += 1
            if self.seen == self.n:
                self.raised = True
                raise Interrupt
        return self._step


def at_each(run: Callable[[InterruptAt], None], *files: str, step: int = 1) -> int:
    """Call run() with one after the other, until it was too late for the last. How many there were.

    step: only with every so many-th; then that number is too large by less than `step`.
    """
    n = 1 - step
    while True:
        if sys.version_info >= (3, 12):
            run(InterruptAt(0, *files))  # none; the bytecodes of a function's first call may not be seen
        n += step
        interrupt = InterruptAt(n, *files)
        run(interrupt)
        if not interrupt.raised:
            return n - 1
