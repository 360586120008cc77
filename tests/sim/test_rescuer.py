"""Rescuers and maydays (C), on the virtual clock: threads are refused by a script."""

from __future__ import annotations

import logging
import random
from collections import Counter

import pytest
from simulated import with_each

import cmwq
from cmwq._pool import hotplug, rescuer
from cmwq._pool.pool import WorkerPool
from cmwq._pool.worker import Worker, be_worker
from cmwq.testing import Simulation

MS = 1e-3


def is_worker(name: str) -> bool:
    return name.startswith("cmwq/") and not name.startswith("cmwq/R-")


def no_workers(name: str) -> bool:
    """A script that refuses every worker, and no rescuer."""
    return is_worker(name)


def only_pool(runtime: cmwq.Runtime) -> WorkerPool:
    (pool,) = runtime._pools.values()
    return pool


def view(runtime: cmwq.Runtime, name: str) -> cmwq.QueueView:
    return next(queue for queue in runtime.snapshot().queues if queue.name == name)


def test_C1_a_rescuer_is_there_before_the_first_work_or_the_queue_is_not() -> None:
    sim = Simulation()

    def main() -> None:
        with sim.runtime() as runtime:
            wq = cmwq.WorkQueue("q", rescuer=True, runtime=runtime)
            assert [thread.name for thread in sim.host._threads if thread.name.startswith("cmwq/R")] == ["cmwq/R-q"]
            sim.host.refuse = lambda name: True
            with pytest.raises(cmwq.ThreadLimit, match=r"queue 'r' was to have a rescuer: .*refuses thread cmwq/R-r"):
                cmwq.WorkQueue("r", rescuer=True, runtime=runtime)
            sim.host.refuse = lambda name: False
            assert wq.submit(int).result() == 0
            assert view(runtime, "q").rescued == 0, "a worker was to be had"

    sim.run(main)


def test_C2_C3_the_timeline_without_any_worker() -> None:
    """The mayday after 10 ms; then one work after the other, in order."""
    sim = Simulation(cpus=2)

    def main() -> None:
        with sim.runtime() as runtime:
            wq = cmwq.WorkQueue("q", rescuer=True, runtime=runtime)
            sim.host.refuse = no_workers
            for n in range(3):
                wq.submit(lambda n=n: (sim.note(f"{n}"), sim.burn(5 * MS)))  # type: ignore[misc]
            wq.flush()
            assert sim.log == [(10.0, "0"), (15.0, "1"), (20.0, "2")]
            seen = view(runtime, "q")
            assert (seen.rescuer, seen.maydays, seen.rescued) == (True, 1, 3)
            assert only_pool(runtime).stats.created == 0

    sim.run(main)


def test_C2_it_is_called_again_every_100_ms() -> None:
    sim = Simulation()

    def main() -> None:
        with sim.runtime(config=cmwq.Config(create_cooldown=1000)) as runtime:
            wq = cmwq.WorkQueue("q", rescuer=True, runtime=runtime)
            sim.host.refuse = no_workers
            wq.submit(int)
            sim.sleep(50 * MS)
            for n in range(2):
                wq.submit(lambda n=n: (sim.note(f"{n}"), sim.sleep(250 * MS)))  # type: ignore[misc]
            wq.flush()
            # At 10, 110 and 210 ms. That one is heard when the first is done; to call again before is no use.
            assert sim.log == [(110.0, "0"), (360.0, "1")]
            assert view(runtime, "q").maydays == 3

    sim.run(main)


def test_C2_no_mayday_where_a_worker_comes_in_time() -> None:
    sim = Simulation(cpus=2)

    def main() -> None:
        with sim.runtime() as runtime:
            wq = cmwq.WorkQueue("q", rescuer=True, runtime=runtime)
            for _ in range(100):
                wq.submit(sim.sleep, 20 * MS)
            wq.flush()
            assert view(runtime, "q").maydays == 0

    sim.run(main)


