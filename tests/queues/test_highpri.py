"""E7: what normal works must not delay."""

from __future__ import annotations

import os
import threading

from conftest import HANG, Gate

import cmwq
from cmwq.testing import Simulation


def test_E7_normal_works_do_not_delay_it() -> None:
    sim = Simulation(cpus=2)  # the second, so that they don't wait for the simulated CPU itself

    def main() -> None:
        config = cmwq.Config(cpu_intensive_thresh=0)  # else A9 would help normal works too
        with cmwq.Runtime(host=sim.host, sensor=sim.sensor, cpus=(0,), config=config) as runtime:
            normal = cmwq.WorkQueue("normal", runtime=runtime)
            urgent = cmwq.WorkQueue("urgent", highpri=True, runtime=runtime)
            for _ in range(10):
                normal.submit(sim.burn, 1.0)
            late = normal.submit(lambda: sim.host.now)
            assert urgent.submit(lambda: sim.host.now).result() < 0.001
            assert late.result() >= 10.0

    sim.run(main)


def test_E7_its_workers_are_its_own(runtime: cmwq.Runtime, gate: Gate) -> None:
    threads = [
        cmwq.WorkQueue(f"q{highpri}", highpri=highpri, runtime=runtime).submit(threading.get_ident).result(HANG)
        for highpri in (False, True)
    ]
    assert threads[0] != threads[1]
    pools = list(runtime._pools.values())
    assert [bool(pool.nice) for pool in pools] == [False, True]
    assert not pools[0].workers & pools[1].workers
    assert len(runtime.snapshot().pools) == 2


def test_E7_its_workers_are_nicer_where_that_is_allowed(universe: cmwq.Runtime) -> None:
    def niceness() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    before = os.getpriority(os.PRIO_PROCESS, 0)
    wq = cmwq.WorkQueue("urgent", highpri=True, runtime=universe)
    mine = wq.submit(niceness).result(HANG)
    (pool,) = universe._pools.values()
    assert mine == (-20 if pool.stats.niced else before)
    assert cmwq.WorkQueue("normal", runtime=universe).submit(niceness).result(HANG) == before


def test_E7_the_systems_own_is_there() -> None:
    assert cmwq.system_highpri.highpri
    assert not cmwq.system.highpri
