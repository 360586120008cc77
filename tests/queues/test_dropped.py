"""What was accepted is done, also where nobody references its queue, its future or its executor any more. A queue and
its places refer to one another, so only the collector drops them, at some later moment.
"""

from __future__ import annotations

import concurrent.futures as cf
import gc
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from conftest import HANG, Gate, until

import cmwq

Ran = list[int]


@pytest.fixture
def ran() -> Ran:
    return []


@pytest.fixture(autouse=True)
def _nothing_by_chance() -> Iterator[None]:
    """Only `gc.collect` collects."""
    gc.disable()
    yield
    gc.enable()


def queued_while_frozen(runtime: cmwq.Runtime, ran: Ran, gate: Gate) -> None:
    runtime.freeze()
    queue = cmwq.WorkQueue("f", freezable=True, runtime=runtime)
    queue.submit(ran.append, 1)
    queue.submit_many(ran.append, [2, 3])
    queue.queue(cmwq.Work(ran.append, 4))


def frozen_while_queued(runtime: cmwq.Runtime, ran: Ran, gate: Gate) -> None:
    queue = cmwq.WorkQueue("f", freezable=True, ordered=True, runtime=runtime)
    first = queue.submit(gate)
    gate.await_arrivals(1)
    for number in (1, 2, 3, 4):
        queue.submit(ran.append, number)
    with pytest.raises(cmwq.CmwqTimeout):
        runtime.freeze(0.01)
    thawed = cmwq.WorkQueue("other", runtime=runtime)
    freezing = thawed.submit(runtime.freeze)
    (place,) = queue.places()
    until(lambda: place.frozen)
    gate.open.set()
    first.result(HANG)
    freezing.result(HANG)


def used_before_it_was_frozen(runtime: cmwq.Runtime, ran: Ran, gate: Gate) -> None:
    queue = cmwq.WorkQueue("f", freezable=True, runtime=runtime)
    queue.submit(int).result(HANG)
    runtime.freeze()
    for number in (1, 2, 3, 4):
        queue.submit(ran.append, number)


FREEZES = [queued_while_frozen, frozen_while_queued, used_before_it_was_frozen]


@pytest.mark.parametrize("freezes", FREEZES)
def test_E8_works_of_a_frozen_queue_that_was_dropped_run_once_it_thaws(
    freezes: Callable[[cmwq.Runtime, Ran, Gate], None], universe: cmwq.Runtime, ran: Ran, gate: Gate
) -> None:
    freezes(universe, ran, gate)
    gc.collect()
    assert ran == []
    universe.thaw()
    until(lambda: sorted(ran) == [1, 2, 3, 4])


@pytest.mark.parametrize("freezes", FREEZES)
def test_G3_they_run_before_the_runtime_is_closed(
    freezes: Callable[[cmwq.Runtime, Ran, Gate], None], ran: Ran, gate: Gate
) -> None:
    with cmwq.Runtime() as runtime:
        freezes(runtime, ran, gate)
        gc.collect()
    assert sorted(ran) == [1, 2, 3, 4]


def test_E8_a_frozen_queue_that_was_dropped_is_gone_after_the_thaw(
    universe: cmwq.Runtime, ran: Ran, gate: Gate
) -> None:
    queued_while_frozen(universe, ran, gate)
    universe.thaw()
    until(lambda: len(ran) == 4)

    def gone() -> bool:
        gc.collect()
        return universe.queues() == []

    until(gone)


@pytest.mark.parametrize("busy", [False, True])
def test_E8_a_frozen_queue_that_was_dropped_is_kept_only_while_works_wait(gate: Gate, *, busy: bool) -> None:
    """busy: more works of others are listed than these queues have."""
    with cmwq.Runtime(max_workers=2) as runtime:
        other = cmwq.WorkQueue("other", runtime=runtime)
        if busy:
            other.submit(gate), other.submit(gate)
            gate.await_arrivals(2)
            other.submit_many(abs, range(10))
        runtime.freeze()

        def drops() -> None:
            for number in range(100):
                with cmwq.WorkQueue("f", freezable=True, runtime=runtime) as queue:
                    for call in [queue.submit(int), *queue.submit_many(int, range(number % 3))]:
                        assert call.cancel()

        drops()

        def gone() -> bool:
            gc.collect()
            return runtime.queues() == [other]

        until(gone)
        gate.open.set()


def test_E1_works_without_room_run(universe: cmwq.Runtime, ran: Ran, gate: Gate) -> None:
    def drops() -> None:
        queue = cmwq.WorkQueue("one", max_active=1, runtime=universe)
        queue.submit(gate)
        gate.await_arrivals(1)
        queue.submit(ran.append, 1)

    drops()
    gc.collect()
    gate.open.set()
    until(lambda: ran == [1])


def test_E6_delayed_works_run(universe: cmwq.Runtime, ran: Ran) -> None:
    def drops() -> None:
        cmwq.WorkQueue("later", runtime=universe).queue_delayed(cmwq.DelayedWork(ran.append, 1), 0.05)

    drops()
    gc.collect()
    until(lambda: ran == [1])


def test_E12_a_source_is_asked(universe: cmwq.Runtime, ran: Ran, gate: Gate) -> None:
    calls = [lambda: ran.append(2), lambda: ran.append(1), gate]

    def drops() -> None:
        queue = cmwq.WorkQueue("served", max_active=1, runtime=universe)
        queue.serve(lambda: calls.pop() if calls else None)
        gate.await_arrivals(1)

    drops()
    gc.collect()
    gate.open.set()
    until(lambda: ran == [1, 2])


