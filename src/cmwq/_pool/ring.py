"""Ring: the newest events of a runtime in constant memory, cheap enough to be left on. A trace is written from it.

Guarantees
- Memory is constant. Of each of its three parts (works that were queued, works that ran, everything else) the newest
  `limit` records are kept. So a flood of works does not push out what happened to the pool.
- Nothing of a user is kept alive: a record holds names, numbers and times.
- A recorded work takes the same fast paths as any other, but for two calls of this module: `Recorder.queued` under the
  pool's lock, and `Recorder.run` around its function, without a lock. An observer of `events` costs ten times as much.

Who writes. `runs` is written by workers without a lock, `queued` and `notes` by any thread that holds some pool's lock.
Each record is added by one call of a C function that runs no Python code, so it is added whole or not at all, whatever
interrupts. What order there is follows from the times alone. An interruption (Ctrl-C, an exception thrown at a thread)
may lose the record that was about to be added, and nothing else.

Why the records of works lie flat in their deques, value after value, and are no tuples: a flood would make so many
tuples that the garbage collector ran half as often again. (A deque that is full of whole records drops a whole one for
each that is added.)

Why a reader takes the deques away and puts new ones in their places: without a GIL one can't iterate over a deque to
which others append. A thread that is just adding a record to the old one may lose it.

The letters are those of `pool`. A stands for one atomic step in C.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import chain
from threading import get_ident
from types import FunctionType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from cmwq._core.held import holding, outside
from cmwq._core.naming import name_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from cmwq._pool.item import Item
    from cmwq._pool.worker import Worker


class Place(NamedTuple):
    """The names of a queue and of the pool that its works go to."""

    pool: str
    queue: str


class Queued(NamedTuple):
    """A work was queued."""

    time: float
    item: int
    """As `Event.item`."""
    thread: int
    """The identifier of the thread that queued it, as `threading.get_ident` gives it."""
    place: Place


class Ran(NamedTuple):
    """A work has run."""

    began: float
    ended: float
    worker: str
    place: Place
    work: str
    item: int
    raised: str | None
    """The name of the type of its exception."""


Kept: TypeAlias = tuple[tuple[list[Any], ...], tuple[tuple[deque[Any], ...], ...]]
"""What a reader has: the records that it took before, and the deques that it has taken away since."""


class Ring:
    """The records of one runtime: of its works by `put_queued` and `put_run`, and of its pools by `put_note`."""

    __slots__ = ("_kept", "_now", "begin_to_look", "limit", "looks", "put_note", "put_queued", "put_run")

    def __init__(self, limit: int, begin_to_look: Callable[[], object]) -> None:
        """begin_to_look: called when a work begins while `looks` is False. Somebody should then look at the pools now
        and again, for as long as they are busy.
        """
        self.limit = limit  # I
        self.looks = False  # ~
        self.begin_to_look = begin_to_look  # I
        self._kept: Kept = (([], [], []), ())  # S: of the one thread that reads
        self._begin()

    def _begin(self) -> None:
        sizes = self.limit * len(Queued._fields), self.limit * len(Ran._fields), self.limit
        queued, runs, notes = self._now = tuple(deque[Any](maxlen=size) for size in sizes)  # A
        self.put_queued: Callable[[Iterable[Any]], object] = queued.extend
        self.put_run: Callable[[Iterable[Any]], object] = runs.extend
        self.put_note: Callable[[Any], object] = notes.append

    def read(self) -> tuple[list[Queued], list[Ran], list[Any]]:
        """The records that are kept, in the order in which they were added. Context: one thread at a time.

        If it is interrupted, nothing is lost: deques are remembered before others take their places, and forgotten by
        the step that keeps what they held.
        """
        old, taken = self._kept
        if not any(each is self._now for each in taken):
            taken = *taken, self._now
            self._kept = old, taken
        self._begin()
        parts = []
        for sort, part in enumerate(old):
            records = [*part, *chain.from_iterable(_all_of(each[sort]) for each in taken)]
            parts.append(records[-(taken[0][sort].maxlen or 0) :])
        self._kept = tuple(parts), ()
        queued, runs, notes = parts
        return list(map(Queued._make, _records(queued, Queued))), list(map(Ran._make, _records(runs, Ran))), notes


def _all_of(values: deque[Any]) -> list[Any]:
    """A list of the values. A thread may still be adding the last ones."""
    while True:
        try:
            return list(values)
        except RuntimeError:  # there is no GIL, and that thread did it just now
            continue


def _records(values: list[Any], record: type[Queued] | type[Ran]) -> Iterable[tuple[Any, ...]]:
    """Cut the values into records."""
    each = iter(values)
    return zip(*[each] * len(record._fields), strict=True)


class Several:
    """Several rings that are written as one: more than one trace is being recorded."""

    __slots__ = ("_rings",)

    def __init__(self, rings: tuple[Ring, ...]) -> None:
        self._rings = rings  # I

    @property
    def looks(self) -> bool:
        return all(ring.looks for ring in self._rings)

    def begin_to_look(self) -> None:
        for ring in self._rings:
            if not ring.looks:
                ring.begin_to_look()

    def put_queued(self, record: Iterable[Any]) -> None:
        for ring in self._rings:
            ring.put_queued(record)

    def put_run(self, record: Iterable[Any]) -> None:
        for ring in self._rings:
            ring.put_run(record)


class Recorder:
    """Records the works of one place."""

    __slots__ = ("clock", "failures", "place", "ring", "rings")

    def __init__(self, rings: tuple[Ring, ...], clock: Callable[[], float], place: Place) -> None:
        self.rings = rings  # I
        self.ring = rings[0] if len(rings) == 1 else Several(rings)  # I
        self.clock = clock  # I
        self.place = place  # I
        self.failures = 0  # ~: it changes when a work raises

    @holding("item.pwq.pool.lock")
    def queued(self, item: Item) -> None:
        self.ring.put_queued((self.clock(), id(item), get_ident(), self.place))

    @outside
    def run(self, worker: Worker) -> None:
        """Run the worker's item, and record that it did."""
        item = worker.item
        assert item is not None
        if not self.ring.looks:
            self.ring.begin_to_look()
        function, failures, clock = item.function, self.failures, self.clock  # the item forgets its function
        name = function.__qualname__ if type(function) is FunctionType else name_of(function)
        worker.began = began = clock()
        try:
            item.run()
        finally:
            raised = None
            if failures != self.failures:  # some work has raised meanwhile, so it is worth asking
                error = item.raised
                raised = None if error is None else name_of(error)
            if item.answers:
                name = name_of(item.answers[0])
            worker.began = 0.0
            self.ring.put_run((began, clock(), worker.name, self.place, name, id(item), raised))
            del item, function  # the traceback of what the item raised keeps this frame
