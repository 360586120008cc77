"""Files: a file that somebody asked for by its name, written so that it is there as a whole or not at all.

Guarantees: it is written beside its place and renamed. If that fails, nothing is left of it, and an older file of that
name stays. A symbolic link stays one, and what it leads to is replaced. What is there and is no file (a pipe, a device
such as /dev/null or /dev/stdout) is written to, and never replaced; for a pipe that nobody reads nobody waits.
"""

from __future__ import annotations

import io
import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO


def write_whole(path: Path, write: Callable[[IO[str]], object]) -> None:
    """Have the file written. It is compressed if its name ends in `.gz`. Raises OSError, and what `write` raises."""
    compressed = path.suffix == ".gz"
    if _is_no_file(path):
        with _opened(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK), compressed) as out:
            write(out)
        return
    place = os.path.realpath(path)
    beside = os.path.join(os.path.dirname(place), f".cmwq-{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        with _opened(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666), compressed) as out:
            write(out)
        os.replace(beside, place)
    except BaseException:
        with suppress(OSError):
            os.unlink(beside)
        raise


def _is_no_file(path: Path) -> bool:
    """Whether something is there that is to be written to as it is: by its kind, or as a descriptor of the process."""
    try:
        kind = os.stat(path).st_mode
    except FileNotFoundError:
        return False
    folder = os.path.realpath(path.parent)
    return not stat.S_ISREG(kind) or folder == "/dev" or folder.startswith("/proc/")


@contextmanager
def _opened(fd: int, compressed: bool) -> Iterator[IO[str]]:
    os.set_blocking(fd, True)
    with open(fd, "wb") as raw:
        if compressed:
            import gzip

            with gzip.open(raw, "wt", compresslevel=5, encoding="ascii") as out:
                yield out
        else:
            with io.TextIOWrapper(raw, encoding="ascii") as out:
                yield out
