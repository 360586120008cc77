"""A program that is busy, made up: pictures as a shop's process would show them, for the eye and for big numbers.

`python tests/observing/load.py KIND` writes two minutes of pictures, for `cmwq dashboard --replay`.
"""

from __future__ import annotations

import json
import math
import random
import sys
import time
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(__import__("pathlib").Path(__file__).parent.parent))

from observing.standin import function, pool, queue, worker

BOUNDS = [1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0]
Picture = dict[str, Any]

WAITS = {
    "fetch_prices": "reads from fd 14 (TCP, 10.1.4.7:443)",
    "resize": "",
    "save_order": "waits for a lock that cmwq/u0:3 holds",
    "send_mail": "connects to fd 22 (TCP, 10.1.0.9:25)",
    "index_page": "waits for the result of parse_page",
    "parse_page": "",
    "nightly_report": "sleeps (clock_nanosleep)",
}
QUEUES = {
    "web": ("fetch_prices", "index_page"),
    "images": ("resize",),
    "orders": ("save_order",),
    "mail": ("send_mail",),
    "search": ("parse_page", "index_page"),
    "system_long": ("nightly_report",),
}
LENGTH = {"fetch_prices": 1.4, "resize": 0.7, "save_order": 0.4, "send_mail": 2.5, "index_page": 3.0,
          "parse_page": 1.2, "nightly_report": 30.0}  # fmt: skip


