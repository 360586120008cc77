"""CPUs that come and go (D), on the virtual clock."""

from __future__ import annotations

import os
import random
from collections import Counter
from contextlib import suppress

import pytest
from simulated import with_each
from thorough import often

import cmwq
from cmwq._pool.hotplug import UNMANAGED
from cmwq._pool.pool import WorkerPool
from cmwq._pool.worker import current_worker
from cmwq.testing import Simulation

MS = 1e-3


def pool_of(runtime: cmwq.Runtime, name: str) -> WorkerPool:
    return next(pool for pool in runtime._pools.values() if pool.name == name)


def here() -> str:
    worker = current_worker()
    assert worker is not None
    return worker.pool.name


def bound(sim: Simulation, pool: WorkerPool) -> set[tuple[int, ...]]:
    """To which CPUs its threads are bound."""
    return {sim.host._threads[worker.tid - 1].cpus for worker in pool.workers if worker.tid}


def leave(sim: Simulation, runtime: cmwq.Runtime, *cpus: int) -> None:
    """From now on there are only these."""
    sim.host.set_cpus(cpus)
    assert runtime.check_cpus()


# ------------------------------------------------------------------------------------- D1


def test_D1_a_cpu_that_leaves_is_noticed_within_a_second_while_work_is_unfinished() -> None:
    sim = Simulation(cpus=2)

    def main() -> None:
        with sim.runtime(watchdog=True) as runtime:
            wq = cmwq.WorkQueue("q", runtime=runtime)
            wq.submit(sim.sleep, 10.0)
            sim.sleep(3.3)
            for cpus in ([0], [0, 1], [1]):
                sim.host.set_cpus(cpus)
                sim.sleep(1.0)
                assert runtime.cpus() == pool_of(runtime, "u0").cpus == tuple(cpus)
                assert pool_of(runtime, "u0").target == len(cpus)
            wq.flush()

    sim.run(main)


def test_D1_so_is_a_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    sim = Simulation(cpus=4)

    def main() -> None:
        with sim.runtime(watchdog=True) as runtime:
            wq = cmwq.WorkQueue("q", runtime=runtime)
            wq.submit(sim.sleep, 10.0)
            sim.sleep(3.3)
            for limit in (2, 4, 1):
                monkeypatch.setattr(sim.host, "cpu_limit", lambda limit=limit: limit)
                sim.sleep(1.0)
                assert (pool_of(runtime, "u0").target, runtime.snapshot().cpu_limit) == (limit, limit)
                assert pool_of(runtime, "u0").cpus == (0, 1, 2, 3)

    sim.run(main)


def test_D6_a_limit_set_by_hand_is_as_a_quota_and_the_lower_of_both_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    sim = Simulation(cpus=4)

    def main() -> None:
        with sim.runtime() as runtime:
            runtime.limit_cpus(3)  # before anything runs
            wq = cmwq.WorkQueue("q", runtime=runtime)
            wq.submit(int).result()
            pool = pool_of(runtime, "u0")
            assert (pool.target, runtime.snapshot().cpu_limit) == (3, 3)
            running = [wq.submit(sim.burn, 1.0) for _ in range(6)]
            sim.sleep(10 * MS)
            runtime.limit_cpus(1)
            assert (pool.target, pool.cpus) == (1, (0, 1, 2, 3))
            monkeypatch.setattr(sim.host, "cpu_limit", lambda: 2)
            runtime.limit_cpus(3)
            assert pool.target == 2
            runtime.limit_cpus(None)
            assert pool.target == 2
            for future in running:
                future.result()
            for wrong in (0, -1):
                with pytest.raises(ValueError, match="at least 1"):
                    runtime.limit_cpus(wrong)

    sim.run(main)


def test_D1_after_a_rest_the_first_look_comes_soon() -> None:
    sim = Simulation(cpus=2)

    def main() -> None:
        with sim.runtime(watchdog=True) as runtime:
            wq = cmwq.WorkQueue("q", runtime=runtime)
            wq.submit(int).result()
            sim.sleep(100)
            sim.host.set_cpus([0])
            wq.submit(sim.sleep, 60 * MS).result()
            assert runtime.cpus() == (0,)

    sim.run(main)


# ------------------------------------------------------------------------------------- D2, D3, D4


