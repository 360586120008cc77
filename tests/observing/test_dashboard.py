"""The dashboard's memory: how processes are asked, what is kept of them, and what browsers are told.

Processes are stood in for by `standin`, which has the functions of `cmwq.observing.client`.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import HANG, until

from cmwq.observing.dashboard import sources, timeline, watch, watches
from cmwq.observing.dashboard.history import ALL, COLUMNS, POOLS, RANGES, History
from cmwq.observing.dashboard.message import QUEUES, TEXT, message, percentiles, told_apart
from cmwq.observing.dashboard.rates import Rates
from cmwq.observing.dashboard.timeline import Timeline
from cmwq.observing.dashboard.verdict import current_stalls, verdict
from cmwq.observing.dashboard.watches import Watches
from observing.standin import SHORT, Machine, Program, function, histogram, picture, pool, queue, worker

pytest_plugins = ("observing.watching",)


def first(seen: Watches) -> watch.Watch:
    return seen.all()[0]


def told(seen: watch.Watch) -> dict[str, Any]:
    """What a browser is told of it."""
    found: dict[str, Any] = json.loads(seen.encoded()[1])
    return found


# ----------------------------------------------------------------------------------- asking


def test_a_process_is_asked_once_an_interval_however_many_look() -> None:
    program = Program(1)
    seen = Watches(sources.Sockets(Machine(program)), 3600.0, int, look=0)
    seen.start()
    try:
        until(lambda: first(seen).state is watch.State.LIVE)
        for _ in range(50):
            first(seen).encoded()
            first(seen).history(0)
            first(seen).timeline()
        assert program.asked == [False]
    finally:
        seen.close()


def test_stacks_are_asked_for_once_for_all_who_want_to_see_them(watched: Callable[..., Watches]) -> None:
    program = Program(1, now=picture(workers=[worker()]))
    seen = first(watched(program, look=0))
    until(lambda: seen.state is watch.State.LIVE)
    assert not any(program.asked), "nobody wanted stacks"
    answers: list[Any] = []
    askers = [threading.Thread(target=lambda: answers.append(seen.stacks(HANG))) for _ in range(20)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join(HANG)
    assert [answer["workers"][0]["stack"] for answer in answers] == [['  File "shop.py", line 7, in fetch\n']] * 20
    assert 1 <= sum(program.asked) <= 3, "twenty wanted them within a second"


def test_the_last_picture_stays_when_a_process_ends(watched: Callable[..., Watches]) -> None:
    program = Program(2**22 + 1, now=picture(queues=[queue("orders", completed=77)]))
    seen = first(watched(program))
    until(lambda: seen.state is watch.State.LIVE)
    program.gone = True
    until(lambda: seen.state is watch.State.ENDED)
    assert told(seen)["queues"][0]["completed"] == 77
    assert told(seen)["said"] == "The process has ended."


def test_a_process_that_does_not_answer_says_why_and_is_asked_again(
    watched: Callable[..., Watches], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "AGAIN", SHORT)
    monkeypatch.setattr(watch, "is_gone", lambda target: False)
    program = Program(1)
    seen = first(watched(program, look=0))
    until(lambda: seen.state is watch.State.LIVE)
    program.silent = "It has not answered for 5 s; its GIL may be held."
    until(lambda: seen.state is watch.State.SILENT)
    assert told(seen)["said"] == program.silent
    program.silent = ""
    until(lambda: seen.state is watch.State.LIVE)


def test_a_process_that_owes_an_answer_is_not_shown_as_live(
    watched: Callable[..., Watches], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "OVERDUE", SHORT)
    program = Program(1)
    seen = first(watched(program, look=0))
    until(lambda: seen.state is watch.State.LIVE)
    goes_on = program.hold()
    try:

        def is_silent() -> bool:
            seen.check()
            return seen.state is watch.State.SILENT

        until(is_silent)
        assert "owed an answer" in told(seen)["said"]
    finally:
        goes_on.set()
    until(lambda: seen.state is watch.State.LIVE)


def test_a_picture_that_makes_no_sense_harms_nothing(
    watched: Callable[..., Watches], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "AGAIN", SHORT)
    monkeypatch.setattr(watch, "is_gone", lambda target: False)
    program = Program(1, now=picture(queues=[queue(completed=5)]))
    seen = first(watched(program, look=0))
    until(lambda: seen.state is watch.State.LIVE)
    for nonsense in ({"pools": [{}]}, {"workers": [{"name": "x"}]}, {"queues": 7}, {"stalls": [7]}, {"time": "soon"}):
        program.nonsense = nonsense
        until(lambda: seen.state is watch.State.SILENT)
        assert "can't be used" in told(seen)["said"]
        assert told(seen)["queues"][0]["completed"] == 5, "the last good one stays"
        program.nonsense = {}
        until(lambda: seen.state is watch.State.LIVE)


def test_a_process_that_starts_again_under_the_same_command_is_found(watched: Callable[..., Watches]) -> None:
    machine = Machine(Program(2**22 + 1), Program(2**22 + 2, command=["python", "other.py"]))
    seen = watched(machine=machine)
    until(lambda: all(each.state is watch.State.LIVE for each in seen.all()))
    before = first(seen).history(0)["times"]
    machine.programs[0].gone = True
    machine.programs.append(Program(2**22 + 3))
    until(lambda: first(seen).target.pid == 2**22 + 3 and first(seen).state is watch.State.LIVE)
    assert told(first(seen))["restarts"] == 1
    assert len(seen.all()) == 2, "it took the place of the one that ended"
    assert first(seen).history(0)["times"][: len(before)] == before, "what was kept goes on"


def test_a_process_that_ended_while_others_were_looked_for_has_not_started_again(
    watched: Callable[..., Watches],
) -> None:
    program = Program(2**22 + 1)
    seen = watched(program)
    until(lambda: first(seen).state is watch.State.LIVE)
    target = first(seen).target
    program.gone = True
    until(lambda: first(seen).state is watch.State.ENDED)
    seen._find([target])
    assert told(first(seen))["restarts"] == 0


def test_processes_that_have_ended_are_forgotten_in_the_end(
    watched: Callable[..., Watches], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watches, "ENDED", 2)
    programs = [Program(2**22 + number, command=[f"program{number}"]) for number in range(5)]
    seen = watched(*programs)
    until(lambda: len(seen.all()) == 5 and all(each.state is watch.State.LIVE for each in seen.all()))
    for program in programs[:4]:
        program.gone = True
    until(lambda: len(seen.all()) == 3)
    assert programs[4].pid in [each.target.pid for each in seen.all()]


def test_no_more_processes_are_watched_than_there_is_memory_for(
    watched: Callable[..., Watches], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watches, "WATCHED", 3)
    monkeypatch.setattr(watches, "is_gone", lambda target: False)
    seen = watched(*(Program(number, command=[str(number)]) for number in range(1, 8)))
    assert len(seen.all()) == 3
    assert seen.overview()["left_out"] == 4


# ----------------------------------------------------------------------------------- what is kept


def values(number: float) -> tuple[float, ...]:
    return (number,) * len(COLUMNS)


def test_history_keeps_means_and_of_waiting_works_the_most() -> None:
    history = History(1.0)
    for tenth in range(10):
        history.add(1000 + tenth / 10, {ALL: values(float(tenth))})
    read = history.rings[0].read()
    assert read["times"] == [1000]
    assert read["pools"][ALL]["running"] == [4.5]
    assert read["pools"][ALL]["pending"] == [9.0]


def test_time_without_pictures_is_a_gap_and_not_zero() -> None:
    history = History(1.0)
    history.add(1000, {ALL: values(3)})
    history.add(1003, {ALL: values(4)})
    assert history.rings[0].read()["pools"][ALL]["idle"] == [3.0, None, None, 4.0]


def test_a_pool_that_a_picture_does_not_hold_has_a_gap_there() -> None:
    history = History(1.0)
    history.add(1000, {"u0": values(3), ALL: values(3)})
    history.add(1600, {ALL: values(3)})
    history.add(1601, {"u0": values(5), ALL: values(3)})
    read = history.rings[0].read()
    assert read["times"][0] == 1600
    assert read["pools"]["u0"]["running"] == [None, 5.0]


def test_history_of_days_keeps_a_fixed_number_of_points() -> None:
    history = History(1.0)
    for second in range(0, 3 * 86400, 5):
        history.add(1e9 + second, {ALL: values(second), "u0": values(1)})
    for ring, (seconds, size) in zip(history.rings, RANGES, strict=True):
        read = ring.read()
        assert len(read["times"]) <= size
        assert read["times"][-1] - read["times"][0] >= (size - 10) * seconds
        assert all(len(column) == len(read["times"]) for pool in read["pools"].values() for column in pool.values())


def test_history_tells_a_limited_number_of_pools_apart() -> None:
    history = History(1.0)
    history.add(1000, {f"u{number}": values(1) for number in range(300)} | {ALL: values(300)})
    assert len(history.rings[0].read()["pools"]) == POOLS + 1
    assert history.rings[0].read()["pools"][ALL]["running"] == [300.0]


def test_where_the_clock_was_set_back_what_was_later_is_dropped() -> None:
    """By an hour, at a time of which nothing is kept any more, and by some seconds."""
    history, kept = History(1.0), Timeline()
    begin = 1.8e9
    for second in range(100):
        history.add(begin + second, {ALL: values(1)})
        kept.add(begin + second, [worker(since=0.5 + second)])
    for back in (begin - 3600, begin - 3590):
        for second in range(800 if back < begin - 3595 else 20):
            history.add(back + second, {ALL: values(9)})
            kept.add(back + second, [worker(since=0.5 + second, item=2)])
        for ring in history.rings:
            read = ring.read()
            assert read["times"][-1] == (back + second) // ring.seconds * ring.seconds
            assert len(read["times"]) <= ring.size
        read = kept.read()
        times = [time for time, _ in read["sums"]]
        assert times == sorted(times)
        assert times[-1] == back + second
        assert len(times) <= timeline.KEPT + 1
        assert max(read["segments"]["end"]) == back + second
    assert set(history.rings[0].read()["pools"][ALL]["running"]) == {9.0}


def segments(kept: Timeline) -> list[tuple[Any, ...]]:
    read = kept.read()
    columns, words = read["segments"], read["words"]
    rows = read["rows"]
    return [
        (rows[row], begin, end, words[state], words[work])
        for row, begin, end, state, work in zip(
            *(columns[key] for key in ("row", "begin", "end", "state", "work")), strict=True
        )
    ]


def test_a_segment_begins_when_its_work_did_and_grows_while_it_is_seen() -> None:
    kept = Timeline()
    (seen,) = kept.add(100.0, [worker(since=7.0)])
    assert (seen.begin, seen.fresh) == (93.0, True)
    (seen,) = kept.add(101.0, [worker(since=8.0)])
    assert not seen.fresh
    assert segments(kept) == [("cmwq/u0:0", 93.0, 101.0, "running", "fetch")]


def test_a_segment_changes_with_the_state_and_with_the_work() -> None:
    kept = Timeline()
    kept.add(100.0, [worker(since=1.0)])
    kept.add(101.0, [worker(since=2.0, state="blocked")])
    kept.add(102.0, [worker(since=0.25, work="store", item=2)])
    kept.add(103.0, [worker(state="idle", since=0.5)])
    kept.add(104.0, [worker(since=0.5, work="store", item=3)])
    assert [each[1:] for each in segments(kept)] == [
        (99.0, 100.0, "running", "fetch"),
        (100.0, 101.0, "blocked", "fetch"),
        (101.75, 102.0, "running", "store"),
        (103.5, 104.0, "running", "store"),
    ]


def test_the_next_work_with_the_same_number_is_another_segment() -> None:
    kept = Timeline()
    kept.add(100.0, [worker(since=5.0)])
    (seen,) = kept.add(101.0, [worker(since=0.5)])
    assert seen.fresh


def test_the_timeline_keeps_what_goes_on_and_forgets_what_is_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeline, "SEGMENTS", 100)
    kept = Timeline()
    for second in range(2000):
        hours = worker("long", since=float(second), work="all_day", item=1)
        short = [worker(f"w{n}", since=0.1, work="short", item=second * 10 + n) for n in range(10)]
        kept.add(5000.0 + second, [hours, *short])
    found = segments(kept)
    assert len(found) <= 100
    assert ("long", 5000.0, 6999.0, "running", "all_day") in found
    assert min(end for _, _, end, _, _ in found) >= 6999 - timeline.KEPT


def test_rows_of_workers_that_are_long_gone_are_forgotten() -> None:
    kept = Timeline()
    for number in range(500):
        kept.add(1000.0 + 10 * number, [worker(f"w{number}", since=1.0)])
    assert len(kept.read()["rows"]) <= timeline.KEPT / 10 + 1


def test_rates_are_those_of_the_last_five_seconds() -> None:
    rates = Rates()
    for second in range(20):
        rates.add(float(second), {"works": (100.0 * second if second < 10 else 1000.0 + 7 * (second - 10),)})
    assert rates.of("works") == (7.0,)
    assert rates.of("unknown") is None


def test_a_counter_that_went_down_has_no_rate() -> None:
    rates = Rates()
    rates.add(1.0, {"works": (50.0,)})
    assert rates.of("works") is None
    rates.add(2.0, {"works": (3.0,)})
    assert rates.of("works") is None


# ----------------------------------------------------------------------------------- what is told


def test_percentiles_are_those_of_the_histogram() -> None:
    found = percentiles(histogram(0, 0, 50, 0, 50))
    assert found is not None
    assert found["p50"] == pytest.approx(0.01)  # the upper end of 1 ms to 10 ms
    assert 0.1 < found["p95"] < 1.0
    assert not found["p99_beyond"]
    beyond = percentiles(histogram(*[0] * 7, 3))
    assert beyond is not None
    assert (beyond["p50"], beyond["p50_beyond"]) == (100.0, True)
    assert percentiles(histogram()) is None
    assert percentiles(None) is None


def test_the_verdict_of_each_kind_of_picture() -> None:
    def tone(**changes: Any) -> str:
        return verdict(picture(**changes))["tone"]

    assert tone() == "rest"
    assert tone(pools=[pool(running=1, blocked=2)]) == "good"
    assert tone(pools=[pool(running=2, pending=5, why="2 of 2 that may run do")]) == "busy"
    assert tone(queues=[queue(inactive=5, why="all 8 places are taken")]) == "busy"
    assert tone(frozen=True) == "busy"
    assert tone(stalls=[{"time": 1, "over": False, "text": "pool u0: works wait", "pool": "u0", "queue": ""}]) == "bad"


def test_the_verdict_says_why_no_more_workers_were_started() -> None:
    pools = [pool("u0", running=2, blocked=1, pending=5, why="as many run as may"), pool("u1", pending=1, why="no RAM")]
    said = verdict(picture(pools=pools))
    assert said["title"] == "6 works wait for a worker"
    assert said["text"] == "2 workers run, 1 is blocked. Pool u0: as many run as may (1 more below)."


def test_a_stall_that_is_over_is_no_stall() -> None:
    def stall(time: float, over: bool, place: str = "u0") -> dict[str, Any]:
        return {"time": time, "over": over, "text": "…", "pool": place, "queue": ""}

    assert current_stalls(picture(stalls=[stall(1, False), stall(2, True)])) == []
    assert len(current_stalls(picture(stalls=[stall(1, True), stall(2, False), stall(3, False, "u1")]))) == 2


def test_pools_and_queues_of_one_name_are_told_apart() -> None:
    shown = told_apart(picture(pools=[pool("u0"), pool("u0H", nice=-20)], queues=[queue("a"), queue("a"), queue("a")]))
    assert [each["name"] for each in shown["pools"]] == ["u0", "u0H"]
    assert [each["name"] for each in shown["queues"]] == ["a", "a (2)", "a (3)"]


def test_thousands_of_queues_of_one_name_are_told_apart_in_linear_time() -> None:
    names = ["a"] * 2_000 + ["a (3)", "b (2)", "b", "b", "b"]
    steps = 0

    def count_lines(frame: Any, event: str, arg: object) -> Any:
        nonlocal steps
        steps += event == "line"
        return count_lines

    before = sys.gettrace()
    sys.settrace(count_lines)
    try:
        shown = told_apart(picture(queues=[{"name": name} for name in names]))
    finally:
        sys.settrace(before)
    found = [each["name"] for each in shown["queues"]]
    assert len(set(found)) == len(names)
    assert found[:3] == ["a", "a (2)", "a (3)"]
    assert found[-5:] == ["a (3) (2)", "b (2)", "b", "b (3)", "b (4)"]
    assert steps < 20 * len(names)


def test_a_message_is_bounded_whatever_the_picture_holds() -> None:
    huge = picture(
        queues=[queue(f"q{number}") for number in range(5000)],
        command=["x" * 10_000] * 1000,
        stalls=[{"time": 1, "over": False, "text": "x" * 10**6, "pool": "u0", "queue": ""}],
    )
    found = message(huge, Rates(), [])
    assert len(found["queues"]) == QUEUES
    assert found["queues_left_out"] == 5000 - QUEUES
    assert len(found["stalls"][0]["text"]) < TEXT + 100
    assert len(json.dumps(found)) < 500_000


def test_what_a_picture_of_another_version_lacks_is_no_error() -> None:
    old = {"time": 5.0, "pools": [{"name": "u0"}], "queues": [{"name": "q"}], "version": 99}
    found = message(told_apart(old), Rates(), [])
    assert found["understood"] is False
    assert found["totals"]["running"] == 0
    assert message(told_apart(picture(stall_after=7.0)), Rates(), [])["stall_after"] == 7.0


def test_rates_and_workers_reach_the_browser(watched: Callable[..., Watches]) -> None:
    program = Program(1, now=picture(functions=[function()], workers=[worker("a"), worker("b", "blocked")]))
    seen = first(watched(program, look=0))
    until(lambda: told(seen).get("queues", [{}])[0].get("rates", {}).get("completed") == 0.0)
    shown = told(seen)
    words, workers = shown["words"], shown["workers"]
    assert [words[place] for place in workers["state"]] == ["running", "blocked"]
    assert workers["name"] == ["a", "b"]
    assert shown["sums"] == {"system": [1, 1]}
    assert shown["functions"][0]["rates"]["ended"] == 0.0


# ----------------------------------------------------------------------------------- recordings


def test_a_recording_is_read_however_it_is_laid_out(tmp_path: Path) -> None:
    path = tmp_path / "pictures.json"
    pictures = [picture(time=float(number)) for number in range(3)]
    path.write_text("\n".join([json.dumps(pictures[0]), json.dumps(pictures[1], indent=2), json.dumps(pictures[2])]))
    assert list(sources.pictures_in(path)) == pictures


def test_a_recording_is_read_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "PIECE", 100)
    path = tmp_path / "pictures.json"
    path.write_text("".join(json.dumps({"time": number, "text": "ü" * 300}) for number in range(5)))
    assert [each["time"] for each in sources.pictures_in(path)] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("text", ["[1, 2]", "hello", '{"time": 1}\n{"time": 2', '{"time": 1} x'])
def test_what_is_no_recording_is_refused_with_a_sentence(tmp_path: Path, text: str) -> None:
    path = tmp_path / "pictures.json"
    path.write_text(text)
    with pytest.raises(sources.NoPicture, match=str(path)):
        list(sources.pictures_in(path))


@pytest.mark.parametrize(
    "text",
    ['{"a":' * 100_000, '{"pid": null}', '{"pid": "x"}', '{"pid": 1, "command": null}', '{"pid": ' + "9" * 5_000],
)
def test_an_odd_file_ends_in_a_sentence_and_in_no_traceback(tmp_path: Path, text: str) -> None:
    path = tmp_path / "pictures.json"
    path.write_text(text)
    with pytest.raises(sources.NoPicture, match=str(path)):
        sources.Recording(path)


def test_a_recording_whose_times_are_none_is_played(tmp_path: Path) -> None:
    path = tmp_path / "pictures.json"
    path.write_text('{"pid": 1, "time": null} {"pid": 1, "time": "x"}')
    recording = sources.Recording(path)
    player = recording.connect(recording.targets()[0])
    assert [player.picture(False)["time"] for _ in range(2)] == [None, "x"]


def test_a_recording_that_was_cut_off_ends_with_its_last_whole_picture(tmp_path: Path) -> None:
    path = tmp_path / "pictures.json"
    path.write_text(json.dumps(picture(time=1000.0)) + json.dumps(picture(time=1000.01))[:-9])
    seen = Watches(sources.Recording(path), 1.0, int, look=0)
    seen.start()
    try:
        until(lambda: first(seen).state is watch.State.OVER)
        assert "ends in the middle of a picture" in told(first(seen))["said"]
        assert told(first(seen))["time"] == 1000.0
    finally:
        seen.close()


def test_a_recording_is_played_to_its_end_and_its_last_picture_stays(tmp_path: Path) -> None:
    path = tmp_path / "pictures.json"
    path.write_text("".join(json.dumps(picture(time=1000.0 + number / 100)) for number in range(5)))
    seen = Watches(sources.Recording(path), 1.0, int, look=0)
    seen.start()
    try:
        until(lambda: first(seen).state is watch.State.OVER)
        assert told(first(seen))["time"] == 1000.04
        assert "last picture" in told(first(seen))["said"]
    finally:
        seen.close()
