"""The program that does the rounds, and tells of each that broke something: one line of JSON each.

    python -m interrupted.child '{"attack": "raise", "sensor": "sentinel", "tasks": [["submit", 1]], ...}'

What hangs is noticed by a watchdog thread: it tells where, and ends the process; who started it starts another, that
goes on behind that case. So one hang is one failure.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from typing import Any

from interrupted.attacks import ATTACKS, Attack
from interrupted.operations import OPERATIONS
from interrupted.tracing import PACKAGE
from interrupted.whole import IMPATIENCE, WITNESS, Bench, Broken

HUNG = 3
WORN = 4  # so much is broken in this process that another should go on
MOST_BROKEN = 20  # of a process: each leaves threads behind
RENEW = 100  # rounds after which a runtime is closed and another one made


class Watchdog:
    """Ends the process when a round takes too long, with words."""

    def __init__(self) -> None:
        self._until = float("inf")
        self._words: dict[str, Any] = {}
        self.place: object = ""
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def note(self, place: object) -> None:
        self.place = place

    def begin(self, patience: float, **words: Any) -> None:
        self.place = ""
        self._words = words
        self._until = time.monotonic() + patience * 1.5 + 1

    def end(self) -> None:
        self._until = float("inf")

    def _watch(self) -> None:
        while time.monotonic() < self._until:
            time.sleep(0.2)
        tell(event="hung", place=str(self.place), words=f"hangs in {stack(threading.main_thread())}", **self._words)
        os._exit(HUNG)


def stack(thread: threading.Thread) -> str:
    """Where it is: the innermost functions of the package, and what they call."""
    frame = sys._current_frames().get(thread.ident or 0)
    frames = traceback.extract_stack(frame) if frame is not None else []
    last = [each for each in frames if each.filename.startswith(PACKAGE)][-3:] or frames[-2:]
    return " > ".join(f"{os.path.basename(each.filename)}:{each.lineno} {each.name}" for each in last)


_one_line = threading.Lock()


def tell(**words: Any) -> None:
    with _one_line:
        os.write(1, (json.dumps(words) + "\n").encode())


class Rounds:
    def __init__(self, order: dict[str, Any]) -> None:
        self.order = order
        self.watchdog = Watchdog()
        self.attack: Attack = ATTACKS[order["attack"]](order["seed"], self.watchdog.note)
        self.bench: Bench | None = None
        self.broken = 0

    def patience(self) -> float:
        return self.order["patience"] if self.found == 0 else IMPATIENCE

    def run(self) -> int:
        for name, start, events, found in self.order["tasks"]:
            self.found = found
            if not self.operation(name, start, events):
                return WORN
        return 0

    def operation(self, name: str, start: int, events: int) -> bool:
        """False: another process should go on; it was told where."""
        kind, order = OPERATIONS[name], self.order
        if not events:
            self.watchdog.begin(self.patience(), name=name, case=0, injected=0)
            try:
                events = self.attack.count(self.have_bench(), kind) or order["rounds"]
            except Exception as exc:
                tell(event="broken", name=name, case=0, place="undisturbed", words=words_of(exc), injected=0)
                self.bench = None
                self.broken += 1
                tell(event="done", name=name, injected=0)
                return True
        step = max(1, events // order["samples"]) if order["samples"] else order["step"]
        tell(event="events", name=name, events=events, step=step)
        first = 1 + order["seed"] % step
        injected = 0
        for case in range(first, events + 1, step):
            if case < start:
                continue
            self.watchdog.begin(self.patience(), name=name, case=case, injected=injected)
            try:
                injected += self.attack.round(self.have_bench(), kind, case)
            except Exception as exc:
                injected += 1
                tell(event="broken", name=name, case=case, place=str(self.watchdog.place), words=words_of(exc))
                WITNESS.heard.clear()
                self.bench = None
                self.broken += 1
                self.found += 1
                if self.broken >= min(MOST_BROKEN, order["most"]):
                    tell(event="left", name=name, case=case, injected=injected)
                    return False
                if self.found >= order["enough"]:
                    break
            self.watchdog.end()
        self.watchdog.begin(self.patience(), name=name, case=events, injected=injected)
        try:
            self.renew()
        except Exception as exc:
            tell(event="broken", name=name, case=events, place="at the end", words=words_of(exc))
        tell(event="done", name=name, injected=injected)
        return True

    def have_bench(self) -> Bench:
        if self.bench is not None and self.bench.rounds >= RENEW:
            self.renew()
        if self.bench is None:
            self.bench = Bench(self.order["sensor"], self.patience())
        self.bench.rounds += 1
        self.bench.patience = self.patience()
        return self.bench

    def renew(self) -> None:
        bench, self.bench = self.bench, None
        if bench is not None:
            bench.close()


def words_of(exc: Exception) -> str:
    return str(exc) if isinstance(exc, Broken) else f"then {exc!r}"


def main() -> None:
    order = json.loads(sys.argv[1])
    WITNESS.listen()
    status = Rounds(order).run()
    sys.stdout.flush()
    # What is broken on purpose may not end; that a runtime ends well was checked.
    os._exit(status)


if __name__ == "__main__":
    main()
