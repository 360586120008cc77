"""E1, E11: works that wait for works, in ways that are none of ours, and the places they hold meanwhile."""

from __future__ import annotations

import asyncio
import concurrent.futures as cf
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest
from conftest import HANG, Gate

import cmwq
import cmwq.aio
from cmwq._pool import lending
from cmwq._pool.pool import WorkerPool
from cmwq._pool.worker import current_worker
from cmwq.testing import Simulation

SMALL = 5  # in place of the default limit, where 256 threads would show nothing more

Submit = Callable[..., "cf.Future[Any]"]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cmwq._workqueue.options.DFL_ACTIVE", SMALL)


@pytest.fixture
def quick(sensor: str) -> Iterator[cmwq.Runtime]:
    """It looks often."""
    runtime = cmwq.Runtime(sensor=sensor, config=cmwq.Config(lend_interval=0.02))
    yield runtime
    runtime.check_invariants()
    runtime.close(timeout=HANG)


def only_pool(runtime: cmwq.Runtime) -> WorkerPool:
    (pool,) = runtime._pools.values()
    return pool


def waits(submit: Submit) -> None:
    cf.wait([submit(int)])


def as_completed(submit: Submit) -> None:
    for future in cf.as_completed([submit(int), submit(int)]):
        future.result()


def by_callback(submit: Submit) -> None:
    results: queue.Queue[Any] = queue.Queue()
    submit(int).add_done_callback(results.put)
    results.get()


def by_event(submit: Submit) -> None:
    event = threading.Event()
    submit(event.set)
    event.wait()


def by_polling(submit: Submit) -> None:
    event = threading.Event()
    submit(event.set)
    while not event.wait(0.05):
        pass


def by_asyncio(submit: Submit) -> None:
    async def main() -> None:
        await asyncio.wrap_future(submit(int))

    asyncio.run(main())


UNSEEN = [by_callback, by_event, by_polling, by_asyncio]
SEEN = [waits, as_completed]


def test_A4_E1_300_works_that_wait_by_concurrent_futures(runtime: cmwq.Runtime) -> None:
    executor = cmwq.Executor(runtime=runtime)
    futures = [executor.submit(waits, executor.submit) for _ in range(300)]
    assert not cf.wait(futures, HANG).not_done
    executor.queue.close(HANG)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("how", [*SEEN, *UNSEEN])
def test_A4_E1_the_default_limit_keeps_nobody_from_what_is_waited_for(
    quick: cmwq.Runtime, how: Callable[[Submit], None]
) -> None:
    executor, wq = cmwq.Executor("e", runtime=quick), cmwq.WorkQueue("q", runtime=quick)
    futures = [each.submit(how, each.submit) for _ in range(2 * SMALL) for each in (executor, wq)]
    done, not_done = cf.wait(futures, HANG)
    assert not not_done
    assert all(future.result() is None for future in done)
    executor.queue.close(HANG)
    wq.close(HANG)
    views = quick.snapshot().queues
    assert [(view.active, view.inactive, view.unfinished) for view in views] == [(0, 0, 0)] * 2


@pytest.mark.parametrize("how", SEEN)
def test_E11_an_explicit_limit_lends_to_waits_that_can_be_seen(
    quick: cmwq.Runtime, how: Callable[[Submit], None]
) -> None:
    wq = cmwq.WorkQueue("q", max_active=2, runtime=quick)
    futures = [wq.submit(how, wq.submit) for _ in range(6)]
    assert not cf.wait(futures, HANG).not_done
    assert all(future.result() is None for future in futures)


def test_E11_a_loop_within_a_work_that_awaits_a_flush_is_seen(quick: cmwq.Runtime) -> None:
    wq = cmwq.WorkQueue("q", max_active=1, runtime=quick)
    work = cmwq.Work(int)

    def parent() -> bool | None:
        wq.queue(work)
        return asyncio.run(cmwq.aio.flush(work))

    assert wq.submit(parent).result(HANG) is True


@pytest.mark.parametrize("executor", [False, True])
def test_E11_a_loop_within_a_work_that_awaits_calls_is_seen(quick: cmwq.Runtime, executor: bool) -> None:
    wq: Any = (
        cmwq.Executor(max_active=1, runtime=quick) if executor else cmwq.WorkQueue("q", max_active=1, runtime=quick)
    )

    async def calls() -> int:
        total = await cmwq.aio.run(wq, len, "a") + await cmwq.aio.run_to_end(wq, len, "ab")
        return total + await cmwq.aio.outcome(wq.submit(len, "abc"))

    assert wq.submit(lambda: asyncio.run(calls())).result(HANG) == 6
    assert quick.waits.all() == {}


