"""What the parties of a run (`run`) tell each other: events for the writer, news for the main thread.

They are plain classes, because a command starts faster without dataclasses.
"""

from __future__ import annotations

from cmwq.cli.output import FAILED


class Outcome:
    """The outcome of an item. error: why it failed, on one line. again: it succeeded in an earlier run, and the log has
    it. span: when it began and ended, in seconds on the monotonic clock.
    """

    __slots__ = ("again", "error", "index", "item", "span")

    def __init__(
        self,
        index: int,
        item: str | None,
        error: str | None = None,
        again: bool = False,
        span: tuple[float, float] = (0, 0),
    ) -> None:
        self.index, self.item, self.error, self.again, self.span = index, item, error, again, span

    @property
    def size(self) -> int:
        """Bytes that it holds in memory until it is printed, its item aside."""
        return len(self.error or "")


class InputEnded:
    def __init__(self, count: int, error: Exception | None) -> None:
        self.count, self.error = count, error


class Failed:
    """The run failed, not just an item."""

    def __init__(self, message: str | None, status: int = FAILED) -> None:
        self.message, self.status = message, status


class LookAgain:
    """Something changed without an outcome: a worker ended, or the run was stopped."""


class Signalled:
    def __init__(self, number: int) -> None:
        self.number = number


class Finished:
    """The writer will send no more news. `trouble`: what is wrong with the input."""

    def __init__(self, trouble: Exception | None = None) -> None:
        self.trouble = trouble


class Said:
    """The last words are written."""


class Stopped(Exception):
    """The run ends now, with this exit status."""

    def __init__(self, status: int, message: str | None = None) -> None:
        super().__init__(status, message)
        self.status, self.message = status, message


Event = Outcome | InputEnded | Failed | LookAgain
News = Signalled | Stopped | Finished | Said
