"""ThreadHost: the core's `Host` on the real machine, with cmwq's locks, Python's threads, the kernel's clock and
CPUs."""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from functools import partial
from types import BuiltinFunctionType
from typing import TYPE_CHECKING

from cmwq._core import ports
from cmwq._core.tables import lookup
from cmwq._errors import CmwqError, ThreadLimit
from cmwq._host import caps, files, interpreters, life, locks, memory, processes, topology, traits, waits
from cmwq._host.greenlets import refuse_greenlets
from cmwq._host.parker import LockParker
from cmwq._host.threads import HostThread, is_of_a_handler
from cmwq._host.timers import Timer, Timers

if TYPE_CHECKING:
    from cmwq._workqueue.runtime import Runtime

try:
    from cmwq._sensor import _sentinel
except ImportError:  # no compiler was there
    _sentinel = None  # type: ignore[assignment]

_OURS = os.path.dirname(os.path.dirname(__file__)) + os.sep, threading.__file__
_HEADROOM_TTL = 0.1  # s: after this time the caps are read again
_FEW = 16  # threads: with room for fewer than this, the caps are read at each call


def _clock() -> Callable[[], float]:
    """The real monotonic clock, even if a library has replaced `time.monotonic` already."""
    if isinstance(time.monotonic, BuiltinFunctionType) or not hasattr(time, "clock_gettime"):
        return time.monotonic
    return partial(time.clock_gettime, time.CLOCK_MONOTONIC)


