"""A9: a long computation does not hold up those behind it."""

from __future__ import annotations

import logging
import threading

import pytest
from conftest import HANG
from simulated import simulate

import cmwq
from cmwq.testing import Simulation


def hog(sim: Simulation) -> None:
    sim.burn(0.1)


def test_A9_it_is_reported_with_a_power_of_two_back_off(caplog: pytest.LogCaptureFixture) -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("busy", runtime=runtime)
        for _ in range(10):
            wq.submit(hog, sim)
        wq.submit(int)
        wq.flush()
        assert wq.nr_hogs == 10

    with caplog.at_level(logging.INFO, "cmwq"):
        simulate(scenario)
    said = [message for message in caplog.messages if "without blocking" in message]
    assert [message.partition(";")[0] for message in said] == [
        f"queue 'busy': hog used the CPU for more than 10 ms without blocking, {times} times so far"
        for times in (1, 2, 4, 8)
    ]


@pytest.mark.parametrize(("threshold", "seen"), [(0.0, False), (0.020, True), (0.200, False)])
def test_A9_the_threshold_is_a_setting(threshold: float, seen: bool) -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("busy", runtime=runtime)
        for _ in range(5):
            wq.submit(hog, sim)
        wq.submit(int)
        wq.flush()
        assert bool(wq.nr_hogs) == seen

    simulate(scenario, config=cmwq.Config(cpu_intensive_thresh=threshold))


def test_A9_nobody_looks_while_nothing_waits() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("busy", runtime=runtime)
        wq.submit(hog, sim).result()
        assert wq.nr_hogs == 0, "it held up nobody"
        (pool,) = runtime._pools.values()
        sim.sleep(1.0)
        assert pool.alarms.hogs.timer is None
        for _ in range(3):
            wq.submit(hog, sim)
        wq.flush()
        sim.sleep(1.0)
        assert pool.alarms.hogs.timer is None, "it goes when nothing waits any more"

    simulate(scenario)


def test_A9_a_hog_that_blocks_lets_others_run_as_ever() -> None:
    """It stops being one, and all counts add up (the simulation checks them after each step)."""

    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("busy", runtime=runtime)

        def item() -> None:
            sim.burn(0.030)
            with cmwq.blocking():
                sim.sleep(0.010)
            sim.burn(0.030)

        for _ in range(6):
            wq.submit(item)
        wq.flush()
        sim.sleep(1.0)
        (pool,) = runtime._pools.values()
        assert wq.nr_hogs >= 5
        assert (pool.nr_hogs, pool.nr_running, pool.nr_blocked) == (0, 0, 0)

    for seed in range(10):
        simulate(scenario, cpus=2, seed=seed)


def test_A9_short_works_get_past_real_computations(runtime: cmwq.Runtime) -> None:
    """As many computations as CPUs, none of which ends before the short works have."""
    wq = cmwq.WorkQueue("busy", runtime=runtime)
    begun = threading.Semaphore(0)
    enough = threading.Event()

    def computes() -> None:
        begun.release()
        while not enough.is_set():
            pass

    target = len(runtime.cpus())
    long = [wq.submit(computes) for _ in range(target)]
    short = [wq.submit(len, "abc") for _ in range(20)]
    try:
        assert [future.result(HANG) for future in short] == [3] * 20
        assert not any(future.done() for future in long)
    finally:
        enough.set()
    wq.flush(HANG)
