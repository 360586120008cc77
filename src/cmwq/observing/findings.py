"""What a picture shows to be wrong, and what its workers wait for, in words.

Guarantees: nothing is asked but the picture itself, a dictionary as `Snapshot.to_dict()` makes it, so it may be one
that was saved. A part that a picture lacks, because an older version made it, is left out. What is concluded, and not
seen, is called so.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from enum import IntEnum
from math import isfinite
from typing import Any, NamedTuple

from cmwq._core.checks import MAX_COUNT
from cmwq._core.naming import counted
from cmwq._workqueue.report import OF_WORKERS

Plain = dict[str, Any]

LONG = 5.0
"""Seconds that a worker waits before that is told, if it is the only one that waits there."""
SETTLED = 1.0
"""Seconds for which each work of a ring must have been executed before the ring is called wrong: threads are not all
looked at in the same moment, and those that move may seem to wait for each other.
"""
MOST_SUSPECTS = 3
MOST_OF_A_RING = 8
"""So many of its workers are described."""
ENTRY = re.compile(
    r'\s*File "(?P<file>.*)", line (?P<line>\d{1,18}), in (?P<function>.+?)(?:\n\s*(?P<code>.*\S))?\s*', re.S
)
OF_LIBRARIES = re.compile(
    r"[/\\]lib\d*[/\\]python3[^/\\]*[/\\](?:(?:site|dist)-packages[/\\])?|[/\\](?:site|dist)-packages[/\\]|^<frozen|"
    r"[/\\](?=cmwq[/\\](?:_\w+|executor)[/\\])",
    re.I,
)
VERBS = {"waits": "wait", "sleeps": "sleep", "is": "are", "says that it": "say that each"}
"""How the words begin that tell what a worker waits for, and how of several."""
HELD = re.compile(r", (?:probably )?held by ")
NUMBER = re.compile(r"0x[0-9a-fA-F]+|\d+")


class Frame(NamedTuple):
    """An entry of a stack. code: the text of its line; empty if it is not known."""

    file: str
    line: int
    function: str
    code: str

    @property
    def place(self) -> str:
        return f"{self.file.replace(chr(92), '/').rpartition('/')[2]}:{self.line} in {self.function}"


class Level(IntEnum):
    """How bad a finding is."""

    WRONG = 0
    LONG = 1
    """Something waits, in a work that takes long. That may be meant so."""
    NORMAL = 2
    """Something waits, as it does wherever there is more to do than can be done at once."""


@dataclass(slots=True)
class Finding:
    """Something that is wrong, or may be. details: what is known about it; the first ones matter most."""

    level: Level
    text: str
    details: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Group:
    """Workers that do the same at the same point."""

    workers: list[Plain]
    state: str
    work: str
    waits_for: str
    """What they wait for. Numbers in which they differ are left out."""
    frames: list[Frame]
    """Their stack, from the work's function on, the innermost call last. Empty if stacks were not asked for."""
    passed: list[str] = field(default_factory=list)
    """Who is further in the same function, and so may have what these wait for; in words."""
    failed: str = ""
    """If nobody is: that works of the same queue have failed, in words."""
    holder: str = ""
    """Who has what these wait for, and what that one does, in words; where their own words name it."""

    @property
    def longest(self) -> float:
        """For how many seconds the first of them has been executing its work, or has been idle."""
        return max((number(worker, "since") for worker in self.workers), default=0.0)

    @property
    def frame(self) -> Frame | None:
        """The innermost call that is not a library's."""
        own = [frame for frame in self.frames if not OF_LIBRARIES.search(frame.file)]
        return own[-1] if own else self.frames[-1] if self.frames else None


def entries(plain: Plain, key: str) -> list[Plain]:
    """A list of dictionaries in the picture, or none."""
    found = plain.get(key)
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list | tuple) else []


def number(plain: Plain, key: str) -> float:
    """A number in the picture, or 0."""
    value = plain.get(key)
    return value if isinstance(value, int | float) and isfinite(value) else 0


def word(plain: Plain, key: str) -> str:
    """A text in the picture, or an empty one."""
    value = plain.get(key)
    return "" if value is None else str(value)


def frames_of(worker: Plain) -> list[Frame]:
    """The worker's stack without what all workers call before they come to a work: empty if that is a function in C."""
    stack = worker.get("stack") or ()
    found = []
    for entry in stack:
        match = ENTRY.fullmatch(str(entry).rstrip("\n"))
        if match:
            found.append(Frame(match["file"], int(match["line"]), match["function"], (match["code"] or "").strip()))
    outer = 0
    while outer < len(found) and OF_WORKERS.search(found[outer].file):
        outer += 1
    return found[outer:]


