"""The files of a run, each for one thing: what it reads, what it prints to, its logs, its trace.

Guarantees: a regular file that the run writes is nothing else to it, whatever names it has. That is refused before the
file is opened for what came second. Pipes, terminals and devices may be several things at the same time, and standard
output and standard error may be one file.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable

from cmwq.cli.output import Refusal


class Files:
    """The files of one run that are known so far. out: the descriptor of standard output."""

    def __init__(self, out: int) -> None:
        self._read: list[tuple[str, int | str]] = []
        self._written: list[tuple[str, int | str]] = [("standard output", out), ("standard error", 2)]

    def read(self, what: str, fds: Iterable[int]) -> None:
        """These are open to be read. Raises Refusal."""
        for fd in fds:
            _refuse(what, fd, self._written)
            self._read.append((what, fd))

    def write(self, what: str, path: str | None) -> None:
        """This is about to be opened for writing, if there is a path. Raises Refusal."""
        if path is not None:
            what = f"{what} {path!r}"
            _refuse(what, path, [*self._read, *self._written])
            self._written.append((what, path))


def _refuse(what: str, place: int | str, others: Iterable[tuple[str, int | str]]) -> None:
    # The others are looked at now and not when they came: a log may have been created since.
    own = _regular(place)
    if own is not None:
        for other, where in others:
            status = _regular(where)
            if status is not None and os.path.samestat(own, status):
                raise Refusal(f"{what} is {other} as well")


def _regular(place: int | str) -> os.stat_result | None:
    try:
        status = os.stat(place)
    except (OSError, ValueError):  # not there yet, or closed; a NUL byte, which whoever opens it will refuse
        return None
    return status if stat.S_ISREG(status.st_mode) else None
