"""The constants of the rules, named as the kernel names them. One frozen value per runtime."""

from __future__ import annotations

from dataclasses import dataclass, fields

from cmwq._core import checks

HIGHPRI_NICE = -20
"""E7: the nice value that workers of highpri pools ask for (HIGHPRI_NICE_LEVEL)."""
DFL_ACTIVE = 256
"""E1: works of one queue that may be active on one pool, unless the queue says otherwise (WQ_DFL_ACTIVE)."""
PAUSES = frozenset({"create_cooldown", "mayday_interval", "trustee_cooldown"})
"""Settings that say how soon something is done again, and again."""
MIN_PAUSE = 1e-3
"""Seconds: with less the timer thread would do nothing else."""


@dataclass(frozen=True, slots=True)
class Config:
    """Settings of a runtime. Durations in seconds."""

    idle_worker_timeout: float = 300.0
    """B3: how long a surplus worker stays idle before it is culled."""
    max_idle_workers_ratio: int = 4
    """B3: one surplus idle worker is kept for so many busy ones."""
    create_cooldown: float = 1.0
    """B2: pause after a thread was refused before the next try."""
    mayday_initial_timeout: float = 10e-3
    """C2: work waits and no worker could be created for so long: the rescuers are called."""
    mayday_interval: float = 0.1
    """C2: and again every so often."""
    trustee_cooldown: float = 0.1
    """D5: how often it is looked whether a pool without a CPU has drained."""
    lend_interval: float = 0.1
    """E1: how often, while works wait inactive, it is looked whether they wait for themselves. 0: never."""
    watch_period: float = 1.0
    """D1, H3: how often, while work is unfinished, it is looked for CPUs that changed, and for stalls. 0: never."""
    watchdog_thresh: float = 30.0
    """H3: a pool with works of which none began for so long is reported. 0: none is."""
    cpu_intensive_thresh: float = 10e-3
    """A9: a work that used the CPU for longer without blocking is a hog; 0: nobody looks."""
    exit_grace: float = 5.0
    """G3: how long, at interpreter exit, works may queue others to their own named queue."""
    slack_per_cpu: int = 8
    """A5: so many more than the target may go on working, per CPU, while as many are blocked. 0: the kernel's rule."""

    def __post_init__(self) -> None:
        """Raises TypeError, ValueError: a value that can't be."""
        for field in fields(self):
            what, value = f"Config.{field.name}", getattr(self, field.name)
            if isinstance(field.default, int):
                checked: float = checks.integer(what, value, 0)
            else:
                checked = checks.seconds(what, value, MIN_PAUSE if field.name in PAUSES else 0)
            object.__setattr__(self, field.name, checked)
