"""The four timelines of the kernel's own documentation (core-api/workqueue.rst, "Example Execution Scenarios").

w0 burns 5 ms, sleeps 10 ms, burns 5 ms. w1 and w2 burn 5 ms and sleep 10 ms. All are queued at 0 on the same CPU.
Within one millisecond the order of events is not part of the story.
"""

from __future__ import annotations

import pytest

import cmwq
from cmwq.testing import Simulation

ONE_BY_ONE = """
    0 w0 starts    5 w0 sleeps   15 w0 wakes   20 w0 ends
   20 w1 starts   25 w1 sleeps   35 w1 ends
   35 w2 starts   40 w2 sleeps   50 w2 ends
"""
TWO_ACTIVE = """
    0 w0 starts    5 w0 sleeps   15 w0 wakes   20 w0 ends
    5 w1 starts   10 w1 sleeps   20 w1 ends
   20 w2 starts   25 w2 sleeps   35 w2 ends
"""
ALL_ACTIVE = """
    0 w0 starts    5 w0 sleeps   15 w0 wakes   20 w0 ends
    5 w1 starts   10 w1 sleeps   20 w1 ends
   10 w2 starts   15 w2 sleeps   25 w2 ends
"""
CPU_INTENSIVE = """
    0 w0 starts    5 w0 sleeps   15 w0 wakes   20 w0 ends
    5 w1 starts   10 w1 sleeps   20 w1 ends
    5 w2 starts   15 w2 sleeps   25 w2 ends
"""


def events(story: str) -> set[tuple[float, str]]:
    words = story.split()
    return {(float(at), f"{who} {what}") for at, who, what in zip(words[::3], words[1::3], words[2::3], strict=True)}


@pytest.mark.parametrize("boot", [1, 2, 3, 5])
@pytest.mark.parametrize(
    ("story", "max_active", "cpu_intensive"),
    [
        (ONE_BY_ONE, 1, False),
        (TWO_ACTIVE, 2, False),
        (ALL_ACTIVE, 3, False),
        (ALL_ACTIVE, 256, False),
        (CPU_INTENSIVE, 256, True),
    ],
    ids=["max_active=1", "max_active=2", "max_active=3", "max_active=256", "cpu_intensive"],
)
def test_A3_A4_E1_the_kernels_timeline(story: str, max_active: int, cpu_intensive: bool, boot: int) -> None:
    sim = Simulation(cpus=1)

    def w(name: str, last_burn: float) -> None:
        sim.note(f"{name} starts")
        sim.burn(0.005)
        sim.note(f"{name} sleeps")
        sim.sleep(0.010)
        if last_burn:
            sim.note(f"{name} wakes")
            sim.burn(last_burn)
        sim.note(f"{name} ends")

    def main() -> None:
        with sim.runtime() as runtime:
            pool = runtime.pool_here("cpu")
            for _ in range(boot - 1):
                pool.office.create_worker()
            q0 = cmwq.WorkQueue("q0", scope="cpu", max_active=max_active, runtime=runtime)
            q1 = cmwq.WorkQueue("q1", scope="cpu", cpu_intensive=True, runtime=runtime) if cpu_intensive else q0
            q0.submit(w, "w0", 0.005)
            q1.submit(w, "w1", 0)
            q1.submit(w, "w2", 0)

    sim.run(main)
    assert set(sim.log) == events(story)
    assert len(sim.log) == len(events(story))
