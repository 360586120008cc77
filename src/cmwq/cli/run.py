"""One run of `cmwq map` or `cmwq exec`: items are read as they can be carried out; outcomes are logged, put in order,
printed and counted.

There are three parties. The *workers* of cmwq read the next item when one of them could carry it out
(`WorkQueue.serve`), do so, and record the outcome in the log. The *writer*, a thread, puts outcomes in order, prints
and counts. The *main thread* waits for news of the others or for a signal, and decides when the run is over. It alone
may decide that, because it never reads, writes or runs foreign code: whatever a full pipe, a terminal or a target holds
up, a signal is noticed.

Guarantees: an outcome is in the log before it is on stdout. Nothing is read before it can be carried out. How much is
between being read and being printed is bounded (`window`), whatever the input's length. An item is carried out at most
once per run, retries aside. When the run ends early, no new item starts; the log has all items that completed, and
stdout those that were in turn, except for items that end after the grace; stderr names all that failed, in turn or not,
unless the reader of stdout went away. If cmwq runs out of memory the run ends.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, NoReturn

import cmwq
from cmwq.cli.news import Event, Failed, Finished, InputEnded, LookAgain, News, Outcome, Said, Signalled, Stopped
from cmwq.cli.output import CLOSED, FAILED, LONGEST, OUT_OF_MEMORY, Refusal, describe, one_line, reason, say, write_all
from cmwq.cli.signals import caught, end_by
from cmwq.cli.tracing import Tracing, named
from cmwq.cli.window import Window, weight

if TYPE_CHECKING:
    import argparse

    from cmwq.cli.log import Log
    from cmwq.cli.picture import Picture
    from cmwq.cli.progress import Display, Tally

GRACE = 0.5  # seconds that running items get when the run is stopped
AT_ONCE = 1 << 20  # bytes that are printed before their room is given to other items
LINGER = 0.002  # seconds in which outcomes gather: to wake the writer for each would take the CPU from the items
EVENTS = 1000  # events that are taken before the display has its turn
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Run:
    """One run of a command that carries out items. A subclass says how that is done, and how an outcome is printed."""

    name = "cmwq"  # in messages
    signals: tuple[signal.Signals, ...] = SIGNALS
    in_turn_only = True  # when stopped: print only what has no gap before it

    def __init__(
        self,
        options: argparse.Namespace,
        source: Iterator[str],
        out: int,
        log: Log | None,
        shown: Display,
        tally: Tally,
        window: Window | None = None,
    ) -> None:
        self.options = options
        self.items: Iterator[str | None] | None = None  # None for an item that succeeded in an earlier run
        self.source = source
        self.out = out
        self.log = log
        self.shown = shown
        self.tally = tally
        self.picture: Picture | None = None
        self.trace: Tracing | None = None
        most: int | None = getattr(options, "max_active", None)
        self.queue = cmwq.WorkQueue(self.name) if most is None else cmwq.WorkQueue(self.name, max_active=most)
        self.serving: cmwq.Serving | None = None
        self.nr_read = 0  # touched by the worker that reads
        self.nr_failed = 0  # for --halt; guarded by `failing`
        self.unnamed: dict[int, Outcome] = {}  # failures that no line has named; guarded by `failing`
        self.failing = threading.Lock()
        self.news: queue.SimpleQueue[News] = queue.SimpleQueue()  # to the main thread
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()  # to the writer
        self.window = Window() if window is None else window
        self.stopped = False  # nothing starts, and what runs is given up
        self.halted = False  # nothing more is read
        self.early: dict[int, Outcome] = {}  # those whose turn has not come
        self.next_index = 0
        self.count: int | None = None  # how many items there are; known at the input's end

    # What a subclass says

    def outcome(self, index: int, item: str) -> Outcome | Failed | None:
        """Carry out an item, and record the outcome in the log. None: it was given up, and is as if never begun."""
        raise NotImplementedError

    def title(self, item: str) -> str:
        """What an item is called in a trace."""
        return item

    def again(self, index: int) -> Outcome:
        """The outcome of an item that succeeded in an earlier run."""
        return Outcome(index, None, again=True)

    def printed(self, outcome: Outcome) -> Iterable[tuple[int, bytes]]:
        """What is printed for an outcome, and where: descriptors with bytes. Called once, in turn. Raises Refusal."""
        raise NotImplementedError

    def end_running(self, number: int) -> None:
        """Ask what runs to end, with that signal. Whoever cannot does nothing."""

    def pause(self) -> None:
        """Stop until the terminal goes on with this job."""

    # The main thread

    def run(self) -> int:
        """Carry out everything, and return the exit status. A run that ends early leaves the process."""
        # A signal becomes news: an exception in the middle of a submit or a write could lose an item.
        with caught(self.signals, lambda number: self.news.put(Signalled(number))):
            # No exception leaves this: the way out leaves the process, and must not wait for what still runs.
            return self.carry_on()

    def carry_on(self) -> int:
        try:
            threading.Thread(target=self.write, name=f"{self.name} output", daemon=True).start()
            self.serving = self.queue.serve(self.next_call)
            self.serving.notify()  # the source may have been asked before `self.serving` was set
        except RuntimeError as error:  # no thread can be had
            raise Refusal(one_line(str(error))) from None
        except Exception as error:
            raise Refusal(describe(error)) from None
        news = self.news.get()
        while isinstance(news, Signalled) and news.number == signal.SIGTSTP:
            self.pause()
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
            while not (self.stopped or self.halted):
                if not self.window.has_room():
                    return None
                item = next(self.items)
                if self.halted:  # meanwhile; it may have waited for long
                    break
                index = self.nr_read
                self.nr_read += 1
                self.window.enter(weight(item))
                if item is not None:
                    call = partial(self.carry_out, index, item)
                    return call if self.trace is None else named(call, self.title(item))
                self.window.result(0, ran=False)
                self.window.end()
                self.events.put(self.again(index))
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
                if event is None and not self.stopped:  # nobody would ever end the wait for its turn
                    event = Failed(f"item {index + 1:,} ended without an outcome, which is a fault of cmwq")
                if isinstance(event, Outcome):
                    self.window.result(event.size)
                    if event.error is not None:
                        self.heed_failure(event)
                if event is not None:
                    self.events.put(event)
        except MemoryError:
            self.events.put(Failed(OUT_OF_MEMORY))
        except BaseException as error:  # the run can't know what became of the item
            self.events.put(Failed(describe(error)))
        finally:
            self.window.end()
            self.read_on()
            if self.stopped or self.halted:
                self.events.put(LookAgain())

    def heed_failure(self, outcome: Outcome) -> None:
        """Count it, and end the run if that is what --halt says."""
        halt = getattr(self.options, "halt", None)
        with self.failing:
            self.unnamed[outcome.index] = outcome  # before the run can end by it
            self.nr_failed += 1
            if halt is None or self.nr_failed < halt.failures or self.halted:
                return
            self.halted = True
        if halt.now:
            self.news.put(Stopped(1, self.halt_message()))

    def halt_message(self) -> str:
        failures = "a failure" if self.options.halt.failures == 1 else f"{self.options.halt.failures:,} failures"
        return f"halted after {failures}: nothing after item {self.nr_read:,} was begun"

    # The writer

    def write(self) -> None:
        """The body of the writer: work until nothing more comes. Even if this is held up, a signal ends the run."""
        trouble = None
        try:
            trouble = self.report()
            if self.halted and self.count is None and not self.stopped:
                # A worker still waits for input, perhaps for ever.
                self.stopped = True
                self.news.put(Stopped(1, self.halt_message()))
            elif not self.stopped:
                self.queue.close()
                self.shown.close()
                if self.halted:
                    say(f"{self.name}: {self.halt_message()}")
                self.sum_up()
        except Stopped as stop:
            self.give_up(stop)
        except Refusal as refusal:
            self.give_up(Stopped(refusal.status, str(refusal)))
        except MemoryError:
            self.early.clear()
            self.give_up(Stopped(FAILED, OUT_OF_MEMORY))
        except BaseException as error:
            self.give_up(Stopped(FAILED, describe(error)))
        self.news.put(Finished(trouble))

    def sum_up(self) -> None:
        if (self.tally.failed and not self.options.quiet) or self.shown.tick is not None:
            say(f"{self.name}: {self.tally.line(over=True)}")
        if self.picture is not None:
            for line in self.picture.lines():
                say(line)

    def report(self) -> Exception | None:
        """Print until the input has ended and the last outcome is out. Returns what is wrong with the input."""
        trouble: Exception | None = None
        due = time.monotonic()
        while not self.is_over():
            ready: deque[Outcome] = deque()
            for event in self.arrived():
                match event:
                    case Outcome():
                        if self.picture is not None and not event.again:
                            self.picture.add(*event.span)
                        ready += self.in_turn(event)
                    case InputEnded():
                        self.count, trouble = event.count, event.error
                        if not self.halted:
                            self.tally.total = event.count
                    case Failed():
                        raise Stopped(event.status, event.message)
            self.emit(ready)
            time.sleep(LINGER)
            if self.shown.tick is not None and time.monotonic() >= due:
                self.shown.update(self.tally)
                due = time.monotonic() + self.shown.tick
        if self.early and not self.in_turn_only:
            self.emit(deque(self.early.pop(index) for index in sorted(self.early)))
        return trouble

    def is_over(self) -> bool:
        if self.stopped:
            return not self.window.running and self.events.empty()
        if self.halted and not self.window.running and self.events.empty() and self.tally.done >= self.nr_read:
            return True
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
            for _ in range(EVENTS):
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
            size, where = 0, self.out
            while ready and size < AT_ONCE:
                outcome = ready.popleft()
                printed.append(outcome)
                for fd, part in self.printed(outcome):
                    if fd != where or size >= AT_ONCE:
                        self.write_out(where, parts)
                        parts, size, where = [], 0, fd
                    parts.append(part)
                    size += len(part)
            self.write_out(where, parts)
            self.count_up(printed)

    def write_out(self, fd: int, parts: list[bytes]) -> None:
        """Raises Stopped."""
        if not parts:
            return
        self.shown.clear()
        try:
            write_all(fd, *parts)
            self.shown.printed(fd, parts[-1])
        except BrokenPipeError:
            raise Stopped(CLOSED) from None
        except OSError as error:
            which = "output" if fd == self.out else "error"
            raise Stopped(FAILED, f"standard {which}: {reason(error)}") from None

    def count_up(self, printed: list[Outcome]) -> None:
        for outcome in printed:
            self.tally.done += 1
            if outcome.again:
                self.tally.again += 1
            elif outcome.error is not None:
                self.name_failure(outcome.index)
        self.window.leave(len(printed), sum(outcome.size + weight(outcome.item) for outcome in printed))
        self.read_on()

    def name_failure(self, index: int) -> None:
        """Only once: the last words name those whose turn never came, while the writer may still be at it."""
        with self.failing:
            outcome = self.unnamed.pop(index, None)
            if outcome is None:
                return
            self.tally.failed += 1
        self.shown.say(f"{self.name}: item {index + 1} {_shown(outcome.item)}: {outcome.error}")

    # The early end

    def leave(self, stop: Stopped, number: int | None = None) -> NoReturn:
        """Start nothing more, let what runs end and be printed if that is quick, and leave the process, because threads
        cannot be stopped. number: of the signal that asked for it; after another one the process leaves at once.
        """
        self.stopped = True
        self.events.put(LookAgain())
        hurried = self.wind_up(number)
        if self.log is not None:
            self.log.stop(timeout=0 if hurried else GRACE)
        if self.trace is not None and not hurried:
            self.trace.end()
        if not hurried:
            words = threading.Thread(target=self.last_words, args=(stop,), name=f"{self.name} end", daemon=True)
            try:
                words.start()
                # The reason of a failure is written, however long the reader takes.
                self.asked_again(Said, GRACE if stop.message is None else None)
            except RuntimeError:  # no thread can be had
                self.last_words(stop)
        if number is not None:
            end_by(number)
        os._exit(stop.status)

    def wind_up(self, number: int | None) -> bool:
        """Let what runs end, within its grace. True: another signal came, and nothing is waited for."""
        return self.asked_again(Finished, GRACE) is None

    def last_words(self, stop: Stopped) -> None:
        message = stop.message
        self.shown.close()
        if stop.status != CLOSED:  # whose end is quiet
            with self.failing:
                unnamed = sorted(self.unnamed)
            for index in unnamed:
                self.name_failure(index)
        if message is not None:
            say(f"{self.name}: {message if self.halted else f'error: {message}'}")
        if self.halted:
            self.sum_up()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        self.news.put(Said())

    def asked_again(self, awaited: type[Finished | Said], seconds: float | None) -> bool | None:
        """Wait for that news, for at most so many seconds. True: it came. False: it didn't. None: a signal came."""
        last = None if seconds is None else time.monotonic() + seconds
        while True:
            try:
                news = self.news.get(timeout=None if last is None else max(0, last - time.monotonic()))
            except queue.Empty:
                return False
            if isinstance(news, awaited):
                return True
            if isinstance(news, Signalled) and news.number != signal.SIGTSTP:
                return None


def _shown(item: str | None) -> str:
    assert item is not None
    return one_line(repr(item)) if len(item) <= LONGEST else one_line(repr(item[:LONGEST])) + "..."
