"""B4: workers that meet what is no work's fault, before their first work, between two, or at the end of one."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from conftest import HANG
from interrupted.whole import until
from opcodes import Interrupt, InterruptAt, at_each
from simulated import with_each
from thorough import often

import cmwq
from cmwq._host import ThreadHost
from cmwq._pool import manager as manager_module
from cmwq._pool import recovery as recovery_module
from cmwq._pool import worker_thread
from cmwq._pool.worker import Worker
from cmwq._sensor import choose
from cmwq.testing import Simulation
from cmwq.testing.sim_sensor import SimLookout

SEEDS = 15


class Fault(Exception):
    """What is injected."""


def raising(times: float, then: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """Raises so many times, then does what it is to do."""
    left = times

    def call(*args: Any) -> Any:
        nonlocal left
        if left > 0:
            left -= 1
            raise Fault("injected")
        return then(*args) if then is not None else None

    return call


def run(scenario: Callable[[Simulation, cmwq.Runtime], None], seed: int | None = None, **config: Any) -> Simulation:
    """With its invariants checked after each step, the watchdog on, and a sensor that can be made to fail."""
    sim = Simulation(cpus=2, seed=seed)
    settings = {"watch_period": 0.0, "cpu_intensive_thresh": 0.0, **config}

    def main() -> None:
        runtime = sim.runtime(config=cmwq.Config(**settings), watchdog=True)
        scenario(sim, runtime)
        for pool in runtime._pools.values():
            with pool.lock:
                assert pool.is_quiet()
                assert all(pwq.nr_active == pwq.phase.count == 0 for pwq in pool.pwqs)
        runtime.close()

    sim.run(main)
    return sim


@pytest.fixture
def attach(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """From now on the sensor refuses so many workers."""

    original = SimLookout.attach

    def refuse(times: float) -> None:
        call = raising(times, original)
        monkeypatch.setattr(SimLookout, "attach", lambda self, worker: call(self, worker))

    return refuse


# ----------------------------------------------------------------------------------- what can be done without


@pytest.mark.parametrize("step", ["bind", "set_thread_name", "cpu_clock"])
def test_B4_B6_a_worker_works_without_what_the_system_refuses_it(step: str, caplog: pytest.LogCaptureFixture) -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        setattr(sim.host, step, raising(1e9))
        for name in ("q", "another"):
            wq = cmwq.WorkQueue(name, runtime=runtime)
            futures = wq.submit_many(lambda n: sim.sleep(0.001) or n, range(50))
            assert [future.result() for future in futures] == list(range(50))
        assert sim.host.now < 0.2, "nobody waited for a cool-down"
        assert runtime.snapshot().pools[0].refused == 0

    with caplog.at_level(logging.WARNING, "cmwq"):
        run(scenario)
    assert len(caplog.records) == 1, "said once"
    assert "works all the same" in caplog.text
    assert "Fault: injected" in caplog.text


@pytest.mark.parametrize("step", ["bind", "set_thread_name", "cpu_clock", "set_nice"])
def test_B4_B6_the_same_on_real_threads(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    host = ThreadHost()
    monkeypatch.setattr(host, step, raising(1e9))
    with cmwq.Runtime(host=host) as runtime:
        wq = cmwq.WorkQueue("q", highpri=True, runtime=runtime)
        assert list(wq.map(abs, range(100), timeout=HANG)) == list(range(100))
        runtime.check_invariants()
    host.stop_timers()


@pytest.mark.parametrize("step", ["bind", "set_thread_name"])
def test_B4_C4_nor_does_a_rescuer_need_it(step: str) -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        setattr(sim.host, step, raising(1e9))
        wq = cmwq.WorkQueue("q", rescuer=True, runtime=runtime)
        sim.host.refuse = lambda name: True
        assert [future.result() for future in wq.submit_many(abs, range(50))] == list(range(50))
        assert runtime.snapshot().queues[0].rescued == 50
        sim.host.refuse = lambda name: False
        sim.sleep(2.0)

    run(scenario)


# ----------------------------------------------------------------------------------- workers that can't begin


@pytest.mark.parametrize("times", [1, 2, 3])
def test_B4_B2_one_that_cannot_begin_is_replaced(attach: Callable[[float], None], times: int) -> None:
    """The first, the reserve, or both; and the works of several queues are done."""

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        attach(times)
        wq = cmwq.WorkQueue("q", runtime=runtime)
        ordered = cmwq.WorkQueue("ordered", ordered=True, runtime=runtime)
        futures = [wq.submit(lambda n=n: sim.sleep(0.001) or n) for n in range(20)]
        more = [ordered.submit(sim.note, f"{n}") for n in range(20)]
        assert [future.result() for future in futures] == list(range(20))
        for future in more:
            future.result()
        assert sim.host.now < times * 1.1 + 0.1, "a cool-down each"
        assert [text for _, text in sim.log] == [str(n) for n in range(20)]
        view = runtime.snapshot().pools[0]
        assert view.completed == 40
        assert view.refused <= times
        assert view.created <= 30 + times, "and it was not tried at full speed"

    with_each((None, *range(SEEDS)), partial(run, scenario))


def test_B4_B1_the_reserve_dies_while_the_only_worker_waits_for_what_it_is_to_run(
    attach: Callable[[float], None],
) -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime)
        wq.submit(int).result()
        attach(1)

        def parent(depth: int) -> int:
            return depth and 1 + wq.submit(parent, depth - 1).result()

        assert wq.submit(parent, 8).result() == 8

    with_each((None, *range(SEEDS)), partial(run, scenario))


def test_B4_H3_if_nobody_can_ever_begin_that_is_told(
    attach: Callable[[float], None], caplog: pytest.LogCaptureFixture
) -> None:
    stalls: list[cmwq.Stall] = []

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        runtime.on_stall = stalls.append
        stalls.clear()
        attach(1e9)
        wq = cmwq.WorkQueue("q", runtime=runtime)
        future = wq.submit(int)
        with pytest.raises(cmwq.CmwqTimeout):
            future.result(100.0)
        (stall,) = stalls
        assert "died" in stall.reason
        assert "Fault: injected" in stall.reason
        assert "without a rescuer: 'q'" in stall.reason
        assert int(stall.reason.split("had ")[1].split()[0]) >= 25, "and how often it was tried"
        (pool,) = runtime._pools.values()
        assert 25 <= pool.stats.deaths <= 210, "once a second one for the work and one in reserve, not at full speed"
        attach(0)
        assert future.result() == 0
        sim.sleep(2.0)
        assert stalls[-1].over

    with caplog.at_level(logging.ERROR, "cmwq"):
        for seed in range(3):
            run(scenario, seed, watch_period=1.0, watchdog_thresh=30.0)
        caplog.clear()
        run(scenario, watch_period=1.0, watchdog_thresh=30.0)
    deaths = [record for record in caplog.records if "died, and another takes its place" in record.getMessage()]
    assert 4 <= len(deaths) <= 8, "told, but not a hundred times"


@pytest.mark.parametrize("times", [1, 3])
def test_B4_a_sensor_that_refuses_on_real_threads(sensor: str, times: int) -> None:
    host = ThreadHost()
    real = choose(host, sensor)

    class Sensor:
        name, reason = real.name, real.reason
        cpus_changed, stop = real.cpus_changed, real.stop

        def lookout(self, pool: Any) -> Any:
            lookout = real.lookout(pool)
            lookout.attach = raising(times, lookout.attach)  # type: ignore[method-assign]
            return lookout

    with cmwq.Runtime(host=host, sensor=Sensor(), config=cmwq.Config(create_cooldown=0.01)) as runtime:  # type: ignore[arg-type]
        wq = cmwq.WorkQueue("q", runtime=runtime)
        assert list(wq.map(abs, range(100), timeout=HANG)) == list(range(100))
        wq.flush(HANG)
        runtime.check_invariants()
    host.stop_timers()


# ----------------------------------------------------------------------------------- and those that die later


@pytest.fixture(params=["ended", "put_down"])
def recovery(request: pytest.FixtureRequest) -> str:
    """Where the worker's recovery from a fatal fault fails: at its end, or before it began."""
    step: str = request.param
    return step


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch, recovery: str) -> dict[str, float]:
    """How often to raise just before an item is run, and at its end by the sensor."""
    left = {"before": 0.0, "ended": 0.0, "fatal": 0.0, "put_down": 0.0}
    original, attached, recovered = worker_thread.execute_specially, SimLookout.ended, recovery_module.put_down

    def put_down(pool: Any, worker: Worker, exc: BaseException) -> None:
        if left["put_down"] > 0:
            left["put_down"] -= 1
            raise Fault("put_down")
        recovered(pool, worker, exc)

    def before(pool: Any, worker: Worker) -> None:
        if left["fatal"] > 0:
            left["fatal"] -= 1
            left[recovery] = 1  # what the worker does about it fails, too
            raise Fault("fatal")
        if left["before"] > 0:
            left["before"] -= 1
            raise Fault("before")
        worker.served = None
        original(pool, worker)
        worker.served = None  # so that each item comes this way

    def ended(self: SimLookout, worker: Worker) -> None:
        if left["ended"] > 0:
            left["ended"] -= 1
            raise Fault("ended")
        attached(self, worker)

    monkeypatch.setattr(worker_thread, "execute_specially", before)
    monkeypatch.setattr(recovery_module, "put_down", put_down)
    monkeypatch.setattr(SimLookout, "ended", ended)
    return left