class ThreadHost:
    """The `Host` of a process; its methods are explained there. Thread-safe.

    The interpreter doesn't wait for the threads of a host. A runtime does at exit, unless Ctrl-C ends its wait.
    """

    monotonic = staticmethod(_clock())
    """In seconds. It is bound in a class because libraries that stop the clock for tests replace it in every module."""

    universe = "the process"

    def __init__(self) -> None:
        self._topology = topology.Topology()
        self._groups: dict[tuple[str, tuple[int, ...]], tuple[tuple[int, ...], ...]] = {}
        self._know_nothing()

    def _know_nothing(self) -> None:
        self._timers = Timers(self.spawn, self.monotonic)
        self._ending: list[Timers] = []  # each change is atomic
        self.memory = memory.Meter(self.monotonic)
        self._headroom = 0  # threads below the caps, as last read and asked for since
        self._headroom_until = 0.0

    def forget(self) -> None:
        """In the child of a fork: drop the timers and what was read of the process. The topology stays valid."""
        self._timers.abandon()
        self._know_nothing()

    def lock(self, rank: int, mend: Callable[[], object] | None = None) -> ports.Lock:
        return locks.new(rank, mend)

    def inside(self) -> int:
        return locks.inside()

    def defer(self, fn: Callable[[], object]) -> None:
        locks.defer(fn)

    def reinit_lock(self, lock: ports.Lock) -> ports.Lock:
        locks.reinit(lock)
        return lock

    def parker(self) -> ports.Parker:
        return LockParker() if _sentinel is None else _sentinel.Parker()

    def spawn(
        self, name: str, body: Callable[[], None], began: Callable[[ports.Thread], object] | None = None
    ) -> ports.Thread:
        refuse_greenlets()
        thread: HostThread | None = None
        try:
            thread = HostThread(name, body, began)
            thread.launch()
        except (RecursionError, CmwqError):  # of the caller, or of a signal handler: the system has refused nothing
            raise
        except (RuntimeError, MemoryError, OSError) as exc:
            running = thread is not None and thread.runs
            if running or (not isinstance(exc, MemoryError) and is_of_a_handler(exc)):  # such as a TimeoutError
                raise
            raise ThreadLimit(f"the system refused thread {name}: {exc}; `cmwq doctor` lists the limits") from exc
        return thread

    def thread_headroom(self, *, needed: bool = False) -> int:
        """Each call counts as one more thread until the caps are read again, which is at each call where threads are
        few.

        Unless `needed`, `caps.SPARE` threads are left to the rest of the process.
        """
        now = self.monotonic()
        if now >= self._headroom_until or self._headroom < _FEW:
            self._headroom = caps.headroom()
            self._headroom_until = now + _HEADROOM_TTL
        self._headroom -= 1
        return self._headroom + 1 - (0 if needed else caps.SPARE)

    def call_later(self, delay: float, fn: Callable[[], None]) -> Timer:
        """Raises ThreadLimit if the timer thread doesn't exist yet and can't be created."""
        return self._timers.call_later(delay, fn)

    def start_timers(self) -> None:
        """Create the timer thread, so that `call_later` needs no further one. Raises ThreadLimit."""
        interpreters.check()  # here, because this is a runtime's first thread
        self._timers.start()

    def stop_timers(self) -> None:
        """End the timer thread and drop all timers of this host. A later timer starts a new thread.

        If it is interrupted, the next call ends what this one has left. Context: no lock held that a timer's function
        may take.
        """
        self._ending.append(self._timers)
        self._timers = Timers(self.spawn, self.monotonic)
        for timers in list(self._ending):
            timers.close()
            with suppress(ValueError):  # another thread stops them, too
                self._ending.remove(timers)

    def bind(self, cpus: Iterable[int], tid: int = 0) -> bool:
        """Best effort, because a CPU may have left between the decision and the call (D6). False: it failed."""
        try:
            os.sched_setaffinity(tid, cpus)
        except (OSError, AttributeError):  # AttributeError: no Linux
            return False
        return True

    def bound_to(self, tid: int) -> Collection[int] | None:
        try:
            return os.sched_getaffinity(tid)
        except (OSError, AttributeError):
            return None

    def traits(self) -> ports.Traits:
        return traits.look()

    def set_mask(self, mask: Iterable[int]) -> None:
        traits.set_mask(mask)

    def thread_id(self) -> int:
        return threading.get_native_id()

    def set_nice(self, nice: int) -> bool:
        """Set the nice value of the calling thread alone. False: it is not permitted, or not possible here.

        Undoing the change may not be permitted. Threads and processes that the thread starts don't inherit a
        negative value, because it belongs to the worker, not to its works.
        """
        # On other systems niceness belongs to the process, and a thread's id may be the id of another process.
        if not sys.platform.startswith("linux"):
            return False
        try:
            if nice < 0:
                # First, so that nothing can be started in between. If it fails, the nice value stays.
                os.sched_setscheduler(0, os.sched_getscheduler(0) | os.SCHED_RESET_ON_FORK, os.sched_getparam(0))
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice)
        except (OSError, OverflowError, AttributeError):  # AttributeError: a C library without it
            return False
        return True

    def cpu_clock(self) -> Callable[[], float | None]:
        """A function that reads the calling thread's CPU time in seconds, from any thread. After its end: None."""
        clock_of = getattr(time, "pthread_getcpuclockid", None)
        if clock_of is None:
            return lambda: None
        clock = clock_of(threading.get_ident())

        def used() -> float | None:
            try:
                return time.clock_gettime(clock)
            except OSError:
                return None

        return used

    def set_thread_name(self, name: str) -> None:
        name = name.encode("ascii", "replace").decode()  # a queue's name may have any characters
        if _sentinel is not None:
            _sentinel.set_name(name)
            return
        with suppress(OSError):
            files.write(f"/proc/self/task/{threading.get_native_id()}/comm", name[:15].encode())

    def cpus(self) -> tuple[int, ...]:
        return topology.cpus()

    def cpu_groups(self, scope: str, cpus: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        """The CPUs grouped by what they share (`topology.SCOPES`), read from the system once for each set of CPUs."""
        key = scope, cpus
        groups = lookup(self._groups, key)
        if groups is None:
            groups = self._groups[key] = self._topology.groups(*key)
        return groups

    def cpu_limit(self) -> int:
        return topology.cpu_limit()

    def current_cpu(self) -> int | None:
        return None if _sentinel is None else _sentinel.get_cpu()

    def gil_enabled(self) -> bool:
        return bool(getattr(sys, "_is_gil_enabled", lambda: True)())

    def stack_of(self, thread: ports.Thread | None) -> tuple[str, ...]:
        ident = getattr(thread, "ident", None)
        frame = sys._current_frames().get(ident) if ident is not None else None
        return () if frame is None else tuple(traceback.format_stack(frame))

    def stacks_of(self, threads: Iterable[ports.Thread | None], most: int) -> dict[int, tuple[str, ...]]:
        frames, stacks = sys._current_frames(), {}
        for thread in threads:
            frame = frames.get(getattr(thread, "ident", None) or 0)
            if frame is not None:
                summary = traceback.StackSummary.extract(traceback.walk_stack(frame), limit=most)
                summary.reverse()
                while len(summary) > 1 and summary[0].filename.startswith(_OURS):
                    del summary[0]  # what leads to the work
                stacks[id(thread)] = tuple(summary.format())
        return stacks

    def awaited(self, threads: Iterable[ports.Thread | None]) -> dict[int, ports.Awaited]:
        from cmwq._host.awaited import awaited  # here, because it imports a parser

        return awaited(threads)

    epoch = staticmethod(time.time)
    process_cpu = staticmethod(time.process_time)

    has_children = staticmethod(processes.has_children)
    children_of = staticmethod(processes.children_of)
    processes_below = staticmethod(processes.below)

    def waits_in(self, tid: int) -> str:
        return waits.in_words(tid)

    sleeps = staticmethod(waits.sleeps)

    def watch_process(self, runtime: Runtime) -> None:
        life.watch(runtime)
