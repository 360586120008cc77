"""Trace: the newest of what happened in a runtime, kept in memory and written to a file for Perfetto.

Guarantees
- Memory is constant, and what is kept is the newest (`_pool.ring`). While it records, no file is touched, and no thread
  runs for it but the timers' now and again while works are under way.
- A file is there as a whole or not at all (`files`). If it can't be written, nothing of the program fails by that:
  `write` raises OSError, and whoever writes by itself (the end of a `with` or of the process, a stall, a signal) logs
  one line as an error.
- A signal's handler only notes that the signal came. A thread of ours writes, once for all signals that came meanwhile.
  A handler of the program's that writes, and comes while its own thread writes, gets Reentered and waits for nothing.
- The child of a fork does not touch its parent's file. With `CMWQ_TRACE` it records anew, into a file of its own.

Floods. To record a no-op takes half as long as the no-op. Where a pool ends more than `FLOOD` works a second, and only
there, its works are recorded for a tenth of the time; the trace shows how many ended meanwhile. `every=True` records
all of them.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from cmwq._core import checks, log
from cmwq._core.naming import name_of
from cmwq._core.surely import surely
from cmwq._errors import CmwqError, ForeignProcess, Reentered, ThreadLimit
from cmwq._pool.events import name_of_pool
from cmwq._pool.ring import Place, Ran
from cmwq._workqueue.recording import Happened, Recording
from cmwq._workqueue.runtime import default_runtime

if TYPE_CHECKING:
    from types import FrameType, TracebackType

    from cmwq._pool.pool import WorkerPool
    from cmwq._workqueue.runtime import Runtime


LIMIT = 100_000
"""How many records of each sort are kept by default. They take about 30 MB at most."""
MAX_LIMIT = 2_000_000
"""More would make files that viewers can't load."""
TICK = 0.01
"""Seconds between two looks at the pools while works are under way."""
FLOOD = 20_000
"""Works a second, of one pool. More are not recorded all the time."""
REST = 9
"""So many ticks a flood is not recorded, after one in which it was."""
MAX_NAME = 100
"""Characters of the process's name in a trace, at most."""
MAX_STALLS = 5
"""So many files a trace writes because of stalls."""