def grouped(picture: Plain) -> list[Group]:
    """The workers that execute something, one group for those at the same point. The largest group comes first, those
    that wait before those that run.
    """
    groups: dict[tuple[object, ...], Group] = {}
    for worker in entries(picture, "workers"):
        if not word(worker, "work") and word(worker, "state") in ("", "idle"):
            continue
        frames, waits_for = frames_of(worker), word(worker, "waits_for")
        place = tuple((frame.file, frame.line) for frame in frames)
        state, work = word(worker, "state"), word(worker, "work")
        key = (state, work, word(worker, "queue"), NUMBER.sub("", waits_for), number(worker, "held_by"), place)
        group = groups.setdefault(key, Group([], state, work, waits_for, frames))
        group.workers.append(worker)
        if group.waits_for != waits_for:
            group.waits_for = _common(group.waits_for, waits_for)
    for group in groups.values():
        group.workers.sort(key=_parts)
    found = sorted(groups.values(), key=lambda group: (group.state != "blocked", -len(group.workers), -group.longest))
    further: dict[tuple[str, str], list[tuple[int, Group]]] = {}  # who is in which function, at which line
    for group in found:
        for frame in group.frames:
            further.setdefault((frame.file, frame.function), []).append((frame.line, group))
    for there in further.values():
        there.sort(key=lambda each: -each[0])
    of_tid = {number(worker, "tid"): (group, worker) for group in found for worker in group.workers}
    for group in found:
        if HELD.search(group.waits_for):
            other, worker = of_tid.get(number(group.workers[0], "held_by"), (None, {}))
            group.holder = "" if other is group and len(group.workers) == 1 else _holder(other, worker)
        elif group.frame is not None and group.state == "blocked":
            group.passed = _passed(group, group.frame, further)
            group.failed = "" if group.passed else _failed(group, picture)
    return found


def _parts(worker: Plain) -> list[tuple[int, str]]:
    """The numbers of its name, as a key that puts 9 before 10. `int` refuses texts of thousands of digits."""
    parts = (part.lstrip("0") for part in re.findall(r"[0-9]+", word(worker, "name")))
    return [(len(part), part) for part in parts]


def _common(one: str, other: str) -> str:
    """The words of both, without the numbers in which they differ."""
    parts, others = re.split(f"({NUMBER.pattern})", one), re.split(f"({NUMBER.pattern})", other)
    if len(parts) != len(others):
        return one
    return "".join(a if a == b else "…" for a, b in zip(parts, others, strict=True))


def _passed(group: Group, frame: Frame, further: dict[tuple[str, str], list[tuple[int, Group]]]) -> list[str]:
    """Who is past the line at which this group waits, in the same function: what is waited for there, a lock or a
    connection, these are likely to have.
    """
    found: list[str] = []
    for line, other in further[frame.file, frame.function]:
        if line <= frame.line or len(found) == MOST_SUSPECTS:
            break
        if other is not group:
            what = f"{names(other.workers)}, which {does(other, len(other.workers))}"
            found.append(f"{what}, at line {line}, {so_long(other)}")
    return found


def _holder(group: Group | None, worker: Plain) -> str:
    """What this worker does, which has what others wait for. Empty: nobody knows who that is."""
    return "" if group is None else f"{names([worker])} {does(group, 1)}{_at(group)}, {so_long(group)}"


def _failed(group: Group, picture: Plain) -> str:
    """That works of the same queue have failed: they may have kept what this group waits for."""
    if group.waits_for.startswith("waits in"):  # in a system call, for something outside
        return ""
    mine = {word(worker, "queue") for worker in group.workers}
    for queue in entries(picture, "queues"):
        failed = int(number(queue, "failed"))
        if failed and word(queue, "name") in mine:
            works = f"{counted(failed, 'work')} of queue {word(queue, 'name')!r}"
            return f"{works} failed so far, and may have kept what these wait for"
    return ""


def names(workers: list[Plain], most: int = 3) -> str:
    """Their names, or the first ones and how many there are."""
    shown = [word(worker, "name") or "a worker" for worker in workers[:most]]
    more = f" and {len(workers) - most} more" if len(workers) > most else ""
    return ", ".join(shown) + more


