"""Which callables are calls of the same function, for what is remembered of functions (A9)."""

from __future__ import annotations

import hashlib
import math
from contextvars import copy_context
from functools import partial

import pytest

from cmwq._core.naming import kind_of


class Thing:
    def method(self) -> None: ...

    @classmethod
    def of_class(cls) -> None: ...

    def __call__(self) -> None: ...


def function(n: int = 0) -> None: ...


def a_closure(n: int) -> object:
    return lambda: n


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (function, partial(function, 1)),
        (partial(partial(function), 2), partial(function, n=3)),
        (Thing().method, Thing().method),
        (Thing().method, Thing.method),
        (Thing.of_class, Thing.of_class),
        (Thing(), Thing()),
        (a_closure(1), a_closure(2)),
        (partial(copy_context().run, function, 4), function),
        (partial(copy_context().run, partial(function, 4)), function),
        ([].append, [1].append),
        (math.sqrt, math.sqrt),
        (Thing, Thing),
    ],
)
def test_A9_calls_of_the_same_function(one: object, other: object) -> None:
    assert kind_of(one)[0] is kind_of(other)[0]
    assert kind_of(one)[1] == kind_of(other)[1]


def test_A9_calls_of_different_functions() -> None:
    kinds = [
        function, Thing().method, Thing(), Thing, a_closure(1), a_closure, math.sqrt, math.sin, [].append, {}.pop,
        [].pop, hashlib.sha256, hashlib.md5, partial(copy_context().run, Thing.of_class),
    ]  # fmt: skip
    assert len({(id(anchor), name) for anchor, name in map(kind_of, kinds)}) == len(kinds)


def test_A9_a_partial_call_that_contains_itself_is_no_endless_loop() -> None:
    endless = partial(function)
    endless.__setstate__((endless, (), {}, {}))  # type: ignore[attr-defined]
    kind_of(endless)