def test_E11_of_several_awaits_in_one_loop_the_last_to_end_is_seen(quick: cmwq.Runtime, gate: Gate) -> None:
    wq = cmwq.WorkQueue("q", max_active=1, runtime=quick)
    other = cmwq.WorkQueue("other", runtime=quick)
    behind, held = cmwq.Work(int), cmwq.Work(gate)

    async def both() -> bool | None:
        first = asyncio.ensure_future(cmwq.aio.flush(behind))
        await asyncio.sleep(0)
        second = asyncio.ensure_future(cmwq.aio.flush(held))
        await asyncio.sleep(0)
        gate.open.set()
        await second
        return await first

    def parent() -> bool | None:
        other.queue(held)
        gate.await_arrivals(1)
        wq.queue(behind)
        return asyncio.run(both())

    assert wq.submit(parent).result(HANG) is True
    assert quick.waits.all() == {}


def test_E11_between_two_results_a_work_may_use_what_the_limit_protects(quick: cmwq.Runtime, gate: Gate) -> None:
    """It is in `as_completed`, but not asleep there: one call of it has not ended, and it does something else."""
    wq = cmwq.WorkQueue("q", max_active=1, runtime=quick)
    other = cmwq.WorkQueue("other", runtime=quick)
    held, last = threading.Event(), threading.Event()

    def parent() -> None:
        futures: list[cf.Future[Any]] = [other.submit(int), other.submit(held.wait, HANG)]
        for future in cf.as_completed(futures):
            if future is futures[0]:
                gate()
        last.wait(HANG)

    future = wq.submit(parent)
    gate.await_arrivals(1)
    (worker,) = (worker for worker in list(only_pool(quick).workers) if worker.item is future)
    assert worker.waiters, "it was seen to begin"
    assert not lending.waits_for_works(worker)
    gate.open.set()
    while not lending.waits_for_works(worker):
        time.sleep(0.001)  # a hang here is a failure
    held.set()
    while lending.waits_for_works(worker):
        time.sleep(0.001)
    last.set()
    future.result(HANG)


# ------------------------------------------------------------------------------- the rule, on the virtual clock


class Unseen:
    """What works wait for in the simulator as for an Event: the sensor sees that they sleep, and nobody for what."""

    def __init__(self, sim: Simulation) -> None:
        self._sim = sim
        self._parkers: list[Any] = []
        self._set = False

    def wait(self) -> None:
        worker, parker = current_worker(), self._sim.host.parker()
        assert worker is not None
        self._parkers.append(parker)
        worker.watched = True
        self._sim.sensor.sleeping(worker)
        while not self._set:
            parker.park()
        worker.watched = False
        self._sim.sensor.running(worker)

    def set(self) -> None:
        self._set = True
        for parker in self._parkers:
            parker.unpark()


@pytest.mark.usefixtures("small")
def test_E1_one_place_is_lent_then_two_then_four() -> None:
    sim = Simulation(cpus=2)

    def main() -> None:
        with sim.runtime(lends=True) as runtime:
            wq = cmwq.WorkQueue("q", runtime=runtime)
            event = Unseen(sim)

            def waits(number: int) -> None:
                if number >= SMALL:
                    sim.note(f"{number - SMALL}")
                event.wait()

            for number in range(SMALL + 7):
                wq.submit(waits, number)
            wq.submit(event.set)
            wq.flush()
            view = runtime.snapshot().queues[0]
            assert (view.active, view.inactive, view.unfinished) == (0, 0, 0)
            sim.sleep(2.0)
            assert only_pool(runtime).lending.timer is None, "nothing waits, so nobody looks"

    sim.run(main)
    times = [time for time, _ in sim.log]
    assert [text for _, text in sim.log] == list("0123456")
    assert times == pytest.approx([200.0] + [400.0] * 2 + [600.0] * 4)


def test_E1_whoever_lends_its_place_does_not_count_as_running_whatever_the_sensor_missed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cmwq._workqueue.options.DFL_ACTIVE", 2)
    sim = Simulation(cpus=2)

    def main() -> None:
        with sim.runtime(lends=True) as runtime:
            wq = cmwq.WorkQueue("q", runtime=runtime)
            parkers = [sim.host.parker(), sim.host.parker()]
            for parker in parkers:
                wq.submit(parker.park)  # as many as may run, and no sensor notices that they wait
            try:
                wq.submit(int).result(10.0)
            finally:
                for parker in parkers:
                    parker.unpark()

    sim.run(main)


