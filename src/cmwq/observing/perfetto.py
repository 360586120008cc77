"""Perfetto: a trace as JSON that Perfetto, chrome://tracing and other viewers of Chrome's format load.

Guarantees
- Every slice is well formed: it begins within the trace, ends no earlier than it begins, and lies wholly within the one
  around it. What began before the oldest record that is kept, and what can't be told any more, is left out. What has
  not ended when the trace is written ends there, and says so (`unfinished`).
- It is written piece by piece, so what it costs in memory is the records, not the text.
- Times are microseconds with three decimals, on the clock of `time.monotonic()`. They are made of whole nanoseconds, so
  rounding breaks no nesting.

What becomes what. A worker is a track with its name, whatever its thread is called at its works, and so is a thread
that queues works; a pool has one for what concerns it as a whole. A work that ran is a slice; a span in which it was
known to be blocked is a slice within. An arrow leads from where a work was queued to where it began. Events are
instants, numbers are counters.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count
from operator import attrgetter
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from cmwq._pool.events import Kind

if TYPE_CHECKING:
    from cmwq._pool.ring import Queued, Ran
    from cmwq._workqueue.recording import Happened

MADE_UP = 10_000_000
"""The first of the identifiers of tracks that stand for no thread of the system, or for one whose identifier nobody
knows any more. The system's are smaller.
"""
BURST = 50_000
"""Nanoseconds. Works that a thread queues one after the other, with no longer pauses, are queued in one slice."""
MOMENT = 1_000
"""Nanoseconds that the slice of a queueing lasts after the last work: nobody knows when the call returned."""
MAX_TEXT = 2_000
"""Characters of a text in the arguments of a slice, at most."""


class Thread(NamedTuple):
    """A thread that may have queued works."""

    name: str
    tid: int
    """The system's identifier of it."""


@dataclass(slots=True)
class Records:
    """What there is to be written. Times are seconds on the clock of `time.monotonic()`."""

    pid: int
    process: str
    """The process in words."""
    begin: float
    """When the recording began."""
    now: float
    """When it was read."""
    epoch: float
    """What the wall clock showed then."""
    queued: list[Queued]
    ran: list[Ran]
    happened: list[Happened]
    unfinished: list[Ran] = field(default_factory=list)
    """Works that run now."""
    workers: dict[str, int] = field(default_factory=dict)
    """The identifier of each worker's thread that is known."""
    threads: dict[int, Thread] = field(default_factory=dict)
    """Threads by `threading.get_ident`."""
    overwritten: list[str] = field(default_factory=list)
    """Which sorts of records are not complete, because older ones were overwritten."""


def write(out: IO[str], records: Records) -> int:
    """Write the trace. Returns the number of events. Raises what `out.write` raises."""
    about = {
        "written by": "cmwq",
        "recorded from": records.begin,
        "recorded to": records.now,
        "time of day at the end": records.epoch,
        "overwritten": ", ".join(records.overwritten) or "nothing",
    }
    out.write('{"displayTimeUnit":"ms","otherData":' + json.dumps(about) + ',"traceEvents":[\n')
    number = 0
    for text in _Writer(records).events():
        out.write(text if number == 0 else ",\n" + text)
        number += 1
    out.write("\n]}\n")
    return number


class _Slice(NamedTuple):
    """A work that ran on a worker, in nanoseconds."""

    began: int
    ended: int
    ran: Ran
    unfinished: bool


