"""cmwq.configure: settings of the default runtime, before its first use."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest
from conftest import HANG

import cmwq

Python = Callable[..., "subprocess.CompletedProcess[str]"]

OTHERS = {"max_workers", "sensor", "cpus", "exit_timeout", "on_stall", "on_unfetched"}


def check(done: subprocess.CompletedProcess[str], expected: str = "") -> None:
    assert (done.stdout, done.stderr, done.returncode) == (expected, "", 0)


def test_what_there_is_to_set_is_what_is_described() -> None:
    constants = {field.name: field.type for field in fields(cmwq.Config)}
    assert set(cmwq.Settings.__annotations__) == set(constants) | OTHERS
    for name, kind in constants.items():
        assert cmwq.Settings.__annotations__[name].__forward_arg__ == kind
    text = str(cmwq.configure.__doc__)
    for name in OTHERS:
        assert f"{name}:" in text
    assert "durations in seconds" in text


def test_the_default_runtime_is_set_and_nothing_starts(python: Python) -> None:
    check(
        python("""
            import cmwq, os, threading
            cpu = min(os.sched_getaffinity(0))
            stalls = []
            cmwq.configure(max_workers=7, sensor="hints", cpus=[cpu], exit_timeout=3, on_stall=stalls.append)
            cmwq.configure(idle_worker_timeout=10, slack_per_cpu=3, exit_grace=1.5)  # the others stay
            runtime = cmwq.default_runtime()
            assert threading.active_count() == 1
            assert cmwq.system.submit(os.sched_getaffinity, 0).result() == {cpu}
            (pool,) = runtime.pools()
            assert (pool.office.max_workers, pool.cpus, pool.config) == (7, (cpu,), runtime.config)
            assert (runtime.config.idle_worker_timeout, runtime.config.slack_per_cpu, runtime.config.exit_grace) == (
                10, 3, 1.5)
            assert (runtime.exit_timeout, runtime.on_stall) == (3, stalls.append)
            assert cmwq.snapshot().sensor == "hints"
        """)
    )


def test_after_the_first_use_it_is_refused_and_nothing_changes(python: Python) -> None:
    check(
        python("""
            import cmwq
            cmwq.system.submit(int).result()
            try:
                cmwq.configure(max_workers=7, on_stall=print, exit_timeout=1)
            except RuntimeError as exc:
                print(exc)
            runtime = cmwq.default_runtime()
            print(runtime.max_workers, runtime.on_stall, runtime.exit_timeout)
        """),
        "max_workers, on_stall, exit_timeout can't be set any more: the runtime began; configure it before its first "
        "use, or make a Runtime of your own\n1024 None None\n",
    )


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"max_worker": 3}, TypeError, "no such setting: max_worker; there are max_workers, sensor, "),
        ({"max_workers": 1}, ValueError, "max_workers is 1, and must be at least 2"),
        ({"max_workers": "3"}, TypeError, "max_workers is '3', and must be an integer"),
        ({"max_workers": 2.5}, TypeError, "max_workers is 2.5, and must be an integer"),
        ({"sensor": "radar"}, ValueError, "sensor 'radar' is none of 'sentinel', 'procfs', 'hints'"),
        ({"cpus": []}, ValueError, "cpus is empty"),
        ({"cpus": [-1]}, ValueError, "one of cpus is -1, and must be at least 0"),
        ({"cpus": [60000]}, ValueError, "cpus is (60000,), and this process may use none of them, but ("),
        ({"cpus": [0.5]}, TypeError, "one of cpus is 0.5, and must be an integer"),
        ({"exit_timeout": -1}, ValueError, "exit_timeout is -1 s, and must be at least 0 s"),
        ({"exit_timeout": float("nan")}, ValueError, "exit_timeout is nan"),
        ({"exit_timeout": "1"}, TypeError, "exit_timeout is '1', and must be a number of seconds, not str"),
        ({"on_stall": 3}, TypeError, "on_stall is 3, and must be callable, which int is not"),
        ({"on_unfetched": 3}, TypeError, "on_unfetched is 3, and must be callable, which int is not"),
        ({"watch_period": -0.5}, ValueError, "watch_period is -0.5 s, and must be at least 0 s"),
        ({"watch_period": float("nan")}, ValueError, "watch_period is nan"),
        ({"watch_period": None}, TypeError, "watch_period is None, and must be a number"),
        ({"slack_per_cpu": 1.5}, TypeError, "slack_per_cpu is 1.5, and must be an integer"),
    ],
)
def test_settings_are_checked_where_they_are_given_and_are_taken_all_or_none(
    settings: dict[str, Any], error: type[Exception], words: str
) -> None:
    runtime = cmwq.Runtime()
    before = dict(vars(runtime))
    with pytest.raises(error, match=re.escape(words)):
        runtime.configure(create_cooldown=7.0, **settings)
    assert vars(runtime) == before
    runtime.close(HANG)


def test_a_runtimes_own_settings_are_checked_too() -> None:
    options: list[dict[str, Any]] = [
        {"cpus": [-1]},
        {"cpus": [60000]},
        {"max_workers": 1},
        {"exit_timeout": -1},
        {"sensor": "radar"},
    ]
    for option in options:
        with pytest.raises(ValueError, match=next(iter(option))):
            cmwq.Runtime(**option)
    with pytest.raises(ValueError, match="mayday_interval is -1"):
        cmwq.Runtime(config=cmwq.Config(mayday_interval=-1))


def test_what_was_taken_offline_by_hand_stays_so() -> None:
    cpus = cmwq.default_runtime().host.cpus()
    if len(cpus) < 2:
        pytest.skip("needs two CPUs")
    with cmwq.Runtime() as runtime:
        runtime.cpu_offline(cpus[0])
        runtime.configure(cpus=cpus)
        assert runtime.cpus() == cpus[1:]


def test_the_children_of_a_fork_have_the_same_settings_and_may_change_them_first(python: Python) -> None:
    check(
        python("""
            import cmwq, os, warnings
            warnings.simplefilter("ignore", DeprecationWarning)
            cmwq.configure(max_workers=7, sensor="hints", exit_timeout=3)
            cmwq.system.submit(int).result()
            def in_child(settings, expected):
                pid = os.fork()
                if pid == 0:
                    cmwq.configure(**settings)
                    cmwq.system.submit(int).result(30)
                    (pool,) = cmwq.default_runtime().pools()
                    got = pool.office.max_workers, cmwq.snapshot().sensor, cmwq.default_runtime().exit_timeout
                    os._exit(got != expected)
                assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
            in_child({}, (7, "hints", 3))
            in_child({"max_workers": 5}, (5, "hints", 3))
        """)
    )
