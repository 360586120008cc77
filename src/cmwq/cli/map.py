"""`cmwq map`: call a function on every item, with as much concurrency as pays.

The run is in `run`; here is what an item is to it: a call, whose result is one line of JSON.

Guarantees: a MemoryError of the target fails its item; if cmwq runs out of memory the run ends. What the target and its
child processes print never reaches stdout.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from cmwq.cli.files import Files
from cmwq.cli.items import moved, source_of
from cmwq.cli.log import Log
from cmwq.cli.news import Failed, Outcome
from cmwq.cli.output import OUT_OF_MEMORY, describe, reason
from cmwq.cli.progress import Display, Tally, display, is_shown
from cmwq.cli.run import Run
from cmwq.cli.target import load
from cmwq.cli.tracing import status_of, tracing


class Result(Outcome):
    """result: JSON. None if the item failed, or succeeded in an earlier run."""

    __slots__ = ("result",)

    def __init__(
        self, index: int, item: str, result: bytes | None, error: str | None, span: tuple[float, float]
    ) -> None:
        super().__init__(index, item, error, span=span)
        self.result = result

    @property
    def size(self) -> int:
        return len(self.result or b"") + len(self.error or "")


class OutOfMemory(Exception):
    """cmwq ran out of memory, not the target."""


def run(options: argparse.Namespace) -> int:
    with contextlib.ExitStack() as stack:
        source = source_of(options, stack)
        out = _own_stdout(stack)
        files = Files(out)
        files.read("the input", source.fds)
        total = source.count() if options.items or is_shown(options.progress, options.quiet) else None
        shown = display(options.progress, options.quiet, total)
        stack.callback(shown.close)
        # From here on the current directory can be imported from. None of our own modules may be looked for there.
        call = load(options.target)
        if options.cluster is not None:
            from cmwq.cli.cluster import AT_ONCE, Cluster, Target

            call = Target(call, Cluster(options.cluster, "map", stack))
            options.max_active = options.max_active or AT_ONCE
        log = None
        if options.resume is not None:
            files.write("log", options.resume)
            log = Log(options.resume, "map", options.target)
            stack.callback(log.close)
        mapping = Mapping(options, call, source.items, out, log, shown, Tally(total))
        if options.summary:
            from cmwq.cli.picture import Picture

            mapping.picture = Picture()
        mapping.trace = tracing(options.trace, mapping.name, files, stack)
        return status_of(mapping.run(), mapping.trace)


class Mapping(Run):
    """One run of the command."""

    name = "cmwq map"

    def __init__(
        self,
        options: argparse.Namespace,
        call: Callable[[str], Any],
        source: Iterator[str],
        out: int,
        log: Log | None,
        shown: Display,
        tally: Tally,
    ) -> None:
        super().__init__(options, source, out, log, shown, tally)
        self.call = call

    def title(self, item: str) -> str:
        return f"{self.options.target}({item!r})"

    def outcome(self, index: int, item: str) -> Outcome | Failed | None:
        result = error = None
        begun = time.monotonic()
        for _ in range(1 + getattr(self.options, "retries", 0)):
            try:
                result, error = self.encoded(self.call(item)), None
            except OutOfMemory:
                return Failed(OUT_OF_MEMORY)
            except BaseException as raised:  # a target may raise SystemExit: that fails its item, not the run
                error = describe(raised)
            if error is None or self.stopped:
                break
        if self.log is not None:
            tail = (
                (b'"result": ', result or b"null")
                if error is None
                else (b'"error": ', json.dumps(error).encode("ascii"))
            )
            try:
                self.log.record(index, item, error is None, *tail)
            except OSError as failure:
                return Failed(f"log {self.log.path!r}: {reason(failure)}")
        return Result(index, item, result, error, (begun, time.monotonic()))

    def encoded(self, result: object) -> bytes:
        try:
            return json.dumps(result, allow_nan=False).encode("ascii")
        except MemoryError:
            raise OutOfMemory from None
        except (TypeError, ValueError, RecursionError) as error:
            if self.options.repr:
                return json.dumps(repr(result)).encode("ascii")
            raise TypeError(f"result is not JSON-able ({describe(error)}); --repr prints its repr()") from None

    def printed(self, outcome: Outcome) -> Iterable[tuple[int, bytes]]:
        return ((self.out, part) for part in self.line(outcome))

    def line(self, outcome: Outcome) -> list[bytes]:
        item = outcome.item
        result = outcome.result if isinstance(outcome, Result) else None
        if outcome.again:
            assert self.log is not None
            result = json.dumps(self.log.value(outcome.index, "result")).encode("ascii")
        if not self.options.with_item:
            return [] if result is None else [result, b"\n"]
        if item is None:
            assert self.log is not None
            item = self.log.item(outcome.index)
        start = b'{"item": %b, ' % json.dumps(item).encode("ascii")
        if result is None:
            return [start, b'"error": %b}\n' % json.dumps(outcome.error).encode("ascii")]
        return [start, b'"result": ', result, b"}\n"]


def _own_stdout(stack: contextlib.ExitStack) -> int:
    """Reserve standard output for results, for good: what the target and its child processes print goes to stderr. A
    library may buffer what it prints until the process ends.
    """
    sys.stdout.flush()
    elsewhere = os.open(os.devnull, os.O_WRONLY) if sys.stderr is None else os.dup(2)
    fd = moved(1, elsewhere)
    stack.callback(os.close, fd)
    stack.enter_context(contextlib.redirect_stdout(sys.stderr or sys.stdout))
    return fd