class _Writer:
    """Makes the events of one trace."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._tracks: dict[str | int, int] = {}
        self._made_up, self._numbers = count(MADE_UP), count(1)
        self._quoted: dict[str, str] = {}
        works = [*((ran, False) for ran in records.ran), *((ran, True) for ran in records.unfinished)]
        self._slices: dict[str, list[_Slice]] = defaultdict(list)  # by worker, in order
        for ran, unfinished in sorted(works, key=lambda each: each[0].began):
            self._slices[ran.worker].append(_Slice(_ns(ran.began), _ns(ran.ended), ran, unfinished))
        for slices in self._slices.values():
            slices[:] = _apart(slices)

    def events(self) -> Iterator[str]:
        """The events, each as text. Those of a track come in the order in which a reader needs them."""
        records = self._records
        yield self._about("process_name", 0, name=records.process)
        happened = sorted(records.happened, key=attrgetter("time"))
        yield from self._name_tracks(happened)
        arrows, bursts = self._arrows()
        yield from self._bursts(bursts)
        for slices in self._slices.values():
            yield from self._works(slices, arrows)
        yield from self._blocked(happened)
        for each in happened:
            if each.kind is not None and each.kind in _INSTANTS:
                yield self._instant(each)
        yield from self._overwritten(happened)
        yield from self._floods(happened)
        yield from self._counters(happened)

    # ------------------------------------------------------------------------------- tracks

    def _name_tracks(self, happened: list[Happened]) -> Iterator[str]:
        """Name all tracks, in the order in which they are to stand: threads that queue, then pools and workers."""
        records = self._records
        workers = {*self._slices, *records.workers, *(each.worker for each in happened if each.worker)}
        pools = {each.pool for each in happened} | {slices[0].ran.place.pool for slices in self._slices.values()}
        # By the system's identifiers: a thread may have any name, that of a worker's or of none.
        of_tid = {tid: worker for worker, tid in records.workers.items() if tid}
        own = {ident: of_tid[thread.tid] for ident, thread in records.threads.items() if thread.tid in of_tid}
        idents = sorted({each.thread for each in records.queued})
        order = count()
        for ident in idents:
            if ident not in own:
                thread = records.threads.get(ident)
                name, tid = thread or Thread(f"a thread that has ended ({ident})", next(self._made_up))
                yield from self._name_track(ident, name, tid, next(order))
        for pool in sorted(pools, key=_natural):
            yield from self._name_track(f"pool {pool}", f"pool {pool}", next(self._made_up), next(order))
            for worker in sorted(workers, key=_natural):
                if _pool_of(worker) == pool:
                    yield from self._name_worker(worker, next(order))
        for worker in sorted(workers, key=_natural):
            if worker not in self._tracks:  # a rescuer, which is of no pool
                yield from self._name_worker(worker, next(order))
        for ident, worker in own.items():
            self._tracks[ident] = self._tracks[worker]

    def _name_worker(self, worker: str, order: int) -> Iterator[str]:
        tid = self._records.workers.get(worker) or next(self._made_up)
        return self._name_track(worker, worker, tid, order)

    def _name_track(self, key: str | int, name: str, tid: int, order: int) -> Iterator[str]:
        if tid in self._tracks.values():  # the system has used the number again
            tid = next(self._made_up)
        self._tracks[key] = tid
        yield self._about("thread_name", tid, name=name)
        yield self._about("thread_sort_index", tid, sort_index=order)

    def _about(self, what: str, tid: int, **args: Any) -> str:
        return json.dumps({"ph": "M", "name": what, "pid": self._records.pid, "tid": tid, "args": args})

    # ------------------------------------------------------------------------------- works

    def _arrows(self) -> tuple[dict[int, tuple[int, int]], dict[int, list[int]]]:
        """Where each work was queued: (time, track) by the identity of its record; and when threads queued works in no
        work of theirs, by track. Each in order.
        """
        arrows: dict[int, tuple[int, int]] = {}
        outside: dict[int, list[int]] = defaultdict(list)
        queueings = iter(sorted(self._records.queued, key=attrgetter("time")))
        waiting: dict[int, Queued] = {}
        following = next(queueings, None)
        everything = (each for slices in self._slices.values() for each in slices)
        for work in sorted(everything, key=attrgetter("began")):
            while following is not None and _ns(following.time) <= work.began:
                waiting[following.item] = following
                following = next(queueings, None)
            queued = waiting.pop(work.ran.item, None)
            if queued is not None:
                arrows[id(work.ran)] = _ns(queued.time), self._tracks[queued.thread]
        names = {self._tracks[name]: name for name in self._slices}
        for queued in self._records.queued:
            track = self._tracks[queued.thread]
            if self._work_at(names.get(track, ""), _ns(queued.time)) is None:
                outside[track].append(_ns(queued.time))
        return arrows, outside

    def _work_at(self, worker: str, time: int) -> _Slice | None:
        slices = self._slices.get(worker)
        if slices is None:
            return None
        at = bisect_right(slices, time, key=attrgetter("began")) - 1
        return slices[at] if at >= 0 and time < slices[at].ended else None

    def _bursts(self, outside: dict[int, list[int]]) -> Iterator[str]:
        """Slices for queueing outside of works, for an arrow has to begin within a slice."""
        begins = {self._tracks[name]: [each.began for each in slices] for name, slices in self._slices.items()}
        for track, times in outside.items():
            starts = begins.get(track, [])
            times.sort()
            first = 0
            for index, time in enumerate(times):
                after = bisect_right(starts, time)
                limit = starts[after] if after < len(starts) else None  # its own next work
                following = times[index + 1] if index + 1 < len(times) else None
                if following is not None and following - time < BURST and (limit is None or following < limit):
                    continue
                end = time + MOMENT if limit is None else min(time + MOMENT, limit)
                if following is not None:
                    end = min(end, following)
                number = index + 1 - first
                name = "queue a work" if number == 1 else f"queue {number:,} works"
                yield self._span(name, "queueing", track, times[first], end, {"works": number})
                first = index + 1

    def _works(self, slices: list[_Slice], arrows: dict[int, tuple[int, int]]) -> Iterator[str]:
        """The works of one worker with their arrows. This is most of a file, so the texts are made in place."""
        pid, track = self._records.pid, self._tracks[slices[0].ran.worker]
        for work in slices:
            ran, began = work.ran, work.began
            arrow = arrows.get(id(ran))
            more = "" if arrow is None else f',"waited_us":{_us(began - arrow[0])}'
            if ran.raised is not None:
                more += f',"raised":{self._quote(ran.raised)}'
            if work.unfinished:
                more += ',"unfinished":true'
            begin = _us(began)
            yield (
                f'{{"ph":"X","cat":"work","name":{self._quote(ran.work)},"pid":{pid},"tid":{track},"ts":{begin},'
                f'"dur":{_us(max(work.ended - began, 0))},"args":{{"queue":{self._quote(ran.place.queue)},'
                f'"pool":{self._quote(ran.place.pool)}{more}}}}}'
            )
            if arrow is not None:
                head = f'"cat":"queued","name":"queued","id":{next(self._numbers)},"pid":{pid}'
                yield f'{{"ph":"s",{head},"tid":{arrow[1]},"ts":{_us(arrow[0])}}}'
                yield f'{{"ph":"f","bp":"e",{head},"tid":{track},"ts":{begin}}}'

    def _blocked(self, happened: list[Happened]) -> Iterator[str]:
        """The spans in which works were known to be blocked, each within its work."""
        since: dict[str, Happened] = {}
        for each in happened:
            if each.kind is Kind.BLOCKED or each.kind is Kind.RUNNING:
                before = since.pop(each.worker, None)
                if before is not None:
                    yield from self._blocked_span(before, _ns(each.time))
                if each.kind is Kind.BLOCKED and each.why != "hog":
                    since[each.worker] = each
        for before in since.values():
            yield from self._blocked_span(before, _ns(self._records.now))

    def _blocked_span(self, blocked: Happened, until: int) -> Iterator[str]:
        began = _ns(blocked.time)
        work = self._work_at(blocked.worker, began)
        if work is not None and work.ran.item == blocked.item:
            name = blocked.where or _WHY.get(blocked.why, blocked.why)
            args = {"why": blocked.why, "of": work.ran.work}
            yield self._span(name, "blocked", self._tracks[blocked.worker], began, min(until, work.ended), args)

    # ------------------------------------------------------------------------------- the rest

    def _instant(self, each: Happened) -> str:
        assert each.kind is not None
        track = self._tracks[each.worker or f"pool {each.pool}"]
        name = _INSTANTS[each.kind]
        if each.kind is Kind.STALL:
            name = "goes on after a stall" if each.stall is not None and each.stall.over else "stall"
        elif each.cpus:
            name += " " + ", ".join(map(str, each.cpus))
        elif each.kind is Kind.HOG:
            name += f": {each.work}"
        elif each.kind is Kind.MAYDAY:
            name += f": {each.queue}"
        args = {"why": each.why, "queue": each.queue, "work": each.work, "pool": each.pool}
        args = {key: value for key, value in args.items() if value}
        if each.stall is not None:
            args["report"] = str(each.stall)
        return self._moment(name, str(each.kind), track, _ns(each.time), args)

    def _overwritten(self, happened: list[Happened]) -> Iterator[str]:
        """Say at the beginning of what is kept that older records are lost."""
        if self._records.overwritten and happened:
            kept = [slices[0].began for slices in self._slices.values() if slices]
            time = min(kept, default=_ns(happened[0].time))
            name = f"older records were overwritten: {', '.join(self._records.overwritten)}"
            yield self._moment(name, "lost", self._tracks[f"pool {happened[0].pool}"], time, {})

    def _floods(self, happened: list[Happened]) -> Iterator[str]:
        """The spans in which the works of a pool were not recorded, because there were too many."""
        since: dict[str, Happened] = {}
        for each in happened:
            before = since.get(each.pool)
            if before is None and not each.records:
                since[each.pool] = each
            elif before is not None and each.records:
                yield self._flood(since.pop(each.pool), each)
        last = {each.pool: each for each in happened}
        for pool, before in since.items():
            yield self._flood(before, last[pool])

    def _flood(self, first: Happened, last: Happened) -> str:
        number = last.completed - first.completed
        name = f"{number:,} works, not recorded one by one"
        track = self._tracks[f"pool {first.pool}"]
        return self._span(name, "flood", track, _ns(first.time), _ns(last.time), {"works": number})

    def _counters(self, happened: list[Happened]) -> Iterator[str]:
        """The numbers of the pools wherever they changed, and the CPUs that the process used in between."""
        shown: dict[str, tuple[int, ...]] = {}
        used: Happened | None = None
        for each in happened:
            numbers = each.running, each.blocked, each.idle, each.pending
            if shown.get(each.pool) != numbers:
                shown[each.pool] = numbers
                time = _ns(each.time)
                args = {"running": each.running, "blocked": each.blocked, "idle": each.idle, "pending": each.pending}
                yield self._counter(each.pool, time, args)
            if each.cpu_seconds is not None:
                if used is not None and used.cpu_seconds is not None and each.time > used.time:
                    share = (each.cpu_seconds - used.cpu_seconds) / (each.time - used.time)
                    yield self._counter("CPUs", _ns(used.time), {"used": round(share, 3)})
                used = each
        if used is not None:
            yield self._counter("CPUs", _ns(used.time), {"used": 0})

    # ------------------------------------------------------------------------------- text

    def _span(self, name: str, kind: str, track: int, began: int, ended: int, args: dict[str, Any]) -> str:
        head = f'"ph":"X","cat":"{kind}","name":{self._quote(name)},"pid":{self._records.pid},"tid":{track}'
        return f'{{{head},"ts":{_us(began)},"dur":{_us(max(ended - began, 0))},"args":{self._args(args)}}}'

    def _moment(self, name: str, kind: str, track: int, time: int, args: dict[str, Any]) -> str:
        head = f'"ph":"i","s":"t","cat":"{kind}","name":{self._quote(name)},"pid":{self._records.pid},"tid":{track}'
        return f'{{{head},"ts":{_us(time)},"args":{self._args(args)}}}'

    def _counter(self, name: str, time: int, args: dict[str, Any]) -> str:
        head = f'"ph":"C","name":{self._quote(name)},"pid":{self._records.pid}'
        return f'{{{head},"ts":{_us(time)},"args":{self._args(args)}}}'

    def _args(self, args: dict[str, Any]) -> str:
        each = (f"{self._quote(key)}:{self._value(value)}" for key, value in args.items())
        return "{" + ",".join(each) + "}"

    def _value(self, value: object) -> str:
        return self._quote(value[:MAX_TEXT]) if isinstance(value, str) else json.dumps(value)

    def _quote(self, text: str) -> str:
        quoted = self._quoted.get(text)
        if quoted is None:
            quoted = self._quoted[text] = json.dumps(text)
        return quoted


_INSTANTS = {
    Kind.CREATED: "worker created",
    Kind.CULLED: "worker culled",
    Kind.DIED: "worker ended",
    Kind.REFUSED: "a thread was refused",
    Kind.MAYDAY: "mayday",
    Kind.RESCUED: "the rescuer begins a work",
    Kind.HOG: "hog",
    Kind.CPU_LEFT: "CPUs left:",
    Kind.CPU_RETURNED: "CPUs returned:",
    Kind.STALL: "stall",
    Kind.LOST: "events were lost",
}
_WHY = {
    "lock": "waits for a lock",
    "asleep": "waits in the system",
    "said": "said that it waits",
    "child": "a child process computes",
}


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)


def _us(nanoseconds: int) -> str:
    return f"{nanoseconds // 1000}.{nanoseconds % 1000:03d}"


def _apart(slices: Iterable[_Slice]) -> Iterator[_Slice]:
    """The same, with none that reaches into the next: that can only be the thread of an earlier worker of that name, or
    a clock that is too coarse.
    """
    before: _Slice | None = None
    for each in slices:
        if before is not None:
            yield before._replace(ended=min(before.ended, each.began))
        before = each
    if before is not None:
        yield before


def _pool_of(worker: str) -> str:
    """The pool that the worker's name tells: `cmwq/u0:7H` is of pool `u0H`."""
    pool, _, number = worker.removeprefix("cmwq/").partition(":")
    return pool + ("H" if number.endswith("H") else "")


def _natural(name: str) -> tuple[tuple[int, int | str], ...]:
    """A key that puts 9 before 10."""
    parts: list[tuple[int, int | str]] = []
    for character in name:
        if character.isdecimal():  # a superscript two is a digit, and no number
            before = parts.pop()[1] if parts and parts[-1][0] == 0 else 0
            parts.append((0, int(before) * 10 + int(character)))
        else:
            parts.append((1, character))
    return tuple(parts)
