"""`cmwq map`: call a function on every item, with as much concurrency as pays.

Three parties: the *feeder* (a thread of its own) reads items and submits them; the *workers* (cmwq's) call the target
and note the outcome in the log; the *main thread* puts outcomes in order, prints, counts, and decides when it is over.
They meet in one queue of events, so that a slow input never delays results that are there, and a signal is an event
like any other.

Guarantees: an outcome is in the log before its result is on stdout. At most `WINDOW` items are between being read and
being printed, whatever the input's length. An item is called at most once per run. When the run ends early, no new
item starts, and the log has all that completed, but for what ends after the last moment's grace.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, NoReturn

import cmwq
from cmwq.cli.items import lines
from cmwq.cli.log import Log
from cmwq.cli.output import CLOSED, FAILED, Refusal, describe, one_line, reason, say, write_all
from cmwq.cli.progress import Display, Tally, display
from cmwq.cli.signals import caught
from cmwq.cli.target import load

WINDOW = 1000
GRACE = 0.5  # seconds that running items get when the run is stopped


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one item. `result` is JSON; both None: it succeeded in an earlier run."""

    index: int
    item: str
    result: str | None
    error: str | None


@dataclass(frozen=True, slots=True)
class InputEnded:
    count: int
    error: Exception | None


@dataclass(frozen=True, slots=True)
class LogFailed:
    error: OSError


@dataclass(frozen=True, slots=True)
class Signalled:
    number: int


@dataclass(frozen=True, slots=True)
class Skipped:
    """An item came to its turn after the run was stopped."""


Event = Outcome | InputEnded | LogFailed | Signalled | Skipped


class Stopped(Exception):
    """The run ends now, with that status."""

    def __init__(self, status: int, message: str | None = None) -> None:
        super().__init__(status, message)
        self.status, self.message = status, message


def run(options: argparse.Namespace) -> int:
    if options.items and options.arg_file is not None:
        raise Refusal("items are given as arguments and with --arg-file: one of them, please")
    if sys.stdout is None:
        raise Refusal("standard output is closed")
    with contextlib.ExitStack() as stack:
        source = _source(options, stack)
        out = stack.enter_context(_own_stdout())
        call = load(options.target)
        log = None
        if options.resume is not None:
            log = Log(options.resume, options.target)
            stack.callback(log.close)
        total = len(options.items) or None
        shown = display(options.progress, options.quiet, total)
        stack.callback(shown.close)
        mapping = Mapping(options, call, source, out, log, shown, Tally(total))
        # As events: an exception in the middle of a submit or a write could lose an item.
        with caught((signal.SIGINT, signal.SIGTERM), lambda number: mapping.events.put(Signalled(number))):
            return mapping.run()


