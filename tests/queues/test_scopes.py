"""A1: which CPUs a queue's pools serve."""

from __future__ import annotations

import os

import pytest
from conftest import HANG
from simulated import simulate

import cmwq
from cmwq.testing import Simulation

SIXTEEN = [
    ("cpu", [(n,) for n in range(16)]),
    ("smt", [(n, n + 1) for n in range(0, 16, 2)]),
    ("cache", [tuple(range(n, n + 4)) for n in range(0, 16, 4)]),
    ("numa", [tuple(range(n, n + 8)) for n in range(0, 16, 8)]),
    ("system", [tuple(range(16))]),
]
"""The simulator's machine: pairs share a core, fours a cache, eights a NUMA node."""


@pytest.mark.parametrize(("scope", "groups"), SIXTEEN, ids=[scope for scope, _ in SIXTEEN])
def test_A1_a_pool_serves_the_cpus_of_its_scope(scope: str, groups: list[tuple[int, ...]]) -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", scope=scope, runtime=runtime)
        for cpu in range(16):
            assert wq.queue_on(cpu, cmwq.Work(int))
        wq.flush()
        pools = runtime.snapshot().pools
        assert sorted(pool.cpus for pool in pools) == groups
        assert all(pool.target == len(pool.cpus) for pool in pools)
        assert len({pool.name for pool in pools}) == len(groups)

    simulate(scenario, cpus=16)


def test_A1_queues_of_one_scope_share_its_pools() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        for name in ("a", "b"):
            cmwq.WorkQueue(name, scope="cache", runtime=runtime).submit(int).result()
        assert len(runtime.snapshot().pools) == 1
        cmwq.WorkQueue("c", scope="numa", runtime=runtime).submit(int).result()
        assert len(runtime.snapshot().pools) == 2

    simulate(scenario, cpus=16)


@pytest.mark.parametrize("scope", ["cpu", "smt", "cache", "numa", "system"])
def test_A1_workers_keep_to_the_cpus_of_their_pool(universe: cmwq.Runtime, scope: str) -> None:
    wq = cmwq.WorkQueue("q", scope=scope, runtime=universe)
    affinity = wq.submit(os.sched_getaffinity, 0).result(HANG)
    (pool,) = universe.snapshot().pools
    assert affinity == set(pool.cpus)
    assert affinity <= os.sched_getaffinity(0)


def test_A1_a_runtimes_own_cpus_limit_every_scope() -> None:
    cpu = min(os.sched_getaffinity(0))
    with cmwq.Runtime(cpus=[cpu]) as runtime:
        for scope in ("cpu", "smt", "cache", "numa", "system"):
            wq = cmwq.WorkQueue("q", scope=scope, runtime=runtime)
            assert wq.submit(os.sched_getaffinity, 0).result(HANG) == {cpu}
        assert {pool.cpus for pool in runtime.snapshot().pools} == {(cpu,)}


def test_A1_a_work_queued_by_a_work_stays_on_its_cpu() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", scope="cpu", runtime=runtime)
        work = cmwq.Work(lambda: wq.submit(int))
        wq.queue_on(3, work)
        wq.drain()
        (pool,) = runtime.snapshot().pools
        assert pool.cpus == (3,)
        assert pool.completed == 2

    simulate(scenario, cpus=4)


def test_an_unknown_scope_is_refused() -> None:
    with pytest.raises(ValueError, match="queue 'q': scope 'socket' is none of 'cpu', 'smt', 'cache', 'numa'"):
        cmwq.WorkQueue("q", scope="socket")


def test_G5_runtimes_share_nothing_but_the_process(universe: cmwq.Runtime) -> None:
    with cmwq.Runtime() as other:
        mine, theirs = (cmwq.WorkQueue("q", runtime=runtime) for runtime in (universe, other))
        mine.submit(int).result(HANG)
        assert other.snapshot().pools == ()
        theirs.submit(int).result(HANG)
        (my_pool,), (their_pool,) = universe._pools.values(), other._pools.values()
        with my_pool.lock:
            my_threads = {worker.thread for worker in my_pool.workers}
        with their_pool.lock:
            their_threads = {worker.thread for worker in their_pool.workers}
        assert my_threads - {None}  # that of a worker which is just being created
        assert their_threads - {None}
        assert my_threads & their_threads <= {None}
        universe.freeze(HANG)
        assert not other.frozen
        universe.thaw()
    assert mine.submit(len, "still open").result(HANG) == 10
    with pytest.raises(cmwq.QueueClosed):
        theirs.submit(int)
