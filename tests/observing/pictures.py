"""Pictures made by hand, as `Snapshot.to_dict()` makes them in version 1: for tests of what is made of a picture."""

from __future__ import annotations

from typing import Any

Plain = dict[str, Any]
NOW = 1_750_000_000.0
OUTER = [
    '  File "/x/lib/python3.11/threading.py", line 1002, in _bootstrap\n    self._bootstrap_inner()\n',
    '  File "/x/site-packages/cmwq/_pool/worker_thread.py", line 47, in worker_thread\n    serve(pool, worker)\n',
    '  File "/x/site-packages/cmwq/_workqueue/future.py", line 112, in run\n    self._result = self._context.run()\n',
]
"""What every worker calls before it comes to a work."""


def pool(**more: Any) -> Plain:
    plain: Plain = {
        "name": "u0", "cpus": [0, 1], "target": 2, "held": False, "disassociated": False, "workers": 3, "idle": 1,
        "running": 0, "blocked": 2, "pending": 0, "inactive": 0, "created": 3, "culled": 0, "refused": 0,
        "peak_workers": 3, "started": 10, "completed": 8, "wakeups": 4, "nice": 0, "cpu_seconds": 1.25, "why": "",
    }  # fmt: skip
    return {**plain, **more}


def queue(name: str = "orders", **more: Any) -> Plain:
    plain: Plain = {
        "name": name, "scope": "system", "state": "open", "max_active": 256, "learns": False, "active": 2,
        "inactive": 0, "unfinished": 2, "hogs": 0, "rescuer": False, "maydays": 0, "rescued": 0, "started": 10,
        "completed": 8, "failed": 0, "cpu_seconds": 0.5, "wakeups": 3, "why": "", "serial": 1,
        "waiting": {"bounds": [0.001, 1.0], "counts": [6, 2, 0], "sum": 0.4, "sampled": 8},
        "running": {"bounds": [0.001, 1.0], "counts": [0, 7, 1], "sum": 4.0, "sampled": 8},
    }  # fmt: skip
    return {**plain, **more}


def worker(number: int, *frames: tuple[str, int, str, str], **more: Any) -> Plain:
    """frames: (file, line, function, code) of each call, the innermost last."""
    stack = [f'  File "{file}", line {line}, in {function}\n    {code}\n' for file, line, function, code in frames]
    plain: Plain = {
        "name": f"cmwq/u0:{number}", "pool": "u0", "tid": 100 + number, "state": "blocked", "rescuer": False,
        "queue": "orders", "work": "book", "item": 5000 + number, "since": 30.0 + number, "cpu_seconds": 0.002,
        "waits_for": "waits for a lock (futex)", "stack": OUTER + stack if stack else [],
        "held_by": 0,
    }  # fmt: skip
    return {**plain, **more}


def idle(number: int) -> Plain:
    return worker(number, state="idle", queue="", work="", item=0, waits_for="")


def stall(text: str, **more: Any) -> Plain:
    return {"time": NOW - 60.0, "over": False, "text": text, "pool": "u0", "queue": "", **more}


def picture(**more: Any) -> Plain:
    """Of a process in which nothing is wrong."""
    plain: Plain = {
        "version": 1, "pools": [pool(workers=1, blocked=0)], "queues": [queue(active=0, unfinished=0)],
        "sensor": "sentinel", "sensor_reason": "it works", "gil": True, "cpus": [0, 1], "cpu_limit": 2, "pid": 4711,
        "time": NOW, "uptime": 3600.0, "command": ["python", "-m", "shop"], "python": "3.11.7", "cpu_seconds": 12.5,
        "frozen": False, "memory": {"held": False, "used": 1 << 30, "limit": 1 << 34, "source": "the machine"},
        "workers": [idle(0)], "workers_left_out": 0, "stalls": [], "stall_after": 30.0,
        "functions": [
            {"name": "book", "queue": "orders", "ended": 8, "failed": 1, "seconds": 4.0, "cpu_seconds": 0.5,
             "running": 0},
        ],
    }  # fmt: skip
    return {**plain, **more}


def lock_held(waiting: int = 3) -> Plain:
    """Works wait for a lock, which another one holds that waits for a server."""
    book = "/srv/shop/ledger.py"
    workers = [worker(number, (book, 22, "book", "with ledger:")) for number in range(waiting)]
    holder = worker(
        waiting,
        (book, 24, "book", "charge(card)"),
        ("/srv/shop/card.py", 7, "charge", "answer = connection.recv(1000)"),
        waits_for="waits in recvfrom() for the TCP connection 10.0.0.2:40000 to 10.0.0.9:443 (fd 9)",
    )
    return picture(
        pools=[pool(workers=waiting + 1, blocked=waiting + 1)],
        queues=[queue(active=waiting + 1, unfinished=waiting + 1)],
        workers=[*workers, holder],
    )


def at_max_active() -> Plain:
    """All places of a queue are held by works that wait, and the watchdog has told it."""
    why = "max_active is 2, and 2 works have a place"
    workers = [worker(n, ("/srv/shop/load.py", 9, "load", "ready.wait()"), work="load") for n in range(2)]
    text = f"queue 'orders' on pool u0: 7 works wait, and none began for 30 s; {why}\n  cmwq/u0:0: ..."
    return picture(
        pools=[pool(inactive=7)],
        queues=[queue(max_active=2, inactive=7, unfinished=9, why=why)],
        workers=[*workers, idle(2)],
        stalls=[stall(text, queue="orders")],
    )


def threads_refused() -> Plain:
    why = "no thread could be had 5 times in a row (Resource temporarily unavailable); without a rescuer: 'orders'"
    return picture(
        pools=[pool(pending=4, idle=0, refused=12, why=why)],
        workers=[worker(n, ("/srv/shop/game.py", 3, "play", "barrier.wait()")) for n in range(2)],
        stalls=[stall(f"pool u0: 4 works wait, and none began for 30 s; {why}")],
    )
