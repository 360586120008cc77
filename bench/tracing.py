"""What it costs to be looked at: a trace while it records (no-ops submitted, one at a time, and works of 0.1 ms, with
tracing off and on), and a dump in the middle of a flood, which another process asks for.

Its one job: all contenders take turns in one process, in a new seeded order each round; medians; ratios to tracing off.
`never` stands for a process that has not traced yet, so it comes first and only once; `off again` for one that has.
What is not measured: writing the file, which happens once.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from dispatch import flood, nothing, ping
from measure import Report, medians, seconds, turns

import cmwq

WORK = 1e-4


def tracing(report: Report, quick: bool) -> None:
    report.heading("Tracing: what it costs while it records")
    rounds, number = (3, 4_000) if quick else (15, 20_000)
    with cmwq.Executor() as pool:
        tasks: dict[str, tuple[int, Callable[[], object]]] = {
            "flood": (number, partial(flood, pool, number)),
            "ping": (number // 4, partial(pings, pool, number // 4)),
            "works": (number // 20, partial(works, pool, number // 20)),
        }
        titles = {
            "flood": f"{number:,} no-ops submitted, then all results taken",
            "ping": "submit one no-op, wait for it, repeat",
            "works": "works of 0.1 ms pure Python",
        }
        for task, (count, run) in tasks.items():
            run()  # warm
            never = statistics.median(seconds(run) for _ in range(rounds))
            ways: dict[str, Callable[[], float]] = {
                "off again": partial(untraced, run),
                "on": partial(traced, run),
                "on, every work": partial(traced, run, every=True),
            }
            took = medians(ways, rounds, f"tracing {task}")
            off = took["off again"]
            per = {name: value / count * 1e6 for name, value in {"never": never, **took}.items()}
            report.details[f"tracing_{task}_us"] = per
            note = f"{titles[task]}; us each: " + ", ".join(f"{name} {us:.2f}" for name, us in per.items())
            target = 1.15 if task == "flood" else None
            report.add(f"tracing.{task}.on", f"{task}: time with a trace, of that without", took["on"] / off,
                       target=target, at_most=True, note=note)  # fmt: skip
            report.add(f"tracing.{task}.every", f"{task}: likewise, every work of a flood recorded",
                       took["on, every work"] / off)  # fmt: skip
            report.add(f"tracing.{task}.off", f"{task}: time when a trace is over, of that before the first",
                       off / never)  # fmt: skip
        writing(report, pool, number)
        dumping(report, pool, 4_000 if quick else 100_000, rounds)


def traced(run: Callable[[], object], *, every: bool = False) -> float:
    """Seconds that it takes while a trace records, which has recorded the same before."""
    trace = cmwq.trace(every=every)
    try:
        run()
        return seconds(run)
    finally:
        trace.close()


def untraced(run: Callable[[], object]) -> float:
    run()
    return seconds(run)


def pings(pool: cmwq.Executor, number: int) -> None:
    for _ in range(number):
        ping(pool)


def works(pool: cmwq.Executor, number: int) -> None:
    for future in [pool.submit(compute) for _ in range(number)]:
        future.result()


def compute() -> None:
    until = time.perf_counter() + WORK
    while time.perf_counter() < until:
        pass


def writing(report: Report, pool: cmwq.Executor, number: int) -> None:
    """How long the writing takes, and how large the file is."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        trace = cmwq.trace(path, every=True)
        flood(pool, number)
        took = seconds(trace.close)
        report.add("tracing.write", f"writing {number:,} works with their arrows", took, "s",
                   note=f"{path.stat().st_size / number:.0f} bytes a work")  # fmt: skip


ASKING = """
import sys
from cmwq.observing.client import connect
with connect(int(sys.argv[1])) as connection:
    for line in sys.stdin:
        connection.picture(stacks=True)
        print("there", flush=True)
"""


def dumping(report: Report, pool: cmwq.Executor, number: int, rounds: int) -> None:
    """What a dump costs a flood of works: half of them are submitted, then another process asks as `cmwq dump` does."""
    with cmwq.monitor(), subprocess.Popen(
        [sys.executable, "-c", ASKING, str(os.getpid())], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    ) as asking:  # fmt: skip
        assert asking.stdin
        assert asking.stdout
        said = asking.stdout

        def looked_at(ask: Callable[[], object]) -> float:
            def both() -> None:
                futures = [pool.submit(nothing) for _ in range(number // 2)]
                ask()
                futures += [pool.submit(nothing) for _ in range(number // 2)]
                for future in futures:
                    future.result()

            took = seconds(both)
            if ask is asks:
                said.readline()
            time.sleep(0.1)  # a connection gets 20 pictures in a second
            return took

        asks = partial(asking.stdin.write, b"\n")
        looked_at(asks)  # warm
        # Without a GIL the flood's time depends on who is ahead of whom, which any pause of the producer changes.
        ways = {"alone": nothing, "paused": partial(time.sleep, 0.001), "dumped": asks}
        took = turns({name: partial(looked_at, way) for name, way in ways.items()}, rounds, "dump")
        asking.stdin.close()
    alone, paused, dumped = (statistics.median(took[name]) * 1e3 for name in ways)

    def of(way: str, other: str) -> float:
        return statistics.median(one / two for one, two in zip(took[way], took[other], strict=True))

    report.add("dump.flood", f"dump in a flood of {number:,} works: time, of that without", of("dumped", "alone"),
               target=1.01, at_most=True, note=f"{alone:.1f} ms alone, {dumped:.1f} ms with a dump")  # fmt: skip
    report.add("dump.pause", "likewise, of that in which the producer pauses for 1 ms", of("dumped", "paused"),
               note=f"{paused:.1f} ms with the pause")  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="little of everything: a smoke test, not a measurement")
    tracing(Report(), parser.parse_args().quick)
    return 0


if __name__ == "__main__":
    sys.exit(main())
