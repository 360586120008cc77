"""A work may be observed, recorded for a trace, and measured for the picture: one of these, or all at once (H1, H2)."""

from __future__ import annotations

import itertools
import json
import sys
import threading
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pictures
import pytest
from conftest import HANG, until

import cmwq
from cmwq._pool.worker import current_worker
from cmwq._workqueue.measured import Measured
from cmwq._workqueue.pwq import PoolWorkQueue
from observing import pictures as dumped
from observing import standin

WAYS = [set(ways) for number in range(3) for ways in itertools.combinations(("observed", "recorded"), number)]


def fail() -> None:
    raise LookupError


def burn(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def view_of(runtime: cmwq.Runtime, name: str) -> cmwq.QueueView:
    return next(view for view in runtime.snapshot().queues if view.name == name)


def sampled(runtime: cmwq.Runtime) -> int:
    view = view_of(runtime, "q")
    return 0 if view.running is None else view.running.sampled


def shown() -> tuple[str, str]:
    """The worker that calls this, and the queue that its thread is named after."""
    worker = current_worker()
    assert worker is not None
    return worker.name, worker.shown[0]


def slices(path: Path) -> list[dict[str, Any]]:
    return [event for event in json.loads(path.read_bytes())["traceEvents"] if event.get("cat") == "work"]


def place_of(queue: cmwq.WorkQueue) -> PoolWorkQueue:
    (place,) = queue.places()
    return place


def gate_of(place: PoolWorkQueue) -> tuple[bool, bool]:
    """The gate, and whether it has to be shut because a work is to be chosen, at one moment."""
    with place.pool.lock:
        return place.gate, place.figures.chooses


def choose(place: PoolWorkQueue) -> None:
    """The next work is measured."""
    with place.pool.lock:
        place.figures.chooses, place.figures.skip = True, 0
        place.settle_gate()


def rest(place: PoolWorkQueue) -> None:
    """No work is measured from now on."""
    with place.pool.lock:
        place.figures.chooses = False
        place.figures.due = place.pool.choose_at = sys.float_info.max
        place.settle_gate()


# ----------------------------------------------------------------------------------- all at once


@pytest.mark.parametrize("ways", WAYS, ids=lambda ways: "-".join(sorted(ways)) or "neither")
def test_H1_H2_each_work_is_measured_recorded_and_observed_as_asked(
    universe: cmwq.Runtime, tmp_path: Path, ways: set[str]
) -> None:
    """Twenty works in turn, every second one measured: so measured ones follow others on the same worker."""
    queue, file = cmwq.WorkQueue("q", max_active=1, runtime=universe), tmp_path / "t.json"
    queue.submit(int).result(HANG)
    queue.flush(HANG)
    before = view_of(universe, "q")
    assert before.running is not None
    subscription = None
    with ExitStack() as stack:
        if "observed" in ways:
            subscription = stack.enter_context(cmwq.events.subscribe(queue=queue))
        if "recorded" in ways:
            stack.enter_context(cmwq.trace(file, runtime=universe, every=True))
        universe.freeze()  # so that they follow one another without a pause
        futures = []
        for number in range(20):
            place = place_of(queue)
            rest(place)
            if number % 2 == 0:
                choose(place)
            futures.append(queue.submit(fail) if number % 4 == 2 else queue.submit(abs, number))
        universe.thaw()
        for number, future in enumerate(futures):
            assert isinstance(future.exception(HANG), LookupError) == (number % 4 == 2)
        queue.flush(HANG)
    after = view_of(universe, "q")
    assert after.running is not None
    assert after.waiting is not None
    assert after.running.sampled - before.running.sampled == 10
    assert after.waiting.sampled == after.running.sampled
    assert (after.completed - before.completed, after.failed) == (20, 5)
    by_name = {function.name: function for function in universe.snapshot().functions}
    assert (by_name["fail"].failed, by_name["abs"].failed) == (by_name["fail"].ended, 0)
    if subscription is not None:
        told = subscription.take()
        for kind in ("queued", "activated", "started", "ended"):
            assert sum(event.kind.value == kind for event in told) == 20, kind
        assert sum(event.why == "LookupError" for event in told) == 5
    if "recorded" in ways:
        recorded = slices(file)
        assert sum(event["name"] == "abs" for event in recorded) == 15
        assert sum(event["name"] == "fail" and "LookupError" in json.dumps(event) for event in recorded) == 5


def test_H1_in_a_flood_that_is_recorded_works_are_measured_as_well(universe: cmwq.Runtime, tmp_path: Path) -> None:
    """The shortest way to the recorder leads past no work that was chosen."""
    queue, number = cmwq.WorkQueue("q", runtime=universe), 5_000
    with cmwq.trace(tmp_path / "t.json", runtime=universe, every=True):
        rounds = 0
        while rounds < 50 and (rounds < 3 or sampled(universe) < 3):
            rounds += 1
            for future in [queue.submit(len, "x") for _ in range(number)]:
                future.result(HANG)
        queue.flush(HANG)
    view = view_of(universe, "q")
    assert view.running is not None
    assert 3 <= view.running.sampled < rounds * number / 10
    assert view.running.sampled == (view.waiting or view.running).sampled


def test_H1_of_works_that_are_recorded_and_measured_by_turns_none_is_lost(universe: cmwq.Runtime) -> None:
    """A trace begins and ends, and a subscription too, while works run and are measured."""
    queue, stop, number = cmwq.WorkQueue("q", runtime=universe), threading.Event(), 0

    def come_and_go() -> None:
        while not stop.is_set():
            with cmwq.trace(runtime=universe), cmwq.events.subscribe(queue=queue, limit=10):
                pass

    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            for future in [queue.submit(fail if number % 3 else int) for number in range(300)]:
                future.exception(HANG)
            number += 300
    finally:
        stop.set()
        thread.join()
    queue.flush(HANG)
    view = view_of(universe, "q")
    assert (view.started, view.completed, view.failed) == (number, number, number * 2 // 3)
    place = place_of(queue)
    assert not place.observed
    assert place.recorder is None
    gate, chooses = gate_of(place)
    assert gate == chooses
    universe.check_invariants()


def test_H1_a_work_of_a_source_is_recorded_and_observed_and_not_measured(
    universe: cmwq.Runtime, tmp_path: Path
) -> None:
    done: list[int] = []
    with cmwq.WorkQueue("served", runtime=universe) as queue:
        with cmwq.events.subscribe(queue=queue), cmwq.trace(tmp_path / "t.json", runtime=universe, every=True):
            queue.serve([partial(done.append, number) for number in range(5)])
            until(lambda: len(done) == 5)
            queue.flush(HANG)
        assert view_of(universe, "served").completed == 5
    assert sum(event["name"] == "list.append" for event in slices(tmp_path / "t.json")) == 5


# ----------------------------------------------------------------------------------- the gate


def test_H2_the_gate_is_shut_for_each_reason_and_for_no_other(universe: cmwq.Runtime) -> None:
    with cmwq.WorkQueue("q", runtime=universe) as queue:
        queue.submit(int).result(HANG)
        queue.flush(HANG)
        place = place_of(queue)
        rest(place)
        assert gate_of(place) == (False, False)
        with cmwq.events.subscribe(queue=queue):
            assert gate_of(place) == (True, False)
            assert not place.is_shut()
        assert gate_of(place) == (False, False)
        with cmwq.trace(runtime=universe):
            assert gate_of(place) == (True, False)
            assert not place.is_shut()
        assert gate_of(place) == (False, False)
        drain: object = object()
        queue.begin_drain(drain)
        assert gate_of(place) == (True, False)
        assert place.is_shut()
        with pytest.raises(cmwq.QueueClosed):
            queue.submit(int)
        queue.end_drain(drain)
        assert gate_of(place) == (False, False)
        choose(place)
        assert gate_of(place) == (True, True)
        future = queue.submit(int)
        assert type(future.phase) is Measured
        assert gate_of(place) == (False, False)
        future.result(HANG)


def test_H2_of_a_batch_that_is_refused_nobody_hears(universe: cmwq.Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """The queue begins to drain between two looks at the same batch."""
    with cmwq.WorkQueue("q", runtime=universe) as queue:
        queue.submit(int).result(HANG)
        place, looks = place_of(queue), itertools.count()
        monkeypatch.setattr(PoolWorkQueue, "is_shut", lambda self: next(looks) >= 2)
        monkeypatch.setattr(queue, "_check_admitted", refuse)
        with cmwq.events.subscribe(queue=queue, kinds=["queued"]) as subscription:
            looks = itertools.count()
            with pytest.raises(cmwq.QueueClosed):
                queue.submit_many(abs, range(5))
            assert [event for event in subscription.take() if event.kind.value == "queued"] == []
        monkeypatch.undo()
        with place.pool.lock:
            place.settle_gate()
        queue.flush(HANG)


def refuse(*_: object, **__: object) -> None:
    raise cmwq.QueueClosed("as a test wants it")


def test_F10_the_gate_is_mended(universe: cmwq.Runtime) -> None:
    """An interruption between the change of a reason and `settle_gate` leaves a gate that does not fit."""
    with cmwq.WorkQueue("q", runtime=universe) as queue:
        queue.submit(int).result(HANG)
        queue.flush(HANG)
        place = place_of(queue)
        with place.pool.lock:
            place.figures.chooses, place.gate = True, False
            place.pool.mend()
            assert place.gate


# ----------------------------------------------------------------------------------- CPU time


def test_H1_the_CPU_time_of_workers_that_rest_is_charged(universe: cmwq.Runtime) -> None:
    """Each picture is taken while the only worker is idle, and it never goes on to another queue."""
    with cmwq.WorkQueue("q", runtime=universe) as queue:
        for number in range(1, 4):
            queue.submit(burn, 0.02).result(HANG)
            queue.flush(HANG)
            until(lambda: all(worker.state == "idle" for worker in universe.snapshot().workers))
            assert view_of(universe, "q").cpu_seconds >= 0.02 * number


def test_H1_B5_the_CPU_time_of_an_exempt_queue_is_its_own(universe: cmwq.Runtime) -> None:
    """A work follows itself (E3) from a queue to an exempt one (A8) and back, so one worker executes all three."""
    with (
        cmwq.WorkQueue("plain", runtime=universe) as plain,
        cmwq.WorkQueue("exempt", cpu_intensive=True, runtime=universe) as exempt,
    ):
        seen: list[tuple[str, str]] = []

        def step() -> None:
            seen.append(shown())
            if len(seen) < 3:
                (exempt if len(seen) == 1 else plain).queue(work)
                worker = current_worker()
                assert worker is not None
                until(lambda: worker.item is not None and worker.item.follower is not None)
            else:
                burn(0.1)

        def used() -> dict[str, float]:
            return {view.name: view.cpu_seconds for view in universe.snapshot(stacks=True).queues}

        work = cmwq.Work(step)
        plain.submit(int).result(HANG)
        rest(place_of(plain))
        before = used()
        plain.queue(work)
        until(lambda: len(seen) == 3)
        plain.flush(HANG)
        assert [queue for _, queue in seen] == ["plain", "exempt", "plain"]
        assert len({name for name, _ in seen}) == 1
        after = used()
        assert after["exempt"] - before["exempt"] < 0.05
        assert after["plain"] - before["plain"] >= 0.1


# ----------------------------------------------------------------------------------- the contract


def names(value: dict[str, Any]) -> set[str]:
    return set(value)


def test_H1_pictures_that_tests_make_by_hand_have_what_real_ones_have(universe: cmwq.Runtime) -> None:
    with cmwq.WorkQueue("q", runtime=universe) as queue:
        queue.submit(time.sleep, 0.001).result(HANG)
        queue.flush(HANG)
        real = json.loads(json.dumps(universe.snapshot(stacks=True).to_dict()))
    for made in (pictures, dumped, standin):
        shown = made.picture()
        assert names(shown) == names(real), made
        assert names(shown["memory"]) == names(real["memory"]), made
        assert names(made.pool()) == names(real["pools"][0]), made
        assert names(made.queue("q")) == names(real["queues"][0]), made
    assert (
        names(pictures.worker("w")) == names(dumped.worker(1)) == names(standin.worker()) == names(real["workers"][0])
    )
    assert names(pictures.function("f")) == names(standin.function()) == names(real["functions"][0])
    histogram = names(real["queues"][0]["running"])
    assert names(pictures.histogram(0.1)) == names(standin.histogram(1)) == histogram
