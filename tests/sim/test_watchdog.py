"""The watchdog (H3, D1) on the virtual clock: who is reported, when, how often, and when nobody looks any more."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest

import cmwq
from cmwq._workqueue.snapshot import MAX_STALLS
from cmwq.testing import SimHost, Simulation
from cmwq.testing.sim_host import SimTimer

MS = 1e-3


def refuse_workers(host: SimHost) -> None:
    host.refuse = lambda name: name.startswith("cmwq/") and not name.startswith("cmwq/R-")


def refuse_all_but_the_first(host: SimHost) -> None:
    host.refuse = lambda name: name.startswith("cmwq/") and not name.endswith(":0")


def all_may(host: SimHost) -> None:
    host.refuse = lambda name: False


def test_H3_a_pool_that_stalls_is_reported_once_and_once_more_when_it_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Threads are refused from the start; after 100 s they are to be had. No other work is reported."""
    sim = Simulation(cpus=2)
    told: list[tuple[float, cmwq.Stall]] = []

    def main() -> None:
        with sim.runtime(watchdog=True) as runtime:
            runtime.on_stall = lambda stall: told.append((sim.host.now, stall))
            wq = cmwq.WorkQueue("q", runtime=runtime)
            for _ in range(50):  # works that wait for long, while others begin: no stall
                wq.submit(sim.burn, 2.0)
            wq.flush()
            assert not told
            refuse_workers(sim.host)
            other = cmwq.WorkQueue("other", scope="cpu", runtime=runtime)
            began = sim.host.now
            futures = [other.submit(int) for _ in range(3)]
            sim.sleep(100)
            assert len(told) == 1
            all_may(sim.host)
            assert [future.result() for future in futures] == [0, 0, 0]
            sim.sleep(5)
            (first, stall), (second, over) = told
            assert 30 <= first - began <= 32
            assert (stall.pool, stall.pending, stall.over) == ("0", 3, False)
            assert 30 <= stall.seconds <= 31
            assert "no thread could be had" in stall.reason
            assert "without a rescuer: 'other'" in stall.reason
            assert 100 < second - began <= 103
            assert (over.pool, over.over) == ("0", True)
            assert over.seconds > 95

    with caplog.at_level(logging.WARNING, "cmwq"):
        sim.run(main)
    assert [record.getMessage().splitlines()[0][:20] for record in caplog.records] == [
        "pool 0: 3 works wait",
        "pool 0 goes on, afte",
    ]


def test_H3_each_episode_is_reported() -> None:
    sim = Simulation()
    told: list[bool] = []

    def main() -> None:
        with sim.runtime(watchdog=True) as runtime:
            runtime.on_stall = lambda stall: told.append(stall.over)
            wq = cmwq.WorkQueue("q", runtime=runtime)
            refuse_all_but_the_first(sim.host)
            for seconds in (40.0, 25.0, 40.0, 1.0):
                wq.submit(sim.sleep, seconds)
            wq.flush()
            sim.sleep(2)

    sim.run(main)
    assert told == [False, True, False, True]


def test_H3_the_report_says_what_each_worker_does_and_what_that_waits_for() -> None:
    sim = Simulation()
    told: list[cmwq.Stall] = []

    def main() -> None:
        with sim.runtime(watchdog=True) as runtime:
            runtime.on_stall = told.append
            wq = cmwq.WorkQueue("q", runtime=runtime)
            later: list[cmwq.Future[int]] = []

            def waits() -> int:
                sim.sleep(10 * MS)
                return later[0].result()

            sim.host.refuse = lambda name: name.startswith("cmwq/u0") and int(name.rpartition(":")[2]) >= 2
            blocked = wq.submit(sim.sleep, 50.0)
            first = wq.submit(waits)
            sim.sleep(2 * MS)
            later.append(wq.submit(abs, -7))
            sim.sleep(40)
            (stall,) = told
            doing = {worker.work: worker.waits_for for worker in stall.workers}
            assert len(doing) == 2
            (waiting,) = (name for name in doing if "waits" in name)
            assert "waits for the result of call abs of queue 'q'" in doing[waiting]
            (sleeping,) = (name for name in doing if "sleep" in name)
            assert "sleep" in doing[sleeping]
            assert all(worker.name in str(stall) for worker in stall.workers)
            all_may(sim.host)
            assert first.result() == 7
            blocked.result()

    sim.run(main)


