"""How a process is started: `posix_spawn` without the GIL.

The kernel keeps the calling thread waiting until the new process has executed its program. `os.posix_spawn` holds the
GIL meanwhile, so that no other thread can start or reap a process: 300 commands that do nothing then take nearly twice
as long. A call through ctypes releases it. Without ctypes, or in a build without a GIL, `os.posix_spawn` serves.

Guarantees: both ways do the same and raise the same. The process leads a new process group; its stdout and stderr are
the given descriptors; it has the signal mask that this process had, and signals that only Python ignores have their
usual effect.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterable
from typing import Any, Protocol

# The interpreter ignores these; what it starts must not.
RESTORED = [signal.SIGPIPE, signal.SIGXFSZ]
# Of glibc and musl alike.
_SETPGROUP, _SETSIGDEF, _SETSIGMASK = 0x02, 0x04, 0x08
_ROOM = 1024  # bytes: more than any of the C library's structures needs


class Spawner(Protocol):
    """Starts processes. Thread-safe."""

    def spawn(self, path: str, argv: list[str], out: int, err: int) -> int:
        """The process id. Raises OSError, and ValueError for an argument with a NUL byte."""
        ...


def spawner() -> Spawner:
    """The best that works here. It gives processes the environment and the signal mask of this moment."""
    if getattr(sys, "_is_gil_enabled", lambda: True)():
        with contextlib.suppress(ImportError, OSError, AttributeError):
            return WithoutGil()
    return ByPython()


class ByPython:
    def __init__(self) -> None:
        self._env = dict(os.environb)  # os.environ would be converted for each process
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())

    def spawn(self, path: str, argv: list[str], out: int, err: int) -> int:
        return os.posix_spawn(
            path,
            argv,
            self._env,
            file_actions=[(os.POSIX_SPAWN_DUP2, out, 1), (os.POSIX_SPAWN_DUP2, err, 2)],
            setpgroup=0,
            setsigmask=self._mask,
            setsigdef=RESTORED,
        )


class WithoutGil:
    """Raises ImportError, OSError or AttributeError if it can't work here."""

    def __init__(self) -> None:
        import ctypes

        self._ctypes = ctypes
        self._libc: Any = ctypes.CDLL(None)
        self._env = self._strings([name + b"=" + value for name, value in os.environb.items()])
        self._attributes = ctypes.create_string_buffer(_ROOM)
        flags = ctypes.c_short(_SETPGROUP | _SETSIGDEF | _SETSIGMASK)
        mask = self._signals(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
        for status in (
            self._libc.posix_spawnattr_init(self._attributes),
            self._libc.posix_spawnattr_setflags(self._attributes, flags),
            self._libc.posix_spawnattr_setpgroup(self._attributes, 0),
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
