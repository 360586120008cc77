"""Which CPUs this process may use, and how much of them: affinity, cpuset, and the cgroup's quota."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path


def cpus() -> tuple[int, ...]:
    """The CPUs the process may run on, at least one."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def cpu_limit() -> int:
    """How many CPUs' worth of time the process may use: `cpus()`, capped by `cpu_quota()` rounded up, at least 1."""
    quota = cpu_quota()
    limit = len(cpus())
    return limit if quota is None else max(1, min(limit, math.ceil(quota)))


def cpu_quota() -> float | None:
    """The tightest CPU quota of the process's cgroup and those above it, in CPUs; None: no quota. cgroup v2 and v1."""
    quotas = [quota for folder in cgroup_folders("cpu") if (quota := _quota_of(folder)) is not None]
    return min(quotas, default=None)


def cgroup_folders(controller: str) -> Iterator[Path]:
    """The folders of the process's cgroup for that controller, the innermost first, up to the mount."""
    try:
        own = Path("/proc/self/cgroup").read_text()
    except OSError:
        return
    for line in own.splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            roots = [Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified")]
        elif controller in controllers.split(","):
            roots = [Path("/sys/fs/cgroup", controllers), Path("/sys/fs/cgroup", controller)]
        else:
            continue
        root = next((root for root in roots if root.is_dir()), None)
        if root is None:
            continue
        # In a container the path may be the host's, and only the mount's root be visible.
        folder = root / path.lstrip("/")
        while True:
            if folder.is_dir():
                yield folder
            if folder == root:
                break
            folder = folder.parent


def _quota_of(folder: Path) -> float | None:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    if quota in ("max", "-1"):
        return None
    return int(quota) / int(period)
