"""What each worker did when, as far as it was seen: segments of one worker, one work and one state.

Guarantees: at most `SEGMENTS` of them, none older than `KEPT` seconds, and `KEPT` seconds of how many workers each
queue had. Rows that nobody can see any more are forgotten. Where the clock was set back, what was seen at later times
is dropped, and a segment that began before ends there.

A picture says since when a worker executes its work, so the beginning of a work that was seen is exact. Its end is when
it was seen last, so it is at most one interval early; and a work that began and ended between two pictures was not
seen. Between `running` and `blocked` a segment changes when that was seen. Not thread-safe: the owner's lock guards it.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from typing import Any

KEPT = 600.0  # seconds
SEGMENTS = 50_000
QUEUES = 11
"""How many queues are told apart in one sum; the others are added up."""
SLACK = 0.25  # seconds by which the beginning of the same work may differ between two pictures
IDLE = frozenset({"idle", "waking"})


@dataclass(slots=True)
class Segment:
    row: int
    begin: float
    end: float
    state: str
    queue: str
    work: str


@dataclass(slots=True)
class _Row:
    number: int
    name: str
    seen: float
    segment: Segment | None = None
    """What the worker did in the newest picture; None: nothing."""
    item: int = 0
    began: float = 0.0


@dataclass(frozen=True, slots=True)
class Seen:
    """What one picture added for one worker."""

    row: int
    begin: float
    """Epoch seconds at which its segment begins; of an idle worker, the time of the picture."""
    fresh: bool
    """True: it is a new segment; False: the row's last one has become longer."""


class Timeline:
    """The segments of one process. Times are epoch seconds."""

    def __init__(self) -> None:
        self._rows: dict[str, _Row] = {}
        self._segments: deque[Segment] = deque()
        self._sums: deque[tuple[float, dict[str, tuple[int, int]]]] = deque()
        self._next = 0

    def add(self, time: float, workers: list[dict[str, Any]]) -> list[Seen]:
        """Add what the workers of a picture do; returns what that adds, in the same order."""
        if self._sums and time < self._sums[-1][0]:
            self._go_back(time)
        seen = [self._add(time, worker) for worker in workers]
        self._sums.append((time, sums(workers)))
        self._forget(time)
        return seen

    def _add(self, time: float, worker: dict[str, Any]) -> Seen:
        name, state = str(worker["name"]), str(worker["state"])
        row = self._rows.get(name)
        if row is None:
            row = self._rows[name] = _Row(self._next, name, time)
            self._next += 1
        row.seen = time
        if state in IDLE:
            row.segment = None
            return Seen(row.number, time, False)
        began = time - max(float(worker.get("since") or 0.0), 0.0)
        item, work, queue = int(worker.get("item") or 0), str(worker.get("work", "")), str(worker.get("queue", ""))
        before = row.segment
        same = before is not None and (row.item, before.work) == (item, work) and abs(row.began - began) <= SLACK
        if before is not None and same and before.state == state:
            before.end = max(before.end, time)
            return Seen(row.number, before.begin, False)
        begin = began if before is None else before.end if same else max(began, before.end)
        segment = Segment(row.number, begin, time, state, queue, work)
        row.segment, row.item, row.began = segment, item, began
        self._segments.append(segment)
        return Seen(row.number, begin, True)

    def _go_back(self, time: float) -> None:
        """The clock was set back to this time: all times after it are yet to come."""
        while self._sums and self._sums[-1][0] > time:
            self._sums.pop()
        self._segments = deque(segment for segment in self._segments if segment.begin < time)
        for segment in self._segments:
            segment.end = min(segment.end, time)
        for row in self._rows.values():
            row.seen, row.segment = min(row.seen, time), None

    def _forget(self, time: float) -> None:
        while self._sums and self._sums[0][0] < time - KEPT:
            self._sums.popleft()
        for _ in range(len(self._segments)):
            first = self._segments[0]
            if len(self._segments) <= SEGMENTS and first.end >= time - KEPT:
                break
            self._segments.popleft()
            if first.end >= time:  # it goes on: what ended before it goes first
                self._segments.append(first)
        gone = [name for name, row in self._rows.items() if row.seen < time - KEPT]
        for name in gone:
            del self._rows[name]

    def end_all(self) -> None:
        """Nothing goes on: what comes next is another process."""
        for row in self._rows.values():
            row.segment = None

    def read(self) -> dict[str, Any]:
        """All that is kept, ready for JSON, in columns. What `state`, `queue` and `work` hold are places in `words`."""
        words = Words()
        columns: dict[str, list[Any]] = {key: [] for key in ("row", "begin", "end", "state", "queue", "work")}
        for segment in self._segments:
            columns["row"].append(segment.row)
            columns["begin"].append(round(segment.begin, 3))
            columns["end"].append(round(segment.end, 3))
            columns["state"].append(words.place(segment.state))
            columns["queue"].append(words.place(segment.queue))
            columns["work"].append(words.place(segment.work))
        return {
            "rows": {row.number: row.name for row in self._rows.values()},
            "segments": columns,
            "sums": [[round(time, 3), by_queue] for time, by_queue in self._sums],
            "words": words.all,
        }


def sums(workers: list[dict[str, Any]]) -> dict[str, tuple[int, int]]:
    """Of each queue, how many workers run its works and how many are blocked in them: (running, blocked).

    At most `QUEUES` queues are told apart, the largest; the others are added up under the empty name.
    """
    running = Counter(str(w.get("queue", "")) for w in workers if w["state"] == "running" and w.get("work"))
    blocked = Counter(str(w.get("queue", "")) for w in workers if w["state"] == "blocked" and w.get("work"))
    total = running + blocked
    largest = [name for name, _ in total.most_common(QUEUES)]
    found = {name: (running[name], blocked[name]) for name in largest}
    others = [name for name in total if name not in found]
    if others:
        ran, slept = found.get("", (0, 0))
        found[""] = (ran + sum(running[name] for name in others), slept + sum(blocked[name] for name in others))
    return found


class Words:
    """Strings that occur often, each of which is sent once."""

    def __init__(self) -> None:
        self.all: list[str] = []
        self._places: dict[str, int] = {}

    def place(self, word: str) -> int:
        """The place of this word in `all`."""
        place = self._places.get(word)
        if place is None:
            place = self._places[word] = len(self.all)
            self.all.append(word)
        return place