def test_D2_D3_the_timeline_of_a_cpu_that_leaves() -> None:
    """Ten works of 100 ms on one CPU that sleep unnoticed: one at a time. It leaves: all at once, on whatever CPU."""
    sim = Simulation(cpus=2, late=1e9)

    def main() -> None:
        sim.sensor._miss = lambda: True
        with sim.runtime() as runtime:
            wq = cmwq.WorkQueue("q", scope="cpu", runtime=runtime)
            sim.host.here = 1

            def work(n: int) -> None:
                sim.note(f"{n}")
                sim.sleep(100 * MS)

            for n in range(10):
                wq.submit(work, n)
            sim.sleep(150 * MS)
            pool = pool_of(runtime, "1")
            assert (pool.cpus, pool.target, len(pool.worklist)) == ((1,), 1, 8)
            leave(sim, runtime, 0)
            assert (pool.cpus, pool.target, pool.disassociated) == ((0,), UNMANAGED, True)
            assert (wq.submit(here).result(), wq.queue_on(1, cmwq.Work(int))) == ("0", True)
            assert pool.count_started() <= 10, "D3: neither went there"
            wq.flush()
            assert sim.log == [(0.0, "0"), (100.0, "1"), *((150.0, f"{n}") for n in range(2, 10))]
            assert bound(sim, pool) == {(0,)}
            sim.sleep(1.0)
            assert (len(pool.workers), len(pool.idle_list)) == (1, 1), "the workers that were made for it have gone"
            timers = sim.host._agenda
            assert not any(timer.fn for due, _, timer in timers if due < sim.host.now + 200), "nobody looks any more"

    sim.run(main)


def test_D2_workers_go_on_being_created_and_rescuers_called_until_the_list_is_empty() -> None:
    """Threads are refused as the CPU leaves, for 1.5 s. All workers compute."""
    sim = Simulation(cpus=2)

    def main() -> None:
        with sim.runtime(config=cmwq.Config(cpu_intensive_thresh=0)) as runtime:
            rescued = cmwq.WorkQueue("rescued", scope="cpu", rescuer=True, runtime=runtime)
            other = cmwq.WorkQueue("other", scope="cpu", runtime=runtime)
            sim.host.here = 1
            other.submit(sim.sleep, 100.0)
            sim.sleep(1 * MS)
            pool = pool_of(runtime, "1")
            sim.host.refuse_during((0, 1.5))
            while pool.idle_list:
                other.submit(sim.sleep, 100.0)
                sim.sleep(1 * MS)
            futures = [rescued.submit(sim.note, "rescued") for _ in range(3)]
            last = other.submit(sim.note, "other")
            leave(sim, runtime, 0)
            for future in futures:
                future.result()
            assert sim.host.now < 0.2
            assert pool.disassociated
            last.result()
            assert 1.5 < sim.host.now < 3, "the retry brought a worker"

    sim.run(main)


@pytest.mark.parametrize("seed", [None, *range(20)])
def test_D4_the_cpu_returns_during_the_drain(seed: int | None) -> None:
    """Twenty works of 100 ms. It leaves at 150 ms and is back at 200: the busy are bound again, idle ones die, and what
    is queued from then on runs one at a time.
    """
    sim = Simulation(cpus=2, seed=seed, late=1e9)
    now = [0, 0]

    def main() -> None:
        sim.sensor._miss = lambda: True
        with sim.runtime() as runtime:
            wq = cmwq.WorkQueue("q", scope="cpu", runtime=runtime)
            sim.host.here = 1

            def work() -> None:
                now[0] += 1
                now[1] = max(now)
                sim.sleep(100 * MS)
                now[0] -= 1

            for _ in range(20):
                wq.submit(work)
            sim.sleep(150 * MS)
            pool = pool_of(runtime, "1")
            leave(sim, runtime, 0)
            sim.sleep(50 * MS)
            assert now[1] >= 15
            assert bound(sim, pool) == {(0,)}
            leave(sim, runtime, 0, 1)
            assert (pool.cpus, pool.target, pool.disassociated) == ((1,), 1, False)
            assert bound(sim, pool) == {(1,)}
            assert len(pool.idle_list) <= 1
            wq.flush()
            now[1] = 0
            for _ in range(5):
                wq.submit(work)
            wq.flush()
            assert now == [0, 1]
            assert bound(sim, pool) == {(1,)}
            # It leaves again, and is back before the first drain's timer.
            leave(sim, runtime, 0)
            leave(sim, runtime, 0, 1)
            assert (pool.target, bound(sim, pool)) == (1, {(1,)})

    sim.run(main)


