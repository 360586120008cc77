"""What `cmwq top` shows, as numbers and words, without a terminal."""

from __future__ import annotations

import re
from typing import Any

import pictures
import pytest

from cmwq.observing import top_numbers as top
from cmwq.observing.top_numbers import FUNCTIONS, POOLS, QUEUES, STALLS, VIEWS, WORKERS, History, View


def history(*found: dict[str, Any]) -> History:
    past = History()
    for each in found:
        past.add(each)
    return past


def written(view: View, past: History) -> list[dict[str, str]]:
    return [{column.key: column.words(row) for column in view.columns} for row in view.rows(past)]


def two_queues(*, seconds: float = 2.0, **later: Any) -> History:
    first = pictures.queue("mail", completed=10, started=12, cpu_seconds=1.0, waiting=pictures.histogram(5.0))
    return history(
        pictures.picture(uptime=100.0, queues=[first]),
        pictures.picture(uptime=100.0 + seconds, queues=[{**first, **later}]),
    )


def test_rates_are_what_was_added_in_the_time_between_two_pictures() -> None:
    (row,) = written(QUEUES, two_queues(completed=31, cpu_seconds=2.0, started=33))
    assert (row["started"], row["rate"], row["share"], row["cpu_seconds"]) == ("33", "10.5", "50%", "2.00s")


def test_the_columns_of_the_kernels_monitor_are_there() -> None:
    titles = [column.title for column in QUEUES.columns if not column.from_width]
    assert [each for each in titles if each in ("total", "infl", "CPUtime", "CPUitsv", "CMW", "mayday", "rescued")] == [
        "total", "infl", "CPUtime", "CPUitsv", "CMW", "mayday", "rescued"
    ]  # fmt: skip
    past = two_queues(started=15, active=3, hogs=4, wakeups=5, maydays=6, rescued=7, cpu_seconds=61.0)
    (row,) = written(QUEUES, past)
    assert [row[key] for key in ("started", "active", "cpu_seconds", "hogs", "wakeups", "maydays", "rescued")] == [
        "15", "3", "1m01s", "4", "5", "6", "7"
    ]  # fmt: skip


def test_before_a_second_picture_there_are_no_rates_and_blanks_instead() -> None:
    past = history(pictures.picture(queues=[pictures.queue("mail", completed=10)], pools=[pictures.pool()]))
    assert {row["rate"] for row in [*written(QUEUES, past), *written(POOLS, past)]} == {""}


def test_a_counter_that_fell_has_no_rate() -> None:
    assert written(QUEUES, two_queues(completed=3))[0]["rate"] == ""


def test_what_is_not_known_is_blank_and_not_zero() -> None:
    (row,) = written(QUEUES, two_queues(cpu_seconds=None, waiting=None, failed=None))
    assert (row["cpu_seconds"], row["share"], row["waiting_mean"], row["failed"]) == ("", "", "", "")


def test_means_are_those_of_the_works_that_were_measured_lately() -> None:
    past = two_queues(waiting=pictures.histogram(5.0, 0.1, 0.3))
    assert written(QUEUES, past)[0]["waiting_mean"] == "200ms"
    assert written(QUEUES, two_queues())[0]["waiting_mean"] == "5.00s"  # none lately: all so far


def test_a_picture_of_the_same_moment_is_no_second_one() -> None:
    past = two_queues(completed=31)
    past.add(past.picture)
    assert written(QUEUES, past)[0]["rate"] == "10.5"
    assert len(past.total) == 2


def test_queues_of_one_name_are_told_apart() -> None:
    pair = [pictures.queue("mail", completed=number) for number in (10, 100)]
    later = [{**queue, "completed": queue["completed"] + number} for queue, number in zip(pair, (1, 5), strict=True)]
    past = history(pictures.picture(uptime=1.0, queues=pair), pictures.picture(uptime=2.0, queues=later))
    assert [row["rate"] for row in written(QUEUES, past)] == ["1.0", "5.0"]


def test_a_function_says_how_much_of_its_time_it_waits() -> None:
    past = history(pictures.picture(functions=[
        pictures.function("fetch", ended=10, seconds=20.0, cpu_seconds=5.0),
        pictures.function("fetch", queue="other", ended=0),
    ]))  # fmt: skip
    assert [(row["mean"], row["waits"]) for row in written(FUNCTIONS, past)] == [("2.00s", "75%"), ("", "")]


