"""`cmwq map`: call a function on every item, with as much concurrency as pays.

There are three parties. The *workers* of cmwq read the next item when one of them could run it (`WorkQueue.serve`),
call the target, and record the outcome in the log. The *writer*, a thread, puts outcomes in order, prints and counts.
The *main thread* waits for news of the writer or for a signal, and decides when the run is over. It alone may decide
that, because it never reads, writes or runs foreign code: whatever a full pipe, a terminal or a target holds up, a
signal is noticed.

Guarantees: an outcome is in the log before its result is on stdout. Nothing is read before it can be run. How much is
between being read and being printed is bounded (`window`), whatever the input's length and the results' size. An item
is called at most once per run. When the run ends early, no new item starts; the log has all items that completed, and
stdout those that were in turn, except for items that end after the grace. If cmwq runs out of memory the run ends; a
MemoryError of the target fails its item.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import signal
import stat
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

import cmwq
from cmwq.cli.items import lines
from cmwq.cli.log import Log
from cmwq.cli.output import (
    CLOSED,
    FAILED,
    LONGEST,
    OUT_OF_MEMORY,
    Refusal,
    describe,
    one_line,
    reason,
    say,
    write_all,
)
from cmwq.cli.progress import Display, Tally, display
from cmwq.cli.signals import caught, end_by
from cmwq.cli.target import load
from cmwq.cli.window import Window, weight

GRACE = 0.5  # seconds that running items get when the run is stopped
AT_ONCE = 1 << 20  # bytes that are printed before their room is given to other items


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of an item. `result` is JSON. All None: the item succeeded in an earlier run, and the log has it."""

    index: int
    item: str | None
    result: bytes | None
    error: str | None

    @property
    def size(self) -> int:
        """Bytes of the result, or characters of the error."""
        return len(self.result or b"") + len(self.error or "")


@dataclass(frozen=True, slots=True)
class InputEnded:
    count: int
    error: Exception | None


@dataclass(frozen=True, slots=True)
class Failed:
    """The run failed, not just an item."""

    message: str


@dataclass(frozen=True, slots=True)
class LookAgain:
    """Something changed without an outcome: a worker ended, or the run was stopped."""


@dataclass(frozen=True, slots=True)
class Signalled:
    number: int


@dataclass(frozen=True, slots=True)
class Finished:
    """The writer will send no more news. `trouble`: what is wrong with the input."""

    trouble: Exception | None = None


@dataclass(frozen=True, slots=True)
class Said:
    """The last words are written."""


class OutOfMemory(Exception):
    """cmwq ran out of memory, not the target."""


class Stopped(Exception):
    """The run ends now, with this exit status."""

    def __init__(self, status: int, message: str | None = None) -> None:
        super().__init__(status, message)
        self.status, self.message = status, message


Event = Outcome | InputEnded | Failed | LookAgain
News = Signalled | Stopped | Finished | Said


def run(options: argparse.Namespace) -> int:
    if options.items and options.arg_file is not None:
        raise Refusal("items are given as arguments and with --arg-file: one of them, please")
    with contextlib.ExitStack() as stack:
        source, source_fd = _source(options, stack)
        out = _own_stdout(stack)
        total = len(options.items) or None
        shown = display(options.progress, options.quiet, total)
        stack.callback(shown.close)
        # From here on the current directory can be imported from. None of our own modules may be looked for there.
        call = load(options.target)
        log = None
        if options.resume is not None:
            log = Log(options.resume, options.target)
            stack.callback(log.close)
            if log.is_file(out):  # the shell may have emptied it already; nothing else was written to it
                raise Refusal(f"log {options.resume!r} is standard output as well")
        if source_fd is not None and _same_file(source_fd, out):
            raise Refusal("the input is standard output as well: it would never end")
        mapping = Mapping(options, call, source, out, log, shown, Tally(total))
        # A signal becomes news: an exception in the middle of a submit or a write could lose an item.
        with caught((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), lambda number: mapping.news.put(Signalled(number))):
            return mapping.run()