class Unspeakable:
    """Something to call that can't be named."""

    def __init__(self, sim: Simulation) -> None:
        self._sim = sim

    def __call__(self) -> None:
        self._sim.sleep(100.0)

    def __repr__(self) -> str:
        raise ValueError("no")


@pytest.mark.parametrize("how", ["repr", "on_stall", "cpus"])
def test_H3_nothing_that_raises_ends_the_looks(how: str, caplog: pytest.LogCaptureFixture) -> None:
    """A pool that stalls wakes nobody who would begin them again."""
    sim = Simulation()
    told: list[bool] = []

    def main() -> None:
        with sim.runtime(watchdog=True, config=cmwq.Config(create_cooldown=1000)) as runtime:

            def on_stall(stall: cmwq.Stall) -> None:
                told.append(stall.over)
                if how == "on_stall":
                    raise SystemExit

            runtime.on_stall = on_stall
            wq = cmwq.WorkQueue("q", runtime=runtime)
            refuse_all_but_the_first(sim.host)
            wq.submit(int).result()
            if how == "cpus":
                sim.host.cpu_limit = lambda: 1 // 0  # type: ignore[method-assign]
            wq.submit(Unspeakable(sim))
            late = wq.submit(int)
            sim.sleep(50)
            assert told == [False]
            late.result()
            sim.sleep(2)
            assert told == [False, True]

    with caplog.at_level(logging.CRITICAL, "cmwq"):
        sim.run(main)


def test_H3_who_waits_for_the_first_worker_is_reported() -> None:
    """It takes long to create it; nobody is ever woken meanwhile, and nobody refused."""
    sim = Simulation()
    told: list[str] = []

    def main() -> None:
        with sim.runtime(watchdog=True) as runtime:
            runtime.on_stall = lambda stall: told.append(stall.reason)
            wq = cmwq.WorkQueue("q", runtime=runtime)
            sim.host.spawn("other", lambda: wq.submit(int))
            sim.host.spawn_cost = 50.0
            sim.sleep(1 * MS)
            assert wq.submit(abs, -7).result() == 7
            sim.host.spawn_cost = 0.0
            sim.sleep(2)
            assert told == ["a thread is being created", ""]

    sim.run(main)


def test_H3_what_waits_by_its_own_will_is_no_stall() -> None:
    """Works behind those that compute or end now and then, delayed ones, frozen ones, and those taken back."""
    sim = Simulation(cpus=2)
    told: list[cmwq.Stall] = []

    def main() -> None:
        with sim.runtime(watchdog=True) as runtime:
            runtime.on_stall = told.append
            one = cmwq.WorkQueue("one", ordered=True, runtime=runtime)
            frozen = cmwq.WorkQueue("frozen", freezable=True, runtime=runtime)
            runtime.freeze()
            futures: list[cmwq.Future[Any]] = [one.submit(sim.sleep, 29.0) for _ in range(3)]
            futures.append(one.submit(sim.burn, 34.0))
            futures.append(frozen.submit(int))
            one.queue_delayed(cmwq.DelayedWork(int), 100.0)
            alone = cmwq.WorkQueue("alone", ordered=True, runtime=runtime)
            futures.append(alone.submit(sim.sleep, 100.0))
            assert alone.submit(int).cancel()
            sim.sleep(121)
            runtime.thaw()
            for future in futures:
                future.result()
            refuse_workers(sim.host)
            taken_back = cmwq.WorkQueue("other", scope="cpu", runtime=runtime).submit(int)
            assert taken_back.cancel()
            sim.sleep(100)
            assert not told

    sim.run(main)


