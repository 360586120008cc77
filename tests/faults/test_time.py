"""H3, F9: the whole process stands still for a while, and doesn't know."""

from __future__ import annotations

import time

import pytest

from .machine import Machine, wait_until
from .test_cpus import await_progress, check_end

STILL = 2.0
"""Seconds, longer than the threshold of the watchdog."""
PERIOD, THRESHOLD = 0.1, 1.5
"""The watchdog's."""


@pytest.mark.parametrize("how", ["SIGSTOP", "freezer"])
def test_H3_F9_a_process_that_is_stopped_for_a_while_goes_on_as_if_nothing_had_been(machine: Machine, how: str) -> None:
    """Nothing is lost, delayed works run, no earlier than they should, and that no work began meanwhile is no stall.

    A work waits behind others meanwhile. The time in which the process isn't stopped is a stall, should it be so long
    on a busy machine; of the other no more than two periods count.
    """
    program = machine.start("Held", watch_period=PERIOD, watchdog_thresh=THRESHOLD, idle_worker_timeout=0.5)
    await_progress(program)
    began = time.monotonic()
    program.ask("hold")
    wait_until(lambda: not program.ask("counted") and "the watchdog does not see that works wait")
    with program.stopped() if how == "SIGSTOP" else machine.frozen(program):
        stopped = time.monotonic()
        time.sleep(STILL)  # no wait: it stands still meanwhile
        stood_still = time.monotonic() - stopped
    counted = program.ask("counted")
    wait_until(lambda: program.ask("counted") == counted and "the watchdog does not look again")
    counted = program.ask("counted")
    waited = time.monotonic() - began - stood_still + 2 * PERIOD
    assert counted <= waited
    assert program.ask("let_go")
    await_progress(program)
    assert waited > THRESHOLD or program.ask("reports")["told"] == []
    check_end(program)
