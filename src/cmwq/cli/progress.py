"""What `cmwq map` shows on stderr while it runs: with rich on a terminal if it is installed, else as plain text.

Guarantees: stdout is never touched. rich is imported only if it will be used. A display that cannot be written causes
no error.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from dataclasses import dataclass, field
from typing import Any, Protocol

import cmwq
from cmwq.cli.output import say, write_all


@dataclass
class Tally:
    """The run in numbers. `again` counts items that succeeded in an earlier run and were printed again."""

    total: int | None = None
    done: int = 0
    failed: int = 0
    again: int = 0
    begun: float = field(default_factory=time.monotonic)

    def line(self) -> str:
        seconds = max(time.monotonic() - self.begun, 1e-6)
        of = "" if self.total is None else f" of {self.total:,}"
        failed = f", {self.failed:,} failed" if self.failed else ""
        again = f", {self.again:,} from the log" if self.again else ""
        return f"{self.done:,}{of} items{failed}{again}, {(self.done - self.again) / seconds:,.0f}/s, {seconds:,.1f} s"


class Display(Protocol):
    @property
    def tick(self) -> float | None:
        """Seconds between updates; None: it wants none."""
        ...

    def update(self, tally: Tally) -> None: ...
    def say(self, line: str) -> None:
        """Write a line that stays."""
        ...

    def close(self) -> None: ...


def display(wanted: bool, quiet: bool, total: int | None) -> Display:
    """The best display for this stderr."""
    terminal = sys.stderr is not None and sys.stderr.isatty()
    if quiet or not (terminal or wanted):
        return Silent()
    if not terminal:
        return Lines()
    if os.environ.get("TERM", "dumb") != "dumb":
        try:
            return Rich(total)
        except Exception:  # absent or broken: no reason not to run
            pass
    return Redrawn()


def pool_line() -> str:
    pools = cmwq.snapshot().pools
    return (
        f"{sum(p.workers for p in pools)} workers: {sum(p.running for p in pools)} running, "
        f"{sum(p.blocked for p in pools)} blocked; {sum(p.pending + p.inactive for p in pools)} waiting"
    )


class Silent:
    tick: float | None = None

    def update(self, tally: Tally) -> None:
        pass

    def say(self, line: str) -> None:
        say(line)

    def close(self) -> None:
        pass


class Lines(Silent):
    """A display for a file or a pipe: a new line every second."""

    tick: float | None = 1.0

    def update(self, tally: Tally) -> None:
        say(f"{tally.line()} | {pool_line()}")


class Redrawn(Silent):
    """A display for a terminal: one line that is redrawn."""

    tick: float | None = 0.1

    def update(self, tally: Tally) -> None:
        self._draw(f"{tally.line()} | {pool_line()}"[: _columns() - 1])

    def say(self, line: str) -> None:
        self.close()
        say(line)

    def close(self) -> None:
        self._draw("")

    def _draw(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            write_all(sys.stderr.fileno(), b"\r\x1b[K" + text.encode())


class Rich(Silent):
    """A display for a terminal, with rich: one line with a bar. The ticks of the run draw, not rich's refresh thread.

    Nothing is shown before the first tick. It is made before the target is imported, so that rich is not looked for in
    the target's folder.
    """

    tick: float | None = 0.1

    def __init__(self, total: int | None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

        bar = [BarColumn(bar_width=20)] if total else []
        text = TextColumn("{task.description}", markup=False)
        columns = [SpinnerColumn(), *bar, text]
        self._rich: Any = Progress(*columns, console=Console(stderr=True), transient=True, auto_refresh=False)
        self._task = self._rich.add_task("", total=total)

    def update(self, tally: Tally) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._rich.start()
            self._rich.update(self._task, completed=tally.done, description=f"{tally.line()} | {pool_line()}")
            self._rich.refresh()

    def say(self, line: str) -> None:
        text = line.encode("utf-8", "backslashreplace").decode()
        with contextlib.suppress(OSError, ValueError):
            self._rich.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._rich.stop()


def _columns() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except (OSError, ValueError):
        return 80
