"""Whatever the C functions are given, they do it or say why not: a value or an exception, never both, never neither."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Iterator
from typing import Any

import pytest

try:
    from cmwq._sensor import _sentinel
except ImportError:  # no compiler was there
    pytest.skip("the C extension was not built", allow_module_level=True)


class Oops(Exception):
    pass


class Hostile:
    """It can be taken for anything, and then raises."""

    def _raise(self, *_: object) -> Any:
        raise Oops

    __index__ = __int__ = __float__ = __bool__ = __iter__ = __len__ = __call__ = unpark = _raise


class Late:
    """A sequence that fails in the middle."""

    def __iter__(self) -> Iterator[object]:
        yield 0
        raise Oops


VALUES: list[Any] = [
    None, True, 0, 1, -1, 3, 2**31, -(2**31) - 1, 2**63, -(2**64), 10**30, 0.0, -1.0, 1e-9, 1e300, float("inf"),
    float("nan"), "", "text", "a" * 100, "\0", "\ud800", b"bytes", (), (0,), (0, "x"), (2**70,), [0, 1, 99999],
    Hostile(), Late(), Oops, len, object(), int, _sentinel.Parker(),
]  # fmt: skip
REFUSALS = (TypeError, ValueError, OverflowError, RuntimeError, OSError, MemoryError, AttributeError, Oops)


def objects() -> Iterator[Any]:
    watch = _sentinel.Watch()
    lookout = watch.lookout((0,), 1, 100)
    slot, parker = lookout.slot(), _sentinel.Parker()
    yield from (watch, lookout, slot, parker, _sentinel.Lock(3))
    watch.stop()


def functions() -> Iterator[tuple[str, Any]]:
    for name in ("get_cpu", "set_name", "inside", "defer", "Watch", "Parker", "Lock"):
        yield name, getattr(_sentinel, name)
    for thing in objects():
        for name in dir(thing):
            if not name.startswith("_") and callable(getattr(thing, name)):
                yield f"{type(thing).__name__}.{name}", getattr(thing, name)


def call(fn: Any, thing: Any, args: tuple[Any, ...], **keywords: Any) -> None:
    if thing is not None:
        thing.unpark()  # or park() would wait
    with contextlib.suppress(*REFUSALS):
        fn(*args, **keywords)


@pytest.mark.parametrize(("name", "fn"), list(functions()), ids=lambda value: value if isinstance(value, str) else "")
def test_no_argument_confuses_it(name: str, fn: Any) -> None:
    def body() -> None:  # on a thread of its own, which may be given any name
        parks = fn.__self__ if name.endswith(".park") else None
        most = 1 if name in ("Watch.start", "Watch.learn_gil") else 3
        for n in range(most + 1):
            for args in itertools.islice(itertools.product(VALUES, repeat=n), 3000):
                call(fn, parks, args)
                if name.startswith(("Lock.", "Lookout.")) and fn.__self__.held():
                    fn.__self__.release()
        call(fn, parks, (), nonsense=1)
        call(fn, parks, (1,), rank=Hostile())
        done.append(_sentinel.inside())

    done: list[int] = []
    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert done == [0]


def test_a_lock_says_what_is_wrong() -> None:
    for args in [(), ("3",), (1.5,), (3, None, None)]:
        with pytest.raises(TypeError):
            _sentinel.Lock(*args)
    with pytest.raises(ValueError, match="not 99"):
        _sentinel.Lock(99)
    lock = _sentinel.Lock(3)
    with pytest.raises(TypeError, match="callable"):
        lock.mend = 3  # type: ignore[assignment]
    with pytest.raises(AttributeError):
        lock.rank = 3  # type: ignore[misc]


def test_an_error_in_the_middle_changes_nothing() -> None:
    watch = _sentinel.Watch()
    lookout = watch.lookout((0,), 1, 1)
    for cpus in [(0, "x"), Late(), (2**70,), Hostile(), 3]:
        with pytest.raises((TypeError, OverflowError, Oops)):
            lookout.set_cpus(cpus)  # type: ignore[arg-type]
        with pytest.raises((TypeError, OverflowError, Oops)):
            watch.lookout(cpus, 1, 1)  # type: ignore[arg-type]
    parker = _sentinel.Parker()
    for args in [("x",), (Hostile(),), (0, Hostile()), (float("nan"),), (0, True, 1)]:
        with pytest.raises((TypeError, ValueError, Oops)):
            parker.park(*args)
