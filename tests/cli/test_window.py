"""How far `cmwq map` runs ahead, in bytes; and that nobody waits for ever because of that."""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

from cmwq.cli.log import Log
from cmwq.cli.map import Mapping
from cmwq.cli.progress import Silent, Tally
from cmwq.cli.window import Window

ITEMS = 400
RESULT = "x" * 100_000
ROOM = 2_000_000  # of 20 results


def options(unordered: bool) -> argparse.Namespace:
    return argparse.Namespace(unordered=unordered, with_item=False, repr=False, resume=None, quiet=True)


def wait_until_no_more_may_begin(mapping: Mapping, begun: list[str], running: int) -> None:
    """Only so many run, and there was no room to read another."""
    end, window = time.monotonic() + 60, mapping.window
    while window.running > running or not window.refused:
        assert time.monotonic() < end, (len(begun), window.running)
        time.sleep(0.01)


def test_results_that_wait_for_their_turn_are_bounded_by_their_size(tmp_path: Path) -> None:
    begun: list[str] = []
    most = 0

    def call(item: str) -> str:
        nonlocal most
        begun.append(item)
        if item == "0":
            wait_until_no_more_may_begin(mapping, begun, 1)
            most = len(begun)
        return RESULT

    with open(tmp_path / "out", "wb") as out:
        items = iter([str(number) for number in range(ITEMS)])
        mapping = Mapping(options(unordered=False), call, items, out.fileno(), None, Silent(), Tally())
        mapping.window = Window(room=ROOM)
        assert mapping.run() == 0
    assert 10 < most < 60  # 20, and who ran before it was known what a result weighs
    assert len(begun) == ITEMS
    assert (tmp_path / "out").read_text() == f'"{RESULT}"\n' * ITEMS


@pytest.mark.parametrize("unordered", [False, True])
def test_results_that_wait_for_a_reader_are_bounded_by_their_size(unordered: bool) -> None:
    begun: list[str] = []

    def call(item: str) -> str:
        begun.append(item)
        return RESULT

    reading, writing = os.pipe()
    items = iter([str(number) for number in range(ITEMS)])
    mapping = Mapping(options(unordered), call, items, writing, None, Silent(), Tally())
    mapping.window = Window(room=ROOM)
    read = most = 0

    def reader() -> None:
        nonlocal read, most
        wait_until_no_more_may_begin(mapping, begun, 0)
        most = len(begun)
        while chunk := os.read(reading, 1 << 20):
            read += len(chunk)

    thread = threading.Thread(target=reader)
    thread.start()
    assert mapping.run() == 0
    os.close(writing)
    thread.join()
    os.close(reading)
    assert most < 60
    assert read == ITEMS * (len(RESULT) + 3)


@pytest.mark.parametrize("ordered", [True, False])
def test_whatever_the_sizes_nobody_waits_for_ever(ordered: bool) -> None:
    """A pool of a few workers, a writer, and sizes from nothing to many times the room, in any interleaving."""
    for seed in range(300):
        chance = random.Random(seed)
        window = Window(count=20, room=1000)
        items = {number: chance.choice([0, 1, 50, 3000]) for number in range(60)}
        sizes = {number: chance.choice([0, 1, 50, 400, 900, 5000]) for number in items}
        entered = printed = 0
        refused = False  # who reads was told that there is no room, and not yet that there is
        running: list[int] = []
        results: list[int] = []
        while printed < len(sizes):
            steps = []
            if entered < len(sizes) and len(running) < 3 and not refused:
                steps.append("read")
            if running:
                steps.append("end")
            if results and (not ordered or printed in results):
                steps.append("print")
            assert steps, (seed, printed)
            match chance.choice(steps):
                case "read":
                    refused = not window.has_room()
                    if not refused:
                        window.enter(items[entered])
                        running.append(entered)
                        entered += 1
                        assert entered - printed <= 20
                case "end":
                    number = running.pop(chance.randrange(len(running)))
                    window.result(sizes[number])
                    window.end()
                    results.append(number)
                case "print":
                    number = printed if ordered else results[0]
                    results.remove(number)
                    window.leave(1, items[number] + sizes[number])
                    printed += 1
            if window.room_again():
                assert refused, "said twice"
                refused = False
        assert (window.running, window._count, window._size) == (0, 0, 0)


def test_large_items_are_left_alone_until_there_is_room() -> None:
    window = Window(room=1000)
    assert window.has_room()
    window.enter(5000)  # however large, one must come in
    assert not window.has_room()
    window.result(0)
    window.end()
    assert not window.room_again()
    window.leave(1, 5000)
    assert window.room_again()
    assert not window.room_again()
    assert window.has_room()


class Item(str):
    """One that can be watched."""


def test_resuming_keeps_no_items_that_the_log_has(tmp_path: Path) -> None:
    log = Log(str(tmp_path / "log"), "map", "t:f")
    for number in range(300):
        if number != 7:
            log.record(number, f"item {number}", bool(number % 2), b'"result": 1')
    log.close()
    log = Log(str(tmp_path / "log"), "map", "t:f")
    alive: weakref.WeakSet[Item] = weakref.WeakSet()

    def source() -> Iterator[str]:
        for number in range(400):
            item = Item(f"item {number}")
            alive.add(item)
            yield item
            del item

    items = log.checked(source())
    gc.collect()
    assert len(alive) <= 2  # item 7, and the last one read
    expected = [None if number % 2 and number < 300 and number != 7 else f"item {number}" for number in range(400)]
    assert list(items) == expected
    log.close()


def test_what_succeeded_is_printed_with_its_item_and_result_from_the_log(tmp_path: Path) -> None:
    log = Log(str(tmp_path / "log"), "map", "t:f")
    log.record(0, "a", True, b'"result": "A"')
    log.close()
    again = Log(str(tmp_path / "log"), "map", "t:f")
    wanted = options(unordered=False)
    wanted.with_item = True
    with open(tmp_path / "out", "wb") as out:
        assert Mapping(wanted, str.upper, iter(["a", "b"]), out.fileno(), again, Silent(), Tally()).run() == 0
    again.close()
    printed = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
    assert printed == [{"item": "a", "result": "A"}, {"item": "b", "result": "B"}]