@pytest.mark.usefixtures("small")
def test_E1_after_works_have_ended_one_is_lent_first_again() -> None:
    sim = Simulation(cpus=2)

    def main() -> None:
        with sim.runtime(lends=True) as runtime:
            wq = cmwq.WorkQueue("q", runtime=runtime)
            early, late = Unseen(sim), Unseen(sim)
            begun: list[float] = []

            def waits_late() -> None:
                begun.append(sim.host.now)
                late.wait()

            for _ in range(SMALL + 3):
                wq.submit(early.wait)
            for _ in range(SMALL + 3):
                wq.submit(waits_late)
            sim.sleep(0.55)
            assert not begun, "three places were lent by now"
            sim.host.spawn("early", early.set)
            sim.sleep(1.0)
            late.set()
            wq.flush()
            assert begun == pytest.approx([0.55] * SMALL + [0.7] + [0.9] * 2)

    sim.run(main)


@pytest.mark.usefixtures("small")
def test_E1_works_that_wait_for_a_worker_need_no_other_place() -> None:
    """All CPUs are in use; the active works that have begun rest, the others could begin."""
    sim = Simulation(cpus=2)

    def main() -> None:
        with sim.runtime(lends=True, config=cmwq.Config(cpu_intensive_thresh=0)) as runtime:
            wq, other = cmwq.WorkQueue("q", runtime=runtime), cmwq.WorkQueue("other", runtime=runtime)
            for _ in range(SMALL - 2):
                wq.submit(sim.sleep, 10.0)
            sim.sleep(0.01)
            for _ in range(2):
                other.submit(sim.burn, 3.0)
            sim.sleep(0.01)
            for _ in range(4):
                wq.submit(sim.sleep, 10.0)
            sim.sleep(2.0)
            view = next(view for view in runtime.snapshot().queues if view.name == "q")
            assert (view.active, view.inactive, len(wq.threads())) == (SMALL, 2, SMALL - 2)
            wq.flush()

    sim.run(main)


@pytest.mark.usefixtures("small")
def test_E1_where_works_end_nothing_is_lent() -> None:
    """Each rests for longer than a period, but one of them ends in each."""
    sim = Simulation(cpus=2)

    def main() -> None:
        with sim.runtime(lends=True) as runtime:
            wq = cmwq.WorkQueue("q", runtime=runtime)
            most = [0]

            def rests(seconds: float) -> None:
                most[0] = max(most[0], len(wq.threads()))
                sim.sleep(seconds)

            for number in range(SMALL):
                wq.submit(rests, 0.05 * (number + 1))
            for _ in range(10 * SMALL):
                wq.submit(rests, 0.05 * SMALL)
            wq.flush()
            assert most == [SMALL]

    sim.run(main)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("share", "lends"), [(0.005, True), (0.05, False)])
def test_E1_who_polls_rests_and_who_computes_does_not(share: float, lends: bool) -> None:
    sim = Simulation(cpus=2)

    def main() -> None:
        with sim.runtime(lends=True) as runtime:
            wq = cmwq.WorkQueue("q", runtime=runtime)
            stop: list[bool] = []

            def polls() -> None:
                while not stop:
                    sim.sleep(0.01 * (1 - share))
                    sim.burn(0.01 * share)

            for _ in range(SMALL):
                wq.submit(polls)
            late = wq.submit(int)
            sim.sleep(5.0)
            done = late.done()
            stop.append(True)
            wq.flush()
            assert done is lends

    sim.run(main)


@pytest.mark.parametrize("ordered", [False, True])
def test_E11_an_explicit_limit_is_kept_however_long_its_works_rest(ordered: bool) -> None:
    sim = Simulation(cpus=2)

    def main() -> None:
        with sim.runtime(lends=True) as runtime:
            limit = 1 if ordered else 2
            wq = cmwq.WorkQueue("q", max_active=limit, ordered=ordered, runtime=runtime)
            most = [0]

            def rests() -> None:
                most[0] = max(most[0], len(wq.threads()))
                sim.sleep(100.0)

            for _ in range(6):
                wq.submit(rests)
            wq.flush()
            assert most == [limit]
            assert sim.host.now == pytest.approx(600.0 / limit)

    sim.run(main)


@pytest.mark.usefixtures("small")
def test_E11_a_limit_that_was_set_later_is_explicit() -> None:
    sim = Simulation(cpus=2)

    def main() -> None:
        with sim.runtime(lends=True) as runtime:
            wq = cmwq.WorkQueue("q", runtime=runtime)
            wq.max_active = 1
            futures = [wq.submit(sim.sleep, 10.0) for _ in range(3)]
            sim.sleep(9.0)
            assert len(wq.threads()) == 1
            futures[-1].result()

    sim.run(main)


