"""contrib.anyio: the threads of anyio, and so of Starlette, FastAPI, httpx and others, come from cmwq's pools.

    app = FastAPI(lifespan=cmwq.contrib.anyio.lifespan())       # in a server
    cmwq.contrib.anyio.install()                                # in any program; with installed(): ... in a part of one

Without it `anyio.to_thread.run_sync` lets 40 calls run at a time in each loop. With it, calls that give no limiter of
their own are works of a queue, and as many run as pays; none waits for a token that another one holds while it waits
itself. Guarantees: an explicit `limiter=` keeps its bound; `from_thread`, `abandon_on_cancel`, context variables,
cancel scopes and exceptions are as with anyio's own threads; nothing that a call leaves in anyio's thread-locals
reaches the next one.

This replaces one function of anyio that is private. In a version of anyio that it was not tested with it warns once and
uses the supported way instead: the default limiter of the loop gets infinitely many tokens, on anyio's own threads.
Trio's threads are left alone.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import inspect
import math
import re
import threading
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from typing import Any

from anyio import CapacityLimiter, to_thread
from anyio._backends import _asyncio as backend
from anyio._core import _eventloop as core

import cmwq
import cmwq.aio
from cmwq._core.naming import called
from cmwq.contrib._routes import InsteadOf

__all__ = ("install", "installed", "lifespan", "uninstall", "unlimited", "why_not")

OLDEST, NEWEST = (4, 12), (4, 16)
"""The versions of anyio with which its own tests of threads were run on cmwq."""

_NAME = "run_sync_in_worker_thread"
_PARAMETERS = ("func", "args", "abandon_on_cancel", "limiter")


class _Installation:
    """What is installed in this process. Its lock protects all of it; reading `queue` needs none."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users = 0
        self.queue: cmwq.WorkQueue | None = None
        """Where the calls run; None: on anyio's own threads."""
        self.original: Any = None
        """The function that was replaced, as the class has it."""
        self.replacement: Any = None
        self.warned = False


_here = _Installation()


def why_not(version: str | None = None) -> str | None:
    """Why the function can't be replaced in this version of anyio; None: it can. version: by default the installed."""
    version = version or importlib.metadata.version("anyio")
    found = re.match(r"(\d+)\.(\d+)", version)
    if found is None or not OLDEST <= (int(found[1]), int(found[2])) <= NEWEST:
        return f"anyio {version} is not one of {_dotted(OLDEST)} to {_dotted(NEWEST)}"
    replaced = getattr(backend.AsyncIOBackend, _NAME, None)
    if replaced is None or tuple(inspect.signature(replaced).parameters) != _PARAMETERS:
        return f"AsyncIOBackend.{_NAME} of anyio {version} takes other arguments"
    for owner, name in (
        (core, "claim_worker_thread"), (core, "threadlocals"), (core, "set_current_async_library"),
        (backend, "CancelScope"),
    ):  # fmt: skip
        if not hasattr(owner, name):
            return f"anyio {version} has no {name}"
    return None


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def install(queue: cmwq.WorkQueue | None = None) -> bool:
    """Run the calls of `anyio.to_thread.run_sync` on cmwq from now on, in all asyncio loops of this process.

    queue: where they run; by default a queue of this module's own, which nothing bounds but the runtime's cap on
    threads. A `max_active` of yours is a bound on all of them together, which is what cmwq is there to spare you.

    Returns whether that is so. False: this version of anyio isn't known. Then a RuntimeWarning says why, once in a
    process, and the running loop, if there is one, gets infinitely many tokens (`unlimited`). Where it returns True, an
    `uninstall` undoes it. Starts no thread. Raises RuntimeError if it is installed with another queue. Thread-safe.
    """
    reason = why_not() if _here.queue is None else None
    if reason is not None:
        _warn(reason)
        with suppress(RuntimeError):  # anyio's NoEventLoopError is one
            unlimited()
        return False
    with _here.lock:
        if _here.queue is not None and queue is not None and queue is not _here.queue:
            raise RuntimeError(f"cmwq.contrib.anyio is installed already, and uses {_here.queue!r}, not {queue!r}")
        _here.users += 1
        if _here.queue is None:
            _here.queue = queue or cmwq.WorkQueue("anyio", max_active=cmwq.aio.UNLIMITED)
            _here.original = backend.AsyncIOBackend.__dict__[_NAME]
            _here.replacement = classmethod(_replacement(_here.original))
            setattr(backend.AsyncIOBackend, _NAME, _here.replacement)
    return True


