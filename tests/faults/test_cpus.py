"""D: CPUs that really come and go, under load: offline, out of the cpuset, out of the affinity; and CPU quotas."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterable
from typing import Any

import pytest

from .machine import Machine, Program, several_cpus, spare_cpu, wait_until

CYCLES = int(os.environ.get("CMWQ_FAULT_CYCLES", "12"))
"""How often a CPU goes offline and comes back. `make faults`: 100."""


def bound_wrongly(program: Program, cpus: Iterable[int]) -> str | None:
    """Which thread is bound to what it should not be; None: none is."""
    everywhere = set(cpus)
    sentinels = []
    for name, bound in program.threads():
        pool, colon, _ = name.removeprefix("cmwq/").partition(":")
        if name == "cmwq/sentinel":
            sentinels.append(bound)
        elif name.startswith("cmwq/") and colon:
            expected = everywhere if pool == "u0" or int(pool) not in everywhere else {int(pool)}
            if bound != expected:
                return f"{name} is bound to {bound}, not to {expected}"
    on_post = [bound for bound in sentinels if len(bound) == 1]
    if sentinels and not all({cpu} in on_post for cpu in everywhere):
        return f"the sentinels are bound to {sentinels}"
    return None


def pools(program: Program) -> dict[str, Any]:
    return {pool["name"]: pool for pool in program.ask("snapshot")["pools"] if not pool["nice"]}


def await_cpus(program: Program, cpus: Iterable[int]) -> None:
    """It has noticed, and every thread is where it should be."""
    wait_until(lambda: (now := program.ask("snapshot")["cpus"]) != sorted(cpus) and f"it uses {now}")
    wait_until(lambda: bound_wrongly(program, cpus))


def await_pools(program: Program, expected: dict[str, dict[str, Any]]) -> None:
    """It has followed, too: pools' facts, by name. (That the CPUs changed is known before the pools are.)"""

    def differ() -> str | None:
        now = pools(program)
        wrong = {name: now[name] for name, facts in expected.items() if not facts.items() <= now[name].items()}
        return f"these are not yet {expected}: {wrong}" if wrong else None

    wait_until(differ)


def await_progress(program: Program) -> None:
    """Every queue's works go on."""
    before = program.ask("progress")
    for name, ran in before.items():
        wait_until(lambda: program.ask("progress")[name] <= ran and f"{name} stands still")  # noqa: B023


def too_many_threads(program: Program) -> str | None:
    now = program.ask("snapshot")["pools"]
    names = [name for name, _ in program.threads()]
    workers = [name for name in names if ":" in name and not name.endswith("-held")]  # another runtime's
    if len(workers) > sum(pool["workers"] for pool in now) or any(pool["workers"] > 2 for pool in now):
        return f"too many threads: {names}, {now}"
    return None


def check_end(program: Program, *, culls: bool = True) -> None:
    """Nothing was lost, doubled or reordered, and no thread is left: first but for two in reserve (B3), then at all."""
    assert program.ask("stop")["wrong"] == []
    if culls:
        wait_until(lambda: too_many_threads(program))
    assert program.ask("close") == 0


