"""A11 under a real limit: works that would not fit together do not run together, and nobody is killed."""

from __future__ import annotations

from .machine import Machine

MIB = 1 << 20


def test_A11_works_that_need_more_than_there_is_are_done_and_nobody_is_killed(machine: Machine) -> None:
    program = machine.start("Allocates")
    group = machine.cgroup("memory", program)
    group["memory.limit_in_bytes"] = 300 * MIB
    most = program.ask("run", number=60, megabytes=30, seconds=0.1)
    assert 2 <= most <= 9
    assert program.ask("close") == 0


def test_A11_without_a_limit_nothing_is_held_back(machine: Machine) -> None:
    program = machine.start("Allocates")
    machine.cgroup("memory", program)
    assert program.ask("run", number=60, megabytes=1, seconds=5.0) > 30
    assert program.ask("close") == 0
