"""300 random programs, each under a random interleaving, with the invariants checked after every step."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from simulated import with_each

import cmwq
from cmwq.testing import Simulation

SEEDS_PER_TEST = 25


def run_program(seed: int) -> Simulation:
    """A random program: queues, limits, works that burn, sleep, submit and wait, requeue themselves; threads that are
    refused.
    """
    rng = random.Random(seed)
    sim = Simulation(cpus=rng.choice([1, 1, 2, 3]), seed=seed, late=rng.choice([0.0, 0.001]), gil=rng.random() < 0.3)
    refusals = rng.choice([0.0, 0.0, 0.3, 0.8])
    # A pool's first thread is never refused: that is another test's matter.
    sim.host.refuse = lambda name: not name.endswith(":0") and rng.random() < refusals
    ran: Counter[str] = Counter()
    expected: Counter[str] = Counter()

    def main() -> None:
        with sim.runtime(max_workers=rng.choice([3, 8, 1024])) as runtime:
            queues = [
                cmwq.WorkQueue(
                    f"q{i}",
                    scope=rng.choice(["system", "cpu"]),
                    max_active=rng.choice([1, 2, 256]),
                    cpu_intensive=rng.random() < 0.2,
                    runtime=runtime,
                )
                for i in range(rng.randint(1, 3))
            ]
            waits = runtime.max_workers > 100 and not refusals

            def step(name: str, depth: int) -> None:
                ran[name] += 1
                for _ in range(rng.randint(0, 3)):
                    choice = rng.random()
                    if choice < 0.35:
                        sim.burn(rng.choice([0.0001, 0.001]))
                    elif choice < 0.7:
                        sim.sleep(rng.choice([0.0001, 0.003]))
                    elif choice < 0.8:
                        with cmwq.blocking():
                            sim.sleep(0.0005)
                    elif depth and choice < 0.95:
                        child = f"{name}.{depth}{rng.random()}"
                        expected[child] += 1
                        future = rng.choice(queues).submit(step, child, depth - 1)
                        if waits and rng.random() < 0.7:
                            future.result()
                    else:
                        raise ZeroDivisionError

            inside: Counter[int] = Counter()
            executions: Counter[int] = Counter()
            pending: list[cmwq.Work] = []

            def again(index: int) -> None:
                inside[index] += 1
                assert inside[index] == 1, "E3: a work runs twice at the same time"
                executions[index] += 1
                sim.sleep(rng.choice([0.0, 0.001]))
                if executions[index] < 3:
                    rng.choice(queues).queue(pending[index])
                inside[index] -= 1

            errors: list[BaseException] = []
            for queue in queues:
                queue._on_error = lambda work, exc: errors.append(exc)
            pending.extend(cmwq.Work(again, index) for index in range(3))
            for number in range(rng.randint(1, 12)):
                queue = rng.choice(queues)
                name = f"{number}"
                expected[name] += 1
                future = queue.submit(step, name, 2)
                choice = rng.random()
                if choice < 0.1 and future.cancel():
                    expected[name] -= 1
                elif choice < 0.2:
                    queue.flush()
                    assert future.done(), "F1: flush returned before what was queued earlier had ended"
                elif choice < 0.3:
                    queue.max_active = rng.choice([1, 2, 256])
                elif choice < 0.5:
                    rng.choice(queues).queue(rng.choice(pending))
                elif choice < 0.6:
                    sim.sleep(0.002)
            # Those works queue each other's queues: closing in turn needs quiet first.
            runtime.close()
            assert not errors
            for index, work in enumerate(pending):
                assert executions[index] in (0, *range(3, 20))
                assert not work.pending
                assert not work.running

    sim.run(main)
    assert +expected == +ran
    return sim


@pytest.mark.parametrize("first", range(0, 300, SEEDS_PER_TEST))
def test_300_interleavings_keep_every_invariant(first: int) -> None:
    with_each(range(first, first + SEEDS_PER_TEST), run_program)


def test_same_seed_same_run() -> None:
    assert run_program(11).host.steps == run_program(11).host.steps
