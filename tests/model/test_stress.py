"""`bench/stress.py`, a second of each: its promises hold. (`make stress` takes its time.)"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import module_of

import cmwq

SCRIPT = Path(__file__).parents[2] / "bench" / "stress.py"


@pytest.fixture(scope="module")
def stress() -> Any:
    return module_of(SCRIPT)


def test_F1_flushes_return_under_constant_queueing(stress: Any, runtime: cmwq.Runtime) -> None:
    assert stress.flush(0.5, runtime) == []


def test_F5_F6_everything_races_everything_and_nothing_is_lost(stress: Any, runtime: cmwq.Runtime) -> None:
    assert stress.race(1.0, runtime) == []


def test_E4_coalescing_many_times(stress: Any, runtime: cmwq.Runtime) -> None:
    assert stress.coalesce(0.1, runtime) == []


def test_F9_delayed_works_run_in_order_of_time(stress: Any, runtime: cmwq.Runtime) -> None:
    assert stress.timers(0, runtime, [1_000, 10_000]) == []