def test_D4_workers_that_were_made_for_the_drain_die_as_the_cpu_returns() -> None:
    sim = Simulation(cpus=2, late=1e9)

    def main() -> None:
        sim.sensor._miss = lambda: True
        with sim.runtime() as runtime:
            wq = cmwq.WorkQueue("q", scope="cpu", runtime=runtime)
            sim.host.here = 1
            for n in range(20):
                wq.submit(sim.sleep, 1.0 if n else 2.0)
            sim.sleep(10 * MS)
            leave(sim, runtime, 0)
            sim.sleep(1.02)
            pool = pool_of(runtime, "1")
            assert len(pool.idle_list) >= 18, "they would be there until the next look of the drain"
            leave(sim, runtime, 0, 1)
            assert (len(pool.idle_list), pool.target) == (1, 1)
            sim.sleep(1 * MS)
            ended = [thread for thread in sim.host._threads if thread.name.startswith("cmwq/1:") and thread.ended]
            assert len(ended) >= 17

    sim.run(main)


def test_D3_a_delayed_work_whose_time_comes_goes_where_cpus_are() -> None:
    sim = Simulation(cpus=2)
    where: list[str] = []

    def main() -> None:
        with sim.runtime() as runtime:
            wq = cmwq.WorkQueue("q", scope="cpu", runtime=runtime)
            works = [cmwq.DelayedWork(lambda: where.append(here())) for _ in range(3)]
            sim.host.here = 1
            for work in works[:2]:
                wq.queue_delayed(work, 1.0)
            sim.host.here = 0
            leave(sim, runtime, 0)
            works[0].flush()
            assert where == ["0"]
            sim.sleep(2.0)
            assert where == ["0", "0"]
            sim.host.set_cpus([0, 1])
            runtime.check_cpus()
            sim.host.here = 1
            wq.queue_delayed(works[2], 1.0)
            sim.host.here = 0
            sim.sleep(2.0)
            assert where == ["0", "0", "1"]

    sim.run(main)


def test_F3_D3_a_delayed_work_is_let_through_by_a_drain_though_its_cpu_left() -> None:
    """There may be no other place to be had: then it goes where it was to go."""
    sim = Simulation(cpus=2)
    where: list[str] = []

    def main() -> None:
        with sim.runtime() as runtime:
            wq = cmwq.WorkQueue("q", scope="cpu", runtime=runtime)
            work = cmwq.DelayedWork(lambda: where.append(here()))
            sim.host.here = 1
            wq.queue_delayed(work, 1.0)
            wq.submit(sim.sleep, 3.0)
            sim.host.here = 0
            leave(sim, runtime, 0)
            wq.drain()
            assert where == ["1"]

    sim.run(main)


def test_D3_works_of_a_pool_whose_cpu_left_queue_elsewhere() -> None:
    sim = Simulation(cpus=3)
    where: list[str] = []

    def main() -> None:
        with sim.runtime() as runtime:
            wq = cmwq.WorkQueue("q", scope="cpu", runtime=runtime)
            sim.host.here = 1

            def parent() -> None:
                where.append(here())
                sim.sleep(10 * MS)
                wq.submit(lambda: where.append(here()))

            wq.submit(parent)
            sim.sleep(1 * MS)
            sim.host.here = 2
            leave(sim, runtime, 0, 2)
            sim.sleep(1.0)
            assert where == ["1", "2"]

    sim.run(main)


def test_D3_E3_a_work_follows_its_execution_even_there() -> None:
    sim = Simulation(cpus=2)
    now = [0, 0]

    def again() -> None:
        now[0] += 1
        now[1] = max(now)
        sim.sleep(50 * MS)
        now[0] -= 1

    def main() -> None:
        with sim.runtime() as runtime:
            wq = cmwq.WorkQueue("q", scope="cpu", runtime=runtime)
            work = cmwq.Work(again)
            wq.queue_on(1, work)
            sim.sleep(10 * MS)
            leave(sim, runtime, 0)
            assert wq.queue(work)
            work.flush()
            assert now == [0, 1]
            assert pool_of(runtime, "1").count_started() == 2

    sim.run(main)


