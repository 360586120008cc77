"""How a process is started: `posix_spawn` without the GIL.

The kernel keeps the calling thread waiting until the new process has executed its program. `os.posix_spawn` holds the
GIL meanwhile, so that no other thread can start or reap a process: 300 commands that do nothing then take nearly twice
as long. A call through ctypes releases it. Without ctypes, in a build without a GIL, or on another system than Linux,
`subprocess` serves.

Guarantees: both ways do the same and raise the same. The process leads a new session, and so a new process group; its
stdout and stderr are the given descriptors; it has the signal mask that this process had, and signals that only Python
ignores have their usual effect. No other process gets the pipes between it and this process.

A session of its own has no terminal. So what would ask a question there (`ssh`, `sudo`, `read < /dev/tty`) gets an
error at once. In a mere process group it would be a job in the background, which is stopped when it reads the terminal,
or asks again and again if it may not be stopped, and which changes the user's terminal.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable
from typing import Any, Protocol

# The interpreter ignores these; what it starts must not.
RESTORED = [signal.SIGPIPE, signal.SIGXFSZ]
# Of glibc and musl alike. An older glibc (before 2.26) refuses the last.
_SETSIGDEF, _SETSIGMASK, _SETSID = 0x04, 0x08, 0x80
_ROOM = 1024  # bytes: more than any of the C library's structures needs
RESERVED = 8
"""So many descriptors are left to all but commands: the file for output that waits, looks at `/proc`, imports."""


class Spawner(Protocol):
    """Starts processes. Thread-safe."""

    def spawn(self, path: str, argv: list[str], out: int, err: int) -> int:
        """The process id. Raises OSError, and ValueError for an argument with a NUL byte."""
        ...


def best() -> Spawner:
    """The best that works here. It gives processes the environment and the signal mask of this moment."""
    if sys.platform == "linux" and getattr(sys, "_is_gil_enabled", lambda: True)():
        with contextlib.suppress(ImportError, OSError, AttributeError):
            return WithoutGil()
    return ByPython()


_one_by_one: contextlib.AbstractContextManager[object] = (
    contextlib.nullcontext() if hasattr(os, "pipe2") else threading.Lock()
)
"""Without pipe2 a new pipe can be inherited for a moment. A command that was started then would keep another's open."""


def pipe() -> tuple[int, int]:
    """A pipe that no process inherits, once `_one_by_one` is released."""
    return os.pipe2(os.O_CLOEXEC) if hasattr(os, "pipe2") else os.pipe()


def start(spawner: Spawner, path: str, argv: list[str]) -> tuple[int, int, int]:
    """A new process, and where its stdout and stderr can be read. Raises OSError, ValueError."""
    ends: list[int] = []  # those that are to be closed
    try:
        with _one_by_one:
            out, out_end = pipe()
            ends += out, out_end
            err, err_end = pipe()
            ends += err, err_end
            # The lowest numbers are given first. So who got one near the limit takes what the others need.
            if max(ends) >= _most_descriptors() - RESERVED:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            pid = spawner.spawn(path, argv, out_end, err_end)
        ends.remove(out)
        ends.remove(err)
        return pid, out, err
    finally:
        for fd in ends:
            os.close(fd)


def _most_descriptors() -> float:
    try:
        import resource

        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    except (ImportError, OSError, ValueError):
        return float("inf")
    return float("inf") if soft == resource.RLIM_INFINITY else soft


class ByPython:
    def __init__(self) -> None:
        self._env = dict(os.environb)  # os.environ would be converted for each process
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())

    def spawn(self, path: str, argv: list[str], out: int, err: int) -> int:
        mask = signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)  # what this thread has is inherited
        try:
            process = subprocess.Popen(
                argv,
                executable=path,
                stdout=out,
                stderr=err,
                env=self._env,
                close_fds=False,
                start_new_session=True,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        process.returncode = 0  # it is never asked: who reaps the process is `Children`
        return process.pid


class WithoutGil:
    """Raises ImportError, OSError or AttributeError if it can't work here."""

    def __init__(self) -> None:
        import ctypes

        self._ctypes = ctypes
        self._libc: Any = ctypes.CDLL(None)
        self._env = self._strings([name + b"=" + value for name, value in os.environb.items()])
        self._attributes = ctypes.create_string_buffer(_ROOM)
        flags = ctypes.c_short(_SETSID | _SETSIGDEF | _SETSIGMASK)
        mask = self._signals(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
        for status in (
            self._libc.posix_spawnattr_init(self._attributes),
            self._libc.posix_spawnattr_setflags(self._attributes, flags),
            self._libc.posix_spawnattr_setsigdefault(self._attributes, self._signals(RESTORED)),
            self._libc.posix_spawnattr_setsigmask(self._attributes, mask),
        ):
            if status:
                raise OSError(status, os.strerror(status))

    def spawn(self, path: str, argv: list[str], out: int, err: int) -> int:
        words = [os.fsencode(word) for word in argv]
        program = os.fsencode(path)
        if any(b"\0" in word for word in (program, *words)):
            raise ValueError("embedded null byte")
        pid = self._ctypes.c_int()
        actions = self._ctypes.create_string_buffer(_ROOM)
        status = self._libc.posix_spawn_file_actions_init(actions)
        if not status:
            status = (
                self._libc.posix_spawn_file_actions_adddup2(actions, out, 1)
                or self._libc.posix_spawn_file_actions_adddup2(actions, err, 2)
                or self._libc.posix_spawn(
                    self._ctypes.byref(pid), program, actions, self._attributes, self._strings(words), self._env
                )
            )
            self._libc.posix_spawn_file_actions_destroy(actions)
        if status:
            raise OSError(status, os.strerror(status), path)
        return pid.value

    def _strings(self, strings: list[bytes]) -> Any:
        """An array that ends with NULL."""
        return (self._ctypes.c_char_p * (len(strings) + 1))(*strings, None)

    def _signals(self, numbers: Iterable[int]) -> Any:
        signals = self._ctypes.create_string_buffer(_ROOM)
        self._libc.sigemptyset(signals)
        for number in numbers:
            self._libc.sigaddset(signals, int(number))
        return signals
