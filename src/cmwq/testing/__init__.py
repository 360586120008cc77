"""A deterministic simulator for the pools: a virtual clock, seeded interleavings, refused threads, a scripted sensor.

    sim = Simulation(cpus=1, seed=7)
    def main():
        with sim.runtime() as runtime, cmwq.WorkQueue("q", scope="cpu", runtime=runtime) as wq:
            wq.submit(sim.sleep, 0.010)
    sim.run(main)

The same core that runs in production runs here, on real threads of which exactly one runs at a time. Which one runs
next is decided at the seams (lock, park, unpark, spawn): first come, first served, or by the seed. The same seed gives
the same run. Time passes only when no thread can run.
"""

from cmwq.testing.sim import Simulation
from cmwq.testing.sim_host import SimDeadlock, SimHost
from cmwq.testing.sim_sensor import SimSensor

__all__ = ["SimDeadlock", "SimHost", "SimSensor", "Simulation"]
