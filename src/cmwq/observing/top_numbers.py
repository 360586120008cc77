"""What `cmwq top` shows, as numbers and words: rates between two pictures, and the rows and columns of each view.

Guarantees: nothing of the terminal is here. A number that is not known is blank, and never zero; a counter that fell,
because a queue is gone and another has its name, has no rate. Rows are made for all that a picture has, but words only
for the rows that are asked for. No character of a foreign name can move the cursor.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from cmwq.observing import findings

Picture = dict[str, Any]
Row = dict[str, Any]

KEPT = 600
"""So many pictures are remembered for the plots."""
SPARK = 12
"""So many of them are in the small plot of a pool's row."""
BARS = "▁▂▃▄▅▆▇█"


class Sample(NamedTuple):
    """The numbers of the plots at one moment, over all pools or of one."""

    running: int
    blocked: int
    idle: int
    pending: int
    inactive: int


class Column(NamedTuple):
    """A column: what it is called, how it is written, and what it is sorted by."""

    key: str
    title: str
    width: int
    """In characters. 0: it shares what is left over with others of this kind."""
    words: Callable[[Row], str]
    about: str
    left: bool = False
    from_width: int = 0
    """It is shown if the table has at least so many characters."""
    style: Callable[[Row], str] | None = None


@dataclass(frozen=True)
class View:
    """A table: its columns, what makes its rows, and by which column they are sorted at first."""

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: Callable[[History], list[Row]]
    sorted_by: str
    empty: str

    def column(self, key: str) -> Column:
        return next(column for column in self.columns if column.key == key)


class History:
    """The pictures so far: the last one, the one before it, and the numbers of the plots."""

    def __init__(self) -> None:
        self.picture: Picture = {}
        self.before: Picture = {}
        self.seconds = 0.0
        """Between the two; 0 if there is but one."""
        self.total: deque[Sample] = deque(maxlen=KEPT)
        self.pools: dict[tuple[str, int], deque[Sample]] = {}

    def add(self, picture: Picture) -> None:
        """Take a picture in. One of the same moment as the last replaces it."""
        clock = "uptime" if "uptime" in picture else "time"
        if self.picture and self.picture.get(clock) == picture.get(clock):
            self.picture = picture
            return
        self.before, self.picture = self.picture, picture
        self.seconds = max(0.0, picture.get(clock, 0.0) - self.before.get(clock, 0.0)) if self.before else 0.0
        found = {key: _sample(pool) for key, pool in numbered(picture["pools"])}
        for key, sample in found.items():
            self.pools.setdefault(key, deque(maxlen=KEPT)).append(sample)
        for key in self.pools.keys() - found.keys():
            del self.pools[key]
        self.total.append(Sample(*map(sum, zip(*found.values(), strict=True))) if found else Sample(0, 0, 0, 0, 0))

    def rates(self, what: str, *keys: str) -> dict[tuple[str, int], dict[str, float]]:
        """By how much these counters of queues, pools or functions grew, where that is known."""
        before = dict(numbered(self.before.get(what, ())))
        return {
            key: {each: grown for each in keys if (grown := _grown(row, before.get(key), each)) is not None}
            for key, row in numbered(self.picture.get(what, ()))
        }


def numbered(rows: Any) -> list[tuple[tuple[str, int], Row]]:
    """Rows with a key each: their name, and which of that name it is. Functions are told apart by their queue, too."""
    seen: dict[str, int] = {}
    found = []
    for row in rows:
        name = f"{row['name']}\0{row['queue']}" if "ended" in row else row["name"]
        seen[name] = number = seen.get(name, -1) + 1
        found.append(((name, number), row))
    return found


def _sample(pool: Row) -> Sample:
    return Sample(pool["running"], pool["blocked"], pool["idle"], pool["pending"], pool["inactive"])


def _grown(now: Row, before: Row | None, key: str) -> float | None:
    if before is None or now.get(key) is None or before.get(key) is None:
        return None
    values = [each[key]["sum"] if isinstance(each[key], dict) else each[key] for each in (now, before)]
    return float(values[0] - values[1]) if values[0] >= values[1] else None


def _measured(row: Row | None, key: str) -> float | None:
    times = (row or {}).get(key)
    return None if not times else sum(times["counts"])


