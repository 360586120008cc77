"""What `cmwq.configure` takes, and whether it is sound: looked at where it is given, for it would fail far away."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import fields
from typing import TYPE_CHECKING, TypedDict

from cmwq._core.config import Config

if TYPE_CHECKING:
    from cmwq._core.ports import Sensor
    from cmwq._core.watchdog import Stall

FIELDS = frozenset(field.name for field in fields(Config))
"""The settings that are constants of the rules."""


class Settings(TypedDict, total=False):
    """Settings of the default runtime, by name."""

    max_workers: int
    """Cap on the workers of a pool (B6); at least 2. Default: 1024."""
    sensor: Sensor | str | None
    """Who notices blocking: "sentinel", "procfs", "hints", or a `Sensor`. Default: CMWQ_SENSOR, or the best."""
    cpus: Iterable[int] | None
    """Which CPUs to use, by their numbers. Default: those the process may use."""
    exit_timeout: float | None
    """Seconds after which the interpreter's end does not wait for works any more (G3). Default: it waits for all."""
    on_stall: Callable[[Stall], object] | None
    """Called on the timer thread when a pool stalls, and when it goes on (H3)."""
    on_unfetched: Callable[[str, BaseException], object] | None
    """Called when a failed call's exception is lost, for nobody fetched it: see `Runtime.on_unfetched`."""

    # Those of `Config`, which describes them. Durations in seconds.
    idle_worker_timeout: float
    max_idle_workers_ratio: int
    create_cooldown: float
    mayday_initial_timeout: float
    mayday_interval: float
    trustee_cooldown: float
    watch_period: float
    watchdog_thresh: float
    cpu_intensive_thresh: float
    exit_grace: float
    slack_per_cpu: int


def checked_config(config: Config) -> Config:
    """Raises TypeError, ValueError for a field that is no number of 0 or more."""
    for field in fields(config):
        value: object = getattr(config, field.name)
        kinds: tuple[type, ...] = (int,) if field.type == "int" else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds):
            raise TypeError(f"{field.name} is {value!r}, and must be {'an integer' if kinds == (int,) else 'a number'}")
        assert isinstance(value, (int, float))
        if not 0 <= value < math.inf:
            raise ValueError(f"{field.name} is {value!r}, and must be 0 or more, and finite")
    return config


def checked_max_workers(max_workers: int) -> int:
    if isinstance(max_workers, bool) or not isinstance(max_workers, int):
        raise TypeError(f"max_workers is {max_workers!r}, and must be an integer")
    if max_workers < 2:
        raise ValueError(f"max_workers is {max_workers}: a pool needs at least 2, one to work and one in reserve")
    return max_workers


def checked_cpus(cpus: Iterable[int] | None) -> tuple[int, ...] | None:
    if cpus is None:
        return None
    wanted = tuple(sorted(set(cpus)))
    if not wanted:
        raise ValueError("cpus is empty: a runtime needs one at least")
    for cpu in wanted:
        if isinstance(cpu, bool) or not isinstance(cpu, int) or cpu < 0:
            raise ValueError(f"cpus: {cpu!r} is no CPU's number")
    return wanted


def checked_exit_timeout(seconds: float | None) -> float | None:
    if seconds is None:
        return None
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise TypeError(f"exit_timeout is {seconds!r}, and must be a number of seconds, or None: no limit")
    if not 0 <= seconds < math.inf:
        raise ValueError(f"exit_timeout is {seconds!r}, and must be 0 or more; None: no limit")
    return seconds


def checked_call(name: str, call: Callable[..., object] | None) -> Callable[..., object] | None:
    if call is not None and not callable(call):
        raise TypeError(f"{name} is {call!r}, and must be callable, or None")
    return call