def test_G4_nobody_looks_while_nothing_is_to_be_done() -> None:
    """The last look is within a second; then nothing is due, until there is work again."""
    sim = Simulation(cpus=2)
    looks: list[float] = []

    def main() -> None:
        with sim.runtime(watchdog=True) as runtime:
            look = runtime.watchdog._look

            def seen() -> None:
                looks.append(sim.host.now)
                look()

            runtime.watchdog._look = seen  # type: ignore[method-assign]
            wq = cmwq.WorkQueue("q", rescuer=True, runtime=runtime)
            for _ in range(3):
                wq.submit(sim.sleep, 2.5).result()
                ended, number = sim.host.now, len(looks)
                sim.sleep(100)
                assert 1 <= len(looks) - number <= 2
                assert looks[-1] <= ended + 1.0
                assert not runtime.watchdog.on
            assert len(looks) <= 3 * 4

    sim.run(main)


def test_H3_no_look_begins_another_once_the_runtime_has_ended() -> None:
    """It would start the timer thread anew, to stay for good."""
    sim = Simulation()

    def main() -> None:
        runtime = sim.runtime(watchdog=True)
        wq = cmwq.WorkQueue("q", runtime=runtime)
        begin, call_later = runtime.watchdog.begin, sim.host.call_later
        after: list[object] = []

        def begin_late() -> None:
            while sim.host.me().name == "timers" and sim.host.now < 1:
                sim.host.sleep(1.0)  # it saw a work; meanwhile that ends, and the runtime
            begin()

        def noted(delay: float, fn: Callable[[], None]) -> SimTimer:
            after.append(fn)
            return call_later(delay, fn)

        runtime.watchdog.begin = begin_late  # type: ignore[method-assign]
        wq.submit(sim.sleep, 500 * MS)
        runtime.close()
        assert sim.host.now == 0.5
        sim.host.call_later = noted  # type: ignore[method-assign]
        sim.sleep(3)
        assert after == []

    sim.run(main)


def test_runtime_needs_a_cpu() -> None:
    with pytest.raises(ValueError, match="cpus is empty"):
        cmwq.Runtime(cpus=[])


# ------------------------------------------------------------------------------- works that wait for a place


@pytest.mark.parametrize("ordered", [False, True])
def test_H3_a_queue_whose_active_works_all_sleep_is_reported_if_works_wait_behind(ordered: bool) -> None:
    """Once, and once more when it goes on; though another queue's works begin on the same pool all the time."""
    sim = Simulation(cpus=2)
    told: list[tuple[float, cmwq.Stall]] = []

    def main() -> None:
        with sim.runtime(watchdog=True, lends=True) as runtime:
            runtime.on_stall = lambda stall: told.append((sim.host.now, stall))
            limit = 1 if ordered else 3
            wq = cmwq.WorkQueue("q", ordered=ordered, max_active=limit, runtime=runtime)
            other = cmwq.WorkQueue("other", runtime=runtime)
            for _ in range(limit):
                wq.submit(sim.sleep, 100.0)
            behind = [wq.submit(int) for _ in range(5)]
            assert behind[4].cancel()
            while sim.host.now < 110:
                other.submit(sim.sleep, 0.5).result()
            assert behind[3].done()
            (first, stall), (second, over) = told
            assert 30 <= first <= 32
            assert (stall.queue, stall.pool, stall.pending, stall.over) == ("q", "u0", 4, False)
            assert 30 <= stall.seconds <= 31
            assert ("it is ordered" if ordered else "max_active is 3") in stall.reason
            assert (
                "the work that has a place used no CPU" if ordered else f"none of the {limit} works that have a place"
            ) in stall.reason
            (entry,) = stall.workers
            assert (entry.alike, entry.waits_for) == (limit, "100000 ms of sleep")
            assert "queue 'q' on pool u0: 4 works wait" in str(stall)
            assert 100 <= second <= 102
            assert (over.queue, over.over) == ("q", True)
            assert str(over).startswith("queue 'q' on pool u0 goes on, after 9")

    sim.run(main)


def test_H3_a_queue_is_not_reported_while_its_active_works_compute() -> None:
    sim = Simulation(cpus=2)
    told: list[cmwq.Stall] = []

    def main() -> None:
        with sim.runtime(watchdog=True) as runtime:
            runtime.on_stall = told.append
            wq = cmwq.WorkQueue("q", max_active=2, runtime=runtime)
            wq.submit(sim.sleep, 100.0)
            wq.submit(sim.burn, 100.0)
            wq.submit(int).result()
            wq.flush()
            sim.sleep(2.0)

    sim.run(main)
    assert told == []