# ------------------------------------------------------------------------------------- words


def plain(text: object) -> str:
    """The text without anything that a terminal would obey."""
    return "".join(char if char.isprintable() else "·" for char in str(text))


def count(number: float | None) -> str:
    """A number in at most 6 characters: 12,345 or 1.23M."""
    if number is None:
        return ""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e5, "k")):
        if number >= size:
            scaled = number / (1e3 if unit == "k" else size)
            return f"{scaled:.0f}{unit}" if scaled >= 100 else f"{scaled:.2f}{unit}"
    return f"{number:,.0f}"


def waits(worker: Row) -> str:
    """What a worker waits for, where the word "waits" stands before it."""
    return plain(worker["waits_for"]).removeprefix("waits ")


def rate(number: float | None) -> str:
    """A number per second in at most 6 characters: 0.4, 12.3, 1,234."""
    return "" if number is None else f"{number:.1f}" if 0 < number < 100 else count(number)


def duration(seconds: float | None) -> str:
    """A time in at most 6 characters: 3.2ms, 1.45s, 12m08s, 3h20m, 5d02h."""
    if seconds is None:
        return ""
    if seconds < 0.9995:
        return f"{seconds * 1000:.1f}ms" if seconds < 0.1 else f"{seconds * 1000:.0f}ms"
    if seconds < 60:
        return f"{seconds:.2f}s" if seconds < 10 else f"{seconds:.1f}s"
    whole = int(seconds)
    for size, unit, less, smaller in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= size:
            return f"{whole // size}{unit}{whole % size // less:02}{smaller}"
    return ""


def percent(share: float | None) -> str:
    return "" if share is None else f"{share * 100:.0f}%"


def size(number: float | None) -> str:
    return "" if number is None else f"{number / 2**30:.1f}G" if number >= 2**30 else f"{number / 2**20:.0f}M"