class Trace:
    """A trace that is being recorded. `cmwq.trace` makes it. Thread-safe.

    It ends by `close`, at the end of a `with` block, or with its runtime, and is then written if it has a path.
    """

    def __init__(
        self, path: Path | None, runtime: Runtime, limit: int, on_signal: int | None, on_stall: bool, every: bool
    ) -> None:
        self.path = path  # I
        self._runtime = runtime  # I
        self._pid = os.getpid()  # I
        # W: one thread reads the ring at a time. A handler that comes when the lock is taken and the reader is not yet
        # noted takes it once more, and is done before its thread reads.
        self._lock = threading.RLock()
        self._reader = 0  # W to change, read freely: which thread that is
        self._wanted: SimpleQueue[Path | None] = SimpleQueue()  # A: which files the thread is to write
        self._stalls = count(1)  # A
        self._asked = False  # ~: by a signal, and the file is not begun yet
        self._writer: threading.Thread | None = None  # I once it is made
        self._signals: tuple[int, Callable[..., Any], Any] | None = None  # S: of the main thread
        self._over = False  # W
        self._written = False  # ~: at the end
        self._looks = _Looks(runtime, every)  # I
        self._recording = Recording(runtime, limit, self._looks.begin, self._stalled if on_stall else _nothing)  # I
        self._looks.recording = self._recording
        self._recording.at_end = self._end
        self._begin = runtime.host.monotonic()  # I
        try:
            if on_signal is not None:
                self._listen_to(on_signal)
            if on_signal is not None or on_stall:
                self._start_writer()
            runtime.events.add(self._recording)
        except BaseException:
            self._stop()
            raise

    def __repr__(self) -> str:
        return f"<cmwq.Trace{'' if self.path is None else f' to {str(self.path)!r}'}{', over' * self._over}>"

    def write(self, path: str | os.PathLike[str] | None = None) -> Path:
        """Write what is recorded so far, to this path or else to the trace's own, and go on recording. A name that ends
        in `.gz` is compressed. Returns the path.

        Raises OSError if the file can't be written: nothing is left of it then, and an older file of that name stays.
        Raises ValueError if there is no path, ForeignProcess in the child of a fork, Reentered in a finaliser or a
        signal handler that interrupted cmwq's own code. It may be called after the end as well.
        """
        where = self.path if path is None else Path(path)
        if where is None:
            raise ValueError("this trace has no path; give one: trace.write('out.json')")
        if self._pid != os.getpid():
            raise ForeignProcess("the trace is one of the process that forked this one; begin another here")
        self._refuse_reentry()
        with self._lock, surely(self._leave), surely(self._leave):
            self._reader = threading.get_ident()
            _write(where, self._runtime, self._recording, self._begin)
        return where

    def close(self) -> None:
        """End the recording, and write the trace if it has a path. If that fails, it is logged. Harmless if it is over,
        or in the child of a fork. If it is interrupted, by Ctrl-C for example, it may be called again, and writes then.
        What was recorded can still be written by `write`. Raises Reentered as `write` does; then it goes on.
        """
        self._refuse_reentry()
        self._recording.at_end = None
        self._end()

    def __enter__(self) -> Trace:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # ------------------------------------------------------------------------------- inside

    def _refuse_reentry(self) -> None:
        if self._reader == threading.get_ident():
            raise Reentered("a finaliser or a signal handler writes a trace while its own thread is writing it")

    def _leave(self) -> None:
        self._reader = 0

    def _end(self) -> None:
        """Record nothing more, and write what was recorded, once."""
        if self._stop() and self.path is not None and not self._written:
            self._write_quietly(self.path)
            self._written = True  # last: if this is interrupted, it is to be done again

    def _stop(self) -> bool:
        """Record nothing more. If that is so already, nothing happens. False: this is the child of a fork."""
        if self._pid != os.getpid():
            return False
        self._looks.stop()
        self._runtime.events.drop(self._recording)  # before it is over: if this is interrupted, it may be repeated
        self._listen_no_more()
        with self._lock:
            self._over = True
        if self._writer is not None:
            self._wanted.put(None)
            if self._writer is not threading.current_thread() and self._reader != threading.get_ident():
                self._writer.join()
        return True

    def _write_quietly(self, path: Path) -> None:
        try:
            self.write(path)
        except (OSError, MemoryError, CmwqError) as error:
            log.error("the trace %s could not be written: %s", path, _reason(error))
        except Exception:  # nothing of the program fails by a fault of ours either
            log.exception("the trace %s could not be written", path)

    def _start_writer(self) -> None:
        """Start the thread that writes. Raises ThreadLimit."""
        writer = threading.Thread(target=self._write_when_wanted, name="cmwq/trace", daemon=True)
        try:
            writer.start()
        except (RuntimeError, MemoryError) as error:
            raise ThreadLimit(f"the system refused the thread that writes the trace: {error}") from error
        self._writer = writer

    def _write_when_wanted(self) -> None:
        while (path := self._wanted.get()) is not None:
            if path == self.path:
                self._asked = False
            self._write_quietly(path)

    def _stalled(self) -> None:
        number = next(self._stalls)
        if self.path is not None and number <= MAX_STALLS:
            self._wanted.put(_marked(self.path, f"stall-{number}"))

    def _listen_to(self, number: int) -> None:
        """Write when this signal comes, and call the handler that was there before."""
        before = _live(signal.getsignal(number))

        def handle(number: int, frame: FrameType | None) -> None:
            if self._pid == os.getpid() and not self._asked and not self._over:
                self._asked = True
                self._wanted.put(self.path)  # it takes no lock that this thread may hold
            if callable(before) and before is not signal.default_int_handler:
                before(number, frame)

        handle.of, handle.before = self, before  # type: ignore[attr-defined]
        try:
            signal.signal(number, handle)
        except ValueError as error:
            raise ValueError(f"on_signal: {error}; begin the trace in the main thread") from None
        self._signals = number, handle, before

    def _listen_no_more(self) -> None:
        signals, self._signals = self._signals, None
        if signals is not None:
            number, handle, before = signals
            with suppress(ValueError):  # not in the main thread, so it stays, and does nothing
                if signal.getsignal(number) is handle:
                    signal.signal(number, _live(before) or signal.SIG_DFL)


