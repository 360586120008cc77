"""What a handler raises where nothing can be raised: tests that do so don't fail of it (`handlers`)."""

from __future__ import annotations

import ast
import signal
import sys
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
from handlers import handler_raises


class Interrupted(BaseException):
    """What the handler raises."""


class Item:
    """It can be in a WeakSet."""


class Finalised:
    def __init__(self, call: Callable[[], object]) -> None:
        self.call = call

    def __del__(self) -> None:
        self.call()


class Dies(Finalised):
    """As if it were ours."""

    def __del__(self) -> None:
        self.call()

    __del__.__module__ = "cmwq._workqueue.future"


def interrupt() -> None:
    signal.raise_signal(signal.SIGUSR1)


@pytest.fixture
def reports(monkeypatch: pytest.MonkeyPatch) -> list[type[BaseException]]:
    told: list[type[BaseException]] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda report: told.append(report.exc_type))
    return told


def test_where_it_can_be_raised_it_is(reports: list[type[BaseException]]) -> None:
    with handler_raises(signal.SIGUSR1, Interrupted) as interrupted:
        with pytest.raises(Interrupted):
            interrupt()
    assert (interrupted.lost, reports) == (0, [])


def test_in_a_weak_references_callback_or_a_finaliser_it_is_counted(reports: list[type[BaseException]]) -> None:
    item = Item()
    reference = weakref.ref(item, lambda _: interrupt())
    with handler_raises(signal.SIGUSR1, Interrupted) as interrupted:
        del item
        assert (reference(), interrupted.lost) == (None, 1)
        Finalised(interrupt)
        assert interrupted.lost == 2
    assert reports == []


def test_other_reports_and_those_of_cmwqs_finalisers_are_let_through(reports: list[type[BaseException]]) -> None:
    with handler_raises(signal.SIGUSR1, Interrupted) as interrupted:
        Finalised(lambda: 1 // 0)
        Dies(interrupt)
    Finalised(lambda: [][0])
    assert (interrupted.lost, reports) == (0, [ZeroDivisionError, Interrupted, IndexError])


def test_no_other_handler_in_the_tests_raises() -> None:
    """One that does fails by the moment, where it hits a finaliser or a callback of the collector."""
    tests = Path(__file__).parent
    raising = []
    for path in tests.rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        handlers = {
            call.args[1].id
            for call in nodes
            if isinstance(call, ast.Call) and len(call.args) == 2 and isinstance(call.args[1], ast.Name)
            if ast.unparse(call.func) == "signal.signal"
        }
        raising += [
            f"{path.relative_to(tests)}: {node.name}"
            for node in nodes
            if isinstance(node, ast.FunctionDef) and node.name in handlers
            if any(isinstance(each, ast.Raise) for each in ast.walk(node))
        ]
    assert raising == []
