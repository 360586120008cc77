"""The options of a queue. They are checked where the queue is made, before anything is started."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import Context
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from cmwq._core import checks
from cmwq._core.config import DFL_ACTIVE
from cmwq._workqueue.room import FULL, WhenFull

if TYPE_CHECKING:
    from cmwq._workqueue.runtime import Runtime
    from cmwq._workqueue.work import Work

Scope: TypeAlias = Literal["system", "numa", "cache", "smt", "cpu"]
AtClose: TypeAlias = Literal["run", "cancel"]
AUTO: Literal["auto"] = "auto"
"""The limit that is learned (E11)."""
SCOPES: tuple[Scope, ...] = ("cpu", "smt", "cache", "numa", "system")
DELAYED: tuple[AtClose, ...] = ("cancel", "run")
"""What can happen, when a queue closes, to works whose time has not come."""


@dataclass(slots=True)
class QueueOptions:
    """The options of a queue, as explained in `WorkQueue`, checked. Raises TypeError or ValueError for a bad value."""

    name: str
    max_active: int | Literal["auto"] | None
    ordered: bool
    scope: Scope
    highpri: bool
    cpu_intensive: bool
    freezable: bool
    max_pending: int | None
    full: WhenFull
    rescuer: bool
    delayed: AtClose | None
    on_error: Callable[[Work, BaseException], object] | None
    context: Context | None

    def __post_init__(self) -> None:
        self.name = checks.text("the name of a queue", self.name)
        me = f"queue {self.name!r}: "
        self.scope = checks.choice(f"{me}scope", self.scope, SCOPES)
        self.full = checks.choice(f"{me}full", self.full, FULL)
        self.delayed = checked_delayed(self.name, self.delayed)
        if self.max_active is not None:
            self.max_active = checked_limit(self.name, self.max_active)
        if self.max_pending is not None:
            self.max_pending = checks.integer(f"{me}max_pending", self.max_pending, 1)
        for flag in ("ordered", "highpri", "cpu_intensive", "freezable", "rescuer"):
            checks.flag(me + flag, getattr(self, flag))
        if self.on_error is not None:
            checks.function(f"{me}on_error", self.on_error)
        if self.context is not None:
            checks.instance(f"{me}context", self.context, Context)
        if self.ordered and (self.scope != "system" or self.max_active not in (None, 1)):
            raise ValueError(f"{me}an ordered queue has scope 'system' and max_active 1, one work at a time")

    def limit(self) -> int | None:
        """How many works may be active on one pool; None: that is to be learned."""
        if self.max_active is None:
            return 1 if self.ordered else DFL_ACTIVE
        return None if isinstance(self.max_active, str) else self.max_active


def checked_limit(name: str, limit: int | str) -> int | Literal["auto"]:
    """The option `max_active`, checked: a number, or AUTO. Raises TypeError, ValueError."""
    if isinstance(limit, str):
        if limit == AUTO:
            return AUTO
        raise TypeError(f"queue {name!r}: max_active is {limit!r}, and must be an integer or {AUTO!r}")
    return checks.integer(f"queue {name!r}: max_active", limit, 1)


def checked_delayed(name: str, delayed: str | None) -> AtClose | None:
    """The option `delayed`, checked; None: not given. Raises TypeError, ValueError."""
    return None if delayed is None else checks.choice(f"queue {name!r}: delayed", delayed, DELAYED)


def checked_runtime(runtime: Runtime | None) -> Runtime:
    """The runtime given, or the process's default one. Raises TypeError."""
    if runtime is None:
        from cmwq._workqueue.runtime import default_runtime

        return default_runtime()
    checks.port("Runtime", runtime, "pool_here")
    return runtime
