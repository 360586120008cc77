"""F8, F10, G2, G3, G6 at random moments, for a few seconds; `make storms` takes as many rounds as it promises."""

from __future__ import annotations

import pytest
from thorough import often

from interrupted.ends import exits, forks
from interrupted.operations import OPERATIONS
from interrupted.sweep import Sweep
from interrupted.test_bytecodes import SEED

pytestmark = pytest.mark.timeout(900)  # of code that is broken; else a few seconds
sensors = pytest.mark.parametrize("sensor", ["sentinel", "procfs"], indirect=True)


def storm(attack: str, sensor: str, rounds: int, operations: list[str]) -> None:
    done = Sweep(attack, sensor, SEED, rounds=rounds, hangs=1, enough=3, most=5, patience=10.0)
    done.run(operations)
    assert done.whole, done.failures()


@sensors
def test_F8_F10_ctrl_c_at_any_moment_leaves_everything_whole(sensor: str) -> None:
    storm("signal", sensor, often(5, 3), [*OPERATIONS])


@sensors
def test_F10_G6_a_signal_handler_may_call_at_any_moment(sensor: str) -> None:
    storm("handler", sensor, 1, [*OPERATIONS])


@sensors
def test_F10_G6_a_finaliser_may_call_at_any_moment(sensor: str) -> None:
    storm("finaliser", sensor, often(2, 1), [*OPERATIONS])


@sensors
def test_F10_G6_a_weak_references_callback_may_call_at_any_moment(sensor: str) -> None:
    storm("callback", sensor, often(2, 1), [*OPERATIONS])


@sensors
def test_F10_exceptions_in_any_thread_leave_the_pool_whole(sensor: str) -> None:
    storm("asynchronous", sensor, 30, ["submit", "submit beyond max_active"])


def test_G2_a_fork_at_any_moment_leaves_a_child_that_works() -> None:
    told: list[str] = []
    assert forks(40, SEED, told.append) == 0, "\n".join(told)


def test_G3_an_end_at_any_moment_does_what_was_accepted_and_says_nothing() -> None:
    told: list[str] = []
    assert exits(15, SEED, told.append) == 0, "\n".join(told)