def test_B4_F10_what_is_raised_before_the_call_is_the_items_end(faults: dict[str, float]) -> None:
    """A call's, a work's with and without a future; and those behind them are done."""

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        errors: list[BaseException] = []
        wq = cmwq.WorkQueue("q", max_active=1, on_error=lambda work, exc: errors.append(exc), runtime=runtime)
        faults["before"] = 3
        first = wq.submit(sim.note, "first")
        silent = cmwq.Work(sim.note, "silent")
        wq.queue(silent)
        told = wq.submit(cmwq.Work(sim.note, "told"))
        last = wq.submit(sim.note, "last")
        assert last.result() is None
        assert isinstance(first.exception(), Fault)
        assert isinstance(told.exception(), Fault)
        assert len(errors) == 1
        assert (silent.pending, silent.running) == (False, False)
        wq.flush()
        assert [text for _, text in sim.log] == ["last"]
        assert sim.host.now == 0, "the worker goes on"

    with_each((None, *range(SEEDS)), partial(run, scenario))


def test_B4_F10_a_worker_that_dies_leaves_nothing_behind(faults: dict[str, float]) -> None:
    """It was about to call, was interrupted, and what it did about that failed, too."""

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", max_active=1, runtime=runtime)
        work = cmwq.Work(sim.note, "ran")
        wq.submit(int).result()
        faults["fatal"] = 1
        future = wq.submit(work)
        waiting = wq.submit(sim.note, "behind")
        assert isinstance(future.exception(), Fault)
        waiting.result()
        assert wq.queue(work)
        wq.flush()
        assert work.cancel_sync() is False
        assert [text for _, text in sim.log] == ["behind", "ran"]
        assert next(iter(runtime._pools.values())).stats.deaths == 1

    with_each((None, *range(SEEDS)), partial(run, scenario))


