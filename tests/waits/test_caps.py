"""C4, B6: at the cap on threads a work may wait for one that nobody can begin. It is told, and nothing hangs."""

from __future__ import annotations

import logging
from collections import Counter

import pytest
from conftest import HANG

import cmwq
from cmwq.testing import Simulation

MS = 1e-3


@pytest.mark.parametrize("chained", [False, True])
def test_B6_C4_1100_works_that_each_wait_for_one_they_queued_on_64_threads(
    chained: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """chained: and some of those do likewise."""
    sim = Simulation(cpus=2)

    def main() -> None:
        with sim.runtime(max_workers=64, check_every=1_000, watchdog=True) as runtime:
            wq = cmwq.WorkQueue("q", runtime=runtime)

            def parent(depth: int) -> int:
                return 1 + wq.submit(parent, depth - 1).result() if depth else 0

            futures = [wq.submit(parent, 1 + (chained and n % 2)) for n in range(1_100)]
            wq.drain()
            assert all(future.done() for future in futures)
            outcomes = Counter(type(future.exception()) for future in futures)
            assert set(outcomes) <= {type(None), cmwq.ThreadLimit}
            assert outcomes[type(None)], "those who came last, at least"
            assert sim.host.now < 10, "after the first cool-down nobody waits for another"
            view = runtime.snapshot().queues[0]
            assert (view.active, view.inactive, view.unfinished) == (0, 0, 0)
            assert runtime.waits.all() == {}

    with caplog.at_level(logging.DEBUG, "cmwq"):
        sim.run(main)
    assert len(caplog.text) < 5_000


def test_B6_C4_on_real_threads(sensor: str) -> None:
    with cmwq.Runtime(sensor=sensor, max_workers=8, config=cmwq.Config(create_cooldown=0.05)) as runtime:
        executor = cmwq.Executor(runtime=runtime)

        def parent() -> int:
            return executor.submit(abs, -7).result()

        futures = [executor.submit(parent) for _ in range(100)]
        outcomes = {type(future.exception(HANG)) for future in futures}
        assert outcomes <= {type(None), cmwq.ThreadLimit}
        told = next(exc for future in futures if (exc := future.exception()) is not None)
        for fact in (
            "parent of queue",
            "waits for the result of call abs",
            "needs a worker of pool u0",
            "times in a row",
        ):
            assert fact in str(told)
        executor.queue.close(HANG)
        runtime.check_invariants()


@pytest.mark.parametrize("how", ["result", "flush", "cancel_sync"])
def test_B6_C4_who_waits_before_it_comes_true_is_told_when_it_does(how: str) -> None:
    """Two workers, both wait; a second after the first refusal there is a second one, and then it is known."""
    sim = Simulation(cpus=2)

    def main() -> None:
        with sim.runtime(max_workers=2) as runtime:
            wq, other = cmwq.WorkQueue("q", runtime=runtime), cmwq.WorkQueue("other", runtime=runtime)
            works: list[cmwq.Work] = []
            told: list[str] = []

            def waits() -> None:
                sim.sleep(10 * MS)  # both are here
                work = cmwq.Work(sim.note, "begun")
                works.append(work)
                other.queue(work)
                try:
                    if how == "flush":
                        other.flush()
                    elif how == "result":
                        other.submit(int).result()
                    else:
                        work.flush()
                except cmwq.ThreadLimit as exc:
                    sim.note("told")
                    told.append(str(exc))

            for _ in range(2):
                wq.submit(waits)
            wq.flush()
            other.flush()
            assert len(told) == 1, "the other then had what it waited for"
            assert "needs a worker of pool u0" in told[0]

    sim.run(main)
    assert [text for _, text in sim.log] == ["told", "begun", "begun"]
    assert 1000 <= sim.log[0][0] <= 1100


def test_B6_nobody_is_told_while_somebody_may_come_to_it() -> None:
    """One computes for long, one waits only for a time."""
    sim = Simulation(cpus=3)

    def main() -> None:
        with sim.runtime(max_workers=3) as runtime:
            wq = cmwq.WorkQueue("q", runtime=runtime)

            def waits_for_a_time() -> None:
                with pytest.raises(TimeoutError):
                    wq.submit(sim.sleep, 20.0).result(timeout=5.0)

            limited = wq.submit(waits_for_a_time)
            sim.sleep(10 * MS)
            long = wq.submit(sim.burn, 3.0)
            sim.sleep(10 * MS)
            assert wq.submit(lambda: wq.submit(abs, -7).result()).result() == 7
            limited.result()
            long.result()
            wq.flush()

    sim.run(main)


def test_B6_nobody_is_told_while_the_system_may_yet_give_a_thread() -> None:
    """It refuses for some seconds."""
    sim = Simulation(cpus=2)

    def main() -> None:
        with sim.runtime() as runtime:
            wq = cmwq.WorkQueue("q", runtime=runtime)
            sim.host.refuse = lambda name: sim.host.now < 7.5 and not name.endswith(":0")
            assert wq.submit(lambda: wq.submit(abs, -7).result()).result() == 7
            assert sim.host.now == pytest.approx(8.0)

    sim.run(main)


def test_B6_nobody_is_told_while_another_waits_for_what_runs_elsewhere() -> None:
    """It began to wait first, for a work on another pool, and will come back to what the last waits for."""
    sim = Simulation(cpus=2)

    def main() -> None:
        with sim.runtime(max_workers=2) as runtime:
            wq, elsewhere = (
                cmwq.WorkQueue("q", runtime=runtime),
                cmwq.WorkQueue("elsewhere", highpri=True, runtime=runtime),
            )
            first = wq.submit(lambda: elsewhere.submit(sim.sleep, 20.0).result())
            sim.sleep(5.0)
            assert wq.submit(lambda: wq.submit(abs, -7).result()).result() == 7
            first.result()
            assert sim.host.now == 20.0

    sim.run(main)


def test_B6_who_is_told_may_try_again() -> None:
    """Each time it is told anew, and at last a thread is to be had."""
    sim = Simulation(cpus=2)

    def main() -> None:
        with sim.runtime() as runtime:
            wq = cmwq.WorkQueue("q", runtime=runtime)
            sim.host.refuse = lambda name: name.startswith("cmwq/u0") and not name.endswith(":0")
            tries = [0]

            def parent() -> int:
                child = wq.submit(abs, -7)
                while True:
                    try:
                        return child.result()
                    except cmwq.ThreadLimit:
                        tries[0] += 1
                        sim.sleep(1.0)
                        if tries[0] == 3:
                            sim.host.refuse = lambda name: False

            assert wq.submit(parent).result() == 7
            assert tries[0] >= 3
            assert runtime.waits.all() == {}

    sim.run(main)
