"""The settings of `cmwq.configure`, checked where they are given, because a wrong one would fail far from there."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import fields
from typing import TYPE_CHECKING, Literal, TypeAlias, TypedDict

from cmwq._core import checks
from cmwq._core.config import Config

if TYPE_CHECKING:
    from cmwq._core.ports import Sensor
    from cmwq._workqueue.report import Stall

SensorName: TypeAlias = Literal["sentinel", "procfs", "hints"]

FIELDS = frozenset(field.name for field in fields(Config))
"""The settings that are constants of the rules."""


class Settings(TypedDict, total=False):
    """The settings of the default runtime, by name."""

    max_workers: int
    """The cap on the workers of one pool (B6); at least 2. Default: 1024."""
    sensor: Sensor | SensorName | None
    """What notices blocked workers: "sentinel", "procfs", "hints", or a `Sensor`. Default: CMWQ_SENSOR, or the best."""
    cpus: Iterable[int] | None
    """Which CPUs to use, by number. Default: those the process may use."""
    exit_timeout: float | None
    """Seconds after which interpreter exit does not wait for works any more (G3). Default: it waits for all."""
    on_stall: Callable[[Stall], object] | None
    """Called on the timer thread when a pool or a queue stalls, and when it goes on (H3)."""
    on_unfetched: Callable[[str, BaseException], object] | None
    """Called when the exception of a failed call is lost because nobody fetched it: see `Runtime.on_unfetched`."""

    # These are fields of `Config`, which describes them. Durations are in seconds.
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
    lend_interval: float
    slack_per_cpu: int


def checked_exit_timeout(seconds: float | None) -> float | None:
    return None if seconds is None else checks.seconds("exit_timeout", seconds, 0, checks.ENDLESS)


def checked_call(name: str, call: Callable[..., object] | None) -> Callable[..., object] | None:
    return None if call is None else checks.function(name, call)
