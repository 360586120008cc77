"""H2: each kind of event, when it comes, and what it says, on the virtual clock."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from contextlib import suppress

import pytest

import cmwq
from cmwq._pool.pool import WorkerPool
from cmwq.events import Event, Kind
from cmwq.testing import Simulation
from events.recount import observed

MS = 1e-3
Scenario = Callable[[Simulation, cmwq.Runtime], None]


def is_worker(name: str) -> bool:
    return name.startswith("cmwq/") and not name.startswith("cmwq/R-")


def events_of(
    scenario: Scenario, kinds: Collection[Kind], *, sim: Simulation | None = None, config: cmwq.Config | None = None
) -> list[Event]:
    """Run it observed, with its events compared with its pools at every step; those of these kinds are returned."""
    sim = sim or Simulation()

    def main() -> None:
        with sim.runtime(config=config) as runtime:
            scenario(sim, runtime)

    with observed() as observers:
        sim.run(main)
    (observer,) = observers
    observer.look_at_rest()
    return [event for event in observer.events if event.kind in kinds]


def brief(events: Collection[Event]) -> list[tuple[float, str, str]]:
    return [(round(event.time * 1000, 6), str(event.kind), event.why) for event in events]


def test_H2_the_life_of_a_call() -> None:
    futures: list[cmwq.Future[None]] = []

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        queue = cmwq.WorkQueue("q", runtime=runtime)
        futures.append(queue.submit(sim.burn, 5 * MS))
        queue.flush()

    lasting = (Kind.QUEUED, Kind.ACTIVATED, Kind.STARTED, Kind.ENDED)
    found = events_of(scenario, lasting)
    assert brief(found) == [(0, "queued", ""), (0, "activated", ""), (0, "started", ""), (5, "ended", "")]
    for event in found:
        assert (event.pool, event.queue, event.work) == ("u0", "q", "Simulation.burn")
        assert event.item == id(futures[0])
    assert [bool(event.worker) for event in found] == [False, False, True, True]
    assert found[2].worker == found[3].worker
    assert (found[3].seconds, found[3].cpu_seconds) == (pytest.approx(5 * MS), pytest.approx(5 * MS))


@pytest.mark.parametrize("exempt", [False, True])
def test_H2_what_a_work_raised_is_told(exempt: bool) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        queue = cmwq.WorkQueue("q", cpu_intensive=exempt, runtime=runtime, on_error=lambda work, exc: None)
        assert queue.submit(fail).exception() is not None
        queue.queue(cmwq.Work(fail))
        assert queue.submit(cmwq.Work(fail)).exception() is not None
        queue.submit(int).result()
        queue.flush()

    found = events_of(scenario, [Kind.ENDED])
    assert [event.why for event in found] == [*["ZeroDivisionError"] * 3, ""]


def test_H2_what_waits_for_a_place_is_activated_later_in_order() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        queue = cmwq.WorkQueue("q", max_active=1, runtime=runtime)
        first = queue.submit(sim.burn, 1 * MS)
        rest = queue.submit_many(sim.burn, [1 * MS] * 3)
        assert rest[0].cancel()
        first.result()
        queue.flush()

    found = events_of(scenario, (Kind.QUEUED, Kind.ACTIVATED, Kind.CANCELLED))
    kinds = [event.kind for event in found]
    assert kinds[:2] == [Kind.QUEUED, Kind.ACTIVATED]
    assert kinds[2:6] == [*[Kind.QUEUED] * 3, Kind.CANCELLED]
    assert [round(event.time * 1000) for event in found[6:]] == [1, 2]
    assert [event.item for event in found[6:]] == [event.item for event in found[3:5]]


def test_H2_a_work_that_is_taken_back_is_told_by_name() -> None:
    def save() -> None: ...

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        queue = cmwq.WorkQueue("q", max_active=1, runtime=runtime)
        queue.submit(sim.burn, 1 * MS)
        work = cmwq.Work(save)
        queue.queue(work)
        assert work.cancel()

    (event,) = events_of(scenario, [Kind.CANCELLED])
    assert event.work.endswith("save")
    assert event.queue == "q"


def test_H2_a_call_that_is_taken_out_of_an_executors_queue_is_taken_back() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        for limit in (1, None):  # it waits for its place, or for a worker
            with cmwq.Executor(max_active=limit, runtime=runtime) as executor:
                for _ in range(5):
                    executor.submit(sim.burn, 1 * MS)
                if limit == 1:
                    sim.sleep(0.5 * MS)  # the first runs, and none is listed
                call = executor._work_queue.get_nowait()
                assert call is not None
                call.run()

    assert len(events_of(scenario, [Kind.CANCELLED])) == 2


def test_H2_E8_freezing_takes_places_away_and_thawing_gives_them_back() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        queue = cmwq.WorkQueue("q", freezable=True, runtime=runtime)
        for _ in range(3):
            queue.submit(sim.burn, 1 * MS)
        runtime.freeze()
        queue.submit(sim.burn, 1 * MS)
        sim.sleep(10 * MS)
        runtime.thaw()
        queue.flush()

    found = events_of(scenario, (Kind.ACTIVATED, Kind.DEACTIVATED))
    frozen = [event.item for event in found if event.kind is Kind.DEACTIVATED]
    thawed = [event.item for event in found if event.kind is Kind.ACTIVATED and event.time >= 10 * MS]
    assert len(frozen) in (2, 3)
    assert thawed[: len(frozen)] == frozen
    assert len(thawed) == len(frozen) + 1


def test_H2_E3_E8_a_work_that_follows_itself_into_a_frozen_queue_loses_its_place() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        queue = cmwq.WorkQueue("q", freezable=True, runtime=runtime)
        work = cmwq.Work(sim.sleep, 10 * MS)
        queue.queue(work)
        sim.sleep(1 * MS)
        queue.queue(work)  # a worker comes to it, and hangs it behind the running one
        sim.sleep(1 * MS)
        runtime.freeze()
        runtime.thaw()
        queue.flush()
        queue.submit(int).result()

    found = events_of(scenario, (Kind.ACTIVATED, Kind.DEACTIVATED))
    first, second, lost, again, after = found
    assert [event.kind for event in found] == ["activated", "activated", "deactivated", "activated", "activated"]
    assert second.item == lost.item == again.item != first.item
    assert after.work == "int", "a place that thaws is observed as before"


def test_H2_why_and_where_a_worker_is_blocked() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        queue = cmwq.WorkQueue("q", runtime=runtime)
        queue.submit(sim.sleep, 1 * MS).result()
        queue.submit(hinted, sim).result()
        queue.submit(lambda: queue.submit(sim.burn, 1 * MS).result()).result()

    def hinted(sim: Simulation) -> None:
        with cmwq.blocking():
            sim.host.sleep(2 * MS)

    found = events_of(scenario, [Kind.BLOCKED, Kind.RUNNING])
    assert brief(found) == [
        (0, "blocked", "asleep"),
        (1, "running", ""),
        (1, "blocked", "said"),
        (3, "running", ""),
        (3, "blocked", "said"),
        (4, "running", ""),
    ]
    assert [event.where for event in found[::2]] == [
        "",
        "",
        "waits for the result of call Simulation.burn of queue 'q'",
    ]
    assert found[0].worker == found[1].worker != ""
    assert found[0].queue == "q"


def test_H2_A9_a_hog_is_reported_to_observers_and_to_the_log(caplog: pytest.LogCaptureFixture) -> None:
    sim = Simulation(cpus=2)
    hogs: list[Event] = []

    def main() -> None:
        with cmwq.Runtime(host=sim.host, sensor=sim.sensor, cpus=(0,)) as runtime:
            queue = cmwq.WorkQueue("q", runtime=runtime)
            with cmwq.events.subscribe(kinds=["hog", "blocked"], queue=queue) as subscription:
                queue.submit(sim.burn, 10.0)
                assert queue.submit(int).result() == 0
            hogs.extend(subscription.take())
            assert queue.nr_hogs == 1

    with caplog.at_level(logging.INFO, "cmwq"):
        sim.run(main)
    assert [(str(event.kind), event.why, event.work) for event in hogs] == [
        ("hog", "", "Simulation.burn"),
        ("blocked", "hog", "Simulation.burn"),
    ]
    assert "queue 'q': Simulation.burn used the CPU for more than 10 ms" in caplog.text


def test_H2_B2_C2_C3_a_refusal_a_mayday_and_a_rescue() -> None:
    sim = Simulation(cpus=2)
    sim.host.refuse = is_worker

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        queue = cmwq.WorkQueue("q", rescuer=True, runtime=runtime)
        for _ in range(2):
            queue.submit(sim.burn, 5 * MS)
        queue.flush()

    wanted = (Kind.REFUSED, Kind.MAYDAY, Kind.RESCUED, Kind.STARTED, Kind.ENDED)
    found = events_of(scenario, wanted, sim=sim)
    assert [(when, kind) for when, kind, _ in brief(found)] == [
        (0, "refused"),
        (10, "mayday"),
        (10, "rescued"),
        (10, "started"),
        (15, "ended"),
        (15, "rescued"),
        (15, "started"),
        (20, "ended"),
    ]
    assert "refuses thread" in found[0].why
    assert {(event.queue, event.worker) for event in found[2:]} == {("q", "cmwq/R-q")}
    assert found[1].queue == "q"


def test_H2_B3_workers_are_created_and_culled() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        queue = cmwq.WorkQueue("q", runtime=runtime)
        for _ in range(10):
            queue.submit(sim.sleep, 10 * MS)
        queue.flush()
        sim.sleep(1000)

    found = events_of(scenario, (Kind.CREATED, Kind.CULLED))
    created = [event.worker for event in found if event.kind is Kind.CREATED]
    culled = [event.worker for event in found if event.kind is Kind.CULLED]
    assert len(created) >= 10
    assert len(culled) >= 7
    assert set(culled) < set(created)


@pytest.mark.parametrize(("marks", "why"), [(False, "pool"), (True, "sensor")])
def test_H2_A4_who_is_woken_for_one_that_blocked_is_told_with_the_waker(marks: bool, why: str) -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        queue = cmwq.WorkQueue("q", runtime=runtime)
        for _ in range(2):
            queue.submit(sim.sleep, 10 * MS)
        sim.sleep(5 * MS)
        assert runtime.pools()[0].nr_wakeups >= 2
        queue.flush()

    found = events_of(scenario, (Kind.WOKEN, Kind.BLOCKED), sim=Simulation(marks=marks))
    first = [event.kind for event in found].index(Kind.BLOCKED)
    woken = next(event for event in found[first:] if event.kind is Kind.WOKEN)
    assert woken.why == why
    assert woken.worker != found[first].worker


def test_H2_B4_a_worker_that_dies_is_told_with_the_reason() -> None:
    sim = Simulation()
    found: list[Event] = []
    victims: list[str] = []

    def main() -> None:
        with sim.runtime() as runtime:
            queue = cmwq.WorkQueue("q", runtime=runtime)
            queue.submit(int).result()
            (pool,) = runtime.pools()
            worker = pool.idle_list[-1]

            def die() -> None:
                victims.append(worker.name)
                raise MemoryError("no memory")

            worker.ended = die  # type: ignore[method-assign]  # between two works, and again as it recovers
            with cmwq.events.subscribe(runtime=runtime) as subscription:
                assert queue.submit(int).result() == 0
                while pool.stats.deaths == 0 or not pool.quiet_or_tell(None):
                    sim.sleep(0.1)
            found.extend(subscription.take())

    sim.run(main)
    (death,) = (event for event in found if event.kind is Kind.DIED)
    assert (death.worker, death.why) == (victims[0], "MemoryError: no memory")
    assert len([event for event in found if event.kind is Kind.COUNTS]) > 1, "an interruption is told"


def test_H2_D2_D4_cpus_leave_and_return() -> None:
    sim = Simulation(cpus=3)

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wide = cmwq.WorkQueue("wide", runtime=runtime)
        narrow = cmwq.WorkQueue("narrow", scope="cpu", runtime=runtime)
        wide.submit(int).result()
        sim.host.here = 1
        narrow.submit(int).result()
        runtime.cpu_offline(1)
        runtime.cpu_online(1)

    found = events_of(scenario, (Kind.CPU_LEFT, Kind.CPU_RETURNED), sim=sim)
    assert {(event.pool, str(event.kind), event.cpus) for event in found} == {
        ("u0", "cpu_left", (1,)),
        ("u0", "cpu_returned", (1,)),
        ("1", "cpu_left", (1,)),
        ("1", "cpu_returned", (1,)),
    }
    assert len(found) == 4
    assert [event.kind for event in found[::2]] == [Kind.CPU_LEFT, Kind.CPU_RETURNED]


def test_H2_H3_a_stall_is_told_to_observers_to_on_stall_and_to_the_log(caplog: pytest.LogCaptureFixture) -> None:
    sim = Simulation(cpus=2)
    told: list[cmwq.Stall] = []
    seen: list[Event] = []

    def main() -> None:
        with sim.runtime(watchdog=True) as runtime:
            runtime.on_stall = told.append
            queue = cmwq.WorkQueue("q", max_active=1, runtime=runtime)
            other = cmwq.WorkQueue("other", runtime=runtime)
            with (
                cmwq.events.subscribe(kinds=[Kind.STALL], runtime=runtime) as subscription,
                cmwq.events.subscribe(kinds=[Kind.STALL], queue=other) as elsewhere,
            ):
                queue.submit(sim.sleep, 100)
                queue.submit(int).result()
                sim.sleep(5)
            seen.extend(subscription.take())
            assert not elsewhere.take()

    with caplog.at_level(logging.WARNING, "cmwq"):
        sim.run(main)
    assert [event.stall for event in seen] == told
    assert [stall.over for stall in told] == [False, True]
    assert [(event.queue, event.pool) for event in seen] == [("q", "u0")] * 2
    assert seen[0].seconds >= 30
    assert "max_active is 1" in seen[0].why
    assert len(caplog.records) == 2


class Interrupted(BaseException):
    """As Ctrl-C."""


def test_H2_F10_after_an_interruption_the_numbers_are_told_anew() -> None:
    sim = Simulation()
    found: list[Event] = []

    def main() -> None:
        with sim.runtime(watchdog=False) as runtime:
            queue = cmwq.WorkQueue("q", runtime=runtime)
            queue.submit(int).result()
            (pool,) = runtime.pools()
            while not pool.quiet_or_tell(None):
                sim.sleep(1 * MS)
            with cmwq.events.subscribe(runtime=runtime) as subscription:
                (first,) = subscription.take()
                assert first.counts == counts_of(pool)
                with suppress(Interrupted), pool.lock:
                    pool.nr_running = 17
                    raise Interrupted
                found.extend(subscription.take())
                assert found[-1].counts == counts_of(pool)
                place = queue._only
                assert place is not None
                assert place.observed
                queue.submit(int).result()
            assert {Kind.QUEUED, Kind.ACTIVATED, Kind.STARTED, Kind.ENDED} <= {e.kind for e in subscription.take()}

    sim.run(main)
    assert [event.kind for event in found] == [Kind.COUNTS]
    assert found[0].counts is not None
    assert (found[0].counts.running, found[0].counts.started, found[0].counts.completed) == (0, 1, 1)


def counts_of(pool: WorkerPool) -> cmwq.events.Counts:
    return cmwq.events.Counts(
        workers=len(pool.workers), idle=len(pool.idle_list), running=pool.nr_running, blocked=pool.nr_blocked,
        pending=len(pool.worklist), inactive=0, started=pool.count_started(), completed=pool.nr_completed,
    )  # fmt: skip


def test_H2_an_observed_place_takes_every_diversion_and_one_that_is_not_takes_none() -> None:
    sim = Simulation()

    def main() -> None:
        with sim.runtime() as runtime:
            before, queue = cmwq.WorkQueue("before", runtime=runtime), cmwq.WorkQueue("q", runtime=runtime)
            before.submit(int).result()
            with cmwq.events.subscribe(queue=queue, kinds=["started"]) as subscription:
                queue.submit(int).result()  # its place is made now
                assert diversions(before) == (False,) * 4
                assert diversions(queue) == (True,) * 4
                (pool,) = runtime.pools()
                assert not any(worker.served is queue._only for worker in list(pool.workers))
            assert diversions(queue) == (False,) * 4
            with cmwq.events.subscribe(runtime=runtime, kinds=["blocked", "stall"]):
                assert diversions(queue) == (False,) * 4, "none of these is of a work"
                queue.submit(int).result()
            assert len(subscription.take()) == 1

    sim.run(main)


def diversions(queue: cmwq.WorkQueue) -> tuple[bool, bool, bool, bool]:
    place = queue._only
    assert place is not None
    gate = place.gate and not place.figures.chooses  # it is also shut for the work that is to be measured
    return place.observed, gate, place.attends, place.careful
