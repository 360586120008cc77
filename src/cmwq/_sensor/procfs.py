"""ProcfsSensor: reads `/proc/self/task/TID/syscall` every millisecond while work waits.

It tells what a worker does where the C extension was not built. The rules are the sentinel's (`_native/look.h`);
`_ticking` says what is lost. Assumes Linux on a machine whose system call numbers are in `_CALLS`; `usable()` checks
that. Files are opened for each look, because a pool of a thousand threads must not hold a thousand descriptors.
"""

from __future__ import annotations

import os
import platform
import sys
import threading
import time
from typing import TYPE_CHECKING, NamedTuple

from cmwq._errors import ThreadLimit
from cmwq._sensor._ticking import STILL, Doing, TickingSensor, Watched

if TYPE_CHECKING:
    from cmwq._core.ports import Host, Thread
    from cmwq._pool.worker import Worker


class _Calls(NamedTuple):
    read: bytes
    futex: bytes
    memory: frozenset[bytes]
    """Calls that wait shortly for a lock of the address space: mmap, mprotect, munmap, brk, madvise; -1: a page
    fault."""


_CALLS = {
    "x86_64": _Calls(b"0", b"202", frozenset((b"9", b"10", b"11", b"12", b"28", b"-1"))),
    "aarch64": _Calls(b"63", b"98", frozenset((b"222", b"226", b"215", b"214", b"233", b"-1"))),
}

COND, MUTEX = 48, 40
"""Sizes of glibc's pthread_cond_t and pthread_mutex_t: the GIL is two of each, side by side."""
UNREADABLE = -1
"""In place of the futex, for a thread of which only the CPU clock can be read."""
SIGHTINGS = 3
LEARN_WITHIN = 1.0


def usable() -> str | None:
    """Why this sensor can't be used here; None: it can."""
    if not sys.platform.startswith("linux"):
        return f"no Linux /proc on {sys.platform}"
    if not hasattr(time, "pthread_getcpuclockid"):
        return "no per-thread CPU clocks"
    calls = _CALLS.get(platform.machine())
    if calls is None or sys.maxsize < 2**32:
        return f"system call numbers are not known for this {platform.machine()} build"
    try:
        text = _read(threading.get_native_id())
    except OSError as error:
        return f"/proc/self/task/TID/syscall can't be read: {error.strerror}"
    if text.split(b" ", 1)[0] != calls.read:  # it shows the read() that reads it
        return "/proc/self/task/TID/syscall does not tell the system call"
    return None


def make(host: Host, reason: str) -> ProcfsSensor:
    return ProcfsSensor(host, reason)


def _read(tid: int) -> bytes:
    fd = os.open(f"/proc/self/task/{tid}/syscall", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 128)
    finally:
        os.close(fd)


class ProcfsSensor(TickingSensor):
    """A Sensor that tells sleeps in system calls, waits for locks and waits for the GIL apart."""

    name = "procfs"
    period = 1e-3

    def __init__(self, host: Host, reason: str = "") -> None:
        super().__init__(host, reason)
        self._calls = _CALLS[platform.machine()]  # I
        self._gil = range(0)  # T: futexes in this range are the GIL's
        self._learnt = False  # T: learnt, or tried to

    def doing(self, worker: Worker, watched: Watched) -> Doing:
        try:
            number, *rest = _read(watched.tid).split(b" ", 2)
        except OSError:
            return self._by_clock(worker, watched)
        if number.startswith(b"running"):
            watched.since = None
            return Doing.RUNS
        key = 0
        if number == self._calls.futex:
            key = int(rest[0], 16)
            if key in self._gil:
                return Doing.WAITS_FOR_GIL
        elif number not in self._calls.memory:
            return Doing.SLEEPS
        if key != watched.key:
            watched.key, watched.since = key, None
        return Doing.WAITS_FOR_LOCK

    def _by_clock(self, worker: Worker, watched: Watched) -> Doing:
        """The CPU-clock rule, for a thread of which nothing can be read: it has ended, or there is no free
        descriptor."""
        if worker.sleeping:
            return Doing.SLEEPS  # until it ends its item, because a sleeper stirs now and then
        if watched.key != UNREADABLE:
            watched.key, watched.since = UNREADABLE, None
        try:
            still = watched.still_for(self.host.monotonic())
        except OSError:
            return Doing.GONE
        return Doing.SLEEPS if still >= STILL else Doing.RUNS

    def learn(self) -> None:
        """Find the GIL's futexes, if there is a GIL. Takes some tens of milliseconds, `LEARN_WITHIN` s at most, once.

        Two threads only compute: the one that doesn't hold the GIL waits for it, and its futex is the GIL's. It takes
        two because reading releases the GIL, and a single one would be seen to run. If this fails, waits for the GIL
        count as lock waits, which `has_lasted` damps.
        """
        if self._learnt or not self.host.gil_enabled():
            return
        self._learnt = True
        tids: list[int] = []
        done = False

        def compute() -> None:
            tids.append(threading.get_native_id())
            while not done:
                pass

        helpers: list[Thread] = []
        files: list[int] = []
        seen: list[int] = []
        deadline = self.host.monotonic() + LEARN_WITHIN
        try:
            for _ in range(2):
                self.host.spawn("cmwq/learn", compute, helpers.append)
            while len(tids) < 2 and self.host.monotonic() < deadline:
                time.sleep(0)
            # They are kept open while learning, because each system call made here costs a turn at the GIL.
            files.extend(os.open(f"/proc/self/task/{tid}/syscall", os.O_RDONLY | os.O_CLOEXEC) for tid in tids)
            while not self._gil and self.host.monotonic() < deadline:
                # Reading hands the GIL to one of the two. If they were read in turns, it could always be the one read.
                for file in (files[0], *files, files[1]):
                    number, *rest = os.pread(file, 128, 0).split(b" ", 2)
                    if number == self._calls.futex:
                        seen.append(int(rest[0], 16))
                # The C library alternates between two words of the condition variable, so near addresses count.
                for low in seen:
                    if sum(0 <= key - low < COND for key in seen) >= SIGHTINGS:
                        self._gil = range(low - COND, low + 2 * COND + 2 * MUTEX)
        except (OSError, ThreadLimit):
            pass  # there is no thread or no descriptor to be had
        finally:
            done = True
            for file in files:
                os.close(file)
            for helper in helpers:
                helper.join()
