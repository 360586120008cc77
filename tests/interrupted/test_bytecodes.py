"""F10, at some bytecodes and allocations of every operation; `make interrupted` takes all of them.

Each test is a sweep (`interrupted.sweep`): a failure names the operation, the place, and what broke, and how to have it
again.
"""

from __future__ import annotations

import os
from collections.abc import Collection

import pytest
from conftest import needs_failing_malloc

from interrupted.operations import OPERATIONS
from interrupted.sweep import Sweep

SEED = int(os.environ.get("CMWQ_SEED", "1"))

pytestmark = [
    pytest.mark.timeout(900),  # of code that is broken; else a few seconds
    pytest.mark.parametrize(
        ("sensor", "locks"),
        [("sentinel", ""), ("procfs", ""), ("procfs", "python")],
        indirect=["sensor"],
    ),
]


OTHERS_FAIL = {
    "Future.cancel, callbacks", "Future.cancel, cf.wait", "cf.wait", "result(timeout)",
    "a queue with a rescuer, made and closed", "Runtime, from first use to close", "subscribe to events, and close",
}  # fmt: skip
"""Operations in which, if memory runs out, what fails may not be ours: a callback, `concurrent.futures`, the bootstrap
of a thread, CPython 3.11's frames. `make interrupted` tells what became of them."""


def sweep(attack: str, sensor: str, locks: str, samples: int, without: Collection[str] = ()) -> Sweep:
    done = Sweep(attack, sensor, SEED, locks=locks, samples=samples, hangs=1, enough=3, most=5, patience=10.0)
    done.run([name for name in OPERATIONS if name not in without])
    return done


def test_F10_an_exception_at_any_bytecode_leaves_everything_whole(sensor: str, locks: str) -> None:
    done = sweep("raise", sensor, locks, samples=8)
    assert done.whole, done.failures()


def test_F10_a_call_of_ours_at_any_bytecode_returns_and_leaves_everything_whole(sensor: str, locks: str) -> None:
    done = sweep("enter", sensor, locks, samples=10)
    assert done.whole, done.failures()


def test_F10_G6_what_a_handler_lets_out_at_any_bytecode_leaves_everything_whole(sensor: str, locks: str) -> None:
    done = sweep("let-out", sensor, locks, samples=8)
    assert done.whole, done.failures()


@needs_failing_malloc
def test_F10_memory_that_ends_at_any_allocation_leaves_everything_whole(sensor: str, locks: str) -> None:
    done = sweep("memory", sensor, locks, samples=2, without=OTHERS_FAIL)
    assert done.whole, done.failures()