def test_B4_a_sensor_that_fails_at_each_end(faults: dict[str, float], caplog: pytest.LogCaptureFixture) -> None:
    """Every work costs a worker; each is done, once, and has its result."""

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime)
        wq.submit(int).result()
        sim.sleep(1.0)
        faults["ended"] = 40
        futures = [wq.submit(lambda n=n: sim.note(f"{n}") or n) for n in range(10)]
        assert sorted(future.result() for future in futures) == list(range(10))
        wq.flush()
        faults["ended"] = 0
        assert wq.submit(int).result() == 0
        assert sorted(int(text) for _, text in sim.log) == list(range(10)), "none is run twice"

    with_each((None, *range(SEEDS)), partial(run, scenario))


def test_B4_G4_what_dies_is_gone(faults: dict[str, float]) -> None:
    """Of a hundred workers that die, none is left in any list."""

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime)
        for _ in range(100):
            faults["fatal"] = 1
            assert isinstance(wq.submit(int).exception(), Fault)
            sim.sleep(1.5)
        (pool,) = runtime._pools.values()
        assert pool.stats.deaths == 100
        assert len(pool.workers) <= 3
        assert pool.workers == set(pool.idle_list)

    run(scenario)


@pytest.mark.parametrize("times", [1, 2, 5])
def test_B4_a_thread_that_ends_without_a_word_is_noticed(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """As if C code had ended it: the watchdog finds it, for nobody else could."""
    original = manager_module.worker_thread

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        left = times

        def ends(worker: Worker) -> None:
            nonlocal left
            if left > 0:
                left -= 1
            else:
                original(worker)

        monkeypatch.setattr(manager_module, "worker_thread", ends)
        wq = cmwq.WorkQueue("q", runtime=runtime)
        futures = wq.submit_many(lambda n: sim.sleep(0.001) or n, range(20))
        assert [future.result() for future in futures] == list(range(20))
        (pool,) = runtime._pools.values()
        sim.sleep(3.0)
        assert pool.stats.deaths == times
        assert pool.workers == set(pool.idle_list)
        assert sim.host.now < 3 + 2.5 * times

    with_each((None, 0, 1, 2), lambda seed: run(scenario, seed, watch_period=1.0))


@pytest.mark.parametrize("locked", [False, True], ids=["", "with the lock held"])
@pytest.mark.parametrize("make", [lambda call: call, cmwq.Work], ids=["call", "work"])
def test_B4_F10_the_end_of_a_dead_worker_may_be_interrupted_at_any_bytecode(
    monkeypatch: pytest.MonkeyPatch, make: Callable[[Callable[[], object]], Any], locked: bool
) -> None:
    """A worker's thread ended in the middle of everything, as several exceptions at once may end it. Nobody waits for
    the lock that it held, and who puts down what it had, and is interrupted, does it again.
    """
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    monkeypatch.setattr(logging.getLogger("cmwq"), "disabled", True)
    always = raising(math.inf)

    def run(interrupt: InterruptAt) -> None:
        runtime = cmwq.Runtime(config=cmwq.Config(watch_period=0.0))
        wq = cmwq.WorkQueue("q", runtime=runtime)
        with monkeypatch.context() as patch:
            for name in ("recover", "mourn", *(["announce"] if locked else ["execute_specially"])):
                patch.setattr(worker_thread, name, always)
            begin = threading.Event()
            made = make(begin.wait)
            future = wq.submit(made)
            future.add_done_callback(lambda _: None)
            begin.set()  # not before: of an end that nobody waits for, nothing is announced
            (pool,) = runtime._pools.values()
            until(
                lambda: any(w.item and w.thread and not w.thread.is_alive() for w in list(pool.workers)),
                HANG,
                lambda: "no worker ends with what it had",
            )
        try:
            with interrupt:
                recovery_module.bury_the_dead(pool)
        except Interrupt:
            pass
        recovery_module.bury_the_dead(pool)
        assert locked or isinstance(future.exception(HANG), cmwq.CmwqError)
        assert future.done()
        assert not getattr(made, "running", False)
        assert wq.submit(int).result(HANG) == 0
        wq.flush(HANG)
        runtime.check_invariants()
        assert not any(worker.thread and not worker.thread.is_alive() for worker in list(pool.workers))
        runtime.close(HANG)

    assert at_each(run, "_pool/recovery.py", "_workqueue/queued.py", "_workqueue/future.py", step=often(1, 3)) > 100