class Mapping:
    """One run."""

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
        self.options = options
        self.call = call
        self.source = source
        self.out = out
        self.log = log
        self.shown = shown
        self.tally = tally
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.window = threading.Semaphore(WINDOW)
        self.stopped = False
        self.running: set[int] = set()
        self.early: dict[int, Outcome] = {}  # not their turn yet
        self.next_index = 0
        self.count: int | None = None  # of items, known at the input's end

    def run(self) -> int:
        # Never left by an exception: stopping leaves the process, and must not wait for what still runs.
        pool = cmwq.Executor("cmwq map")
        threading.Thread(target=self.feed, args=(pool,), name="cmwq map input", daemon=True).start()
        try:
            trouble = self.report()
        except Stopped as stop:
            self.leave(stop)
        pool.shutdown()
        self.shown.close()
        if (self.tally.failed and not self.options.quiet) or self.shown.tick is not None:
            say(f"cmwq map: {self.tally.line()}")
        if trouble is not None:
            raise trouble
        return 1 if self.tally.failed else 0

    # The feeder

    def feed(self, pool: cmwq.Executor) -> None:
        index = 0
        trouble: Exception | None = None
        try:
            for item in self.checked():
                self.window.acquire()
                if self.stopped:
                    return
                if self.log is not None and self.log.succeeded(index):
                    self.events.put(Outcome(index, item, None, None))
                else:
                    pool.submit(self.work, index, item)
                index += 1
        except OSError as error:
            trouble = Refusal(f"reading items: {reason(error)}")
        except Exception as error:
            trouble = error if isinstance(error, Refusal) else Refusal(describe(error))
        self.events.put(InputEnded(index, trouble))

    def checked(self) -> Iterator[str]:
        """The items, after those in the log were found to be these: before anything runs."""
        if self.log is None:
            return self.source
        known = list(islice(self.source, self.log.span))
        self.log.check(known)
        return chain(known, self.source)

    # The workers

    def work(self, index: int, item: str) -> None:
        # First into `running`, then a look at `stopped`; `leave` does it the other way round, so one sees the other.
        self.running.add(index)
        event: Event = Skipped()
        try:
            if not self.stopped:
                event = self.outcome(index, item)
        finally:
            self.running.discard(index)
            self.events.put(event)

    def outcome(self, index: int, item: str) -> Event:
        result = error = None
        try:
            result = self.encoded(self.call(item))
        except BaseException as raised:  # a target may raise SystemExit: that item's failure, not ours
            error = describe(raised)
        if self.log is not None:
            try:
                self.log.record(index, item, result, error)
            except OSError as failure:
                return LogFailed(failure)
        return Outcome(index, item, result, error)

    def encoded(self, result: object) -> str:
        try:
            return json.dumps(result, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            if self.options.repr:
                return json.dumps(repr(result))
            raise TypeError(f"result is not JSON-able ({describe(error)}); --repr prints its repr()") from None

    # The main thread

    def report(self) -> Exception | None:
        """Print until the input's end and the last outcome. What is wrong with the input is returned, at the end."""
        trouble: Exception | None = None
        due = time.monotonic()
        while self.count is None or self.tally.done < self.count:
            ready: list[Outcome] = []
            for event in self.arrived():
                match event:
                    case Outcome():
                        ready += self.in_turn(event)
                    case InputEnded(count, trouble):
                        self.count = count
                    case LogFailed(error):
                        raise Stopped(FAILED, f"log {self.options.resume!r}: {reason(error)}")
                    case Signalled(number):
                        raise Stopped(128 + number)
            self.emit(ready)
            if self.shown.tick is not None and time.monotonic() >= due:
                self.shown.update(self.tally)
                due = time.monotonic() + self.shown.tick
        return trouble

    def arrived(self) -> Iterator[Event]:
        """All that is there; waits for the first, as long as the display allows."""
        try:
            yield self.events.get(timeout=self.shown.tick)
            for _ in range(WINDOW):
                yield self.events.get_nowait()
        except queue.Empty:
            return

    def in_turn(self, outcome: Outcome) -> list[Outcome]:
        if self.options.unordered:
            return [outcome]
        self.early[outcome.index] = outcome
        turn: list[Outcome] = []
        while self.next_index in self.early:
            turn.append(self.early.pop(self.next_index))
            self.next_index += 1
        return turn

    def emit(self, outcomes: list[Outcome]) -> None:
        printed = "".join(self.printed(outcome) for outcome in outcomes)
        try:
            write_all(self.out, printed.encode("ascii"))
        except BrokenPipeError:
            raise Stopped(CLOSED) from None
        except OSError as error:
            raise Stopped(FAILED, f"standard output: {reason(error)}") from None
        for outcome in outcomes:
            self.tally.done += 1
            if outcome.error is not None:
                self.tally.failed += 1
                self.shown.say(f"cmwq map: item {outcome.index + 1} {one_line(repr(outcome.item))}: {outcome.error}")
            elif outcome.result is None:
                self.tally.again += 1
            self.window.release()

    def printed(self, outcome: Outcome) -> str:
        result = outcome.result
        if outcome.error is None and result is None:
            assert self.log is not None
            result = self.log.result(outcome.index)
        if not self.options.with_item:
            return "" if result is None else f"{result}\n"
        item = json.dumps(outcome.item)
        if result is None:
            return f'{{"item": {item}, "error": {json.dumps(outcome.error)}}}\n'
        return f'{{"item": {item}, "result": {result}}}\n'

    # The early end

    def leave(self, stop: Stopped) -> NoReturn:
        """Start nothing more, let what runs end if it is quick, and leave the process: threads cannot be taken back."""
        self.stopped = True
        last = time.monotonic() + GRACE
        while self.running and (left := last - time.monotonic()) > 0:
            try:
                if isinstance(self.events.get(timeout=left), Signalled):
                    break  # asked twice
            except queue.Empty:
                break
        if self.log is not None:
            self.log.stop(timeout=GRACE)
        self.shown.close()
        if stop.message is not None:
            say(f"cmwq map: error: {stop.message}")
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(stop.status)


def _source(options: argparse.Namespace, stack: contextlib.ExitStack) -> Iterator[str]:
    end = b"\0" if options.null else b"\n"
    if options.items:
        return iter(options.items)
    if options.arg_file not in (None, "-"):
        try:
            fd = os.open(options.arg_file, os.O_RDONLY)
        except OSError as error:
            raise Refusal(reason(error)) from error
        stack.callback(os.close, fd)
        return lines(fd, end)
    return lines(stack.enter_context(_own_stdin()), end)


@contextlib.contextmanager
def _own_stdin() -> Iterator[int]:
    """Standard input for us alone: a child process of the target that reads it would take items away."""
    if sys.stdin is None:
        raise Refusal("standard input is closed, and no items are given")
    with _moved(0, os.open(os.devnull, os.O_RDONLY)) as fd:
        yield fd


@contextlib.contextmanager
def _own_stdout() -> Iterator[int]:
    """Standard output for results alone: what the target and its child processes print goes to stderr."""
    sys.stdout.flush()
    elsewhere = os.open(os.devnull, os.O_WRONLY) if sys.stderr is None else os.dup(2)
    with _moved(1, elsewhere) as fd, contextlib.redirect_stdout(sys.stderr or sys.stdout):
        yield fd


@contextlib.contextmanager
def _moved(fd: int, replacement: int) -> Iterator[int]:
    """The file of a standard descriptor under another number, while the descriptor means something else."""
    own = os.dup(fd)
    os.dup2(replacement, fd)
    os.close(replacement)
    try:
        yield own
    finally:
        os.dup2(own, fd)
        os.close(own)
