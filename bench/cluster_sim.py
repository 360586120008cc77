"""1,000 nodes, of which this machine has none: where Dask's scheduler becomes the limit, and what cmwq adds to it.

First what can be measured here is measured, on one machine, by CPU clocks of the processes, so sharing its CPUs does
not matter: what one task costs the scheduler and a worker, what a slot that is given back costs both, and how long a
message takes from one to the other. Then a cluster is simulated with these costs, on a virtual clock: one
scheduler that does one thing after the other, nodes with so many slots, tasks that compute or wait.

What is left out: data that tasks send one another, failures, work stealing, a network that is slow or full, and what
grows with the number of nodes in the scheduler itself (heartbeats are counted: `HEARTBEAT`). So the numbers are what
could be at best.

    make bench-cluster
"""

from __future__ import annotations

import argparse
import heapq
import json
import logging
import statistics
import time
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

TASKS = 2000
"""So many are run to measure what one costs."""
AHEAD = 1.1
"""So many tasks for each slot Dask sends a worker by default."""


@dataclass(frozen=True)
class Costs:
    """Seconds."""

    scheduler: float
    """CPU time of the scheduler for one task, from the graph to the end."""
    give_back: float
    """CPU time of the scheduler for a slot that is given back, in addition."""
    worker: float
    """CPU time of a worker for one task that does nothing."""
    worker_give_back: float
    """CPU time of a worker for a slot that is given back, in addition."""
    hop: float
    """From the scheduler to a worker, or back: half of a round trip, batching included."""
    heartbeat: float = 0.0003
    """CPU time of the scheduler for one heartbeat of a worker: taken from Dask's own figures, not measured here."""


# ------------------------------------------------------------------------------------- measuring


def _nothing(_: int) -> None:
    pass


def _blink(_: int) -> None:
    time.sleep(0.02)


def _cpu_of_scheduler(dask_scheduler: Any) -> float:
    return time.process_time()


def _cpu_of_worker() -> float:
    return time.process_time()


def _cpu(client: Any) -> tuple[float, float]:
    return client.run_on_scheduler(_cpu_of_scheduler), sum(client.run(_cpu_of_worker).values())


def _spent(client: Any, task: Any, number: int) -> tuple[float, float]:
    """CPU seconds of the scheduler and of the worker, beyond what they use when they have nothing to do."""
    import distributed

    before, begun = _cpu(client), time.perf_counter()
    with client.as_current():
        distributed.wait(client.map(task, range(number), pure=False))
    seconds, after = time.perf_counter() - begun, _cpu(client)
    time.sleep(seconds)
    idle = _cpu(client)
    return 2 * after[0] - before[0] - idle[0], 2 * after[1] - before[1] - idle[1]


