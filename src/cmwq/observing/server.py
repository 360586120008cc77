"""The monitor of this process: a socket at which its user, and root, may ask for the picture of `cmwq.snapshot`.

Guarantees: it is read-only, and costs nothing until somebody connects: one thread sleeps, which is no worker and holds
up no exit. The answers go on while the interpreter waits for works at its end; then the socket is removed. The child of
a fork is another process: it gets a socket and a thread of its own if the parent had a monitor, `CHILD_REST` seconds
after the fork, so that a child that executes another program at once has none. What goes wrong there, or with
CMWQ_MONITOR, is logged, and harms nothing.

`answering` says what those who ask can not do, and `places` where the sockets are and who can reach them.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from cmwq._core import log
from cmwq._errors import CmwqError
from cmwq._host import interpreters
from cmwq._host.threads import HostThread
from cmwq._workqueue.runtime import default_runtime
from cmwq.observing import places
from cmwq.observing.answering import Answering

if TYPE_CHECKING:
    from types import TracebackType

    from cmwq._core.ports import Thread


NAME = "cmwq/monitor"
"""Of the thread."""
CHILD_REST = 0.1
"""Seconds."""
PATIENCE = 5.0
"""Seconds that `close` waits at most for an answer in progress."""
LONGEST_WORD = 200
MOST_WORDS = 50


class Monitor:
    """A handle of this process's monitor. Thread-safe. `cmwq.monitor` makes it.

    There is one socket, however many handles there are. It is removed when the last handle is closed, or when the
    interpreter ends. In the child of a fork the handle is one of the child's own monitor.
    """

    def __init__(self) -> None:
        self._open = True

    @property
    def path(self) -> str:
        """The path of the socket. Empty if there is none: after the last `close`, or just after a fork."""
        server = _state.server
        listening = None if server is None else server.listening
        return "" if listening is None else listening.path

    def close(self) -> None:
        """Give the handle back. If it was the last one, the socket is removed, whoever is connected is hung up on, and
        the thread ends. Returns after 5 seconds at most. Does no harm if it was called before.
        """
        with _state.lock:
            if self._open:
                self._open = False
                _state.handles -= 1
                if not _state.handles:
                    _state.end()

    def __enter__(self) -> Monitor:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<cmwq monitor at {self.path}>" if self._open and self.path else "<cmwq monitor, closed>"


class Server:
    """The socket and the thread of this process."""

    def __init__(self, chosen: str | None, *, child: bool = False) -> None:
        self.chosen = chosen  # the path, if the user chose one
        # Two processes can't have one path, so in the child of a fork the number of the process is added.
        self._path = f"{chosen}.{os.getpid()}" if chosen is not None and child else chosen
        self.listening: places.Listening | None = None
        self._mark: places.Mark | None = None  # of that socket
        self.thread: Thread | None = None
        self.answering: Answering | None = None
        self._pipe: places.Pipe | None = None  # the thread looks at `_stopped` when it rings
        self._stopped = threading.Event()

    def start(self) -> None:
        """Listen, and start the thread. Raises OSError, and ThreadLimit."""
        try:
            self._listen()
            self.thread = default_runtime().host.spawn(NAME, self._run)
        except BaseException:
            self._put_away()
            raise

    def start_soon(self) -> None:
        """Start the thread, which listens after a rest. Raises RuntimeError.

        It is not waited for, as `Host.spawn` would: a child that executes another program at once should not pay for
        that. And it has no descriptor before: a child that becomes a daemon closes all.
        """
        self.thread = thread = HostThread(NAME, self._run_soon, None)
        thread.start()

    def _run_soon(self) -> None:
        if self._stopped.wait(CHILD_REST):
            return
        try:
            self._listen()
        except OSError as error:
            log.warning("the child of a fork has no monitor: %s", error)
            return
        self._run()

    def _listen(self) -> None:
        self._pipe = pipe = places.Pipe()
        self.listening = listening = places.listen(self._path)
        self._mark = places.mark_of(listening.socket.fileno())
        self.answering = Answering(listening.socket, pipe.wake, picture, who)

    def _run(self) -> None:
        with suppress(Exception):  # the name is dispensable
            default_runtime().host.set_thread_name(NAME)
        while self.answering is not None and not self._stopped.is_set():
            self.answering.run()
            if not self._stopped.is_set():  # the program has closed all descriptors, as daemons do
                self._put_away()
                try:
                    self._listen()
                except OSError as error:
                    log.warning("the program has closed the monitor's descriptors, and there is none now: %s", error)
                    return

    def stop(self, patience: float) -> None:
        """End the thread and remove the socket. patience: seconds to wait for the thread."""
        self._stopped.set()
        listening, pipe, thread = self.listening, self._pipe, self.thread
        with suppress(OSError):
            if pipe is not None and not pipe.ring() and listening is not None:
                places.dial(listening.path).close()  # the system still listens there, for a thread that waits for it
        if thread is not None:
            with suppress(RuntimeError):  # it was started, and has not begun yet
                thread.join(patience)
            if thread.is_alive():  # it has the descriptors still; what it listens at goes away now
                self._unlink()
                return
        self._put_away()

    def _unlink(self) -> None:
        if self.listening is not None:
            places.remove(self.listening.path, self.listening.inode)

    def _put_away(self) -> None:
        self._unlink()
        self._let_go()

    def _let_go(self) -> None:
        """Close the descriptors, once."""
        listening, self.listening = self.listening, None
        if listening is not None:
            places.let_go(listening.socket, self._mark)
        pipe, self._pipe = self._pipe, None
        if pipe is not None:
            pipe.close()

    def forget(self) -> None:
        """In the child of a fork: close what was inherited. The socket and its clients stay the parent's."""
        if self.answering is not None:
            self.answering.forget()
        self._let_go()