def does(group: Group, count: int) -> str:
    """What these workers do, as a predicate of so many workers."""
    one, waits_for = count == 1, group.waits_for
    if waits_for.startswith("asleep "):
        return f"{'is' if one else 'are'} {waits_for}"
    for singular, plural in VERBS.items():
        if waits_for.startswith(f"{singular} "):
            return waits_for if one else plural + waits_for.removeprefix(singular)
    if waits_for:  # the thing itself
        return f"wait{'s' * one} for {waits_for}"
    if group.state == "running":
        return "runs" if one else "run"
    what = {"blocked": "blocked, by what is not known", "waking": "about to begin", "creating": "creating a worker"}
    return f"{'is' if one else 'are'} {what.get(group.state, group.state or 'busy')}"


def findings(picture: Plain) -> list[Finding]:
    """What is wrong, and what waits: the worst first."""
    groups = grouped(picture)
    stalls = standing(picture)
    told: set[int] = set()  # groups that were named already
    found = _deadlocks(groups, told)
    for queue in entries(picture, "queues"):
        found += _of_queue(queue, _stall_of(stalls, queue=word(queue, "name")), groups, told)
    for pool in entries(picture, "pools"):
        found += _of_pool(pool, _stall_of(stalls, pool=word(pool, "name")))
    found += [_waits(group) for group in groups if group.state == "blocked" and id(group) not in told]
    if picture.get("frozen"):
        text = "The runtime is frozen: its freezable queues start nothing until thaw() is called."
        found.append(Finding(Level.LONG, text))
    return sorted(found, key=lambda finding: finding.level)


def _deadlocks(groups: list[Group], told: set[int]) -> list[Finding]:
    """Workers each of which waits for a lock that the next one holds, and the last one for one of the first."""
    waiting = {
        int(number(worker, "tid")): (group, worker)
        for group in groups
        if HELD.search(group.waits_for)
        for worker in group.workers
        if number(worker, "held_by")
    }
    found: list[Finding] = []
    over: set[int] = set()  # who was looked at, whether in a ring or on the way to one
    in_rings: set[int] = set()
    for tid in waiting:
        way: list[int] = []
        while tid in waiting and tid not in over:
            over.add(tid)
            way.append(tid)
            tid = int(number(waiting[tid][1], "held_by"))
        if tid in way:
            ring = way[way.index(tid) :]
            first = ring.index(min(ring, key=lambda each: _parts(waiting[each][1])))
            ring = ring[first:] + ring[:first]
            in_rings.update(ring)
            found.append(_ring([waiting[each] for each in ring]))
    told.update(id(group) for group in groups if all(number(worker, "tid") in in_rings for worker in group.workers))
    return found


def _ring(those: list[tuple[Group, Plain]]) -> Finding:
    alone = [replace(group, workers=[worker], waits_for=word(worker, "waits_for")) for group, worker in those]
    workers = [worker for _, worker in those]
    who = f"{names(workers)} waits for itself" if len(those) == 1 else f"{_all_of(workers)} wait for each other"
    sure = all(", held by " in group.waits_for for group in alone)
    settled = all(number(worker, "since") >= SETTLED for worker in workers)
    text = f"{'Deadlock' if sure else 'Probably a deadlock'}: {who}"
    details = [_told(group) for group in alone[:MOST_OF_A_RING]]
    if len(those) > MOST_OF_A_RING:
        details.append(f"and so on, {len(those)} workers in all")
    return Finding(Level.WRONG if sure and settled else Level.LONG, text, details)


def _all_of(workers: list[Plain]) -> str:
    """The names of two or more, as a subject; of many the first ones, and how many there are."""
    if len(workers) > 3:
        return names(workers)
    return f"{names(workers[:-1])} and {names(workers[-1:])}"


def standing(picture: Plain) -> list[Plain]:
    """The stalls that were reported and are not over; each with `ago`, in seconds."""
    last: dict[tuple[str, str], Plain] = {}
    for stall in entries(picture, "stalls"):
        last[word(stall, "pool"), word(stall, "queue")] = stall
    now = number(picture, "time")
    return [{**stall, "ago": max(now - number(stall, "time"), 0.0)} for stall in last.values() if not stall.get("over")]


def _stall_of(stalls: list[Plain], *, queue: str = "", pool: str = "") -> Plain | None:
    """The stall of this queue, or that of this pool as a whole."""
    for stall in stalls:
        if word(stall, "queue") == queue and (queue or word(stall, "pool") == pool):
            return stall
    return None


def headline(stall: Plain) -> str:
    """The first line of a report. The others are its workers, which a picture has in more detail."""
    return word(stall, "text").partition("\n")[0]


def _stalled(stall: Plain) -> str:
    return f"Stalled, as was reported {duration(number(stall, 'ago'))} ago: {headline(stall)}"