def test_H3_what_an_active_work_waits_for_is_said() -> None:
    sim = Simulation(cpus=2)
    told: list[cmwq.Stall] = []

    def main() -> None:
        with sim.runtime(watchdog=True) as runtime:
            runtime.on_stall = told.append
            one, other = cmwq.WorkQueue("one", ordered=True, runtime=runtime), cmwq.WorkQueue("other", runtime=runtime)
            one.submit(lambda: other.submit(sim.sleep, 50.0).result())
            one.submit(int).result()
            sim.sleep(2.0)

    sim.run(main)
    assert [stall.over for stall in told] == [False, True]
    assert "waits for the result of call" in told[0].workers[0].waits_for


def test_H3_the_stall_of_a_queue_that_is_gone_is_over() -> None:
    """It goes on and closes between two looks. Another of its name has no stall; nor has the runtime at its end."""
    sim = Simulation(cpus=2)
    told: list[tuple[str, bool]] = []

    def main() -> None:
        with sim.runtime(watchdog=True) as runtime:
            runtime.on_stall = lambda stall: told.append((stall.queue, stall.over))
            for _ in range(2):
                with cmwq.WorkQueue("imports", max_active=1, runtime=runtime) as wq:
                    wq.submit(sim.sleep, 40.1)
                    wq.submit(int)
                del wq
                for _ in range(3):
                    cmwq.WorkQueue("imports", max_active=1, runtime=runtime).submit(sim.sleep, 1.0).result()
                assert [stall.over for stall in runtime.snapshot().stalls[-2:]] == [False, True]
            last = cmwq.WorkQueue("last", max_active=1, runtime=runtime)
            last.submit(sim.sleep, 40.1)
            last.submit(int).result()
        assert told[-1] == ("last", False)
        assert all(stall.over for stall in runtime.snapshot().stalls)

    sim.run(main)
    assert told[:-1] == [("imports", False), ("imports", True)] * 2


def test_H3_a_stall_that_goes_on_is_in_the_picture_whatever_came_after_it() -> None:
    """And if more go on than a picture holds, those that are left are there when others are over."""
    sim = Simulation(cpus=2)

    def main() -> None:
        with sim.runtime(watchdog=True) as runtime:

            def standing() -> set[str]:
                stalls = runtime.snapshot().stalls
                assert len(stalls) <= MAX_STALLS
                last = {stall.queue: stall.over for stall in stalls}
                return {queue for queue, over in last.items() if not over}

            first = cmwq.WorkQueue("first", max_active=1, runtime=runtime)
            futures = [first.submit(sim.sleep, 2_000.0), first.submit(int)]
            sim.sleep(1.0)
            other = cmwq.WorkQueue("other", max_active=1, runtime=runtime)
            for _ in range(MAX_STALLS):
                other.submit(sim.sleep, 40.0)
                other.submit(int).result()
                sim.sleep(2.0)
                assert standing() == {"first"}
            many = [cmwq.WorkQueue(f"q{n}", max_active=1, runtime=runtime) for n in range(MAX_STALLS + 5)]
            for n, wq in enumerate(many):
                futures += [wq.submit(sim.sleep, 40.0 if n > 3 else 100.0), wq.submit(int)]
            sim.sleep(35.0)
            assert len(standing()) == MAX_STALLS
            sim.sleep(10.0)
            assert standing() == {"first", "q0", "q1", "q2", "q3"}
            for future in futures:
                future.result()
            sim.sleep(2.0)
            assert standing() == set()

    sim.run(main)


# ------------------------------------------------------------------------------- short reports