def test_the_plots_have_the_sums_of_all_pools() -> None:
    pools = [pictures.pool("c0", running=1, blocked=2, idle=3, pending=4, inactive=5)] * 2
    assert history(pictures.picture(pools=pools)).total[-1] == (2, 4, 6, 8, 10)


def test_idle_workers_come_after_those_that_work_whatever_their_time() -> None:
    workers = [pictures.worker(name, state=state, since=since, tid=tid) for tid, (name, state, since) in enumerate(
        [("a", "idle", 100.0), ("b", "blocked", 5.0), ("c", "running", 7.0), ("d", "idle", 200.0)])]  # fmt: skip
    rows = WORKERS.rows(history(pictures.picture(workers=workers)))
    assert [row["name"] for row in top.arranged(rows, "since", True, "")] == ["c", "b", "d", "a"]


def test_rows_are_sorted_both_ways_and_blanks_are_last() -> None:
    rows = [{"name": name, "share": share} for name, share in (("a", 1), ("b", None), ("c", 3))]
    assert [row["name"] for row in top.arranged(rows, "share", True, "")] == ["c", "a", "b"]
    assert [row["name"] for row in top.arranged(rows, "share", False, "")] == ["a", "c", "b"]


def test_words_are_looked_for_in_all_texts_of_a_row() -> None:
    rows = [{"name": "a", "work": "shop.Fetch"}, {"name": "fetcher", "work": ""}, {"name": "b", "work": "x"}]
    assert [row["name"] for row in top.arranged(rows, "name", False, "fetch")] == ["a", "fetcher"]


def test_every_view_can_be_written_of_every_story_and_sorted_by_every_column() -> None:
    story, past = pictures.Story(), History()
    for _ in range(5):
        past.add(story.next())
    stalls = [
        {"time": 1_700_000_000.0, "over": False, "text": "pool u0: 3 works wait\n  more", "pool": "u0", "queue": ""}
    ]
    past.add({**story.next(), "stalls": stalls})
    for view in VIEWS:
        rows = view.rows(past)
        assert rows, view.name
        for column in view.columns:
            assert len(top.arranged(rows, column.key, True, "")) == len(rows)
            for row in rows:
                text = column.words(row)
                assert not column.width or column.left or len(text) <= column.width, (column.title, text)
    assert STALLS.rows(past)[0]["key"]


@pytest.mark.parametrize("number", [0, 9, 99_999, 100_000, 123_456, 999_499, 1_234_567, 1e9, 1.5e12, None])
def test_counts_take_at_most_six_characters(number: float | None) -> None:
    assert len(top.count(number)) <= 6
    assert len(top.rate(number)) <= 6


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(None, ""), (0.0, "0.0ms"), (0.0032, "3.2ms"), (0.35, "350ms"), (0.9996, "1.00s"), (9.994, "9.99s"),
     (9.999, "10.00s"), (59.99, "60.0s"), (61, "1m01s"), (3599, "59m59s"), (3600, "1h00m"), (12 * 3600 + 60, "12h01m"),
     (86400 * 5 + 7200, "5d02h")],
)  # fmt: skip
def test_times_are_short(seconds: float | None, said: str) -> None:
    assert top.duration(seconds) == said
    assert len(said) <= 6


def test_a_name_cannot_move_the_cursor() -> None:
    evil = "\x1b[2J\r\nname\x07\u202e"
    past = history(pictures.picture(queues=[pictures.queue(evil)], workers=[pictures.worker(evil, waits_for=evil)]))
    for view in (QUEUES, WORKERS):
        for row in written(view, past):
            assert all(text.isprintable() for text in row.values())


def test_a_small_plot_shows_every_number_above_zero() -> None:
    assert top.spark([0, 1, 500, 1000], 1000) == " ▁▄█"


def test_cpus_are_said_as_ranges() -> None:
    assert top.cpus([0, 1, 2, 8, 10, 11]) == "0-2,8,10-11"


def test_the_width_of_the_queues_columns_leaves_room_for_a_name_in_80_characters() -> None:
    fixed = sum(column.width + 1 for column in QUEUES.columns if not column.from_width)
    assert 80 - 1 - fixed >= 10


def test_every_column_explains_itself() -> None:
    for view in VIEWS:
        assert re.fullmatch(r"[a-z]+", view.name)
        assert all(column.about for column in view.columns)
        assert view.sorted_by in {column.key for column in view.columns}