class Mapping:
    """One run of the command."""

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
        self.items: Iterator[str | None] | None = None  # None for an item that succeeded in an earlier run
        self.source = source
        self.out = out
        self.log = log
        self.shown = shown
        self.tally = tally
        self.queue = cmwq.WorkQueue("cmwq map")
        self.serving: cmwq.Serving | None = None
        self.nr_read = 0  # touched by the worker that reads
        self.news: queue.SimpleQueue[News] = queue.SimpleQueue()  # to the main thread
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()  # to the writer
        self.window = Window()
        self.stopped = False
        self.early: dict[int, Outcome] = {}  # those whose turn has not come
        self.next_index = 0
        self.count: int | None = None  # how many items there are; known at the input's end

    def run(self) -> int:
        # No exception leaves this: the way out leaves the process, and must not wait for what still runs.
        try:
            threading.Thread(target=self.write, name="cmwq map output", daemon=True).start()
            self.serving = self.queue.serve(self.next_call)
            self.serving.notify()  # the source may have been asked before `self.serving` was set
        except RuntimeError as error:  # no thread can be had
            raise Refusal(one_line(str(error))) from None
        except Exception as error:
            raise Refusal(describe(error)) from None
        news = self.news.get()
        if isinstance(news, Signalled):
            self.leave(Stopped(128 + news.number), news.number)
        if isinstance(news, Stopped):
            self.leave(news)
        assert isinstance(news, Finished)
        if news.trouble is not None:
            raise news.trouble
        return 1 if self.tally.failed else 0

    # The workers: one of them reads

    def next_call(self) -> Callable[[], object] | None:
        """The source of works. None: nothing is to be read now; `read_on` notifies when there is room."""
        if self.serving is None:
            return None
        trouble: Exception | None = None
        try:
            if self.items is None:
                self.items = self.source if self.log is None else self.log.checked(self.source)
            while not self.stopped:
                if not self.window.has_room():
                    return None
                item = next(self.items)
                index = self.nr_read
                self.nr_read += 1
                self.window.enter(weight(item))
                if item is not None:
                    return partial(self.carry_out, index, item)
                self.window.result(0, ran=False)
                self.window.end()
                self.events.put(Outcome(index, None, None, None))
        except StopIteration:
            pass
        except OSError as error:
            trouble = Refusal(f"reading items: {reason(error)}")
        except MemoryError:
            self.events.put(Failed(OUT_OF_MEMORY))
        except Exception as error:
            trouble = error if isinstance(error, Refusal) else Refusal(describe(error))
        self.events.put(InputEnded(self.nr_read, trouble))
        raise StopIteration

    def read_on(self) -> None:
        """Have the next item read if there is room again."""
        if self.window.room_again() and self.serving is not None:
            self.serving.notify()

    # The workers: all of them run

    def carry_out(self, index: int, item: str) -> None:
        # An item counts as running before `stopped` is read; the thread that stops sets it before it counts. So one
        # sees the other. The event is put before the item ends, so a thread that sees none running has all events.
        try:
            if not self.stopped:
                event = self.outcome(index, item)
                if isinstance(event, Outcome):
                    self.window.result(event.size)
                self.events.put(event)
        except MemoryError:
            self.events.put(Failed(OUT_OF_MEMORY))
        finally:
            self.window.end()
            self.read_on()
            if self.stopped:
                self.events.put(LookAgain())

    def outcome(self, index: int, item: str) -> Outcome | Failed:
        result = error = None
        try:
            result = self.encoded(self.call(item))
        except OutOfMemory:
            return Failed(OUT_OF_MEMORY)
        except BaseException as raised:  # a target may raise SystemExit: that fails its item, not the run
            error = describe(raised)
        if self.log is not None:
            try:
                self.log.record(index, item, result, error)
            except OSError as failure:
                return Failed(f"log {self.log.path!r}: {reason(failure)}")
        return Outcome(index, item, result, error)

    def encoded(self, result: object) -> bytes:
        try:
            return json.dumps(result, allow_nan=False).encode("ascii")
        except MemoryError:
            raise OutOfMemory from None
        except (TypeError, ValueError, RecursionError) as error:
            if self.options.repr:
                return json.dumps(repr(result)).encode("ascii")
            raise TypeError(f"result is not JSON-able ({describe(error)}); --repr prints its repr()") from None

    # The writer

    def write(self) -> None:
        """The body of the writer: work until nothing more comes. Even if this is held up, a signal ends the run."""
        trouble = None
        try:
            trouble = self.report()
            if not self.stopped:
                self.queue.close()
                self.shown.close()
                if (self.tally.failed and not self.options.quiet) or self.shown.tick is not None:
                    say(f"cmwq map: {self.tally.line()}")
        except Stopped as stop:
            self.give_up(stop)
        except MemoryError:
            self.early.clear()
            self.give_up(Stopped(FAILED, OUT_OF_MEMORY))
        except BaseException as error:
            self.give_up(Stopped(FAILED, describe(error)))
        self.news.put(Finished(trouble))

    def report(self) -> Exception | None:
        """Print until the input has ended and the last outcome is out. Returns what is wrong with the input."""
        trouble: Exception | None = None
        due = time.monotonic()
        while not self.is_over():
            ready: deque[Outcome] = deque()
            for event in self.arrived():
                match event:
                    case Outcome():
                        ready += self.in_turn(event)
                    case InputEnded(count, trouble):
                        self.count = count
                    case Failed(message):
                        raise Stopped(FAILED, message)
            self.emit(ready)
            if self.shown.tick is not None and time.monotonic() >= due:
                self.shown.update(self.tally)
                due = time.monotonic() + self.shown.tick
        return trouble

    def is_over(self) -> bool:
        if self.stopped:
            return not self.window.running and self.events.empty()
        return self.count is not None and self.tally.done >= self.count

    def give_up(self, stop: Stopped) -> None:
        """Print nothing more, but let what runs end."""
        self.stopped = True
        self.news.put(stop)
        while not self.is_over():
            self.events.get()

    def arrived(self) -> Iterator[Event]:
        """All events that are there. Waits for the first one, as long as the display allows."""
        try:
            yield self.events.get(timeout=self.shown.tick)
            for _ in range(self.window.most):
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

    def emit(self, ready: deque[Outcome]) -> None:
        """Print these outcomes, several at once, and keep none for longer than needed."""
        while ready:
            parts: list[bytes] = []
            printed: list[Outcome] = []
            size = 0
            while ready and size < AT_ONCE:
                outcome = ready.popleft()
                printed.append(outcome)
                for part in self.printed(outcome):
                    parts.append(part)
                    size += len(part)
            try:
                write_all(self.out, *parts)
            except BrokenPipeError:
                raise Stopped(CLOSED) from None
            except OSError as error:
                raise Stopped(FAILED, f"standard output: {reason(error)}") from None
            self.count_up(printed)

    def count_up(self, printed: list[Outcome]) -> None:
        for outcome in printed:
            self.tally.done += 1
            if outcome.error is not None:
                self.tally.failed += 1
                self.shown.say(f"cmwq map: item {outcome.index + 1} {_shown(outcome.item)}: {outcome.error}")
            elif outcome.result is None:
                self.tally.again += 1
        self.window.leave(len(printed), sum(outcome.size + weight(outcome.item) for outcome in printed))
        self.read_on()

    def printed(self, outcome: Outcome) -> list[bytes]:
        item, result = outcome.item, outcome.result
        if outcome.error is None and result is None:
            assert self.log is not None
            result = self.log.result(outcome.index)
        if not self.options.with_item:
            return [] if result is None else [result, b"\n"]
        if item is None:
            assert self.log is not None
            item = self.log.item(outcome.index)
        start = b'{"item": %b, ' % json.dumps(item).encode("ascii")
        if result is None:
            return [start, b'"error": %b}\n' % json.dumps(outcome.error).encode("ascii")]
        return [start, b'"result": ', result, b"}\n"]

    # The early end

    def leave(self, stop: Stopped, number: int | None = None) -> NoReturn:
        """Start nothing more, let what runs end and be printed if that is quick, and leave the process, because threads
        cannot be stopped. number: of the signal that asked for it; after another one the process leaves at once.
        """
        self.stopped = True
        self.events.put(LookAgain())
        hurried = self.asked_again(Finished, GRACE)
        if self.log is not None:
            self.log.stop(timeout=0 if hurried else GRACE)
        if not hurried:
            words = threading.Thread(target=self.last_words, args=(stop.message,), name="cmwq map end", daemon=True)
            try:
                words.start()
                # The reason of a failure is written, however long the reader takes.
                self.asked_again(Said, GRACE if stop.message is None else None)
            except RuntimeError:  # no thread can be had
                self.last_words(stop.message)
        if number is not None:
            end_by(number)
        os._exit(stop.status)

    def last_words(self, message: str | None) -> None:
        self.shown.close()
        if message is not None:
            say(f"cmwq map: error: {message}")
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        self.news.put(Said())

    def asked_again(self, awaited: type[Finished | Said], seconds: float | None) -> bool:
        """Wait for that news, for at most so many seconds. True: a signal came instead."""
        last = None if seconds is None else time.monotonic() + seconds
        while True:
            try:
                news = self.news.get(timeout=None if last is None else max(0, last - time.monotonic()))
            except queue.Empty:
                return False
            if isinstance(news, awaited):
                return False
            if isinstance(news, Signalled):
                return True


