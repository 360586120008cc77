"""Records: the fields that every work reads or writes, for the classes of the core to inherit.

There are two sets of them: those below, which are nothing special, and those of the C extension, whose fields are C
structs that Python sees as the same attributes. The latter are there for the twin (`_workqueue/twin.py`), the hot path
in C, and are chosen where it can serve: the extension was built, `CMWQ_TWIN` is not 0, and the debug mode, which checks
locks in Python, is off.

Guarantees: a class that inherits a record behaves the same with either, but for one thing: a field of the C records that
was never set is None or 0. Who changes a field, and under which lock, is said where the class sets it; the letters are
those of `pool`.
"""

from __future__ import annotations

import os
from concurrent.futures._base import PENDING
from typing import TYPE_CHECKING, Any

from cmwq._core.held import DEBUG

if TYPE_CHECKING:
    from contextvars import Context

    from cmwq._core.ports import Parker


class PyFutureRecord:
    # Class attributes hold the state of a new future, so that creating one stores only what differs.
    phase: Any
    _state: str = PENDING
    _result: Any = None
    _exception: BaseException | None = None
    _audience: Any = None
    _call: tuple[Any, ...] | None = None
    _kwargs: dict[str, Any] | None = None
    _context: Context | None = None


class PyQueuedRecord:
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


class PyWorkRecord:
    __slots__ = (
        "_args", "_born", "_cancels", "_delay", "_disables", "_execution", "_fn", "_item", "_kwargs", "_last", "_lock",
    )  # fmt: skip


class PyPhaseRecord:
    __slots__ = ("ended", "pwq", "queued")


class PyPlaceRecord:
    __slots__ = (
        "attends", "careful", "frozen", "gate", "inactive", "max_active", "nr_active", "nr_withdrawn", "outside",
        "phase", "pool", "wq",
    )  # fmt: skip


class PyQueueRecord:
    pass


class PyPoolRecord:
    pass


class PyWorkerRecord:
    __slots__ = (
        "below", "blocked", "counted", "dying", "ended", "item", "kicked", "last", "parker", "record", "served",
    )  # fmt: skip


NATIVE = False
"""Are the records those of the C extension?"""

if TYPE_CHECKING:
    FutureRecord, QueuedRecord, WorkRecord, PhaseRecord = PyFutureRecord, PyQueuedRecord, PyWorkRecord, PyPhaseRecord
    PlaceRecord, QueueRecord, PoolRecord, WorkerRecord = PyPlaceRecord, PyQueueRecord, PyPoolRecord, PyWorkerRecord
else:
    try:
        if DEBUG or os.environ.get("CMWQ_TWIN") == "0":
            raise ImportError("the twin is off")
        from cmwq._sensor._sentinel import (
            FutureRecord,
            PhaseRecord,
            PlaceRecord,
            PoolRecord,
            QueuedRecord,
            QueueRecord,
            WorkerRecord,
            WorkRecord,
        )

        NATIVE = True
    except ImportError:
        FutureRecord, QueuedRecord, WorkRecord = PyFutureRecord, PyQueuedRecord, PyWorkRecord
        PhaseRecord, PlaceRecord, QueueRecord = PyPhaseRecord, PyPlaceRecord, PyQueueRecord
        PoolRecord, WorkerRecord = PyPoolRecord, PyWorkerRecord