def trace(
    path: str | os.PathLike[str] | None = None,
    *,
    limit: int = LIMIT,
    on_signal: int | None = None,
    on_stall: bool = False,
    every: bool = False,
    runtime: Runtime | None = None,
) -> Trace:
    """Record what happens from now on in a runtime (default: the process's own), for Perfetto (https://ui.perfetto.dev).

        with cmwq.trace("out.json"):
            ...

    path: the file that is written at the end; compressed if its name ends in `.gz`. Without one, call `Trace.write`.
        It is looked for in the directory of this moment.
    limit: how many records of each sort are kept: works that were queued, works that ran, everything else. The newest
        stay. At most 2,000,000.
    on_signal: write also when this signal comes. Begin the trace in the main thread for that. A handler that was there
        before is still called, but what the system or Python does without one is not: Ctrl-C ends nothing with SIGINT.
    on_stall: write also when a pool or a queue stalls (H3), to `out.stall-1.json` and so on, five times at most.
    every: record each work even in floods of more than 20,000 works a second, which then take half as long again.

    Raises ThreadLimit if `on_signal` or `on_stall` need a thread and none can be had; ValueError or TypeError for an
    argument of the wrong value or type; OSError for a relative path where the current directory is gone. It starts no
    pool. Thread-safe.
    """
    limit = checks.integer("limit", limit, 1, MAX_LIMIT)
    checks.flag("on_stall", on_stall)
    checks.flag("every", every)
    where = None if path is None else Path(os.fsdecode(path)).absolute()  # the program may change its directory
    if where is None and (on_signal is not None or on_stall):
        raise ValueError("a trace that is written on a signal or a stall needs a path")
    number = None if on_signal is None else int(on_signal)
    return Trace(where, runtime or default_runtime(), limit, number, on_stall, every)


class _Looks:
    """Looks at the pools of a runtime, again and again while they are busy: the numbers of each, the CPU time of the
    process, and whether a pool is in a flood.

    A look is due as long as a pool has work, and the next work that begins after that calls `begin`.
    """

    recording: Recording

    def __init__(self, runtime: Runtime, every: bool) -> None:
        self._runtime = runtime  # I
        self._every = every  # I
        self._over = False  # ~
        self._last: dict[str, tuple[float, int]] = {}  # T: when each pool was looked at, and how many works had ended
        self._rests: dict[str, int] = {}  # T: for how many ticks more each pool is not recorded

    def begin(self) -> None:
        """Look from now on. It may be called under any lock."""
        ring = self.recording.ring
        if not ring.looks and not self._over:
            ring.looks = True
            now = self._runtime.host.monotonic()
            self._last = {name_of_pool(pool): (now, pool.nr_completed) for pool in self._runtime.pools()}
            self._look_later()

    def _look_later(self) -> None:
        try:
            self._runtime.host.call_later(TICK, self._look)
        except CmwqError:
            self.recording.ring.looks = False

    def stop(self) -> None:
        self._over = True

    def _look(self) -> None:
        """Look once, and again later if there is something to see.  Context: the timer."""
        if self._over:
            return
        ring = self.recording.ring
        ring.looks = False  # first: a work that begins after the look finds that nobody looks
        cpu_seconds, busy = time.process_time(), False
        for pool in self._runtime.pools():
            completed, works = self.recording.look_at(pool, cpu_seconds)
            busy |= self._judge(pool, completed) or works
        if busy and not ring.looks:
            ring.looks = True
            self._look_later()

    def _judge(self, pool: WorkerPool, completed: int) -> bool:
        """Record the pool, or leave it out for a while. True: it is left out."""
        name, now = name_of_pool(pool), self._runtime.host.monotonic()
        then, before = self._last.get(name, (now, completed))
        self._last[name] = now, completed
        rest = self._rests.get(name, 0)
        if rest:
            self._rests[name] = rest - 1
            if rest == 1:
                self.recording.record(pool, True)
        elif not self._every and completed - before > FLOOD * (now - then):
            self._rests[name] = REST
            self.recording.record(pool, False)
        return bool(self._rests.get(name))


