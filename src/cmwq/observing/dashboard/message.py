"""What a browser gets of one picture: the picture itself, with rates and percentiles, workers in columns.

Guarantees: the size is bounded whatever the picture holds (`QUEUES`, `TEXT`); what a picture of another version lacks
is absent or zero here, and never an error. Strings that occur often are sent once (`words`).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

from cmwq.observing.dashboard.history import ALL, COLUMNS, Values
from cmwq.observing.dashboard.rates import Counters, Rates
from cmwq.observing.dashboard.timeline import Seen, Words, sums
from cmwq.observing.dashboard.verdict import current_stalls, total, verdict

VERSION = 1  # of the pictures that are understood
QUEUES = 300
POOLS = 300
TEXT = 20_000  # characters of one stall's report
Picture = dict[str, Any]


def told_apart(picture: Picture) -> Picture:
    """The picture with names that occur once: of queues of one name, the second and those after it get a number."""
    found: dict[str, list[Picture]] = {"pools": [], "queues": []}
    for part, views in found.items():
        taken: set[str] = set()
        numbers: dict[str, Iterator[int]] = {}  # by name, those that were not tried: no name is ever free again
        for view in picture.get(part, []):
            name = unused = str(view["name"])
            while unused in taken:
                unused = f"{name} ({next(numbers.setdefault(name, count(2)))})"
            taken.add(unused)
            views.append({**view, "name": unused})
    return {**picture, **found}


def counters(picture: Picture) -> Counters:
    """The counters of which the page shows rates."""
    found: Counters = {"process": (_number(picture, "cpu_seconds"),)}
    for pool in picture.get("pools", []):
        found["pool", pool["name"]] = _numbers(pool, "started", "completed", "cpu_seconds", "wakeups")
    for queue in picture.get("queues", []):
        found["queue", queue["name"]] = _numbers(queue, "started", "completed", "failed", "cpu_seconds")
    for function in picture.get("functions", []):
        key = "function", function["name"], function.get("queue", "")
        found[key] = _numbers(function, "ended", "failed", "cpu_seconds")
    return found


def occupancy(picture: Picture, rates: Rates) -> dict[str, Values]:
    """The numbers for `History.add`: of each pool, and of all."""
    found: dict[str, Values] = {}
    for pool in picture.get("pools", []):
        grown = rates.of(("pool", pool["name"])) or (0.0, 0.0, 0.0, 0.0)
        states = _numbers(pool, "running", "blocked", "idle", "target", "pending", "inactive")
        found[pool["name"]] = (*states, grown[1], grown[2])
    columns = list(zip(*found.values(), strict=True)) or [(0.0,)] * 8
    summed = [float(sum(column)) for column in columns]
    process = rates.of("process")
    found[ALL] = (*summed[:7], process[0] if process else 0.0)
    return found


def message(picture: Picture, rates: Rates, seen: list[Seen]) -> dict[str, Any]:
    """The picture as a browser gets it, without what only the watch knows (number, state, pid)."""
    words = Words()
    queues = sorted(picture.get("queues", []), key=_activity, reverse=True)
    kept = (
        "version", "time", "uptime", "python", "sensor", "sensor_reason", "gil", "cpu_limit", "frozen", "memory",
        "stall_after",
    )  # fmt: skip
    pools = picture.get("pools", [])
    return {
        **{key: picture.get(key) for key in kept},
        "understood": picture.get("version", VERSION) == VERSION,
        "command": [str(word)[:200] for word in picture.get("command", [])][:100],
        "cpus": len(picture.get("cpus", [])),
        "cpu_seconds": picture.get("cpu_seconds"),
        "verdict": verdict(picture),
        "totals": {key: total(pools, key) for key in ("running", "blocked", "idle", "target", "pending", "workers")}
        | {"inactive": total(queues, "inactive")},
        "now": dict(zip(COLUMNS, occupancy(picture, rates)[ALL], strict=True)),
        "pools": [_pool(pool, rates) for pool in pools[:POOLS]],
        "queues": [_queue(queue, rates) for queue in queues[:QUEUES]],
        "queues_left_out": max(0, len(queues) - QUEUES),
        "functions": [_function(each, rates) for each in picture.get("functions", [])],
        "stalls": _stalls(picture),
        "workers": _workers(picture.get("workers", []), seen, words),
        "workers_left_out": picture.get("workers_left_out", 0),
        "sums": sums(picture.get("workers", [])),
        "words": words.all,
    }


def _pool(pool: Picture, rates: Rates) -> Picture:
    grown = rates.of(("pool", pool["name"]))
    started, completed, cpu, wakeups = grown or (None, None, None, None)
    return {**pool, "rates": {"started": started, "completed": completed, "cpu": cpu, "wakeups": wakeups}}


def _queue(queue: Picture, rates: Rates) -> Picture:
    grown = rates.of(("queue", queue["name"]))
    started, completed, failed, cpu = grown or (None, None, None, None)
    return {
        **queue,
        "waiting": percentiles(queue.get("waiting")),
        "running": percentiles(queue.get("running")),
        "rates": {"started": started, "completed": completed, "failed": failed, "cpu": cpu},
    }


def _function(function: Picture, rates: Rates) -> Picture:
    grown = rates.of(("function", function["name"], function.get("queue", "")))
    ended, failed, cpu = grown or (None, None, None)
    return {**function, "rates": {"ended": ended, "failed": failed, "cpu": cpu}}


def percentiles(histogram: Picture | None) -> Picture | None:
    """The percentiles of a histogram, in seconds, and its shape; None if nothing was measured.

    Within a bucket all values count as spread evenly. Those beyond the last bound count as that bound, and are marked
    by `beyond`: they may be larger.
    """
    if not histogram or not sum(histogram["counts"]):
        return None
    bounds, counts = list(histogram["bounds"]), list(histogram["counts"])
    all_of_them = sum(counts)
    found: Picture = {"bounds": bounds, "counts": counts, "sampled": histogram.get("sampled", all_of_them)}
    for name, share in (("p50", 0.50), ("p95", 0.95), ("p99", 0.99)):
        below = 0.0
        for place, number in enumerate(counts):
            if below + number >= share * all_of_them and number:
                low = bounds[place - 1] if place else 0.0
                high = bounds[place] if place < len(bounds) else bounds[-1]
                found[name] = low + (high - low) * (share * all_of_them - below) / number
                found[f"{name}_beyond"] = place >= len(bounds)
                break
            below += number
    mean = _number(histogram, "sum") / max(1, found["sampled"])
    return {**found, "mean": mean}


def _stalls(picture: Picture) -> list[Picture]:
    """The newest first. `now`: it is not over."""
    current = [id(stall) for stall in current_stalls(picture)]
    found = []
    for stall in reversed(picture.get("stalls", [])):
        text = str(stall.get("text", ""))
        cut = f"{text[:TEXT]}\n… ({len(text) - TEXT:,} characters more)" if len(text) > TEXT else text
        found.append({**stall, "text": cut, "now": id(stall) in current})
    return found


def _workers(workers: list[Picture], seen: list[Seen], words: Words) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {
        "row": [each.row for each in seen],
        "begin": [round(each.begin, 3) for each in seen],
        "fresh": [int(each.fresh) for each in seen],
        "name": [str(worker["name"]) for worker in workers],
        "since": [round(_number(worker, "since"), 3) for worker in workers],
        "cpu": [worker.get("cpu_seconds") for worker in workers],
        "rescuer": [int(bool(worker.get("rescuer"))) for worker in workers],
        "tid": [worker.get("tid") for worker in workers],
    }
    for column, key in (("pool", "pool"), ("state", "state"), ("queue", "queue"), ("work", "work")):
        columns[column] = [words.place(str(worker.get(key, ""))) for worker in workers]
    columns["waits"] = [words.place(str(worker.get("waits_for", ""))) for worker in workers]
    return columns


def _activity(queue: Picture) -> float:
    return _number(queue, "unfinished") * 1e12 + _number(queue, "started")


def _number(view: Picture, key: str) -> float:
    return float(view.get(key) or 0.0)


def _numbers(view: Picture, *keys: str) -> tuple[float, ...]:
    return tuple(_number(view, key) for key in keys)