def _shown(item: str | None) -> str:
    assert item is not None
    return one_line(repr(item)) if len(item) <= LONGEST else one_line(repr(item[:LONGEST])) + "..."


def _source(options: argparse.Namespace, stack: contextlib.ExitStack) -> tuple[Iterator[str], int | None]:
    """The items, and the descriptor that they come from. None: they are arguments."""
    end = b"\0" if options.null else b"\n"
    if options.items:
        return iter(options.items), None
    if options.arg_file not in (None, "-"):
        try:
            fd = os.open(options.arg_file, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise Refusal(reason(error)) from error
    else:
        # For the command alone: a child process of the target that reads standard input would take items away.
        if sys.stdin is None:
            raise Refusal("standard input is closed, and no items are given")
        fd = _moved(0, os.open(os.devnull, os.O_RDONLY))
    stack.callback(os.close, fd)
    return lines(fd, end), fd


def _own_stdout(stack: contextlib.ExitStack) -> int:
    """Reserve standard output for results, for good: what the target and its child processes print goes to stderr. A
    library may buffer what it prints until the process ends.
    """
    sys.stdout.flush()
    elsewhere = os.open(os.devnull, os.O_WRONLY) if sys.stderr is None else os.dup(2)
    fd = _moved(1, elsewhere)
    stack.callback(os.close, fd)
    stack.enter_context(contextlib.redirect_stdout(sys.stderr or sys.stdout))
    return fd


def _moved(fd: int, replacement: int) -> int:
    """Give a standard descriptor's file another number, which is returned; the descriptor now means `replacement`."""
    own = os.dup(fd)
    os.dup2(replacement, fd)
    os.close(replacement)
    return own


def _same_file(one: int, other: int) -> bool:
    """Whether both refer to one regular file. Pipes and terminals may be input and output at the same time."""
    status = os.fstat(one)
    return stat.S_ISREG(status.st_mode) and os.path.samestat(status, os.fstat(other))
