"""Traces, as Perfetto's own trace processor reads them: it finds nothing wrong, and in them what happened."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from conftest import until

import cmwq

from .perfetto_sql import ERRORS, ask

WORKS = """
    select thread.name, thread.tid, count(*) from slice
    join thread_track on slice.track_id = thread_track.id join thread using (utid)
    where slice.category = 'work' group by utid
"""
ARROWS = """
    select o.name, i.name, count(*) from flow join slice o on o.id = slice_out join slice i on i.id = slice_in
    where i.ts >= o.ts group by 1, 2
"""
BLOCKED = """
    select parent.name, slice.name, count(*) from slice join slice parent on slice.parent_id = parent.id
    where slice.category = 'blocked' group by 1, 2
"""
COUNTERS = """
    select track.name, count(*), max(value) from counter join process_counter_track track
    on counter.track_id = track.id group by 1
"""
INSTANTS = "select name, count(*) from slice where dur = 0 and category not in ('work', 'blocked') group by 1"
OUTSIDE = "select count(*) from slice join slice p on slice.parent_id = p.id where slice.ts + slice.dur > p.ts + p.dur"


@pytest.fixture
def traced(tmp_path: Path) -> tuple[Path, Counter[tuple[str, int]]]:
    """A trace of works that wait for works, block, compute and raise; and how many ran on which thread."""
    ran: Counter[tuple[str, int]] = Counter()

    def note() -> None:
        thread = threading.current_thread()
        ran[thread.name, thread.native_id or 0] += 1

    def asks() -> None:
        note()
        queue.submit(answers, cmwq.current_work()).result()

    def answers(asker: object) -> None:
        note()
        until(lambda: asker in queue.blocked())  # so that each of them waits, also one that is held up before it does
        time.sleep(0.002)

    def fails() -> None:
        note()
        raise ValueError

    path = tmp_path / "t.json"
    with cmwq.Runtime() as runtime, cmwq.WorkQueue("asked", runtime=runtime, max_active=3) as queue:
        with cmwq.trace(path, runtime=runtime, every=True):
            futures = [queue.submit(asks) for _ in range(50)] + [queue.submit(fails) for _ in range(10)]
            for future in futures:
                future.exception()
            queue.submit_many(lambda _: note(), range(500))
            queue.flush()
    return path, ran


def test_the_trace_processor_finds_what_happened_and_no_errors(
    traced: tuple[Path, Counter[tuple[str, int]]],
) -> None:
    path, ran = traced
    answers = ask(path, WORKS, ARROWS, BLOCKED, COUNTERS, INSTANTS, OUTSIDE)
    assert answers[ERRORS] == []
    assert {(name, tid): number for name, tid, number in answers[WORKS]} == ran
    assert sum(ran.values()) == 610
    arrows = {(begin.rsplit(".")[-1], end.rsplit(".")[-1]): number for begin, end, number in answers[ARROWS]}
    assert arrows["asks", "answers"] == 50
    assert sum(arrows.values()) == 610
    blocked = {(work.rsplit(".")[-1], why.partition(" of ")[0]): n for work, why, n in answers[BLOCKED]}
    assert blocked["asks", "waits for the result"] == 50
    assert {name for name, *_ in answers[COUNTERS]} >= {"u0 running", "u0 blocked", "u0 idle", "u0 pending"}
    assert dict(answers[INSTANTS])["worker created"] >= 4
    assert answers.number(OUTSIDE) == 0


def test_a_trace_that_is_broken_is_found_out(traced: tuple[Path, Counter[tuple[str, int]]]) -> None:
    """Otherwise the checks above would prove nothing."""
    path, _ = traced
    whole = json.loads(path.read_text())
    works = [event for event in whole["traceEvents"] if event.get("cat") == "work"]
    del works[7]["ts"]
    path.write_text(json.dumps(whole))
    assert ask(path)[ERRORS] != [], "an event without a time"
    del works[7]["ph"]
    works[7]["ts"] = works[6]["ts"]
    path.write_text(json.dumps(whole))
    assert ask(path)[ERRORS] != [], "an event of no kind"
    text = path.read_text()
    path.write_text(text[: len(text) // 2])
    assert ask(path)[ERRORS] != [], "half a file"


def test_a_trace_of_the_default_limit_loads(tmp_path: Path) -> None:
    """Its size is bounded by the ring's, however long it records."""
    number = 150_000
    path = tmp_path / "t.json.gz"
    with cmwq.Runtime() as runtime, cmwq.WorkQueue("flood", runtime=runtime) as queue:
        with cmwq.trace(path, runtime=runtime, limit=100_000, every=True):
            for _ in range(number // 1_000):
                queue.submit_many(lambda _: None, range(1_000))
            queue.flush()
    answers = ask(path, WORKS, "select count(*) from flow", "select count(*) from slice where category = 'lost'")
    assert answers[ERRORS] == []
    assert sum(number for *_, number in answers[WORKS]) == 100_000
    assert 99_900 <= answers.number("select count(*) from flow") <= 100_000, "the oldest may lack their beginnings"
    assert answers.number("select count(*) from slice where category = 'lost'") == 1
