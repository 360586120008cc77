"""Records: the fields that every work reads or writes, for the classes of the core to inherit.

There are two sets of them: those below, which are nothing special, and those of the C extension, whose fields are C
structs that Python sees as the same attributes. The latter are there for the twin (`_workqueue/twin.py`), the hot path
in C, and are chosen where it can serve: the extension was built, and the debug mode, which checks locks in Python, is
off. `CMWQ_TWIN=0` chooses the others.

Guarantees: a class that inherits a record behaves the same with either, but for one thing: a field of the C records
that was never set is None or 0. Who changes a field, and under which lock, is said where the class sets it. The letters
are those of `pool`.
"""

from __future__ import annotations

import os
from concurrent.futures._base import PENDING
from typing import TYPE_CHECKING, Any

from cmwq._core.held import DEBUG

if TYPE_CHECKING:
    from contextvars import Context

    from cmwq._core.ports import Parker


class FutureRecord:
    # Class attributes hold the state of a new future, so that creating one stores only what differs.
    phase: Any
    _state: str = PENDING
    _result: Any = None
    _exception: BaseException | None = None
    _audience: Any = None
    _call: tuple[Any, ...] | None = None
    _kwargs: dict[str, Any] | None = None
    _context: Context | None = None


class QueuedRecord:
    phase: Any
    work: Any
    stage: Any
    _context: Context | None
    room: Any = None
    parkers: list[Parker] | None = None
    follower: Any = None
    futures: Any = None
    held: Any = None
    raised: type[BaseException] | None = None


class WorkRecord:
    __slots__ = (
        "_args", "_born", "_cancels", "_delay", "_disables", "_execution", "_fn", "_item", "_kwargs", "_last", "_lock",
    )  # fmt: skip


class PhaseRecord:
    __slots__ = ("ended", "pwq", "queued")


class PlaceRecord:
    __slots__ = (
        "attends", "careful", "frozen", "gate", "inactive", "max_active", "nr_active", "nr_withdrawn", "outside",
        "phase", "pool", "wq",
    )  # fmt: skip


class QueueRecord:
    pass


class PoolRecord:
    pass


class WorkerRecord:
    __slots__ = (
        "below", "blocked", "counted", "dying", "ended", "item", "kicked", "last", "parker", "record", "served",
    )  # fmt: skip


NATIVE = False
"""Are the records those of the C extension?"""

if not TYPE_CHECKING and not DEBUG and os.environ.get("CMWQ_TWIN") != "0":
    try:
        from cmwq._sensor import _sentinel as native

        FutureRecord, QueuedRecord, WorkRecord = native.FutureRecord, native.QueuedRecord, native.WorkRecord
        PhaseRecord, PlaceRecord, QueueRecord = native.PhaseRecord, native.PlaceRecord, native.QueueRecord
        PoolRecord, WorkerRecord = native.PoolRecord, native.WorkerRecord
    except (ImportError, AttributeError):  # no compiler was there; or another interpreter has the records
        pass
    else:
        NATIVE = True
