"""A deterministic simulator for the pools: virtual clock, seeded interleavings, threads that are refused, a sensor by
script.

    sim = Simulation(cpus=1, seed=7)
    def main():
        with sim.runtime() as runtime, cmwq.WorkQueue("q", scope="cpu", runtime=runtime) as wq:
            wq.submit(sim.sleep, 0.010)
    sim.run(main)

The very core that runs in production runs here, on real threads of which exactly one runs at a time. Who runs next is
decided at the seams (lock, park, unpark, spawn): first come first served, or by the seed. Same seed, same run. Time
passes only when nobody can run.
"""

from cmwq.testing.sim import SimDeadlock, SimHost, SimSensor, Simulation

__all__ = ["SimDeadlock", "SimHost", "SimSensor", "Simulation"]
