"""How many items ran when, as a small picture of characters.

Guarantees: memory and the cost of an item don't depend on how many there are, or on how long the run takes: time is
divided into at most `BINS` equal parts, which become twice as long when the run outgrows them.
"""

from __future__ import annotations

import sys
import time

from cmwq.cli.progress import duration

BINS = 64
HEIGHT = 4
_FIRST = 0.01  # seconds of a part at first
_BLOCKS = " ▁▂▃▄▅▆▇█"
_ASCII = " .:#"


class Picture:
    """The picture of one run, which begins now. One thread at a time."""

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self._width = _FIRST
        self._bins = [0.0] * BINS  # seconds of running, in each part
        self._end = 0.0

    def add(self, begun: float, ended: float) -> None:
        """An item ran between these moments of the monotonic clock, in seconds."""
        begun, ended = max(0.0, begun - self._begun), max(0.0, ended - self._begun)
        while ended >= self._width * BINS:
            pairs = zip(self._bins[::2], self._bins[1::2], strict=True)
            self._bins = [one + other for one, other in pairs] + [0.0] * (BINS // 2)
            self._width *= 2
        self._end = max(self._end, ended)
        for number in range(int(begun / self._width), int(ended / self._width) + 1):
            left = number * self._width
            self._bins[number] += max(0.0, min(ended, left + self._width) - max(begun, left))

    def lines(self) -> list[str]:
        """The picture. Nothing if nothing ran."""
        if not self._end:
            return []
        number = int(self._end / self._width) + 1
        heights = [
            running / min(self._width, max(self._end - index * self._width, 1e-9))
            for index, running in enumerate(self._bins[:number])
        ]
        top = max(*heights, 1.0)
        average = sum(self._bins) / self._end
        blocks = _BLOCKS if _can(_BLOCKS) else _ASCII
        label = f"{top:.0f}"
        rows = []
        for row in reversed(range(HEIGHT)):
            bars = "".join(_block(height / top * HEIGHT - row, blocks) for height in heights)
            rows.append(f"{label if row == HEIGHT - 1 else '0' if row == 0 else '':>6} |{bars}")
        end = duration(self._end) if self._end >= 10 else f"{self._end:.1f} s"
        rows.append(f"{'':>6} 0{end:>{max(number - 1, len(end) + 1)}}")
        return [f"ran at the same time: {average:.1f} on average, about {top:.0f} at most", *rows]


def _block(share: float, blocks: str) -> str:
    return blocks[round(min(1.0, max(0.0, share)) * (len(blocks) - 1))]


def _can(text: str) -> bool:
    """Whether stderr's encoding has these characters."""
    try:
        text.encode(getattr(sys.stderr, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