def _of_pool(pool: Plain, stall: Plain | None) -> list[Finding]:
    """Why works wait for a worker."""
    why, pending = word(pool, "why"), int(number(pool, "pending"))
    if stall is not None:
        finding = Finding(Level.WRONG, _stalled(stall))
        finding.details += [f"now: {why}"] if pending and why and why not in finding.text else []
    elif pending and (why or pool.get("held")):
        busy = number(pool, "running") >= number(pool, "target") > 0 and not pool.get("held")
        text = f"{_works(pending)} for a worker of pool {word(pool, 'name')}: {why or 'memory is short'}"
        finding = Finding(Level.NORMAL if busy else Level.WRONG, text)
    else:
        return []
    if number(pool, "refused"):
        times = counted(int(number(pool, "refused")), "time")
        finding.details.append(f"a thread was refused {times} so far")
    return [finding]


def _of_queue(queue: Plain, stall: Plain | None, groups: list[Group], told: set[int]) -> list[Finding]:
    """Why works wait for a place in the queue, and who has the places."""
    name, why, inactive = word(queue, "name"), word(queue, "why"), int(number(queue, "inactive"))
    if not (inactive or stall):
        return []
    if not why:  # an older picture
        active = counted(int(number(queue, "active")), "is active", "are active")
        why = f"{active}, and max_active is {limit_of(queue)}"
    holders = []
    for group in groups:
        mine = [worker for worker in group.workers if word(worker, "queue") == name]
        if mine:
            told.add(id(group))
            holders.append(group)
    resting = bool(holders) and all(group.state == "blocked" and group.longest >= LONG for group in holders)
    text = f"{_works(inactive)} for a place in queue {name!r}: {why}"
    level = Level.LONG if resting else Level.NORMAL
    if stall is not None:
        level, text = Level.WRONG, _stalled(stall)
    return [Finding(level, text, [line for group in holders for line in _holds(group)])]


def _holds(group: Group) -> list[str]:
    """That these workers have places, and what they do."""
    count = len(group.workers)
    verb = "has a place and" if count == 1 else "have places and"
    told = f"{_named(group)} {verb} {does(group, count)}{_at(group)}, {so_long(group)}"
    return [told, *_suspects(group)]


def _waits(group: Group) -> Finding:
    """That workers wait at the same point."""
    level = Level.LONG if group.longest >= LONG else Level.NORMAL
    return Finding(level, _told(group), _suspects(group))


def _told(group: Group) -> str:
    """What they do, where, and for how long."""
    return f"{_named(group)} {does(group, len(group.workers))}{_at(group)}, {so_long(group)}"


def _suspects(group: Group) -> list[str]:
    """Who has what these workers wait for, or probably has it."""
    if group.holder:
        return [group.holder]
    if group.failed:
        return [f"nobody is past that line, so nobody who runs has what they wait for; {group.failed}"]
    return [f"probably for what this one has: {each}" for each in group.passed]


def _named(group: Group) -> str:
    count = len(group.workers)
    return f"{count:,} workers" if count > 2 else " and ".join(word(worker, "name") for worker in group.workers)


def so_long(group: Group) -> str:
    """For how long they have been at their works. It is not known since when they wait: they may have waited, gone on
    and waited again, and nobody saw it.
    """
    several = len(group.workers) > 1
    where = "" if not group.work else "in these works " if several else "in this work "
    return f"{where}for {'up to ' * several}{duration(group.longest)}"


def _at(group: Group) -> str:
    """Where that is, and the text of the line; unless the words say where already."""
    frame = group.frame
    if frame is None:
        return f", in {group.work}" if group.work and any(worker.get("stack") for worker in group.workers) else ""
    code = f" ({frame.code.splitlines()[0]})" if frame.code else ""
    if frame.place.partition(" ")[0] not in group.waits_for:
        return f", at {frame.place}{code}"
    return f", in the line {code[2:-1]!r}" if code and not group.holder and "held by" not in group.waits_for else ""


def _works(count: int) -> str:
    return counted(count, "work waits", "works wait")


def limit_of(queue: Plain) -> str:
    """The queue's max_active, in words."""
    limit = int(number(queue, "max_active"))
    return "unlimited" if limit >= MAX_COUNT else f"{limit:,}"


def duration(seconds: float) -> str:
    """A duration in a form that is read at a glance."""
    if seconds < 0.0005:
        return "0 s"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, hours, days = seconds / 60, seconds / 3600, seconds / 86400
    return f"{minutes:.0f} min" if minutes < 120 else f"{hours:.0f} h" if hours < 48 else f"{days:.0f} days"
