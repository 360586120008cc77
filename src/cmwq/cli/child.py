"""Child processes: how a command is started, waited for, and ended with all that it started.

Each command leads a process group of its own, so that a signal can be sent to it and to what it started. The thread
that starts it waits for it, in system calls only: `poll` until its stdout and stderr are closed, then `waitid`. So the
pool's sensor sees that the thread is blocked, and the kernel lists the process as a child of that thread.

Guarantees: a group is signalled only while its leader is not reaped, so a signal never reaches a stranger that got the
number. A command has ended when its leader has and nobody has its stdout or stderr open any more; after SIGKILL the
latter is not waited for, because whoever left the group may keep them open. Once `end` was called nothing starts, and
no process that was being started at that moment is missed.

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
from collections.abc import Callable, Sequence

from cmwq.cli.command import SHELL
from cmwq.cli.output import Refusal, one_line
from cmwq.cli.spawn import spawner

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
    """How a command ended: by `status` or `signal`. late: it ran for too long. given_up: the run's end came first."""

    __slots__ = ("given_up", "late", "signal", "status")

    def __init__(self, status: int | None, signal: int | None, late: bool = False, given_up: bool = False) -> None:
        self.status, self.signal, self.late, self.given_up = status, signal, late, given_up

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

    __slots__ = ("given_up", "killed", "late", "pid")

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.late = False  # C: it had run for too long before it ended
        self.killed = False  # C: SIGKILL was sent
        self.given_up = False  # C: the run ended before it did


class Children:
    """The commands that run. Thread-safe; C: guarded by `_changed`."""

    def __init__(self, kill_after: float) -> None:
        self.kill_after = kill_after
        self._spawner = spawner()
        self._changed = threading.Condition(threading.Lock())
        self._running: dict[int, Child] = {}  # C: by process id
        self._starting = 0  # C
        self._paused = False  # C: nothing starts until it goes on
        self._ending: int | None = None  # C: nothing starts; what did nevertheless gets this signal

    @property
    def any(self) -> bool:
        """Whether any command runs or is being started."""
        with self._changed:
            return bool(self._starting) or not all(map(_has_exited, self._running))

    # For the threads that run commands

    def run(self, path: str, argv: list[str], sinks: Sequence[Sink], timeout: float | None) -> Ended:
        """Run a command to its end, and hand what it prints to the two sinks.

        Raises Unstartable, Closing, Refusal if no process can be had, and what the sinks raise. In that case the
        command is ended first.
        """
        pid, *fds = self._start(path, argv)
        child = self._running[pid]
        deadline = None if timeout is None else time.monotonic() + timeout
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
                    _signal_group(pid, signal.SIGKILL)
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
                started = self._spawn(path, argv)
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
                            self._end(child, self._ending)
                    self._changed.notify_all()

    def _spawn(self, path: str, argv: list[str]) -> tuple[int, int, int]:
        out, out_end = os.pipe2(os.O_CLOEXEC)
        try:
            err, err_end = os.pipe2(os.O_CLOEXEC)
        except OSError:
            os.close(out)
            os.close(out_end)
            raise
        try:
            pid = self._spawner.spawn(path, argv, out_end, err_end)
        except BaseException:
            os.close(out)
            os.close(err)
            raise
        finally:
            os.close(out_end)
            os.close(err_end)
        return pid, out, err

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
        for fd in waiting:
            poll.register(fd, select.POLLIN)
        while waiting and not child.killed:
            left = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000 + 1
            for fd, event in poll.poll(left):
                if event & select.POLLIN and (data := os.read(fd, CHUNK)):
                    waiting[fd](data)
                    continue
                poll.unregister(fd)
                del waiting[fd]
                os.close(fd)
            if deadline is not None and time.monotonic() >= deadline:
                deadline = self._hurry(child)
        return deadline

    def _reap(self, child: Child, deadline: float | None) -> Ended:
        """Wait for the end of its leader."""
        while True:
            with self._changed:
                result = os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG)
                if result is not None:
                    del self._running[child.pid]
                    self._changed.notify_all()
                    exited = result.si_code == os.CLD_EXITED
                    return Ended(
                        result.si_status if exited else None,
                        None if exited else result.si_status,
                        child.late,
                        child.given_up,
                    )
            # It stays a zombie until it is reaped above: only then its number may mean another process.
            if deadline is None:
                os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
            elif not _exits(child.pid, deadline - time.monotonic()):
                deadline = self._hurry(child)

    def _hurry(self, child: Child) -> float | None:
        """It runs for too long: have it end, the second time by force. Returns when it is to be hurried again."""
        with self._changed:
            if not child.late:
                child.late = True
                _signal_group(child.pid, signal.SIGTERM)
                return time.monotonic() + self.kill_after
            child.killed = True
            _signal_group(child.pid, signal.SIGKILL)
            return None

    # For the thread that ends the run

    def end(self, number: int) -> None:
        """Start nothing more, and send that signal to every group. What had not ended by then is given up."""
        with self._changed:
            self._ending = number
            for child in self._running.values():
                self._end(child, number)
            self._changed.notify_all()

    def _end(self, child: Child, number: int) -> None:
        child.given_up = child.given_up or not _has_exited(child.pid)
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
        self._send(signal.SIGSTOP)

    def go_on(self) -> None:
        with self._changed:
            self._paused = False
            self._changed.notify_all()
        self._send(signal.SIGCONT)

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


def _has_exited(pid: int) -> bool:
    """Of a child that isn't reaped."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:  # something else in this process reaped it
        return True


def _exits(pid: int, seconds: float) -> bool:
    """Wait for the end of a process for so long; whether it came. It is not reaped."""
    try:
        fd = os.pidfd_open(pid)
    except OSError:  # an old kernel, or no descriptor to be had
        time.sleep(max(0.0, min(seconds, PAUSE)))
        return seconds > PAUSE
    try:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        return bool(poll.poll(max(0.0, seconds) * 1000 + 1))
    finally:
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