def test_C3_it_runs_no_other_queues_works_and_wakes_who_can() -> None:
    """Known trap. The other queue's work waits until a thread can be had."""
    sim = Simulation()

    def main() -> None:
        with sim.runtime() as runtime:
            rescued = cmwq.WorkQueue("rescued", rescuer=True, runtime=runtime)
            other = cmwq.WorkQueue("other", runtime=runtime)
            sim.host.refuse = no_workers
            other.submit(sim.note, "other")
            rescued.submit(sim.note, "rescued")
            sim.sleep(500 * MS)
            assert sim.log == [(10.0, "rescued")]
            sim.host.refuse = lambda name: False
            other.flush()
            assert sim.log == [(10.0, "rescued"), (1000.0, "other")], "B2: the retry comes after the cool-down"

    sim.run(main)


def test_C3_a_pool_that_keeps_it_busy_does_not_starve_the_next() -> None:
    """Known trap: it holds a pool, so that the queue's works on another starve."""
    sim = Simulation(cpus=2)

    def main() -> None:
        with sim.runtime() as runtime:
            wq = cmwq.WorkQueue("q", scope="cpu", max_active=1, rescuer=True, runtime=runtime)
            sim.host.refuse = no_workers
            work = cmwq.Work(sim.note, "the other CPU's")

            def again(left: int) -> None:
                sim.burn(1 * MS)
                if left:
                    wq.submit(again, left - 1)  # on its own CPU

            wq.queue_on(0, cmwq.Work(again, 1000))
            wq.queue_on(1, work)
            work.flush()
            assert sim.host.now < 0.1
            wq.flush()

    sim.run(main)


def test_C3_C5_a_work_queued_while_it_runs_follows_itself_though_a_worker_must_run_it() -> None:
    """E3: it ran on the rescuer, and its next queueing came through a queue that has none."""
    sim = Simulation()

    def main() -> None:
        with sim.runtime() as runtime:
            rescued = cmwq.WorkQueue("rescued", rescuer=True, runtime=runtime)
            other = cmwq.WorkQueue("other", max_active=1, runtime=runtime)
            sim.host.refuse = no_workers
            work = cmwq.Work(lambda: (sim.note("begins"), sim.sleep(30 * MS), sim.note("ends")))
            rescued.queue(work)
            sim.sleep(20 * MS)
            assert other.queue(work)
            rescued.submit(int)  # whatever else the rescuer does
            sim.sleep(500 * MS)
            assert sim.log == [(10.0, "begins"), (40.0, "ends")]
            sim.host.refuse = lambda name: False
            other.flush()
            assert [text for _, text in sim.log] == ["begins", "ends"] * 2
            assert other.submit(int).result() == 0, "its place under max_active was given back"

    sim.run(main)


@pytest.mark.parametrize("ordered", [False, True])
def test_C5_E2_one_that_hung_behind_the_rescuers_execution_and_was_taken_back_gives_one_place_back(
    ordered: bool, caplog: pytest.LogCaptureFixture
) -> None:
    sim = Simulation(cpus=2)

    def main() -> None:
        with sim.runtime() as runtime:
            rescued = cmwq.WorkQueue("rescued", rescuer=True, runtime=runtime)
            other = cmwq.WorkQueue("other", ordered=ordered, max_active=1, runtime=runtime)
            sim.host.refuse = no_workers
            ran: list[float] = []

            def once() -> None:
                ran.append(sim.host.now)
                sim.sleep(2.0)

            work = cmwq.Work(once)
            rescued.queue(work)
            sim.sleep(20 * MS)
            sim.host.refuse = lambda name: False
            sim.sleep(1.1)
            assert other.queue(work)
            sim.sleep(1 * MS)  # a worker came to it, and hung it behind the rescuer's
            assert work.cancel()
            rescued.flush()
            assert not any(place.nr_active or place.nr_withdrawn for place in other.places())
            first, second = other.submit(sim.sleep, 10 * MS), other.submit(int)
            sim.sleep(5 * MS)
            assert first.running()
            assert not second.done()
            sim.sleep(3.0)
            assert len(ran) == 1

    sim.run(main)
    assert caplog.messages == []  # no worker stumbled over it, and recovered