def uninstall() -> None:
    """Undo one `install`; the last one gives the calls back to anyio's own threads.

    Calls that have been submitted are carried out. Does not wait. Raises RuntimeError if it is not installed.
    Thread-safe.
    """
    with _here.lock:
        if not _here.users:
            raise RuntimeError("cmwq.contrib.anyio is not installed")
        _here.users -= 1
        if not _here.users:
            _here.queue = None
            # Where somebody has replaced the replacement in turn, it stays, and hands on to its original.
            if backend.AsyncIOBackend.__dict__[_NAME] is _here.replacement:
                setattr(backend.AsyncIOBackend, _NAME, _here.original)
            _here.original = _here.replacement = None


@contextmanager
def installed(queue: cmwq.WorkQueue | None = None) -> Iterator[bool]:
    """`install` for a block, then `uninstall`. Blocks may nest and overlap. In an unknown version of anyio the loop's
    default limiter gets its number back at the end.
    """
    limiter = _limiter_here()
    tokens = None if limiter is None else limiter.total_tokens
    full = install(queue)
    try:
        yield full
    finally:
        if full:
            uninstall()
        elif limiter is not None and tokens is not None:
            limiter.total_tokens = tokens


def unlimited() -> float:
    """Do it in the supported way: give the running loop's default limiter infinitely many tokens.

    Returns how many it had. Calls then run on anyio's own threads, one for each that is under way. Raises an exception
    of anyio if no loop runs here.
    """
    limiter = to_thread.current_default_thread_limiter()
    before = limiter.total_tokens
    limiter.total_tokens = math.inf
    return before


def lifespan(
    inner: Callable[[Any], AbstractAsyncContextManager[Any]] | None = None,
) -> Callable[[Any], AbstractAsyncContextManager[Any]]:
    """Return a lifespan for Starlette or FastAPI, during which their synchronous endpoints, dependencies, background
    tasks and files run on cmwq: `FastAPI(lifespan=lifespan())`.

    inner: a lifespan of yours, which runs within. The loop's default executor becomes a lease (`cmwq.aio.install`), for
    `asyncio.to_thread` and `getaddrinfo`. At the end of the lifespan anyio has its threads back; the lease ends with
    the loop.
    """

    @asynccontextmanager
    async def around(app: Any) -> AsyncIterator[Any]:
        with suppress(RuntimeError):  # trio
            cmwq.aio.install()
        with installed():
            if inner is None:
                yield
            else:
                async with inner(app) as state:
                    yield state

    return around


def _limiter_here() -> CapacityLimiter | None:
    with suppress(RuntimeError):
        return to_thread.current_default_thread_limiter()
    return None


def _warn(reason: str) -> None:
    with _here.lock:
        warned, _here.warned = _here.warned, True
    if not warned:
        warnings.warn(
            f"cmwq.contrib.anyio: {reason}; its calls stay on anyio's own threads, without a limit where a loop runs",
            RuntimeWarning,
            stacklevel=3,
        )


# ----------------------------------------------------------------------------------- what replaces anyio's function


def _replacement(original: Any) -> Callable[..., Any]:
    """Return what stands in for `original`, a class method, which still serves while nothing is installed."""

    async def run_sync_in_worker_thread(
        cls: Any, func: Callable[..., Any], args: tuple[Any, ...], abandon_on_cancel: bool = False, limiter: Any = None
    ) -> Any:
        queue = _here.queue
        if queue is None:
            return await original.__get__(None, cls)(func, args, abandon_on_cancel=abandon_on_cancel, limiter=limiter)
        await cls.checkpoint()
        if limiter is None:
            return await _run(cls, queue, func, args, abandon_on_cancel)
        async with limiter:
            return await _run(cls, queue, func, args, abandon_on_cancel)

    return run_sync_in_worker_thread


async def _run(
    cls: Any, queue: cmwq.WorkQueue, func: Callable[..., Any], args: tuple[Any, ...], abandon_on_cancel: bool
) -> Any:
    """Submit the call, and await its end within a cancel scope, as anyio does."""
    with backend.CancelScope(shield=not abandon_on_cancel) as scope:
        parent = scope._parent_scope
        asks = scope if abandon_on_cancel or parent is None else parent  # whom check_cancelled asks
        # `InsteadOf`: the pool tells calls apart by what they call, and `_call` would be the same for all (A9).
        call = InsteadOf(called((func, *args)), _call)  # type: ignore[arg-type]
        return await cmwq.aio.run(queue, call, cls, asyncio.get_running_loop(), asks, func, args)


def _call(cls: Any, loop: Any, scope: Any, func: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """The work: anyio's thread-locals are what they are on a thread of its own, and gone afterwards."""
    core.set_current_async_library(None)  # in the work's own copy of the context
    with core.claim_worker_thread(cls, loop):
        core.threadlocals.current_cancel_scope = scope
        try:
            return func(*args)
        finally:
            del core.threadlocals.current_cancel_scope
