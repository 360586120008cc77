"""What happened in the demo, at a glance: for the terminal, and as an SVG.

Its one job: a row for each contender, the fastest first, on a common axis of time. How long a row is says how long it
took; how high it is, how many items were under way at each moment. Assumes nothing; reads and writes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

Span = tuple[float, float]
BLOCKS = " ▁▂▃▄▅▆▇█"
OURS = "cmwq"


class Row(NamedTuple):
    """One contender's run: what is written beside it, and from when to when each item was under way (seconds)."""

    name: str
    seconds: float
    threads: int
    switches: int
    spans: Sequence[Span]


def under_way(spans: Sequence[Span], seconds: float, parts: int) -> list[float]:
    """How many items were under way on average in each of so many equal parts of the time."""
    width = seconds / parts
    found = [0.0] * parts
    for begin, end in spans:
        first = max(0, min(parts - 1, int(begin / width)))
        last = max(0, min(parts - 1, int(end / width)))
        for part in range(first, last + 1):
            found[part] += max(0.0, min(end, (part + 1) * width) - max(begin, part * width)) / width
    return found


def height(items: float, most: float) -> float:
    """From 0 to 1, by the square root: 2 and 128 are both to be seen."""
    return math.sqrt(items / most) if most else 0.0


def most_of(rows: Sequence[Row]) -> float:
    return max((max(under_way(row.spans, row.seconds, 60)) for row in rows if row.spans), default=0.0)


def told(row: Row) -> str:
    return f"{row.seconds:.2f} s, {row.threads} threads, {row.switches:,} switches"


def terminal(rows: Sequence[Row], width: int = 100) -> str:
    """The picture in characters, at most `width` wide if that leaves room for it."""
    rows = sorted(rows, key=lambda row: row.seconds)
    most, longest = most_of(rows), rows[-1].seconds
    names = max(len(row.name) for row in rows)
    space = max(12, width - names - max(len(told(row)) for row in rows) - 4)
    lines = []
    for row in rows:
        parts = max(1, round(space * row.seconds / longest))
        levels = (height(items, most) * 8 for items in under_way(row.spans, row.seconds, parts))
        course = "".join(BLOCKS[max(1, min(8, math.ceil(level)))] for level in levels)
        lines.append(f"{row.name:{names}}  {course:{space}}  {told(row)}".rstrip())
    return "\n".join(lines)


STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#1f2328}.s{font-size:11.5px;fill:#59636e}.o{fill:#2a6f97}.t{fill:#9aa7b1}"
    ".a{stroke:#d1d9e0}.p{fill:#ffffff}"
    "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.s{fill:#9198a1}.o{fill:#61a5c2}.t{fill:#59636e}"
    ".a{stroke:#3d444d}.p{fill:#0d1117}}"
)
LEFT, RIGHT, TOP, LANE, GAP, WIDTH = 190, 24, 34, 46, 22, 860


def svg(rows: Sequence[Row], title: str) -> str:
    """The same as an SVG of its own, which follows the light or dark of whoever shows it."""
    rows = sorted(rows, key=lambda row: row.seconds)
    most, longest = most_of(rows), rows[-1].seconds
    scale = (WIDTH - LEFT - RIGHT) / longest
    bottom = TOP + len(rows) * (LANE + GAP)
    parts = [f'<rect class="p" width="{WIDTH}" height="{bottom + 40}"/><text x="12" y="20">{escape(title)}</text>']
    for number, row in enumerate(rows):
        base = TOP + number * (LANE + GAP) + LANE
        count = max(2, round(row.seconds / longest * 200))
        step = row.seconds * scale / count
        points = [f"{LEFT:.1f},{base}"]
        for part, items in enumerate(under_way(row.spans, row.seconds, count)):
            points.append(f"{LEFT + (part + 0.5) * step:.1f},{base - max(1.5, height(items, most) * LANE):.1f}")
        points.append(f"{LEFT + row.seconds * scale:.1f},{base}")
        kind = "o" if row.name.startswith(OURS) else "t"
        parts.append(f'<polygon class="{kind}" points="{" ".join(points)}"/>')
        parts.append(f'<text x="12" y="{base - 22}">{escape(row.name)}</text>')
        parts.append(f'<text class="s" x="12" y="{base - 6}">{row.seconds:.2f} s, {row.threads} threads</text>')
    second, tick = _step(longest), 0.0
    while tick <= longest:
        x = LEFT + tick * scale
        parts.append(f'<line class="a" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 4}" y2="{bottom - GAP + 4}"/>')
        parts.append(f'<text class="s" x="{x:.1f}" y="{bottom}" text-anchor="middle">{tick:g} s</text>')
        tick += second
    note = f"length: the time that all items took; height: items under way at a time (square root, up to {most:.0f})"
    parts.append(f'<text class="s" x="12" y="{bottom + 24}">{note}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom + 40}" role="img">'
        f"<title>{escape(title)}</title><style>{STYLE}</style>{''.join(parts)}</svg>\n"
    )


def _step(longest: float) -> float:
    """A round number of seconds, so that there are about five marks."""
    rough = longest / 5
    unit = 10 ** math.floor(math.log10(rough))
    return next(unit * each for each in (1, 2, 5, 10) if unit * each >= rough)
