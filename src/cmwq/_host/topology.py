"""The CPUs of this process: which it may use and how much of them, and which of them lie close together.

Which and how much: affinity, cpuset, and the cgroup's quota. Close together: `Topology`, from what the kernel shows in
sysfs.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

SCOPES = ("cpu", "smt", "cache", "numa", "system")
"""What CPUs may have in common, the closest first: nothing, a core, the last-level cache, the memory, the machine."""

_INSTEAD = {"smt": "cpu", "cache": "numa", "numa": "system"}
"""What is asked about CPUs of which a scope is not known."""

_RANGE = re.compile(r"(\d{1,5})(?:-(\d{1,5})(?::(\d{1,5})/(\d{1,5}))?)?", re.ASCII)
"""Five digits: more CPUs than any kernel can have, and still quickly listed if it is nonsense."""


def cpus() -> tuple[int, ...]:
    """The CPUs the process may run on, at least one. The process's are its main thread's: others may be bound."""
    for pid in (os.getpid(), 0):  # 0: this thread's, should the main thread have ended
        try:
            return tuple(sorted(os.sched_getaffinity(pid)))
        except (OSError, AttributeError):  # AttributeError: no Linux
            continue
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
        own = os.fsdecode(Path("/proc/self/cgroup").read_bytes())  # a path need be no UTF-8
    except OSError:
        return
    for line in own.split("\n"):  # the only character that no cgroup's name has
        _, found, line = line.partition(":")
        controllers, _, path = line.partition(":")
        if not found:
            continue
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
        except (OSError, ValueError):
            return None
    try:
        return None if quota in ("max", "-1") else int(quota) / int(period)
    except (ValueError, ZeroDivisionError):
        return None


class Topology:
    """Which CPUs share what. A file that is missing, unreadable or nonsense says nothing, and raises nothing.

    Reads with every call and keeps nothing: its user should. root: where the kernel describes the system's devices.
    """

    def __init__(self, root: Path = Path("/sys/devices/system")) -> None:
        self._root = root

    def groups(self, scope: str, cpus: Iterable[int]) -> tuple[tuple[int, ...], ...]:
        """The CPUs that share what `scope` says, sorted. Each of the given CPUs is in exactly one group.

        A group is believed if each of its CPUs names the same one. CPUs of which nothing is known (they may be
        offline), or of which the files disagree, are grouped among themselves by what `_INSTEAD` says.

        Scopes are not bound to nest. A cache may serve more than one NUMA node, on machines that split a socket.
        """
        if scope not in SCOPES:
            raise ValueError(f"{scope!r} is no scope: {', '.join(SCOPES)} are")
        return tuple(sorted(tuple(sorted(group)) for group in self._split(scope, frozenset(cpus))))

    def _split(self, scope: str, cpus: frozenset[int]) -> list[frozenset[int]]:
        if scope == "cpu":
            return [frozenset((cpu,)) for cpu in cpus]
        if scope == "system" or not cpus:
            return [cpus] if cpus else []
        if scope == "numa":
            named = self._nodes()
        else:
            mates = self._core_mates if scope == "smt" else self._cache_mates
            named = {cpu: mates(cpu) for cpu in cpus}
        known = _agreed({cpu: named.get(cpu, frozenset()) & cpus for cpu in cpus})
        return known + self._split(_INSTEAD[scope], cpus.difference(*known))

    def _core_mates(self, cpu: int) -> frozenset[int]:
        folder = self._root / f"cpu/cpu{cpu}/topology"
        # The second is the older name, before Linux 5.3.
        return _cpu_list(folder / "core_cpus_list") or _cpu_list(folder / "thread_siblings_list")

    def _cache_mates(self, cpu: int) -> frozenset[int]:
        """Of the last-level cache, as far as it holds data."""
        best, mates = 0, frozenset[int]()
        for folder in _folders(self._root / f"cpu/cpu{cpu}/cache", "index"):
            level = _text(folder / "level")
            if _text(folder / "type") not in ("Data", "Unified") or not re.fullmatch("[0-9]", level):
                continue
            if int(level) > best and (sharing := _cpu_list(folder / "shared_cpu_list")):
                best, mates = int(level), sharing
        return mates

    def _nodes(self) -> dict[int, frozenset[int]]:
        """The CPUs of each CPU's NUMA node. A CPU that two nodes claim has none."""
        nodes = [_cpu_list(folder / "cpulist") for folder in _folders(self._root / "node", "node")]
        claims = Counter(cpu for node in nodes for cpu in node)
        return {cpu: node for node in nodes for cpu in node if claims[cpu] == 1}


def _agreed(named: dict[int, frozenset[int]]) -> list[frozenset[int]]:
    """The groups that all of their members name. As each CPU names one group, no two have a member in common."""
    votes = Counter(group for cpu, group in named.items() if cpu in group)
    return [group for group, number in votes.items() if number == len(group)]


def parse_cpu_list(text: str) -> frozenset[int]:
    """The kernel's notation: "0-3,8-11"; "0-7:2/4" is the first 2 of every 4. Empty if it is anything else."""
    cpus: set[int] = set()
    for part in text.strip().split(","):
        match = _RANGE.fullmatch(part)
        if match is None:
            return frozenset()
        first, last, used, period = (int(number or -1) for number in match.groups())
        if last < 0:
            last = first
        if period < 0:
            used = period = 1
        if last < first or period == 0 or used > period:
            return frozenset()
        cpus.update(cpu for cpu in range(first, last + 1) if (cpu - first) % period < used)
    return frozenset(cpus)


def _cpu_list(path: Path) -> frozenset[int]:
    return parse_cpu_list(_text(path))


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, ValueError):  # ValueError: bytes that are no text
        return ""


def _folders(parent: Path, prefix: str) -> list[Path]:
    """Those named prefix and a number."""
    try:
        names = sorted(os.listdir(parent))
    except OSError:
        return []
    return [parent / name for name in names if name.startswith(prefix) and name[len(prefix) :].isdecimal()]
