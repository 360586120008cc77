"""H3, F9: the whole process stands still for a while, and doesn't know."""

from __future__ import annotations

import signal
import time

import pytest

from .machine import Machine, wait_until
from .test_cpus import await_progress, check_end

STILL = 2.0
"""Seconds, longer than the threshold of the watchdog."""


@pytest.mark.parametrize("how", ["SIGSTOP", "freezer"])
def test_H3_F9_a_process_that_is_stopped_for_a_while_goes_on_as_if_nothing_had_been(machine: Machine, how: str) -> None:
    """Nothing is lost, delayed works run, no earlier than they should, and that no work began meanwhile is no stall.

    A work waits behind others meanwhile, for 0.6 s in which the process isn't stopped.
    """
    program = machine.start("Held", watch_period=0.1, watchdog_thresh=1.5, idle_worker_timeout=0.5)
    group = machine.cgroup("freezer", program) if how == "freezer" else None
    await_progress(program)
    program.ask("hold")
    time.sleep(0.3)  # no wait: so that the watchdog has seen that works wait
    if group is None:
        program.signal(signal.SIGSTOP)
    else:
        group["freezer.state"] = "FROZEN"
        wait_until(lambda: group["freezer.state"] != "FROZEN" and "it isn't frozen yet")
    time.sleep(STILL)  # no wait: it stands still meanwhile
    if group is None:
        program.signal(signal.SIGCONT)
    else:
        group["freezer.state"] = "THAWED"
    time.sleep(0.3)  # no wait: so that it looks again
    assert program.ask("let_go")
    await_progress(program)
    assert program.ask("reports")["told"] == []
    check_end(program)
