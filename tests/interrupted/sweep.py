"""Run attacks on operations in children, go on behind what broke, and tell by a table.

python -m interrupted.sweep raise enter --sensors sentinel procfs --operations submit queue --samples 20
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from interrupted.attacks import ATTACKS
from interrupted.child import HUNG, WORN
from interrupted.operations import OPERATIONS
from interrupted.whole import PATIENCE

TESTS = Path(__file__).resolve().parent.parent


@dataclass
class Row:
    """What came of one operation."""

    events: int = 0
    injected: int = 0
    broken: int = 0
    hung: int = 0
    by_signal: int = 0
    given_up: bool = False
    summaries: list[str] = field(default_factory=list)


@dataclass
class Sweep:
    """One attack on some operations, with one sensor."""

    attack: str
    sensor: str
    seed: int
    samples: int = 0  # so many cases of each operation, spread over all; 0: every `step`-th
    step: int = 1
    rounds: int = 20  # where an attack's cases have no end
    locks: str = ""  # "python": those in C are not used, nor anything else in C
    enough: int = 10**9  # so much broken of one operation is told, and no more
    hangs: int = 3  # of one operation: each costs seconds
    most: int = 10**9  # broken, of all together: then it ends
    patience: float = PATIENCE
    verbose: bool = False
    rows: dict[str, Row] = field(default_factory=dict)

    def run(self, names: list[str]) -> None:
        self.rows = {name: Row() for name in names}
        tasks: list[list[Any]] = [[name, 1, 0, 0] for name in names]
        while tasks and sum(row.broken for row in self.rows.values()) < self.most:
            tasks = self._child(tasks)

    @property
    def whole(self) -> bool:
        return not any(row.broken for row in self.rows.values())

    def _child(self, tasks: list[list[Any]]) -> list[list[Any]]:
        """Returns what is left to do."""
        order = {
            "attack": self.attack, "sensor": self.sensor, "seed": self.seed, "samples": self.samples,
            "step": self.step, "rounds": self.rounds, "enough": self.enough, "tasks": tasks,
            "patience": self.patience, "most": self.most,
        }  # fmt: skip
        path = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH", "")]))
        command = [sys.executable, "-X", "faulthandler", "-m", "interrupted.child", json.dumps(order)]
        # The debug mode allocates within sections: the collector would run, and finalisers call, where they don't else.
        debug = "0" if self.attack in ("finaliser", "callback", "depth") else os.environ.get("CMWQ_DEBUG", "1")
        env = {**os.environ, "PYTHONPATH": path, "CMWQ_LOCKS": self.locks, "CMWQ_DEBUG": debug}
        at = 0
        left = list(tasks)
        # Not a pipe: who hears the one stream must not forget the other.
        with (
            tempfile.TemporaryFile("w+") as noise,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=noise, text=True, env=env) as child,
        ):
            assert child.stdout is not None
            for line in child.stdout:
                at = self._hear(json.loads(line), left, at)
            status = child.wait()
            noise.seek(0)
            said = noise.read()
        for line in said.splitlines():
            if line.startswith(("cmwq: LockOrder", "cmwq: WrongContext")):
                self._broke(tasks[0][0], line)
        if status not in (0, HUNG, WORN):
            # It died: of a signal, or of an exception that nothing caught.
            name, start, events, _ = left[0]
            self._broke(name, f"{name} k>={max(at, start)}: the process died, status {status}: {said[-1500:]}")
            left[0] = [name, max(at, start) + 1, events, self.rows[name].broken]
            self.rows[name].hung += 1
            self._give_up(left)
        return left

    def _hear(self, told: dict[str, Any], left: list[list[Any]], at: int) -> int:
        name, event = told["name"], told["event"]
        row = self.rows[name]
        if event == "events":
            row.events = told["events"]
            left[0][2] = told["events"]
            return 0
        case = told.get("case", 0)
        if event == "done":
            row.injected += told["injected"]
            left.pop(0)
            return 0
        if event in ("hung", "left"):
            row.injected += told["injected"] + (event == "hung")
            left[0][1] = case + 1
        if event in ("hung", "broken"):
            place = told["place"] or f"k={case}"
            self._broke(name, f"{name} {place}: {told['words']}")
            row.by_signal += "(no signal)" not in place
        left[0][3] = row.broken
        if event == "hung":
            row.hung += 1
            self._give_up(left)
        return int(case)

    def _broke(self, name: str, summary: str) -> None:
        row = self.rows[name]
        row.broken += 1
        row.summaries.append(summary)
        if self.verbose:
            print(f"{self.attack} {self.sensor} seed={self.seed} {summary}", flush=True)

    def _give_up(self, left: list[list[Any]]) -> None:
        """Of an operation that hangs again and again the rest is left out."""
        row = self.rows[left[0][0]]
        if row.hung >= self.hangs:
            row.given_up = True
            left.pop(0)

    def table(self) -> str:
        what = ATTACKS[self.attack].what
        title = f"{self.attack}, {self.sensor}{', Python locks' * bool(self.locks)}, seed {self.seed}"
        raises = self.attack.startswith("raise")
        lines = [f"{title:<44} {what:>11} {'injected':>9} {'broken':>7} {'hung':>5} {'by a signal' * raises:>12}"]
        rows = [*self.rows.items(), ("all", self._sum())]
        for name, row in rows:
            more = "  and no further" if row.given_up else ""
            signal = row.by_signal if raises else ""
            lines.append(
                f"{name:<44} {row.events:>11} {row.injected:>9} {row.broken:>7} {row.hung:>5} {signal:>12}{more}"
            )
        return "\n".join(lines)

    def _sum(self) -> Row:
        rows = list(self.rows.values())
        return Row(
            *(sum(getattr(row, each) for row in rows) for each in ("events", "injected", "broken", "hung", "by_signal"))
        )

    def failures(self) -> str:
        """What broke, and how to have it again."""
        lines = [line for row in self.rows.values() for line in row.summaries]
        again = f"python -m interrupted.sweep {self.attack} --sensors {self.sensor} --seed {self.seed}"
        if self.locks:
            again += f" --locks {self.locks}"
        if self.samples:
            again += f" --samples {self.samples}"
        return "\n".join([*lines, f"again: PYTHONPATH=tests {again} --rounds {self.rounds}"])


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("attacks", nargs="+", choices=[*ATTACKS])
    options.add_argument("--sensors", nargs="+", default=["sentinel", "procfs"])
    options.add_argument("--operations", nargs="+", default=[*OPERATIONS], metavar="NAME")
    options.add_argument("--samples", type=int, default=0, help="cases of each operation (default: every STEP-th)")
    options.add_argument("--step", type=int, default=1)
    options.add_argument("--rounds", type=int, default=1000, help="of attacks at random moments")
    options.add_argument("--hangs", type=int, default=10, help="of an operation, before the rest of it is left out")
    options.add_argument("--enough", type=int, default=10**9, help="broken of an operation: the rest is left out")
    options.add_argument("--patience", type=float, default=PATIENCE, help="seconds that only a hang or a loss takes")
    options.add_argument("--locks", choices=["", "python"], default="")
    options.add_argument("--seed", type=int, default=random.randrange(1 << 20))
    chosen = options.parse_args()
    whole = True
    for attack in chosen.attacks:
        for sensor in chosen.sensors:
            sweep = Sweep(
                attack, sensor, chosen.seed, samples=chosen.samples, step=chosen.step, rounds=chosen.rounds,
                locks=chosen.locks, enough=chosen.enough, hangs=chosen.hangs, patience=chosen.patience,
                verbose=True,
            )  # fmt: skip
            sweep.run(chosen.operations)
            print(sweep.table(), flush=True)
            whole &= sweep.whole
    return not whole


if __name__ == "__main__":
    sys.exit(main())
