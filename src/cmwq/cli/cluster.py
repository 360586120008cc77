"""`--cluster` of `cmwq map` and `cmwq exec`: items are carried out on the workers of a Dask cluster.

The run is the same as on one machine: this process reads, logs, orders and prints, and a thread of it waits for each
item that is under way. Only what an item *is* happens elsewhere: a call of the target, or a command.

Guarantees: an item is sent once per try, so it is carried out once at most, as far as that can be known. If its worker
dies, or the cluster ends its command, it fails, with a line that says so; --retries or --resume carry it out again.
When the run ends early, commands on the workers get the signal, and SIGKILL after --kill-after; if this process is
killed, they get SIGTERM. `local:N` starts N worker processes here, which end with the run, however that ends. When a
command began, and how long it took, is measured on its worker.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import logging
import os
import pkgutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import cmwq
from cmwq.cli.child import Children, Closing, Ended, Unstartable, find
from cmwq.cli.groups import Groups
from cmwq.cli.output import Refusal, describe, one_line
from cmwq.cli.spawn import best

MISSING = "--cluster needs Dask distributed: pip install 'cmwq[dask]'"
AT_ONCE = 1000
"""So many items may be with the cluster at a time, unless --max-active says otherwise."""
LOCAL = "local:"
PATIENCE = 10.0
"""Seconds for a scheduler to answer."""
MARGIN = 5.0
"""Seconds beyond --kill-after that workers have to say that their commands have ended."""
KEPT = 64
"""So many targets are kept on a worker."""


class Cluster:
    """The cluster of one run."""

    def __init__(self, address: str, name: str, stack: contextlib.ExitStack) -> None:
        """Connect, or start the workers. The stack ends it. Raises Refusal."""
        try:
            dask = importlib.import_module("cmwq.contrib.dask")
            distributed = importlib.import_module("distributed")
        except ImportError as error:
            if (error.name or "").partition(".")[0] == "cmwq":
                raise
            raise Refusal(f"{MISSING} ({error})") from error
        logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what concerns the run, it says itself
        self.is_local = address.startswith(LOCAL)
        self.run = f"{os.getpid()}-{time.time_ns():x}"
        try:
            where = address
            if self.is_local:
                where = stack.enter_context(_local(distributed, _number_of(address)))
            self.client = stack.enter_context(distributed.Client(where, timeout=PATIENCE, set_as_default=False))
            _check_cmwq(self.client)
            self.client.register_plugin(dask.CmwqPlugin())
            if self.is_local:
                self.client.register_plugin(_quiet(distributed))
                self.client.register_plugin(dask.AheadPlugin())
            self.queue = dask.ClusterWorkQueue(name, client=self.client, max_active=AT_ONCE)
        except Refusal:
            raise
        except (OSError, TimeoutError, ValueError) as error:
            raise Refusal(f"cluster {address!r}: {one_line(str(error) or type(error).__name__)}") from error
        except Exception as error:  # what became of the plugins there
            raise Refusal(f"cluster {address!r}: {describe(error)}") from error
        stack.callback(self.queue.close, abandon=True)

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call it on a worker, and wait for the result. Raises what it raises, and what the cluster does to it."""
        with cmwq.blocking():
            return self.queue.submit(function, *args).result()

    def end(self, number: int, kill_after: float) -> None:
        """Have all commands of the run end, and wait for that."""
        with contextlib.suppress(Exception):
            self.client.sync(
                self.client._run, end_commands, self.run, number, kill_after,
                on_error="ignore", callback_timeout=kill_after + MARGIN,
            )  # fmt: skip


def _check_cmwq(client: Any) -> None:
    """Raises ValueError if the scheduler or a worker lacks cmwq. A worker that gets one of its tasks would die of that.

    What is sent for this must not need cmwq. It is a function of the standard library, which imports it and says which
    version it is.
    """
    asked = (pkgutil.resolve_name, "cmwq:__version__")
    told = list(client.run(*asked, on_error="return").values())
    try:
        told.append(client.run_on_scheduler(*asked))
    except Exception as error:
        told.append(error)
    if any(isinstance(version, Exception) for version in told):
        raise ValueError(f"cmwq is to be installed at the scheduler and the workers, too: version {cmwq.__version__}")


