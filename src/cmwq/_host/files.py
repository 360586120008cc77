"""Small files of the system (`/proc`, `/sys`, cgroups), read and written by system calls alone.

Guarantee: no thread waits here for another one, nor for itself. A file object would: in free-threaded CPython 3.13,
closing one takes the object's own lock twice, and for the second time the thread first yields its CPU 40 times. Linux
charges a thread for that, and lets others run for as long (`_sensor/README.md`, "How a thread parks"). Workers and the
timer thread read such files while works wait.

Who reads often also names the files by plain strings, and takes the contents apart by the methods of bytes: `pathlib`
and `re` look things up in sets and dicts that all threads share. Without a GIL each of those has a lock, and if several
threads want it as the process forks, it can stay locked in the child for ever.
"""

from __future__ import annotations

import os
import sys

_CHUNK = 1 << 16
_CLOEXEC = getattr(os, "O_CLOEXEC", 0)  # not on Windows, where these files are not, either


def read(path: str | os.PathLike[str], most: int = sys.maxsize) -> bytes:
    """All that is in the file, or about its first `most` bytes. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | _CLOEXEC)
    try:
        whole = b""
        while len(whole) < most and (more := os.read(fd, min(most, _CHUNK))):  # such a file may come in pieces
            whole += more
        return whole
    finally:
        os.close(fd)


def number(path: str | os.PathLike[str]) -> int | None:
    """The number in a file; None, if there is none ("max"), or it can't be read."""
    try:
        return int(read(path))
    except (OSError, ValueError):
        return None


def write(path: str | os.PathLike[str], data: bytes) -> None:
    """Write to a file that is there, in one piece. Raises OSError."""
    fd = os.open(path, os.O_WRONLY | _CLOEXEC)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)