def test_D2_D4_a_pool_whose_cpu_leaves_as_it_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    sim = Simulation(cpus=3)

    def main() -> None:
        with sim.runtime() as runtime:
            wq = cmwq.WorkQueue("q", scope="cpu", runtime=runtime)
            wq.submit(int).result()
            home = runtime.hotplug.home

            def leaves(scope: str, cpu: int) -> int:
                first = home(scope, cpu)
                leave(sim, runtime, 0, 2)
                return first

            with monkeypatch.context() as patch:
                patch.setattr(runtime.hotplug, "home", leaves)
                assert wq.queue_on(1, cmwq.Work(int))
            pool = pool_of(runtime, "1")
            assert (pool.cpus, pool.target, pool.disassociated) == ((0, 2), UNMANAGED, True)
            wq.flush()
            leave(sim, runtime, 0, 1, 2)
            assert (pool.cpus, pool.target, pool.disassociated) == ((1,), 1, False)

    sim.run(main)


# ------------------------------------------------------------------------------------- D5


def test_D5_the_last_cpu_never_leaves() -> None:
    sim = Simulation(cpus=3)

    def main() -> None:
        with sim.runtime() as runtime:
            wq = cmwq.WorkQueue("q", scope="cpu", runtime=runtime)
            runtime.cpu_offline(0)  # before anything began
            assert runtime.cpus() == (1, 2)
            for cpu in range(3):
                wq.queue_on(cpu, cmwq.Work(int))
            wq.flush()
            runtime.cpu_offline(1)
            runtime.cpu_offline(1)
            with pytest.raises(ValueError, match=r"the last one \(D5\)"):
                runtime.cpu_offline(2)
            with pytest.raises(ValueError, match="none of those in use"):
                runtime.cpu_offline(7)
            assert runtime.cpus() == (2,)
            # The one that is left leaves for good: those taken by hand are used after all.
            sim.host.set_cpus([0, 1])
            assert runtime.check_cpus()
            assert runtime.cpus() == (0, 1)
            assert wq.submit(here).result() in ("0", "1")
            sim.host.set_cpus([0, 1, 2])
            assert runtime.check_cpus()
            assert runtime.cpus() == (2,)
            with pytest.raises(ValueError, match="can't go online here"):
                runtime.cpu_online(5)
            for cpu in range(3):
                runtime.cpu_online(cpu)
            assert runtime.cpus() == (0, 1, 2)
            assert not any(pool.disassociated for pool in runtime._pools.values())

    sim.run(main)


# ------------------------------------------------------------------------------------- D6


@pytest.mark.parametrize(("scope", "width"), [("smt", 2), ("cache", 4), ("numa", 8), ("system", 16)])
def test_D6_a_pool_of_several_cpus_changes_target_and_affinity_and_nothing_else(scope: str, width: int) -> None:
    sim = Simulation(cpus=16)

    def main() -> None:
        with sim.runtime() as runtime:
            wq = cmwq.WorkQueue("q", scope=scope, runtime=runtime)
            sim.host.here = 1
            wq.submit(sim.sleep, 1.0)
            sim.sleep(1 * MS)
            (pool,) = runtime._pools.values()
            workers = set(pool.workers)
            assert (pool.cpus, pool.target) == (tuple(range(width)), width)
            # The one the pool is named after, too.
            for gone in ([0], [1], range(width - 1)):
                rest = tuple(cpu for cpu in range(16) if cpu not in gone)
                leave(sim, runtime, *rest)
                served = tuple(cpu for cpu in rest if cpu < width)
                assert (pool.cpus, pool.target, pool.disassociated) == (served, len(served), False)
                assert bound(sim, pool) == {served}
                assert pool.workers == workers
                sim.host.here = served[-1]
                wq.submit(int).result()
                assert list(runtime._pools.values()) == [pool]
            leave(sim, runtime, *range(16))
            assert (pool.cpus, pool.target) == (tuple(range(width)), width)

    sim.run(main)


def test_D6_cpus_that_were_never_there_join_those_they_belong_with() -> None:
    sim = Simulation(cpus=8)
    sim.host.set_cpus([2, 3])

    def main() -> None:
        with sim.runtime() as runtime:
            wq = cmwq.WorkQueue("q", scope="cache", runtime=runtime)
            sim.host.here = 2
            wq.submit(int).result()
            leave(sim, runtime, *range(8))
            for cpu in range(8):
                sim.host.here = cpu
                wq.submit(int).result()
            assert {pool.cpus for pool in runtime._pools.values()} == {(0, 1, 2, 3), (4, 5, 6, 7)}

    sim.run(main)


