"""The CPUs of this process: which it may use, how much of their time, and what they share.

The first two come from affinity, cpuset and the cgroup's quota, the last (`Topology`) from sysfs. All functions are
thread-safe and read the system anew with each call.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator

from cmwq._host import files

SCOPES = ("cpu", "smt", "cache", "numa", "system")
"""What the CPUs of a group share, the closest first: nothing, a core, the last-level cache, a NUMA node, the
machine."""

_INSTEAD = {"smt": "cpu", "cache": "numa", "numa": "system"}
"""The scope to use for CPUs of which a scope is not known."""

_LEVELS = frozenset("123456789")
_RANGE = re.compile(r"(\d{1,5})(?:-(\d{1,5})(?::(\d{1,5})/(\d{1,5}))?)?", re.ASCII)
"""Five digits are more CPUs than any kernel has, and keep the list short if the text is wrong."""


def cpus() -> tuple[int, ...]:
    """The CPUs that the process may run on, sorted, at least one. They are its main thread's; others may be bound."""
    for pid in (os.getpid(), 0):  # 0: this thread's, if the main thread has ended
        try:
            return tuple(sorted(os.sched_getaffinity(pid)))
        except (OSError, AttributeError):  # AttributeError: no Linux
            continue
    return tuple(range(os.cpu_count() or 1))


def cpu_limit() -> int:
    """How many CPUs the process may keep busy: the number of `cpus()`, capped by `cpu_quota()` rounded up; at least
    1."""
    quota = cpu_quota()
    limit = len(cpus())
    return limit if quota is None else max(1, min(limit, math.ceil(quota)))


def cpu_quota() -> float | None:
    """The tightest CPU quota of the process's cgroup (v2 or v1) and those above it, in CPUs; None: no quota."""
    quotas = [quota for folder in cgroup_folders("cpu") if (quota := _quota_of(folder)) is not None]
    return min(quotas, default=None)


def cgroup_folders(controller: str) -> Iterator[str]:
    """The folders of the process's cgroup for that controller, the innermost first, up to the mount."""
    try:
        own = os.fsdecode(files.read("/proc/self/cgroup"))  # a path need not be UTF-8
    except OSError:
        return
    for line in own.split("\n"):  # not splitlines(): a cgroup's name may have any character but this one
        _, found, line = line.partition(":")
        controllers, _, path = line.partition(":")
        if not found:
            continue
        if not controllers:
            roots = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
        elif controller in controllers.split(","):
            roots = [f"/sys/fs/cgroup/{controllers}", f"/sys/fs/cgroup/{controller}"]
        else:
            continue
        root = next((root for root in roots if os.path.isdir(root)), None)
        if root is None:
            continue
        # In a container the path may be the host's, while only the mount's root is visible.
        names = [name for name in path.split("/") if name not in ("", ".")]
        for depth in range(len(names), -1, -1):
            folder = "/".join([root, *names[:depth]])
            if os.path.isdir(folder):
                yield folder


def _quota_of(folder: str) -> float | None:
    try:
        quota, period = files.read(f"{folder}/cpu.max").split()
    except (OSError, ValueError):
        try:
            quota = files.read(f"{folder}/cpu.cfs_quota_us").strip()
            period = files.read(f"{folder}/cpu.cfs_period_us").strip()
        except (OSError, ValueError):
            return None
    try:
        return None if quota in (b"max", b"-1") else int(quota) / int(period)
    except (ValueError, ZeroDivisionError):
        return None


class Topology:
    """Which CPUs share what. A file that is missing, unreadable or invalid counts as unknown and raises nothing.

    It reads files with every call and caches nothing; the caller should. `root` is where the kernel describes the
    system's devices. Thread-safe.
    """

    def __init__(self, root: str = "/sys/devices/system") -> None:
        self._root = root

    def groups(self, scope: str, cpus: Iterable[int]) -> tuple[tuple[int, ...], ...]:
        """The groups of CPUs that share what `scope` says, sorted. Each of the given CPUs is in exactly one group.

        A group is accepted if each of its CPUs names the same group. CPUs of which nothing is known (they may be
        offline), or of which the files disagree, are grouped among themselves by the scope in `_INSTEAD`.

        Scopes need not nest: a cache may serve more than one NUMA node on machines that split a socket. Raises
        ValueError for an unknown scope.
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
        folder = f"{self._root}/cpu/cpu{cpu}/topology"
        # The second is the older name, before Linux 5.3.
        return _cpu_list(f"{folder}/core_cpus_list") or _cpu_list(f"{folder}/thread_siblings_list")

    def _cache_mates(self, cpu: int) -> frozenset[int]:
        """The CPUs that share this CPU's last-level data or unified cache."""
        best, mates = 0, frozenset[int]()
        for folder in _folders(f"{self._root}/cpu/cpu{cpu}/cache", "index"):
            level = _text(f"{folder}/level")
            if _text(f"{folder}/type") not in ("Data", "Unified") or level not in _LEVELS:
                continue
            if int(level) > best and (sharing := _cpu_list(f"{folder}/shared_cpu_list")):
                best, mates = int(level), sharing
        return mates

    def _nodes(self) -> dict[int, frozenset[int]]:
        """For each CPU the CPUs of its NUMA node. A CPU that two nodes claim is left out."""
        nodes = [_cpu_list(f"{folder}/cpulist") for folder in _folders(f"{self._root}/node", "node")]
        claims = Counter(cpu for node in nodes for cpu in node)
        return {cpu: node for node in nodes for cpu in node if claims[cpu] == 1}


def _agreed(named: dict[int, frozenset[int]]) -> list[frozenset[int]]:
    """The groups that all of their members name. Each CPU names one group, so no two of them share a member."""
    votes = Counter(group for cpu, group in named.items() if cpu in group)
    return [group for group, number in votes.items() if number == len(group)]


def parse_cpu_list(text: str) -> frozenset[int]:
    """Parse the kernel's notation: "0-3,8-11"; "0-7:2/4" is the first 2 of every 4. Empty if the text is invalid."""
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


def _cpu_list(path: str) -> frozenset[int]:
    return parse_cpu_list(_text(path))


def _text(path: str) -> str:
    try:
        return files.read(path).decode().strip()
    except (OSError, ValueError):  # ValueError: bytes that don't decode
        return ""


def _folders(parent: str, prefix: str) -> list[str]:
    """The folders in `parent` that are named `prefix` and a number."""
    try:
        names = sorted(os.listdir(parent))
    except OSError:
        return []
    return [f"{parent}/{name}" for name in names if name.startswith(prefix) and name[len(prefix) :].isdecimal()]
