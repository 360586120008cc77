"""Pictures of a process that never was, made by the contract of `Snapshot.to_dict`: what tests of viewers look at.

`picture` makes one; what a test is about it says by keyword. `Story` makes a sequence of them, as a busy process would
show: works arrive, begin and end, and the counters follow from that.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import Any

BOUNDS = [0.001, 0.01, 0.1, 1.0, 10.0]


def histogram(*seconds: float) -> dict[str, Any]:
    """What works that took so long leave behind."""
    return histogram_of({each: seconds.count(each) for each in seconds})


def histogram_of(numbers: dict[float, int]) -> dict[str, Any]:
    """The same of so many works of each time."""
    counts = [0] * (len(BOUNDS) + 1)
    for each, number in numbers.items():
        counts[sum(each > bound for bound in BOUNDS)] += number
    total = sum(each * number for each, number in numbers.items())
    return {"bounds": list(BOUNDS), "counts": counts, "sum": total, "sampled": sum(numbers.values())}


def pool(name: str = "u0", **said: Any) -> dict[str, Any]:
    return {
        "name": name, "cpus": [0, 1], "target": 2, "held": False, "disassociated": False, "workers": 0, "idle": 0,
        "running": 0, "blocked": 0, "pending": 0, "inactive": 0, "created": 0, "culled": 0, "refused": 0,
        "peak_workers": 0, "started": 0, "completed": 0, "wakeups": 0, "nice": 0, "cpu_seconds": 0.0, "why": "", **said,
    }  # fmt: skip


def queue(name: str = "system", **said: Any) -> dict[str, Any]:
    return {
        "name": name, "scope": "system", "state": "open", "max_active": 256, "learns": False, "active": 0,
        "inactive": 0, "unfinished": 0, "hogs": 0, "rescuer": False, "maydays": 0, "rescued": 0, "started": 0,
        "completed": 0, "failed": 0, "cpu_seconds": 0.0, "wakeups": 0, "why": "", "waiting": histogram(),
        "running": histogram(), "serial": 1, **said,
    }  # fmt: skip


def worker(name: str, **said: Any) -> dict[str, Any]:
    return {
        "name": name, "pool": "u0", "tid": 4000, "state": "idle", "rescuer": False, "queue": "", "work": "", "item": 0,
        "since": 0.0, "cpu_seconds": None, "waits_for": "", "stack": [], "held_by": 0, **said,
    }  # fmt: skip


def function(name: str, **said: Any) -> dict[str, Any]:
    return {"name": name, "queue": "system", "ended": 0, "failed": 0, "seconds": 0.0, "cpu_seconds": 0.0, "running": 0,
            **said}  # fmt: skip


def picture(**said: Any) -> dict[str, Any]:
    return {
        "version": 1, "time": 1_700_000_000.0, "uptime": 100.0, "pid": 4242, "command": ["python", "server.py"],
        "python": "3.13.0", "cpu_seconds": 12.5, "frozen": False, "sensor": "sentinel", "sensor_reason": "it works",
        "gil": True, "cpus": [0, 1], "cpu_limit": 2,
        "memory": {"held": False, "used": 512 << 20, "limit": 2048 << 20, "source": "/sys/fs/cgroup"},
        "pools": [], "queues": [], "workers": [], "workers_left_out": 0, "functions": [], "stalls": [],
        "stall_after": 30.0, **said,
    }  # fmt: skip


_KINDS = [
    # function, queue, seconds, CPU seconds, share of all works, what it waits for
    ("thumbnails.render", "thumbnails", 0.080, 0.070, 0.22, ""),
    ("shop.http.fetch_price", "prices", 0.350, 0.004, 0.40, "reads from a socket, 10.0.3.17:443"),
    ("shop.db.load_order", "orders", 0.060, 0.006, 0.25, "waits for a lock, held by thread 4011"),
    ("mail.send", "mail", 0.900, 0.003, 0.08, "writes to a socket, 10.0.9.2:25"),
    ("reports.monthly", "reports", 2.500, 2.300, 0.05, ""),
]
_LIMITS = {"thumbnails": 256, "prices": 64, "orders": 256, "mail": 4, "reports": 2, "system": 256}


class Story:
    """A process whose load rises and falls, second by second. The same seed tells the same story."""

    def __init__(self, workers: int = 24, seed: int = 7) -> None:
        self._random = random.Random(seed)
        self._workers = workers
        self._seconds = 0
        self._cpu = 3.0
        self._done = {name: [0.0, 0.0, 0.0, 0.0] for name, *_ in _KINDS}  # ended, failed, seconds, CPU seconds
        self._wakeups = dict.fromkeys(_LIMITS, 0)
        self._started = 0.0
        self._since: dict[int, tuple[str, float]] = {}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while True:
            yield self.next()

    def next(self) -> dict[str, Any]:
        """The picture of one second later."""
        self._seconds += 1
        wave = 0.55 + 0.35 * math.sin(self._seconds / 7) + 0.12 * self._random.random()
        rate = 55 * wave
        workers = self._each_worker(wave)
        ended = {}
        for name, _, seconds, used, share, _ in _KINDS:
            done, now = self._done[name], round(rate * share * (0.8 + 0.4 * self._random.random()))
            done[0] += now
            done[1] += self._random.random() < 0.05 and share > 0.2
            done[2] += now * seconds
            done[3] += now * used * 0.3
            ended[name] = now
            self._cpu += now * used * 0.3
        self._started += sum(ended.values())
        states = [each["state"] for each in workers]
        pending = round(max(0.0, wave - 0.6) * 90)
        pools = [
            pool(
                workers=len(workers), idle=states.count("idle"), running=states.count("running"),
                blocked=states.count("blocked"), pending=pending, inactive=round(9 * wave), created=len(workers) + 3,
                culled=3, peak_workers=len(workers), started=int(self._started), completed=int(self._started) - 8,
                wakeups=int(self._started * 0.7), cpu_seconds=self._cpu,
                why="as many workers run as may: 2 of 2" if pending else "",
            ),
            pool("u0", nice=-5, workers=1, idle=1, created=1, peak_workers=1, started=40, completed=40, wakeups=38),
        ]  # fmt: skip
        return picture(
            time=1_700_000_000.0 + self._seconds, uptime=3600.0 + self._seconds, cpu_seconds=self._cpu * 1.1,
            pools=pools, queues=self._queues(workers, wave), workers=workers,
            functions=[
                function(
                    name, queue=queue_, ended=int(self._done[name][0]), failed=int(self._done[name][1]),
                    seconds=self._done[name][2], cpu_seconds=self._done[name][3],
                    running=sum(each["work"] == name for each in workers),
                )
                for name, queue_, *_ in _KINDS
            ],
        )  # fmt: skip

    def with_stacks(self, picture: dict[str, Any]) -> dict[str, Any]:
        """The same picture, with stacks."""
        workers = [{**each, "stack": self._stack(each) if each["work"] else []} for each in picture["workers"]]
        return {**picture, "workers": workers}

    def _stack(self, worker: dict[str, Any]) -> list[str]:
        module, _, name = worker["work"].rpartition(".")
        file = f"/srv/{module.replace('.', '/')}.py"
        frames = [(file, 88, name, "return self.exchange(message, timeout=5)"),
                  (file, 31, "exchange", "self.socket.sendall(message.encode())")]  # fmt: skip
        if worker["waits_for"].startswith("waits for a lock"):
            lock = ("/usr/lib/python3.13/threading.py", 334, "__enter__", "return self._lock.__enter__()")
            frames = [(file, 52, name, "with self.connection() as connection:"), lock]
        return [f'  File "{path}", line {line}, in {each}\n    {code}\n' for path, line, each, code in frames]

    def _each_worker(self, wave: float) -> list[dict[str, Any]]:
        found = []
        busy = round(self._workers * min(wave, 0.95))
        for index in range(self._workers):
            kind = _KINDS[(0, 4)[index] if index < 2 else (1, 1, 2, 3, 1, 2)[index % 6]]
            name, queue_, seconds, used, _, waits = kind
            if index >= busy:
                found.append(worker(f"cmwq/u0:{index}", tid=4000 + index, since=float(index % 40 + self._seconds % 9)))
                continue
            state = "blocked" if index > 1 else "running"
            since = (self._seconds * 0.37 + index * 0.61) % (seconds * 3)
            found.append(
                worker(
                    f"cmwq/u0:{index}", tid=4000 + index, state=state, queue=queue_, work=name, item=1000 + index,
                    since=since, cpu_seconds=min(since, used), waits_for=waits if state == "blocked" else "",
                )
            )  # fmt: skip
        return found

    def _queues(self, workers: list[dict[str, Any]], wave: float) -> list[dict[str, Any]]:
        found = []
        for name, limit in _LIMITS.items():
            mine = [kind for kind in _KINDS if kind[1] == name]
            done = [sum(self._done[kind[0]][index] for kind in mine) for index in range(4)]
            active = sum(each["queue"] == name for each in workers)
            inactive = round(6 * wave) if name in ("mail", "reports") else 0
            self._wakeups[name] += self._random.randrange(1 + round(8 * wave)) if mine and mine[0][5] else 0
            seconds, used = (mine[0][2], mine[0][3]) if mine else (0.0, 0.0)
            found.append(
                queue(
                    name, max_active=limit, active=active, inactive=inactive, unfinished=active + inactive,
                    started=int(done[0]) + active, completed=int(done[0]), failed=int(done[1]), cpu_seconds=done[3],
                    wakeups=self._wakeups[name], hogs=int(done[0] * 0.3) if used > 1 else 0, rescuer=name == "mail",
                    maydays=2 if name == "mail" else 0, rescued=3 if name == "mail" else 0,
                    learns=name == "prices",
                    why=f"max_active is {limit}, and so many are active" if inactive else "",
                    waiting=histogram_of({0.0004: int(done[0] / 2), 0.004: int(done[0] / 3), 0.06: int(done[0] / 6)}),
                    running=histogram_of({seconds * 0.4: int(done[0] * 0.6), seconds * 1.9: int(done[0] * 0.4)}),
                )
            )  # fmt: skip
        return found
