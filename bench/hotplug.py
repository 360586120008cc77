"""Latency of works while a CPU goes offline and comes back: from the queueing to the first line of the work.

Its one job: to show the worst stall. A work is queued every millisecond, in turn to the per-CPU queue, on each CPU in
turn, and to the system queue. In the middle the last CPU is taken offline, and brought back a while later. That takes
root, on Linux. It is brought back too if the benchmark is killed.

"before", "offline" and "after" go by when a work was queued; the time that the kernel takes to switch the CPU off
belongs to "offline", and to switch it on to "after". Meanwhile it stops the whole machine for some milliseconds.
--baseline takes no CPU offline: what the machine does to works in any case.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from measure import need_charts

import cmwq

PHASES = ("before", "offline", "after")


class Sample(NamedTuple):
    """Of one work."""

    queue: str
    queued: float
    """Seconds since the start."""
    latency: float


class Events(NamedTuple):
    """When the kernel was told, and when it had done it; when the runtime noticed. Seconds since the start."""

    offline: tuple[float, float, float]
    online: tuple[float, float, float]


class Feeder:
    """Queues works, from a thread of its own."""

    def __init__(self, runtime: cmwq.Runtime, interval: float) -> None:
        self.percpu = cmwq.WorkQueue("percpu", scope="cpu", runtime=runtime)
        self.system = cmwq.WorkQueue("system", runtime=runtime)
        self.cpus = runtime.cpus()
        self.interval = interval
        self.samples: list[Sample] = []
        self.began = time.monotonic()
        self.ended = False
        self.thread = threading.Thread(target=self.feed)
        self.thread.start()

    def now(self) -> float:
        return time.monotonic() - self.began

    def feed(self) -> None:
        number = 0
        while not self.ended:
            due = self.began + number * self.interval
            time.sleep(max(0.0, due - time.monotonic()))
            if number % 2:
                queued = self.now()
                self.system.submit(self.begin, "system", queued)
            else:
                cpu = self.cpus[number // 2 % len(self.cpus)]
                queued = self.now()
                self.percpu.queue_on(cpu, cmwq.Work(self.begin, f"CPU {cpu}", queued))
            number += 1

    def begin(self, queue: str, queued: float) -> None:
        self.samples.append(Sample(queue, queued, self.now() - queued))

    def stop(self) -> None:
        self.ended = True
        self.thread.join()
        self.percpu.flush(60)
        self.system.flush(60)


@contextmanager
def brought_back(path: Path) -> Iterator[None]:
    """Whatever happens to this process, the CPU is online in the end: a shell sees the end of a pipe."""
    guard = subprocess.Popen(
        ["sh", "-c", 'read -r _; echo 1 > "$0"', path], stdin=subprocess.PIPE, start_new_session=True
    )
    try:
        yield
    finally:
        guard.communicate()


def switch(path: Path, feeder: Feeder, runtime: cmwq.Runtime, cpu: int, online: bool) -> tuple[float, float, float]:
    begin = feeder.now()
    path.write_text("1" if online else "0")
    done = feeder.now()
    while (cpu in runtime.cpus()) != online:
        time.sleep(0.001)
    return begin, done, feeder.now()


def measure(cpu: int | None, seconds: float, interval: float) -> tuple[list[Sample], Events | None]:
    """cpu: which one leaves; None: none does. seconds: of each phase."""
    events = None
    with cmwq.Runtime() as runtime:
        feeder = Feeder(runtime, interval)
        try:
            time.sleep(seconds)
            if cpu is None:
                time.sleep(2 * seconds)
            else:
                path = Path(f"/sys/devices/system/cpu/cpu{cpu}/online")
                with brought_back(path):
                    offline = switch(path, feeder, runtime, cpu, online=False)
                    time.sleep(seconds)
                    events = Events(offline, switch(path, feeder, runtime, cpu, online=True))
                time.sleep(seconds)
        finally:
            feeder.stop()
    return feeder.samples, events


def phase(sample: Sample, events: Events | None) -> str:
    if events is None or sample.queued < events.offline[0]:
        return "before"
    return "offline" if sample.queued < events.online[0] else "after"


def percentile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def tabulate(samples: list[Sample], events: Events | None) -> list[dict[str, Any]]:
    """One row for each queue and phase; milliseconds."""
    rows = []
    for queue in sorted({sample.queue for sample in samples}):
        for name in PHASES:
            own = sorted(s.latency * 1e3 for s in samples if s.queue == queue and phase(s, events) == name)
            if own:
                figures = {"p50": percentile(own, 0.5), "p99": percentile(own, 0.99), "max": own[-1]}
                rows.append({"queue": queue, "phase": name, "works": len(own), **figures})
    return rows


def draw(samples: list[Sample], events: Events | None, cpu: int | None, path: Path) -> None:
    """Every work, by when it was queued."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    queues = sorted({sample.queue for sample in samples})
    figure, panels = pyplot.subplots(
        len(queues), 1, figsize=(11, 2.2 * len(queues) + 0.8), sharex=True, sharey=True, layout="constrained"
    )
    for panel, queue in zip(panels, queues, strict=True):
        own = [s for s in samples if s.queue == queue]
        panel.plot(
            [s.queued for s in own], [s.latency * 1e3 for s in own], ".", markersize=2, color="#4477aa", rasterized=True
        )
        panel.set_yscale("log")
        panel.set_ylabel("ms")
        panel.set_title(f"{'system queue' if queue == 'system' else f'per-CPU queue, {queue}'}", fontsize=9)
        if events is not None:
            panel.axvspan(events.offline[0], events.online[1], color="#ee6677", alpha=0.15)
            for when in (events.offline[2], events.online[2]):
                panel.axvline(when, color="black", linewidth=0.8, linestyle=":")
    panels[-1].set_xlabel("queued at, s" + (f" (shaded: CPU {cpu} offline; dotted: noticed)" if events else ""))
    figure.suptitle("latency of works, from queueing to beginning", fontsize=10)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=3.0, help="before, offline, and after (default 3 each)")
    parser.add_argument("--interval", type=float, default=1.0, metavar="MS", help="between two works (default 1)")
    parser.add_argument("--baseline", action="store_true", help="take no CPU offline")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also every single figure")
    parser.add_argument("--chart", type=Path, metavar="FILE", help="svg or png, by its name (needs matplotlib)")
    options = parser.parse_args(arguments)
    options.cpu = None if options.baseline else max(os.sched_getaffinity(0))
    if options.cpu is not None and not os.access(f"/sys/devices/system/cpu/cpu{options.cpu}/online", os.W_OK):
        parser.error(
            f"CPU {options.cpu} can't be taken offline here: that takes root, and a CPU that can (--baseline?)"
        )
    if options.cpu == min(os.sched_getaffinity(0)):
        parser.error("needs two CPUs (--baseline?)")
    if options.chart:
        need_charts(parser)
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    print(
        f"Python {sys.version.split()[0]}{'' if gil else ' free-threaded'}, load {os.getloadavg()[0]:.1f}; milliseconds"
    )
    samples, events = measure(options.cpu, options.seconds, options.interval / 1e3)
    table = tabulate(samples, events)
    print(f"{'queue':<8} {'CPU':<8} {'works':>6} {'p50':>8} {'p99':>8} {'max':>8}")
    for row in table:
        figures = " ".join(f"{row[name]:>8.2f}" for name in ("p50", "p99", "max"))
        print(f"{row['queue']:<8} {row['phase']:<8} {row['works']:>6} {figures}")
    worst = max(samples, key=lambda sample: sample.latency)
    where = f"queued to {worst.queue} {worst.queued:.3f} s after the start"
    if events is not None:
        for what, (begin, done, noticed) in zip(("offline", "online again"), events, strict=True):
            took, delay = f"{(done - begin) * 1e3:.0f} ms", f"{(noticed - done) * 1e3:.0f} ms"
            print(
                f"CPU {options.cpu} {what} at {begin:.3f} s: that took the kernel {took}, and was noticed {delay} later"
            )
        where += f", {worst.queued - events.offline[0]:+.3f} s from the CPU's leaving"
    print(f"worst stall {worst.latency * 1e3:.1f} ms, {where}")
    begins = sorted(sample.queued for sample in samples)
    gap, at = max((after - before, before) for before, after in pairwise(begins))
    print(f"longest pause of who queues {gap * 1e3:.1f} ms, at {at:.3f} s: nobody ran then, nor could anything wait")
    if options.json:
        document = {"table": table, "events": events and events._asdict(), "samples": samples}
        options.json.write_text(json.dumps(document) + "\n")
    if options.chart:
        draw(samples, events, options.cpu, options.chart)
    return 0


if __name__ == "__main__":
    sys.exit(main())
