"""What the records of a trace become: no slice is malformed, whatever is missing, and nothing that happened is left
out."""

from __future__ import annotations

import io
import json
from typing import Any

from cmwq._pool.events import Kind
from cmwq._pool.ring import Place, Queued, Ran
from cmwq._workqueue.recording import Happened
from cmwq._workqueue.watchdog import Stall
from cmwq.observing.perfetto import Records, Thread, write

HERE = Place("u0", "mail")
WORKER = "cmwq/u0:1"
MAIN = 7


def happened(kind: Kind | None, time: float, **more: Any) -> Happened:
    """pool u0, one of whose workers runs."""
    given = {
        "kind": kind, "time": time, "pool": "u0", "worker": "", "queue": "", "work": "", "item": 0, "why": "",
        "where": "", "cpus": (), "stall": None, "running": 1, "blocked": 0, "idle": 1, "pending": 0, "completed": 0,
        "records": True, "cpu_seconds": None,
    }  # fmt: skip
    return Happened(**{**given, **more})


def ran(began: float, ended: float, item: int = 1, **more: Any) -> Ran:
    return Ran(began, ended, more.get("worker", WORKER), HERE, more.get("work", "send"), item, more.get("raised"))


def written(**parts: Any) -> list[dict[str, Any]]:
    empty: dict[str, Any] = {"queued": [], "ran": [], "happened": []}
    given = {"pid": 1, "process": "test", "begin": 1.0, "now": 9.0, "epoch": 0.0, **empty, **parts}
    out = io.StringIO()
    number = write(out, Records(**given))
    events: list[dict[str, Any]] = json.loads(out.getvalue())["traceEvents"]
    assert len(events) == number
    return events


def spans(events: list[dict[str, Any]], category: str) -> list[tuple[str, float, float]]:
    return [(e["name"], e["ts"], e["ts"] + e["dur"]) for e in events if e["ph"] == "X" and e["cat"] == category]


def blocked(begin: float, end: float | None, item: int = 1, why: str = "lock") -> list[Happened]:
    both = [happened(Kind.BLOCKED, begin, worker=WORKER, item=item, why=why)]
    if end is not None:
        both.append(happened(Kind.RUNNING, end, worker=WORKER, item=item))
    return both


def test_nothing_recorded_is_a_file_all_the_same() -> None:
    assert [event["ph"] for event in written()] == ["M"]


def test_a_blocked_span_ends_with_its_work_at_the_latest() -> None:
    events = written(ran=[ran(2.0, 3.0)], happened=blocked(2.5, 3.5))
    assert spans(events, "blocked") == [("waits for a lock", 2.5e6, 3.0e6)]
    events = written(ran=[ran(2.0, 3.0)], happened=blocked(2.5, None))
    assert spans(events, "blocked") == [("waits for a lock", 2.5e6, 3.0e6)]


def test_a_blocked_span_whose_work_is_not_kept_any_more_is_left_out() -> None:
    assert spans(written(ran=[ran(4.0, 5.0, item=2)], happened=blocked(2.5, 2.8)), "blocked") == []
    assert spans(written(ran=[ran(2.0, 3.0, item=2)], happened=blocked(2.5, 2.8)), "blocked") == []


def test_a_name_with_any_digits_is_a_track() -> None:
    """A superscript two is a digit, and no number; and a number may be longer than `int` reads."""
    names = ["cmwq/R-area in m²", "cmwq/u0:9", "cmwq/u0:10", "cmwq/R-٣", "cmwq/R-" + "7" * 5_000]
    events = written(ran=[ran(2.0, 3.0, worker=name) for name in names])
    tracks = [event["args"]["name"] for event in events if event["name"] == "thread_name"]
    assert set(names) < set(tracks)
    assert tracks.index("cmwq/u0:9") < tracks.index("cmwq/u0:10")


def test_a_hog_is_not_blocked() -> None:
    assert spans(written(ran=[ran(2.0, 3.0)], happened=blocked(2.5, 2.8, why="hog")), "blocked") == []


def test_a_work_that_runs_now_is_blocked_until_now() -> None:
    events = written(unfinished=[ran(2.0, 9.0)], happened=blocked(2.5, None, why="asleep"))
    assert spans(events, "work") == [("send", 2.0e6, 9.0e6)]
    assert spans(events, "blocked") == [("waits in the system", 2.5e6, 9.0e6)]


def test_works_of_a_worker_never_overlap() -> None:
    events = written(ran=[ran(2.0, 3.0), ran(2.999999, 4.0, item=2)])
    assert spans(events, "work") == [("send", 2.0e6, 2999999.0), ("send", 2999999.0, 4.0e6)]


def test_an_item_whose_number_is_used_again_gets_the_arrow_of_its_own_queueing() -> None:
    queued = [Queued(time, 1, MAIN, HERE) for time in (1.5, 3.5)]
    events = written(queued=queued, ran=[ran(2.0, 3.0), ran(4.0, 5.0)], threads={MAIN: Thread("MainThread", 1)})
    arrows = [(event["ph"], event["ts"]) for event in events if event["ph"] in "sf"]
    assert arrows == [("s", 1.5e6), ("f", 2.0e6), ("s", 3.5e6), ("f", 4.0e6)]


def test_a_work_whose_queueing_is_not_kept_has_no_arrow_and_one_that_never_ran_neither() -> None:
    assert not [e for e in written(ran=[ran(2.0, 3.0)], queued=[Queued(3.5, 1, MAIN, HERE)]) if e["ph"] in "sf"]
    again = written(ran=[ran(2.0, 3.0), ran(4.0, 5.0)], queued=[Queued(1.5, 1, MAIN, HERE)])
    assert [event["ts"] for event in again if event["ph"] in "sf"] == [1.5e6, 2.0e6]