class Load:
    """Works that come and go on `size` workers. `step` goes on by a second; `picture` shows the moment."""

    def __init__(
        self, size: int = 36, busy: float = 0.8, target: int = 4, stalled: bool = False, seed: int = 7
    ) -> None:
        self.random = random.Random(seed)
        self.size, self.busy, self.target, self.stalled = size, busy, target, stalled
        self.time = time.time()
        self.begun = self.time - 8000
        self.item = 0
        self.cpu = 0.0
        self.does: list[tuple[str, str, int, float, float] | None] = [None] * size
        self.ended: dict[tuple[str, str], list[float]] = {}
        self.stall_from = self.time + 60

    def step(self, seconds: float = 1.0) -> None:
        self.time += seconds
        level = self.busy * (0.65 + 0.35 * math.sin(self.time / 17)) if self.busy else 0.0
        stuck = self.stalled and self.time > self.stall_from
        for index, doing in enumerate(self.does):
            if doing is not None and (stuck and doing[1] != "parse_page"):
                continue
            if doing is not None and self.time >= doing[4]:
                ended = self.ended.setdefault((doing[0], doing[1]), [0, 0, 0.0, 0.0])
                times = 1 + int(9 / max(LENGTH[doing[1]], 0.3)) if self.size < 1000 else 1
                ended[0] += times
                ended[1] += self.random.random() < 0.04
                ended[2] += times * LENGTH[doing[1]]
                ended[3] += times * LENGTH[doing[1]] * (0.34 if not WAITS[doing[1]] else 0.04)
                self.does[index] = doing = None
            if doing is None and index < self.size * level and not stuck:
                name = self.random.choice(list(QUEUES))
                work = self.random.choice(QUEUES[name])
                if work == "nightly_report" and self.random.random() < 0.85:
                    name, work = "images", "resize"
                self.item += 1
                begun = self.time - self.random.random() * seconds * 0.8
                length = LENGTH[work] * self.random.uniform(0.4, 2.5)
                self.does[index] = (name, work, self.item, begun, begun + length)

    def picture(self, stacks: bool = False) -> Picture:
        workers, running = [], 0
        for index, doing in enumerate(self.does):
            name = f"cmwq/u0:{index}"
            if doing is None:
                workers.append(worker(name, "idle", since=self.time - self.stall_from + 80, cpu_seconds=None))
                continue
            queue_name, work, item, begun, _ = doing
            runs = running < self.target and not WAITS[work] and not (self.stalled and self.time > self.stall_from)
            running += runs
            stack = [f'  File "/srv/shop/{queue_name}.py", line {40 + index % 9}, in {work}\n    return run(order)\n']
            stack += ['  File "/usr/lib/python3.11/ssl.py", line 1167, in read\n    return self._sslobj.read(len)\n']
            workers.append(
                worker(
                    name, "running" if runs else "blocked", queue=queue_name, work=work, item=item, tid=7000 + index,
                    since=self.time - begun, cpu_seconds=(self.time - begun) * (0.95 if runs else 0.05),
                    waits_for="" if runs else WAITS[work] or "waits for the GIL", stack=stack if stacks else [],
                )
            )  # fmt: skip
        self.cpu += 0.93 * running + 0.02
        blocked = sum(doing is not None for doing in self.does) - running
        return self._around(workers, running, blocked)

    def _around(self, workers: list[Picture], running: int, blocked: int) -> Picture:
        pending = max(0, int(self.busy * 40 * math.sin(self.time / 11))) if running >= self.target else 0
        stuck = self.stalled and self.time > self.stall_from
        pending = 38 if stuck else pending
        completed = int(sum(each[0] for each in self.ended.values()))
        cpu = self.cpu
        why = f"{running} of {self.target} that may run are believed to run: no more is needed now" if pending else ""
        if stuck:
            why = f"{blocked} workers are blocked, and no thread could be had 41 times in a row (pids.max is reached)"
        highpri = pool("u0", target=self.target, workers=2, idle=2, running=0, nice=-20, completed=412, started=412,
                       wakeups=398, created=2, peak_workers=2, cpu_seconds=3.1)  # fmt: skip
        main = pool(
            "u0", target=self.target, running=running, blocked=blocked, idle=len(workers) - running - blocked,
            workers=len(workers), pending=pending, inactive=12 if pending else 0, started=completed + running + blocked,
            completed=completed, wakeups=completed // 3, created=len(workers) + 14, culled=14, why=why,
            peak_workers=len(workers) + 6, cpu_seconds=cpu, refused=41 if stuck else 0,
        )  # fmt: skip
        stalls = [{"time": self.begun + 2400, "over": True, "pool": "u0", "queue": "orders",
                   "text": "queue orders goes on, after 44 s"}]  # fmt: skip
        if stuck:
            held = "waits for a lock that cmwq/u0:3 holds"
            lines = [
                f"  cmwq/u0:{index} (thread {7000 + index}) in save_order {held}\n"
                '    File "/srv/shop/orders.py", line 88, in save_order\n      with ledger.lock:'
                for index in (1, 4, 9)
            ]
            said = (
                "pool u0: 38 works wait, and none has begun for 31 s: every worker waits for lock ledger.lock held by "
            )
            text = "\n".join([f"{said}cmwq/u0:3, which waits for fd 9 (TCP, 10.1.0.4:5432)", *lines])
            stalls.append({"time": self.stall_from + 31, "over": False, "pool": "u0", "queue": "", "text": text})
        return {
            "version": 1, "time": self.time, "uptime": self.time - self.begun, "pid": 18211, "python": "3.13.1",
            "command": ["python", "-m", "shop.worker", "--config", "/etc/shop.toml"], "cpu_seconds": cpu + 4.0,
            "frozen": False, "sensor": "sentinel", "sensor_reason": "works", "gil": False,
            "cpus": list(range(self.target)), "cpu_limit": self.target,
            "memory": {"held": False, "used": 611 << 20, "limit": 4 << 30, "source": "cgroup"},
            "pools": [main, highpri], "queues": self._queues(workers, pending), "functions": self._functions(workers),
            "stalls": stalls, "workers": workers, "workers_left_out": 0,
        }  # fmt: skip

    def _queues(self, workers: list[Picture], pending: int) -> list[Picture]:
        views = []
        for number, name in enumerate(QUEUES):
            mine = [ended for (queue_name, _), ended in self.ended.items() if queue_name == name]
            completed, failed = int(sum(m[0] for m in mine)), int(sum(m[1] for m in mine))
            active = sum(each["queue"] == name for each in workers)
            shape = random.Random(number)
            middle = 4 + number
            counts = [
                int(completed * math.exp(-((i - middle) ** 2) / 5) * shape.uniform(0.5, 1) / 4) for i in range(17)
            ]
            longer = [0, 0, *counts[:15]]
            inactive = 12 if name == "mail" and pending else 0
            views.append(
                queue(
                    name, started=completed + active, completed=completed, failed=failed, active=active,
                    inactive=inactive, unfinished=active + inactive, cpu_seconds=sum(m[3] for m in mine) / 4,
                    wakeups=completed // 3, hogs=completed // 9 if name == "images" else 0, rescuer=name == "orders",
                    maydays=3 if name == "orders" and self.stalled else 0, learns=name == "web",
                    max_active=8 if name == "mail" else 40 if name == "web" else 256,
                    why="all 8 places under max_active are taken by works that wait" if inactive else "",
                    waiting=_histogram(counts), running=_histogram(longer),
                )
            )  # fmt: skip
        return [*views, queue("reports")]

    def _functions(self, workers: list[Picture]) -> list[Picture]:
        found = []
        for (name, work), (ended, failed, seconds, cpu) in self.ended.items():
            now = sum((each["queue"], each["work"]) == (name, work) for each in workers)
            found.append(function(work, queue=name, ended=int(ended), failed=int(failed), seconds=seconds,
                                  cpu_seconds=cpu / 4, running=now))  # fmt: skip
        return sorted(found, key=lambda each: -each["seconds"])[:50]


def _histogram(counts: list[int]) -> Picture:
    middle = [b * 0.6 for b in [*BOUNDS, 600.0]]
    total = sum(c * m for c, m in zip(counts, middle, strict=True))
    return {"bounds": BOUNDS, "counts": counts, "sum": total, "sampled": sum(counts)}


KINDS: dict[str, dict[str, Any]] = {
    "loaded": {},
    "idle": {"busy": 0.0, "size": 5},
    "stalled": {"stalled": True},
    "large": {"size": 5000, "target": 64},
}


def main(kind: str) -> None:
    load = Load(**KINDS[kind])
    load.time -= 120
    load.stall_from = load.time + 60
    for _ in range(120):
        load.step()
        print(json.dumps(load.picture()))


if __name__ == "__main__":
    main(sys.argv[1])
