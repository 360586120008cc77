"""`--trace` of `cmwq map` and `cmwq exec`: the run as a trace for Perfetto.

Guarantees: that the file can't be written is said in one line, and doesn't change the run; but if all else went well,
the status says so. That its folder is missing, or that it is another file of the run, is said before anything runs. A
run that ends early has its trace, unless it is told twice to end.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

import cmwq
from cmwq.cli.files import Files
from cmwq.cli.output import FAILED, Refusal, one_line, reason, say

LONGEST = 80
"""Characters of an item in the name of what it runs, at most."""


class Tracing:
    """The trace of one run, which begins now."""

    def __init__(self, path: str, prog: str) -> None:
        self.path = os.path.abspath(path)
        self.prog = prog
        self.failed = False  # it could not be written
        self._trace: cmwq.Trace | None = cmwq.trace(every=True)

    def end(self) -> None:
        """Write it. Only the first call does."""
        trace, self._trace = self._trace, None
        if trace is not None:
            trace.close()
            self.failed = True
            try:
                trace.write(self.path)
                self.failed = False
            except OSError as error:
                say(f"{self.prog}: no trace: {one_line(self.path)}: {reason(OSError(error.errno, error.strerror))}")
            except MemoryError:
                say(f"{self.prog}: no trace: {one_line(self.path)}: out of memory")


def tracing(path: str | None, prog: str, files: Files, stack: contextlib.ExitStack) -> Tracing | None:
    """Begin to trace if there is a path. The stack ends it. Raises Refusal."""
    if path is None:
        return None
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise Refusal(f"trace {path!r}: there is no folder {folder!r}")
    files.write("trace", path)
    made = Tracing(path, prog)
    stack.callback(made.end)
    return made


def status_of(status: int, trace: Tracing | None) -> int:
    """Of a run that came to its end with that status, and was perhaps traced. Writes the trace."""
    if trace is not None:
        trace.end()
        if trace.failed:
            return status or FAILED
    return status


def named(call: Callable[[], object], title: str) -> Callable[[], object]:
    """The call under a name."""

    def run() -> object:
        return call()

    run.__qualname__ = title if len(title) <= LONGEST else title[: LONGEST - 3] + "..."
    return run
