"""What the pictures show, taken from runs of the simulator: the same core that runs in production, in virtual time."""

from __future__ import annotations

from typing import NamedTuple

import cmwq
from cmwq.testing import Simulation

MS = 1e-3


class Span(NamedTuple):
    """A stretch of a work's time: it computes ("burn"), or is blocked ("sleep"). Milliseconds."""

    work: str
    kind: str
    begin: float
    end: float


def kernel_timeline(max_active: int, cpu_intensive: bool = False) -> list[Span]:
    """The example of the kernel's documentation (core-api/workqueue.rst), as `tests/sim/test_timelines.py` has it.

    w0 computes for 5 ms, sleeps for 10 ms, computes for 5 ms; w1 and w2 compute for 5 ms and sleep for 10 ms. All are
    queued at 0 on the same CPU.
    """
    sim = Simulation(cpus=1)
    spans: list[Span] = []

    def step(name: str, kind: str, seconds: float) -> None:
        begin = sim.host.monotonic()
        (sim.burn if kind == "burn" else sim.sleep)(seconds)
        spans.append(Span(name, kind, begin / MS, sim.host.monotonic() / MS))

    def work(name: str, *steps: tuple[str, float]) -> None:
        for kind, seconds in steps:
            step(name, kind, seconds)

    def main() -> None:
        start = sim.host.monotonic()
        with sim.runtime() as runtime:
            first = cmwq.WorkQueue("q0", scope="cpu", max_active=max_active, runtime=runtime)
            others = cmwq.WorkQueue("q1", scope="cpu", cpu_intensive=True, runtime=runtime) if cpu_intensive else first
            first.submit(work, "w0", ("burn", 5 * MS), ("sleep", 10 * MS), ("burn", 5 * MS))
            others.submit(work, "w1", ("burn", 5 * MS), ("sleep", 10 * MS))
            others.submit(work, "w2", ("burn", 5 * MS), ("sleep", 10 * MS))
        spans[:] = [span._replace(begin=span.begin - start / MS, end=span.end - start / MS) for span in spans]

    sim.run(main)
    return spans


class Moment(NamedTuple):
    """An event of a run: when (milliseconds), what, which work and which worker. Empty: none."""

    time: float
    kind: str
    work: str
    worker: str


def two_submits() -> tuple[list[Moment], list[Span]]:
    """One CPU; `load` computes for 2 ms, is blocked for 6 ms, and computes for 1 ms; `hash` computes for 3 ms.

    Both are queued at 0. Returns the events of the pool, and what each worker did.
    """
    sim = Simulation(cpus=1)
    spans: list[Span] = []
    moments: list[Moment] = []

    def step(kind: str, seconds: float) -> None:
        worker = cmwq_worker()
        begin = sim.host.monotonic()
        (sim.burn if kind == "burn" else sim.sleep)(seconds)
        spans.append(Span(worker, kind, begin / MS, sim.host.monotonic() / MS))

    def load() -> None:
        step("burn", 2 * MS)
        step("sleep", 6 * MS)
        step("burn", 1 * MS)

    def hash() -> None:
        step("burn", 3 * MS)

    def main() -> None:
        with sim.runtime() as runtime:
            runtime.pool_here("cpu")
            queue = cmwq.WorkQueue("q", scope="cpu", runtime=runtime)
            start = sim.host.monotonic() / MS
            with cmwq.events.subscribe(runtime=runtime) as subscription:
                queue.submit(load)
                queue.submit(hash)
                queue.flush()
                for event in subscription.take():
                    name = event.work.rpartition(".")[2]
                    moments.append(Moment(event.time / MS - start, event.kind.value, name, event.worker))
        spans[:] = [span._replace(begin=span.begin - start, end=span.end - start) for span in spans]

    sim.run(main)
    return moments, spans


def cmwq_worker() -> str:
    from cmwq._pool.worker import current_worker

    worker = current_worker()
    assert worker is not None
    return worker.name