def _number_of(address: str) -> int:
    text = address.removeprefix(LOCAL)
    if not (text.isascii() and text.isdigit() and int(text)):
        raise Refusal(f"cluster {address!r}: after {LOCAL!r} comes a number of workers, like {LOCAL}2")
    return int(text)


def _local(distributed: Any, workers: int) -> Any:
    """That many processes here, which share the CPUs."""
    _quiet_tracker()
    threads = max(1, len(cmwq.default_runtime().cpus()) // workers)
    return distributed.LocalCluster(
        n_workers=workers,
        threads_per_worker=threads,
        processes=True,
        dashboard_address=":0",
        silence_logs=logging.CRITICAL,
    )


def _quiet_tracker() -> None:
    """Start the process that frees what processes of ours leave behind, if it doesn't run yet, and let it do so without
    a word.

    A run that ends early leaves its process at once, whatever its threads do, and nothing could be closed at all after
    SIGKILL. So the semaphores of the workers are left to multiprocessing's tracker: that is what it is there for, but
    it would warn of them after the last line of the run.
    """
    from multiprocessing import resource_tracker

    name, rule = "PYTHONWARNINGS", "ignore::UserWarning:multiprocessing.resource_tracker"
    before = os.environ.get(name)
    os.environ[name] = rule if before is None else f"{before},{rule}"  # the last one that fits counts
    try:
        resource_tracker.ensure_running()
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _quiet(distributed: Any) -> Any:
    """A plugin for workers whose terminal is ours: Ctrl-C is for the run, which ends them."""

    class Quiet(distributed.WorkerPlugin):  # type: ignore[misc,unused-ignore]
        name = "cmwq-quiet"

        def setup(self, worker: Any) -> None:
            if threading.current_thread() is threading.main_thread():
                # Not SIG_IGN: commands would inherit that.
                for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP):
                    signal.signal(number, _ignore)

    return Quiet()


def _ignore(number: int, frame: object) -> None:
    pass


# ----------------------------------------------------------------------------------- targets


class Target:
    """The function that `cmwq map` calls, as it travels: pickled once, and unpickled once on each worker."""

    def __init__(self, function: Callable[[str], Any], cluster: Cluster) -> None:
        """Raises Refusal if it can't be pickled. A module that only this machine may have goes along by value."""
        import cloudpickle

        module = sys.modules.get(getattr(function, "__module__", "") or "")
        goes_along = not cluster.is_local and module is not None and _is_ours(module)
        try:
            if goes_along:
                cloudpickle.register_pickle_by_value(module)
            try:
                self.data: bytes = cloudpickle.dumps(function)
            finally:
                if goes_along:
                    cloudpickle.unregister_pickle_by_value(module)
        except Exception as error:
            raise Refusal(f"the target can't be sent to other machines: {describe(error)}") from error
        self.digest = hashlib.sha256(self.data).digest()
        self.cluster = cluster

    def __call__(self, item: str) -> Any:
        return self.cluster.call(call_target, self.digest, self.data, item)


def _is_ours(module: Any) -> bool:
    """Whether it is a file of the user's own, and not one that is installed."""
    path = getattr(module, "__file__", None)
    if path is None or module.__name__.partition(".")[0] in sys.stdlib_module_names:
        return False
    return not any(part in ("site-packages", "dist-packages") for part in path.split(os.sep))


_targets: dict[bytes, Callable[[str], Any]] = {}
_unpickling = threading.Lock()


def call_target(digest: bytes, data: bytes, item: str) -> Any:
    """Call a target. Context: a task of the cluster."""
    target = _targets.get(digest)
    if target is None:
        with _unpickling:  # once, so that all calls on this worker share the globals that go along
            target = _targets.get(digest)
            if target is None:
                import pickle

                if len(_targets) >= KEPT:
                    _targets.pop(next(iter(_targets)))
                target = _targets[digest] = pickle.loads(data)
    return target(item)


