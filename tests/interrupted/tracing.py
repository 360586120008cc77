"""Something happens at the k-th bytecode that this thread executes inside cmwq during a call.

`sys.settrace` with opcode events: the traced function is called before each bytecode of frames of the package; what it
raises is raised there, and what it calls is called there, as a signal handler, a finaliser or a weak reference's
callback would be.

A trace function can raise between any two bytecodes. A signal's handler runs only where the interpreter looks for one:
at a function's beginning, at a jump back, and at the end of a call. `by_signal` says whether an exception would come to
the very same handlers if a signal had raised it. What is not, is F10's business all the same (a MemoryError, an
asynchronous exception of another build, a debugger); but that, say, no `with` statement written in Python survives.
"""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import cmwq

PACKAGE = str(Path(cmwq.__file__).parent)
LIBRARY = str(Path(dis.__file__).parent)
_LOOKS = ("CALL", "PRECALL", "JUMP_BACKWARD", "RESUME", "SEND", "YIELD_VALUE")


class Place:
    """Where something was made to happen."""

    def __init__(self, k: int, frame: FrameType, before: int) -> None:
        self.k = k
        self._code, self._at, self._line = frame.f_code, frame.f_lasti, frame.f_lineno
        self._before = before  # the frame's last instruction, -1 if there was none

    def __str__(self) -> str:
        name = dis.opname[self._code.co_code[self._at]]
        words = "" if self.by_signal else " (no signal)"
        return f"k={self.k} at {Path(self._code.co_filename).name}:{self._line} {name}{words}"

    @property
    def by_signal(self) -> bool:
        before = self._before
        if before < 0:
            return False
        name, here = (dis.opname[self._code.co_code[at]] for at in (before, self._at))
        if name == "PRECALL" and here == "CALL":
            return False  # two halves of one call (3.11)
        return name.startswith(_LOOKS) and _handler(self._code, before) == _handler(self._code, self._at)


@cache
def _handler(code: CodeType, at: int) -> int:
    """Where an exception of this instruction goes; -1: out of the function."""
    entries: list[Any] = dis.Bytecode(code).exception_entries  # type: ignore[attr-defined]
    return next((entry.target for entry in entries if entry.start <= at < entry.end), -1)


def _is_of_the_compiler(frame: FrameType) -> bool:
    """Is it the handler around a whole generator, in no line, which turns StopIteration into RuntimeError (since 3.12)?
    No signal comes there, and what is raised there replaces the exception that is on its way.
    """
    if sys.version_info < (3, 12) or frame.f_lineno is not None:
        return False
    code, at = frame.f_code.co_code, frame.f_lasti
    here = dis.opname[code[at]]
    return here == "CALL_INTRINSIC_1" or (here == "RERAISE" and dis.opname[code[at - 2]] == "CALL_INTRINSIC_1")


class Tracer:
    """Counts the bytecodes; at the one asked for it does what it was given, once."""

    def __init__(self, at: int = 0, act: Callable[[], None] | None = None, *, deep: bool = False) -> None:
        """at: from 1 on; 0: only count. deep: the standard library's, where cmwq called it, count too."""
        self.count = 0
        self.place: Place | None = None
        self._at = at
        self._act = act
        self._deep = deep
        self._last: dict[FrameType, int] = {}

    def __enter__(self) -> Tracer:
        sys.settrace(self._call)
        return self

    def __exit__(self, *exc_info: object) -> None:
        sys.settrace(None)
        self._last.clear()

    def _call(self, frame: FrameType, event: str, arg: object) -> Callable[..., Any] | None:
        if not self._is_ours(frame):
            return None
        frame.f_trace = self._local  # first: else 3.13 tells of no bytecode the first time that a function is traced
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        return self._local

    def _is_ours(self, frame: FrameType) -> bool:
        if frame.f_code.co_filename.startswith(PACKAGE):
            return not frame.f_code.co_filename.endswith("held.py")  # the debug mode's
        if not (self._deep and frame.f_code.co_filename.startswith(LIBRARY)):
            return False
        caller = frame.f_back
        while caller is not None:
            if caller.f_code.co_filename.startswith(PACKAGE):
                return True
            caller = caller.f_back
        return False

    def _local(self, frame: FrameType, event: str, arg: object) -> Callable[..., Any]:
        if event == "opcode" and not _is_of_the_compiler(frame):
            self.count += 1
            if self.count == self._at:
                self.place = Place(self.count, frame, self._last.get(frame, -1))
                if self._act is not None:
                    self._act()
            self._last[frame] = frame.f_lasti
        elif event == "return":
            self._last.pop(frame, None)
        return self._local
