"""The constants of the rules, named as in the kernel. Each runtime has one immutable `Config`."""

from __future__ import annotations

from dataclasses import dataclass, fields

from cmwq._core import checks

HIGHPRI_NICE = -20
"""E7: the nice value that workers of highpri pools ask for (HIGHPRI_NICE_LEVEL)."""
DFL_ACTIVE = 256
"""E1: how many works of a queue may be active on one pool, unless the queue says otherwise (WQ_DFL_ACTIVE)."""
PAUSES = frozenset({"create_cooldown", "mayday_interval", "trustee_cooldown"})
"""The settings that say after what pause something is repeated."""
MIN_PAUSE = 1e-3
"""Seconds: with shorter pauses the timer thread would do nothing else."""


@dataclass(frozen=True, slots=True)
class Config:
    """Settings of a runtime. Durations are in seconds. Immutable, so threads may share it. Raises TypeError,
    ValueError.
    """

    idle_worker_timeout: float = 300.0
    """B3: how long a surplus worker stays idle before it is culled."""
    max_idle_workers_ratio: int = 4
    """B3: one surplus idle worker is kept for this many busy workers."""
    create_cooldown: float = 1.0
    """B2: the pause after the system refused a thread, before the next attempt."""
    mayday_initial_timeout: float = 10e-3
    """C2: how long work waits while no worker can be created before the rescuers are called."""
    mayday_interval: float = 0.1
    """C2: how long until they are called again, while that lasts."""
    trustee_cooldown: float = 0.1
    """D2: the interval between checks whether a pool without a CPU has drained."""
    lend_interval: float = 0.1
    """E1: the interval between checks, while works are inactive, whether active works wait for them. 0: no checks."""
    watch_period: float = 1.0
    """D1, H3: the interval between checks for changed CPUs and for stalls, while work is unfinished. 0: no checks."""
    watchdog_thresh: float = 30.0
    """H3: a pool with waiting works is reported if none began for this long. 0: no reports."""
    cpu_intensive_thresh: float = 10e-3
    """A9: a work that used the CPU for longer than this without blocking is a hog. 0: no detection."""
    exit_grace: float = 5.0
    """G3: how long, at interpreter exit, works may queue other works to their own named queue."""
    slack_per_cpu: int = 8
    """A5: this many workers per CPU may go on working beyond the target, while as many are blocked. 0: the kernel's
    rule.
    """

    def __post_init__(self) -> None:
        """Check every setting. Raises TypeError, ValueError."""
        for field in fields(self):
            what, value = f"Config.{field.name}", getattr(self, field.name)
            if isinstance(field.default, int):
                checked: float = checks.integer(what, value, 0)
            else:
                checked = checks.seconds(what, value, MIN_PAUSE if field.name in PAUSES else 0)
            object.__setattr__(self, field.name, checked)