def test_works_queued_one_after_the_other_are_queued_in_one_slice() -> None:
    times = [1.5, 1.50001, 1.50002, 2.5]
    events = written(queued=[Queued(time, number, MAIN, HERE) for number, time in enumerate(times)])
    assert [name for name, *_ in spans(events, "queueing")] == ["queue 3 works", "queue a work"]
    (name,) = [e["args"]["name"] for e in events if e["name"] == "thread_name"]
    assert name == f"a thread that has ended ({MAIN})"


def test_queueing_between_two_works_of_a_worker_does_not_reach_into_the_next() -> None:
    queued = [Queued(3.0000001, 5, MAIN, HERE)]
    events = written(
        queued=queued, ran=[ran(2.0, 3.0), ran(3.0000004, 4.0, item=2)], threads={MAIN: Thread(WORKER, 12)},
        workers={WORKER: 12},
    )  # fmt: skip
    ((_, begin, end),) = spans(events, "queueing")
    assert (round(begin, 3), round(end, 3)) == (3000000.1, 3000000.4)
    assert {e["tid"] for e in events if e["ph"] == "X"} == {12}


def test_whatever_happens_to_a_pool_is_an_instant_on_its_track_or_the_workers() -> None:
    stall = Stall("u0", 30.0, 4, False, "all 2 wait for a lock", ())
    goes_on = Stall("u0", 31.0, 4, True, "", ())
    what = [
        happened(Kind.CREATED, 1.0, worker=WORKER),
        happened(Kind.HOG, 2.0, worker=WORKER, work="crunch"),
        happened(Kind.REFUSED, 3.0, why="no thread"),
        happened(Kind.MAYDAY, 3.5, queue="mail"),
        happened(Kind.RESCUED, 4.0, worker="cmwq/R-mail", queue="mail"),
        happened(Kind.CPU_LEFT, 5.0, cpus=(3,)),
        happened(Kind.CPU_RETURNED, 5.5, cpus=(2, 3)),
        happened(Kind.STALL, 6.0, stall=stall),
        happened(Kind.STALL, 6.5, stall=goes_on),
        happened(Kind.LOST, 6.6),
        happened(Kind.CULLED, 7.0, worker=WORKER),
        happened(Kind.DIED, 8.0, worker=WORKER, why="MemoryError"),
    ]
    events = written(happened=what)
    names = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert list(names.values()) == ["pool u0", WORKER, "cmwq/R-mail"]
    assert [(names[e["tid"]], e["name"], e["ts"] / 1e6) for e in events if e["ph"] == "i"] == [
        (WORKER, "worker created", 1.0),
        (WORKER, "hog: crunch", 2.0),
        ("pool u0", "a thread was refused", 3.0),
        ("pool u0", "mayday: mail", 3.5),
        ("cmwq/R-mail", "the rescuer begins a work", 4.0),
        ("pool u0", "CPUs left: 3", 5.0),
        ("pool u0", "CPUs returned: 2, 3", 5.5),
        ("pool u0", "stall", 6.0),
        ("pool u0", "goes on after a stall", 6.5),
        ("pool u0", "events were lost", 6.6),
        (WORKER, "worker culled", 7.0),
        (WORKER, "worker ended", 8.0),
    ]
    (report,) = [event["args"]["report"] for event in events if event["name"] == "stall"]
    assert "all 2 wait for a lock" in report


def test_a_counter_is_told_when_it_changes_and_the_cpu_as_a_share() -> None:
    looks = [
        happened(None, 1.0, cpu_seconds=0.0),
        happened(None, 2.0, cpu_seconds=1.5),
        happened(None, 3.0, running=2, pending=9, cpu_seconds=1.5),
    ]
    events = written(happened=looks)
    assert [(e["ts"] / 1e6, e["args"]) for e in events if e["ph"] == "C" and e["name"] == "u0"] == [
        (1.0, {"running": 1, "blocked": 0, "idle": 1, "pending": 0}),
        (3.0, {"running": 2, "blocked": 0, "idle": 1, "pending": 9}),
    ]
    assert [(e["ts"] / 1e6, e["args"]["used"]) for e in events if e["name"] == "CPUs"] == [
        (1.0, 1.5), (2.0, 0.0), (3.0, 0),
    ]  # fmt: skip


def test_a_flood_is_a_span_that_says_how_many_works_it_had() -> None:
    looks = [
        happened(None, 1.0, completed=100),
        happened(None, 2.0, completed=500, records=False),
        happened(None, 3.0, completed=2_500),
        happened(None, 4.0, completed=9_500, records=False),
        happened(None, 5.0, completed=9_900, records=False),
    ]
    assert spans(written(happened=looks), "flood") == [
        ("2,000 works, not recorded one by one", 2.0e6, 3.0e6),
        ("400 works, not recorded one by one", 4.0e6, 5.0e6),
    ]


def test_tracks_stand_in_the_order_of_their_numbers() -> None:
    names = ["cmwq/u0:10", "cmwq/1:0", "cmwq/u0:9", "cmwq/u0:2H"]
    events = written(ran=[ran(2.0, 3.0, worker=name) for name in names], happened=[happened(None, 1.0)])
    shown = [event["args"]["name"] for event in events if event["name"] == "thread_name"]
    assert shown == ["pool u0", "cmwq/u0:9", "cmwq/u0:10", "cmwq/1:0", "cmwq/u0:2H"]


def test_any_name_is_written_as_json() -> None:
    name = 'a "quoted"\n\\name\u2028 \udc80'
    ((shown, *_),) = spans(written(ran=[ran(2.0, 3.0, work=name)]), "work")
    assert shown == name