def test_D6_a_larger_target_is_used_at_once() -> None:
    sim = Simulation(cpus=4)

    def main() -> None:
        with sim.runtime(config=cmwq.Config(cpu_intensive_thresh=0)) as runtime:
            wq = cmwq.WorkQueue("q", runtime=runtime)
            wq.submit(int).result()
            leave(sim, runtime, 0)
            for n in range(8):
                wq.submit(lambda n=n: (sim.note(f"{n}"), sim.burn(100 * MS)))  # type: ignore[misc]
            sim.sleep(50 * MS)
            sim.host.set_cpus(range(4))
            began = sim.host.now * 1000
            assert runtime.check_cpus()
            wq.flush()
            assert [when for when, _ in sim.log][:4] == [pytest.approx(began - 50), *[pytest.approx(began)] * 3]

    sim.run(
        main,
    )


# ------------------------------------------------------------------------------------- strays


def test_D4_who_was_bound_elsewhere_is_bound_again_at_the_next_look() -> None:
    """By the kernel, which moves a thread from a CPU that leaves and not back; or by a work of its own, which may keep
    it so until it ends.
    """
    sim = Simulation(cpus=2)
    seen: list[tuple[int, ...]] = []

    def main() -> None:
        with sim.runtime() as runtime:
            wq = cmwq.WorkQueue("q", scope="cpu", runtime=runtime)
            sim.host.here = 1

            def moved() -> None:
                sim.host.bind((0,))
                sim.sleep(10 * MS)
                seen.append(sim.host.me().cpus)

            wq.submit(moved)
            sim.sleep(1 * MS)
            (idle,) = pool_of(runtime, "1").idle_list[-1:]
            sim.host.bind((0,), idle.tid)
            assert not runtime.check_cpus()
            assert sim.host._threads[idle.tid - 1].cpus == (1,)
            wq.flush()
            assert seen == [(0,)], "not while the work executes"
            for _ in range(4):
                wq.submit(lambda: (sim.burn(1 * MS), seen.append(sim.host.me().cpus)))
            wq.flush()
            assert seen[1:] == [(1,)] * 4

    sim.run(main)


# ------------------------------------------------------------------------------------- programs