class _State:
    """What there is of the monitor in this process. The lock is held while it starts or ends."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.handles = 0
        self.server: Server | None = None
        self.hooked = False

    def hook(self) -> None:
        """Hear of forks and of the interpreter's end, from the first use on."""
        if not self.hooked:
            self.hooked = True
            atexit.register(self._exits)
            if hasattr(os, "register_at_fork"):
                os.register_at_fork(after_in_child=self._forked)

    def end(self, patience: float = PATIENCE) -> None:
        server, self.server = self.server, None
        if server is not None:
            server.stop(patience)

    def _exits(self) -> None:
        """At the interpreter's end, after the last work: nobody is waited for any longer than an answer takes."""
        self.handles = 0
        self.end(1.0)

    def _forked(self) -> None:
        self.lock = threading.RLock()
        server, self.server = self.server, None
        if server is None:
            return
        try:
            server.forget()
            own = Server(server.chosen, child=True)
            own.start_soon()
            self.server = own
        except (RuntimeError, OSError) as error:
            log.warning("the child of a fork has no monitor: %s", error)


_state = _State()


def begin(path: str | None = None) -> Monitor:
    """`cmwq.monitor`, which describes it."""
    interpreters.check()
    path = None if path is None else os.path.abspath(os.fspath(path))
    with _state.lock:
        _state.hook()
        if _state.server is None:
            server = Server(path)
            server.start()
            _state.server = server
        elif path is not None and path != _state.server.chosen:
            raise ValueError(f"this process has a monitor already, at {Monitor().path}; there is one for each process")
        _state.handles += 1
        return Monitor()


def begin_or_log(asked_by: str) -> None:
    """Begin because somebody asked for it of whom the program does not know. What goes wrong is logged."""
    try:
        begin()
    except (CmwqError, OSError, ValueError) as error:
        log.warning("%s, and there is no monitor: %s", asked_by, error)


# ------------------------------------------------------------------------------- what it answers


def picture(stacks: bool) -> dict[str, Any]:
    """The picture of this process's default runtime, ready for JSON."""
    return default_runtime().snapshot(stacks=stacks).to_dict()


def who() -> dict[str, Any]:
    """What tells this process from others, cheaper than a picture."""
    words = [word[:LONGEST_WORD] for word in sys.orig_argv[:MOST_WORDS]]
    return {"pid": os.getpid(), "command": words, "since": _since()}


def _since() -> float:
    """When this process began, in seconds since the epoch; else when its monitor did."""
    try:
        with open("/proc/self/stat", "rb") as stat, open("/proc/uptime") as uptime:
            begun = int(stat.read().rpartition(b") ")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
            return round(time.time() - float(uptime.read().split()[0]) + begun, 3)
    except (OSError, ValueError, IndexError):
        return _LOADED


_LOADED = time.time()