def test_C4_works_execute_though_all_workers_are_blocked_for_good() -> None:
    """Nobody looks, for there is no reserve to wake: they are believed to run. The rescuer comes all the same."""
    sim = Simulation(cpus=3, late=1e9)  # sleeps are not noticed

    def main() -> None:
        sim.sensor._miss = lambda: True
        with sim.runtime() as runtime:
            wq = cmwq.WorkQueue("q", rescuer=True, runtime=runtime)
            wq.submit(int).result()
            sim.host.refuse = no_workers
            blocked = [wq.submit(sim.sleep, 1000.0) for _ in range(3)]
            sim.sleep(1 * MS)
            assert (only_pool(runtime).nr_running, len(only_pool(runtime).workers)) == (3, 3)
            assert [wq.submit(abs, -n).result() for n in range(5)] == [0, 1, 2, 3, 4]
            assert not any(future.done() for future in blocked)
            assert sim.host.now < 1.0

    sim.run(main)


def test_C4_10_000_works_in_chains_on_one_thread() -> None:
    """Each waits for the one before; every tenth begins a chain."""
    sim = Simulation()

    def main() -> None:
        with sim.runtime() as runtime:
            wq = cmwq.WorkQueue("q", max_active=16, rescuer=True, runtime=runtime)
            sim.host.refuse = no_workers

            def link(before: cmwq.Future[int] | None) -> int:
                sim.sleep(0.1 * MS)
                return 1 + (before.result() if before is not None else 0)

            futures: list[cmwq.Future[int]] = []
            for n in range(10_000):
                futures.append(wq.submit(link, futures[-1] if n % 10 else None))
            assert sum(future.result() for future in futures) == 1_000 * 55
            assert view(runtime, "q").rescued == 10_000

    sim.run(main)


def test_C4_a_work_that_one_thread_cannot_do_is_told_what_is_missing() -> None:
    """Each waits for the one behind. Nobody hangs, and what can be done is done."""
    sim = Simulation()

    def main() -> None:
        with sim.runtime() as runtime:
            wq = cmwq.WorkQueue("q", max_active=16, rescuer=True, runtime=runtime)
            sim.host.refuse = no_workers
            futures: list[cmwq.Future[int]] = []

            def link(n: int) -> int:
                return 1 + (futures[n + 1].result() if (n + 1) % 5 else 0)

            futures.extend(wq.submit(link, n) for n in range(1_000))
            wq.flush()
            told = [future for future in futures if future.exception() is not None]
            assert len(told) == 800
            with pytest.raises(
                cmwq.ThreadLimit,
                match=r"link of queue 'q' waits for the result of .*needs a worker of pool u0.*refused",
            ):
                told[0].result()
            assert [future.result() for future in futures[4::5]] == [1] * 200
            assert sim.host.now < 10, "after the first cool-down nobody waits for another"

    sim.run(main)


def test_C4_nobody_is_told_who_need_only_wait_for_the_cool_down() -> None:
    sim = Simulation()

    def main() -> None:
        with sim.runtime() as runtime:
            wq = cmwq.WorkQueue("q", rescuer=True, runtime=runtime)
            sim.host.refuse = no_workers
            later: list[cmwq.Future[int]] = []
            first = wq.submit(lambda: later[0].result())
            later.append(wq.submit(abs, -7))
            sim.sleep(500 * MS)
            sim.host.refuse = lambda name: False
            assert first.result() == 7
            assert sim.host.now <= 1.001

    sim.run(main)


