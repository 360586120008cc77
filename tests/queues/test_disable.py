"""F6: a counted switch."""

from __future__ import annotations

import threading

import pytest
from conftest import HANG, Gate
from simulated import simulate_each

import cmwq
from cmwq.testing import Simulation


def test_F6_a_disabled_work_cannot_be_queued(runtime: cmwq.Runtime) -> None:
    wq = cmwq.WorkQueue("q", runtime=runtime)
    runs: list[int] = []
    work = cmwq.DelayedWork(runs.append, 1)
    assert not work.disable()
    assert not work.disable()
    assert work.disabled
    assert "disabled" in repr(work)
    for _ in range(2):
        assert not wq.queue(work)
        assert not wq.queue_on(0, work)
        assert not wq.queue_delayed(work, 0.001)
        assert not wq.mod_delayed(work, 0.001)
        with pytest.raises(cmwq.WorkDisabled, match=r"<cmwq\.DelayedWork .*> can't be submitted to queue 'q'"):
            wq.submit(work)
    assert not work.pending
    assert not work.enable(), "once more"
    assert not wq.queue(work)
    assert work.enable()
    assert not work.disabled
    assert wq.queue(work)
    wq.flush(HANG)
    assert runs == [1]


def test_F6_disabling_takes_a_pending_work_back(universe: cmwq.Runtime, gate: Gate) -> None:
    wq = cmwq.WorkQueue("q", max_active=1, runtime=universe)
    wq.submit(gate)
    runs: list[int] = []
    work, delayed = cmwq.Work(runs.append, 1), cmwq.DelayedWork(runs.append, 2)
    wq.queue(work)
    wq.queue_delayed(delayed, 3600)
    assert work.disable()
    assert delayed.disable()
    assert not work.pending
    assert not delayed.pending
    gate.open.set()
    wq.flush(HANG)
    assert runs == []


def test_F6_disable_does_not_wait_and_disable_sync_does(runtime: cmwq.Runtime, gate: Gate) -> None:
    wq = cmwq.WorkQueue("q", runtime=runtime)
    ended: list[int] = []
    work = cmwq.Work(lambda: (gate(), ended.append(1)))
    wq.queue(work)
    gate.await_arrivals(1)
    assert not work.disable()
    assert work.running
    with pytest.raises(cmwq.CmwqTimeout, match=r"disable_sync: <cmwq\.Work .* running disabled> did not end"):
        work.disable_sync(0.01)
    results: list[tuple[bool, int]] = []
    disabler = threading.Thread(target=lambda: results.append((work.disable_sync(HANG), len(ended))))
    disabler.start()
    while work._disables < 3:
        runtime.snapshot()
    gate.open.set()
    disabler.join(HANG)
    assert results == [(False, 1)]
    assert [work.enable() for _ in range(3)] == [False, False, True]


def test_F6_it_counts_up_to_65535(universe: cmwq.Runtime) -> None:
    work = cmwq.Work(int)
    for _ in range(65_535):
        work.disable()
    with pytest.raises(OverflowError, match="is disabled 65535 times already"):
        work.disable()
    for _ in range(65_534):
        assert not work.enable()
    assert work.enable()
    with pytest.raises(ValueError, match="is not disabled"):
        work.enable()
    wq = cmwq.WorkQueue("q", runtime=universe)
    assert wq.queue(work)
    wq.flush(HANG)


def test_F6_cancel_sync_of_a_disabled_work_leaves_it_disabled(universe: cmwq.Runtime) -> None:
    wq = cmwq.WorkQueue("q", runtime=universe)
    work = cmwq.Work(int)
    wq.queue(work)
    wq.flush(HANG)
    work.disable()
    assert not work.cancel_sync(HANG)
    assert work.disabled
    assert not wq.queue(work)
    assert work.enable()
    assert wq.queue(work)
    wq.flush(HANG)


def test_F6_none_runs_while_it_is_disabled_and_all_are_usable_again() -> None:
    def scenario(sim: Simulation, runtime: cmwq.Runtime) -> None:
        wq = cmwq.WorkQueue("q", runtime=runtime)
        inside = 0

        def body() -> None:
            nonlocal inside
            inside += 1
            sim.sleep(0.001)
            inside -= 1

        work = cmwq.DelayedWork(body)

        def queueing() -> None:
            for n in range(8):
                (wq.queue(work), wq.queue_delayed(work, 0.0003), wq.mod_delayed(work, 0.0003))[n % 3]
                sim.sleep(0.0003)

        def switching() -> None:
            for _ in range(4):
                work.disable_sync()
                assert not inside
                assert not work.pending
                sim.sleep(0.0005)
                assert not inside, "it began while it was disabled"
                work.enable()
                sim.sleep(0.0002)

        threads = [sim.host.spawn(f"thread {n}", body) for n, body in enumerate([queueing] * 2 + [switching] * 2)]
        for thread in threads:
            thread.join()
        assert not work.disabled
        work.cancel_sync()
        assert wq.queue(work)
        assert work.flush()

    simulate_each(scenario, 60, cpus=2)