def spark(values: list[int], most: int) -> str:
    """A small plot, a character for each value. A value above 0 is never an empty place."""
    return "".join(" " if not value else BARS[min(7, max(0, value * 8 // max(most, 1) - 1))] for value in values)


def cpus(numbers: list[int]) -> str:
    """CPU numbers with ranges: 0-3,8."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and parts[-1][1] == number - 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)


# ------------------------------------------------------------------------------------- rows


def _of_queues(history: History) -> list[Row]:
    grown = history.rates("queues", "completed", "started", "cpu_seconds", "waiting", "running")
    before = dict(numbered(history.before.get("queues", ())))
    return [
        {**queue, "key": key, **_rates(grown[key], history.seconds), **_means(grown[key], queue, before.get(key))}
        for key, queue in numbered(history.picture.get("queues", ()))
    ]


def _rates(grown: dict[str, float], seconds: float) -> Row:
    if not seconds:
        return {"rate": None, "share": None}
    done, used = grown.get("completed", grown.get("ended")), grown.get("cpu_seconds")
    return {"rate": None if done is None else done / seconds, "share": None if used is None else used / seconds}


def _means(grown: dict[str, float], queue: Row, before: Row | None) -> Row:
    """The mean times of the works that were measured since the last picture, or of all if there were none."""
    means: Row = {}
    for key in ("waiting", "running"):
        now, then = _measured(queue, key), _measured(before, key)
        lately = None if now is None or then is None else now - then
        if lately and lately > 0 and key in grown:
            means[f"{key}_mean"] = grown[key] / lately
        else:
            means[f"{key}_mean"] = queue[key]["sum"] / now if now else None
    return means


def _of_functions(history: History) -> list[Row]:
    grown = history.rates("functions", "ended", "seconds", "cpu_seconds")
    rows = []
    for key, function in numbered(history.picture.get("functions", ())):
        ended, seconds, used = function["ended"], function["seconds"], function["cpu_seconds"]
        waits = None if not seconds or used is None else min(max(1 - used / seconds, 0), 1)
        rows.append(
            {
                **function,
                "key": key,
                **_rates(grown[key], history.seconds),
                "mean": seconds / ended if ended else None,
                "waits": waits,
            }
        )
    return rows


def _of_workers(history: History) -> list[Row]:
    return [
        {
            **worker,
            "key": (worker["pool"], worker["tid"]),
            "since order": (worker["state"] != "idle", worker["since"]),  # who is idle is of less interest
        }
        for worker in history.picture.get("workers", ())
    ]


def _of_pools(history: History) -> list[Row]:
    grown = history.rates("pools", "completed", "cpu_seconds")
    rows = []
    for key, pool in numbered(history.picture.get("pools", ())):
        samples = list(history.pools[key])[-SPARK:]
        most = max(pool["target"], *(sample.running + sample.blocked for sample in samples))
        rows.append(
            {
                **pool,
                "key": key,
                **_rates(grown[key], history.seconds),
                "spark": spark([sample.running + sample.blocked for sample in samples], most).rjust(SPARK),
            }
        )
    return rows


def _of_stalls(history: History) -> list[Row]:
    now = history.picture.get("time", 0.0)
    standing = [(stall["time"], stall["pool"], stall["queue"], False) for stall in findings.standing(history.picture)]
    rows: list[Row] = []
    for stall in reversed(history.picture.get("stalls", ())):
        key = stall["time"], stall["pool"], stall["queue"], stall["over"]
        state = "over" if stall["over"] else "stalled" if key in standing else "was"
        rows.append({**stall, "key": key, "age": now - stall["time"], "state": state})
    return rows


def _style_of_state(row: Row) -> str:
    state: str = row["state"]
    return state if state in ("running", "blocked", "idle") else "waking"


def _text(key: str, title: str, width: int, about: str, **more: Any) -> Column:
    return Column(key, title, width, lambda row: plain(row[key]), about, left=True, **more)


def _number(key: str, title: str, width: int, about: str, words: Callable[[Any], str] = count, **more: Any) -> Column:
    return Column(key, title, width, lambda row: words(row.get(key)), about, **more)


def _infl(row: Row) -> str:
    return count(row["active"]) if row.get("active") is not None else ""


QUEUES = View(
    "queues",
    "Queues",
    (
        _text("name", "queue", 0, "the queue"),
        _number("started", "total", 6, "works that began so far"),
        _number("rate", "/s", 6, "works that ended in the last second", rate),
        Column("active", "infl", 4, _infl, "in flight: works that have a place, and run or wait for a worker"),
        _number("inactive", "wait", 4, "works that wait for a place under max_active, or in the order",
                style=lambda row: "pending" if row["inactive"] else ""),
        _number("waiting_mean", "~wait", 6, "how long works waited to begin: the mean", duration, from_width=96),
        _number("running_mean", "~runs", 6, "how long works took: the mean", duration, from_width=104),
        _number("failed", "failed", 6, "works that raised so far", from_width=112,
                style=lambda row: "bad" if row.get("failed") else ""),
        _number("share", "CPU%", 5, "CPU time used in the last second: 100% is one CPU", percent),
        _number("cpu_seconds", "CPUtime", 7, "CPU time used so far", duration),
        _number("hogs", "CPUitsv", 7, "works that computed for long while others waited",
                style=lambda row: "blocked" if row["hogs"] else ""),
        _number("wakeups", "CMW", 5, "concurrency-managed wake-ups: a worker was woken because another blocked"),
        _number("maydays", "mayday", 6, "the rescuer was called, for want of workers",
                style=lambda row: "bad" if row["maydays"] else ""),
        _number("rescued", "rescued", 7, "works that the rescuer began",
                style=lambda row: "bad" if row["rescued"] else ""),
    ),
    _of_queues, "rate", "no queues yet",
)  # fmt: skip
FUNCTIONS = View(
    "functions",
    "Functions",
    (
        _text("name", "function", 0, "what works call"),
        _text("queue", "queue", 14, "the queue that they come from", from_width=90),
        _number("running", "now", 4, "how many run now", style=lambda row: "running" if row["running"] else ""),
        _number("rate", "/s", 6, "calls that ended in the last second", rate),
        _number("ended", "ended", 6, "calls that ended so far"),
        _number("failed", "failed", 6, "calls that raised so far", style=lambda row: "bad" if row["failed"] else ""),
        _number("share", "CPU%", 5, "CPU time used in the last second: 100% is one CPU", percent),
        _number("cpu_seconds", "CPUtime", 7, "CPU time used so far", duration),
        _number("mean", "~runs", 6, "how long a call takes: the mean so far", duration),
        _number("waits", "waits", 5, "how much of that it is not on a CPU", percent),
    ),
    _of_functions, "share", "no function has been called yet",
)  # fmt: skip
WORKERS = View(
    "workers",
    "Workers",
    (
        _text("name", "worker", 14, "the worker's thread, as the system calls it"),
        Column("state", "state", 9, lambda row: f"● {row['state']}", "what it does", True, 0, _style_of_state),
        _number("since", "for", 6, "for how long it executes this work, or is idle", duration),
        _number("cpu_seconds", "CPU", 6, "CPU time that this work used so far", duration, from_width=90),
        _text("queue", "queue", 12, "the queue of the work", from_width=100),
        _text("work", "work", 0, "the function that it calls"),
        Column("waits_for", "waits", 0, lambda row: waits(row), "for what it waits, and how", True, 70),
    ),
    _of_workers, "since", "no workers yet: nothing has been queued",
)  # fmt: skip
POOLS = View(
    "pools",
    "Pools",
    (
        Column("name", "pool", 5, lambda row: plain(row["name"]),
               "the pool; with an H, one of high priority", True),
        Column("cpus", "CPUs", 7, lambda row: cpus(row["cpus"]), "the CPUs that it serves", True),
        Column("spark", "busy", SPARK, lambda row: row["spark"], "workers that run or are blocked, lately",
               True, 0, lambda row: "running"),
        _number("target", "may", 4, "how many may run at a time"),
        _number("running", "run", 4, "workers that count as running", style=lambda row: "running"),
        _number("blocked", "block", 5, "workers that are blocked within a work", style=lambda row: "blocked"),
        _number("idle", "idle", 4, "workers that have nothing to do", style=lambda row: "idle"),
        _number("pending", "pend", 5, "works that wait for a worker",
                style=lambda row: "pending" if row["pending"] else ""),
        _number("rate", "/s", 6, "works that ended in the last second", rate),
        _number("share", "CPU%", 5, "CPU time used in the last second: 100% is one CPU", percent),
        _number("refused", "refus", 5, "workers that could not be created",
                style=lambda row: "bad" if row["refused"] else ""),
        _text("why", "why no more worker was started", 0, "why no more worker was started just now", from_width=100),
    ),
    _of_pools, "name", "no pools yet: nothing has been queued",
)  # fmt: skip
_STALLED = {"stalled": "bad", "over": "running"}
STALLS = View(
    "stalls",
    "Stalls",
    (
        _number("age", "ago", 6, "how long ago it was reported", duration),
        Column("state", "state", 7, lambda row: row["state"], "stalled: it goes on; over: works begin again; was: so "
               "it was, and is over", True, 0, lambda row: _STALLED.get(row["state"], "idle")),
        _text("pool", "pool", 6, "the pool"),
        _text("queue", "queue", 12, "the queue, if works wait for their place in it"),
        Column("text", "report", 0, lambda row: plain(row["text"].partition("\n")[0]), "what the watchdog said", True),
    ),
    _of_stalls, "age", "no stall was reported",
)  # fmt: skip
VIEWS = (QUEUES, FUNCTIONS, WORKERS, POOLS, STALLS)

ASCENDING = ("name", "queue", "pool", "age", "state", "cpus", "work", "waits_for", "why", "text")
"""Columns that are sorted upwards at first: words, and what is newest."""


def arranged(rows: list[Row], column: str, descending: bool, words: str) -> list[Row]:
    """The rows that have the words in one of their texts, sorted. Blanks are last."""
    if words:
        wanted = words.casefold()
        rows = [row for row in rows if wanted in _all_text(row)]
    known = [row for row in rows if row.get(column) is not None and row.get(column) != ""]
    blank = [row for row in rows if row.get(column) is None or row.get(column) == ""]
    order = f"{column} order" if known and f"{column} order" in known[0] else column
    return sorted(known, key=lambda row: row[order], reverse=descending) + blank


def _all_text(row: Row) -> str:
    return "\0".join(value for value in row.values() if isinstance(value, str)).casefold()
