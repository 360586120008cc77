"""What `cmwq map` and `cmwq exec` show on stderr while they run: on a terminal with rich, if it is there, else as text.

Guarantees: stdout is never touched. rich is imported only if it will be used. A display that cannot be written causes
no error. On a terminal nothing is drawn over what commands printed there, nor while the run is in the background, where
it would be drawn into what the user types to others. The cursor is never hidden, so no end of the run leaves it hidden.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from typing import Any, Protocol

import cmwq
from cmwq.cli.output import say, write_all


class Tally:
    """The run in numbers. `again` counts items that succeeded in an earlier run and were printed again."""

    def __init__(self, total: int | None = None) -> None:
        self.total = total
        self.done = self.failed = self.again = 0
        self.begun = time.monotonic()

    def line(self, *, over: bool = False) -> str:
        """over: nothing is to come any more, even if not all items were done."""
        seconds = max(time.monotonic() - self.begun, 1e-6)
        of = "" if self.total is None else f" of {self.total:,}"
        failed = f", {self.failed:,} failed" if self.failed else ""
        again = f", {self.again:,} from the log" if self.again else ""
        rate = (self.done - self.again) / seconds
        return (
            f"{self.done:,}{of} items{failed}{again}, {rate:,.0f}/s, {seconds:,.1f} s{'' if over else self._left(rate)}"
        )

    def _left(self, rate: float) -> str:
        """How long the rest will take at this rate, if that can be told."""
        if self.total is None or self.done >= self.total or not rate:
            return ""
        return f", {duration((self.total - self.done) / rate)} left"


def duration(seconds: float) -> str:
    """As people say it: 7 s, 2 min 5 s, 3 h 12 min."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 99 else f"{minutes // 60:,} h {minutes % 60} min"


class Display(Protocol):
    @property
    def tick(self) -> float | None:
        """Seconds between updates; None: it wants none."""
        ...

    def update(self, tally: Tally) -> None: ...
    def say(self, line: str) -> None:
        """Write a line that stays."""
        ...

    def clear(self) -> None:
        """Take away what isn't to stay, because something else is written to the terminal."""
        ...

    def printed(self, fd: int, last: bytes) -> None:
        """Something else was written there, and ended with these bytes."""
        ...

    def close(self) -> None: ...


def is_shown(wanted: bool, quiet: bool) -> bool:
    terminal = sys.stderr is not None and sys.stderr.isatty()
    return not quiet and (terminal or wanted)


def display(wanted: bool, quiet: bool, total: int | None) -> Display:
    """The best display for this stderr."""
    if not is_shown(wanted, quiet):
        return Silent()
    if not sys.stderr.isatty() or os.environ.get("TERM", "dumb") == "dumb":  # no line can be drawn again
        return Lines()
    try:
        return Rich(total)
    except Exception:  # absent or broken: no reason not to run
        return Redrawn()


def pool_line() -> str:
    pools = cmwq.snapshot().pools
    return (
        f"{sum(p.workers for p in pools)} workers: {sum(p.running for p in pools)} running, "
        f"{sum(p.blocked for p in pools)} blocked; {sum(p.pending + p.inactive for p in pools)} waiting"
    )


class Silent:
    tick: float | None = None
    _within_line = False  # what was printed last to a terminal has no end of line yet

    def update(self, tally: Tally) -> None:
        pass

    def say(self, line: str) -> None:
        say(line)
        self._within_line = False

    def clear(self) -> None:
        pass

    def printed(self, fd: int, last: bytes) -> None:
        if last and self.tick is not None and os.isatty(fd) and sys.stderr.isatty():
            self._within_line = not last.endswith(b"\n")

    def close(self) -> None:
        """End the line that commands left open, because the summary comes next."""
        if self._within_line:
            say("")
            self._within_line = False

    def _may_draw(self) -> bool:
        return not self._within_line and _in_foreground()


class Lines(Silent):
    """A display for a file, a pipe, or a terminal that can't draw: a new line every second."""

    tick: float | None = 1.0

    def update(self, tally: Tally) -> None:
        if self._may_draw():
            say(f"{tally.line()} | {pool_line()}")


class Redrawn(Silent):
    """A display for a terminal: one line that is redrawn."""

    tick: float | None = 0.1
    _drawn = False

    def update(self, tally: Tally) -> None:
        if self._may_draw():
            self._draw(f"{tally.line()} | {pool_line()}"[: _columns() - 1])

    def say(self, line: str) -> None:
        self.clear()
        super().say(line)

    def clear(self) -> None:
        if self._drawn:
            self._draw("")

    def close(self) -> None:
        self.clear()
        super().close()

    def _draw(self, text: str) -> None:
        self._drawn = bool(text)
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

        class Shown(Console):
            def show_cursor(self, show: bool = True) -> bool:
                """Leave it as it is: a run that is told twice to end, or is killed, could not show it again."""
                return False

        bar = [BarColumn(bar_width=20)] if total else []
        text = TextColumn("{task.description}", markup=False)
        columns = [SpinnerColumn(), *bar, text]
        self._rich: Any = Progress(*columns, console=Shown(stderr=True), transient=True, auto_refresh=False)
        self._task = self._rich.add_task("", total=total)

    def update(self, tally: Tally) -> None:
        if not self._may_draw():
            return
        with contextlib.suppress(OSError, ValueError):
            self._rich.start()
            self._rich.update(
                self._task, total=tally.total, completed=tally.done, description=f"{tally.line()} | {pool_line()}"
            )
            self._rich.refresh()

    def say(self, line: str) -> None:
        text = line.encode("utf-8", "backslashreplace").decode()
        with contextlib.suppress(OSError, ValueError):
            self._rich.console.print(text, markup=False, highlight=False, soft_wrap=True)
        self._within_line = False

    def clear(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._rich.stop()  # it is transient

    def close(self) -> None:
        self.clear()
        super().close()


def _in_foreground() -> bool:
    """Whether this terminal, if stderr is one, has its keys for this job."""
    try:
        return os.tcgetpgrp(sys.stderr.fileno()) == os.getpgrp()
    except (OSError, ValueError, AttributeError):  # none, or not the one that starts and stops this job
        return True


def _columns() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except (OSError, ValueError):
        return 80
