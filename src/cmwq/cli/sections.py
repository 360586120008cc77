"""A picture as text: what is wrong first; then pools, queues, workers with what each does, functions.

Guarantees: parts that a picture lacks, because an older version made it, are left out.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from cmwq._core.naming import counted
from cmwq.cli.blocks import Block, Code, Column, Heading, Paragraph, Table
from cmwq.observing.findings import (
    OF_LIBRARIES,
    Finding,
    Frame,
    Group,
    Level,
    Plain,
    does,
    duration,
    entries,
    findings,
    grouped,
    headline,
    limit_of,
    names,
    number,
    so_long,
    standing,
    word,
)

MOST_FINDINGS = 20
MOST_STALLS = 10
MOST_GROUPS = 100
"""How many entries of workers are shown. A stalled program has few: those at the same point share one."""
LONGEST_PATH = 44
"""Characters."""
MOST_FRAMES = 14
"""How many calls of a stack are shown: the innermost ones."""


def page(picture: Plain, stacks: bool = True) -> list[Block]:
    """The whole text."""
    groups = grouped(picture)
    return [
        *_title(picture),
        *_wrong(picture),
        *_pools(picture),
        *_queues(picture),
        *_workers(picture, groups, stacks),
        *_functions(picture),
        *_past_stalls(picture),
    ]


# ------------------------------------------------------------------------------- the process


def _title(picture: Plain) -> list[Block]:
    command = picture.get("command")
    words = " ".join(map(str, command)) if isinstance(command, list) else ""
    name = f"Process {word(picture, 'pid') or 'unknown'}"
    blocks: list[Block] = [Paragraph(f"{name}: {words}" if words else name, tone="strong")]
    facts = []
    if picture.get("python"):
        facts.append(f"Python {word(picture, 'python')}{'' if picture.get('gil', True) else ', no GIL'}")
    if picture.get("time"):
        facts.append(f"seen at {_clock(number(picture, 'time'))}")
    if picture.get("uptime"):
        facts.append(f"cmwq in use for {duration(number(picture, 'uptime'))}")
    if picture.get("cpu_seconds"):
        facts.append(f"{duration(number(picture, 'cpu_seconds'))} of CPU used")
    if picture.get("cpus"):
        count = len(picture["cpus"])
        facts.append(f"{int(number(picture, 'cpu_limit')) or count} of {count} CPUs")
    if picture.get("sensor"):
        facts.append(f"sensor {word(picture, 'sensor')}")
    memory = picture.get("memory")
    if isinstance(memory, dict) and memory.get("limit"):
        used, limit = int(number(memory, "used")) >> 20, int(number(memory, "limit")) >> 20
        facts.append(f"memory {used:,} of {limit:,} MiB ({word(memory, 'source')})")
    if facts:
        blocks.append(Paragraph("; ".join(facts), tone="dim"))
    return blocks


def _clock(seconds: float) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
    except (ValueError, OverflowError, OSError):
        return "an unknown time"


def _wrong(picture: Plain) -> list[Block]:
    """What is wrong; below that what waits as it always does."""
    found = findings(picture)
    if not found:
        return [Heading("What is wrong"), Paragraph("Nothing is seen to be wrong.", tone="good")]
    if found[0].level is not Level.WRONG:
        return [Heading("What waits"), Paragraph(_not_yet(picture), tone="dim"), *_numbered(found)]
    bad = [finding for finding in found if finding.level is not Level.NORMAL]
    normal = [finding for finding in found if finding.level is Level.NORMAL]
    return [
        *(Heading("What is wrong"), *_numbered(bad)),
        *((Heading("What waits"), *_numbered(normal)) if normal else ()),
    ]


def _not_yet(picture: Plain) -> str:
    """That nothing counts as a stall, and what would."""
    after = number(picture, "stall_after")
    if after:
        return f"No stall so far (works that wait, of which none begins for {duration(after)}). This waits:"
    off = picture.get("stall_after") is not None
    return "No stall would be reported, for the watchdog is off. This waits:" if off else "No stall so far. This waits:"


def _numbered(found: list[Finding]) -> list[Block]:
    tones = {Level.WRONG: "bad", Level.LONG: "strong", Level.NORMAL: ""}
    blocks: list[Block] = []
    for index, finding in enumerate(found[:MOST_FINDINGS], 1):
        blocks.append(Paragraph(finding.text, mark=f"{index:>2}. ", tone=tones[finding.level]))
        blocks += [Paragraph(detail, indent=4, mark="- ") for detail in finding.details]
    if len(found) > MOST_FINDINGS:
        blocks.append(Paragraph(f"and {len(found) - MOST_FINDINGS} more: see the workers", indent=4))
    return blocks


def _past_stalls(picture: Plain) -> list[Block]:
    """The reports that are not told above."""
    now = [number(stall, "time") for stall in standing(picture)]
    past = [stall for stall in entries(picture, "stalls") if stall.get("over") or number(stall, "time") not in now]
    if not past:
        return []
    marked = [(f"{_clock(number(stall, 'time'))}  ", headline(stall)) for stall in past[-MOST_STALLS:]]
    return [Heading("Stalls so far"), *(Paragraph(text, mark=mark) for mark, text in marked)]


# ------------------------------------------------------------------------------- pools and queues

POOLS = (
    Column("pool", right=False), Column("CPUs", right=False, rank=9), Column("running"), Column("blocked"),
    Column("idle"), Column("workers"), Column("pending"), Column("inactive", rank=3), Column("completed", rank=2),
    Column("refused", rank=1), Column("CPU", rank=4), Column("created", rank=6), Column("culled", rank=7),
    Column("wake-ups", rank=8),
)  # fmt: skip


def _pools(picture: Plain) -> list[Block]:
    pools = entries(picture, "pools")
    if not pools:
        return [Heading("Pools"), Paragraph("None: nothing has run yet.")]
    rows = [
        [
            word(pool, "name"),
            _ranges(pool.get("cpus")),
            f"{_count(pool, 'running')} of {_count(pool, 'target')}",
            *(_count(pool, key) for key in ("blocked", "idle", "workers", "pending", "inactive")),
            *(_count(pool, key) for key in ("completed", "refused")),
            _time(pool, "cpu_seconds"),
            *(_count(pool, key) for key in ("created", "culled", "wakeups")),
        ]
        for pool in pools
    ]
    return [Heading("Pools"), Table(POOLS, rows), *_reasons([pool for pool in pools if number(pool, "pending")])]


QUEUES = (
    Column("queue", right=False), Column("active"), Column("of", rank=1), Column("waiting"),
    Column("completed", rank=2), Column("failed", rank=3), Column("CPU", rank=4), Column("waits", rank=5),
    Column("runs", rank=6), Column("hogs", rank=8), Column("wake-ups", rank=10), Column("maydays", rank=9),
    Column("rescued", rank=11), Column("started", rank=12),
)  # fmt: skip


def _queues(picture: Plain) -> list[Block]:
    """The queues that have or had works."""
    used = [
        queue for queue in entries(picture, "queues") if any(number(queue, key) for key in ("started", "unfinished"))
    ]
    if not used:
        return []
    rows = [
        [
            word(queue, "name"),
            _count(queue, "active"),
            limit_of(queue) + "~" * bool(queue.get("learns")) if queue.get("max_active") is not None else "-",
            _count(queue, "inactive"),
            *(_count(queue, key) for key in ("completed", "failed")),
            _time(queue, "cpu_seconds"),
            _mean(queue, "waiting"),
            _mean(queue, "running"),
            *(_count(queue, key) for key in ("hogs", "wakeups", "maydays", "rescued", "started")),
        ]
        for queue in used
    ]
    blocks: list[Block] = [Heading("Queues"), Table(QUEUES, rows), *_reasons(used)]
    notes = []
    if any(queue.get("waiting") for queue in used):
        notes.append("waits, runs: means of the works that were measured")
    if any(queue.get("learns") for queue in used):
        notes.append("~: the limit is learned")
    return [*blocks, *([Paragraph("; ".join(notes), indent=2, tone="dim")] if notes else [])]


def _reasons(plains: Sequence[Plain]) -> list[Block]:
    return [
        Paragraph(word(plain, "why"), indent=2, mark=f"{word(plain, 'name')}: ")
        for plain in plains
        if word(plain, "why")
    ]


# ------------------------------------------------------------------------------- workers


def _workers(picture: Plain, groups: list[Group], stacks: bool) -> list[Block]:
    workers = entries(picture, "workers")
    if not workers:
        return []
    blocks: list[Block] = [Heading("Workers")]
    for group in groups[:MOST_GROUPS]:
        blocks += _group(group, stacks)
    if len(groups) > MOST_GROUPS:
        blocks.append(Paragraph(f"and workers at {counted(len(groups) - MOST_GROUPS, 'more point')}"))
    idle = [worker for worker in workers if word(worker, "state") == "idle"]
    if idle:
        blocks.append(Paragraph(f"{len(idle):,} idle: {names(idle, 8)}", tone="dim"))
    if number(picture, "workers_left_out"):
        blocks.append(Paragraph(f"and {int(number(picture, 'workers_left_out')):,} more, which the picture leaves out"))
    return blocks


def _group(group: Group, stacks: bool) -> list[Block]:
    count, first = len(group.workers), group.workers[0]
    who = names(group.workers)
    if count > 3:
        who = f"{count} workers, {who}"
    queue = f", queue {word(first, 'queue')}" if word(first, "queue") else ""
    threads = f" (thread {word(first, 'tid')})" if count == 1 and first.get("tid") else ""
    rescuer = ", the rescuer" if first.get("rescuer") else ""
    used = [number(worker, "cpu_seconds") for worker in group.workers if worker.get("cpu_seconds") is not None]
    times = so_long(group)
    if used:
        times += f", CPU {duration(max(used))}"
    state = "" if group.state in ("running", "waking") else group.state
    blocks: list[Block] = [
        Paragraph(f"{who}{threads}: {group.work or 'no work'}{queue}{rescuer}", tone="strong"),
        Paragraph(f"{does(group, 1).removeprefix('is ')}; {times}", indent=2, mark=f"{state}: " if state else ""),
    ]
    if stacks and group.frames:
        blocks.append(Code(_stack(group.frames)))
    return blocks


def _stack(frames: list[Frame]) -> list[tuple[str, str]]:
    """The calls, the innermost last. Those of libraries are less prominent."""
    lines = [(f"... {len(frames) - MOST_FRAMES} calls before", "dim")] * (len(frames) > MOST_FRAMES)
    for frame in frames[-MOST_FRAMES:]:
        library = OF_LIBRARIES.search(frame.file) is not None
        lines.append((f"{_short(frame.file)}:{frame.line} in {frame.function}", "dim" if library else ""))
        if frame.code:
            lines.append((f"    {frame.code.splitlines()[0]}", "dim" if library else "code"))
    return lines


def _short(file: str) -> str:
    """A path that leaves room for the rest of its line: its end says most, and of a library its place there."""
    library = OF_LIBRARIES.search(file)
    if library and not file.startswith("<"):
        file = file[library.end() :]
    if len(file) <= LONGEST_PATH:
        return file
    end = file[-LONGEST_PATH:]
    return f"…{end[end.find('/') :] if '/' in end else end}"


# ------------------------------------------------------------------------------- functions

FUNCTIONS = (
    Column("function", right=False), Column("queue", right=False, rank=2), Column("running"), Column("ended"),
    Column("failed", rank=1), Column("mean", rank=3), Column("time", rank=4), Column("CPU", rank=5),
)  # fmt: skip


def _functions(picture: Plain) -> list[Block]:
    functions = entries(picture, "functions")
    if not functions:
        return []
    rows = []
    for each in functions[:20]:
        ended, seconds = number(each, "ended"), number(each, "seconds")
        counts = [_count(each, key) for key in ("running", "ended", "failed")]
        mean = duration(seconds / ended) if ended else "-"
        rows.append(
            [word(each, "name"), word(each, "queue"), *counts, mean, duration(seconds), _time(each, "cpu_seconds")]
        )
    note = Paragraph("ended, failed, mean, time, CPU: estimated from the works that were measured", 2, tone="dim")
    return [Heading("Busiest functions"), Table(FUNCTIONS, rows), note]


def _count(plain: Plain, key: str) -> str:
    return f"{int(number(plain, key)):,}" if plain.get(key) is not None else "-"


def _time(plain: Plain, key: str) -> str:
    return duration(number(plain, key)) if plain.get(key) is not None else "-"


def _mean(queue: Plain, key: str) -> str:
    histogram = queue.get(key)
    if not isinstance(histogram, dict):
        return "-"
    measured = sum(count for count in histogram.get("counts") or () if isinstance(count, int))
    return duration(number(histogram, "sum") / measured) if measured else "-"


def _ranges(cpus: object) -> str:
    """The numbers in the kernel's notation: [0, 1, 2, 5] -> "0-2,5"."""
    numbers = [cpu for cpu in cpus if isinstance(cpu, int)] if isinstance(cpus, list | tuple) else []
    ranges: list[list[int]] = []
    for cpu in numbers:
        if ranges and cpu == ranges[-1][1] + 1:
            ranges[-1][1] = cpu
        else:
            ranges.append([cpu, cpu])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in ranges)