def test_C4_nobody_is_told_while_another_worker_may_come_to_it() -> None:
    """All workers compute for long; one will come back for what the rescuer's work waits for."""
    sim = Simulation(cpus=2)

    def main() -> None:
        with sim.runtime(config=cmwq.Config(cpu_intensive_thresh=0)) as runtime:
            wq = cmwq.WorkQueue("q", rescuer=True, runtime=runtime)
            wq.submit(int).result()
            sim.host.refuse = no_workers
            long = [wq.submit(sim.burn, 5.0) for _ in range(2)]
            sim.sleep(1 * MS)
            later: list[cmwq.Future[int]] = []
            first = wq.submit(lambda: later[0].result())
            later.append(wq.submit(abs, -7))
            assert first.result() == 7
            assert any(future.done() for future in long)

    sim.run(main)


def only_the_first(name: str) -> bool:
    """A script that lets a pool have one worker, and every rescuer."""
    return is_worker(name) and not name.endswith(":0")


def test_C4_nobody_is_told_while_one_waits_only_for_a_time() -> None:
    """The one worker waits for the rescuer's work, but not for ever; then it does what that one waits for."""
    sim = Simulation()

    def main() -> None:
        with sim.runtime() as runtime:
            wq = cmwq.WorkQueue("q", rescuer=True, runtime=runtime)
            sim.host.refuse = only_the_first
            later: list[cmwq.Future[int]] = []

            def waits_for_a_time() -> None:
                sim.sleep(1.5)
                with pytest.raises(TimeoutError):
                    first.result(timeout=2)

            limited = wq.submit(waits_for_a_time)
            sim.sleep(1 * MS)
            first = wq.submit(lambda: (sim.sleep(2.0), later[0].result())[1])
            later.append(wq.submit(abs, -7))
            assert first.result() == 7
            limited.result()
            assert sim.host.now == 3.5

    sim.run(main)


def test_C4_a_row_of_refusals_ends_when_a_worker_is_there() -> None:
    """Two refusals long ago say nothing of what the next cool-down will bring."""
    sim = Simulation()

    def main() -> None:
        with sim.runtime() as runtime:
            wq = cmwq.WorkQueue("q", rescuer=True, runtime=runtime)
            sim.host.refuse = only_the_first
            wq.submit(sim.sleep, 1.5).result()
            assert only_pool(runtime).office.nr_refused == 2
            sim.sleep(100)
            later: list[cmwq.Future[int]] = []
            wq.submit(lambda: (sim.sleep(20 * MS), later[0].result()))
            sim.sleep(1 * MS)
            first = wq.submit(lambda: later[0].result())
            later.append(wq.submit(abs, -7))
            sim.sleep(500 * MS)
            sim.host.refuse = lambda name: False
            assert first.result() == 7, "B2: the retry after a second brings a worker"

    sim.run(main)


def test_C4_it_is_told_though_others_wait_who_may_go_on() -> None:
    """What they wait for has nothing to do with it."""
    sim = Simulation(cpus=2)

    def main() -> None:
        with sim.runtime() as runtime:
            elsewhere = cmwq.WorkQueue("elsewhere", highpri=True, runtime=runtime)
            long = elsewhere.submit(sim.sleep, 1000.0)
            waits = elsewhere.submit(long.result)
            sim.sleep(1 * MS)
            wq = cmwq.WorkQueue("q", rescuer=True, runtime=runtime)
            sim.host.refuse = no_workers
            later: list[cmwq.Future[int]] = []
            first = wq.submit(lambda: later[0].result())
            later.append(wq.submit(abs, -7))
            assert isinstance(first.exception(), cmwq.ThreadLimit)
            assert sim.host.now < 10
            waits.result()

    sim.run(main)