@pytest.mark.usefixtures("small")
def test_E1_a_period_in_which_the_process_was_stopped_says_nothing() -> None:
    sim = Simulation(cpus=2)

    def main() -> None:
        with sim.runtime(lends=True) as runtime:
            wq = cmwq.WorkQueue("q", runtime=runtime)
            event = Unseen(sim)
            for _ in range(SMALL):
                wq.submit(event.wait)
            late = wq.submit(event.set)

            def keep_timers() -> None:
                while sim.host.now < 10.15:
                    sim.host.sleep(10.15 - sim.host.now)

            sim.host.call_later(0.15, keep_timers)  # they were seen once; then no timer comes in time
            sim.sleep(10.2)
            assert not late.done(), "nobody got the CPU for long"
            late.result()
            assert sim.host.now == pytest.approx(10.25)
            wq.flush()

    sim.run(main)


@pytest.mark.usefixtures("small")
def test_E1_a_place_that_was_lent_counts_again_when_its_work_goes_on() -> None:
    """As the sensor sees it run, or as it ends; and no more is active then than may be."""
    sim = Simulation(cpus=2)

    def main() -> None:
        with sim.runtime(lends=True) as runtime:
            wq = cmwq.WorkQueue("q", runtime=runtime)
            event = Unseen(sim)
            seen: list[tuple[int, int]] = []

            def parent() -> None:
                event.wait()
                sim.sleep(1.0)  # the sensor sees both its begin and its end

            def child() -> None:
                pool = only_pool(runtime)
                seen.append((wq_active(), sum(worker.lender is not None for worker in pool.workers)))
                event.set()

            def wq_active() -> int:
                return runtime.snapshot().queues[0].active

            for _ in range(SMALL):
                wq.submit(parent)
            wq.submit(child).result()
            assert seen == [(SMALL, 1)]
            sim.sleep(1.5)
            assert not any(worker.lender for worker in only_pool(runtime).workers)
            wq.flush()
            assert wq_active() == 0

    sim.run(main)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("marks", [False, True])
def test_E1_lending_under_random_interleavings(marks: bool) -> None:
    """Waits of ours, unseen ones, and works that sleep or compute, in one queue: all end and the counts are whole."""
    for seed in range(15):
        sim = Simulation(cpus=2, seed=seed, marks=marks)

        def main(sim: Simulation = sim) -> None:
            with sim.runtime(lends=True) as runtime:
                wq = cmwq.WorkQueue("q", runtime=runtime)

                def unseen() -> None:
                    event = Unseen(sim)
                    wq.submit(event.set)
                    event.wait()
                    sim.burn(0.001)

                def ours() -> None:
                    wq.submit(sim.sleep, 0.01).result()

                for _ in range(SMALL):
                    wq.submit(unseen)
                    wq.submit(ours)
                    wq.submit(sim.sleep, 0.3)
                wq.flush()
                wq.drain()
                view = runtime.snapshot().queues[0]
                assert (view.active, view.inactive, view.unfinished) == (0, 0, 0)

        try:
            sim.run(main)
        except BaseException as exc:
            exc.add_note(f"seed {seed}")
            raise


class Interruption(BaseException):
    pass


def interrupted(pool: WorkerPool, at: int) -> bool:
    """Look, and raise as its `at`-th line of the core begins. False: it has fewer."""
    left = [at]

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        if event == "line" and frame.f_code.co_filename.endswith(("lending.py", "pwq.py", "pool.py")):
            left[0] -= 1
            if left[0] == 0:
                sys.settrace(None)
                raise Interruption
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        lending.look(pool)
    except Interruption:
        if pool.lock.held():  # just as the section was left: the real lock mends and is let go of then, too (F10)
            pool.mend()
            pool.lock.release()
        return True
    finally:
        sys.settrace(before)
    return False


@pytest.mark.usefixtures("small")
def test_E1_a_look_that_is_interrupted_anywhere_leaves_everything_whole() -> None:
    """And the next does what it would have done."""
    at, more = 0, [True]
    while more[0]:
        at += 1
        sim = Simulation(cpus=2)

        def main(sim: Simulation = sim, at: int = at) -> None:
            with sim.runtime(lends=True, check_every=1_000_000) as runtime:
                wq = cmwq.WorkQueue("q", runtime=runtime)
                event = Unseen(sim)
                for _ in range(SMALL + 3):
                    wq.submit(event.wait)
                wq.submit(event.set)
                sim.sleep(0.5)  # one place is lent, and two more are to be in the next look
                pool = only_pool(runtime)
                more[0] = interrupted(pool, at)
                runtime.check_invariants()
                assert pool.lending.timer is not None
                wq.flush()
                view = runtime.snapshot().queues[0]
                assert (view.active, view.inactive, view.unfinished) == (0, 0, 0)

        try:
            sim.run(main)
        except BaseException as exc:
            exc.add_note(f"interrupted at {at}")
            raise
    assert at > 50, "it had so many lines"