def a_thousand_wait(told: list[cmwq.Stall], points: int) -> None:
    """At the cap on threads, at so many points."""
    sim = Simulation(cpus=2)
    functions = [eval(f"lambda wait: wait({n})") for n in range(points)]
    for n, function in enumerate(functions):
        function.__qualname__ = f"function_{n}"

    def main() -> None:
        sim.host.stack_of = lambda thread: ("  File a, line 1\n    a()\n",) * 40  # type: ignore[method-assign]
        with sim.runtime(watchdog=True, max_workers=1001, check_every=100_000) as runtime:
            runtime.on_stall = told.append
            wq = cmwq.WorkQueue("q", max_active=5_000, runtime=runtime)
            for n in range(1_000):
                wq.submit(functions[n % points], lambda n: sim.sleep(50.0))
            for _ in range(10):
                wq.submit(sim.sleep, 50.0)
            sim.sleep(45.0)
            assert len(told) == 1
            wq.flush()

    sim.run(main)


@pytest.mark.parametrize("points", [1, 7, 300])
def test_H3_a_report_of_a_thousand_workers_is_short(points: int) -> None:
    told: list[cmwq.Stall] = []
    a_thousand_wait(told, points)
    stall = told[0]
    assert len(stall.workers) <= 20
    in_all = sum(worker.alike for worker in stall.workers) + stall.left_out
    assert 1_000 <= in_all <= 1_001
    lines = str(stall).split("\n")
    assert len(lines) <= 50
    said = sum(int(words[0]) for line in lines if (words := line.split())[1:2] == ["workers,"])
    said += sum(line.startswith("  cmwq/") for line in lines)
    said += sum(int(line.split()[1]) for line in lines if line.endswith("workers more"))
    assert said == in_all, "each is counted"
    assert stall.workers[0].alike >= 1_000 // points
    if points < 20:
        assert all(f"function_{n} of queue 'q'" in str(stall) for n in range(points))


def test_H3_a_report_of_few_workers_has_their_whole_stacks() -> None:
    stack = ("  File a, line 1\n    a()\n",) * 10
    workers = tuple(cmwq.StalledWorker(f"cmwq/u0:{n}", n, f"call f{n}", "", stack) for n in range(2))
    stall = cmwq.Stall("u0", 30.0, 1, False, "because", workers)
    assert len(str(stall).split("\n")) == 1 + 2 * 21


@pytest.mark.parametrize("number", [1, 2, 4, 16, 17, 20, 47, 48, 49, 60])
def test_H3_a_report_in_words_is_never_long(number: int) -> None:
    stack = ("  File a, line 1\n    a()\n",) * 10
    workers = tuple(cmwq.StalledWorker(f"cmwq/u0:{n}", n, f"call f{n}", "", stack) for n in range(number))
    lines = str(cmwq.Stall("u0", 30.0, 1, False, "because", workers, left_out=3)).split("\n")
    assert len(lines) <= 50
    shown = sum(line.startswith("  cmwq/u0:") for line in lines)
    assert lines[-1] == f"  and {number - shown + 3} workers more"
    assert shown == min(number, 48), "who is where comes before how they got there"


def test_H3_a_rescuer_that_is_stuck_is_named_with_what_to_do() -> None:
    """Its work waits for something unknown, which only it could bring about."""
    sim = Simulation(cpus=2)
    told: list[cmwq.Stall] = []

    def main() -> None:
        with sim.runtime(watchdog=True) as runtime:
            runtime.on_stall = told.append
            refuse_workers(sim.host)
            safe = cmwq.WorkQueue("safe", rescuer=True, runtime=runtime)
            held = safe.submit(sim.sleep, 50.0)
            safe.submit(int)
            sim.sleep(45.0)
            (stall,) = told
            assert "the rescuer is stuck in call Simulation.sleep of queue 'safe'" in stall.reason
            assert "with a timeout" in stall.reason
            held.result()
            safe.flush()

    sim.run(main)


def test_H3_a_rescuer_that_computes_is_not_stuck() -> None:
    sim = Simulation(cpus=2)
    told: list[cmwq.Stall] = []

    def main() -> None:
        with sim.runtime(watchdog=True) as runtime:
            runtime.on_stall = told.append
            refuse_workers(sim.host)
            safe = cmwq.WorkQueue("safe", rescuer=True, runtime=runtime)
            safe.submit(sim.burn, 50.0)
            safe.submit(int).result()
            sim.sleep(2.0)

    sim.run(main)
    assert [stall.over for stall in told] == [False, True]
    assert "rescuer" not in told[0].reason