@pytest.mark.parametrize("noticed", [True, False], ids=["noticed", "unnoticed"])
def test_D1_D4_D5_a_cpu_leaves_and_returns_again_and_again_under_load(machine: Machine, noticed: bool) -> None:
    """Unnoticed: nobody looks until all is over. The same CPUs are there then, but the kernel has moved threads.

    Each of the two goes through half of the cycles.
    """
    spare, cpus = spare_cpu(), several_cpus()
    rng = random.Random(1)
    program = machine.start("Load", watch_period=0.02 if noticed else 0, idle_worker_timeout=0.5)
    await_cpus(program, cpus)
    await_progress(program)
    for _ in range((CYCLES + 1) // 2):
        for online in (False, True):
            machine.switch(spare, online)
            if noticed:
                wait_until(lambda: (spare in program.ask("snapshot")["cpus"]) != online and "it isn't noticed")  # noqa: B023
            time.sleep(rng.random() * 0.05)  # no wait: a moment of load in between
    await_progress(program)
    program.ask("lighten")
    if not noticed:
        assert not program.ask("check_cpus")
    await_cpus(program, cpus)
    names = pools(program)
    await_pools(program, {n: {"target": len(cpus) if n == "u0" else 1, "disassociated": False} for n in names})
    check_end(program)


def test_D4_a_worker_that_was_bound_elsewhere_comes_back(machine: Machine) -> None:
    """As the kernel does to it when its CPU leaves; within a second, though no CPU came or went."""
    cpus = several_cpus()
    program = machine.start("Load")  # which culls nobody: a new worker would be no proof
    await_cpus(program, cpus)
    program.ask("lighten")
    with program.stopped():  # else it could be mended before it is seen
        for tid in map(int, os.listdir(f"/proc/{program.pid}/task")):
            if tid != program.pid:
                os.sched_setaffinity(tid, cpus[:1])
        assert bound_wrongly(program, cpus)
    wait_until(lambda: bound_wrongly(program, cpus))
    check_end(program, culls=False)


def test_D1_D2_D3_D4_D6_what_becomes_of_the_pools(machine: Machine) -> None:
    """One slow cycle, noticed in its own time."""
    spare, cpus = spare_cpu(), several_cpus()
    left = tuple(cpu for cpu in cpus if cpu != spare)
    program = machine.start("Load", idle_worker_timeout=0.5)
    await_progress(program)
    machine.switch(spare, online=False)
    await_cpus(program, left)
    await_pools(program, {str(spare): {"disassociated": True}, "u0": {"target": len(left)}})
    assert int(program.ask("where", cpu=spare)) in left
    await_progress(program)
    machine.switch(spare, online=True)
    await_cpus(program, cpus)
    await_pools(program, {str(spare): {"disassociated": False, "target": 1}, "u0": {"target": len(cpus)}})
    assert int(program.ask("where", cpu=spare)) == spare
    await_progress(program)
    check_end(program)


def test_D1_D4_D6_a_cpuset_becomes_narrow_and_wide_again(machine: Machine) -> None:
    cpus = several_cpus()
    program = machine.start("Load", idle_worker_timeout=0.5)
    group = machine.cgroup("cpuset", program)
    wide = group["cpuset.cpus"]
    await_progress(program)
    for setting, wanted in ((cpus[0], cpus[:1]), (wide, cpus)):
        group["cpuset.cpus"] = setting
        await_cpus(program, wanted)
        await_pools(program, {"u0": {"target": len(wanted)}})
        await_progress(program)
    check_end(program)


def test_D1_D4_D6_the_process_is_bound_from_outside(machine: Machine) -> None:
    """As taskset does it: its main thread only. A thread that is bound to more must follow, too."""
    cpus = several_cpus()
    program = machine.start("Load", idle_worker_timeout=0.5)
    await_progress(program)
    for wanted in (cpus[-1:], cpus[:1], cpus):
        os.sched_setaffinity(program.pid, wanted)
        await_cpus(program, wanted)
        await_pools(program, {"u0": {"target": len(wanted)}})
        await_progress(program)
    check_end(program)


def test_D1_D6_a_cpu_quota_is_cut_and_lifted(machine: Machine) -> None:
    cpus = several_cpus()
    program = machine.start("Load", idle_worker_timeout=0.5)
    group = machine.cgroup("cpu", program)
    await_progress(program)

    def has_target(target: int) -> str | None:
        now = pools(program)["u0"]["target"]
        return f"the target is {now}, not {target}" if now != target else None

    wait_until(lambda: has_target(len(cpus)))
    group["cpu.cfs_quota_us"] = int(group["cpu.cfs_period_us"]) // 2
    wait_until(lambda: has_target(1))
    await_progress(program)
    group["cpu.cfs_quota_us"] = -1
    wait_until(lambda: has_target(len(cpus)))
    await_progress(program)
    check_end(program)