def test_C4_who_waits_in_a_chain_of_500_works_is_found() -> None:
    sim = Simulation()
    number = 500

    def main() -> None:
        with sim.runtime(check_every=10_000) as runtime:
            wq = cmwq.WorkQueue("q", max_active=10_000, rescuer=True, runtime=runtime)
            chain: list[cmwq.Future[int]] = []
            go: list[bool] = []

            def link(n: int) -> int:
                while not go:
                    sim.sleep(1.0)
                return chain[n + 1].result()

            chain.extend(wq.submit(link, n) for n in range(number))
            sim.sleep(2.0)
            sim.host.refuse = no_workers
            sim.sensor._miss, sim.sensor._late = (lambda: True), 1e9
            while only_pool(runtime).idle_list:
                wq.submit(link, number - 1)
                sim.sleep(1 * MS)
            sim.sleep(1.5)
            first = wq.submit(lambda: chain[-1].result())
            chain.append(wq.submit(abs, -7))
            go.append(True)
            sim.sleep(2.0)
            assert isinstance(first.exception(), cmwq.ThreadLimit)
            assert [future.result() for future in chain] == [7] * (number + 1), "which the rescuer then does"

    sim.run(main)


def test_C4_room_may_be_made_on_any_of_the_queues_pools() -> None:
    """The rescuer's work waits for room; on the first pool nobody can make it, on the second somebody computes."""
    sim = Simulation(cpus=2)

    def main() -> None:
        with sim.runtime(config=cmwq.Config(cpu_intensive_thresh=0)) as runtime:
            full = cmwq.WorkQueue("full", scope="cpu", max_pending=2, runtime=runtime)
            rescued = cmwq.WorkQueue("rescued", rescuer=True, runtime=runtime)
            sim.host.refuse = lambda name: is_worker(name) and not name.startswith("cmwq/1:0")
            ran: list[int] = []
            full.queue_on(0, cmwq.Work(ran.append, 0))  # no worker for it, for long
            full.queue_on(1, cmwq.Work(sim.burn, 5.0))
            sim.sleep(1 * MS)
            full.queue_on(1, cmwq.Work(ran.append, 1))
            work = cmwq.Work(ran.append, 2)
            sim.sleep(1.5)
            assert rescued.submit(full.queue_on, 1, work).exception() is None
            work.flush()
            assert ran == [1, 2]
            sim.host.refuse = lambda name: False

    sim.run(main)


def test_C3_a_rescuer_takes_no_workers_place_under_the_cap() -> None:
    """B6: threads can be had again, but it stays as long as it is needed: it must not be why it is."""
    sim = Simulation(cpus=2)

    def main() -> None:
        with sim.runtime(max_workers=2) as runtime:
            rescued = cmwq.WorkQueue("rescued", rescuer=True, runtime=runtime)
            sim.host.refuse = only_the_first
            rescued.submit(sim.sleep, 100.0)
            sim.sleep(1 * MS)
            for _ in range(40):
                rescued.submit(sim.sleep, 0.3)  # whenever the retry comes, the rescuer runs one
            sim.sleep(0.5)
            sim.host.refuse = lambda name: False
            sim.sleep(2.0)
            assert only_pool(runtime).stats.created == 2

    sim.run(main)


def test_C3_it_is_bound_to_the_pools_cpus_even_if_they_change_as_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    sim = Simulation(cpus=2)

    def main() -> None:
        with sim.runtime() as runtime:
            wq = cmwq.WorkQueue("q", rescuer=True, runtime=runtime)
            sim.host.refuse = no_workers

            def just_bound(worker: Worker | None) -> None:
                be_worker(worker)
                if worker is not None:
                    sim.host.set_cpus([1])
                    # As if by another thread, and already in the middle of it: the look at strays comes later.
                    with monkeypatch.context() as patch:
                        patch.setattr(hotplug, "_bind_strays", lambda pool: None)
                        runtime.check_cpus()

            monkeypatch.setattr(rescuer, "be_worker", just_bound)
            assert wq.submit(lambda: sim.host.me().cpus).result() == (1,)

    sim.run(main)


