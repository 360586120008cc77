"""Watching one process: a thread that asks it for a picture once an interval, and keeps what the page shows.

Guarantees
- One picture per interval, however many browsers look. Stacks are asked for only when somebody wants to see them, with
  the next picture, at most once a second, for all who want to see them at that time.
- Whatever the process or its pictures are like, the thread goes on: a picture that can't be used is reported on the
  page. The last good picture stays.
- `close` ends the thread; whoever waits for stacks gets none.

Thread-safe. What is shared is guarded by the watch's lock, which is held for no longer than it takes to add a picture.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from enum import StrEnum
from pathlib import Path
from typing import Any

from cmwq.observing.dashboard.history import History
from cmwq.observing.dashboard.message import counters, message, occupancy, told_apart
from cmwq.observing.dashboard.rates import Rates
from cmwq.observing.dashboard.sources import Link, NoPicture, Over, Picture, Target
from cmwq.observing.dashboard.timeline import Timeline

AGAIN = 2.0  # seconds from a failure to the next attempt
OVERDUE = 3.0  # seconds after which an answer is late
FRESH = 1.0  # seconds for which stacks are good enough for the next who asks


class State(StrEnum):
    """How the watch stands with its process."""

    WAITING = "waiting"
    """No picture has come yet."""
    LIVE = "live"
    SILENT = "silent"
    """The process is there, and does not answer."""
    ENDED = "ended"
    """There is no such process any more."""
    OVER = "over"
    """A recording has been played."""


def is_gone(target: Target) -> bool:
    """Return whether there is no such process any more, or only what its parent has not asked for yet (a zombie)."""
    if target.remote:
        return False  # only its source can know
    try:
        status = Path(f"/proc/{target.pid}/stat").read_text(errors="replace")
    except FileNotFoundError:
        return Path("/proc/self").exists()
    except OSError:  # it ended while this was read, or the file isn't ours to read
        return not Path(f"/proc/{target.pid}").exists()
    return status.rpartition(")")[2].split()[:1] == ["Z"]


class Watch:
    """One process, from `start` to `close`. `announce` is called, by the watch's thread, when there is news."""

    def __init__(self, number: int, target: Target, interval: float, announce: Callable[[], object]) -> None:
        self.number = number
        self.interval = interval
        self._announce = announce
        self._lock = threading.Lock()
        self._bell = threading.Event()
        self._closed = False
        self._target = target
        self._state, self._said = State.WAITING, "No picture has come yet."
        self._changed = time.time()
        self._restarts = 0
        self._sequence = 0
        self._picture: Picture | None = None
        self._message: dict[str, Any] = {}
        self._encoded: tuple[int, bytes] = (-1, b"")
        self._stacked: tuple[float, Picture] | None = None
        self._askers: list[Future[Picture]] = []
        self._link: Link | None = None
        self._asked: float | None = None  # when the thread asked, while it waits for the answer
        self._history = History(interval)
        self._timeline = Timeline()
        self._rates = Rates()
        self._thread = threading.Thread(target=self._run, name=f"watch {target.pid}", daemon=True)

    def start(self) -> None:
        """Begin to ask. Raises RuntimeError if no thread can be had."""
        self._thread.start()

    def close(self, timeout: float = 5.0) -> None:
        """End the watch, and wait for its thread for at most so many seconds."""
        with self._lock:
            self._closed = True
            link, askers, self._askers = self._link, self._askers, []
        for asker in askers:
            asker.cancel()
        self._bell.set()
        if link is not None:
            link.close()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def follow(self, target: Target) -> None:
        """Watch this process from now on, in place of one that has ended: what is kept stays."""
        with self._lock:
            self._target = target
            self._restarts += 1
            self._rates.forget()
            self._timeline.end_all()
            self._stacked = None
            self._state, self._said = State.WAITING, f"It has begun again, as process {target.pid}."
            self._changed = time.time()
        self._bell.set()

    # ------------------------------------------------------------------------------- for browsers

    @property
    def state(self) -> State:
        return self._state

    @property
    def target(self) -> Target:
        return self._target

    @property
    def changed(self) -> float:
        """Epoch seconds of the last change of `state`."""
        return self._changed

    @property
    def sequence(self) -> int:
        """Grows with each piece of news."""
        return self._sequence

    def entry(self) -> dict[str, Any]:
        """What the list of processes says of this one."""
        with self._lock:
            command = " ".join(self._message.get("command", ())) or self._target.command
            return {"number": self.number, "pid": self._target.pid, "command": command[:200], "state": self._state}

    def encoded(self) -> tuple[int, bytes]:
        """The newest message as JSON, and its sequence number. It is encoded once for all browsers."""
        with self._lock:
            if self._encoded[0] != self._sequence:
                whole = {
                    **self._message,
                    "number": self.number,
                    "sequence": self._sequence,
                    "state": self._state,
                    "said": self._said,
                    "changed": self._changed,
                    "pid": self._target.pid,
                    "restarts": self._restarts,
                    "interval": self.interval,
                    "seen": self._picture is not None,
                }
                whole["command"] = " ".join(whole.get("command", ())) or self._target.command
                self._encoded = self._sequence, json.dumps(whole, separators=(",", ":")).encode()
            return self._encoded

    def history(self, resolution: int) -> dict[str, Any]:
        """What the pools did, at the resolution with this number. Raises IndexError if there is none."""
        with self._lock:
            return {**self._history.rings[resolution].read(), "sequence": self._sequence}

    def timeline(self) -> dict[str, Any]:
        """What the workers did."""
        with self._lock:
            return {**self._timeline.read(), "sequence": self._sequence}

    def stacks(self, timeout: float = 10.0) -> Picture | None:
        """A picture with stacks, at most a second old; the last one there was if the process doesn't answer; or None.

        Waits at most so many seconds. To be called by any thread but the event loop's.
        """
        with self._lock:
            last = self._stacked
            if last is not None and time.monotonic() - last[0] < FRESH:
                return last[1]
            if self._closed or self._state is not State.LIVE:
                return last and last[1]
            asker: Future[Picture] = Future()
            self._askers.append(asker)
        self._bell.set()
        try:
            return asker.result(timeout)
        except BaseException as error:
            if not isinstance(error, Exception) and not asker.cancelled():
                raise
            return last and last[1]

    def check(self) -> None:
        """Say so if the process owes an answer for long: the thread that asks it is waiting then."""
        asked = self._asked
        if asked is not None and self._state is State.LIVE:
            owed = time.monotonic() - asked
            if owed > max(OVERDUE, 3 * self.interval):
                self._tell(State.SILENT, f"It has owed an answer for {owed:.0f} s, and is waited for.")

    # ------------------------------------------------------------------------------- the thread

    def _run(self) -> None:
        while not self._closed:
            try:
                with self._lock:
                    self._bell.clear()
                    target = self._target
                self._ask(target)
            except Over as over:
                self._tell(State.OVER, str(over))
                return
            except NoPicture as silence:
                self._fall_silent(target, str(silence))
            except Exception as error:
                self._fall_silent(target, f"Its picture can't be used ({type(error).__name__}: {error}).")
            self._bell.wait(AGAIN)

    def _ask(self, target: Target) -> None:
        """Ask one process for pictures until it does not answer, or another is to be followed."""
        link = target.connect()
        with self._lock:
            self._link = None if self._closed else link
        try:
            due = time.monotonic()
            while not self._closed and self._target is target:
                with self._lock:
                    self._bell.clear()
                    askers, self._askers = self._askers, []
                try:
                    self._asked = None if link.paced else time.monotonic()
                    picture = link.picture(stacks=bool(askers))
                    self._asked = None
                    self._take(picture, stacks=bool(askers) or link.paced)
                except BaseException:
                    for asker in askers:
                        asker.cancel()
                    raise
                for asker in askers:
                    if asker.set_running_or_notify_cancel():
                        asker.set_result(picture)
                if not link.paced:
                    due = max(due + self.interval, time.monotonic())
                    self._bell.wait(due - time.monotonic())
        finally:
            self._asked = None
            link.close()

    def _take(self, picture: Picture, stacks: bool) -> None:
        """Add a picture to all that is kept. Raises whatever a malformed picture leads to, and keeps nothing of it."""
        picture = told_apart(picture)
        moment = float(picture["time"])
        workers = picture.get("workers", [])
        counted = counters(picture)
        with self._lock:
            self._rates.add(moment, counted)
            values = occupancy(picture, self._rates)
            seen = self._timeline.add(moment, workers)
            self._message = message(picture, self._rates, seen)
            self._history.add(moment, values)
            self._picture = picture
            if stacks:
                self._stacked = time.monotonic(), picture
        self._tell(State.LIVE, "")

    def _fall_silent(self, target: Target, said: str) -> None:
        with self._lock:
            askers, self._askers = self._askers, []
        for asker in askers:
            asker.cancel()
        if self._target is not target or self._closed:
            return
        if is_gone(target):
            self._tell(State.ENDED, "The process has ended." if self._picture else said)
        else:
            self._tell(State.SILENT, said)

    def _tell(self, state: State, said: str) -> None:
        with self._lock:
            if state is not State.LIVE and (state, said) == (self._state, self._said):
                return
            if state is not self._state:
                self._state, self._changed = state, time.time()
            self._said = said
            self._sequence += 1
        self._announce()
