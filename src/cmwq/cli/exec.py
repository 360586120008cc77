"""`cmwq exec`: run a command for every item, with as many processes at a time as the CPUs can use.

The run is in `run`; here is what an item is to it: a child process (`child`), made by a template (`command`), whose
output waits for its turn (`capture`).

Guarantees: a command that ended is in the log before any of its output is printed, unless --line-buffer is given. A
command that the run's end ended isn't in the log, and none of its output is printed. No command outlives the run,
except one that left its process group, or one that another user runs. Memory is bounded, whatever commands print.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from cmwq.cli.capture import SLOT, Spill, SpillError, Stream
from cmwq.cli.child import Children, Closing, Ended, Unstartable, find
from cmwq.cli.command import Template, template
from cmwq.cli.files import Files
from cmwq.cli.items import Source, moved, source_of
from cmwq.cli.joblog import JobLog, members
from cmwq.cli.lines import Lines, Tagged, tag_of
from cmwq.cli.log import Log
from cmwq.cli.news import Failed, Finished, Outcome
from cmwq.cli.output import CLOSED, Refusal, describe, reason, say, write_all
from cmwq.cli.progress import Display, Tally, display, duration, is_shown
from cmwq.cli.run import GRACE, Run
from cmwq.cli.tracing import status_of, tracing
from cmwq.cli.window import Window

if TYPE_CHECKING:
    from cmwq.cli.cluster import Cluster

COUNT = 50_000  # commands that may wait for their turn
OVERHEAD = 1000  # bytes of memory for each of them, its item and output aside
ERR = 2  # descriptor of standard error
NAMES = ("stdout", "stderr")  # in the log
QUIET = 1.0  # seconds of waiting for commands that are to end, before it is said that they are waited for


class Output(Outcome):
    """What a command printed. None of it if it was printed at once."""

    __slots__ = ("held", "streams")

    def __init__(
        self, index: int, item: str, error: str | None, span: tuple[float, float], streams: tuple[Stream, ...]
    ) -> None:
        super().__init__(index, item, error, span=span)
        self.streams = streams
        self.held = OVERHEAD + sum(stream.held for stream in streams)

    @property
    def size(self) -> int:
        return self.held


def run(options: argparse.Namespace) -> int:
    command = template(options.words, options.shell, options.mark)
    # Another machine may have it elsewhere; and to be shown it need not be here at all.
    path = None if options.cluster is not None or options.dry_run else _found(command.word)
    with contextlib.ExitStack() as stack:
        source = source_of(options, stack)
        if options.arg_file or options.items:
            os.close(moved(0, os.open(os.devnull, os.O_RDONLY)))  # commands read nothing from the terminal
        elif sys.stdin is not None and sys.stdin.isatty() and not options.quiet:
            say("cmwq exec: reading items from the terminal, one a line; Ctrl-D ends them")
        files = Files(1)
        files.read("the input", source.fds)
        log = None
        if options.resume is not None and not (options.dry_run and not os.path.exists(options.resume)):
            files.write("log", options.resume)
            log = Log(
                options.resume, "exec", _target(options), needed="command", texts=NAMES, read_only=options.dry_run
            )
            stack.callback(log.close)
            if log.unkept is not None and not (options.line_buffer or options.dry_run):
                raise Refusal(
                    f"log {options.resume!r} lacks the output of item {log.unkept + 1}, which was printed with "
                    "--line-buffer: give that again, or use another log"
                )
        if options.dry_run:
            return _show(command, source, log)
        # Lines that come at any moment would tear a display that isn't asked for.
        quiet = options.quiet or (options.line_buffer and not options.progress)
        total = source.count() if options.items or is_shown(options.progress, quiet) else None
        shown = display(options.progress, quiet, total)
        stack.callback(shown.close)
        files.write("job log", options.job_log)
        jobs = None if options.job_log is None else JobLog(options.job_log)
        cluster = None
        if options.cluster is not None:
            from cmwq.cli.cluster import AT_ONCE, Cluster

            cluster = Cluster(options.cluster, "exec", stack)
            options.max_active = options.max_active or AT_ONCE
        executing = Executing(options, command, path, source.items, log, jobs, shown, Tally(total))
        executing.cluster = cluster
        if options.summary:
            from cmwq.cli.picture import Picture

            executing.picture = Picture()
        executing.trace = tracing(options.trace, executing.name, files, stack)
        _arrange_signals()
        return status_of(executing.run(), executing.trace)


class Executing(Run):
    """One run of the command. path: the program; None if it depends on the item."""

    name = "cmwq exec"
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP)
    in_turn_only = False

    def __init__(
        self,
        options: argparse.Namespace,
        command: Template,
        path: str | None,
        source: Iterator[str],
        log: Log | None,
        jobs: JobLog | None,
        shown: Display,
        tally: Tally,
    ) -> None:
        super().__init__(options, source, sys.stdout.fileno(), log, shown, tally, Window(COUNT))
        self.command, self.path = command, path
        self.jobs = jobs
        self.children = Children(options.kill_after)
        self.cluster: Cluster | None = None
        self.spill = Spill()
        self.lines = Lines((self.out, ERR)) if options.line_buffer else None

    # The workers

    def title(self, item: str) -> str:
        words = self.options.words
        return f"{os.path.basename(words[0])} {item}" if words and not self.options.shell else item

    def outcome(self, index: int, item: str) -> Outcome | Failed | None:
        start = time.time()
        streams: tuple[Stream, ...] = ()
        try:
            tries, took = 0, 0.0
            while True:
                tries += 1
                for stream in streams:
                    stream.drop()
                begun = time.monotonic()
                ended, streams = self.attempt(index, item)
                if ended.given_up:
                    return None
                there, seconds = ended.measured or (start, time.monotonic() - begun)  # without the wait for its turn
                start, took = there if tries == 1 else start, took + seconds
                if ended.error is None or tries > self.options.retries or self.stopped or self.halted:
                    break
            now = time.monotonic()
            self.record(index, item, ended, start, took, tries, streams)
            if self.window.crowded:
                for stream in streams:
                    stream.pack()
        except Closing:
            return None
        except Unstartable as error:
            return self.unstartable(index, item, error, start)
        except SpillError as error:
            return Failed(str(error))
        except BrokenPipeError:  # --line-buffer
            return Failed(None, CLOSED)
        except Refusal as refusal:
            return Failed(str(refusal), refusal.status)
        return Output(index, item, self.said(ended, tries), (now - took, now), streams)

    def attempt(self, index: int, item: str) -> tuple[Ended, tuple[Stream, ...]]:
        argv = self.command.argv(item, index + 1)
        if self.cluster is not None:
            return self.attempt_elsewhere(self.cluster, argv)
        path = find(argv[0]) if self.path is None else self.path
        timeout = self.options.timeout
        if self.lines is None:
            streams = (Stream(self.spill), Stream(self.spill))
            return self.children.run(path, argv, (streams[0].add, streams[1].add), timeout), streams
        with self.lines.of(tag_of(item) if self.options.tag else b"") as sinks:
            return self.children.run(path, argv, sinks, timeout), ()

    def attempt_elsewhere(self, cluster: Cluster, argv: list[str]) -> tuple[Ended, tuple[Stream, ...]]:
        """On a worker of the cluster. Raises Unstartable, Closing."""
        from cmwq.cli.cluster import Lost, run_command

        streams = (Stream(self.spill), Stream(self.spill))
        try:
            printed = cluster.call(run_command, cluster.run, argv, self.options.timeout, self.options.kill_after)
        except Exception as error:
            # Closing comes from the worker, whom not only this run tells to end a command. `stopped` was set before
            # the run told it to.
            if self.stopped:
                raise Closing from None
            return Lost("ended by the cluster" if isinstance(error, Closing) else describe(error)), streams
        if printed.unstartable is not None:
            raise Unstartable(*printed.unstartable)
        for stream, data in zip(streams, (printed.out, printed.err), strict=True):
            for start in range(0, len(data), SLOT):
                stream.add(data[start : start + SLOT])
        return printed.ended, streams

    def record(
        self, index: int, item: str, ended: Ended, start: float, seconds: float, tries: int, streams: tuple[Stream, ...]
    ) -> None:
        """Raises Refusal if a log cannot be written, SpillError."""
        if self.log is None and self.jobs is None:
            return
        shown = self.command.shown(item, index + 1)
        tail = members(shown, ended, start, seconds, tries)
        ok = ended.error is None
        if self.jobs is not None:
            self.jobs.record(index, item, ok, tail)
        if self.log is not None:
            try:
                if not ok:
                    self.log.record(index, item, ok, tail)
                elif self.lines is not None:
                    self.log.record(index, item, ok, tail, b', "kept": false')
                elif sum(stream.size for stream in streams) <= SLOT:
                    self.log.record(index, item, ok, tail, *_texts(streams))
                else:
                    self.log.record(index, item, ok, tail, pieces=_named(streams))
            except OSError as failure:
                raise Refusal(f"log {self.log.path!r}: {reason(failure)}") from None

    def unstartable(self, index: int, item: str, error: Unstartable, start: float) -> Outcome | Failed:
        """One that all items share ends the run. The others fail their items."""
        if self.path is not None and error.for_all:
            return Failed(str(error), error.status)
        now = time.monotonic()
        try:
            self.record(index, item, Ended(error.status, None), start, 0.0, 1, ())
        except Refusal as refusal:
            return Failed(str(refusal))
        return Output(index, item, str(error), (now, now), ())

    def said(self, ended: Ended, tries: int) -> str | None:
        """What is said of its failure; None: it is none."""
        said = f"timed out after {self.options.timeout:g} s" if ended.late else ended.error
        return f"{said}, the last of {tries} tries" if said is not None and tries > 1 else said

    # The writer

    def printed(self, outcome: Outcome) -> Iterable[tuple[int, bytes]]:
        if not self.options.tag or self.lines is not None:
            return self.raw(outcome)
        assert isinstance(outcome, Output) or self.log is not None
        item = outcome.item if outcome.item is not None else self.log.item(outcome.index)  # type: ignore[union-attr]
        return Tagged(tag_of(item)).all(self.raw(outcome))

    def raw(self, outcome: Outcome) -> Iterator[tuple[int, bytes]]:
        if outcome.again:
            assert self.log is not None
            if self.lines is None:
                for line in self.log.pieces(outcome.index):
                    texts = {line["piece"]: line["text"]} if "piece" in line else line
                    for fd, name in zip((self.out, ERR), NAMES, strict=True):
                        if texts.get(name):
                            yield fd, texts[name].encode("utf-8", "surrogateescape")
            return
        assert isinstance(outcome, Output)
        try:
            for fd, stream in zip((self.out, ERR), outcome.streams, strict=False):
                for block in stream.blocks():
                    yield fd, block
                stream.drop()
        except SpillError as error:
            raise Refusal(str(error)) from None

    # The main thread

    def wind_up(self, number: int | None) -> bool:
        if self.cluster is not None:
            return self.wind_up_elsewhere(self.cluster, signal.SIGTERM if number is None else number)
        self.children.end(signal.SIGTERM if number is None else number)
        now = time.monotonic()
        last, told = now + self.options.kill_after, now + QUIET
        while True:
            left = last - time.monotonic()
            came = self.asked_again(Finished, max(0.0, min(left, GRACE)))
            if came or came is None or left <= 0 or not self.children.any:
                break
            if time.monotonic() >= told:
                told = float("inf")
                self.say_who_is_waited_for(last)
        self.children.end(signal.SIGKILL)
        self.children.settle(GRACE)
        if came is None:
            return True
        return not came and self.asked_again(Finished, GRACE) is None

    def say_who_is_waited_for(self, last: float) -> None:
        """Say why the run does not end. On a thread: the main thread never waits for who reads stderr."""
        left = max(0.0, last - time.monotonic())
        words = (
            f"{self.name}: some commands do not end; they are killed in {duration(left)}, or at once by another signal"
        )
        with contextlib.suppress(RuntimeError):  # no thread can be had
            threading.Thread(target=self.shown.say, args=(words,), daemon=True).start()

    def wind_up_elsewhere(self, cluster: Cluster, number: int) -> bool:
        kill_after = self.options.kill_after
        threading.Thread(target=cluster.end, args=(number, kill_after), daemon=True).start()
        if self.asked_again(Finished, kill_after + GRACE) is not None:
            return False
        cluster.end(signal.SIGKILL, 0.0)
        return True

    def pause(self) -> None:
        self.children.stop()
        self.shown.clear()
        # Not SIGSTOP: the kernel ignores this where no shell could say `fg` (`ssh -t`, a terminal's first process).
        before = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, before)
        self.children.go_on()


def _named(streams: tuple[Stream, ...]) -> Iterator[tuple[str, bytes]]:
    for name, stream in zip(NAMES, streams, strict=False):
        for block in stream.blocks():
            yield name, block


def _texts(streams: tuple[Stream, ...]) -> Iterator[bytes]:
    """Short streams as members of a line of JSON."""
    for name, block in _named(streams):
        yield f', "{name}": {json.dumps(block.decode("utf-8", "surrogateescape"))}'.encode("ascii")


def _found(word: str | None) -> str | None:
    """The program, if all items share it. Raises Refusal, with a shell's status."""
    if word is None:
        return None
    try:
        return find(word)
    except Unstartable as error:
        raise Refusal(str(error), error.status) from None


def _target(options: argparse.Namespace) -> str:
    """What the log says of the command: all that decides what is run for an item."""
    how = [*(["--shell"] if options.shell else []), *([] if options.mark is None else ["-I", options.mark])]
    return shlex.join([*how, *options.words])


def _show(command: Template, source: Source, log: Log | None) -> int:
    """--dry-run: print what would be run."""
    items = source.items if log is None else log.checked(source.items)
    try:
        for number, item in enumerate(items, 1):
            if item is not None:
                write_all(1, os.fsencode(command.shown(item, number)), b"\n")
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        raise Refusal(f"standard output: {reason(error)}") from None
    return 0


def _arrange_signals() -> None:
    """Have the kernel keep how a command ended, even if whoever started cmwq ignored that."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