@pytest.mark.parametrize("before", [False, True])
def test_G3_what_was_taken_back_holds_up_no_end_where_no_worker_can_be_had(before: bool) -> None:
    """It stays in the list, to be passed over; but there is nobody to do that."""
    sim = Simulation()

    def main() -> None:
        runtime = sim.runtime()
        wq = cmwq.WorkQueue("q", runtime=runtime)
        sim.host.refuse = no_workers
        future, work = wq.submit(int), cmwq.Work(int)
        wq.queue(work)

        def take_back() -> None:
            sim.sleep(0 if before else 5.0)
            assert future.cancel()
            assert work.cancel()

        thread = sim.host.spawn("other", take_back)
        if before:
            thread.join()
        runtime.close()
        assert sim.host.now == (0 if before else 5.0)

    sim.run(main)


def test_G3_what_waits_behind_something_taken_back_is_done() -> None:
    sim = Simulation()

    def main() -> None:
        runtime = sim.runtime()
        wq = cmwq.WorkQueue("q", max_active=1, runtime=runtime)
        taken_back = wq.submit(int)
        behind = wq.submit(sim.note, "done")
        assert taken_back.cancel()
        runtime.close()
        assert behind.done()

    sim.run(main)
    assert sim.log == [(0.0, "done")]


@pytest.mark.parametrize("ordered", [False, True])
def test_C5_max_active_and_order_hold_on_rescuers_and_workers_at_once(ordered: bool) -> None:
    def run(seed: int) -> None:
        sim = Simulation(cpus=2, seed=seed)
        rng = random.Random(seed)
        sim.host.refuse = lambda name: is_worker(name) and rng.random() < 0.8
        order: list[int] = []
        now = [0, 0]

        def item(n: int) -> None:
            now[0] += 1
            now[1] = max(now)
            order.append(n)
            sim.sleep(rng.choice([0.1, 5, 30]) * MS)
            now[0] -= 1

        def main() -> None:
            with sim.runtime(config=cmwq.Config(create_cooldown=0.02)) as runtime:
                options: dict[str, int | bool] = {"ordered": True} if ordered else {"max_active": 2}
                wq = cmwq.WorkQueue("q", rescuer=True, runtime=runtime, **options)  # type: ignore[arg-type]
                for n in range(30):
                    wq.submit(item, n)
                wq.flush()
                assert now == [0, 1 if ordered else 2]
                assert order == list(range(30)) if ordered else sorted(order) == list(range(30))

        sim.run(main)

    for seed in range(20):
        run(seed)


def test_F7_a_rescuers_queue_that_flushes_one_without_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    sim = Simulation()

    def main() -> None:
        with sim.runtime() as runtime:
            sure = cmwq.WorkQueue("sure", rescuer=True, runtime=runtime)
            unsure = cmwq.WorkQueue("unsure", runtime=runtime)

            def flushing() -> None:
                unsure.submit(sim.sleep, 1 * MS)
                unsure.flush()

            with caplog.at_level(logging.WARNING, "cmwq"):
                sure.submit(flushing).result()
                sure.submit(flushing).result()
                unsure.submit(lambda: (sure.submit(sim.sleep, 1 * MS), sure.flush())).result()
            (record,) = caplog.records
            assert "flushing of queue 'sure', which has a rescuer, flushes queue 'unsure'" in record.getMessage()

    sim.run(main)


def test_C1_a_closed_or_dropped_queue_ends_its_rescuer() -> None:
    sim = Simulation()

    def main() -> None:
        with sim.runtime() as runtime:
            first = cmwq.WorkQueue("first", rescuer=True, runtime=runtime)
            second = cmwq.WorkQueue("second", rescuer=True, runtime=runtime)
            third = cmwq.WorkQueue("third", rescuer=True, runtime=runtime)
            third.submit(int).result()
            first.close()
            del second
            sim.sleep(1 * MS)
            ended = {thread.name: thread.ended for thread in sim.host._threads}
            assert (ended["cmwq/R-first"], ended["cmwq/R-second"], ended["cmwq/R-third"]) == (True, True, False)
        assert all(thread.ended for thread in sim.host._threads if thread.name.startswith("cmwq/"))

    sim.run(main)


