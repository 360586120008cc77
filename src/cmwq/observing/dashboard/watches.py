"""Watching all processes that can be watched: finding them, and finding one again that was started anew.

Guarantees: at most `WATCHED` processes are watched at a time, and `ENDED` that have ended are remembered. A process
that is found takes the place of one that has ended under the same command, so its history goes on.

Thread-safe.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from cmwq.observing.dashboard.sources import NoPicture, Source, Target
from cmwq.observing.dashboard.watch import State, Watch, is_gone

LOOK = 2.0  # seconds from one look for processes to the next
WATCHED = 64
ENDED = 20


class Watches:
    """The watched processes, from `start` to `close`. `announce` is called, by any thread, when there is news."""

    def __init__(self, source: Source, interval: float, announce: Callable[[], object], look: float = LOOK) -> None:
        self._source = source
        self._interval = interval
        self._announce = announce
        self._look = look  # 0: look once, and never again
        self._lock = threading.Lock()
        self._watches: dict[int, Watch] = {}
        self._next = 0
        self._left_out = 0
        self._trouble = ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="look for processes", daemon=True)

    def start(self) -> None:
        """Look for processes once; then again and again, on a thread. Raises NoPicture if the first look fails."""
        self._find(self._source.targets())
        if self._look:
            self._thread.start()

    def close(self) -> None:
        """End all watches."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(5)
        with self._lock:
            watches = list(self._watches.values())
        for watch in watches:
            watch.close()

    def get(self, number: int) -> Watch | None:
        """The watch with this number, if there is one (still)."""
        with self._lock:
            return self._watches.get(number)

    def all(self) -> list[Watch]:
        """All watches, in the order in which they began."""
        with self._lock:
            return list(self._watches.values())

    def overview(self) -> dict[str, object]:
        """The list of processes, ready for JSON."""
        watches = self.all()
        return {
            "processes": [watch.entry() for watch in watches],
            "left_out": self._left_out,
            "trouble": self._trouble,
        }

    def _run(self) -> None:
        while not self._stop.wait(self._look):
            before = self._trouble
            try:
                self._find(self._source.targets())
                self._trouble = ""
            except NoPicture as error:
                self._trouble = str(error)
            except Exception as error:
                self._trouble = f"Looking for processes failed ({type(error).__name__}: {error})."
            if self._trouble != before:
                self._announce()

    def _find(self, targets: list[Target]) -> None:
        """Watch what is new."""
        with self._lock:
            gone = {number for number, watch in self._watches.items() if _has_ended(watch)}
            known = {_key(watch.target) for number, watch in self._watches.items() if number not in gone}
            ended = [self._watches[number].target for number in gone]  # it may have ended since they were looked for
            new = [target for target in targets if _key(target) not in known and target not in ended]
            watched = len(known)
            started: list[Watch] = []
            self._left_out = 0
            for target in new:
                old = self._oldest(gone, target.command)
                if old is not None:
                    gone.remove(old.number)
                    old.follow(target)
                elif watched < WATCHED:
                    watch = Watch(self._next, target, self._interval, self._announce)
                    self._watches[self._next] = watch
                    self._next += 1
                    watched += 1
                    started.append(watch)
                else:
                    self._left_out += 1
            forgotten = self._forget()
        for watch in started:
            watch.start()
        for watch in forgotten:
            watch.close()
        if new or forgotten:
            self._announce()

    def _oldest(self, gone: set[int], command: str) -> Watch | None:
        """The watch of the process that has been gone for the longest time, of those with this command."""
        alike = [self._watches[number] for number in gone if self._watches[number].target.command == command]
        return min(alike, key=lambda watch: watch.changed, default=None)

    def _forget(self) -> list[Watch]:
        """Take out the oldest of those that have ended, if there are too many."""
        ended = sorted((w for w in self._watches.values() if w.state is State.ENDED), key=lambda watch: watch.changed)
        forgotten = ended[: max(0, len(ended) - ENDED)]
        for watch in forgotten:
            del self._watches[watch.number]
        return forgotten


def _has_ended(watch: Watch) -> bool:
    """The watch may not have noticed yet."""
    return watch.state is State.ENDED or (watch.state is not State.OVER and is_gone(watch.target))


def _key(target: Target) -> tuple[int, str | None]:
    return target.pid, target.path
