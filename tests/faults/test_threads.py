"""B, C, H3: threads that can't be had: pids.max of a cgroup, RLIMIT_AS, RLIMIT_NPROC."""

from __future__ import annotations

import os

import pytest

from .machine import Cgroup, Machine, Program, root_only, wait_until

NUMBER = 10_000
"""So many works that wait for one another."""


def shut(group: Cgroup, room: int = 0) -> None:
    """So many more threads, and that is all."""
    group["pids.max"] = int(group["pids.current"]) + room


def created(program: Program) -> int:
    return sum(pool["created"] for pool in program.ask("snapshot")["pools"])


@pytest.mark.parametrize("blind", [False, True], ids=["seen before", "refused by clone"])
def test_C4_10_000_works_that_wait_for_each_other_end_without_any_thread(machine: Machine, blind: bool) -> None:
    program = machine.start("Chains")
    program.ask("blind", blind=blind)
    shut(machine.cgroup("pids", program))
    assert program.ask("forwards", number=NUMBER)
    (queue,) = (queue for queue in program.ask("snapshot")["queues"] if queue["name"] == "sure")
    assert (queue["rescued"], created(program)) == (NUMBER, 0)
    assert program.ask("close") == 0


def test_C4_who_needs_a_thread_that_cannot_be_had_is_told(machine: Machine) -> None:
    program = machine.start("Chains")
    shut(machine.cgroup("pids", program))
    answer = program.ask("backwards", number=1000)
    assert answer["right"] + answer["told"] == 1000
    assert answer["right"] >= 100, "the last of each chain waits for nobody"
    assert answer["told"]
    assert "needs a worker of pool u0, and there is none: a thread was refused" in answer["words"]
    assert program.ask("forwards", number=100), "it goes on"
    assert program.ask("close") == 0


def test_B2_H3_a_queue_without_a_rescuer_waits_and_the_watchdog_says_why(machine: Machine) -> None:
    program = machine.start("Chains", watch_period=0.1, watchdog_thresh=0.3)
    group = machine.cgroup("pids", program)
    shut(group)
    program.ask("strand")  # raises nothing
    wait_until(lambda: not program.ask("reports")["told"] and "no stall was reported")
    assert program.ask("is_stranded")
    reports = program.ask("reports")
    assert reports["told"] == reports["logged"]
    assert "no thread could be had" in reports["told"][0]
    assert "no room for one more thread below the caps" in reports["told"][0]
    assert "without a rescuer: 'unsure'" in reports["told"][0]
    group["pids.max"] = "max"
    assert program.ask("result") == 7
    wait_until(lambda: "goes on" not in program.ask("reports")["told"][-1] and "its end was not reported")
    assert program.ask("close") == 0


@pytest.mark.parametrize("blind", [False, True], ids=["seen before", "refused by clone"])
def test_B2_C4_when_threads_can_be_had_again_workers_come(machine: Machine, blind: bool) -> None:
    program = machine.start("Chains")
    program.ask("blind", blind=blind)
    group = machine.cgroup("pids", program)
    shut(group)
    program.ask("strand")
    assert program.ask("forwards", number=100)
    assert program.ask("is_stranded")
    assert created(program) == 0
    group["pids.max"] = "max"
    assert program.ask("result") == 7, "the queue without a rescuer"
    assert program.ask("until_workers"), "the queue with one"
    assert program.ask("backwards", number=100)["right"] == 100, "what one thread can't do"
    assert program.ask("close") == 0


def test_B6_works_go_on_with_the_few_threads_that_can_be_had(machine: Machine) -> None:
    """Three, and then clone itself refuses."""
    program = machine.start("Chains")
    program.ask("blind", blind=True)
    shut(machine.cgroup("pids", program), room=3)
    assert program.ask("forwards", number=1000)
    answer = program.ask("backwards", number=100)
    assert answer["right"] + answer["told"] == 100
    assert program.ask("close") == 0


@pytest.mark.parametrize("fresh", [False, True], ids=["its rescuer's thread", "the runtime's own"])
def test_C1_a_queue_that_can_have_no_rescuer_is_not_made(machine: Machine, fresh: bool) -> None:
    program = machine.start("Chains")
    group = machine.cgroup("pids", program)
    shut(group)
    answer = program.ask("make_queue", fresh=fresh)
    assert "queue 'more' was to have a rescuer" in answer["raised"]
    assert "the system refused thread cmwq/" in answer["raised"]
    assert answer["threads"] == 0
    assert "more" not in answer["names"]
    if fresh:
        shut(group, room=1)  # the runtime gets what it needs, the rescuer doesn't; then the runtime ends
        answer = program.ask("make_queue", fresh=fresh)
        assert "the system refused thread cmwq/R-more" in answer["raised"]
        assert answer["threads"] == 0
    group["pids.max"] = "max"
    assert program.ask("make_queue", fresh=fresh)["raised"] == ""
    assert program.ask("close") == 0


def test_C4_stacks_that_cannot_be_mapped(machine: Machine) -> None:
    """RLIMIT_AS: the address space is full, as far as a thread's stack is concerned."""
    program = machine.start("Chains")
    program.ask("limit_memory", spare=1 << 30)
    assert program.ask("forwards", number=500)
    program.ask("strand")
    assert program.ask("is_stranded")
    assert created(program) == 0
    program.ask("lift")
    assert program.ask("result") == 7
    assert program.ask("until_workers")
    assert program.ask("close") == 0


def test_C4_threads_that_others_of_the_user_have_used_up(machine: Machine) -> None:
    """RLIMIT_NPROC counts all threads of a user. A process sees its own only, so it finds out as it tries."""
    root_only("to be a user of whom no other process is")
    user = 1_000_000_000 + os.getpid()
    others = machine.start("Chains").ask("become", user=user)
    program = machine.start("Chains")
    assert program.ask("become", user=user) == others
    program.ask("limit_threads", number=2 * others)
    assert program.ask("forwards", number=500)
    assert created(program) == 0
    program.ask("lift")
    assert program.ask("until_workers")
    assert program.ask("close") == 0


@pytest.mark.parametrize("room", [3, 4, 5, 6, 9])
def test_B6_the_first_work_runs_with_the_fewest_threads(machine: Machine, room: int) -> None:
    """Timers, a worker and its reserve: three. From the fourth on somebody looks who sleeps."""
    program = machine.start("Few")
    shut(machine.cgroup("pids", program), room=room)
    assert program.ask("first_work") == "8"
    assert program.ask("snapshot")["pools"][0]["workers"] == 2
    if room > 3:
        assert program.ask("one_lets_the_other_go")
    assert program.ask("close") == 0


@pytest.mark.parametrize("number", [3, 4, 5, 7])
def test_B6_the_first_work_runs_where_a_user_may_have_few_threads(machine: Machine, number: int) -> None:
    root_only("to be a user of whom no other process is")
    program = machine.start("Few")
    program.ask("limit_user", user=1_000_000_000 + os.getpid(), number=number)
    assert program.ask("first_work") == "8"
    if number > 4:
        assert program.ask("one_lets_the_other_go")
    assert program.ask("close") == 0


def test_a_cgroup_whose_name_is_no_utf_8(machine: Machine) -> None:
    program = machine.start("Few")
    group = machine.cgroup("pids", program, suffix=b"-\xff\xe9\x0b")
    assert program.ask("first_work") == "8"
    group["pids.max"] = int(group["pids.current"])
    assert program.ask("headroom") == 0, "its limit is seen"
    group["pids.max"] = "max"
    assert program.ask("close") == 0