# ----------------------------------------------------------------------------------- commands


class Lost(Ended):
    """Nobody knows how it ended."""

    __slots__ = ("why",)

    def __init__(self, why: str) -> None:
        super().__init__(None, None)
        self.why = why

    @property
    def error(self) -> str:
        return self.why


class Printed:
    """How a command ended on a worker, and what it printed. unstartable: why it could not be started; its status."""

    def __init__(self, ended: Ended | None, out: bytes, err: bytes, unstartable: tuple[int, str, bool] | None) -> None:
        self.ended, self.out, self.err, self.unstartable = ended, out, err, unstartable


class Commands:
    """The commands of one run on this worker. Thread-safe; B: guarded by `_lock`.

    Each task has `Children` of its own. So a task that nobody wants any more, perhaps because the connection to its
    client broke, is ended without the others, and without those that come later.
    """

    def __init__(self, kill_after: float) -> None:
        self._kill_after = kill_after
        self._spawner, self._groups = best(), Groups()
        self._lock = threading.Lock()
        self._running: set[Children] = set()  # B
        self._ended = False  # B: nothing starts any more

    @contextlib.contextmanager
    def one_more(self) -> Iterator[Children]:
        """For a task. Raises Closing if the run has ended."""
        children = Children(self._kill_after, self._spawner, self._groups)
        with self._lock:
            if self._ended:
                raise Closing
            self._running.add(children)
        try:
            yield children
        finally:
            with self._lock:
                self._running.discard(children)

    @property
    def any(self) -> bool:
        with self._lock:
            running = list(self._running)
        return any(children.any for children in running)

    def end(self, number: int) -> None:
        with self._lock:  # who comes now is told, and who came before is in the set
            self._ended = True
            running = list(self._running)
        for children in running:
            children.end(number)


_commands: dict[str, Commands] = {}
"""Of each run, the oldest first."""
_beginning = threading.Lock()


def _commands_of(run: str, kill_after: float) -> Commands:
    with _beginning:
        commands = _commands.get(run)
        if commands is None:
            commands = _commands[run] = Commands(kill_after)
            if len(_commands) > KEPT:
                del _commands[next(iter(_commands))]
        return commands


def run_command(run: str, argv: list[str], timeout: float | None, kill_after: float) -> Printed:
    """Run a command of a run to its end. Context: a task of the cluster. Raises Closing if it was told to end."""
    from cmwq.contrib.dask import on_cancel

    out: list[bytes] = []
    err: list[bytes] = []
    with _commands_of(run, kill_after).one_more() as children:
        on_cancel(partial(_end_soon, children))
        start, begun = time.time(), time.monotonic()
        try:
            ended = children.run(find(argv[0]), argv, (out.append, err.append), timeout)
        except Unstartable as error:
            return Printed(None, b"", b"", (error.status, str(error), error.for_all))
    if ended.given_up:
        raise Closing
    ended.measured = start, time.monotonic() - begun
    return Printed(ended, b"".join(out), b"".join(err), None)


def _end_soon(children: Children) -> None:
    """Nobody wants it any more: have it end, in the end by force. Context: the worker's event loop."""
    children.end(signal.SIGTERM)
    if children.any:
        later = threading.Timer(children.kill_after, children.end, (signal.SIGKILL,))
        later.daemon = True
        later.start()


async def end_commands(run: str, number: int, kill_after: float) -> None:
    """End the commands of a run, and return when that is so. Context: the worker's event loop."""
    import asyncio

    commands = _commands_of(run, kill_after)  # also if it has none yet: what comes late finds that the run is over
    commands.end(number)
    last = time.monotonic() + kill_after
    while commands.any and time.monotonic() < last:
        await asyncio.sleep(0.02)
    commands.end(signal.SIGKILL)
