"""Child processes: how a command is started, waited for, and ended with all that it started.

Each command leads a process group of its own, so that a signal can be sent to it and to what it started, in a session
of its own, so that it has no terminal. The thread that starts it waits for it, in system calls only: `poll` until its
stdout and stderr are closed, then `waitid` (`exits`). So the pool's sensor sees that the thread is blocked, and the
kernel lists the process as a child of that thread.

Guarantees: a group is signalled only while its leader is not reaped, so a signal never reaches a stranger that got the
number. A command that ends by itself has ended when its leader has and nobody has its stdout or stderr open any more;
what it left in its group beside that is let be. A command that is being ended has ended when its whole group has: its
leader is reaped only after nobody else was seen there, or `kill_after` has passed, and after SIGKILL to the group in
either case. Its stdout and stderr are not waited for then, because whoever left the group may keep them open. Once
`end` was called nothing starts, and no process that was being started at that moment is missed. Time in which the
commands are stopped counts for no limit.

What a command can do to escape is to leave its process group (`setsid`), as daemons do.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import threading
import time
import weakref
from collections.abc import Callable, Sequence

from cmwq.cli.command import SHELL
from cmwq.cli.exits import await_exit, check, has_exited, looked_at, milliseconds, reaped
from cmwq.cli.groups import Groups
from cmwq.cli.output import Refusal, one_line
from cmwq.cli.spawn import Spawner, best, pipe, start

CHUNK = 1 << 16
DRAINED = 1 << 20  # bytes of output that are taken after a kill: a pipe has no more
NOT_FOUND, NOT_EXECUTABLE = 127, 126
PAUSE = 0.1  # seconds until a process that could not be had is asked for again
STARTS_WITHIN = 5.0  # seconds for which Ctrl-Z waits for a command that is just being started
_TRIES = 20  # of that, while no other command runs whose end could help
_FULL = frozenset((errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ETXTBSY))

Sink = Callable[[bytes], object]


class Unstartable(Exception):
    """This command can't be executed. status: as a shell's; the text says why. for_all: whatever its arguments."""

    def __init__(self, status: int, why: str, for_all: bool = True) -> None:
        super().__init__(why)
        self.status, self.for_all = status, for_all


class Closing(Exception):
    """Nothing is started any more."""


class Ended:
    """How a command ended: by `status` or `signal`. late: it ran for too long. given_up: the run's end came first.

    measured: when it began, in seconds since 1970, and for how long it ran, where only another machine can tell.
    """

    __slots__ = ("given_up", "late", "measured", "signal", "status")

    def __init__(self, status: int | None, signal: int | None, late: bool = False, given_up: bool = False) -> None:
        self.status, self.signal, self.late, self.given_up = status, signal, late, given_up
        self.measured: tuple[float, float] | None = None

    @property
    def error(self) -> str | None:
        """Why it failed, in words; None if it succeeded."""
        if self.late:
            return "timed out"
        if self.signal is not None:
            return f"ended by {signal_name(self.signal)}"
        return f"exit status {self.status}" if self.status else None


class Child:
    """A command that runs. C: guarded by the lock of its `Children`."""

    __slots__ = ("ending", "exited", "given_up", "killed", "late", "pid")

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.late = False  # C: it had run for too long before it ended
        self.ending = False  # C: it was sent a signal that is to end it
        self.killed = False  # C: SIGKILL was sent
        self.given_up = False  # C: the run ended before it did
        self.exited: float | None = None  # when its leader was first seen to have ended; any moment after that will do


class Clock:
    """Seconds that stand still while the commands are stopped.

    Thread-safe: all state is one tuple, replaced by the one thread that stops and goes on.
    """

    def __init__(self) -> None:
        self._state: tuple[float | None, float] = (None, 0.0)  # since when it stands; for how long it stood before

    def time(self) -> float:
        while True:
            state = self._state
            now = time.monotonic()
            if self._state is state:  # or else everything may have been stopped for hours between these two lines
                since, stood = state
                return (now if since is None else since) - stood

    def stop(self) -> None:
        since, stood = self._state
        self._state = (time.monotonic() if since is None else since, stood)

    def go_on(self) -> None:
        since, stood = self._state
        self._state = (None, stood if since is None else stood + time.monotonic() - since)


class Children:
    """The commands that run. Thread-safe; C: guarded by `_changed`."""

    def __init__(self, kill_after: float, spawner: Spawner | None = None, groups: Groups | None = None) -> None:
        """spawner, groups: to be shared with others. Raises Refusal where no command can be run."""
        check()
        self.kill_after = kill_after
        self._spawner = best() if spawner is None else spawner
        self._changed = threading.Condition(threading.Lock())
        self._running: dict[int, Child] = {}  # C: by process id
        self._starting = 0  # C
        self._paused = False  # C: nothing starts until it goes on
        self._ending: int | None = None  # C: nothing starts; what did nevertheless gets this signal
        self._groups = Groups() if groups is None else groups
        self._clock = Clock()
        # Becomes readable when the run ends, and stays so: a thread in `poll` would not learn of it otherwise.
        self._end_told, self._tell_end = pipe()
        weakref.finalize(self, _close, self._end_told, self._tell_end).atexit = False

    @property
    def any(self) -> bool:
        """Whether anybody is left of the commands that are being ended, or any is being started."""
        with self._changed:
            return bool(self._starting) or not all(map(self._is_over, self._running.values()))

    # For the threads that run commands

    def run(self, path: str, argv: list[str], sinks: Sequence[Sink], timeout: float | None) -> Ended:
        """Run a command to its end, and hand what it prints to the two sinks.

        Raises Unstartable, Closing, Refusal if no process can be had, and what the sinks raise. In that case the
        command is ended first.
        """
        pid, *fds = self._start(path, argv)
        child = self._running[pid]
        deadline = None if timeout is None else self._clock.time() + timeout
        waiting = dict(zip(fds, sinks, strict=True))
        try:
            deadline = self._read(child, waiting, deadline)
            ended = self._reap(child, deadline)
            if waiting:
                _drain(waiting)
            return ended
        except BaseException:
            with self._changed:
                alive = self._running.get(pid) is child
                if alive:
                    self._kill(child)
            if alive:
                self._reap(child, None)
            raise
        finally:
            for fd in waiting:
                os.close(fd)

    def _start(self, path: str, argv: list[str]) -> tuple[int, int, int]:
        """The process, and where its stdout and stderr can be read."""
        tries = 0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: not self._paused or self._ending is not None)
                if self._ending is not None:
                    raise Closing
                self._starting += 1
            started = None
            try:
                started = start(self._spawner, path, argv)
                return started
            except OSError as error:
                path, argv, hopeless = self._reconsider(error, path, argv)
                tries += hopeless
                if tries > _TRIES:
                    raise Refusal(f"no process can be started: {one_line(error.strerror or str(error))}") from None
            except ValueError:
                raise Unstartable(NOT_EXECUTABLE, "an argument would hold a NUL byte (see -0)", for_all=False) from None
            finally:
                with self._changed:
                    self._starting -= 1
                    if started is not None:
                        self._running[started[0]] = child = Child(started[0])
                        if self._ending is not None:
                            self._end(self._ending, child)
                    self._changed.notify_all()

    def _reconsider(self, error: OSError, path: str, argv: list[str]) -> tuple[str, list[str], bool]:
        """After a failed start: what to start now, and whether that too will hardly succeed. Raises Unstartable."""
        if error.errno == errno.ENOEXEC and path != SHELL:  # a script without #!, which shells and xargs run as well
            return SHELL, [SHELL, path, *argv[1:]], False
        if error.errno not in _FULL:
            raise Unstartable(*_judged(error, path), for_all=error.errno != errno.E2BIG) from None
        with self._changed:
            alone = not self._running
            self._changed.wait(PAUSE)  # until a command ends and leaves what was missing
        return path, argv, alone or error.errno == errno.ETXTBSY

    def _read(self, child: Child, waiting: dict[int, Sink], deadline: float | None) -> float | None:
        """Hand on what comes until both ends are closed; those in `waiting` are not yet. Returns the new deadline."""
        poll = select.poll()
        for fd in (self._end_told, *waiting):
            poll.register(fd, select.POLLIN)
        while waiting and not child.killed and not (child.ending and self._is_over(child)):
            for fd, event in poll.poll(milliseconds(self._patience(child, deadline))):
                if fd == self._end_told:
                    poll.unregister(fd)  # `child.ending` was set before
                    continue
                if event & select.POLLIN and (data := os.read(fd, CHUNK)):
                    waiting[fd](data)
                    continue
                poll.unregister(fd)
                del waiting[fd]
                os.close(fd)
            if deadline is not None and self._clock.time() >= deadline:
                deadline = self._hurry(child)
        return deadline

    def _reap(self, child: Child, deadline: float | None) -> Ended:
        """Wait for the end of its leader; if it is being ended, for that of its group."""
        over = False
        while True:
            with self._changed:
                if over:
                    looked_at(child.pid)  # raises if something else reaped it
                    self._kill(child)  # and with it whom the look missed: a signal to a group misses nobody
                if child.killed or not child.ending:
                    result = reaped(child.pid)
                    if result is not None:
                        del self._running[child.pid]
                        self._changed.notify_all()
                        return Ended(*result, child.late, child.given_up)
            # It stays a zombie until it is reaped above: only then its number may mean another process.
            if child.ending and not child.killed and has_exited(child.pid):
                over = self._is_over(child)
                if not over:
                    with self._changed:
                        self._changed.wait_for(lambda: child.killed, self._patience(child, deadline))
            else:
                await_exit(child.pid, None if deadline is None else deadline - self._clock.time())
            if deadline is not None and self._clock.time() >= deadline:
                deadline = self._hurry(child)

    def _is_over(self, child: Child) -> bool:
        """Whether its leader has ended, and nobody else is seen in its group."""
        if not has_exited(child.pid):
            return False
        now = time.monotonic()
        child.exited = child.exited or now
        return not self._groups.lives(child.pid, since=max(child.exited, now - self._groups.interval))

    def _patience(self, child: Child, deadline: float | None) -> float | None:
        """In how many seconds it has to be looked at again, whatever comes."""
        left = None if deadline is None else max(0.0, deadline - self._clock.time())
        if not child.ending:
            return left
        return self._groups.interval if left is None else min(left, self._groups.interval)

    def _hurry(self, child: Child) -> float | None:
        """It runs for too long: have it end, the second time by force. Returns when it is to be hurried again."""
        with self._changed:
            if not child.late and not child.killed:
                child.late = child.ending = True
                _signal_group(child.pid, signal.SIGTERM)
                return self._clock.time() + self.kill_after
            self._kill(child)
            return None

    def _kill(self, child: Child) -> None:
        child.ending = child.killed = True
        _signal_group(child.pid, signal.SIGKILL)

    # For the thread that ends the run

    def end(self, number: int) -> None:
        """Start nothing more, and send that signal to every group. What had not ended by then is given up."""
        with self._changed:
            told, self._ending = self._ending is not None, number
            self._end(number, *self._running.values())
            if not told:
                os.write(self._tell_end, b"!")
            self._changed.notify_all()

    def _end(self, number: int, *children: Child) -> None:
        """Send them that signal. Whose group lives is given up, also if its leader has ended."""
        exited = [child for child in children if has_exited(child.pid)]
        now = time.monotonic()
        ended = {child for child in exited if not self._groups.lives(child.pid, since=now)}
        for child in children:
            child.given_up = child.given_up or child not in ended
            child.ending = True
            child.killed = child.killed or number == signal.SIGKILL
            _signal_group(child.pid, number)

    def settle(self, timeout: float) -> None:
        """Wait until no process is being started, for at most so many seconds."""
        with self._changed:
            self._changed.wait_for(lambda: not self._starting, timeout)

    def stop(self) -> None:
        """Stop all groups, as Ctrl-Z does, and start none, until `go_on`.

        A command that is just being started is waited for, or it would run while everything else is stopped.
        """
        with self._changed:
            self._paused = True
        self.settle(STARTS_WITHIN)
        self._clock.stop()
        self._send(signal.SIGSTOP)

    def go_on(self) -> None:
        with self._changed:
            self._paused = False
            self._changed.notify_all()
        self._send(signal.SIGCONT)
        self._clock.go_on()

    def _send(self, number: int) -> None:
        with self._changed:
            for pid in self._running:
                _signal_group(pid, number)


def find(word: str) -> str:
    """The program of that name, on the path unless the name has a slash. Raises Unstartable."""
    places = [word] if "/" in word else [os.path.join(folder or ".", word) for folder in os.get_exec_path()]
    found = [place for place in places if word and os.path.exists(place)]
    for place in found:
        if os.path.isfile(place) and os.access(place, os.X_OK):
            return place
    if found:
        raise Unstartable(NOT_EXECUTABLE, f"{word!r} is no program: it can't be executed")
    hint = " (--shell is for command lines)" if any(map(str.isspace, word)) else ""
    raise Unstartable(NOT_FOUND, f"no such command: {word!r}{hint}")


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def _judged(error: OSError, path: str) -> tuple[int, str]:
    """As a shell: the status, and why the start failed."""
    if error.errno == errno.E2BIG:
        return NOT_EXECUTABLE, "the item is too long for an argument"
    missing = error.errno in (errno.ENOENT, errno.ENOTDIR)
    if missing and os.path.exists(path):
        return NOT_EXECUTABLE, f"{path!r} can't be executed: its interpreter is missing"
    return NOT_FOUND if missing else NOT_EXECUTABLE, f"{path!r} can't be executed: {error.strerror}"


def _signal_group(pid: int, number: int) -> None:
    # Nobody is left, or it runs as another user: sudo.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)
        if number not in (signal.SIGKILL, signal.SIGSTOP, signal.SIGCONT):
            os.killpg(pid, signal.SIGCONT)  # what is stopped would not notice


def _close(*fds: int) -> None:
    for fd in fds:
        os.close(fd)


def _drain(waiting: dict[int, Sink]) -> None:
    """Hand on what is there, without waiting for more."""
    for fd, sink in waiting.items():
        os.set_blocking(fd, False)
        with contextlib.suppress(BlockingIOError):
            for _ in range(DRAINED // CHUNK):
                if not (data := os.read(fd, CHUNK)):
                    break
                sink(data)