def program(seed: int) -> None:
    """Random works on queues with and without a rescuer, with threads refused most of the time."""
    rng = random.Random(seed)
    sim = Simulation(cpus=rng.choice([1, 2]), seed=seed, late=rng.choice([0.0, 0.001]), gil=rng.random() < 0.3)
    refusals = rng.choice([0.3, 0.8, 1.0])
    sim.host.refuse = lambda name: is_worker(name) and rng.random() < refusals
    ran: Counter[int] = Counter()
    inside: Counter[int] = Counter()

    def main() -> None:
        with sim.runtime(config=cmwq.Config(create_cooldown=0.05)) as runtime:
            queues = [
                cmwq.WorkQueue(
                    f"q{i}",
                    scope=rng.choice(["system", "cpu"]),
                    max_active=rng.choice([1, 2, 256]),
                    cpu_intensive=rng.random() < 0.2,
                    freezable=rng.random() < 0.3,
                    rescuer=refusals == 1.0 or rng.random() < 0.7,
                    runtime=runtime,
                )
                for i in range(3)
            ]
            total = 0

            def step(number: int, depth: int) -> None:
                nonlocal total
                ran[number] += 1
                for _ in range(rng.randint(0, 2)):
                    choice = rng.random()
                    if choice < 0.4:
                        sim.burn(1 * MS)
                    elif choice < 0.7:
                        sim.sleep(rng.choice([0.1, 3, 40]) * MS)
                    elif depth:
                        total += 1
                        rng.choice(queues).submit(step, total - 1, depth - 1)

            def again(index: int) -> None:
                inside[index] += 1
                assert inside[index] == 1, "E3: a work runs twice at the same time"
                sim.sleep(rng.choice([0, 1, 20]) * MS)
                inside[index] -= 1

            works = [cmwq.Work(again, index) for index in range(3)]
            errors: list[BaseException] = []
            for queue in queues:
                queue._on_error = lambda work, exc: errors.append(exc)
            for _ in range(rng.randint(5, 30)):
                choice = rng.random()
                if choice < 0.6:
                    total += 1
                    rng.choice(queues).submit(step, total - 1, 2)
                elif choice < 0.8:
                    rng.choice(queues).queue(rng.choice(works))
                elif choice < 0.85:
                    rng.choice(works).cancel()
                elif choice < 0.9:
                    runtime.freeze()
                    sim.sleep(20 * MS)
                    runtime.thaw()
                else:
                    sim.sleep(rng.choice([1, 30]) * MS)
            for queue in queues:
                queue.flush()
            runtime.close()
            assert not errors
            assert ran == Counter(range(total)), "each ran once"
            assert not any(work.pending or work.running for work in works)

    sim.run(main)


@pytest.mark.parametrize("first", range(0, 150, 25))
def test_C4_150_interleavings_with_threads_refused(first: int) -> None:
    with_each(range(first, first + 25), program)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of finalisers, after the end
def test_a_run_that_fails_while_rescuers_are_there_ends_and_says_why() -> None:
    """They survive whatever is raised in them, also what ends a simulation."""
    sim = Simulation(cpus=1)

    def main() -> None:
        with sim.runtime() as runtime:
            queues = [cmwq.WorkQueue(f"q{n}", rescuer=True, runtime=runtime) for n in range(3)]
            queues[0].submit(int).result()
            sim.host.fail(ValueError("the reason"))
            sim.sleep(1.0)

    with pytest.raises(ValueError, match="the reason"):
        sim.run(main)