def program(seed: int) -> None:
    """Random works on queues of every scope, while CPUs come and go, threads are refused and queues are frozen."""
    rng = random.Random(seed)
    cpus = rng.choice([2, 3, 4, 8])
    sim = Simulation(
        cpus=cpus, seed=seed, late=rng.choice([0.0, 0.001]), gil=rng.random() < 0.3, marks=rng.random() < 0.3
    )
    refusals = rng.choice([0.0, 0.3, 0.9])
    sim.host.refuse = lambda name: name.startswith("cmwq/") and "R-" not in name and rng.random() < refusals
    ran: Counter[int] = Counter()
    inside: Counter[int] = Counter()
    orders: list[list[int]] = [[], []]

    def main() -> None:
        runtime = sim.runtime(watchdog=rng.random() < 0.5, config=cmwq.Config(create_cooldown=0.05))
        scopes = ["cpu", "cpu", "smt", "cache", "numa", "system"]
        queues = [
            cmwq.WorkQueue(
                f"q{i}",
                scope=rng.choice(scopes),
                max_active=rng.choice([1, 2, 256]),
                highpri=rng.random() < 0.2,
                cpu_intensive=rng.random() < 0.2,
                freezable=rng.random() < 0.3,
                rescuer=rng.random() < 0.6,
                runtime=runtime,
            )
            for i in range(4)
        ]
        ordered = [
            cmwq.WorkQueue(
                f"o{i}", ordered=True, rescuer=rng.random() < 0.5, freezable=rng.random() < 0.3, runtime=runtime
            )
            for i in range(2)
        ]
        total = 0

        def elsewhere() -> None:
            sim.host.here = rng.choice([None, *range(cpus)])

        def step(number: int, depth: int) -> None:
            nonlocal total
            ran[number] += 1
            for _ in range(rng.randint(0, 2)):
                choice = rng.random()
                if choice < 0.4:
                    sim.burn(1 * MS)
                elif choice < 0.7:
                    sim.sleep(rng.choice([0.1, 3, 40]) * MS)
                elif choice < 0.75:
                    sim.host.bind((0,))
                elif depth:
                    elsewhere()
                    total += 1
                    rng.choice(queues).submit(step, total - 1, depth - 1)

        def in_order(queue: int, number: int) -> None:
            orders[queue].append(number)
            sim.sleep(rng.choice([0, 1, 5]) * MS)

        def again(index: int) -> None:
            inside[index] += 1
            assert inside[index] == 1, "E3: a work runs twice at the same time"
            sim.sleep(rng.choice([0, 1, 20]) * MS)
            inside[index] -= 1

        def checked() -> None:
            runtime.check_cpus()
            with runtime.hotplug._lock:  # once for all: to take it lets others go on
                for key, pool in runtime._pools.items():
                    served = runtime.hotplug.served_by(key)
                    assert pool.disassociated == (not served)
                    assert pool.cpus == (served or runtime.cpus())
                    assert pool.target == (runtime.hotplug.target(served) if served else UNMANAGED)

        works = [cmwq.DelayedWork(again, index) for index in range(3)]
        errors: list[BaseException] = []
        for queue in (*queues, *ordered):
            queue._on_error = lambda work, exc: errors.append(exc)
        counts = [0, 0]
        frozen = False
        for _ in range(rng.randint(10, 50)):
            choice = rng.random()
            elsewhere()
            if choice < 0.35:
                total += 1
                rng.choice(queues).submit(step, total - 1, 2)
            elif choice < 0.45:
                which = rng.randrange(2)
                ordered[which].submit(in_order, which, counts[which])
                counts[which] += 1
            elif choice < 0.5:
                rng.choice(queues).queue_on(rng.randrange(cpus), rng.choice(works))
            elif choice < 0.55:
                rng.choice([*queues, *ordered]).queue(rng.choice(works))
            elif choice < 0.6:
                rng.choice([*queues, *ordered]).mod_delayed(rng.choice(works), rng.choice([0, 5, 50]) * MS)
            elif choice < 0.64:
                rng.choice(works).cancel()
            elif choice < 0.76:
                sim.host.set_cpus(rng.sample(range(cpus), rng.randint(1, cpus)))
                if rng.random() < 0.8:
                    checked()
            elif choice < 0.8:
                with suppress(ValueError):
                    (runtime.cpu_offline if rng.random() < 0.6 else runtime.cpu_online)(rng.randrange(cpus))
            elif choice < 0.84:
                (runtime.thaw if frozen else runtime.freeze)()
                frozen = not frozen
            else:
                sim.sleep(rng.choice([1, 30, 110]) * MS)
        runtime.thaw()
        for queue in (*queues, *ordered):
            queue.flush()
        checked()
        sim.host.refuse = lambda name: False
        sim.sleep(0.5)
        for pool in runtime._pools.values():
            assert bound(sim, pool) <= {pool.cpus, (0,)}
        for queue in (*queues, *ordered):
            for place in queue.places():
                assert (place.nr_active, place.nr_withdrawn, place.phase.count, len(place.inactive)) == (0, 0, 0, 0)
        runtime.close()
        assert not errors
        assert ran == Counter(range(total)), "D5: each ran once"
        assert orders == [list(range(count)) for count in counts], "D5: ordered queues stay in order"

    sim.run(main)


INTERLEAVINGS = int(os.environ.get("CMWQ_MODEL_INTERLEAVINGS", often(125, 50)))  # `make model` takes many more


@pytest.mark.parametrize("first", range(0, INTERLEAVINGS, 25))
def test_D2_D3_D4_D5_interleavings_while_cpus_come_and_go(first: int) -> None:
    with_each(range(first, first + 25), program)


def test_D2_a_cpu_that_comes_and_goes_has_one_timer() -> None:
    """However often it flaps before its pool has drained."""
    sim = Simulation(cpus=2)

    def main() -> None:
        with sim.runtime() as runtime:
            wq = cmwq.WorkQueue("q", scope="cpu", runtime=runtime)
            work = cmwq.Work(sim.sleep, 5.0)
            wq.queue_on(1, work)
            sim.sleep(0.01)
            before = len(sim.host._agenda)
            for _ in range(500):
                runtime.cpu_offline(1)
                runtime.cpu_online(1)
            runtime.cpu_offline(1)
            assert len(sim.host._agenda) <= before + 2
            work.flush()
            sim.sleep(0.5)
            pool = pool_of(runtime, "1")
            assert pool.alarms.drained.timer is None, "it has drained"
            assert len(pool.workers) == 1

    sim.run(main)