def test_C1_works_for_which_no_thread_could_be_had_run(
    universe: cmwq.Runtime, ran: Ran, monkeypatch: pytest.MonkeyPatch
) -> None:
    spawn = universe.host.spawn

    def refuse(*_: object) -> None:
        raise cmwq.ThreadLimit("no")

    def drops() -> None:
        monkeypatch.setattr(universe.host, "spawn", refuse)
        cmwq.Executor(max_workers=1, runtime=universe).submit(ran.append, 1)
        cmwq.WorkQueue("q", runtime=universe).submit(ran.append, 2)

    drops()
    gc.collect()
    monkeypatch.setattr(universe.host, "spawn", spawn)
    until(lambda: sorted(ran) == [1, 2])


def test_a_map_with_a_buffer_keeps_the_thread_of_its_executor(universe: cmwq.Runtime) -> None:
    prepared: list[int] = []

    def results() -> Iterator[threading.Thread]:
        executor = cmwq.Executor(max_workers=1, initializer=prepared.append, initargs=(1,), runtime=universe)
        return executor.map(lambda _: threading.current_thread(), range(5), buffersize=1)

    threads = []
    for thread in results():
        threads.append(thread)
        gc.collect()
        time.sleep(0.02)  # whoever would end has the time
    assert (len(set(threads)), prepared) == (1, [1])


class Finalised:
    """A cycle: the collector clears weak references to what it refers to, then calls the finaliser."""

    def __init__(self, finaliser: Callable[[], object]) -> None:
        self.finaliser, self.me = finaliser, self

    def __del__(self) -> None:
        self.finaliser()


@pytest.mark.parametrize("used", [False, True])
def test_G3_what_a_finaliser_delays_is_known_to_the_end(ran: Ran, *, used: bool) -> None:
    def drops() -> None:
        queue = cmwq.WorkQueue("later", delayed="run", runtime=runtime)
        if used:
            queue.submit(int).result(HANG)
        Finalised(lambda: queue.queue_delayed(cmwq.DelayedWork(ran.append, 1), 10 * HANG))

    with cmwq.Runtime() as runtime:
        drops()
        gc.collect()
        assert ran == []
    assert ran == [1]


def drop_what_a_finaliser_queues_to(runtime: cmwq.Runtime, ran: Ran, *, used: bool) -> None:
    queue = cmwq.WorkQueue("f", freezable=True, runtime=runtime)
    if used:
        queue.submit(int).result(HANG)
    Finalised(lambda: queue.submit(ran.append, 1))


@pytest.mark.parametrize("used", [False, True])
def test_E8_what_a_finaliser_queues_in_a_frozen_queue_runs_after_the_thaw(
    universe: cmwq.Runtime, ran: Ran, *, used: bool
) -> None:
    drop_what_a_finaliser_queues_to(universe, ran, used=used)
    universe.freeze()
    gc.collect()
    gc.collect()
    assert ran == []
    assert [queue.name for queue in universe.queues()] == ["f"]
    universe.thaw()
    until(lambda: ran == [1])


def test_E8_a_queue_that_a_finaliser_used_first_of_all_is_frozen_as_others(
    universe: cmwq.Runtime, ran: Ran, gate: Gate
) -> None:
    def drops() -> None:
        queue = cmwq.WorkQueue("f", freezable=True, max_active=1, runtime=universe)
        Finalised(lambda: (queue.submit(gate), queue.submit(ran.append, 1)))

    drops()
    gc.collect()
    gate.await_arrivals(1)
    (queue,) = universe.queues()
    (place,) = queue.places()
    freezing = cmwq.WorkQueue("other", runtime=universe).submit(universe.freeze)
    until(lambda: place.frozen)
    gate.open.set()
    freezing.result(HANG)
    assert ran == []
    universe.thaw()
    until(lambda: ran == [1])


def test_E8_a_frozen_queue_that_a_finaliser_saved_before_the_thaw_goes_on_after_it(
    universe: cmwq.Runtime, ran: Ran
) -> None:
    saved: list[cmwq.WorkQueue] = []

    def drops() -> None:
        queue = cmwq.WorkQueue("f", freezable=True, runtime=universe)
        queue.submit(int).result(HANG)
        Finalised(lambda: saved.append(queue))

    drops()
    universe.freeze()
    gc.collect()
    universe.thaw()
    saved[0].submit(ran.append, 1).result(HANG)
    assert ran == [1]


def test_E11_a_finalisers_work_of_a_frozen_queue_lends_its_place_after_the_thaw(
    universe: cmwq.Runtime, ran: Ran
) -> None:
    def drops() -> None:
        queue = cmwq.WorkQueue("f", freezable=True, max_active=1, runtime=universe)
        queue.submit(int).result(HANG)

        def waits() -> None:
            cf.wait([queue.submit(ran.append, 1)])

        Finalised(lambda: queue.submit(waits))

    drops()
    universe.freeze()
    gc.collect()
    universe.thaw()
    until(lambda: ran == [1])


@pytest.mark.parametrize("used", [False, True])
def test_G3_what_a_finaliser_queues_in_a_frozen_queue_is_done_by_the_end(ran: Ran, *, used: bool) -> None:
    with cmwq.Runtime() as runtime:
        drop_what_a_finaliser_queues_to(runtime, ran, used=used)
        runtime.freeze()
        gc.collect()
    assert ran == [1]