def measured(rounds: int) -> Costs:
    """With a scheduler in a process of its own, so that its CPU time is its own."""
    import subprocess
    import sys

    import distributed

    from cmwq.contrib.dask import CmwqPlugin

    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0"]
    scheduler = subprocess.Popen([*command, "--no-dashboard"], stderr=subprocess.PIPE, text=True)
    worker = None
    try:
        assert scheduler.stderr is not None
        address = next(line.split()[-1] for line in scheduler.stderr if "Scheduler at:" in line)
        command = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--no-nanny", "--nthreads", "2"]
        worker = subprocess.Popen([*command, "--no-dashboard"], stderr=subprocess.DEVNULL)
        with distributed.Client(address, set_as_default=False) as client:
            client.wait_for_workers(1, timeout=60)
            _spent(client, _nothing, TASKS)
            plain = [_spent(client, _nothing, TASKS) for _ in range(rounds)]
            waiting = [_spent(client, _blink, TASKS // 10) for _ in range(rounds)]
            trips = []
            for _ in range(200):
                begun = time.perf_counter()
                client.submit(_nothing, 0, pure=False).result()
                trips.append(time.perf_counter() - begun)
            client.register_plugin(CmwqPlugin())
            _spent(client, _blink, TASKS // 10)
            given_back = [_spent(client, _blink, TASKS // 10) for _ in range(rounds)]
    finally:
        for process in (worker, scheduler):
            if process is not None:
                process.kill()
                process.wait()
    per_task = [statistics.median(each[part] for each in plain) / TASKS for part in (0, 1)]
    extra = [
        statistics.median(a[part] - b[part] for a, b in zip(given_back, waiting, strict=True)) / (TASKS // 10)
        for part in (0, 1)
    ]
    # A round trip from the client and back is four hops, of which each may wait for a batch.
    return Costs(per_task[0], max(extra[0], 0.0), per_task[1], max(extra[1], 0.0), statistics.median(trips) / 4)


# ------------------------------------------------------------------------------------- simulating


@dataclass(frozen=True)
class Load:
    """Tasks of which each computes for so long, then waits for so long. Seconds."""

    name: str
    compute: float
    wait: float


class Cluster:
    """One run. Events are (time, number, what, node)."""

    def __init__(
        self, costs: Costs, nodes: int, slots: int, load: Load, tasks: int, give_back: bool, ahead: float, cap: int
    ) -> None:
        self.costs, self.nodes, self.slots, self.load, self.give_back = costs, nodes, slots, load, give_back
        self.cap = cap
        self.window = max(1, -(-int(ahead * slots * 10) // 10))
        self.left = tasks  # not sent
        self.done = 0
        self.tasks = tasks
        self.free_at = 0.0  # when the scheduler has time
        self.busy = 0.0  # for how long it was at work
        self.counted = [0] * nodes  # tasks that the scheduler counts at a node
        self.ready: list[deque[int]] = [deque() for _ in range(nodes)]
        self.executing = [0] * nodes  # slots taken
        self.computing = [0] * nodes
        self.blocked = [0] * nodes
        self.runnable = [0] * nodes  # hold a slot, and wait for a CPU
        self.events: list[tuple[float, int, str, int]] = []
        self.number = 0

    def at(self, when: float, what: str, node: int) -> None:
        self.number += 1
        heapq.heappush(self.events, (when, self.number, what, node))

    def schedule(self, now: float, cost: float) -> float:
        """The scheduler does something that takes so long, when it has time. Returns when that is done."""
        self.free_at = max(self.free_at, now) + cost
        self.busy += cost
        return self.free_at

    def refill(self, now: float, node: int) -> None:
        while self.left and self.counted[node] < self.window:
            self.left -= 1
            self.counted[node] += 1
            self.at(self.schedule(now, self.costs.scheduler / 2) + self.costs.hop, "arrives", node)

    def begin(self, now: float, node: int) -> None:
        """Begin what a slot is free for; and compute, if a CPU is free: there is one for each slot."""
        while self.ready[node] and self.executing[node] < self.slots:
            self.ready[node].popleft()
            self.executing[node] += 1
            self.runnable[node] += 1
        while self.runnable[node] and self.computing[node] < self.slots:
            self.runnable[node] -= 1
            self.computing[node] += 1
            self.at(now + self.load.compute + self.costs.worker, "computed", node)

    def run(self) -> float:
        """Seconds until the last task has ended."""
        beats = self.costs.heartbeat * max(0.2, 1 / (self.nodes / 200 + 1)) * self.nodes  # a share of its time
        stretch = 1 / max(0.05, 1 - min(beats, 0.95))
        self.costs = Costs(**{**asdict(self.costs), "scheduler": self.costs.scheduler * stretch})
        for _ in range(self.window):
            for node in range(self.nodes):
                if self.left and self.counted[node] < self.window:
                    self.left -= 1
                    self.counted[node] += 1
                    self.at(self.schedule(0.0, self.costs.scheduler / 2) + self.costs.hop, "arrives", node)
        now = 0.0
        while self.done < self.tasks:
            now, _, what, node = heapq.heappop(self.events)
            getattr(self, what)(now, node)
        return now

    # What happens

    def arrives(self, now: float, node: int) -> None:
        self.ready[node].append(0)
        self.begin(now, node)

    def computed(self, now: float, node: int) -> None:
        self.computing[node] -= 1
        if not self.load.wait:
            self.over(now, node, held=True)
            return
        gives = self.give_back and self.blocked[node] < self.cap
        self.at(now + self.load.wait, "woke_without_slot" if gives else "woke", node)
        if gives:
            self.blocked[node] += 1
            self.executing[node] -= 1
            self.at(now + self.costs.worker_give_back + self.costs.hop, "gave_back", node)
        self.begin(now, node)

    def gave_back(self, now: float, node: int) -> None:
        self.counted[node] -= 1
        self.refill(self.schedule(now, self.costs.give_back), node)

    def woke(self, now: float, node: int) -> None:
        self.over(now, node, held=True)

    def woke_without_slot(self, now: float, node: int) -> None:
        self.blocked[node] -= 1
        self.over(now, node, held=False)

    def over(self, now: float, node: int, held: bool) -> None:
        if held:
            self.executing[node] -= 1
        self.at(now + self.costs.hop, "ended" if held else "ended_without_slot", node)
        self.begin(now, node)

    def ended(self, now: float, node: int) -> None:
        self.counted[node] -= 1
        self.ended_without_slot(now, node)

    def ended_without_slot(self, now: float, node: int) -> None:
        self.done += 1
        self.refill(self.schedule(now, self.costs.scheduler / 2), node)


LOADS = (
    Load("compute 10 ms", 0.01, 0.0),
    Load("compute 1 s", 1.0, 0.0),
    Load("wait 0.1 s", 0.0005, 0.1),
    Load("wait 10 s", 0.0005, 10.0),
    Load("compute 0.1 s, wait 0.9 s", 0.1, 0.9),
)


def simulate(costs: Costs, nodes: int, slots: int, per_node: int, cap: int) -> list[dict[str, Any]]:
    rows = []
    for load in LOADS:
        for name, give_back, ahead in (("dask", False, AHEAD), ("cmwq", True, AHEAD), ("cmwq ahead", True, 4.0)):
            cluster = Cluster(costs, nodes, slots, load, nodes * per_node, give_back, ahead, cap)
            seconds = cluster.run()
            rows.append(
                {
                    "load": load.name,
                    "setting": name,
                    "nodes": nodes,
                    "seconds": seconds,
                    "tasks a second": cluster.tasks / seconds,
                    "scheduler busy": min(1.0, cluster.busy / seconds),
                }
            )
    return rows


def limits(costs: Costs) -> list[str]:
    """Where the scheduler becomes the limit, by arithmetic: it is what the simulation has to agree with."""
    plain, more = 1 / costs.scheduler, 1 / (costs.scheduler + costs.give_back)
    return [
        f"The scheduler can handle {plain:,.0f} tasks a second at most; {more:,.0f} if each gives its slot back.",
        f"1,000 nodes of 2 slots are busy with tasks of {2000 / plain:.2f} s or longer on Dask's own threads.",
        f"With cmwq the nodes take as many as the scheduler has: tasks that wait for {256_000 / more:,.0f} s fill 256 "
        "places on each of 1,000 nodes.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--nodes", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--per-node", type=int, default=50, help="tasks for each node")
    parser.add_argument("--cap", type=int, default=256, help="tasks of a node that may be without a slot")
    parser.add_argument("--costs", type=Path, help="a file that --json made: its costs are taken, nothing is measured")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    logging.getLogger("distributed").setLevel(logging.ERROR)
    costs = Costs(**json.loads(options.costs.read_text())["costs"]) if options.costs else measured(options.rounds)
    print("What is measured, in microseconds:")
    for name, seconds in asdict(costs).items():
        print(f"  {name:<18}{seconds * 1e6:10.0f}")
    print(*limits(costs), sep="\n")
    rows = []
    for nodes in options.nodes:
        print(f"\n{nodes:,} nodes, {options.slots} slots each, {options.per_node} tasks for each node")
        for row in simulate(costs, nodes, options.slots, options.per_node, options.cap):
            rows.append(row)
            print(
                f"  {row['load']:<28}{row['setting']:<12}{row['seconds']:9.1f} s"
                f"{row['tasks a second']:12,.0f} tasks/s   scheduler busy {row['scheduler busy']:.0%}"
            )
    if options.json is not None:
        options.json.write_text(json.dumps({"costs": asdict(costs), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