# ----------------------------------------------------------------------------------- the file


def _write(path: Path, runtime: Runtime, recording: Recording, begin: float) -> None:
    from cmwq.observing import files, perfetto

    records = _collect(runtime, recording, begin)
    files.write_whole(path, lambda out: perfetto.write(out, records))


def _collect(runtime: Runtime, recording: Recording, begin: float) -> Any:
    """What there is to be written, as `perfetto.Records`."""
    from cmwq.observing import perfetto

    unfinished: list[Ran] = []
    workers: dict[str, int] = {}
    now = runtime.host.monotonic()
    for pool in runtime.pools():
        with pool.lock:
            for worker in pool.workers:
                workers[worker.name] = worker.tid
                began, item = worker.began, worker.item  # in this order: `began` is cleared while the item is there
                function = None if item is None else item.function
                if began and item is not None and function is not None:
                    place = Place(name_of_pool(pool), item.queue.name)
                    unfinished.append(Ran(began, now, worker.name, place, name_of(function), id(item), None))
    queued, ran, happened = recording.ring.read()
    ended = {(each.worker, each.began) for each in ran[-len(unfinished) - 1_000 :]}
    limit = recording.limit
    kept = {"works queued": len(queued), "works": len(ran), "events": len(happened)}
    return perfetto.Records(
        pid=os.getpid(),
        process=_name_of_process(),
        begin=begin,
        now=now,
        epoch=time.time(),
        queued=queued,
        ran=ran,
        happened=list(map(Happened._make, happened)),
        unfinished=[each for each in unfinished if (each.worker, each.began) not in ended],
        workers=workers,
        threads={
            thread.ident: perfetto.Thread(thread.name, thread.native_id or 0)
            for thread in threading.enumerate()
            if thread.ident is not None
        },
        overwritten=[sort for sort, number in kept.items() if number >= limit],
    )


def _name_of_process() -> str:
    """Its command. A program may have made anything of `sys.argv`."""
    words = [str(word)[:MAX_NAME] for word in getattr(sys, "argv", None) or ("",)]
    return " ".join([Path(words[0]).name or "python", *words[1:]])[:MAX_NAME]


def _live(handler: Any) -> Any:
    """The handler of a signal, or the one before it if it is that of a trace that is over: traces may end in another
    order than they began.
    """
    while isinstance(trace := getattr(handler, "of", None), Trace) and trace._over:
        handler = handler.before
    return handler


def _marked(path: Path, mark: str) -> Path:
    """The path with a mark before its suffixes: `out.json.gz` becomes `out.mark.json.gz`."""
    name, dot, suffixes = path.name.partition(".")
    return path.with_name(f"{name}.{mark}{dot}{suffixes}") if name or suffixes else path


def _reason(error: BaseException) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


def _nothing() -> None:
    pass


# ----------------------------------------------------------------------------------- CMWQ_TRACE

OWNER = "CMWQ_TRACE_OWNER"
"""The environment variable by which a process tells those that it starts that the file of `CMWQ_TRACE` is its own."""
_of_process: list[Trace] = []


def begin_from_environment() -> None:
    """Trace the whole process if `CMWQ_TRACE` says so. Called at import. It starts no thread."""
    path = os.environ.get("CMWQ_TRACE")
    if not path:
        return
    own = str(os.getpid())
    shared = os.environ.setdefault(OWNER, own) != own
    try:
        _begin(_marked(Path(path), own) if shared else Path(path))
    except (OSError, CmwqError) as error:  # the folder in which the process is does not exist any more
        log.error("CMWQ_TRACE: there is no trace %s: %s", path, _reason(error))
        return
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_begin_in_child)
    atexit.register(_end)


def _begin(path: Path) -> None:
    _of_process[:] = [trace(path)]


def _begin_in_child() -> None:
    path = Path(os.environ.get("CMWQ_TRACE", "trace.json"))
    before = _of_process[0].path if _of_process else None
    folder = before.parent if before is not None else path.absolute().parent
    _begin(folder / _marked(Path(path.name), str(os.getpid())))


def _end() -> None:
    """At exit, if Ctrl-C ended the wait for the runtime's end."""
    for each in _of_process:
        each.close()
