"""The cases of the hot path with the C, and with the Python, each in a process of its own; and what chooses.

Most tests run in the debug mode, which has no twin. So the tests of queues that come closest to the hot path are run
here without it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import needs_failing_malloc
from interrupted.sweep import Sweep
from thorough import often

from cmwq._sensor import why_not

TESTS = Path(__file__).resolve().parent.parent
CASES = "twin/test_twin_cases.py"
NEAR = (
    "queues/test_submit.py",
    "queues/test_pending.py",
    "queues/test_cancel.py",
    "queues/test_flush.py",
    "door/test_surface.py",
    "model",
)
BUILT = why_not("sentinel") is None

needs_c = pytest.mark.skipif(not BUILT, reason="no C extension")


def run_tests(twin: str, *files: str, **env: str) -> None:
    """In a process in which that twin serves: "C" or "Python"."""
    environment = {**os.environ, "CMWQ_DEBUG": "0", "CMWQ_TWIN": str(int(twin == "C")), "CMWQ_TEST_TWIN": twin, **env}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(str(TESTS / file) for file in files)],
        cwd=TESTS.parent, env=environment, capture_output=True, text=True, timeout=800, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("twin", [pytest.param("C", marks=needs_c), "Python"])
def test_the_cases_are_the_same_with_either(twin: str) -> None:
    run_tests(twin, CASES)


@needs_c
@pytest.mark.timeout(900)
def test_the_tests_of_queues_pass_with_the_c() -> None:
    run_tests("C", *NEAR)


@needs_c
@pytest.mark.timeout(900)
def test_the_c_serves_whatever_the_sensor() -> None:
    run_tests("C", CASES, CMWQ_SENSOR="procfs")


WHICH = """
    from cmwq._core import records
    from cmwq._workqueue import twin
    import cmwq
    print(twin.installed, records.NATIVE, type(cmwq.WorkQueue.submit).__name__)
"""


@pytest.mark.parametrize(
    ("variables", "serves"),
    [
        ({}, BUILT),
        ({"CMWQ_TWIN": "1"}, BUILT),
        ({"CMWQ_TWIN": "0"}, False),
        ({"CMWQ_DEBUG": "1"}, False),
        ({"CMWQ_DEBUG": "1", "CMWQ_TWIN": "1"}, False),
    ],
)
def test_the_environment_chooses(
    python: Callable[..., subprocess.CompletedProcess[str]], variables: dict[str, str], serves: bool
) -> None:
    env = {key: value for key, value in os.environ.items() if key not in ("CMWQ_DEBUG", "CMWQ_TWIN")}
    done = python(WHICH, env={**env, **variables})
    assert done.stdout.split()[:2] == [str(serves)] * 2, done.stderr
    assert (done.stdout.split()[2] == "method_descriptor") == serves


ONE_BY_ONE = (
    "submit",
    "submit beyond max_active",
    "submit_many",
    "map",
    "queue",
    "Future.cancel",
    "result",
)


@needs_c
@pytest.mark.timeout(900)
@pytest.mark.parametrize("attack", ["raise", "enter"])
def test_F10_where_the_c_calls_the_python_an_interruption_leaves_everything_whole(
    attack: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CMWQ_DEBUG", "0")
    monkeypatch.setenv("CMWQ_TWIN", "1")
    done = Sweep(attack, "sentinel", 1, samples=12, hangs=1, enough=3, most=5, patience=10.0)
    done.run([*ONE_BY_ONE])
    assert done.whole, done.failures()


@needs_c
@pytest.mark.timeout(900)
@pytest.mark.parametrize("attack", ["signal", "finaliser"])
def test_F10_what_comes_at_a_random_moment_leaves_everything_whole(
    attack: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CMWQ_DEBUG", "0")
    monkeypatch.setenv("CMWQ_TWIN", "1")
    done = Sweep(attack, "sentinel", 1, rounds=often(30, 10), hangs=1, enough=3, most=5, patience=10.0)
    done.run(["submit", "submit_many", "queue", "map"])
    assert done.whole, done.failures()


@needs_c
@needs_failing_malloc
@pytest.mark.timeout(900)
def test_F10_memory_that_ends_leaves_everything_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CMWQ_DEBUG", "0")
    monkeypatch.setenv("CMWQ_TWIN", "1")
    done = Sweep("memory", "sentinel", 1, samples=12, hangs=1, enough=3, most=5, patience=10.0)
    done.run(["submit", "submit beyond max_active", "submit_many", "queue", "map"])
    assert done.whole, done.failures()
